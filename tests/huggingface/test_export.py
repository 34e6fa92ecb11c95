"""``imitkd-export --format huggingface``: the folder translates as the student, and comes back unchanged."""

import json
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from omegaconf import OmegaConf

from fairseq_imitkd.checkpoints.tags import SETTING
from fairseq_imitkd.cli import export as command
from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.engines.base import SearchSettings
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.export import huggingface_check
from fairseq_imitkd.export.huggingface import Exported, HuggingFaceJob, card_checks, export_huggingface
from fairseq_imitkd.export.huggingface_check import Compared
from fairseq_imitkd.export.huggingface_text import source_text
from fairseq_imitkd.huggingface import check
from fairseq_imitkd.huggingface.importer import CHECKPOINT, ImportJob, import_model
from fairseq_imitkd.huggingface.subwords import files_of, open_encoder
from fairseq_imitkd.huggingface.trim import TrimJob, trim
from fairseq_imitkd.text.subwords import IMPORTED, Text, TextSettings
from tests.helpers.fairseq_models import (
    POSITIONS,
    STUDENTS,
    build_student,
    checkpoint_state,
    letters,
    training_config,
)
from tests.helpers.huggingface_models import (
    byte_level_files,
    randomise,
    sentencepiece_model,
    sentences,
    write_files,
)
from tests.huggingface.conftest import CASES, Case, write_split

Imported = Callable[[str], Case]


def exported(imported: Path, pair: tuple[str, str], root: Path, count: int = 40) -> Exported:
    """Export what an import has written to ``root/hf``, compared on this many sentences."""
    encoders = [open_encoder(imported, side) for side in ("source", "target")]
    texts = [[encoder.encode(line) for line in sentences(count, seed=41)] for encoder in encoders]
    write_split(root / "data", pair, [encoder.dictionary for encoder in encoders], texts)
    return export_huggingface(
        HuggingFaceJob(
            str(imported / CHECKPOINT),
            root / "data",
            root / "hf",
            imported_text(imported),
            SearchSettings(beam=1),
        )
    )


def imported_text(folder: Path) -> TextSettings:
    """Return the settings of ``--subwords``."""
    return TextSettings(IMPORTED, files_of(folder))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of an import."""
    state: dict[str, torch.Tensor] = torch.load(folder / CHECKPOINT, weights_only=True)["model"]
    return state


CLASSES = {
    "marian": ("MarianMTModel", "MarianTokenizer"),
    "marian-bytes": ("MarianMTModel", "MarianTokenizer"),
    "marian-tags": ("MarianMTModel", "MarianTokenizer"),
    "m2m": ("M2M100ForConditionalGeneration", "MarianTokenizer"),
    "nllb": ("M2M100ForConditionalGeneration", "MarianTokenizer"),
    "mbart": ("MBartForConditionalGeneration", "MarianTokenizer"),
    "mbart50": ("MBartForConditionalGeneration", "MarianTokenizer"),
    "bart": ("BartForConditionalGeneration", "PreTrainedTokenizerFast"),
    "fsmt": ("FSMTForConditionalGeneration", "FSMTTokenizer"),
    "pegasus": ("PegasusForConditionalGeneration", "MarianTokenizer"),
}
LONG = ("marian-bytes", "marian-tags", "m2m", "nllb", "mbart", "mbart50", "pegasus")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in CLASSES]
)
def test_round_trip_is_the_identity(imported: Imported, tmp_path: Path, name: str) -> None:
    """Import, export, import: the weights are equal, ids and greedy translations too."""
    case = imported(name)
    done = exported(case.out, case.pair, tmp_path)
    assert (done.model, done.tokenizer) == CLASSES[name]
    assert done.compared is not None
    assert (done.compared.sentences, done.compared.same_ids, done.compared.identical) == (40, 40, 40)
    assert done.compared.difference < 2e-5
    again = import_model(ImportJob(tmp_path / "hf", tmp_path / "again", *case.pair))
    assert again.verdict is not None
    assert again.verdict.ids == (9, 9)
    before, after = weights(case.out), weights(tmp_path / "again")
    assert before.keys() == after.keys()
    assert max(float((before[key] - after[key]).abs().max()) for key in before) == 0.0
    for side in ("source", "target"):
        old, new = open_encoder(case.out, side), open_encoder(tmp_path / "again", side)
        for line in sentences(20, seed=43):
            ids = [[encoder.dictionary.index(s) for s in encoder.symbols(line)] for encoder in (old, new)]
            assert ids[0] == ids[1]


@pytest.mark.parametrize(
    "name", ["nllb", pytest.param("marian", marks=pytest.mark.slow),
             pytest.param("fsmt", marks=pytest.mark.slow), pytest.param("mbart", marks=pytest.mark.slow)]
)  # fmt: skip
def test_trimmed_models_go_back_too(imported: Imported, tmp_path: Path, name: str) -> None:
    """Subwords that are gone are split further, or are unknown symbols, by ``AutoTokenizer`` too."""
    case = imported(name)
    for side, language in zip(("source", "target"), case.pair, strict=True):
        encoder = open_encoder(case.out, side)
        text = "\n".join(encoder.encode(line) for line in sentences(8, seed=41))
        (tmp_path / f"train.{language}").write_text(text + "\n", encoding="utf-8")
    trim(TrimJob(case.out / CHECKPOINT, tmp_path / "small", [str(tmp_path / "train")]))
    done = exported(tmp_path / "small", case.pair, tmp_path)
    assert done.compared is not None
    assert done.compared.sentences == done.compared.same_ids == done.compared.identical > 0
    encoder = open_encoder(tmp_path / "small", "source")
    languages = Languages.of(tmp_path / "data", *case.pair)
    subwords = source_text(imported_text(tmp_path / "small"), languages, has_tags=True).subwords
    lines = [line for line in sentences(100, seed=32) if "…" not in line]
    expected = [[*map(encoder.dictionary.index, encoder.symbols(line)), 2] for line in lines]
    assert sum(ids.count(3) for ids in expected) > 0
    assert huggingface_check._their_ids(tmp_path / "hf", [*map(subwords.with_tags, lines)]) == expected
    import_model(ImportJob(tmp_path / "hf", tmp_path / "again", *case.pair))
    before, after = weights(tmp_path / "small"), weights(tmp_path / "again")
    assert max(float((before[key] - after[key]).abs().max()) for key in before) == 0.0


@pytest.mark.parametrize("name", ["m2m", "bart", pytest.param("marian-tags", marks=pytest.mark.slow)])
def test_a_student_of_a_tagged_teacher_has_no_tags(imported: Imported, tmp_path: Path, name: str) -> None:
    """Its data have none, so neither its tokenizer nor its search adds any. Here it has the teacher's
    weights.
    """
    case = imported(name)
    state = torch.load(case.out / CHECKPOINT, weights_only=True)
    del state["cfg"]["task"][SETTING]
    torch.save(state, tmp_path / "student.pt")
    encoders = [open_encoder(case.out, side, tags=False) for side in ("source", "target")]
    lines = sentences(20, seed=41)
    texts = [[encoder.encode(line) for line in lines] for encoder in encoders]
    write_split(tmp_path / "data", case.pair, [encoder.dictionary for encoder in encoders], texts)
    out = tmp_path / "hf"
    text = imported_text(case.out)
    job = HuggingFaceJob(str(tmp_path / "student.pt"), tmp_path / "data", out, text, SearchSettings())
    done = export_huggingface(job)
    assert done.compared is not None
    assert (done.compared.sentences, done.compared.same_ids, done.compared.identical) == (20, 20, 20)
    assert json.loads((out / "generation_config.json").read_text())["forced_bos_token_id"] is None
    expected = [[*map(encoders[0].dictionary.index, line.split()), 2] for line in texts[0]]
    assert huggingface_check._their_ids(out, lines) == expected
    assert "__" not in (out / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["marian", "nllb", "bart", "fsmt"])
def test_500_sentences(imported: Imported, tmp_path: Path, name: str) -> None:
    """As many as the command compares by default."""
    case = imported(name)
    done = exported(case.out, case.pair, tmp_path, count=540)
    assert done.compared is not None
    assert (done.compared.same_ids, done.compared.identical) == (500, 500)


def test_text_goes_in_and_comes_out(imported: Imported, tmp_path: Path) -> None:
    """As the model card says: raw text, ``generate``, ``batch_decode``."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    case = imported("nllb")
    exported(case.out, case.pair, tmp_path, count=3)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf")
    batch = tokenizer(
        ["deu_Latn " + line for line in sentences(3, seed=44)], return_tensors="pt", padding=True
    )
    out = model.generate(**batch, max_new_tokens=12)
    encoder = open_encoder(case.out, "target")
    expected = []
    for row in out.tolist():
        symbols = [encoder.dictionary.symbols[index] for index in row if index > 3]
        assert symbols[0] == "eng_Latn"
        expected.append("".join(symbols[1:]).replace("▁", " ").strip())
    assert tokenizer.batch_decode(out, skip_special_tokens=True) == expected


def student(root: Path, kind: str = "transformer", **changes: Any) -> Path:
    """Write a student of fairseq with random weights, and data of letters in ``root/data``."""
    arch, settings = STUDENTS[kind]
    data = root / "data"
    flags = (
        "--task",
        "translation_with_teacher",
        "--teacher-path",
        "/secret/folder/teachers/big.pt",
        "--criterion",
        "imitkd",
    )
    lines = [" ".join(line[:30].replace(" ", "")) for line in sentences(30, seed=5)]
    write_split(data, ("src", "tgt"), [letters()] * 2, [lines, lines])
    content = OmegaConf.to_container(training_config(data, *flags), resolve=True, enum_to_str=True)
    model = randomise(build_student(kind, **changes))
    positions = {"max_source_positions": POSITIONS, "max_target_positions": POSITIONS}
    content["model"] = Namespace(
        _name=arch, arch=arch, criterion="imitkd", task="translation", **{**settings, **positions, **changes}
    )
    torch.save(checkpoint_state(model, content), root / "student.pt")
    return root / "student.pt"


def run(root: Path, *flags: object) -> None:
    """Run the command on ``root/student.pt``."""
    given = ["--data", root / "data", "--out", root / "hf", "--format", "huggingface", *flags]
    command.main([str(each) for each in (root / "student.pt", *given)])


BOTH = {"encoder_normalize_before": True, "decoder_normalize_before": True}
SHAPES: dict[str, tuple[str, dict[str, Any], str]] = {
    "post-norm": ("transformer", {}, "FSMTForConditionalGeneration"),
    "post-norm, tied": (
        "transformer",
        {"share_decoder_input_output_embed": True},
        "FSMTForConditionalGeneration",
    ),
    "post-norm, joined": ("transformer-shared-embeddings", {}, "FSMTForConditionalGeneration"),
    "pre-norm": ("transformer-pre-norm", {}, "M2M100ForConditionalGeneration"),
    "pre-norm, joined": (
        "transformer-shared-embeddings",
        {**BOTH, "activation_fn": "gelu"},
        "M2M100ForConditionalGeneration",
    ),
    "embedding norm": ("transformer-embedding-norm", {}, "BartForConditionalGeneration"),
    "embedding norm, pre-norm": ("transformer-embedding-norm", BOTH, "MBartForConditionalGeneration"),
    "bart": ("bart", {"activation_fn": "gelu_accurate"}, "BartForConditionalGeneration"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_students_of_fairseq(tmp_path: Path, name: str, capsys: Any) -> None:
    """Of each structure, with words as symbols."""
    kind, changes, model = SHAPES[name]
    student(tmp_path, kind, **changes)
    run(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{tmp_path}/hf: {model} with PreTrainedTokenizerFast, ")
    assert lines[1].startswith(
        "30 of 30 greedy translations of valid sentences are those of fairseq, token for"
    )
    assert lines[2].startswith("ids of 30 of 30 sentences by AutoTokenizer are those of the student's text")
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    assert "| teacher | teachers/big.pt |" in card
    assert "| method (`--criterion`) | imitkd |" in card
    assert "/secret" not in "".join(path.read_text("latin-1") for path in (tmp_path / "hf").iterdir())


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "recurrent": ("gru", {}, "its decoder is a "),
    "learned positions": (
        "transformer-learned-positions",
        {},
        "it learns its positions, but does not normalise its embeddings",
    ),
    "no positions": ("transformer", {"no_token_positional_embeddings": True}, "it has no positions"),
    "mixed norms": (
        "transformer",
        {"encoder_normalize_before": True},
        "its encoder and its decoder normalise at different places",
    ),
    "widths": (
        "transformer",
        {"decoder_input_dim": 16, "decoder_output_dim": 16},
        "its parts have different widths, 16, 32",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_transformers_lacks_is_refused(tmp_path: Path, name: str) -> None:
    """In one line that says why, and which format works."""
    kind, changes, said = REFUSED[name]
    student(tmp_path, kind, **changes)
    with pytest.raises(UsageError) as refused:
        run(tmp_path)
    message = str(refused.value)
    assert message.startswith(f"--format huggingface can't express the student: {said}")
    assert message.endswith("; leave --format out: CTranslate2 or ONNX may take it")
    assert len(message) <= 200
    assert not (tmp_path / "hf").exists()


def test_two_dictionaries_need_subwords(tmp_path: Path) -> None:
    """A ``tokenizer.json`` has one list of symbols."""
    student(tmp_path)
    path = tmp_path / "data" / "dict.tgt.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[::-1]) + "\n")
    with pytest.raises(
        UsageError, match=r"its source and target have two dictionaries, which only --bpe sent"
    ):
        run(tmp_path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--quantization", "int16"],
            "--quantization changes nothing with --format huggingface; leave it out",
        ),
        (
            ["--format", "auto", "--teacher", "x"],
            "--teacher changes nothing with --format auto; add --format hug",
        ),
        (["--subwords", "x", "--bpe", "sentencepiece"], "--subwords and --bpe or --tokenizer both say how"),
        (
            ["--subwords", "nowhere"],
            "--subwords 'nowhere' is not a folder; use a folder that",
        ),
        (["--subwords", "x", "--bpe-codes", "y"], "--bpe-codes changes nothing without --bpe fastbpe or sub"),
        (["--tokenizer", "moses"], "--tokenizer moses needs --bpe subword_nmt or fastbpe with --format"),
        (["--scores", "file.json"], "--scores must be MODEL=FILE, but is 'file.json'; name a model of"),
        (["--max-len-b", "20"], "--max-len-b changes nothing with --format huggingface; leave it out"),
        (["--sentences", "-1"], "--sentences must be 0 (all) or more, but is -1"),
        (
            ["--min-len", "63"],
            "--min-len must be at most 62 with --format huggingface, as the student's positions allow, but",
        ),
    ],
)
def test_flags_that_do_not_fit(tmp_path: Path, flags: list[str], said: str) -> None:
    student(tmp_path)
    with pytest.raises(UsageError) as refused:
        run(tmp_path, *flags)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize("fewest", [20, 62])
def test_a_minimum_length(tmp_path: Path, fewest: int, capsys: Any) -> None:
    """Its limit is the positions, not the default of ``--max-len-b``."""
    student(tmp_path)
    run(tmp_path, "--min-len", fewest, "--sentences", "4")
    assert capsys.readouterr().out.splitlines()[1].startswith("4 of 4 greedy translations of valid ")
    assert json.loads((tmp_path / "hf" / "generation_config.json").read_text())["min_length"] == fewest + 1


def test_only_translated_sentences_are_counted() -> None:
    """Sentences that are too long for the student are split, but not translated."""
    compared = Compared(30, same_ids=29, first_other="a", translated=27, identical=26, difference=0.0)
    assert card_checks(compared, "valid")[0].startswith("26 of 27 greedy translations of valid sentences")


def test_subwords_of_another_model(imported: Imported, tmp_path: Path) -> None:
    student(tmp_path)
    with pytest.raises(UsageError, match=r"--subwords .* has another source dictionary than --data; use the"):
        run(tmp_path, "--subwords", imported("marian").out)


def test_scores_of_an_evaluation(tmp_path: Path) -> None:
    """A model's row of ``evaluation.json`` is in the model card, with its signature."""
    student(tmp_path)
    bleu = {"score": 31.456, "low": 30.0, "high": 33.0, "p": None}
    content = {
        "format": 1,
        "data": {"split": "test", "sentences": 1000},
        "signatures": {"bleu": "nrefs:1|tok:13a"},
        "models": {"mine": {"decoding": {"greedy": {"bleu": bleu}}}},
    }
    write_files(tmp_path, {"evaluation.json": content})
    run(tmp_path, "--scores", f"mine={tmp_path}", "--teacher", "opus-mt | de-en")
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    assert "| BLEU, greedy | 31.46 (30.00 to 33.00) |" in card
    assert "| on | 1000 sentences of test |" in card
    assert "| signature of BLEU | nrefs:1\\|tok:13a |" in card
    assert "| teacher | opus-mt \\| de-en |" in card
    with pytest.raises(UsageError, match=r"--scores names the model 'other', but '.*' has mine"):
        run(tmp_path, "--scores", f"other={tmp_path}/evaluation.json", "--out", tmp_path / "other")


def test_without_transformers(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """The folder is written, and the command says that it was not compared."""
    student(tmp_path)
    monkeypatch.setattr(check, "is_possible", lambda: False)
    run(tmp_path)
    assert (
        "note: not compared with transformers: pip install 'fairseq-imitkd[huggingface]'"
        in capsys.readouterr().out
    )


def test_another_translation_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    """If ``transformers`` computes something else, nothing is written."""
    student(tmp_path)
    load = huggingface_check.load_original

    def changed(folder: Any) -> Any:
        model = load(folder)
        model.model.decoder.layers[0].fc1.weight.data.mul_(1.1)
        return model

    monkeypatch.setattr(huggingface_check, "load_original", changed)
    with pytest.raises(
        UsageError, match="the exported student is not the student: a log-probability differs"
    ):
        run(tmp_path)
    assert not (tmp_path / "hf").exists()


def test_another_tokenizer_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    """If ``AutoTokenizer`` gives other ids for the same text."""
    student(tmp_path)
    theirs = huggingface_check._their_ids
    monkeypatch.setattr(huggingface_check, "_their_ids", lambda *given: [ids[::-1] for ids in theirs(*given)])
    with pytest.raises(
        UsageError, match=r"^AutoTokenizer splits \d+ of 30 sentences otherwise than --data, such"
    ):
        run(tmp_path)


def codes(folder: Path) -> Path:
    """Learn merges of words."""
    import io

    from subword_nmt.learn_bpe import learn_bpe

    out = io.StringIO()
    learn_bpe(io.StringIO("\n".join(sentences(400))), out, 100)
    path = folder / "codes"
    path.write_text(out.getvalue(), encoding="utf-8")
    return path


def text_flags(folder: Path, kind: str) -> tuple[list[object], TextSettings]:
    """Return flags of subwords, and what they mean."""
    if kind == "gpt2":
        files = byte_level_files()
        numbers = {
            token: number for token, number in files["vocab.json"].items() if not token.startswith("<")
        }
        write_files(folder, {"encoder.json": numbers, "vocab.bpe": files["merges.txt"]})
        paths = {"gpt2_encoder_json": folder / "encoder.json", "gpt2_vocab_bpe": folder / "vocab.bpe"}
        return [
            "--gpt2-encoder-json",
            *[folder / "encoder.json", "--gpt2-vocab-bpe", folder / "vocab.bpe"],
        ], (TextSettings("gpt2", paths))
    path = codes(folder)
    tokenizer = ["--tokenizer", "moses"] if kind == "moses" else []
    settings = TextSettings("subword_nmt", {"bpe_codes": path}, "moses" if tokenizer else None)
    return ["--bpe-codes", path, *tokenizer], settings


def test_subwords_of_another_model_are_refused(tmp_path: Path) -> None:
    """Their sentences are not those of the data."""
    student(tmp_path)
    (tmp_path / "other.model").write_bytes(sentencepiece_model())
    with pytest.raises(UsageError, match="of the symbols of raw text would be unknown to the model; use"):
        run(tmp_path, "--bpe", "sentencepiece", "--sentencepiece-model", tmp_path / "other.model")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("kind", ["gpt2", "subword_nmt", "moses"])
def test_subwords_by_flags(tmp_path: Path, kind: str, capsys: Any) -> None:
    """``AutoTokenizer`` splits raw text as fairseq's ``--bpe`` does, unknown subwords included."""
    flags, settings = text_flags(tmp_path, kind)
    text = Text(settings)
    lines = [line for line in sentences(60, seed=51) if "…" not in line]
    encoded = [text.encode(line) for line in lines]
    dictionary = Dictionary()
    if kind == "moses":
        for line in encoded[:25]:  # the others have symbols that it lacks
            dictionary.encode_line(line)
    else:  # all subwords, because a tokenizer.json needs what others are merged from
        for symbol in all_symbols(settings):
            dictionary.add_symbol(symbol)
    student(tmp_path, "transformer-shared-embeddings")
    write_split(tmp_path / "data", ("src", "tgt"), [dictionary] * 2, [encoded] * 2)
    content = torch.load(tmp_path / "student.pt", weights_only=False)
    table = torch.randn(len(dictionary), 32)
    tables = [key for key, value in content["model"].items() if value.dim() == 2 and value.size(0) == 20]
    content["model"] |= dict.fromkeys(tables, table)
    torch.save(content, tmp_path / "student.pt")
    run(tmp_path, "--bpe", "gpt2" if kind == "gpt2" else "subword_nmt", *flags)
    out = capsys.readouterr().out
    assert re.search(r"ids of (\d+) of \1 sentences by AutoTokenizer are those of the student's text\n", out)
    assert re.search(r"(\d+) of \1 greedy translations", out)
    expected = [dictionary.encode_line(line, add_if_not_exist=False).tolist() for line in encoded]
    assert (sum(ids.count(3) for ids in expected) > 20) == (kind == "moses")
    assert huggingface_check._their_ids(tmp_path / "hf", lines) == expected
    known = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())["tokenizer_class"]
    assert known == ("FSMTTokenizer" if kind == "moses" else "PreTrainedTokenizerFast")


def all_symbols(settings: TextSettings) -> list[str]:
    """Return all symbols that subwords can be."""
    if settings.bpe == "gpt2":
        numbers = json.loads(settings.files["gpt2_encoder_json"].read_text(encoding="utf-8")).values()
        return [str(number) for number in numbers]
    merged = ["".join(line.split()) for line in settings.files["bpe_codes"].read_text().splitlines()[1:]]
    single = sorted({letter for line in sentences(400) for letter in line if letter != " "})
    parts = [*single, *(f"{letter}</w>" for letter in single), *merged]
    return [part.removesuffix("</w>") if part.endswith("</w>") else f"{part}@@" for part in parts]


def test_incomplete_merges_are_refused(imported: Imported, tmp_path: Path) -> None:
    """A ``tokenizer.json`` can't merge subwords of others that the dictionary lacks."""
    case = imported("bart")
    for side, language in zip(("source", "target"), case.pair, strict=True):
        encoder = open_encoder(case.out, side)
        text = "\n".join(encoder.encode(line) for line in sentences(8, seed=41))
        (tmp_path / f"train.{language}").write_text(text + "\n", encoding="utf-8")
    trim(TrimJob(case.out / CHECKPOINT, tmp_path / "small", [str(tmp_path / "train")]))
    with pytest.raises(UsageError, match="its dictionary lacks parts of ") as refused:
        exported(tmp_path / "small", case.pair, tmp_path)
    assert len(str(refused.value)) <= 200
    assert not (tmp_path / "hf").exists()


def test_every_case_is_exported() -> None:
    """Each kind of import goes back."""
    assert set(CASES) - set(CLASSES) == {"marian-bpe", "nllb-fast"}
