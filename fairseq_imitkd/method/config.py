"""The flags of all methods. A method is a subclass with its paper's defaults (see methods.py)."""

import math
from dataclasses import dataclass, field
from typing import Any

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import II

from fairseq_imitkd.losses.divergences import DIVERGENCES
from fairseq_imitkd.losses.hidden_match import DISTANCES
from fairseq_imitkd.losses.token_weights import CONFIDENCES
from fairseq_imitkd.text.rewards import REWARDS

PolicyName: Any = ChoiceEnum(["greedy", "sampling", "speculative"])
ShareUnit: Any = ChoiceEnum(["sentence", "batch"])
ScheduleUnit: Any = ChoiceEnum(["update", "epoch"])
TailName: Any = ChoiceEnum(["dropped", "bucket"])
JSWeights: Any = ChoiceEnum(["half", "exact"])
LossAverage: Any = ChoiceEnum(["token", "sentence"])
RewardName: Any = ChoiceEnum(["none", *REWARDS])
BaselineName: Any = ChoiceEnum(["running", "leave-one-out"])
SelectionName: Any = ChoiceEnum(["all", "batch", "queue"])
ConfidenceName: Any = ChoiceEnum(["none", *CONFIDENCES])
DistanceName: Any = ChoiceEnum([*DISTANCES])
GraphsName: Any = ChoiceEnum(["auto", "off"])


@dataclass(frozen=True)
class Range:
    """The numbers that a flag accepts.

    Args:
        low, high: the bounds.
        words: how a message describes the range.
        above_low: whether ``low`` itself is excluded.
        below_high: whether ``high`` itself is excluded.
        also: numbers beside the range.
    """

    low: float
    high: float
    words: str
    above_low: bool = False
    below_high: bool = False
    also: tuple[float, ...] = ()

    def __contains__(self, value: float) -> bool:
        if value in self.also:
            return True
        low = self.low < value if self.above_low else self.low <= value
        return low and (value < self.high if self.below_high else value <= self.high)


SHARE = Range(0.0, 1.0, "in 0..1")
NON_NEGATIVE = Range(0.0, math.inf, "a finite number, 0 or more", below_high=True)
POSITIVE = Range(0.0, math.inf, "a finite number above 0", above_low=True, below_high=True)


def _flag(default: Any, description: str, accepts: Range | None = None) -> Any:
    """Return a dataclass field for a flag.

    Args:
        default: its default value.
        description: its help text.
        accepts: the numbers that it accepts; None accepts anything.
    """
    return field(default=default, metadata={"help": description, **({"range": accepts} if accepts else {})})


@dataclass
class PrefixConfig(FairseqDataclass):
    """Prefixes: who writes the targets that the student is trained on."""

    student_share: str = _flag(
        "constant:0",
        "share of sentences whose target is the student's own rollout: SHARE, constant:SHARE, "
        "exponential:FINAL_DATA_SHARE, linear:FINAL_DATA_SHARE or reverse-sigmoid, each with an optional "
        ",warmup=FRACTION; or adaptive:START, which adds 0.1 when the validation loss is 0.1 nats per token "
        "above the level that counted last (adaptive:START,tolerance=NATS changes the 0.1 nats)",
    )
    share_by: ShareUnit = _flag(
        "sentence",
        "apply the share to each sentence independently, or choose all sentences of an update together",
    )
    schedule_by: ScheduleUnit = _flag(
        "update", "unit of the schedules: updates (of --max-update) or epochs (of --max-epoch)"
    )
    teacher_samples: bool = _flag(
        False, "replace the targets of the data sentences by samples from the teacher"
    )
    rollout_policy: PolicyName = _flag(
        "greedy",
        "how the student decodes rollouts; speculative: it samples, and the teacher replaces unlikely tokens",
    )
    rollout_topk: int = _flag(0, "sample from the K most probable tokens (0: all)")
    rollout_topp: float = _flag(
        1.0, "sample from the smallest set of tokens with this total probability (1: all)"
    )
    rollout_temperature: float = _flag(1.0, "temperature of sampled rollouts")
    rollout_teacher_topk: int = _flag(
        25,
        "under --rollout-policy speculative, the teacher replaces a token that is not among its own K best",
        Range(1, math.inf, "1 or more"),
    )
    rollout_max_len_a: float = _flag(
        1.2, "a rollout has at most A * source length + B tokens, its end not counted: this is A"
    )
    rollout_max_len_b: int = _flag(
        10, "a rollout has at most A * source length + B tokens, its end not counted: this is B"
    )
    rollout_pool: bool = _flag(
        False,
        "decode the rollouts of all micro-batches of an update (--update-freq) at once; they stay on-policy",
    )
    rollout_pool_updates: int = _flag(
        1,
        "decode the rollouts of this many updates at once, with the student before the first of them (the "
        "ImitKD paper's pooling; 1: on-policy)",
        Range(1, math.inf, "1 (on-policy) or more"),
    )
    rollout_replay: int = _flag(
        0,
        "number of recent rollouts to keep and train on again (0: none)",
        Range(0, math.inf, "0 (none) or more"),
    )
    rollout_replay_share: str = _flag(
        "linear:0", "share of the student's sentences that come from --rollout-replay: a schedule"
    )
    rollout_confidence: ConfidenceName = _flag(
        "none",
        "weigh the divergence at each position of a rollout by the teacher's confidence there: one minus its "
        "entropy divided by the largest one, or the probability of its most probable token",
    )
    rollout_cuda_graphs: GraphsName = _flag(
        "auto",
        "auto: on a GPU, decode with CUDA graphs, if the student is a stock transformer; this removes the "
        "launch overhead of small kernels",
    )
    log_rollouts: int = _flag(
        0,
        "show this many rollouts now and then, with the teacher's token wherever it differs from the "
        "student's: in the log, TensorBoard and imitkd-report (0: none)",
        Range(0, math.inf, "0 (none) or more"),
    )
    log_rollouts_interval: int = _flag(
        500, "updates from one time of --log-rollouts to the next", Range(1, math.inf, "1 or more")
    )


@dataclass
class DivergenceConfig(FairseqDataclass):
    """Divergence: the loss between student and teacher at each prefix."""

    divergence: str = _flag(
        "forward-kl",
        "loss between student and teacher at each prefix: one of " + ", ".join(DIVERGENCES),
    )
    jsd_weight: float = _flag(
        0.5,
        "weight of the teacher in the mixture of the generalised Jensen-Shannon divergence, in 0..1",
        SHARE,
    )
    js_weights: JSWeights = _flag(
        "half",
        "mixture weights of --divergence sequence-js: one half at every position, or the exact "
        "probabilities of the prefixes",
    )
    skew: float = _flag(
        0.1,
        "share of one distribution that the skew KL divergences mix into the other",
        Range(0.0, 1.0, "at least 0 and below 1", below_high=True),
    )
    easy_weight: float = _flag(
        0.2,
        "weight in 0..1 of the half of the tokens that the teacher is more certain of, under --divergence "
        "target-decoupled-kl; the other half has one minus this weight",
        SHARE,
    )
    rank_topk: int = _flag(
        5,
        "number of the teacher's most probable tokens that --divergence ranked-kl keeps above the student's "
        "other candidates",
        Range(1, math.inf, "1 or more"),
    )
    entropy_threshold: float = _flag(
        0.8,
        "entropy of the teacher, in nats, above which --divergence entropy-aware-kl adds the forward KL "
        "divergence",
        NON_NEGATIVE,
    )
    token_selection: SelectionName = _flag(
        "all",
        "compare with the teacher at all tokens, or only at those that the student finds the hardest: by the "
        "cross-entropy of the target, among the batch or among a queue of recent tokens",
    )
    selected_share: float = _flag(
        0.5,
        "share of the tokens that --token-selection selects",
        Range(0.0, 1.0, "above 0 and below 1", above_low=True, below_high=True),
    )
    selection_queue: int = _flag(
        30000, "number of tokens in the queue of --token-selection queue", Range(1, math.inf, "1 or more")
    )
    annealing_temperature: int = _flag(
        1,
        "first temperature of the teacher's logits under --divergence logit-mse; it falls to 1",
        Range(1, math.inf, "a whole number, 1 or more"),
    )
    annealing_end: float = _flag(
        1.0,
        "fraction of the training after which --annealing-temperature is 1",
        Range(0.0, 1.0, "above 0 and at most 1", above_low=True),
    )
    logit_margin: float = _flag(
        0.0, "squared logit differences below this margin are ignored by --divergence logit-mse", NON_NEGATIVE
    )
    student_temperature: float = _flag(
        1.0,
        "temperature of the student's distribution; the divergence is multiplied by the temperature's square",
        POSITIVE,
    )
    teacher_temperature: float = _flag(1.0, "temperature of the teacher's distribution", POSITIVE)
    teacher_topk: int = _flag(
        0,
        "keep the teacher's K most probable tokens; --teacher-tail decides what happens to the rest (0: "
        "keep all)",
        Range(0, math.inf, "0 (all symbols) or more"),
    )
    teacher_tail: TailName = _flag(
        "dropped",
        "what --teacher-topk does with the other tokens: drop them and renormalise, or merge them into one "
        "bucket",
    )
    loss_average: LossAverage = _flag("token", "average the loss over all tokens, or per sentence first")
    loss_chunk: int = _flag(
        0,
        "number of positions whose logits are in memory at once (0: all, or chunks if the logits are large; "
        "-1: always all)",
        Range(-1, math.inf, "0 (by size), -1 (never) or a number of positions"),
    )


@dataclass
class AddedTermsConfig(FairseqDataclass):
    """Added to the loss: references, rewards and hidden states."""

    gold_weight: str = _flag(
        "0",
        "weight in 0..1 of the reference's negative log-likelihood in data sentences; a number or a "
        "schedule as in --student-share",
    )
    label_smoothing: float = _flag(
        0.0,
        "label smoothing of the reference's negative log-likelihood (0: none)",
        Range(0.0, 1.0, "at least 0 and below 1", below_high=True),
    )
    reward: RewardName = _flag("none", "reward of sampled rollouts against their references (REINFORCE)")
    reward_weight: float = _flag(
        0.5,
        "weight of the reward against the divergence, in 0..1; the reward is averaged over a batch's "
        "sentences, the divergence by --loss-average",
        Range(0.0, 1.0, "above 0 and at most 1", above_low=True),
    )
    reward_baseline: BaselineName = _flag(
        "leave-one-out",
        "baseline of the reward: the mean reward of the batch's other rollouts, or a running mean over "
        "updates",
    )
    reward_remove_bpe: str = _flag(
        "auto",
        "subword marks to remove before scoring a reward: those that the dictionary has (auto), @@ , "
        "sentencepiece, ... or none",
    )
    hidden_match: float = _flag(
        0.0,
        "weight of a distance between the sentence vectors of student and teacher: the means of the "
        "encoders' outputs over time, the student's through a learned projection (0: none)",
        NON_NEGATIVE,
    )
    hidden_match_distance: DistanceName = _flag(
        "l1",
        "distance of --hidden-match: the mean absolute or squared difference over the features, or one minus "
        "the cosine",
    )
    hidden_match_only: bool = _flag(
        False,
        "train on --hidden-match alone, without a loss of tokens: the first of two stages",
    )


@dataclass
class DistillationConfig(PrefixConfig, DivergenceConfig, AddedTermsConfig):
    """The settings of a distillation method."""

    seed: int = II("common.seed")
    max_update: int = II("optimization.max_update")
    max_epoch: int = II("optimization.max_epoch")
    ddp_backend: str = II("distributed_training.ddp_backend")
    disable_validation: bool = II("dataset.disable_validation")
    find_unused_parameters: bool = II("distributed_training.find_unused_parameters")
    sentence_avg: bool = II("optimization.sentence_avg")


def training_length(cfg: DistillationConfig) -> tuple[int, str]:
    """Return the length of the training in the unit of the schedules, and the flag that sets it."""
    return (
        (cfg.max_epoch, "--max-epoch")
        if str(cfg.schedule_by) == "epoch"
        else (cfg.max_update, "--max-update")
    )
