"""``--log-rollouts``: which rollouts are shown, when, in which words, and that the corrections are true."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from torch import Tensor

from fairseq_imitkd.mixing import MixedBatch
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.training.distiller import Learner
from fairseq_imitkd.training.rollout_log import RolloutLog, RolloutText, ShownRollout, markdown
from fairseq_imitkd.training.run_files import ROLLOUTS, continue_metrics
from tests.helpers.fairseq_models import (
    build_student,
    give_teacher,
    letters,
    make_batch,
    reversed_pairs,
    tiny_criterion,
    tiny_task,
)


class Optimizer:
    """The part of fairseq's optimizer that a training step calls."""

    def backward(self, loss: Tensor) -> None:
        loss.backward()


def dictionary(*symbols: str) -> Dictionary:
    made = Dictionary()
    for symbol in symbols:
        made.add_symbol(symbol)
    return made


def shown(names: Dictionary, student: str, teacher: str, *, cut: bool = False, source: str = "") -> str:
    """Return how a rollout is shown; its tokens, and the teacher's, are separated by spaces."""

    def ids(text: str) -> Tensor:
        return torch.tensor([names.index(word) for word in text.split()])

    text = RolloutText(names, names)
    return text.rollout(ids(source), ids(student), ids(teacher), truncated=cut).plain()


@pytest.mark.parametrize(
    ("symbols", "student", "teacher", "expected"),
    [
        ("a man is sits here", "a man is here </s>", "a man sits here </s>", "a man [is → sits] here"),
        ("a b", "a </s>", "a b", "a [</s> → b]"),
        ("a b", "a b </s>", "a </s> </s>", "a [b → </s>]"),
        ("a b", "</s>", "</s>", ""),
        ("a b", "a <unk> </s> <pad>", "a b </s> a", "a [<unk> → b]"),
        # A word that goes on has a hyphen where it does so, in a correction only.
        ("▁läu ft fst ▁und", "▁läu ft ▁und </s>", "▁läu fst ▁und </s>", "läu[-ft → -fst] und"),
        ("▁läu ft ▁und", "▁läu ft ▁und </s>", "▁läu ▁und ft </s>", "läu[-ft → und] [und → -ft]"),
        ("▁ ab", "▁ ab </s>", "▁ ▁ </s>", "[-ab → ▁]"),
        ("läu@@ ft fst und", "läu@@ ft und </s>", "läu@@ fst und </s>", "läu[ft → fst] und"),
        ("läu@@ ft lie@@ und", "läu@@ ft und </s>", "lie@@ ft läu@@ </s>", "[läu- → lie-]ft [und → läu-]"),
    ],
)
def test_the_words(symbols: str, student: str, teacher: str, expected: str) -> None:
    assert shown(dictionary(*symbols.split()), student, teacher) == expected


def test_a_rollout_that_was_cut_and_odd_characters() -> None:
    """No character of a dictionary moves the cursor of a terminal."""
    names = dictionary("a", "\x1b[2J", "b")
    assert shown(names, "a b", "a b", cut=True) == "a b …"
    text = RolloutText(names, names)
    odd = torch.tensor([names.index("\x1b[2J")])
    rollout = text.rollout(odd, odd, odd + 1, truncated=False)
    assert rollout == ShownRollout("\N{REPLACEMENT CHARACTER}[2J", [("\N{REPLACEMENT CHARACTER}[2J", "b")])


def test_a_table_shows_what_is_markdown_elsewhere() -> None:
    table = markdown([ShownRollout("a|b", [("*x*",), (" y", "_z_")])])
    assert table.splitlines()[-1] == "| a\\|b | \\*x\\* \\[y → **\\_z\\_**\\] |"


def log(tmp_path: Path | None = None, number: int = 3, interval: int = 10) -> RolloutLog:
    return RolloutLog(number, interval, RolloutText(letters(), letters()), save_dir=tmp_path)


def mixed(*is_rollout: bool) -> MixedBatch:
    wrote = torch.tensor(is_rollout)
    return MixedBatch({}, wrote, torch.zeros_like(wrote))


def test_rollouts_are_spread_over_the_batch() -> None:
    """All of them if there are fewer; references are never shown."""
    batch = mixed(True, True, False, True, True, False, True, True, False)
    chosen = log(number=3).choose(batch, 0)
    assert chosen is not None
    assert chosen.nonzero().flatten().tolist() in ([0, 3, 7], [0, 4, 7])
    chosen = log(number=3).choose(mixed(False, True), 0)
    assert chosen is not None
    assert chosen.tolist() == [False, True]
    assert log().choose(mixed(False, False), 0) is None


def test_every_so_many_updates(tmp_path: Path, caplog: Any) -> None:
    """The first update of a start, then each multiple; an update without rollouts passes it on. A resumed run
    writes its later updates again.
    """
    caplog.set_level("INFO")

    def run(updates: Sequence[int], without: Sequence[int] = ()) -> list[int]:
        rollouts = log(tmp_path, interval=5)
        for update in updates:
            batch = mixed(update not in without)
            chosen = rollouts.choose(batch, update - 1)
            if chosen is not None:
                row = torch.tensor([[7, 2]])
                sample = {"net_input": {"src_tokens": row}, "target": row}
                rollouts.collect(sample, chosen, batch.truncated, teacher=row)
            rollouts.show(update - 1)
        lines = (tmp_path / ROLLOUTS).read_text().splitlines()
        return [json.loads(line)["num_updates"] for line in lines]

    assert run(range(1, 18), without=[10, 11]) == [1, 5, 12, 15]
    continue_metrics(tmp_path / ROLLOUTS, 7)  # as a resumed run begins
    assert run(range(8, 14)) == [1, 5, 8, 10]
    assert [record.getMessage().split()[3] for record in caplog.records] == ["1", "5", "12", "15", "8", "10"]


def test_a_file_that_can_not_be_written_costs_a_warning(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / ROLLOUTS).mkdir()
    rollouts = log(tmp_path)
    for update in (0, 9):
        rollouts._shown = [ShownRollout("a", [("b",)])]
        rollouts.show(update)
    assert sum("can't be written (Is a directory)" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("loss_chunk", [-1, 3], ids=["whole", "chunks"])
@pytest.mark.parametrize("method", ["imitkd", "imitkd_full", "gkd"])
def test_the_corrections_are_the_teachers(method: str, loss_chunk: int, monkeypatch: Any) -> None:
    """At every position of every rollout, also where a batch is trained on in parts. Its own pass over the
    rollout says what the teacher finds most probable.
    """
    task = tiny_task()
    teacher = build_student(seed=9).eval()
    give_teacher(task, Teacher([teacher]))
    criterion = tiny_criterion(
        method, task, student_share="0.7", rollout_max_len_a=0.0, rollout_max_len_b=6, loss_chunk=loss_chunk,
    )  # fmt: skip
    distiller = task.distiller_of(criterion)
    distiller.rollout_log = log(number=100)
    seen: list[tuple[Any, Tensor, Tensor]] = []
    monkeypatch.setattr(
        distiller.rollout_log,
        "collect",
        lambda sample, chosen, truncated, *, teacher: seen.append((sample, chosen, teacher)),
    )
    monkeypatch.setattr("fairseq_imitkd.training.distiller.PART_COST", {"cpu": 1})
    batch = make_batch(reversed_pairs(12, seed=3))
    distiller.step(batch, Learner(build_student(), criterion, Optimizer(), update_num=0))
    assert len(seen) > 1, "the batch is trained on in parts"
    count = differs = 0
    for sample, chosen, found in seen:
        with torch.no_grad():
            expected = teacher(**sample["net_input"])[0].argmax(-1)
        counted = sample["target"].ne(letters().pad()) & chosen.unsqueeze(-1)
        assert torch.equal(found[counted], expected[counted])
        count += int(chosen.sum())
        differs += int((found != sample["target"])[counted].sum())
    assert count > 4
    assert differs > 0
