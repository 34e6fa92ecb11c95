"""Students of imported teachers, exported for ``imitkd-serve`` with the teacher's subwords."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from fairseq_imitkd.checkpoints.tags import SETTING
from fairseq_imitkd.checkpoints.translation import load_student
from fairseq_imitkd.cli import export as command
from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.engines.base import SearchSettings
from fairseq_imitkd.engines.fairseq import FairseqEngine
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.export.bundle import LONGEST_MERGED, Bundle, text_settings
from fairseq_imitkd.huggingface.importer import CHECKPOINT
from fairseq_imitkd.huggingface.subwords import files_of, open_encoder
from fairseq_imitkd.text import pieces
from fairseq_imitkd.text.imported import KINDS
from fairseq_imitkd.text.subwords import IMPORTED, Text, TextSettings
from tests.helpers.huggingface_models import sentences
from tests.huggingface.conftest import CASES, Case, write_split

Imported = Callable[[str], Case]
# A case of each kind of subwords, with the longest word that its server takes.
LONGEST = {"marian": None, "nllb-fast": None, "bart": LONGEST_MERGED, "fsmt": LONGEST_MERGED}


def text_of(case: Case) -> Text:
    """Return the text of ``--subwords``."""
    return case.languages.text(TextSettings(IMPORTED, files_of(case.out)))


def normal(line: str) -> str:
    """Return a sentence as subwords keep it: SentencePiece and Moses change some of its blanks and marks."""
    return re.sub(r" (?=[.!?])", "", " ".join(line.replace("…", "...").split()))


@pytest.mark.parametrize("name", CASES)
def test_text_comes_back(imported: Imported, name: str) -> None:
    """Of both sides, without tags. A dictionary has no text of unknown symbols."""
    case = imported(name)
    text, compared = text_of(case), 0
    for side, decode in (("source", text.decode_source), ("target", text.decode)):
        encoder = open_encoder(case.out, side, tags=False)
        for line in sentences(40, seed=61):
            encoded = encoder.encode(line)
            if "<unk>" not in encoded.split():
                assert normal(decode(encoded)) == normal(line), side
                compared += 1
    assert compared > 30


def exported(case: Case, root: Path, *flags: Any, tags: bool = False) -> Path:
    """Export a student with the teacher's own weights, whose data have no tags, by the command."""
    state = torch.load(case.out / CHECKPOINT, weights_only=True)
    state["cfg"]["task"].pop(SETTING, None)
    torch.save(state, root / "student.pt")
    encoders = [open_encoder(case.out, side, tags=tags) for side in ("source", "target")]
    texts = [[encoder.encode(line) for line in sentences(20, seed=41)] for encoder in encoders]
    write_split(root / "data", case.pair, [encoder.dictionary for encoder in encoders], texts)
    words = [root / "student.pt", "--data", root / "data", "--out", root / "out", "--quantization", "float32"]
    languages = ("--source-lang", case.pair[0], "--target-lang", case.pair[1])
    command.main(list(map(str, [*words, *languages, "--subwords", case.out, "--max-len-b", 20, *flags])))
    return root / "out"


@pytest.mark.parametrize("name", LONGEST)
def test_raw_text_is_translated(imported: Imported, tmp_path: Path, name: str, capsys: Any) -> None:
    """By the exported folder alone, as fairseq translates the encoded text."""
    case = imported(name)
    folder = shutil.move(exported(case, tmp_path), tmp_path / "moved")
    assert "Next: imitkd-serve" in capsys.readouterr().out
    bundle, lines = Bundle.read(folder), sentences(10, seed=63)
    assert bundle.longest_word == LONGEST[name]
    encoders = [open_encoder(case.out, side, tags=False) for side in ("source", "target")]
    sources = [bundle.encode(line) for line in lines]
    for line, source in zip(lines, sources, strict=True):
        symbols = encoders[0].encode(line)
        expected = encoders[0].dictionary.encode_line(symbols, add_if_not_exist=False)
        assert source.tolist() == expected.tolist()
    languages = Languages.of(tmp_path / "data", *case.pair)
    model = load_student(str(tmp_path / "student.pt"), languages).model
    fairseqs = FairseqEngine.of_model(model, languages, SearchSettings(beam=1, max_len_b=20))
    for source, found in zip(sources, bundle.translate(sources), strict=True):
        tokens = fairseqs.translate([0], [source], 1)[0][0].tokens
        assert found.tolist() == tokens.tolist()
        text = encoders[1].decode(languages.target_dictionary.string(tokens))
        assert bundle.decode(found) == text
        assert "\u2581" not in text


def test_a_language_in_the_text_is_a_symbol(imported: Imported) -> None:
    """Of a model of several target languages that was imported for none of them; else it is text."""
    several = text_of(imported("marian-tags"))
    assert several.encode(">>fr<< ab").split()[0] != ">>fr<<", "the import names >>en<<"
    files = dict(files_of(imported("marian-tags").out))
    case = imported("marian-tags")
    description = json.loads(files["huggingface.json"].read_text(encoding="utf-8"))
    description["text"]["source"]["before"] = []
    path = case.out.parent / "without.json"
    path.write_text(json.dumps(description), encoding="utf-8")
    open_one = case.languages.text(TextSettings(IMPORTED, {**files, "huggingface.json": path}))
    assert open_one.encode(">>fr<< ab").split()[0] == ">>fr<<"


def test_data_with_tags_are_refused(imported: Imported, tmp_path: Path) -> None:
    """A student would need the tags, and no text has them."""
    with pytest.raises(UsageError, match=r"^100\.0% of the sentences of 'valid' change their subwords when "):
        exported(imported("m2m"), tmp_path, tags=True)
    assert not (tmp_path / "out").exists()


def test_data_of_another_model_are_refused(imported: Imported, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--subwords '.*' has another source dictionary than --data; use"):
        exported(imported("marian"), tmp_path, "--subwords", imported("m2m").out)
    with pytest.raises(UsageError, match=r"^--remove-bpe and --subwords both undo subwords; use one of them"):
        exported(imported("marian"), tmp_path, "--remove-bpe", "sentencepiece")


def test_an_unknown_word_is_shown_as_such(imported: Imported) -> None:
    """As with ``--bpe``; SentencePiece's own text of it is another one."""
    for name in CASES:
        text = text_of(imported(name))
        known = text.encode("ab").split()
        assert text.decode_source(" ".join([*known, "<unk>"])).replace(" ", "") == "ab<unk>", name


def test_subwords_without_a_decoder(imported: Imported, tmp_path: Path) -> None:
    """A ``tokenizer.json`` of words, which imitkd-export itself writes, has none."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, "<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    splitter = KINDS["tokenizers"]({"tokenizer.json": tmp_path / "tokenizer.json"}, "source", "de")
    assert splitter.join(splitter.split("a b a")) == "a b a"


DAMAGE: dict[str, tuple[str, str, Any]] = {
    "merges": ("fsmt", "bpe.codes", "a b c d\n"),
    "no merges": ("fsmt", "bpe.codes", ""),
    "a table of the normaliser": (
        "nllb-fast",
        "tokenizer.json",
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    ),
    "a name of a symbol": ("marian", "huggingface.json", {"renamed": {"\u2581": [1]}}),
    "a tag": ("marian", "huggingface.json", {"before": [[1]]}),
    "tags that are a word": ("marian", "huggingface.json", {"before": "abc"}),
    "numbers": ("bart", "encoder.json", {}),
    "a kind": ("marian", "huggingface.json", {"kind": "xx"}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_subwords_are_one_line(imported: Imported, tmp_path: Path, damage: str) -> None:
    """Found when they are opened, and not by the first request of a server."""
    name, file, change = DAMAGE[damage]
    case = imported(name)
    files = {each: Path(shutil.copy(path, tmp_path)) for each, path in files_of(case.out).items()}
    if file == "huggingface.json":
        content = json.loads(files[file].read_text(encoding="utf-8"))
        if "kind" in change:
            content["subwords"] = change["kind"]
        for side in ("source", "target"):
            content["text"][side] |= change
        change = content
    elif file == "tokenizer.json":
        change = {**json.loads(files[file].read_text(encoding="utf-8")), **change}
    files[file].write_text(change if isinstance(change, str) else json.dumps(change), encoding="utf-8")
    with pytest.raises(UsageError) as refused:
        case.languages.text(TextSettings(IMPORTED, files))
    assert "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_a_damaged_manifest_names_no_file_outside(imported: Imported, tmp_path: Path) -> None:
    """Names of files are those of an import, and the files are the folder's own."""
    manifest = {"bpe": IMPORTED, "tokenizer": None, "files": {"huggingface.json": "../x", "other": "y"}}
    assert dict(text_settings(tmp_path, manifest).files) == {"huggingface.json": tmp_path / "subwords" / "x"}
    with pytest.raises(KeyError):
        text_settings(tmp_path, {**manifest, "files": {"source.spm": "source.spm"}})


@pytest.mark.parametrize("name", ["bart", "fsmt"])
def test_few_words_are_remembered(imported: Imported, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A server meets new words for ever."""
    text, stored = text_of(imported(name)), []
    kept = pieces.RememberedWords.__setitem__

    def store(words: Any, *item: Any) -> None:
        kept(words, *item)
        stored.append(len(words))

    monkeypatch.setattr(pieces, "MOST_WORDS", 3)
    monkeypatch.setattr(pieces.RememberedWords, "__setitem__", store)
    for line in sentences(10, seed=64):
        text.encode(line)
    assert len(stored) > 10
    assert max(stored) <= 3
