"""An update whose gradient is not finite is refused, and changes nothing."""

import copy
import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.trainer import Trainer
from torch import Tensor

from fairseq_imitkd.criterion import DistillationCriterion
from fairseq_imitkd.errors import RefusedUpdate
from fairseq_imitkd.models.logits import WholeLogits
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.text.rewards import REWARDS
from tests.helpers import in_process
from tests.helpers.emulated_cuda import emulated_cuda
from tests.integration.test_resume_epochs import differences

TASK = (
    "--task", "translation_with_teacher", "--dropout", 0, "--disable-validation", "--max-update", 6,
    "--save-interval-updates", 1, "--student-share", "constant:0.5",
)  # fmt: skip
FAULTY = 3  # the number of updates before the one with the fault


class Watched:
    """A training that may be refused, and its state before and after each update."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []
        self.scales: list[float] = []
        self.updates: list[int] = []

    def step(self, trainer: Trainer, update: Callable[[], Any], _: list) -> Any:
        self.trainer = trainer
        self.states.append(self.state())
        result = update()
        scaler = getattr(trainer.optimizer, "scaler", None)
        self.scales.append(getattr(scaler, "loss_scale", 0.0))
        self.updates.append(trainer.get_num_updates())
        return result

    def state(self) -> dict[str, Any]:
        optimizer = self.trainer.optimizer
        return copy.deepcopy(
            {
                "model": dict(self.trainer.get_model().state_dict()),
                "optimizer": optimizer.state_dict(),
                "updates": self.trainer.get_num_updates(),
            }
        )


def change_loss(
    monkeypatch: pytest.MonkeyPatch, watched: Watched, change: Callable[[Tensor], Tensor]
) -> None:
    """Change the losses of the tokens from the faulty update on."""
    original = DistillationCriterion._token_loss

    def token_loss(self: DistillationCriterion, *arguments: Any) -> Any:
        losses, values = original(self, *arguments)
        return (change(losses) if len(watched.states) == FAULTY + 1 else losses), values

    monkeypatch.setattr(DistillationCriterion, "_token_loss", token_loss)


def with_infinite_slope(losses: Tensor) -> Tensor:
    """The value does not change."""
    return losses + (losses - losses.detach()).abs().sqrt()


def with_steep_slope(losses: Tensor) -> Tensor:
    """The value does not change. The squares of the slopes are too large for fp32."""
    return losses + 1e30 * (losses - losses.detach())


@pytest.mark.parametrize(
    ("change", "flags", "line"),
    [
        (
            with_infinite_slope, ("--clip-norm", 0),
            r"the gradient of decoder\.\S+ and \d+ other parameters is not finite; use a smaller --lr, "
            "or another --divergence than jsd",
        ),
        (with_infinite_slope, ("--clip-norm", "0.1", "--update-freq", 2), "the gradient of decoder"),
        (with_infinite_slope, ("--clip-norm", "0.1", "--optimizer", "sgd"), "the gradient of decoder"),
        (with_steep_slope, (), r"the norm of the gradient is too large .*: in \S+ it reaches \S+e\+"),
        (with_steep_slope, ("--clip-norm", "0.1"), "the norm of the gradient is too large for its number"),
    ],
)  # fmt: skip
def test_it_is_found_in_its_update(
    change: Callable[[Tensor], Tensor],
    flags: tuple[object, ...],
    line: str,
    digits: Any,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loss is finite. Weights, optimizer and the last checkpoint are those of the update before."""
    watched = Watched()
    change_loss(monkeypatch, watched, change)
    with pytest.raises(RefusedUpdate, match=rf"^update {FAULTY + 1} is refused: {line}"):
        in_process.train(
            digits.data, tmp_path, *TASK, "--criterion", "gkd", "--teacher-path", teacher, *flags,
            around_step=watched.step,
        )  # fmt: skip
    assert differences(watched.state(), watched.states[-1]) == []
    assert differences(watched.states[-1], watched.states[-2]) != []
    last = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)
    assert differences(last["model"], watched.states[-1]["model"]) == []
    assert not (tmp_path / "crash.pt").exists()


def test_a_huge_reward_is_named(
    digits: Any, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all rewards are huge, they cancel out."""
    watched, calls = Watched(), itertools.count()

    def huge(*_: str) -> float:
        return 1e30 if len(watched.states) > FAULTY and next(calls) % 2 else 0.5

    monkeypatch.setitem(REWARDS, "chrf", huge)
    with pytest.raises(RefusedUpdate, match=rf"^update {FAULTY + 1} is refused: .*--reward chrf may be too"):
        in_process.train(
            digits.data, tmp_path, *TASK, "--criterion", "gkd", "--teacher-path", teacher, "--reward", "chrf",
            "--clip-norm", 1, "--student-share", 1, around_step=watched.step,
        )  # fmt: skip
    assert differences(watched.state(), watched.states[-1]) == []


def test_weights_that_are_not_finite_are_named(digits: Any, tmp_path: Path) -> None:
    """A stock criterion does not look at its loss."""
    watched = Watched()

    def spoil(trainer: Trainer, update: Callable[[], Any], samples: list) -> Any:
        if trainer.get_num_updates() == FAULTY:
            trainer.get_model().encoder.layers[0].fc1.weight.data[0, 0] = torch.nan
        return watched.step(trainer, update, samples)

    line = (
        rf"^update {FAULTY + 1} is refused: weights of encoder.layers.0.fc1.weight are not finite; continue"
    )
    with pytest.raises(RefusedUpdate, match=line):
        in_process.train(digits.data, tmp_path, *TASK[:-2], "--criterion", "cross_entropy", around_step=spoil)


HALF = ("--criterion", "gkd", "--memory-efficient-fp16", "--fp16-init-scale", 2**24)


def test_an_overflow_lowers_the_loss_scale(
    digits: Any, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU this is not a fault: the update is left out, as fairseq does."""
    monkeypatch.setattr(in_process, "SETTINGS", [flag for flag in in_process.SETTINGS if flag != "--cpu"])
    watched = Watched()
    with emulated_cuda():
        in_process.train(
            digits.data, tmp_path, *TASK, "--no-save", "--teacher-path", teacher, *HALF,
            around_step=watched.step,
        )  # fmt: skip
        assert differences(watched.states[0]["model"], watched.states[1]["model"]) == []
    assert watched.updates[0] == 0
    assert watched.scales[0] == 2**23
    assert watched.updates[-1] == 6
    assert watched.scales == sorted(watched.scales, reverse=True)


def test_an_overflow_at_the_lowest_scale_is_refused(
    digits: Any, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_process, "SETTINGS", [flag for flag in in_process.SETTINGS if flag != "--cpu"])
    watched = Watched()
    line = "^update 1 is refused: .*reached --min-loss-scale 4194304.0: use"
    with emulated_cuda():
        with pytest.raises(RefusedUpdate, match=line):
            in_process.train(
                digits.data, tmp_path, *TASK, "--no-save", "--teacher-path", teacher, *HALF,
                "--min-loss-scale", 2**22, around_step=watched.step,
            )  # fmt: skip
        assert differences(watched.states[0]["model"], watched.state()["model"]) == []


FORWARD = ("--criterion", "imitkd_full", "--loss-chunk", "-1")  # forward KL


def spoil_student(monkeypatch: pytest.MonkeyPatch, watched: Watched, *steps: int) -> None:
    """Make one of the student's logits infinite in these steps of the trainer, counted from 1."""
    original = DistillationCriterion._student_logits

    def student_logits(*arguments: Any, **named: Any) -> Any:
        student = original(*arguments, **named)
        if len(watched.states) in steps:
            logits = student.logits(slice(None)).clone()
            logits[0, 5] = -torch.inf  # the gradient of this token is finite
            return WholeLogits(logits)
        return student

    monkeypatch.setattr(DistillationCriterion, "_student_logits", student_logits)


@pytest.mark.parametrize("precision", ["--fp16", "--amp"])
def test_a_student_that_overflows_lowers_the_loss_scale(
    precision: str, digits: Any, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """As in stock fairseq, the update is left out; --amp tries the batch again."""
    monkeypatch.setattr(in_process, "SETTINGS", [flag for flag in in_process.SETTINGS if flag != "--cpu"])
    watched = Watched()
    spoil_student(monkeypatch, watched, 2)
    with emulated_cuda(), caplog.at_level(logging.WARNING, "fairseq_imitkd.criterion"):
        in_process.train(
            digits.data, tmp_path, *TASK, "--no-save", "--teacher-path", teacher, *FORWARD,
            precision, around_step=watched.step,
        )  # fmt: skip
        assert differences(watched.states[1]["model"], watched.states[2]["model"]) == []
    assert watched.updates == [1, 1 if precision == "--fp16" else 2, 2, 3, 4, 5, 6]
    [said] = [record.message for record in caplog.records]
    assert said.startswith("update 2 is skipped: the student's logits are not finite in sentence")
    if precision == "--fp16":
        assert watched.scales[:3] == [128, 64, 64]


def test_a_student_that_always_overflows_is_refused(
    digits: Any, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_process, "SETTINGS", [flag for flag in in_process.SETTINGS if flag != "--cpu"])
    watched = Watched()
    spoil_student(monkeypatch, watched, *range(2, 20))
    line = "^update 2 is refused: .*reached --min-loss-scale 16.0: use"
    with emulated_cuda(), pytest.raises(RefusedUpdate, match=line):
        in_process.train(
            digits.data, tmp_path, *TASK, "--no-save", "--teacher-path", teacher, *FORWARD,
            "--fp16", "--min-loss-scale", 16, around_step=watched.step,
        )  # fmt: skip
    assert watched.updates == [1, 1, 1]


def test_a_teacher_that_overflows_is_refused_in_half_precision(
    digits: Any, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_process, "SETTINGS", [flag for flag in in_process.SETTINGS if flag != "--cpu"])
    original = Teacher.score

    def score(*arguments: Any, **named: Any) -> Any:
        logits = original(*arguments, **named).logits(slice(None)).clone()
        logits[0, 5] = torch.nan
        return WholeLogits(logits)

    monkeypatch.setattr(Teacher, "score", score)
    with emulated_cuda(), pytest.raises(RefusedUpdate, match="the teacher's logits are not finite"):
        in_process.train(
            digits.data, tmp_path, *TASK, "--no-save", "--teacher-path", teacher, *FORWARD,
            "--fp16", "--teacher-allow-poor",
        )  # fmt: skip
