"""Which settings are refused, with which message, and which settings are accepted."""

import math
from dataclasses import fields
from typing import Any

import pytest
import torch

from fairseq_imitkd.criterion import DISTILLATION, Distillation, DistillationCriterion
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.losses.divergences import DIVERGENCES, most_probable_only
from fairseq_imitkd.losses.token_weights import CONFIDENCES
from fairseq_imitkd.method import method as method_module
from fairseq_imitkd.method.checks import check
from fairseq_imitkd.method.config import DistillationConfig, training_length
from fairseq_imitkd.method.schedules import parse_share
from fairseq_imitkd.methods import METHODS
from fairseq_imitkd.mixing.batch import with_rollouts
from fairseq_imitkd.models.logits import WholeLogits
from fairseq_imitkd.rollout import Rollout
from tests.helpers.fairseq_models import (
    AtUpdate,
    build_student,
    make_batch,
    reversed_pairs,
    tiny_criterion,
    tiny_task,
)

# Defaults of fairseq's own flags that the checks read.
FAIRSEQ_FLAGS = {
    "seed": 1,
    "max_update": 100,
    "max_epoch": 0,
    "ddp_backend": "legacy_ddp",
    "find_unused_parameters": False,
    "sentence_avg": False,
    "disable_validation": False,
}


def check_settings(method: str, **settings: Any) -> None:
    """Check a method's settings: its defaults, changed by ``settings``."""
    check(METHODS[method](**{**FAIRSEQ_FLAGS, **settings}), method, METHODS[method]())


def refusal(method: str, **settings: Any) -> str:
    """Return the message with which settings are refused."""
    with pytest.raises(UsageError) as refused:
        check_settings(method, **settings)
    return str(refused.value)


MOMENTS = (0, 2, 50)  # updates, or epochs, at which schedules are compared


def built(method: str, **settings: Any) -> DistillationCriterion:
    """Return a method's criterion, which has checked the settings; its task refuses none of them."""
    task = tiny_task()
    task.check_method = lambda method: None  # of --teacher-topk it knows the number of symbols
    return tiny_criterion(method, task, **settings)


def own_settings(method: str) -> dict[str, Any]:
    """Return the settings that a method has by default, without those of fairseq's own flags."""
    own = METHODS[method]()
    names = {item.name for item in fields(DistillationConfig)} - {*FAIRSEQ_FLAGS, "_name"}
    return {name: getattr(own, name) for name in names}


def computed_with(criterion: DistillationCriterion) -> dict[str, Any]:
    """Return what a criterion computes with, by the settings' names; schedules as their values."""
    method = criterion.method
    policy, moments = method.rollout_policy, [method.at(now, now + 1) for now in MOMENTS]
    confidences = {function: name for name, function in CONFIDENCES.items()}
    return {
        **vars(method.cfg),  # what is read where it is needed
        **criterion._settings,
        "student_share": [moment.student_share for moment in moments],
        "gold_weight": [moment.gold_weight for moment in moments],
        "rollout_replay_share": [moment.replay_share for moment in moments],
        "divergence": criterion._divergence_name,
        "easy_weight": criterion._easy_weight,
        "js_weights": "exact" if criterion._exact_mixture else "half",
        "label_smoothing": criterion._label_smoothing,
        "loss_average": "sentence" if criterion._by_sentence else "token",
        "loss_chunk": criterion._loss_chunk,
        "reward": method.reward or "none",
        "reward_baseline": method.reward_baseline,
        "reward_remove_bpe": method.reward_remove_bpe,
        "reward_weight": criterion._reward_weight,
        "rollout_confidence": confidences.get(criterion._confidence, "none"),
        "rollout_cuda_graphs": "auto" if policy.cuda_graphs else "off",
        "rollout_max_len_a": policy.max_len_a,
        "rollout_max_len_b": policy.max_len_b,
        "rollout_policy": policy.name,
        "rollout_pool": method.pools,
        "rollout_pool_updates": method.pool_updates,
        "rollout_replay": method.replay_capacity,
        "rollout_teacher_topk": policy.teacher_topk,
        "rollout_temperature": policy.temperature,
        "rollout_topk": policy.topk,
        "rollout_topp": policy.topp,
        "seed": method.seed,
        "selected_share": criterion._selected_share,
        "share_by": "batch" if method.share_by_batch else "sentence",
        "student_temperature": criterion._student_temperature,
        "teacher_samples": method.teacher_samples,
        "teacher_tail": criterion._teacher_tail,
        "teacher_temperature": criterion._teacher_temperature,
        "teacher_topk": criterion._teacher_topk,
        "token_selection": criterion._selection,
    }


def assert_computes_with(criterion: DistillationCriterion, settings: dict[str, Any]) -> None:
    """Find each setting, unchanged, in what a criterion computes with."""
    found, cfg = computed_with(criterion), criterion.method.cfg
    end, _ = training_length(cfg)
    for name, value in settings.items():
        if name in ("student_share", "gold_weight", "rollout_replay_share"):
            is_read = name != "rollout_replay_share" or cfg.rollout_replay
            schedule = parse_share(value if is_read else "0", end)
            value = [schedule(now) for now in MOMENTS]
        assert str(found[name]) == str(value), name


NAN = math.nan
# flag -> (method, values out of range, the range in the message's words, values in range)
RANGES: list[tuple[str, str, list[Any], str, list[Any]]] = [
    ("jsd_weight", "gkd", [0.0, 1.0, -0.1, 1.1, NAN], "above 0 and below 1", [0.001, 0.5, 0.999]),
    ("skew", "distillm", [-0.1, 1.0, 2.0, NAN], "at least 0 and below 1", [0.0, 0.999]),
    ("easy_weight", "atkd", [-0.1, 1.1, NAN], "in 0..1", [0.0, 0.5, 1.0]),
    ("rank_topk", "tie_kd", [0, -1], "1 or more", [1, 10**9]),
    ("entropy_threshold", "entropy_aware_kd", [-0.1, NAN], "a finite number, 0 or more", [0.0, 9.0]),
    ("selected_share", "selective_kd", [0.0, 1.0, NAN], "above 0 and below 1", [0.001, 0.999]),
    ("selection_queue", "selective_kd", [0, -1], "1 or more", [1, 10**9]),
    ("annealing_temperature", "annealing_kd", [0, -1], "a whole number, 1 or more", [1, 2, 100]),
    ("annealing_end", "annealing_kd", [0.0, -0.5, 1.1, NAN], "above 0 and at most 1", [0.01, 1.0]),
    ("logit_margin", "continuation_kd", [-0.1, NAN], "a finite number, 0 or more", [0.0, 7.0]),
    ("student_temperature", "imitkd_full", [0.0, -1.0, NAN], "a finite number above 0", [0.1, 20.0]),
    ("teacher_temperature", "imitkd_full", [0.0, -1.0, NAN], "a finite number above 0", [0.1, 20.0]),
    ("teacher_topk", "imitkd_full", [-1], "0 (all symbols) or more", [0, 1, 10**9]),
    ("label_smoothing", "word_kd", [-0.1, 1.0, NAN], "at least 0 and below 1", [0.0, 0.999]),
    ("rollout_teacher_topk", "speculative_kd", [0, -1], "1 or more", [1, 10**9]),
    ("rollout_pool_updates", "imitkd", [0, -1], "1 (on-policy) or more", [1, 50]),
    ("rollout_replay", "imitkd", [-1], "0 (none) or more", [0, 5]),
    ("loss_chunk", "imitkd", [-2], "0 (by size), -1 (never) or a number of positions", [-1, 0, 7]),
]


@pytest.mark.parametrize(
    ("name", "method", "value", "must"),
    [(name, method, value, must) for name, method, values, must, _ in RANGES for value in values],
)
def test_value_out_of_range_is_refused(name: str, method: str, value: Any, must: str) -> None:
    """The message names the flag, its range and the value."""
    message, flag = refusal(method, **{name: value}), "--" + name.replace("_", "-")
    assert message.startswith(f"{flag} must be {must}")
    assert message.endswith(f"but is {value}")
    assert "\n" not in message


@pytest.mark.parametrize("value", [-0.1, 0.0, 1.1, NAN])
def test_reward_weight_out_of_range_is_refused(value: float) -> None:
    """The message names the flag and the value. At 0 the reward would have no effect."""
    message = refusal("gkd", reward="chrf", reward_weight=value)
    assert message == f"--reward-weight must be above 0 and at most 1, but is {value}"
    for within in (0.01, 1.0):
        check_settings("gkd", reward="chrf", reward_weight=within)


@pytest.mark.parametrize(
    ("name", "method", "value"),
    [(name, method, value) for name, method, _, _, values in RANGES for value in values],
)
def test_value_within_its_range_is_accepted(name: str, method: str, value: Any) -> None:
    """Both ends of a closed range are accepted, and the method computes with them."""
    assert_computes_with(built(method, **{name: value}), {name: value})


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_ends_of_the_jsd_weight_need_the_normalised_divergence(value: float) -> None:
    """At 0 and 1 the plain divergence is 0 for every student. The message names the normalised one, which
    accepts both ends.
    """
    assert "jsd-normalised" in refusal("gkd", jsd_weight=value)
    check_settings("gkd", jsd_weight=value, divergence="jsd-normalised")
    assert (
        refusal("gkd", jsd_weight=1.5, divergence="jsd-normalised")
        == "--jsd-weight must be in 0..1, but is 1.5"
    )


def test_unknown_divergence_is_refused() -> None:
    """The message names some divergences, the nearest ones if there are any."""
    message = refusal("imitkd", divergence="forward_kl")
    assert message.startswith("--divergence must be one of those that --help lists, such as forward-kl, ")
    assert message.endswith(", but is forward_kl")
    assert "such as teacher-argmax, forward-kl, " in refusal("imitkd", divergence="##")
    assert len(refusal("imitkd", divergence="decoupled")) <= 200


ADD_SAMPLING = {"rollout_policy": "sampling"}
# (method, settings, beginning of the message, another part of it, settings that are accepted)
USELESS: list[tuple[str, dict[str, Any], str, str, dict[str, Any]]] = [
    # the student writes no sentence
    ("word_kd", {"rollout_pool": True}, "--rollout-pool", "--student-share constant:0: raise",
     {"student_share": "0.5"}),
    ("gkd", {"rollout_pool": True, "rollout_pool_updates": 4}, "--rollout-pool",
     "with --rollout-pool-updates 4, which pools already: leave it out", {"rollout_pool": False}),
    ("word_kd", {"rollout_pool_updates": 4}, "--rollout-pool-updates 4", "raise the share",
     {"student_share": "0.5"}),
    ("word_kd", {"rollout_cuda_graphs": "off"}, "--rollout-cuda-graphs off", "raise the share",
     {"student_share": "0.5"}),
    ("word_kd", {"rollout_replay": 9}, "--rollout-replay 9", "raise the share", {"student_share": "0.5"}),
    ("word_kd", {"share_by": "batch"}, "--share-by batch", "raise the share", {"student_share": "linear:0"}),
    ("word_kd", {"reward": "chrf"}, "--reward chrf", "raise the share",
     {"student_share": "0.5", **ADD_SAMPLING}),
    ("gkd", {"student_share": "0", "rollout_topk": 5}, "--rollout-topk 5", "--student-share 0: raise",
     {"student_share": "1"}),
    ("atkd", {"rollout_policy": "sampling"}, "--rollout-policy sampling", "raise the share",
     {"student_share": "0.1"}),
    # no reference is trained on
    ("gkd", {"gold_weight": "0.5"}, "--gold-weight 0.5", "--student-share constant:1, where the stu",
     {"student_share": "0.5"}),
    ("gkd", {"label_smoothing": 0.1}, "--label-smoothing 0.1", "leave it out",
     {"student_share": "0.5", "gold_weight": "0.5"}),
    ("gkd", {"teacher_samples": True}, "--teacher-samples", "leave it out", {"student_share": "0.5"}),
    ("gkd", {"share_by": "sentence"}, "--share-by sentence", "the student writes every target",
     {"student_share": "0.5"}),
    # another flag has its default
    ("imitkd", {"label_smoothing": 0.1}, "--label-smoothing 0.1", "--gold-weight 0: raise the weight",
     {"gold_weight": "1"}),
    ("imitkd", {"rollout_replay_share": "0.5"}, "--rollout-replay-share 0.5", "--rollout-replay",
     {"rollout_replay": 9}),
    (
        "distillm", {"rollout_replay": 0, "rollout_replay_share": "0.5"}, "--rollout-replay-share 0.5",
        "without --rollout-replay", {"rollout_replay": 9},
    ),
    ("distillm", {"rollout_replay": 9, "rollout_replay_share": "linear:1"}, "--rollout-replay 9",
     "at --rollout-replay-share linear:1: raise it", {"rollout_replay_share": "linear:0"}),
    ("gkd", {"rollout_teacher_topk": 5}, "--rollout-teacher-topk 5", "speculative",
     {"rollout_policy": "speculative"}),
    ("gkd", {"reward_weight": 0.3}, "--reward-weight 0.3", "without --reward: add it", {"reward": "chrf"}),
    ("gkd", {"reward_baseline": "running"}, "--reward-baseline running", "without --reward",
     {"reward": "chrf"}),
    ("gkd", {"reward_remove_bpe": "@@ "}, "--reward-remove-bpe @@ ", "without --reward", {"reward": "chrf"}),
    ("continuation_kd", {"annealing_temperature": 1, "annealing_end": 0.5}, "--annealing-end 0.5",
     "at --annealing-temperature 1: raise it", {"annealing_temperature": 2}),
    ("imitkd_full", {"teacher_tail": "bucket"}, "--teacher-tail bucket", "without --teacher-topk",
     {"teacher_topk": 5}),
    # another divergence needs the flag
    ("imitkd_full", {"jsd_weight": 0.3},
     "--jsd-weight 0.3", "under --divergence forward-kl: choose jsd or jsd-normalised",
     {"divergence": "jsd"}),
    ("imitkd_full", {"jsd_weight": 1.0}, "--jsd-weight 1.0", "choose jsd or jsd-normalised",
     {"divergence": "jsd-normalised"}),
    ("gkd", {"divergence": "forward-kl", "jsd_weight": 0.3},
     "--jsd-weight 0.3", "under --divergence forward-kl: choose jsd", {"divergence": "jsd-normalised"}),
    ("gkd", {"skew": 0.3}, "--skew 0.3", "choose skew-forward-kl or skew-reverse-kl",
     {"divergence": "skew-reverse-kl"}),
    ("imitkd", {"logit_margin": 0.3}, "--logit-margin 0.3", "choose logit-mse", {"divergence": "logit-mse"}),
    ("imitkd", {"annealing_temperature": 5}, "--annealing-temperature 5", "choose logit-mse",
     {"divergence": "logit-mse"}),
    ("gkd", {"easy_weight": 0.5}, "--easy-weight 0.5", "choose target-decoupled-kl",
     {"divergence": "target-decoupled-kl"}),
    ("word_kd", {"rank_topk": 3}, "--rank-topk 3", "choose ranked-kl", {"divergence": "ranked-kl"}),
    ("gkd", {"entropy_threshold": 1.0}, "--entropy-threshold 1.0", "choose entropy-aware-kl",
     {"divergence": "entropy-aware-kl"}),
    ("word_kd", {"selected_share": 0.3}, "--selected-share 0.3", "without --token-selection: add it",
     {"token_selection": "batch"}),
    ("word_kd", {"token_selection": "batch", "selection_queue": 9}, "--selection-queue 9",
     "without --token-selection queue: add it", {"token_selection": "queue"}),
    ("word_kd", {"rollout_confidence": "entropy"}, "--rollout-confidence entropy", "raise the share",
     {"student_share": "0.5"}),
    ("gkd", {"js_weights": "exact"}, "--js-weights exact", "choose sequence-js",
     {"divergence": "sequence-js"}),
    *(
        (method, {name: value}, f"--{name.replace('_', '-')} {value}",
         "choose one that compares distributions, such as forward-kl", {"divergence": "forward-kl"})
        for method, name, value in [
            ("annealing_kd", "teacher_temperature", 2.0), ("annealing_kd", "student_temperature", 2.0),
            ("annealing_kd", "teacher_topk", 5), ("imitkd", "teacher_temperature", 2.0),
            ("imitkd", "teacher_topk", 5),
        ]
    ),
    ("atkd", {"teacher_topk": 5}, "--teacher-topk 5", "which needs the target's probability",
     {"divergence": "forward-kl"}),
    # no schedule changes
    *(
        (method, {"schedule_by": "epoch", "max_epoch": 5, **settings}, "--schedule-by epoch",
         "where no schedule moves", cure)
        for method, settings, cure in [
            ("word_kd", {}, {"gold_weight": "linear:0"}),
            ("gkd", {}, {"student_share": "linear:0"}),
            ("gkd", {"student_share": "adaptive:0.1"}, {"gold_weight": "linear:0"}),
        ]
    ),
    (
        "annealing_kd", {"divergence": "forward-kl", "annealing_end": 0.5},
        "--annealing-end 0.5", "logit-mse", {"divergence": "logit-mse"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "settings", "start", "says", "cure"), USELESS, ids=[f"{r[0]}:{r[2]}" for r in USELESS]
)
def test_flag_that_would_change_nothing_is_refused(
    method: str, settings: dict[str, Any], start: str, says: str, cure: dict[str, Any]
) -> None:
    """The message is one line with the flag, its value and the remedy. The remedy is accepted."""
    message = refusal(method, **settings)
    assert message.startswith(f"{start} changes nothing ")
    assert says in message
    assert "\n" not in message
    check_settings(method, **{**settings, **cure})


REWARD = {"student_share": "0.5", "reward": "chrf", **ADD_SAMPLING}
SAMPLES = "use --rollout-policy sampling without --rollout-topk, --rollout-topp and --rollout-temperature"
# (method, settings, beginning of the message, another part of it, settings that are accepted)
TOGETHER: list[tuple[str, dict[str, Any], str, str, dict[str, Any]]] = [
    ("f_distill_rkl", {"teacher_topk": 5}, "--teacher-topk 5 makes --divergence reverse-kl infinite",
     "add --teacher-tail bucket", {"teacher_tail": "bucket"}),
    ("imitkd", {"reward": "chrf"}, "--reward chrf", SAMPLES, ADD_SAMPLING),
    ("speculative_kd", {"reward": "rouge-l"}, "--reward rouge-l", SAMPLES, ADD_SAMPLING),
    ("gkd", {"reward": "sentence-bleu", "rollout_topk": 5}, "--reward sentence-bleu", SAMPLES,
     {"rollout_topk": 0}),
    ("gkd", {"reward": "chrf", "rollout_topp": 0.9}, "--reward chrf", SAMPLES, {"rollout_topp": 1.0}),
    ("gkd", {"reward": "chrf", "rollout_temperature": 0.7}, "--reward chrf", SAMPLES,
     {"rollout_temperature": 1.0}),
    ("gkd", {"reward": "chrf", "rollout_pool_updates": 3}, "--reward chrf",
     "--rollout-pool-updates 3 gives older ones: use --rollout-pool",
     {"rollout_pool_updates": 1, "rollout_pool": True}),
    ("speculative_kd", {"rollout_pool": True}, "--rollout-pool can't", "--rollout-policy speculative",
     {"rollout_pool": False}),
    ("speculative_kd", {"rollout_pool_updates": 3}, "--rollout-pool-updates 3 can't",
     "--rollout-policy speculative", {"rollout_policy": "sampling"}),
    ("gkd", {"rollout_pool": True, "rollout_replay": 9}, "--rollout-pool can't", "--rollout-replay",
     {"rollout_replay": 0}),
    ("distillm", {"rollout_pool_updates": 3}, "--rollout-pool-updates 3 can't", "--rollout-replay",
     {"rollout_replay": 0}),
    ("gkd", {"reward": "chrf", "rollout_replay": 9}, "--reward chrf needs", "--rollout-replay",
     {"rollout_replay": 0}),
    ("distillm", {"reward": "chrf"}, "--reward chrf needs", "use --rollout-replay 0", {"rollout_replay": 0}),
    ("imitkd", {"divergence": "sequence-js", "js_weights": "exact"}, "--js-weights exact", SAMPLES,
     ADD_SAMPLING),
    ("f_distill", {"js_weights": "exact", "rollout_pool_updates": 3},
     "--js-weights exact", "use --rollout-pool", {"rollout_pool_updates": 1, "rollout_pool": True}),
    ("f_distill", {"js_weights": "exact", "rollout_replay": 9},
     "--js-weights exact", "use --rollout-replay 0", {"rollout_replay": 0}),
    ("distillm", {"disable_validation": True}, "--student-share adaptive:0", "--disable-validation",
     {"student_share": "0.5"}),
    ("annealing_kd", {"max_update": 0}, "--gold-weight 'constant:1,warmup=0.666",
     "needs --max-update, which sets the end of the training", {"max_update": 9}),
    ("annealing_kd", {"max_update": 0, "gold_weight": "0"},
     "--annealing-temperature 10 needs --max-update", "end of the training", {"max_update": 9}),
    ("annealing_kd", {"gold_weight": "0", "schedule_by": "epoch"},
     "--annealing-temperature 10 needs --max-epoch", "end of the training", {"max_epoch": 9}),
    ("imitkd", {"schedule_by": "epoch"},
     "--student-share 'exponential:0.005' needs --max-epoch", "end of the training", {"max_epoch": 9}),
    ("imitkd", {"schedule_by": "epoch", "max_epoch": 1},
     "--schedule-by epoch needs --max-epoch of at least 2, but it is 1", "leave --schedule-by out",
     {"max_epoch": 2}),
    ("annealing_kd", {"gold_weight": "0", "schedule_by": "epoch", "max_epoch": 1},
     "--schedule-by epoch needs --max-epoch of at least 2, but it is 1", "leave --schedule-by out",
     {"schedule_by": "update"}),
    ("continuation_kd", {"schedule_by": "epoch"},
     "--gold-weight 'linear:0' needs --max-epoch", "end of the training", {"max_epoch": 9}),
    ("imitkd", {"gold_weight": "adaptive:0"},
     "--gold-weight must be a number in 0..1, constant:", "but is 'adaptive:0'", {"gold_weight": "linear:0"}),
    ("imitkd", {"student_share": "2"}, "--student-share must be a number in 0..1", "but is '2'",
     {"student_share": "1"}),
    ("imitkd", {"sentence_avg": True}, "--sentence-avg", "--loss-average sentence", {"sentence_avg": False}),
    ("imitkd", {"loss_chunk": 9, "find_unused_parameters": True}, "--loss-chunk 9",
     "--find-unused-parameters", {"loss_chunk": 0}),
    ("imitkd", {"ddp_backend": "fully_sharded"},
     "--ddp-backend fully_sharded", "use --ddp-backend legacy_ddp or pytorch_ddp",
     {"ddp_backend": "pytorch_ddp"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "settings", "start", "says", "cure"), TOGETHER, ids=[f"{r[0]}:{r[2]}" for r in TOGETHER]
)
def test_flags_that_cannot_be_together_are_refused(
    method: str, settings: dict[str, Any], start: str, says: str, cure: dict[str, Any]
) -> None:
    """The message is one line. It begins with a given flag and its value, and names the other flag and the
    remedy. The remedy is accepted.
    """
    message = refusal(method, **settings)
    assert message.startswith(start)
    assert says in message
    assert "\n" not in message
    check_settings(method, **{**settings, **cure})


@pytest.mark.parametrize(
    ("method", "settings", "flag"),
    [
        ("word_kd", {"gold_weight": "1"}, "--gold-weight 1"),
        ("word_kd", {"gold_weight": "constant:1"}, "--gold-weight constant:1"),
        ("imitkd", {"gold_weight": "1", "student_share": "0"}, "--gold-weight 1"),
    ],
)
def test_references_alone_leave_nothing_to_a_teacher(
    method: str, settings: dict[str, Any], flag: str
) -> None:
    """At gold weight 1 without rollouts, the message tells to lower the weight or to use a stock
    criterion.
    """
    message = refusal(method, **settings)
    assert message.startswith(f"{flag} leaves no term for the teacher")
    assert "--criterion label_smoothed_cross_entropy" in message
    check_settings(method, **{**settings, "gold_weight": "0.9"})
    check_settings(method, **{**settings, "student_share": "0.5"})


def test_fully_sharded_names_the_criterion() -> None:
    """Other criteria of fairseq can use this backend."""
    assert "--criterion atkd " in refusal("atkd", ddp_backend="fully_sharded")


def test_replay_schedule_needs_an_end_of_training() -> None:
    """The criterion refuses it: DistiLLM's own share needs no end of training, but its replay
    schedule does.
    """
    with pytest.raises(UsageError, match=r"^--rollout-replay-share 'linear:0' needs --max-update"):
        tiny_criterion("distillm", tiny_task(), max_update=0)
    tiny_criterion("distillm", tiny_task(), max_update=0, rollout_replay_share="0.5")


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_every_divergence_that_dropped_symbols_make_infinite_is_refused(divergence: str) -> None:
    """``--teacher-topk`` without the bucket is refused exactly for the divergences that become infinite on a
    rollout's token. Settings at the ends of their ranges are included.
    """
    if divergence in ("teacher-argmax", "logit-mse", "target-decoupled-kl"):
        assert "changes nothing under" in refusal("gkd", divergence=divergence, teacher_topk=3)
        return
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(4, 9, generator=generator) for _ in range(2))
    student, teacher = most_probable_only(student, teacher, 3, tail="dropped")
    rollouts = {"is_rollout": torch.ones(4, dtype=torch.bool), "mixture_weight": torch.full((4,), 0.5)}
    values: dict[str, list[dict[str, float]]] = {
        "jsd": [{"jsd_weight": 0.1}],
        "jsd-normalised": [{"jsd_weight": weight} for weight in (0.0, 0.5, 1.0)],
        "skew-forward-kl": [{"skew": 0.0}, {"skew": 0.1}],
        "skew-reverse-kl": [{"skew": 0.0}, {"skew": 0.1}],
        "ranked-kl": [{"rank_topk": 2}, {"rank_topk": 5}],
        "entropy-aware-kl": [{"entropy_threshold": 0.0}, {"entropy_threshold": 9.0}],
    }
    for settings in values.get(divergence, [{}]):
        inputs = rollouts if divergence == "sequence-js" else {}
        if bool(DIVERGENCES[divergence](student, teacher, **inputs, **settings).isfinite().all()):
            check_settings("gkd", divergence=divergence, teacher_topk=3, **settings)
        else:
            message = refusal("gkd", divergence=divergence, teacher_topk=3, **settings)
            assert message.startswith(f"--teacher-topk 3 makes --divergence {divergence} infinite")
        check_settings("gkd", divergence=divergence, teacher_topk=3, teacher_tail="bucket", **settings)


@pytest.mark.parametrize("marks", ["bogus", "@", "sentence-piece"])
def test_unknown_subword_marks_are_refused(marks: str) -> None:
    """They are refused before training. Otherwise fairseq's post-processing would fail at the first
    reward.
    """
    message = refusal("gkd", reward="chrf", reward_remove_bpe=marks)
    assert message.startswith("--reward-remove-bpe ")
    assert marks in message
    for known in ("@@ ", "subword_nmt", "sentencepiece", "none"):
        check_settings("gkd", reward="chrf", **({} if known == "none" else {"reward_remove_bpe": known}))


@pytest.mark.parametrize("method", METHODS)
def test_methods_own_defaults_are_accepted(method: str) -> None:
    """They are accepted with schedules by updates and with ``--max-epoch``."""
    tiny_criterion(method, tiny_task())
    for more in ({}, {"max_epoch": 10}):
        assert_computes_with(built(method, **more), {**own_settings(method), **more})


@pytest.mark.parametrize("method", METHODS)
def test_flags_at_the_methods_defaults_are_accepted(method: str) -> None:
    """A flag that is given with its default value is accepted, even where it has no effect."""
    given = own_settings(method)
    assert computed_with(built(method, **given)) == computed_with(built(method))
    for name, value in given.items():
        check_settings(method, **{name: value})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_methods_own_settings_are_accepted_with_any_divergence(method: str, divergence: str) -> None:
    """Settings that only the method's own divergence reads are not refused, because the user did not give
    them.
    """
    given = {"divergence": divergence}
    assert_computes_with(tiny_criterion(method, tiny_task(), **given), {**own_settings(method), **given})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("share", ["0", "0.5", "1", "linear:0", "adaptive:0"])
def test_methods_own_settings_are_accepted_with_any_share(method: str, share: str) -> None:
    """The method's own rollout settings and gold weight are not refused, because the user did not
    give them.
    """
    given = {"student_share": share}
    assert_computes_with(built(method, **given), {**own_settings(method), **given})


COMBINATIONS: list[tuple[str, dict[str, Any]]] = [
    # variants that the methods' docstrings suggest
    ("imitkd", {"gold_weight": "1"}),
    ("gkd", {"student_share": "0.5"}),
    (
        "gkd",
        {
            "reward": "sentence-bleu",
            "reward_weight": 0.3,
            "reward_baseline": "running",
            "reward_remove_bpe": "@@ ",
        },
    ),
    ("f_distill", {"teacher_samples": True}),
    ("f_distill", {"js_weights": "exact", "teacher_samples": True}),
    ("annealing_kd", {"gold_weight": "0", "annealing_end": 1.0}),
    ("distillm", {"divergence": "skew-forward-kl"}),
    # further useful combinations
    ("gkd", {"reward": "chrf", "rollout_pool": True}),
    ("gkd", {"rollout_replay": 100, "rollout_replay_share": "0.5"}),
    ("distillm", {"rollout_replay": 0}),
    ("distillm", {"schedule_by": "epoch", "max_epoch": 5, "max_update": 0}),
    ("imitkd", {"rollout_pool_updates": 8}),
    ("imitkd", {"student_share": "adaptive:0", "max_update": 0}),
    ("word_kd", {"max_update": 0}),
    ("gkd", {"max_update": 0}),
    ("word_kd", {"label_smoothing": 0.1}),
    ("imitkd", {"student_temperature": 2.0}),
    ("f_distill_kl", {"teacher_samples": True, "student_share": "0.3", "rollout_policy": "sampling"}),
    ("imitkd", {"find_unused_parameters": True}),
    (
        "gkd",
        {"gold_weight": "0.5", "student_share": "reverse-sigmoid", "schedule_by": "epoch", "max_epoch": 3},
    ),
    ("annealing_kd", {"schedule_by": "epoch", "max_epoch": 3, "max_update": 0}),
    # the maximum length and the CUDA graphs apply to teacher samples too
    ("f_distill_kl", {"teacher_samples": True, "rollout_max_len_b": 20}),
    ("f_distill_kl", {"teacher_samples": True, "rollout_max_len_a": 2.0}),
    ("f_distill_kl", {"teacher_samples": True, "rollout_cuda_graphs": "off"}),
    ("imitkd", {"rollout_cuda_graphs": "off"}),
    # teacher samples trained on as references: sequence-level distillation (Kim & Rush 2016, section 3.2)
    ("word_kd", {"teacher_samples": True, "gold_weight": "1"}),
    # without rollouts, none of them has to be a sample
    ("f_distill_kl", {"divergence": "sequence-js", "js_weights": "exact", "teacher_samples": True}),
    ("word_kd", {"disable_validation": True}),
    # forward-kl does not use the method's annealing temperature
    ("annealing_kd", {"divergence": "forward-kl", "gold_weight": "0.5", "max_update": 0}),
]


@pytest.mark.parametrize(
    ("method", "settings"), COMBINATIONS, ids=[f"{m}:{','.join(s)}" for m, s in COMBINATIONS]
)
def test_combination_that_makes_sense_is_accepted(method: str, settings: dict[str, Any]) -> None:
    """The check accepts it, and a criterion can be built, which computes with each setting."""
    assert_computes_with(tiny_criterion(method, tiny_task(), **settings), settings)


@pytest.mark.parametrize("method", ["word_kd", "imitkd_full"])
def test_gold_weight_is_refused_with_teachers_samples_only_if_it_changes_nothing(
    method: str, monkeypatch
) -> None:
    """A gold weight is accepted exactly if it changes the loss of a batch of rollouts and teacher samples."""
    sample = with_rollouts(
        make_batch(reversed_pairs(4, seed=1)),
        torch.tensor([1]),
        Rollout(torch.tensor([[9, 8, 2]]), torch.tensor([False])),
        pad=1,
    )
    teacher = torch.randn(sample["target"].numel(), 20, generator=torch.Generator().manual_seed(1))
    is_rollout = torch.tensor([False, True, False, False])
    sample[DISTILLATION] = Distillation(
        WholeLogits(teacher), is_rollout, torch.zeros_like(is_rollout), AtUpdate()
    )
    student, other = build_student().eval(), {"word_kd": "0", "imitkd_full": "0.5"}[method]
    try:
        check_settings(method, teacher_samples=True, gold_weight=other)
        accepted = True
    except UsageError:
        accepted = False
    monkeypatch.setattr(method_module, "check", lambda *_: None)
    own, changed = (
        float(tiny_criterion(method, tiny_task(), teacher_samples=True, **weight)(student, sample)[0])
        for weight in ({}, {"gold_weight": other})
    )
    assert accepted == (own != changed)
