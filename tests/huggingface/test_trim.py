"""Trimmed vocabularies: exact log-probabilities, and subwords that still work."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from fairseq_imitkd.checkpoints.symbol_tables import output_rows
from fairseq_imitkd.checkpoints.translation import load_student
from fairseq_imitkd.cli import trim as command
from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.huggingface.subwords import open_encoder
from fairseq_imitkd.huggingface.trim import TrimJob, trim
from tests.helpers.fairseq_models import (
    POSITIONS,
    STUDENTS,
    build_student,
    checkpoint_state,
    training_config,
    write_dictionaries,
)
from tests.helpers.huggingface_models import sentences
from tests.helpers.teacher_checkpoints import untrained
from tests.huggingface.conftest import Case

Imported = Callable[[str], Case]


def corpus(case: Case, folder: Path, count: int) -> list[str]:
    """Write encoded text of both languages, and return the source's lines before that."""
    lines = sentences(count, seed=31)
    for side, language in zip(("source", "target"), case.pair, strict=True):
        encoder = open_encoder(case.out, side)
        text = "\n".join(encoder.encode(line) for line in lines)
        (folder / f"train.{language}").write_text(text + "\n", encoding="utf-8")
    return lines


@pytest.mark.parametrize("name", ["marian", "m2m", "bart", "fsmt"])
def test_log_probabilities_are_renormalised(imported: Imported, tmp_path: Path, name: str) -> None:
    """Of untied, shared and two vocabularies; all symbols of the corpus are known."""
    case = imported(name)
    lines = corpus(case, tmp_path, 4)
    done = trim(TrimJob(case.out / "model.pt", tmp_path / "out", [str(tmp_path / "train")]))
    assert done.difference < 2e-6
    assert done.parameters[1] < done.parameters[0]
    for side in done.sides:
        assert side.after < side.before
        assert side.unknown_before == side.unknown_after
    new = Languages.of(tmp_path / "out", *case.pair)
    encoders = open_encoder(case.out, "source"), open_encoder(tmp_path / "out", "source")
    assert [encoders[1].encode(line) for line in lines] == [encoders[0].encode(line) for line in lines]
    model = load_student(str(tmp_path / "out" / "model.pt"), new).model
    assert model.encoder.embed_tokens.num_embeddings == len(new.source_dictionary) == done.sides[0].after


@pytest.mark.parametrize("name", ["marian", "marian-bpe", "m2m"])
def test_subwords_that_are_gone_are_split_further(imported: Imported, tmp_path: Path, name: str) -> None:
    """Text of other words becomes symbols that are there, down to letters of the corpus."""
    case = imported(name)
    corpus(case, tmp_path, 12)
    trim(TrimJob(case.out / "model.pt", tmp_path / "out", [str(tmp_path / "train")]))
    old, new = open_encoder(case.out, "source"), open_encoder(tmp_path / "out", "source")
    others = sentences(60, seed=33)
    before = [symbol for line in others for symbol in old.symbols(line)]
    gone = sum(symbol not in new.dictionary for symbol in before)
    after = [symbol for line in others for symbol in new.symbols(line)]
    assert gone > 20
    assert after.count("<unk>") < gone / 3
    assert len(after) > len(before)


def test_rare_symbols_go_and_named_ones_stay(imported: Imported, tmp_path: Path) -> None:
    """``--min-count`` and ``--keep``; the command prints what it has done."""
    case = imported("marian")
    corpus(case, tmp_path, 12)
    first = case.languages.source_dictionary.symbols[-1]
    prefix = str(tmp_path / "train")
    rare = trim(TrimJob(case.out / "model.pt", tmp_path / "rare", [prefix], min_count=3, keep=[first]))
    every = trim(TrimJob(case.out / "model.pt", tmp_path / "every", [prefix]))
    assert rare.sides[0].after < every.sides[0].after
    assert rare.sides[0].unknown_after > every.sides[0].unknown_after
    assert first in Languages.of(tmp_path / "rare", *case.pair).source_dictionary
    side = rare.sides[1]
    assert command.report(rare).splitlines()[2] == (
        f"en: {side.after} symbols instead of {side.before}; {side.unknown_after} of the {side.tokens} "
        f"tokens are unknown ({side.unknown_after / side.tokens:.2%}), {side.unknown_before} before "
        f"({side.unknown_before / side.tokens:.2%})"
    )


@pytest.mark.parametrize("kind", ["transformer-shared-embeddings", "lstm", "gru", "fconv"])
def test_models_of_fairseq(tmp_path: Path, kind: str) -> None:
    """Of other architectures, and without a tokenizer."""
    done = trim(of_fairseq(tmp_path, kind))
    assert [side.after for side in done.sides] == [7, 7]
    assert done.difference < 2e-6


def test_output_rows_of_convolutions() -> None:
    """fconv's output matrix is normalised row by row, and has a bias."""
    model = build_student("fconv")
    rows, bias = output_rows(model.state_dict(), [5, 7])
    assert bias is not None
    torch.testing.assert_close(rows, model.decoder.fc3.weight[[5, 7]])
    torch.testing.assert_close(bias, model.decoder.fc3.bias[[5, 7]])


def of_fairseq(folder: Path, kind: str = "gru", text: str = "a c e\nc c\n", **task: Any) -> TrimJob:
    """Write a checkpoint of fairseq with these settings of its task, and text of both languages."""
    cfg = training_config(write_dictionaries(folder), "--task", "translation")
    positions = {"max_source_positions": POSITIONS, "max_target_positions": POSITIONS}
    arch, settings = STUDENTS[kind]
    content: Any = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    content["model"] = Namespace(_name=arch, arch=arch, criterion="imitkd", **settings, **positions)
    content["task"].update(task)
    torch.save(checkpoint_state(build_student(kind), content), folder / "teacher.pt")
    for language in ("src", "tgt"):
        (folder / f"train.{language}").write_text(text)
    return TrimJob(folder / "teacher.pt", folder / "out", [str(folder / "train")])


def refusal(job: TrimJob) -> str:
    """Return why a vocabulary is not trimmed. Nothing is written."""
    with pytest.raises(UsageError) as refused:
        trim(job)
    assert not job.out.exists()
    assert len(str(refused.value)) < 200 + len(str(job.checkpoint))
    return str(refused.value)


def test_languages_that_a_checkpoint_does_not_name(tmp_path: Path) -> None:
    """fairseq leaves them out if it guessed them. No flag is blamed that was not given."""
    job = of_fairseq(tmp_path, source_lang=None, target_lang=None, data=str(tmp_path / "gone"))
    assert refusal(job) == (
        "--source-lang and --target-lang are not given, and CHECKPOINT does not name them; add both"
    )
    assert refusal(replace(job, source_lang="src")) == (
        "--target-lang is not given, and CHECKPOINT does not name it; add it"
    )
    assert trim(replace(job, source_lang="src", target_lang="tgt")).difference < 2e-6
    (tmp_path / "dict.tgt.txt").unlink()
    assert refusal(replace(job, out=tmp_path / "new", source_lang="src", target_lang="tgt")) == (
        f"--data is not given, and the folder of CHECKPOINT '{job.checkpoint}' has no dict.tgt.txt; add the "
        "folder of its dictionaries"
    )


@pytest.mark.parametrize(
    ("text", "changes", "line"),
    [
        ("Wort W W a", {}, "--text '{}': 75% of its symbols are unknown to dict.src.txt; encode it with the"),
        ("a b", {"min_count": 9}, "--min-count 9 leaves 100% of the symbols of --text unknown to dict.src"),
        ("a b", {"keep": ["a", "nosuch"]}, "--keep 'nosuch' is not in dict.src.txt or dict.tgt.txt; leave"),
    ],
)
def test_what_leaves_no_vocabulary_is_refused(
    tmp_path: Path, text: str, changes: dict[str, Any], line: str
) -> None:
    """Text without subwords, counts that no symbol reaches, and symbols that are not there."""
    job = replace(of_fairseq(tmp_path, text=f"{text}\n"), **changes)
    assert refusal(job).startswith(line.format(job.text[0]))


def test_models_whose_tables_are_others_are_refused(tmp_path: Path) -> None:
    """Whether the languages are given or not, because more flags would not help."""
    job = of_fairseq(tmp_path, source_lang=None, target_lang=None)
    state = torch.load(job.checkpoint, weights_only=False)
    weights = {name: value for name, value in state["model"].items() if not name.startswith("encoder")}
    pairs = ("--arch", "multilingual_transformer", "--lang-pairs", "src-tgt,tgt-src")
    for content, said in (
        (
            untrained(tmp_path, "multilingual_translation", *pairs),
            "has a model for each language pair (--arch multilingual_transformer), whose vocabulary can't be "
            "trimmed; use the whole model, or one of --arch transformer",
        ),
        ({**state, "model": weights}, "has no table of source symbols; use a translation model"),
    ):
        torch.save(content, job.checkpoint)
        for source, target in ((None, None), ("src", "tgt")):
            found = refusal(replace(job, source_lang=source, target_lang=target))
            assert found == f"CHECKPOINT '{job.checkpoint}' {said}"


def test_what_is_refused(imported: Imported, tmp_path: Path) -> None:
    """Text that is missing or empty, and tables of another size."""
    case = imported("fsmt")
    checkpoint = case.out / "model.pt"

    job = TrimJob(checkpoint, tmp_path / "out", ["nowhere"])
    assert refusal(job) == (
        "--text 'nowhere' must be the name of a file without its language, but there is no 'nowhere.de'; "
        "check the path"
    )
    for language in case.pair:
        (tmp_path / f"empty.{language}").write_text("\n")
    assert "has no symbols of de; use a corpus with text" in refusal(
        replace(job, text=[str(tmp_path / "empty")])
    )
    corpus(case, tmp_path, 2)
    other = tmp_path / "data"
    other.mkdir()
    for language in case.pair:
        lines = (case.out / f"dict.{language}.txt").read_text(encoding="utf-8").splitlines()
        (other / f"dict.{language}.txt").write_text("\n".join(lines[:-5]) + "\n", encoding="utf-8")
    said = refusal(replace(job, text=[str(tmp_path / "train")], data=other))
    assert "the source dictionary has" in said
