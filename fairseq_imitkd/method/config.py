"""What every method and every task with a teacher can be told, and which flags can be used together.

Everything is checked when the criterion is built, before any data is read. A flag that would change nothing is refused:
silently ignored it would pass for tried.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import II

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.losses.divergences import DIVERGENCES, needs
from fairseq_imitkd.method.schedules import AdaptiveShare, parse_schedule, parse_share
from fairseq_imitkd.text.rewards import REWARDS

DTYPES = ("fp32", "fp16", "bf16")
Precision: Any = ChoiceEnum(["auto", *DTYPES])
PolicyName: Any = ChoiceEnum(["greedy", "sampling", "speculative"])
ShareUnit: Any = ChoiceEnum(["sentence", "batch"])
ScheduleUnit: Any = ChoiceEnum(["update", "epoch"])
TailName: Any = ChoiceEnum(["dropped", "bucket"])
JSWeights: Any = ChoiceEnum(["half", "exact"])
LossAverage: Any = ChoiceEnum(["token", "sentence"])
RewardName: Any = ChoiceEnum(["none", *REWARDS])
BaselineName: Any = ChoiceEnum(["running", "leave-one-out"])


@dataclass
class TeacherConfig(FairseqDataclass):
    """Where a task's teacher is: the flags that every task with one has."""

    teacher_path: Optional[str] = field(
        default=None,
        metadata={
            "help": "the teacher's checkpoint, or several joined by ':' whose probabilities are averaged"
        },
    )
    teacher_weights: Optional[str] = field(
        default=None,
        metadata={
            "help": "of the teachers of --teacher-path in their average: numbers joined by ':' (default: all alike)"
        },
    )
    teacher_dtype: Precision = field(
        default="auto", metadata={"help": "the teacher's precision (auto: the student's)"}
    )
    teacher_data: Optional[str] = field(
        default=None,
        metadata={
            "help": "folder with the dictionaries that the teacher was trained with "
            "(default: looked for beside the checkpoint, then in the folder that it names)"
        },
    )
    teacher_allow_globals: Optional[str] = field(
        default=None,
        metadata={
            "help": "types that the teacher's checkpoint may hold beside fairseq's own: module.name,… (files you trust)"
        },
    )


@dataclass
class DistillationConfig(FairseqDataclass):
    """What every method can be told. A method is this with its paper's defaults."""

    student_share: str = field(
        default="constant:0",
        metadata={
            "help": "share of sentences whose target is the student's own rollout: SHARE, constant:SHARE, "
            "exponential:FINAL_DATA_SHARE, linear:FINAL_DATA_SHARE or reverse-sigmoid, each with an optional "
            ",warmup=FRACTION; or adaptive:START, which grows by 0.1 whenever the validation loss has become worse"
        },
    )
    share_by: ShareUnit = field(
        default="sentence",
        metadata={
            "help": "each sentence by itself is the student's with that probability, or all of an update are"
        },
    )
    schedule_by: ScheduleUnit = field(
        default="update",
        metadata={"help": "schedules move with updates (of --max-update) or with epochs (of --max-epoch)"},
    )
    teacher_samples: bool = field(
        default=False,
        metadata={
            "help": "sentences that the student does not write are sampled from the teacher instead of kept"
        },
    )
    divergence: str = field(
        default="forward-kl",
        metadata={
            "help": "loss between student and teacher at each prefix: one of " + ", ".join(DIVERGENCES)
        },
    )
    jsd_weight: float = field(
        default=0.5,
        metadata={
            "help": "of the teacher in the mixture of the generalised Jensen-Shannon divergence, in 0..1"
        },
    )
    js_weights: JSWeights = field(
        default="half",
        metadata={
            "help": "mixture of --divergence sequence-js: half everywhere, or by the exact probabilities of the prefixes"
        },
    )
    skew: float = field(
        default=0.1,
        metadata={"help": "of the skew KL divergences: share of the one distribution in the other"},
    )
    easy_weight: float = field(
        default=0.2,
        metadata={
            "help": "of the mean loss of the tokens that the teacher is surer of, against that of the others, in 0..1, under "
            "--divergence target-decoupled-kl"
        },
    )
    annealing_temperature: int = field(
        default=1,
        metadata={
            "help": "temperature that the teacher's logits begin with under --divergence logit-mse; it falls to 1"
        },
    )
    annealing_end: float = field(
        default=1.0,
        metadata={"help": "fraction of the training at whose end --annealing-temperature has come down to 1"},
    )
    logit_margin: float = field(
        default=0.0,
        metadata={"help": "squared distance of logits below which --divergence logit-mse teaches nothing"},
    )
    student_temperature: float = field(
        default=1.0,
        metadata={
            "help": "of the student's distribution in the divergence, which is multiplied by its square"
        },
    )
    teacher_temperature: float = field(
        default=1.0, metadata={"help": "of the teacher's distribution in the divergence"}
    )
    teacher_topk: int = field(
        default=0,
        metadata={"help": "tell only this many of the teacher's most probable symbols apart (0: all)"},
    )
    teacher_tail: TailName = field(
        default="dropped",
        metadata={
            "help": "what --teacher-topk does with all others: drop and renormalise, or count them as one symbol"
        },
    )
    gold_weight: str = field(
        default="0",
        metadata={
            "help": "weight of the reference's negative log-likelihood on sentences that keep their reference, in 0..1; "
            "or a schedule as of --student-share"
        },
    )
    label_smoothing: float = field(
        default=0.0, metadata={"help": "of the reference's negative log-likelihood, 0 is none"}
    )
    loss_average: LossAverage = field(
        default="token",
        metadata={
            "help": "mean of the loss over all tokens, or over each sentence's and then over sentences"
        },
    )
    reward: RewardName = field(
        default="none", metadata={"help": "of sampled rollouts against their references, learnt by REINFORCE"}
    )
    reward_weight: float = field(
        default=0.5, metadata={"help": "of the reward, against the divergence, in 0..1"}
    )
    reward_baseline: BaselineName = field(
        default="leave-one-out",
        metadata={
            "help": "what is taken off a reward: the mean of the batch's other rollouts, or a running mean of all so far"
        },
    )
    reward_remove_bpe: str = field(
        default="none",
        metadata={"help": "subword marks to undo before scoring a reward: @@ , sentencepiece, … or none"},
    )
    rollout_policy: PolicyName = field(
        default="greedy",
        metadata={
            "help": "how the student writes its rollouts; speculative: sampled, and corrected by the teacher"
        },
    )
    rollout_topk: int = field(
        default=0, metadata={"help": "sample among this many most probable tokens (0: all)"}
    )
    rollout_topp: float = field(
        default=1.0,
        metadata={"help": "sample among the fewest tokens that hold this much probability (1: all)"},
    )
    rollout_temperature: float = field(default=1.0, metadata={"help": "temperature of sampled rollouts"})
    rollout_teacher_topk: int = field(
        default=25,
        metadata={
            "help": "a speculative token that is not among the teacher's best this many is the teacher's"
        },
    )
    rollout_max_len_a: float = field(
        default=1.2, metadata={"help": "a rollout has at most A * source length + B tokens before its end: A"}
    )
    rollout_max_len_b: int = field(
        default=10, metadata={"help": "a rollout has at most A * source length + B tokens: B"}
    )
    rollout_pool: bool = field(
        default=False,
        metadata={
            "help": "decode the rollouts of all micro-batches of an update (--update-freq) at once; as on-policy as without"
        },
    )
    rollout_pool_updates: int = field(
        default=1,
        metadata={
            "help": "decode the rollouts of this many updates at once, by the student as it is before the first of them "
            "(the ImitKD paper's pooling; 1: on-policy)"
        },
    )
    rollout_replay: int = field(
        default=0,
        metadata={
            "help": "keep this many of the last rollouts with their sources, to learn from again (0: none)"
        },
    )
    rollout_replay_share: str = field(
        default="linear:0",
        metadata={"help": "share of the student's sentences that --rollout-replay gives, a schedule"},
    )
    rollout_cuda_graphs: bool = field(
        default=False,
        metadata={
            "help": "on a GPU, replay the decoding steps of a stock transformer as CUDA graphs, where launching their kernels "
            "one by one takes longer than computing them"
        },
    )
    loss_chunk: int = field(
        default=0,
        metadata={
            "help": "positions whose logits are in memory at once (0: all of a batch, or chunks where they would be large; "
            "-1: always all)"
        },
    )
    seed: int = II("common.seed")
    max_update: int = II("optimization.max_update")
    max_epoch: int = II("optimization.max_epoch")
    ddp_backend: str = II("distributed_training.ddp_backend")
    disable_validation: bool = II("dataset.disable_validation")
    find_unused_parameters: bool = II("distributed_training.find_unused_parameters")
    sentence_avg: bool = II("optimization.sentence_avg")


def training_length(cfg: DistillationConfig) -> tuple[int, str]:
    """How long the training is, in what schedules move by, and the flag that says so."""
    return (
        (cfg.max_epoch, "--max-epoch")
        if str(cfg.schedule_by) == "epoch"
        else (cfg.max_update, "--max-update")
    )


def check(cfg: DistillationConfig, method: str, defaults: DistillationConfig) -> None:
    """Refuse values out of range, and flags that can't be used together.

    Args:
        cfg: the method's settings.
        method: its name.
        defaults: the method's own settings, by which to tell what a user has changed.

    Raises:
        UsageError: naming the flag, its value, and the remedy.
    """
    if cfg.divergence not in DIVERGENCES:
        raise UsageError(f"--divergence must be one of {', '.join(DIVERGENCES)}, but is {cfg.divergence}")
    for flag, value, valid, must in _ranges(cfg):
        if not valid:
            raise UsageError(f"{flag} must be {must}, but is {value}")
    changed = [
        item.name
        for item in fields(defaults)
        if str(getattr(cfg, item.name)) != str(getattr(defaults, item.name))
    ]
    for names, useless, why in _dependencies(cfg):
        for name in changed:
            if useless and name in names:
                value = getattr(cfg, name)
                flag = "--" + name.replace("_", "-") + ("" if value is True else f" {value}")
                raise UsageError(f"{flag} changes nothing {why}")
    diverges = {
        "reverse-kl": True,
        "jsd-normalised": cfg.jsd_weight == 1.0,
        "skew-reverse-kl": cfg.skew == 0.0,
    }
    if cfg.teacher_topk and str(cfg.teacher_tail) == "dropped" and diverges.get(cfg.divergence, False):
        raise UsageError(
            f"--teacher-topk {cfg.teacher_topk} makes --divergence {cfg.divergence} infinite, since the student gives dropped "
            "symbols probability: add --teacher-tail bucket"
        )
    marks = ("none", "@@ ", "subword_nmt", "sentencepiece", "wordpiece", "letter")
    if cfg.reward_remove_bpe not in marks:
        raise UsageError(
            f"--reward-remove-bpe must be one of {', '.join(map(repr, marks))}, but is '{cfg.reward_remove_bpe}'"
        )
    length, length_flag = training_length(cfg)
    share = parse_share(cfg.student_share, length, "--student-share", length_flag)
    for flag, asked in (
        (f"--reward {cfg.reward}", str(cfg.reward) != "none"),
        (
            "--js-weights exact",
            str(cfg.js_weights) == "exact" and (isinstance(share, AdaptiveShare) or share(length) > 0.0),
        ),
    ):
        if asked:
            _check_samples(cfg, f"{flag} needs samples of the student as it is")
    if cfg.rollout_pool or cfg.rollout_pool_updates > 1:
        pool = "--rollout-pool" if cfg.rollout_pool else f"--rollout-pool-updates {cfg.rollout_pool_updates}"
        if str(cfg.rollout_policy) == "speculative":
            raise UsageError(f"{pool} can't be used with --rollout-policy speculative: leave it out")
        if cfg.rollout_replay:
            raise UsageError(
                f"{pool} can't be used with --rollout-replay {cfg.rollout_replay}: leave it out or add --rollout-replay 0"
            )
    if isinstance(share, AdaptiveShare) and cfg.disable_validation:
        raise UsageError(
            f"--student-share {cfg.student_share} moves with the validation loss, but --disable-validation gives none: leave "
            "that out or use another schedule"
        )
    if cfg.annealing_temperature > 1 and length <= 0 and _uses(cfg, "annealing"):
        raise UsageError(
            f"--annealing-temperature {cfg.annealing_temperature} needs {length_flag}, which says when training ends"
        )
    if cfg.sentence_avg:
        raise UsageError(
            f"--sentence-avg is not for --criterion {method}, whose loss is a mean over tokens: leave it out, or take the mean "
            "of each sentence's mean by --loss-average sentence"
        )
    if cfg.loss_chunk > 0 and cfg.find_unused_parameters:
        raise UsageError(
            f"--loss-chunk {cfg.loss_chunk} uses the output matrix outside of the model's forward pass, where "
            "--find-unused-parameters does not find it: leave one of them out"
        )
    if cfg.ddp_backend == "fully_sharded":
        raise UsageError(
            f"--ddp-backend fully_sharded leaves no whole student to write rollouts, so --criterion {method} can't use it: "
            "use --ddp-backend legacy_ddp or pytorch_ddp"
        )


def _check_samples(cfg: DistillationConfig, why: str) -> None:
    """Refuse rollouts that are no samples of the student's own distribution at this very update."""
    policy = (str(cfg.rollout_policy), cfg.rollout_topk, cfg.rollout_topp, cfg.rollout_temperature)
    if policy != ("sampling", 0, 1.0, 1.0):
        raise UsageError(
            f"{why}: use --rollout-policy sampling without --rollout-topk, --rollout-topp and --rollout-temperature"
        )
    if cfg.rollout_pool_updates > 1:
        raise UsageError(
            f"{why}, but --rollout-pool-updates {cfg.rollout_pool_updates} gives older ones: use --rollout-pool"
        )
    if cfg.rollout_replay:
        raise UsageError(
            f"{why}, but --rollout-replay {cfg.rollout_replay} gives older ones: use --rollout-replay 0"
        )


def _ranges(cfg: DistillationConfig) -> Iterator[tuple[str, Any, bool, str]]:
    """Flag, value, whether it is in range, and what it must be."""
    open_ended = cfg.divergence == "jsd-normalised" or not _uses(cfg, "jsd_weight")
    yield (
        "--jsd-weight", cfg.jsd_weight, 0.0 <= cfg.jsd_weight <= 1.0 if open_ended else 0.0 < cfg.jsd_weight < 1.0,
        "in 0..1" if open_ended else "above 0 and below 1 (at 0 and 1 jsd is 0 whatever the student does: use jsd-normalised)",
    )  # fmt: skip
    yield "--skew", cfg.skew, 0.0 <= cfg.skew < 1.0, "at least 0 and below 1"
    yield "--easy-weight", cfg.easy_weight, 0.0 <= cfg.easy_weight <= 1.0, "in 0..1"
    yield (
        "--annealing-temperature",
        cfg.annealing_temperature,
        cfg.annealing_temperature >= 1,
        "a whole number, 1 or more",
    )
    yield "--annealing-end", cfg.annealing_end, 0.0 < cfg.annealing_end <= 1.0, "above 0 and at most 1"
    yield "--logit-margin", cfg.logit_margin, 0.0 <= cfg.logit_margin < math.inf, "a finite number, 0 or more"
    yield (
        "--student-temperature",
        cfg.student_temperature,
        0.0 < cfg.student_temperature < math.inf,
        "a finite number above 0",
    )
    yield (
        "--teacher-temperature",
        cfg.teacher_temperature,
        0.0 < cfg.teacher_temperature < math.inf,
        "a finite number above 0",
    )
    yield "--teacher-topk", cfg.teacher_topk, cfg.teacher_topk >= 0, "0 (all symbols) or more"
    yield "--label-smoothing", cfg.label_smoothing, 0.0 <= cfg.label_smoothing < 1.0, "at least 0 and below 1"
    yield "--reward-weight", cfg.reward_weight, 0.0 < cfg.reward_weight <= 1.0, "above 0 and at most 1"
    yield "--rollout-teacher-topk", cfg.rollout_teacher_topk, cfg.rollout_teacher_topk >= 1, "1 or more"
    yield (
        "--rollout-pool-updates",
        cfg.rollout_pool_updates,
        cfg.rollout_pool_updates >= 1,
        "1 (on-policy) or more",
    )
    yield "--rollout-replay", cfg.rollout_replay, cfg.rollout_replay >= 0, "0 (none) or more"
    yield (
        "--loss-chunk",
        cfg.loss_chunk,
        cfg.loss_chunk >= -1,
        "0 (by size), -1 (never) or a number of positions",
    )


def _dependencies(cfg: DistillationConfig) -> Iterator[tuple[set[str], bool, str]]:
    """Flags, whether they would change nothing, and why, in words that name the remedy."""
    divergence, (length, length_flag) = cfg.divergence, training_length(cfg)
    share = parse_share(cfg.student_share, length, "--student-share", length_flag)
    gold = parse_schedule(cfg.gold_weight, length, "--gold-weight", length_flag)
    fixed = not isinstance(share, AdaptiveShare)
    never, always = fixed and share(length) == 0.0, fixed and share(0) == 1.0  # every schedule rises
    rollouts = {item.name for item in fields(DistillationConfig) if item.name.startswith("rollout_")}
    of_decoding = {"rollout_max_len_a", "rollout_max_len_b", "rollout_cuda_graphs"}
    raise_it = f"at --student-share {cfg.student_share}: raise the share or leave it out"
    yield (rollouts - of_decoding) | {"share_by", "reward"}, never, raise_it
    yield of_decoding, never and not cfg.teacher_samples, raise_it
    no_data = f"at --student-share {cfg.student_share}, where the student writes all: leave it out"
    yield {"gold_weight", "label_smoothing", "teacher_samples", "share_by"}, always, no_data
    if never and gold(0) == 1.0 and not cfg.teacher_samples:
        raise UsageError(
            f"--gold-weight {cfg.gold_weight} leaves nothing for a teacher to teach at --student-share {cfg.student_share}: "
            "lower the weight, raise the share, or use --criterion label_smoothed_cross_entropy"
        )
    yield {"label_smoothing"}, gold(length) == 0.0, "at --gold-weight 0: raise the weight or leave it out"
    yield (
        {"rollout_replay_share"},
        cfg.rollout_replay == 0,
        "without --rollout-replay: say how many rollouts to keep",
    )
    yield (
        {"rollout_teacher_topk"},
        str(cfg.rollout_policy) != "speculative",
        "without --rollout-policy speculative: add it",
    )
    yield (
        {"reward_weight", "reward_baseline", "reward_remove_bpe"},
        str(cfg.reward) == "none",
        "without --reward: say which",
    )
    for name in ("jsd_weight", "skew", "logit_margin"):
        yield {name}, not _uses(cfg, name), f"under --divergence {divergence}: choose {_users(name)}"
    yield (
        {"annealing_temperature"},
        not _uses(cfg, "annealing"),
        f"under --divergence {divergence}: choose logit-mse",
    )
    yield {"annealing_end"}, not _uses(cfg, "annealing"), f"under --divergence {divergence}: choose logit-mse"
    yield {"annealing_end"}, cfg.annealing_temperature == 1, "at --annealing-temperature 1: raise it"
    yield (
        {"easy_weight"},
        divergence != "target-decoupled-kl",
        f"under --divergence {divergence}: choose target-decoupled-kl",
    )
    yield {"js_weights"}, divergence != "sequence-js", f"under --divergence {divergence}: choose sequence-js"
    of_distributions = divergence not in ("logit-mse", "teacher-argmax")
    choose = f"under --divergence {divergence}: choose one of distributions, such as forward-kl"
    yield {"teacher_temperature", "teacher_topk", "teacher_tail"}, not of_distributions, choose
    yield {"student_temperature"}, divergence == "logit-mse", choose
    yield (
        {"teacher_tail"},
        cfg.teacher_topk == 0,
        "without --teacher-topk: say how many symbols to tell apart",
    )
    yield (
        {"teacher_topk"},
        "target" in needs(DIVERGENCES[divergence])[0],
        f"under --divergence {divergence}, which needs the target's probability: leave it out",
    )
    schedules = [share, gold]
    if cfg.rollout_replay:
        replayed = parse_schedule(cfg.rollout_replay_share, length, "--rollout-replay-share", length_flag)
        schedules.append(replayed)
        yield (
            {"rollout_replay", "rollout_replay_share"},
            replayed(length) == 0.0,
            f"at --rollout-replay-share {cfg.rollout_replay_share}: raise it",
        )
    moving = any(
        not isinstance(schedule, AdaptiveShare) and schedule(0) != schedule(length) for schedule in schedules
    )
    moving = moving or (cfg.annealing_temperature > 1 and _uses(cfg, "annealing"))
    yield {"schedule_by"}, not moving, "where no schedule moves: leave it out"


def _uses(cfg: DistillationConfig, setting: str) -> bool:
    return setting in needs(DIVERGENCES[cfg.divergence])[1]


def _users(setting: str) -> str:
    return " or ".join(name for name, divergence in DIVERGENCES.items() if setting in needs(divergence)[1])
