"""Teachers with language tags through the real commands: they write and score what their own task does."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq_imitkd.cli import cache, dictionary, evaluate, export, seqkd
from fairseq_imitkd.errors import UsageError
from tests.helpers import digit_corpus, in_process
from tests.helpers.shared import made_once

LIMITS = ("--max-len-a", 0, "--max-len-b", 9)  # they cut some translations
PAIR = ("--source-lang", "src", "--target-lang", "tgt")
# name -> (task and its flags, architecture, flags of a decoding by the task itself)
TASKS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "prefixes": (
        ("translation_multi_simple_epoch", "--lang-pairs", "src-tgt", "--langs", "src,tgt",
         "--encoder-langtok", "tgt", "--decoder-langtok"),
        ("--share-all-embeddings",),
        PAIR,
    ),
    "replaced": (
        ("multilingual_translation", "--lang-pairs", "src-tgt,tgt-src", "--encoder-langtok", "tgt",
         "--decoder-langtok"),
        ("--arch", "multilingual_transformer", *digit_corpus.TINY[2:]),
        PAIR,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Tagged:
    """A teacher with tags.

    Args:
        checkpoint: its file.
        plain: data as fairseq-preprocess made them.
        data: the same data with the dictionaries of ``imitkd-dictionary``.
        printed: what this command printed.
        task: flags of its task.
    """

    checkpoint: Path
    plain: Path
    data: Path
    printed: str
    task: tuple[str, ...]


def make(name: str, digits: Any, factory: pytest.TempPathFactory, capsys: Any, updates: int) -> Tagged:
    """Train a teacher by its own task and write its dictionaries, once in a run."""
    (task, architecture, decoding), data = TASKS[name], data_of(digits, factory)

    def train(folder: Path) -> None:
        in_process.train(
            data, folder, "--task", *task, *architecture, "--criterion", "label_smoothed_cross_entropy",
            "--label-smoothing", "0.1", "--max-update", updates, "--max-tokens", "1200", "--lr", "1e-2",
            "--warmup-updates", "60", "--disable-validation", "--save-interval", "1000",
        )  # fmt: skip
        capsys.readouterr()
        dictionary.main([str(folder / "checkpoint_last.pt"), "--out", str(folder / "full"), *PAIR])
        (folder / "printed.txt").write_text(capsys.readouterr().out)
        shutil.copytree(data, folder / "data")
        for path in (folder / "full").iterdir():
            shutil.copy(path, folder / "data")

    folder = made_once(factory, f"tagged-{name}", train)
    printed = (folder / "printed.txt").read_text()
    return Tagged(folder / "checkpoint_last.pt", data, folder / "data", printed, (*task, *decoding))


def data_of(digits: Any, factory: pytest.TempPathFactory) -> Path:
    """Return the digits binarised with one dictionary."""
    return made_once(
        factory,
        "joined-digits",
        lambda folder: digit_corpus.binarise(digits.text, folder / "bin", "--joined-dictionary"),
    ) / "bin"  # fmt: skip


@pytest.fixture
def tagged(digits: Any, tmp_path_factory: pytest.TempPathFactory, capsys: Any) -> Tagged:
    """A teacher whose sources and targets begin with a tag, which has learned some of its language."""
    return make("prefixes", digits, tmp_path_factory, capsys, updates=100)


def translations(out: Path) -> dict[int, str]:
    """Return the translations of ``imitkd-seqkd`` by number, without empty and cut ones."""
    lines = [line.split("\t") for line in (out / "text" / "test.tsv").read_text().splitlines()]
    return {int(line[0]): line[4] for line in lines}


def assert_writes_as_its_task(teacher: Tagged, out: Path, beam: int) -> list[str]:
    """Compare seqkd with fairseq-generate by the teacher's own task, and return the translations."""
    expected = in_process.generate(
        teacher.plain, teacher.checkpoint, out / "generated", "--task", *teacher.task, "--beam", beam, *LIMITS
    )
    flags = ("--teacher-path", teacher.checkpoint, "--teacher-data", teacher.data, "--gen-subset", "test")
    seqkd.main(
        [str(teacher.data), *map(str, (*flags, *LIMITS, "--out", out / "made", "--beam", beam)), "--cpu"]
    )
    found = translations(out / "made")
    cut = LIMITS[-1] - 1  # the tag counts as a token
    assert found == {number: text for number, text in enumerate(expected) if 0 < len(text.split()) < cut}
    assert not any("_" in text for text in found.values())
    return list(found.values())


def test_seqkd_writes_what_the_teachers_task_writes(tagged: Tagged, tmp_path: Path) -> None:
    """Token for token, with a beam."""
    assert len(set(assert_writes_as_its_task(tagged, tmp_path, beam=5))) > 15


@pytest.mark.slow
@pytest.mark.parametrize("beam", [1, 5])
def test_tags_in_place_of_eos(
    beam: int, digits: Any, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, capsys: Any
) -> None:
    """A model of two language pairs, by ``multilingual_translation``."""
    teacher = make("replaced", digits, tmp_path_factory, capsys, updates=100)
    assert len(set(assert_writes_as_its_task(teacher, tmp_path, beam))) > 30


def test_dictionaries_are_written_with_the_tags(tagged: Tagged) -> None:
    """Those of the data keep their order, so the data stay valid; where they lack tags, the message names the
    command.
    """
    before, after = ((folder / "dict.tgt.txt").read_text() for folder in (tagged.plain, tagged.data))
    assert after.startswith(before)
    assert [line.split()[0] for line in after[len(before) :].splitlines()] == ["__src__", "__tgt__"]
    assert "dict.src.txt: 26 symbols, 2 of them added by the model's task: __src__ __tgt__" in tagged.printed
    assert "a teacher adds itself: __tgt__ in the source and __tgt__ in the target" in tagged.printed
    with pytest.raises(UsageError, match=r"its task adds __src__ __tgt__ to dict.src.txt.*imitkd-dictionary"):
        seqkd.main(
            [str(tagged.plain), "--teacher-path", str(tagged.checkpoint), "--out", str(tagged.data / "out")]
        )


def test_a_student_learns_from_it_and_from_its_cache(tagged: Tagged, tmp_path: Path) -> None:
    """With rollouts; and from the cache, whose answers are the teacher's, to the same weights."""
    teacher = ("--teacher-path", str(tagged.checkpoint), "--teacher-data", str(tagged.data))
    common = ("--task", "translation_with_teacher", "--max-update", 4, "--disable-validation")
    rolled = in_process.train(
        tagged.data, tmp_path / "rolled", *common, *teacher, "--criterion", "imitkd", "--student-share",
        "constant:0.5",
    )  # fmt: skip
    assert all(0 < line["loss"] < 9 for line in rolled.metrics["train_inner"])
    cache.main(
        [str(tagged.data), *teacher, "--out", str(tmp_path / "cache"), "--keep", "hidden", "--cpu",
         "--dtype", "fp32"]
    )  # fmt: skip
    weights = [
        in_process.train(
            tagged.data, tmp_path / name, *common, *flags, "--criterion", "word_kd"
        ).weights()
        for name, flags in (("asked", teacher), ("cached", ("--teacher-cache", str(tmp_path / "cache"))))
    ]  # fmt: skip
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


def test_it_is_evaluated_with_its_tags(tagged: Tagged, tmp_path: Path) -> None:
    """Its greedy translations are those of its own task. It is not exported."""
    evaluate.main(
        ["--model", f"t={tagged.checkpoint}", "--data", str(tagged.data), "--out", str(tmp_path / "e"),
         "--beam", "1", "--speed-sentences", "2", "--batch-sizes", "2", *map(str, LIMITS)]
    )  # fmt: skip
    flags = ("--task", *tagged.task, "--beam", 1, *LIMITS)
    expected = in_process.generate(tagged.plain, tagged.checkpoint, tmp_path / "generated", *flags)
    [outputs] = (tmp_path / "e").rglob("t.greedy*.txt")
    assert outputs.read_text().splitlines() == expected
    with pytest.raises(UsageError, match=r"it needs the language tags __tgt__ in the source and __tgt__ in"):
        export.main([str(tagged.checkpoint), "--data", str(tagged.data), "--out", str(tmp_path / "x")])
