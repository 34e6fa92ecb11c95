"""A method: what it reads from its flags, and the values of its schedules."""

import logging
from typing import Any

import pytest

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.method.schedules import AdaptiveShare
from fairseq_imitkd.methods import METHODS
from fairseq_imitkd.rollout import RolloutPolicy
from tests.helpers.fairseq_models import tiny_method


def test_training_begins_with_the_first_epoch() -> None:
    """Without an epoch, a schedule by epochs has its first value."""
    now = tiny_method("imitkd", student_share="linear:0", schedule_by="epoch", max_epoch=4).at(99)
    assert now.epoch == 1
    assert now.student_share == 0.0


@pytest.mark.parametrize(("by", "end_flag"), [("update", "--max-update"), ("epoch", "--max-epoch")])
@pytest.mark.parametrize("setting", ["student_share", "gold_weight", "rollout_replay_share"])
def test_schedule_without_an_end_is_refused(setting: str, by: str, end_flag: str) -> None:
    """The message names the schedule's own flag and the flag that sets its end."""
    settings = {"student_share": "1", "rollout_replay": 5, "rollout_replay_share": "0.5"}
    settings = {**settings, setting: "linear:0.5", "schedule_by": by, "max_update": 0, "max_epoch": 0}
    flag = "--" + setting.replace("_", "-")
    with pytest.raises(UsageError, match=rf"^{flag} 'linear:0.5' needs {end_flag}, "):
        tiny_method("imitkd", **settings)


def test_flag_decides_on_cuda_graphs() -> None:
    """Rollouts use them unless the flag is off."""
    assert tiny_method("imitkd").rollout_policy.cuda_graphs
    assert not tiny_method("imitkd", rollout_cuda_graphs="off").rollout_policy.cuda_graphs


def test_flags_of_the_rollout_policy() -> None:
    """Each flag reaches its own field."""
    method = tiny_method(
        "imitkd",
        student_share="1",
        rollout_policy="speculative",
        rollout_topk=7,
        rollout_topp=0.8,
        rollout_temperature=1.5,
        rollout_teacher_topk=3,
        rollout_max_len_a=0.5,
        rollout_max_len_b=9,
    )
    assert method.rollout_policy == RolloutPolicy("speculative", 7, 0.8, 1.5, 3, 0.5, 9)


@pytest.mark.parametrize(
    ("settings", "attribute", "value"),
    [
        ({}, "share_by_batch", False),
        ({"share_by": "batch"}, "share_by_batch", True),
        ({}, "pools", False),
        ({"rollout_pool": True}, "pools", True),
        ({"rollout_pool_updates": 2}, "pools", True),
        ({"rollout_pool_updates": 2}, "pool_updates", 2),
        ({}, "replay_capacity", 0),
        ({"rollout_replay": 7, "rollout_replay_share": "0.5"}, "replay_capacity", 7),
        ({}, "reward", None),
        ({"rollout_policy": "sampling", "reward": "chrf", "reward_weight": 0.5}, "reward", "chrf"),
        ({}, "adaptive_share", None),
    ],
)
def test_values_of_flags(settings: dict[str, Any], attribute: str, value: Any) -> None:
    """A method has the values of its flags in the form that training needs."""
    found = getattr(tiny_method("imitkd", **{"student_share": "0.5", **settings}), attribute)
    assert found == value
    assert type(found) is type(value)


def test_adaptive_share_is_the_schedule_itself() -> None:
    """The validation loss changes it, and later updates see the change."""
    method = tiny_method("distillm")
    assert isinstance(method.adaptive_share, AdaptiveShare)
    method.adaptive_share.share = 0.25
    assert method.at(5).student_share == 0.25


@pytest.mark.parametrize(
    ("name", "settings", "writes"),
    [
        ("imitkd", {"student_share": "0.01"}, True),
        ("imitkd", {"student_share": "linear:0"}, True),
        ("distillm", {}, True),
        ("word_kd", {}, False),
        ("word_kd", {"teacher_samples": True}, True),
    ],
)
def test_whether_targets_are_written(name: str, settings: dict[str, Any], writes: bool) -> None:
    """A share that is 0 at first and rises later counts."""
    assert tiny_method(name, **settings).writes is writes


def test_what_divergences_read() -> None:
    """Only a few methods read the teacher's probability of the target, compare logits, or need whole
    batches.
    """
    methods = {name: tiny_method(name) for name in METHODS}
    methods["f_distill exact"] = tiny_method("f_distill", js_weights="exact")

    def having(attribute: str) -> set[str]:
        return {name for name, method in methods.items() if getattr(method, attribute)}

    assert having("reads_token_probabilities") == {"atkd", "f_distill exact"}
    assert having("compares_logits") == {"annealing_kd", "continuation_kd"}
    assert having("needs_whole_batches") == {"atkd", "selective_kd"}
    assert having("selection_queue") == {"selective_kd"}


def test_annealing_ends_at_temperature_one() -> None:
    """The factor rises in five equal steps during the first half of the training."""
    method = tiny_method("annealing_kd", annealing_temperature=5, annealing_end=0.5, gold_weight="0")
    found = [method.at(update).annealing for update in (0, 9, 10, 20, 30, 40, 50, 99)]
    assert found == pytest.approx([0.2, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])


def test_annealing_without_an_end_of_the_training() -> None:
    """The factor is 1 from the beginning."""
    assert tiny_method("word_kd", max_update=0).at(0).annealing == 1.0


@pytest.mark.parametrize(
    ("method", "settings", "named"),
    [
        ("imitkd", {"student_share": "linear:0"}, "--student-share linear:0"),
        ("continuation_kd", {}, "--gold-weight linear:0 and --annealing-temperature 10"),
        (
            "gkd",
            {"rollout_replay": 9, "rollout_replay_share": "linear:0.5"},
            "--rollout-replay-share linear:0.5",
        ),
        ("word_kd", {"annealing_temperature": 4, "divergence": "logit-mse"}, "--annealing-temperature 4"),
        ("word_kd", {}, None),
    ],
)
@pytest.mark.parametrize("by", ["update", "epoch"])
def test_warning_of_an_early_end(
    method: str, settings: dict[str, Any], named: str | None, by: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Even a single epoch may end the training before the last update, and updates before the last epoch."""
    limits = (
        ("--max-update 100", "--max-epoch 50") if by == "update" else ("--max-epoch 50", "--max-update 100")
    )
    if named is not None:
        settings = {**settings, "schedule_by": by}
    with caplog.at_level(logging.WARNING):
        tiny_method(method, **settings, max_update=100, max_epoch=50)
    other = {"update": "epoch", "epoch": "update"}[by]
    assert [record.getMessage() for record in caplog.records] == [
        f"{named}: this follows {limits[0]} and stops short of its last value if {limits[1]} ends the "
        f"training sooner (--schedule-by {other} follows --max-{other})"
    ][: named is not None]


def test_message_names_the_method() -> None:
    """The name is the value of ``--criterion``."""
    with pytest.raises(UsageError, match="--sentence-avg is not for --criterion imitkd, "):
        tiny_method("imitkd", sentence_avg=True)
