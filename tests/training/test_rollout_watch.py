"""Rollouts that do not end, are empty, or repeat themselves: the figures, and one warning of each kind."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.logging import metrics as fairseq_metrics
from torch import Tensor, nn

from fairseq_imitkd.losses import metrics
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.training import distiller as distiller_module
from fairseq_imitkd.training import rollout_watch
from fairseq_imitkd.training.distiller import Learner
from fairseq_imitkd.training.rollout_watch import RolloutWatch
from tests.helpers import in_process
from tests.helpers.fairseq_models import (
    LETTERS,
    build_student,
    give_teacher,
    letters,
    make_batch,
    reversed_pairs,
    tiny_criterion,
    tiny_task,
    trained_student,
)

PAD, EOS = letters().pad(), letters().eos()
CAP = 9  # tokens of a rollout
SUMS = ("rollouts", "rollouts_truncated", "rollouts_empty", "tokens_rollout", "tokens_repeated")
SHARES = ("truncated", "empty", "repetition")


class Optimizer:
    """The part of fairseq's optimizer that a training step calls."""

    def backward(self, loss: Tensor) -> None:
        loss.backward()


def biased(**bias: float) -> Any:
    """Return an untrained student that prefers some symbols to all others."""
    model = build_student()
    projection = model.decoder.output_projection
    projection.weight.data.zero_()
    projection.bias = nn.Parameter(torch.zeros(projection.weight.size(0)))
    for symbol, value in bias.items():
        projection.bias.data[EOS if symbol == "eos" else letters().index(symbol)] = value
    return model


STUDENTS = {
    "never ends": lambda: biased(eos=-50.0, **dict.fromkeys(LETTERS, 1.0)),
    "ends at once": lambda: biased(eos=50.0),
    "repeats one token": lambda: biased(c=50.0),
    "repeats or ends": lambda: biased(c=3.0, d=2.0, eos=2.5),
    "is trained": lambda: trained_student("transformer"),
}


def logs_and_targets(
    student: Any, pairs: list[Any], ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], list[list[int]]]:
    """Run a step on a batch; return its logs, and the tokens of each rollout."""
    task = tiny_task()
    give_teacher(task, Teacher([build_student(seed=9)]))
    criterion = tiny_criterion(
        "imitkd", task, student_share="0.8", rollout_policy="sampling", rollout_max_len_a=0.0,
        rollout_max_len_b=CAP,
    )  # fmt: skip
    distiller = task.distiller_of(criterion)
    seen: list[Any] = []
    roll_out = distiller.mixer.roll_out

    def noted(*arguments: Any) -> Any:
        seen.append(roll_out(*arguments))
        return seen[-1]

    monkeypatch.setattr(distiller.mixer, "roll_out", noted)
    sample = make_batch(pairs, ids)
    _, _, logs = distiller.step(sample, Learner(student, criterion, Optimizer(), update_num=0))
    [batch] = seen
    rows = zip(batch.sample["target"].tolist(), batch.is_rollout.tolist(), strict=True)
    return logs, [[token for token in row if token != PAD] for row, own in rows if own]


def counted(rollouts: list[list[int]]) -> dict[str, int]:
    """Return the sums of some rollouts, from their definitions."""

    def repeats(row: list[int], end: int) -> bool:
        sizes = range(1, end // 3 + 1)
        return any(row[end - 3 * n : end] == 3 * row[end - n : end] for n in sizes)

    return {
        "rollouts": len(rollouts),
        "rollouts_truncated": sum(row[-1] != EOS for row in rollouts),
        "rollouts_empty": rollouts.count([EOS]),
        "tokens_rollout": sum(map(len, rollouts)),
        "tokens_repeated": sum(repeats(row, end) for row in rollouts for end in range(1, len(row) + 1)),
    }


@pytest.mark.parametrize("part_cost", [None, 0], ids=["whole", "parts"])
@pytest.mark.parametrize("name", STUDENTS)
def test_figures_are_those_of_the_rollouts(
    name: str, part_cost: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly, for a whole batch and for one that is divided by length; and two micro-batches add up."""
    monkeypatch.setattr(distiller_module, "PART_COST", {} if part_cost is None else {"cpu": part_cost})
    pairs, student = reversed_pairs(24, seed=1), STUDENTS[name]()
    whole, rollouts = logs_and_targets(student, pairs, list(range(24)), monkeypatch)
    expected = counted(rollouts)
    assert {sum_: int(whole[sum_]) for sum_ in SUMS} == expected
    assert 10 < expected["rollouts"] < 24
    halves = [
        logs_and_targets(student, pairs[part], list(range(24))[part], monkeypatch)[0]
        for part in (slice(0, 11), slice(11, 24))
    ]
    with fairseq_metrics.aggregate(new_root=True) as aggregator:
        metrics.log(halves)
    shown = aggregator.get_smoothed_values()
    shares = dict(zip(SHARES, ("rollouts_truncated", "rollouts_empty", "tokens_repeated"), strict=True))
    for share, part in shares.items():
        of = expected["tokens_rollout" if share == "repetition" else "rollouts"]
        assert shown[share] == pytest.approx(expected[part] / of, abs=6e-4), share
    faults = [share for share in SHARES if shown[share] > rollout_watch.BOUND]
    assert faults == {
        "never ends": ["truncated"],
        "ends at once": ["empty"],
        "repeats one token": ["truncated", "repetition"],
    }.get(name, [])


# The warning.


@pytest.fixture(autouse=True)
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_watch, "WINDOW", 4)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return a function that returns the warnings so far."""
    caplog.set_level(logging.WARNING)
    return lambda: [
        record.getMessage() for record in caplog.records if record.name == rollout_watch.logger.name
    ]


def feed(watch: RolloutWatch, *shares: float, part: str = "rollouts_truncated") -> None:
    """Log a window of updates for each share."""
    for share in shares:
        for _ in range(rollout_watch.WINDOW):
            sums = {"rollouts": 10, "tokens_rollout": 10, "rollouts_truncated": 0, "rollouts_empty": 0}
            watch.logged({**sums, "tokens_repeated": 0, part: 10 * share})


@pytest.mark.parametrize(
    ("shares", "number"),
    [
        ([1.0], 0),  # nothing to compare with
        ([1.0, 1.0], 1),
        ([1.0, 1.0, 1.0, 1.0], 1),  # once
        ([1.0, 0.8, 0.6, 0.4, 0.3, 0.25, 0.25], 0),  # an untrained student that learns
        ([1.0, 0.8, 0.6, 0.6], 1),  # … and stops
        ([0.0, 0.1, 0.2, 0.25], 0),
        ([0.0, 0.0, 0.3], 1),  # a student that gets worse
    ],
)
def test_one_warning_of_a_share_that_does_not_fall(shares: list[float], number: int, warnings) -> None:
    feed(RolloutWatch(), *shares)
    assert len(warnings()) == number


@pytest.mark.parametrize("samples", [False, True])
def test_each_fault_is_named_with_its_remedy(samples: bool, warnings) -> None:
    """One line: the share, its name in the log, and what to do."""
    for part in ("rollouts_truncated", "rollouts_empty", "tokens_repeated"):
        feed(RolloutWatch(samples=samples), 0.5, 0.6, part=part)
    found = warnings()
    starts = (
        "60% of the rollouts do not end",
        "60% of the rollouts are empty",
        "60% of the rollouts' tokens repeat",
    )
    own = ("--rollout-max-len-b", "references", "--rollout-policy sampling")
    for message, start, metric, remedy in zip(found, starts, SHARES, own, strict=True):
        assert message.startswith(start)
        assert f"in the last 4 updates ('{metric}' in the log)" in message
        assert "--finetune-from-model" in message
        assert "--student-share linear:0,warmup=0.2" in message
        assert ("--rollout-temperature" if samples else remedy) in message
        assert "\n" not in message


def test_warm_up_and_updates_without_rollouts_do_not_count(warnings) -> None:
    """A warm-up of 8 updates hides the first two windows; an update without rollouts belongs to none."""
    watch = RolloutWatch(warm_up=8)
    feed(watch, 1.0, 1.0, 1.0)
    assert warnings() == []
    for _ in range(20):
        watch.logged({"rollouts": 0, "tokens_rollout": 0})
        watch.logged({})
    assert warnings() == []
    feed(watch, 1.0)
    assert len(warnings()) == 1


@pytest.mark.parametrize("cut", range(13))
def test_a_resumed_run_warns_as_the_run_that_was_not_stopped(cut: int, warnings) -> None:
    """At the same update, and not again."""
    updates = [{"rollouts": 10, "tokens_rollout": 10, "rollouts_truncated": 9}] * 16
    whole, first, second = RolloutWatch(2), RolloutWatch(2), RolloutWatch(2)
    for total in updates:
        whole.logged(total)
    assert len(warnings()) == 1
    for total in updates[:cut]:
        first.logged(total)
    second.restore(first.state())
    for total in updates[cut:]:
        second.logged(total)
    assert second.state() == whole.state()
    assert len(warnings()) == 2


TASK = ("--task", "translation_with_teacher", "--criterion", "imitkd", "--student-share", "1")
BRIEF = (
    "--disable-validation",
    "--max-update",
    12,
    "--warmup-updates",
    1,
    "--lr",
    "1e-5",
    "--save-interval",
    99,
)


@pytest.mark.parametrize("healthy", [True, False])
def test_a_training_warns_once(
    healthy: bool, digits, teacher, tmp_path: Path, warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student that begins as its teacher is not warned of. With a cap of one token its rollouts do not end.

    A resumed run does not warn again.
    """
    monkeypatch.setattr(rollout_watch, "FALLING", 0.1)  # few batches, each of one length, are noisy
    cap = () if healthy else ("--rollout-max-len-a", 0, "--rollout-max-len-b", 1)
    flags = (*TASK, *BRIEF, "--teacher-path", teacher, *cap)
    start = ("--finetune-from-model", teacher)
    found = in_process.train(digits.data, tmp_path, *flags, *start, "--save-interval-updates", 10)
    logged = found.metrics["train_inner"][-1]
    assert max(logged["empty"], logged["repetition"]) < 0.1
    assert logged["truncated"] == (0.0 if healthy else 1.0)
    assert len(warnings()) == (0 if healthy else 1)
    in_process.train(digits.data, tmp_path, *flags, "--max-update", 24)
    assert len(warnings()) == (0 if healthy else 1)
