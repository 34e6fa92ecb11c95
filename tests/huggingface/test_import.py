"""Imported models of every family: logits, searches and subwords are those of ``transformers``."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from fairseq.sequence_generator import SequenceGenerator

from fairseq_imitkd.checkpoints.translation import load_student
from fairseq_imitkd.huggingface import check
from fairseq_imitkd.huggingface.folder import ModelFolder
from fairseq_imitkd.huggingface.importer import CHECKPOINT
from fairseq_imitkd.huggingface.subwords import open_encoder
from fairseq_imitkd.huggingface.vocabulary import EOS, PAD
from fairseq_imitkd.teacher.loading import load_teacher
from fairseq_imitkd.teacher.source import TeacherSource
from fairseq_imitkd.text.imported import KINDS, Encoder, Splitter
from tests.helpers.fairseq_models import letters
from tests.helpers.huggingface_models import sentences
from tests.huggingface.conftest import CASES, Case

Imported = Callable[[str], Case]
# One case of each family; the others differ in their subwords.
FAMILIES = ("marian", "m2m", "mbart", "mbart50", "bart", "fsmt", "pegasus")


def original_ids(case: Case, lines: list[str]) -> list[list[int]]:
    """Return the ids of source sentences by ``AutoTokenizer``."""
    tokenizer = check.load_tokenizer(ModelFolder(case.origin), case.pair)
    encoder = open_encoder(case.out, "source")
    return [check.original_ids(tokenizer, encoder, line) for line in lines]


def fairseq_ids(case: Case, lines: list[str], side: str = "source") -> list[list[int]]:
    """Return the indices that ``fairseq-preprocess`` writes for encoded sentences."""
    encoder = open_encoder(case.out, side)
    dictionary = encoder.dictionary
    return [
        dictionary.encode_line(encoder.encode(line), add_if_not_exist=False).long().tolist() for line in lines
    ]


@pytest.mark.parametrize("name", CASES)
def test_logits_are_equal(imported: Imported, name: str) -> None:
    """The command compares them; it also finds the same ids."""
    made = imported(name).made
    assert made.verdict is not None
    assert made.verdict.logits > 10_000
    assert made.verdict.difference < 3e-6 * made.verdict.largest
    assert made.notes == ()


# Without a tokenizer.json, transformers leaves SentencePiece's normalisation out of these two tokenizers.
UNLIKE = {"mbart", "pegasus"}


@pytest.mark.parametrize("name", CASES)
def test_ids_are_equal(imported: Imported, name: str) -> None:
    """Those of the model, tags included, for each of many sentences."""
    case = imported(name)
    lines = [*sentences(300, seed=7), *check.SENTENCES]
    if name in UNLIKE:
        lines = [line for line in lines if unicodedata.normalize("NFKC", line) == line]
    rows = imported_rows(case)
    found = [[rows[index] for index in line] for line in fairseq_ids(case, lines)]
    expected = original_ids(case, lines)
    wrong = [line for line, mine, theirs in zip(lines, found, expected, strict=True) if mine != theirs]
    assert wrong == []
    assert len({tuple(ids) for ids in found}) > 200


def imported_rows(case: Case) -> tuple[int, ...]:
    """Return the model's id at each source index, found by comparing embeddings."""
    other = check.load_original(ModelFolder(case.origin))
    state = torch.load(case.out / CHECKPOINT, weights_only=True)["model"]
    table = other.get_encoder().embed_tokens.weight.data
    by_row = {tuple(row.tolist()): number for number, row in enumerate(table)}
    return tuple(by_row.get(tuple(row.tolist()), -1) for row in state["encoder.embed_tokens.weight"])


def test_targets_have_their_tags(imported: Imported) -> None:
    """The target of a model with tags begins with its tag; BART's begins with ``<s>``."""
    expected = {"m2m": "__en__", "nllb": "eng_Latn", "mbart50": "sl_SI", "bart": "<s>"}
    for name, tag in expected.items():
        assert open_encoder(imported(name).out, "target").encode("ab").split()[0] == tag
    encoded = open_encoder(imported("mbart").out, "source").encode("ab").split()
    assert encoded[-1] == "<s>"
    marian = open_encoder(imported("marian-tags").out, "source")
    assert marian.encode("ab").split()[0] == ">>en<<"
    assert marian.encode(">>fr<< ab").split()[:2] == [">>fr<<", marian.encode("ab").split()[1]]


def test_text_that_begins_as_a_tag_is_text() -> None:
    """A mail quote, for instance, even if the dictionary has its symbols."""
    symbols = letters(["a", ">", "<", ">>en<<", ">>fr<<"])
    encoder = Encoder(Splitter(list, "".join), (">>en<<",), (), {}, symbols)
    for line in (">>a", ">>", ">><<a", ">> a <<", ">>a>>fr<<"):
        assert encoder.symbols(line)[0] == ">>en<<", line
        assert encoder.symbols(line)[1:3] == [">", ">"], line
    assert encoder.symbols(">>fr<<a") == [">>fr<<", "a"]


def test_special_symbols_in_text_are_text(tmp_path: Path) -> None:
    """Those of a ``tokenizer.json`` too."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "a": 1, "</s>": 2}, "<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("a</s>").tokens == ["a", "</s>"]
    splitter = KINDS["tokenizers"]({"tokenizer.json": tmp_path / "tokenizer.json"}, "source", "de")
    assert splitter.split("a</s> a") == ["<unk>", "a"]


def test_targets_use_the_targets_subwords(imported: Imported) -> None:
    """Marian's sides have two SentencePiece models; FSMT's also have two lists of symbols."""
    marian, fsmt = imported("marian"), imported("fsmt")
    line = sentences(1, seed=3)[0]
    sides = [open_encoder(marian.out, side).encode(line) for side in ("source", "target")]
    assert sides[0] != sides[1]
    import sentencepiece

    for name, mine in zip(("source.spm", "target.spm"), sides, strict=True):
        model = sentencepiece.SentencePieceProcessor(model_file=str(marian.origin / name))
        assert [piece for piece in mine.split() if piece != "<unk>"] == [
            piece for piece in model.encode(line, out_type=str) if piece in marian.languages.source_dictionary
        ]
    numbers = json.loads((fsmt.origin / "vocab-tgt.json").read_text(encoding="utf-8"))
    encoder = open_encoder(fsmt.out, "target")
    for symbol in encoder.symbols(line):
        token = symbol.removesuffix("@@") if symbol.endswith("@@") else f"{symbol}</w>"
        assert token in numbers or symbol == "<unk>"


def free_search(case: Case, beam: int, length: int) -> tuple[list[Any], list[Any]]:
    """Search with both models for targets of this length: sets of (ids, score) for each sentence."""
    lines = sentences(5, seed=11)
    model = load_student(str(case.out / CHECKPOINT), case.languages).model
    other = check.load_original(ModelFolder(case.origin))
    dictionary = case.languages.target_dictionary
    generator = SequenceGenerator(
        [model], dictionary, beam_size=beam, max_len_a=0, max_len_b=length, min_len=length
    )
    sources = fairseq_ids(case, lines)
    width = max(map(len, sources))
    source = torch.tensor([[PAD] * (width - len(line)) + line for line in sources])
    sample = {"net_input": {"src_tokens": source, "src_lengths": source.ne(PAD).sum(1)}}
    rows = output_rows(case, model, other)
    found = [
        sorted(
            (tuple(rows[index] for index in h["tokens"][:-1]), float(h["positional_scores"][:-1].sum()))
            for h in hs
        )
        for hs in generator.generate([model], sample)
    ]
    return found, original_search(case, other, lines, beam=beam, length=length)


def output_rows(case: Case, model: Any, other: Any) -> list[int]:
    """Return the original's id of each index of the target dictionary, by its symbols."""
    size = len(case.languages.target_dictionary)
    config = other.config
    special = {PAD: config.pad_token_id, EOS: config.eos_token_id}
    described = json.loads((case.out / "huggingface.json").read_text(encoding="utf-8"))
    if described["family"] in ("m2m_100", "mbart", "bart", "fsmt"):
        return list(range(size))
    unknown = {"marian": 1, "pegasus": 105}[described["family"]]
    first = [-1, special[PAD], special[EOS], unknown]
    return [*first, *(number for number in range(size - 1) if number not in first)]


def original_search(case: Case, other: Any, lines: list[str], *, beam: int, length: int) -> list[Any]:
    """Search with the original model alone."""
    ids = original_ids(case, lines)
    pad, eos = other.config.pad_token_id, other.config.eos_token_id
    width = max(map(len, ids))
    inputs = torch.tensor([line + [pad] * (width - len(line)) for line in ids])
    out = other.generate(
        input_ids=inputs, attention_mask=inputs.ne(pad).long(), num_beams=beam, num_return_sequences=beam,
        do_sample=False, min_new_tokens=length, max_new_tokens=length, length_penalty=0.0,
        suppress_tokens=[pad, eos],
        forced_bos_token_id=None, forced_eos_token_id=None, bad_words_ids=None, return_dict_in_generate=True,
        output_scores=True,
    )  # fmt: skip
    rows = [tuple(row[-length:].tolist()) for row in out.sequences]
    scores = out.sequences_scores.tolist() if beam > 1 else [None] * len(rows)
    return [
        sorted(zip(rows[at : at + beam], scores[at : at + beam], strict=True))
        for at in range(0, len(rows), beam)
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_searches_are_equal(imported: Imported, name: str) -> None:
    """Greedy, and with a beam, where scores are equal too."""
    case = imported(name)
    found, expected = free_search(case, 1, 8)
    assert [line[0][0] for line in found] == [line[0][0] for line in expected]
    found, expected = free_search(case, 4, 6)
    for mine, theirs in zip(found, expected, strict=True):
        assert [ids for ids, _ in mine] == [ids for ids, _ in theirs]
        torch.testing.assert_close(
            [score for _, score in mine], [score for _, score in theirs], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("name", ["marian", "fsmt"])
def test_teachers_are_loaded(imported: Imported, name: str) -> None:
    """Their dictionaries lie beside them."""
    case = imported(name)
    teacher = load_teacher(TeacherSource(str(case.out / CHECKPOINT)), case.languages)
    assert not any(parameter.requires_grad for model in teacher.models for parameter in model.parameters())
