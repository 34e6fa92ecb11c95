"""Whole trainings of every method, with fairseq's own loop, data and checkpoints."""

from typing import Any

import pytest
import torch

from fairseq_imitkd.methods import METHODS
from tests.helpers import in_process

UPDATES = 60


def distil(digits: Any, folder: Any, teacher: Any, name: str, *flags: Any) -> in_process.Training:
    return in_process.train(
        digits.data,
        folder,
        "--task",
        "translation_with_teacher",
        "--teacher-path",
        teacher,
        "--criterion",
        name,
        *flags,
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains(name: str, digits, teacher, tmp_path) -> None:
    """With its defaults and from random weights, the references' likelihood rises. Most methods never read
    them.
    """
    training = distil(
        digits, tmp_path, teacher, name, "--max-update", UPDATES, "--validate-interval-updates", 10
    )
    losses = [metrics["nll_loss"] for metrics in training.metrics["valid"]]
    assert losses[-1] < 0.9 * losses[0]


REWARD = ("--reward", "sentence-bleu", "--reward-weight", 0.3)
VARIANTS = {
    "imitkd with references as labels": ("imitkd", "--gold-weight", 1, "--student-share", "linear:0.5"),
    "imitkd with the teacher's best few": ("imitkd_full", "--teacher-topk", 4, "--teacher-tail", "bucket"),
    "word_kd at a temperature": (
        "word_kd",
        "--student-temperature",
        2,
        "--teacher-temperature",
        2,
        "--label-smoothing",
        0.1,
    ),
    "gkd with a reward": ("gkd", *REWARD),
    "gkd with a reward over its running mean": ("gkd", *REWARD, "--reward-baseline", "running"),
    "gkd with chrF": ("gkd", "--reward", "chrf"),
    "gkd with ROUGE-L": ("gkd", "--reward", "rouge-l"),
    "gkd half on references": ("gkd", "--student-share", 0.5, "--divergence", "jsd-normalised"),
    "f_distill on samples drawn live": ("f_distill", "--teacher-samples", "--js-weights", "exact"),
    "annealing by epochs": ("annealing_kd", "--schedule-by", "epoch", "--max-epoch", 2),
    "stage I alone": ("annealing_kd", "--gold-weight", 0, "--annealing-end", 1),
    "distillm forwards": ("distillm", "--divergence", "skew-forward-kl", "--student-share", "adaptive:0.5"),
    "rollouts weighted by confidence": ("imitkd_full", "--rollout-confidence", "entropy"),
    "the hardest of each batch": ("selective_kd", "--token-selection", "batch", "--student-share", 0.5),
    "in chunks": ("imitkd_full", "--loss-chunk", 64),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_train(variant: str, digits, teacher, tmp_path) -> None:
    """These flags change the method."""
    name, *flags = VARIANTS[variant]
    training = distil(
        digits, tmp_path, teacher, name, "--max-update", 40, "--validate-interval-updates", 10, *flags
    )
    losses = [metrics["nll_loss"] for metrics in training.metrics["valid"]]
    assert losses[-1] < 0.95 * losses[0]
    metrics = training.metrics["train_inner"]
    if "--reward" in flags:
        assert all(0.0 < shown["reward"] < 1.0 for shown in metrics[5:])
        assert any(shown["reward_spread"] > 0.01 for shown in metrics)
    else:
        assert "reward" not in metrics[-1]
    if name == "distillm":
        replayed = [shown.get("rollouts_replayed", 0.0) for shown in metrics]
        assert replayed[0] == 0.0
        assert 0.5 < replayed[-1] <= 1.0


def test_teachers_weighted_by_sentence(digits, teacher, student, tmp_path) -> None:
    """Of two teachers, the one with more probable references has more weight. The loss is not that of equal
    weights.
    """
    pair = f"{teacher}:{student.checkpoint}"
    runs = {}
    for selection in ("fixed", "agreement", "reinforced"):
        training = distil(
            digits, tmp_path / selection, pair, "imitkd_full", "--student-share", 0.5, "--max-update", 4,
            "--teacher-selection", selection, "--disable-validation",
        )  # fmt: skip
        runs[selection] = training.metrics["train_inner"][-1]
    assert len({run["loss"] for run in runs.values()}) == 3
    assert len({run["student_share"] for run in runs.values()}) == 1


RESUMED = {
    "distillm": ("distillm", "--student-share", "adaptive:0.4", "--rollout-replay", 40),
    "reward over its running mean": ("gkd", *REWARD, "--reward-baseline", "running"),
    "difficulties of recent tokens": ("selective_kd", "--selection-queue", 700),
    "a policy over teachers": ("word_kd", "--teacher-selection", "reinforced"),
}


@pytest.mark.parametrize("case", RESUMED)
def test_state_is_in_the_checkpoint(case: str, digits, teacher, student, tmp_path) -> None:
    """The state is replayed rollouts, an adaptive share, a mean of rewards, difficulties, or a policy. A
    resumed run is equal to the last bit.
    """
    name, *flags = RESUMED[case]
    if "--teacher-selection" in flags:
        teacher = f"{teacher}:{student.checkpoint}"
    common = (
        *flags, "--save-interval-updates", 6, "--validate-interval-updates", 3, "--keep-interval-updates", -1,
        "--lr", 0.05,
    )  # fmt: skip
    if name == "distillm":  # from a trained student, which so high a rate makes worse
        common += ("--finetune-from-model", student.checkpoint)
    whole = distil(digits, tmp_path / "whole", teacher, name, *common, "--max-update", 18)
    assert len(list((tmp_path / "whole").glob("checkpoint_*_12.pt"))) == 1
    folder = tmp_path / "resumed"
    folder.mkdir()
    [halfway] = (tmp_path / "whole").glob("checkpoint_*_12.pt")
    (folder / "checkpoint_last.pt").write_bytes(halfway.read_bytes())
    state = torch.load(halfway, weights_only=True)["extra_state"]["TranslationWithTeacherTask"]
    resumed = distil(digits, folder, teacher, name, *common, "--max-update", 18)
    assert resumed.metrics["train_inner"][0]["num_updates"] == 13
    for key, value in whole.weights().items():
        assert torch.equal(value, resumed.weights()[key]), key
    if name == "distillm":
        assert state["share"][0] > 0.4, "a validation must have moved it"
        assert len(state["processes"][0]["replay"]["numbers"]) == 40
        assert sum(metrics.get("rollouts_replayed", 0.0) for metrics in resumed.metrics["train_inner"]) > 0.0
    elif name == "selective_kd":
        assert state["processes"][0]["difficulties"].shape == (700,)
    elif name == "gkd":
        assert state["baseline"][1] > 0.0
    else:
        assert state["selector"][2] != 1.0


def test_most_methods_leave_little_in_the_checkpoint(student) -> None:
    """Beside the update number, only what has been seen of faulty rollouts and of validations."""
    state = torch.load(student.checkpoint, weights_only=True)["extra_state"]["TranslationWithTeacherTask"]
    assert set(state) == {"watch", "validation"}
