"""A distillation method, parsed from its flags: schedules, rollout policy, rewards, replay, pooling, seed."""

import logging
from dataclasses import dataclass
from functools import cached_property

from fairseq_imitkd.losses.divergences import DIVERGENCES, needs
from fairseq_imitkd.method.checks import check
from fairseq_imitkd.method.config import DistillationConfig, training_length
from fairseq_imitkd.method.schedules import AdaptiveShare, moves, parse_schedule, parse_share
from fairseq_imitkd.rollout import RolloutPolicy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Moment:
    """The values of a method's schedules at one update.

    Args:
        update_num: number of the update (0 = first).
        epoch: number of the epoch (1 = first).
        student_share: share of sentences whose target the student writes, in 0..1.
        gold_weight: weight of the reference's negative log-likelihood in data sentences, in 0..1.
        replay_share: share of the student's sentences that are rollouts of earlier updates, in 0..1.
        annealing: factor of the teacher's logits under ``logit-mse``, in 0..1.
        fills_in: whether the student also writes the targets of all sentences that have no reference.
        matches_only: whether the loss is that of ``--hidden-match`` alone.
    """

    update_num: int
    epoch: int
    student_share: float
    gold_weight: float
    replay_share: float
    annealing: float
    fills_in: bool = False
    matches_only: bool = False

    @property
    def student_writes(self) -> bool:
        """Whether the student may write targets at the update."""
        return self.student_share > 0.0 or self.fills_in

    @property
    def needs_teacher(self) -> bool:
        """Whether the update's loss has a term that compares tokens with the teacher."""
        return not self.matches_only and (self.gold_weight < 1.0 or self.student_writes)


class Method:
    """A method with its settings: the flags of ``--criterion``, checked and parsed.

    Args:
        name: the value of ``--criterion``.
        cfg: the method's settings.
        defaults: the method's default settings; they tell which flags a user has changed.

    Attributes:
        share_schedule: the schedule of ``--student-share``.
        share_by_batch: whether all sentences of an update share one draw.
        teacher_samples: whether the teacher writes the targets that the student does not write.
        pools: whether the rollouts of several batches are decoded together.
        pool_updates: number of updates whose batches are decoded together.
        replay_capacity: number of rollouts to keep and train on again; 0 means none.
        reward: name of the reward; None without REINFORCE.
        rollout_policy: how the student decodes.
        some_lack_references: whether some training sentences have no reference. The task sets it.

    Raises:
        UsageError: a value is out of range, or two flags can't be used together.
    """

    def __init__(self, name: str, cfg: DistillationConfig, defaults: DistillationConfig):
        check(cfg, name, defaults)
        self.name, self.cfg, self.seed = name, cfg, cfg.seed
        self._by_epoch = str(cfg.schedule_by) == "epoch"
        self._end, end_flag = training_length(cfg)
        self._last = max(self._end - 1, 0)
        self.share_schedule = parse_share(cfg.student_share, self._end, end_flag=end_flag)
        self._gold_schedule = parse_schedule(
            cfg.gold_weight, self._end, flag="--gold-weight", end_flag=end_flag
        )
        self._replay_schedule = parse_schedule(
            cfg.rollout_replay_share if cfg.rollout_replay else "0",
            self._end,
            flag="--rollout-replay-share",
            end_flag=end_flag,
        )
        self._warn_of_an_early_end()

        self.share_by_batch = str(cfg.share_by) == "batch"
        self.teacher_samples = cfg.teacher_samples
        self.pools = cfg.rollout_pool or cfg.rollout_pool_updates > 1
        self.pool_updates = cfg.rollout_pool_updates
        self.replay_capacity = cfg.rollout_replay
        self.reward = None if str(cfg.reward) == "none" else str(cfg.reward)
        self.reward_baseline = str(cfg.reward_baseline)
        self.reward_remove_bpe = cfg.reward_remove_bpe
        self.rollout_policy = RolloutPolicy(
            name=str(cfg.rollout_policy),
            topk=cfg.rollout_topk,
            topp=cfg.rollout_topp,
            temperature=cfg.rollout_temperature,
            teacher_topk=cfg.rollout_teacher_topk,
            max_len_a=cfg.rollout_max_len_a,
            max_len_b=cfg.rollout_max_len_b,
            cuda_graphs=str(cfg.rollout_cuda_graphs) == "auto",
        )
        self.some_lack_references = False

    def at(self, update_num: int, epoch: int = 1) -> Moment:
        """Return the values of all schedules at an update (0 = first) of an epoch (1 = first)."""
        now = epoch - 1 if self._by_epoch else update_num
        return Moment(
            update_num=update_num,
            epoch=epoch,
            student_share=self.share_schedule(now),
            gold_weight=0.0 if self.cfg.hidden_match_only else self._gold_schedule(now),
            replay_share=self._replay_schedule(now),
            annealing=self._annealing(now),
            fills_in=self.some_lack_references and not self.teacher_samples,
            matches_only=self.cfg.hidden_match_only,
        )

    def _annealing(self, now: int) -> float:
        """Return ``1 - (T - 1) / T_max`` (Jafari et al. 2021, section 3.1).

        ``T`` falls from ``T_max`` to 1 in steps of equal length, until ``--annealing-end``.
        """
        highest = self.cfg.annealing_temperature
        done = now / (self._end * self.cfg.annealing_end) if self._end > 0 else 1.0
        temperature = max(1, highest - int(done * highest + 1e-9))
        return 1.0 - (temperature - 1) / highest

    @property
    def adaptive_share(self) -> AdaptiveShare | None:
        """The student's share if it follows the validation loss, else None."""
        return self.share_schedule if isinstance(self.share_schedule, AdaptiveShare) else None

    @property
    def rolls_out(self) -> bool:
        """Whether the student writes any target during training."""
        return self.adaptive_share is not None or self.share_schedule(self._last) > 0.0

    @property
    def always_rolls_out(self) -> bool:
        """Whether the student writes every target during the whole training."""
        return self.adaptive_share is None and self.share_schedule(0) == 1.0  # no schedule falls

    @property
    def writes(self) -> bool:
        """Whether any target is written during training, by the student or by the teacher."""
        return self.teacher_samples or self.rolls_out

    @cached_property
    def divergence_inputs(self) -> set[str]:
        """Names of the tensors that the divergence reads beside logits (see ``divergences.TOKEN_INPUTS``)."""
        return needs(DIVERGENCES[self.cfg.divergence])[0]

    @property
    def compares_logits(self) -> bool:
        """Whether the divergence compares the logits themselves, and not the probabilities."""
        return self.cfg.divergence == "logit-mse"

    @property
    def matches_hidden(self) -> bool:
        """Whether the loss has the term of ``--hidden-match``."""
        return self.cfg.hidden_match > 0.0

    @property
    def reads_token_probabilities(self) -> bool:
        """Whether the loss reads the teacher's probability of each target token, however small it is."""
        exact = "mixture_weight" in self.divergence_inputs and str(self.cfg.js_weights) == "exact"
        return exact or not self.divergence_inputs.isdisjoint({"target", "is_hard"})

    @property
    def needs_whole_batches(self) -> bool:
        """Whether a token's loss depends on the batch's other tokens, so that the batch can't be divided."""
        return "is_hard" in self.divergence_inputs or str(self.cfg.token_selection) != "all"

    @property
    def selection_queue(self) -> int:
        """The number of recent tokens among which the hardest ones are selected; 0 without a queue."""
        return self.cfg.selection_queue if str(self.cfg.token_selection) == "queue" else 0

    def _warn_of_an_early_end(self) -> None:
        """Warn of schedules that another limit of the training may cut short."""
        cfg = self.cfg
        limits = (("--max-update", cfg.max_update), ("--max-epoch", cfg.max_epoch))
        followed, other = reversed(limits) if self._by_epoch else limits
        if other[1] <= 0:
            return
        moving = {
            f"--student-share {cfg.student_share}": moves(self.share_schedule, self._last),
            f"--gold-weight {cfg.gold_weight}": moves(self._gold_schedule, self._last),
            f"--rollout-replay-share {cfg.rollout_replay_share}": moves(self._replay_schedule, self._last),
            f"--annealing-temperature {cfg.annealing_temperature}": self.compares_logits
            and self._annealing(0) != self._annealing(self._last),
        }
        named = " and ".join(name for name, does_move in moving.items() if does_move)
        if named:
            logger.warning(
                "%s: this follows %s %d and stops short of its last value if %s %d ends the training sooner "
                "(--schedule-by %s follows %s)",
                named, *followed, *other, "update" if self._by_epoch else "epoch", other[0],
            )  # fmt: skip
