"""Trainings in the order of a file of scores."""

import itertools
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from fairseq.data import ListDataset

from fairseq_imitkd.data.curriculum import HighestFirst, read_scores
from fairseq_imitkd.errors import UsageError
from tests.helpers import in_process

SENTENCES = 3000  # of the digit corpus
FLAGS = (
    "--task", "translation_with_teacher", "--criterion", "cross_entropy", "--disable-validation", "--no-save",
)  # fmt: skip


class ByLength(ListDataset):
    def ordered_indices(self) -> np.ndarray:
        return np.argsort(self.sizes, kind="stable")


def test_sentences_are_in_tenths_by_score_and_by_length_within() -> None:
    generator = np.random.default_rng(1)
    lengths, scores = generator.permutation(40), generator.permutation(40) / 7 - 2
    found = HighestFirst(ByLength(list(lengths), lengths), scores).ordered_indices()
    tenths = found.reshape(10, 4)
    for highest, next_ones in itertools.pairwise(tenths):
        assert scores[highest].min() > scores[next_ones].max()
    assert all((np.diff(lengths[tenth]) > 0).all() for tenth in tenths)


def test_equal_scores_keep_the_order_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "scores").write_text("1\n" * 20)
    scores = read_scores(str(tmp_path / "scores"))
    dataset = HighestFirst(ByLength(list(range(20)), np.ones(20)), scores)
    assert dataset.ordered_indices().tolist() == list(range(20))


def test_what_reads_the_sentences_finds_them(digits, teacher: Path, tmp_path: Path) -> None:
    """The symbols of the data are checked, and sources without references are known as such."""
    plain = ByLength([3, 4], np.ones(2))
    plain.tgt = "targets"
    dataset = HighestFirst(plain, np.ones(2))
    assert dataset.tgt == "targets"
    assert pickle.loads(pickle.dumps(dataset)).tgt == "targets"
    assert not hasattr(dataset, "src")
    data, file = tmp_path / "data", tmp_path / "scores"
    shutil.copytree(digits.data, data)
    for path in data.glob("train.*.tgt.*"):
        path.unlink()
    file.write_text("1\n" * SENTENCES)
    training = in_process.train(
        data, tmp_path / "saved", *FLAGS[:2], *FLAGS[4:], "--criterion", "imitkd_full", "--student-share", 1,
        "--teacher-path", teacher, "--curriculum", 1, "--curriculum-scores", file, "--max-update", 1,
    )  # fmt: skip
    assert training.trainer.get_num_updates() == 1


def test_batches_come_in_the_order_of_the_scores_and_then_in_any(digits, tmp_path: Path) -> None:
    """In the first epoch; the next one has the same batches in a random order."""
    scores = np.random.default_rng(3).permutation(SENTENCES)
    file = tmp_path / "scores"
    file.write_text("".join(f"{score}\n" for score in scores))
    epochs: list[list[list[int]]] = [[], []]

    def note(trainer, step, samples):
        epochs[trainer.get_num_updates() // 10].append(samples[0]["id"].tolist())
        return step()

    in_process.train(
        digits.data, tmp_path / "saved", *FLAGS, "--curriculum", 1, "--curriculum-scores", file,
        "--batch-size", 300, "--max-tokens", 10**5, "--required-batch-size-multiple", 1, "--max-update", 20,
        around_step=note,
    )  # fmt: skip
    tenths = [set(np.argsort(-scores)[start : start + 300].tolist()) for start in range(0, SENTENCES, 300)]
    assert [set(batch) for batch in epochs[0]] == tenths
    assert sorted(map(sorted, epochs[1])) == sorted(map(sorted, epochs[0]))
    assert [set(batch) for batch in epochs[1]] != tenths


@pytest.mark.parametrize(
    ("flags", "content", "message"),
    [
        ((), "1\n" * SENTENCES, "--curriculum-scores changes nothing without --curriculum N"),
        (("--curriculum", 1), None, "scores' is not a file; name one with a number in each line"),
        (("--curriculum", 1), "1\n2\n", "has 2 lines, but 'train' of DATA has 3000 sentences"),
        (("--curriculum", 1), "1\nnan\n", "must have a number in each line, but line 2 is 'nan'"),
        (("--curriculum", 1), "1\none\n", "must have a number in each line, but line 2 is 'one'"),
        (("--curriculum", 1), "1\n\n2\n", "but line 2 is ''"),
        (("--curriculum", 1, "--mono-source-data", "more"), "1\n", "can't be used with --mono-source-data"),
    ],
)
def test_wrong_scores_are_refused(
    flags: tuple[object, ...], content: str | None, message: str, digits, tmp_path: Path
) -> None:
    file = tmp_path / "scores"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError) as refused:
        in_process.train(digits.data, tmp_path / "saved", *FLAGS, "--curriculum-scores", file, *flags)
    assert message in str(refused.value)


def test_several_directories_are_refused(digits, tmp_path: Path) -> None:
    (tmp_path / "scores").write_text("1\n" * SENTENCES)
    several = Path(f"{digits.data}:{digits.data}")
    flags = ("--curriculum", 1, "--curriculum-scores", tmp_path / "scores")
    with pytest.raises(UsageError, match=r"needs one DATA directory, but DATA '.*' names several"):
        in_process.train(several, tmp_path / "saved", *FLAGS, *flags)
