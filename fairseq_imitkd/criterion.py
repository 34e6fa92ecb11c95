"""The one criterion of every method: a batch with the teacher's scores in, a summed loss and its count out.

It owns no model and no teacher. fairseq's trainer divides the summed gradient by the summed count, once, over all
processes and micro-batches.
"""

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any, Optional

import torch
import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion
from fairseq.models import BaseFairseqModel
from torch import Tensor

from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.errors import RefusedUpdate, UsageError
from fairseq_imitkd.losses.chunked import Figures, chunk_size, chunked_loss
from fairseq_imitkd.losses.divergences import DIVERGENCES, most_probable_only, needs
from fairseq_imitkd.method.config import DistillationConfig, check, training_length
from fairseq_imitkd.method.schedules import AdaptiveShare, Schedule, parse_schedule, parse_share
from fairseq_imitkd.models.access import features_for_logits, output_projection, unwrapped
from fairseq_imitkd.models.logits import (
    ProjectedLogits,
    TokenLogits,
    WholeLogits,
    full_precision,
    token_lprobs,
)
from fairseq_imitkd.rollout import RolloutPolicy
from fairseq_imitkd.training import metrics
from fairseq_imitkd.vocab_ops import most_probable

logger = logging.getLogger(__name__)

# Where the task leaves, in a training batch, what the loss needs beside fairseq's own keys.
DISTILLATION = "distillation"


@dataclass(frozen=True)
class Distillation:
    """What the task adds to a training batch of ``B`` sentences and ``T`` target positions.

    Args:
        teacher: its scores of all ``B * T`` positions, row by row. The criterion may overwrite them at padding. None
            where no teacher is needed, see :meth:`DistillationCriterion.needs_teacher`.
        is_rollout: ``(B,)`` bool: the target is the student's own.
        truncated: ``(B,)`` bool: a rollout that the length cap cut.
        update_num: 0 = first.
        advantages: ``(B,)``, each rollout's reward less the baseline; None without rewards.
    """

    teacher: TokenLogits | None
    is_rollout: Tensor
    truncated: Tensor
    update_num: int = 0
    advantages: Tensor | None = None


class DistillationCriterion(FairseqCriterion):
    """Summed distillation loss over the tokens of data rows and rollout rows.

    At each counted position of a data row it is ``gold_weight * NLL(reference) + (1 - gold_weight) * divergence`` (Kim &
    Rush 2016, section 3.1); of a rollout row the divergence, or with a reward ``reward_weight * advantage * NLL(rollout)
    + (1 - reward_weight) * divergence`` (Agarwal et al. 2023, equation 4, by REINFORCE). In validation, and in the empty
    batches of uneven shards, it is the references' negative log-likelihood.

    Args:
        cfg: the method's settings.
        task: a task that holds a teacher, such as ``translation_with_teacher``.

    Raises:
        UsageError: a setting is out of range, can't be used with another, or the task has no teacher.
    """

    Config: type[DistillationConfig] = DistillationConfig

    def __init__(self, cfg: DistillationConfig, task: Any):
        super().__init__(task)
        name = getattr(cfg, "_name", None) or "distillation"
        if not getattr(task, "has_teacher", False):
            raise UsageError(
                f"--criterion {name} needs a task that holds a teacher, but --task is {_task_name(task)}: "
                "use --task translation_with_teacher --teacher-path TEACHER.pt"
            )
        check(cfg, name, self.Config())
        self.cfg = cfg
        # How a task runs its students, where it is not by their own forward pass.
        self._classifies = getattr(task, "classifies", False)
        if self._classifies:
            self.padding_idx = -100  # a class is no symbol, and none is padding
        symbols = len(task.target_dictionary) if getattr(task, "target_dictionary", None) is not None else 0
        if not self._classifies and 0 < symbols <= cfg.teacher_topk:
            raise UsageError(
                f"--teacher-topk {cfg.teacher_topk} changes nothing, of {symbols} symbols: lower it or leave it out"
            )
        self._run = getattr(task, "run_student", _run)
        self.seed = cfg.seed
        self.epoch = 1  # the task says which epoch it is
        self._by_epoch = str(cfg.schedule_by) == "epoch"
        self._end, end_flag = training_length(cfg)
        self.share_schedule = parse_share(cfg.student_share, self._end, "--student-share", end_flag)
        if not self._by_epoch and cfg.max_epoch > 0 and _moves(self.share_schedule, self._end):
            logger.warning(
                "--student-share %s moves by --max-update %d: if --max-epoch %d ends the training sooner, it does not come to "
                "its end (--schedule-by epoch moves by that)", cfg.student_share, cfg.max_update, cfg.max_epoch,
            )  # fmt: skip
        self.share_by_batch = str(cfg.share_by) == "batch"
        self._gold_schedule = parse_schedule(cfg.gold_weight, self._end, "--gold-weight", end_flag)
        self.teacher_samples = cfg.teacher_samples

        self._divergence = DIVERGENCES[cfg.divergence]
        self._divergence_name = cfg.divergence
        self._inputs, settings = needs(self._divergence)
        self._settings = {setting: getattr(cfg, setting) for setting in settings if setting != "annealing"}
        self._anneals = "annealing" in settings
        self._annealing_temperature, self._annealing_end = cfg.annealing_temperature, cfg.annealing_end
        self._exact_mixture = str(cfg.js_weights) == "exact"
        self._easy_weight = cfg.easy_weight
        self._student_temperature, self._teacher_temperature = (
            cfg.student_temperature,
            cfg.teacher_temperature,
        )
        self._teacher_topk, self._teacher_tail = cfg.teacher_topk, str(cfg.teacher_tail)
        self._label_smoothing = cfg.label_smoothing
        self._by_sentence = str(cfg.loss_average) == "sentence"
        # With --find-unused-parameters torch looks for a gradient's way in the forward pass alone, where chunks have none.
        self.loss_chunk = -1 if cfg.find_unused_parameters else cfg.loss_chunk

        self.reward = None if str(cfg.reward) == "none" else str(cfg.reward)
        self.reward_weight = cfg.reward_weight if self.reward else 0.0
        self.reward_baseline = str(cfg.reward_baseline)
        self.reward_remove_bpe = None if cfg.reward_remove_bpe == "none" else cfg.reward_remove_bpe

        self.rollout_pool = cfg.rollout_pool or cfg.rollout_pool_updates > 1
        self.rollout_pool_updates = cfg.rollout_pool_updates
        self.rollout_replay = cfg.rollout_replay
        replay_share = cfg.rollout_replay_share if cfg.rollout_replay else "0"
        self._replay_schedule = parse_schedule(replay_share, self._end, "--rollout-replay-share", end_flag)
        self.rollout_cuda_graphs = cfg.rollout_cuda_graphs
        self.rollout_policy = RolloutPolicy(
            name=str(cfg.rollout_policy),
            topk=cfg.rollout_topk,
            topp=cfg.rollout_topp,
            temperature=cfg.rollout_temperature,
            teacher_topk=cfg.rollout_teacher_topk,
            max_len_a=cfg.rollout_max_len_a,
            max_len_b=cfg.rollout_max_len_b,
        )

    def student_share(self, update_num: int) -> float:
        """The share of sentences that the student writes, at an update (0 = first)."""
        return self.share_schedule(self._now(update_num))

    def gold_weight(self, update_num: int) -> float:
        """The weight of the reference's negative log-likelihood on data rows, at an update."""
        return self._gold_schedule(self._now(update_num))

    def replay_share(self, update_num: int) -> float:
        """The share of the student's sentences that are rollouts of earlier updates."""
        return self._replay_schedule(self._now(update_num))

    def annealing(self, update_num: int) -> float:
        """``1 - (T - 1) / T_max`` with ``T = T_max, ..., 1`` in equal times (Jafari et al. 2021, section 3.1)."""
        highest = self._annealing_temperature
        done = self._now(update_num) / (self._end * self._annealing_end) if self._end > 0 else 1.0
        temperature = max(1, highest - int(done * highest + 1e-9))
        return 1.0 - (temperature - 1) / highest

    def needs_teacher(self, update_num: int) -> bool:
        """Whether an update's loss has a term of the teacher at all."""
        return self.gold_weight(update_num) < 1.0 or self.student_share(update_num) > 0.0

    @property
    def of_logits(self) -> bool:
        """Whether the divergence compares logits as they are, not the distributions that they stand for."""
        return self._divergence_name == "logit-mse"

    @property
    def writes(self) -> bool:
        """Whether anyone writes sentences in training: the student, or the teacher."""
        never = not isinstance(self.share_schedule, AdaptiveShare) and self.share_schedule(self._end) == 0.0
        return self.teacher_samples or not never

    @property
    def needs_whole_batches(self) -> bool:
        """Whether a token's loss depends on the batch's others, so that a batch can't be learnt from in parts."""
        return "is_hard" in self._inputs

    def chunk(self, model: torch.nn.Module, target: Tensor) -> int:
        """How many positions' logits are in memory at once, for a batch ``(B, T)``; 0 is all of them."""
        decoder = None if self._classifies else getattr(unwrapped(model), "decoder", None)
        projection = output_projection(decoder) if decoder is not None else None
        if projection is None:
            return 0
        return chunk_size(target.numel(), projection[0].size(0), target.device, self.loss_chunk)

    def forward(
        self, model: BaseFairseqModel, sample: Batch, reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Score one batch.

        Args:
            model: the student, wrapped or not.
            sample: a fairseq batch; in training with a :class:`Distillation` under its own key.
            reduce: False returns the loss of each counted token, ``(N,)``, instead of their sum.

        Returns:
            the loss in nats, ``()`` or ``(N,)``; the count it was taken over, of ``N`` target tokens or of sentences; and
            figures to log, all of them sums, under the same keys and types whatever the batch.

        Raises:
            RefusedUpdate: the loss is not finite.
        """
        chunk = self.chunk(model, sample["target"]) if reduce else 0
        batch = self._batch(sample, only_counted=chunk > 0)
        if chunk:
            decoder = unwrapped(model).decoder
            with features_for_logits(decoder):
                features = self._run(model, sample)
            weight, bias = output_projection(decoder)  # type: ignore[misc]  # chunk() made sure of it
            scores: TokenLogits = ProjectedLogits(features[batch.positions], weight, bias)
        else:
            scores = WholeLogits(full_precision(self._run(model, sample)))
        batch = self._with_inputs(batch, scores, chunk)
        if isinstance(scores, ProjectedLogits):
            loss, found = chunked_loss(scores, partial(self._token_loss, batch), chunk)
        else:
            losses, found = self._token_loss(batch, scores.logits(slice(None)), slice(None))
            loss = losses.sum() if reduce else losses[batch.counted]
            found = {name: value.detach() for name, value in found.items()}
        if not torch.isfinite(loss.detach()).all():
            raise RefusedUpdate(
                _what_is_not_finite(sample, batch, scores, found["loss"], self._divergence_name)
            )
        logged = metrics.of_batch(
            sample,
            batch.counted,
            batch.is_rollout,
            found,
            batch.distillation,
            self._by_sentence and batch.distillation is not None,
        )
        return loss, logged["sample_size"], logged

    def _batch(self, sample: Batch, only_counted: bool) -> "_Positions":
        """The loss's terms at all positions of a batch, or at the counted ones."""
        target, distillation = sample["target"], sample.get(DISTILLATION)
        gold = target.flatten()
        counted = gold.ne(self.padding_idx)
        positions = counted.nonzero().squeeze(-1) if only_counted else None
        rows = torch.arange(target.size(0), device=target.device).unsqueeze(-1).expand_as(target).flatten()
        if positions is not None:
            gold, rows, counted = gold[positions], rows[positions], counted[positions]
        batch = _Positions(target, gold, counted, torch.zeros_like(counted), rows, positions, distillation)
        if distillation is None:
            return batch
        batch.is_rollout = distillation.is_rollout[rows] & counted
        batch.gold_weight = self.gold_weight(distillation.update_num)
        batch.teacher = distillation.teacher
        if positions is not None and batch.teacher is not None:
            batch.teacher = batch.teacher.at(positions)
        if distillation.advantages is not None:
            batch.advantages = distillation.advantages[rows]
        if self._by_sentence:
            batch.scale = 1.0 / target.ne(self.padding_idx).sum(dim=-1).clamp(min=1)[rows]
        return batch

    def _with_inputs(self, batch: "_Positions", student: TokenLogits, chunk: int) -> "_Positions":
        """The same with the tensors that the divergence asks for beside logits; some take a pass over them beforehand."""
        if batch.teacher is None:
            return batch
        if "target" in self._inputs:
            batch.inputs["target"] = batch.gold
        if "is_rollout" in self._inputs:
            batch.inputs["is_rollout"] = batch.is_rollout
        if "is_hard" in self._inputs:
            unsure = -token_lprobs(batch.teacher, batch.gold, chunk)
            median = unsure[batch.counted].nanmedian() if bool(batch.counted.any()) else unsure.new_zeros(())
            batch.inputs["is_hard"] = unsure >= median
            batch.inputs["token_weight"] = self._of_easy_and_hard(batch.inputs["is_hard"], batch.counted)
        if "mixture_weight" in self._inputs:
            batch.inputs["mixture_weight"] = torch.full_like(batch.gold, 0.5, dtype=torch.float32)
            if self._exact_mixture:
                ahead = token_lprobs(batch.teacher, batch.gold, chunk) - token_lprobs(
                    student, batch.gold, chunk
                )
                batch.inputs["mixture_weight"] = batch.before(ahead).sigmoid()
        return batch

    def _of_easy_and_hard(self, is_hard: Tensor, counted: Tensor) -> Tensor:
        """``(N,)``: weights by which a mean over all tokens is ``w`` times that over the easy and ``1 - w`` over the hard."""
        hard, count = (is_hard & counted).sum().double(), counted.sum().double()
        of_easy = self._easy_weight * count / (count - hard).clamp(min=1)
        of_hard = (1.0 - self._easy_weight) * count / hard.clamp(min=1)
        return torch.where(is_hard, of_hard, of_easy)

    def _token_loss(self, batch: "_Positions", student_logits: Tensor, at: slice) -> tuple[Tensor, Figures]:
        """The loss to add up at ``n`` positions of a batch, ``(n, V) -> (n,)``, and figures of each."""
        logits = full_precision(student_logits)
        gold, counted, is_rollout = batch.gold[at], batch.counted[at], batch.is_rollout[at]
        on_data, on_rollouts = (
            1.0 - batch.gold_weight,
            1.0 - self.reward_weight if batch.advantages is not None else 1.0,
        )
        reinforced: Tensor | None = None
        if batch.gold_weight > 0.0 or batch.advantages is not None:
            nll = F.cross_entropy(logits, gold, reduction="none")
            loss = (batch.gold_weight * self._smoothed(logits, nll, batch)).masked_fill(is_rollout, 0.0)
            if batch.advantages is not None:
                advantages = self.reward_weight * batch.advantages[at].to(logits.dtype)
                reinforced = (advantages * nll).masked_fill(~is_rollout, 0.0)
        else:
            with torch.no_grad():  # only to log: no N x V tensor for it
                nll = logits.logsumexp(dim=-1) - logits.gather(-1, gold.unsqueeze(-1)).squeeze(-1)
            loss = torch.zeros_like(nll)
        found = {"nll": nll.detach()}
        if batch.teacher is not None:
            teacher_logits = batch.teacher.logits(at)
            # What a teacher says where it is not asked (NaN at padding, in half precision) would reach the gradient: 0 * NaN.
            unasked = ~counted if on_data > 0.0 else ~counted | ~is_rollout
            if batch.positions is None or on_data == 0.0:
                teacher_logits = teacher_logits.index_fill_(0, unasked.nonzero().squeeze(-1), 0.0)
            found["asked"] = ~unasked
            found["agrees"] = (most_probable(logits.detach()) == most_probable(teacher_logits)) & ~unasked
            divergence = self._taken(batch, logits, teacher_logits, at)
            if on_data == on_rollouts == 1.0:
                loss = loss + divergence
            else:
                loss = loss + divergence * torch.full_like(divergence, on_data).masked_fill_(
                    is_rollout, on_rollouts
                )
        # Padding has its loss computed with the rest: to take its logits out would copy all others, forth and back.
        loss = loss.masked_fill(~counted, 0.0)
        total = loss if batch.scale is None else loss * batch.scale[at].to(loss.dtype)
        if reinforced is not None:  # of a sentence's whole log-probability, so no mean over its tokens
            loss, total = loss + reinforced, total + reinforced
        found["loss"] = loss.detach()
        if self._classifies:
            found["correct"] = logits.detach().argmax(dim=-1) == gold
        return total, found

    def _smoothed(self, logits: Tensor, nll: Tensor, batch: "_Positions") -> Tensor:
        """The references' NLL, smoothed as fairseq does: every other symbol has a share of ``label_smoothing / (V - 1)``."""
        if batch.distillation is None or self._label_smoothing == 0.0:
            return nll
        smoothing = self._label_smoothing * logits.size(-1) / (logits.size(-1) - 1)
        uniform = logits.logsumexp(dim=-1) - logits.mean(dim=-1)
        return nll + smoothing * (uniform - nll)

    def _taken(
        self, batch: "_Positions", student_logits: Tensor, teacher_logits: Tensor, at: slice
    ) -> Tensor:
        """The divergence at ``n`` positions, ``(n, V), (n, V) -> (n,)``, of distributions at the temperatures asked for."""
        assert batch.distillation is not None
        if self._student_temperature != 1.0:
            student_logits = student_logits / self._student_temperature
        if self._teacher_temperature != 1.0:
            teacher_logits = full_precision(teacher_logits) / self._teacher_temperature
        if 0 < self._teacher_topk < teacher_logits.size(-1):
            student_logits, teacher_logits = most_probable_only(
                student_logits, teacher_logits, self._teacher_topk, self._teacher_tail
            )
        settings = dict(self._settings)
        if self._anneals:
            settings["annealing"] = self.annealing(batch.distillation.update_num)
        inputs = {name: values[at] for name, values in batch.inputs.items()}
        divergence = self._divergence(student_logits, teacher_logits, **settings, **inputs)
        # The gradient of distributions at a temperature T shrinks with its square (Hinton et al. 2015, section 2.1).
        return divergence if self._student_temperature == 1.0 else divergence * self._student_temperature**2

    def _now(self, update_num: int) -> int:
        return self.epoch - 1 if self._by_epoch else update_num

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Turn the summed figures of all processes and micro-batches into fairseq's meters."""
        metrics.log(logging_outputs)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """True: every figure is a sum, so fairseq adds them up without pickling."""
        return True


@dataclass
class _Positions:
    """What the loss of a batch is made of, at its ``P`` positions: all, or the counted ones.

    Args:
        target: ``(B, T)``.
        gold: ``(P,)``, the target symbols.
        counted: ``(P,)`` bool, no padding.
        is_rollout: ``(P,)`` bool, counted positions of the student's sentences.
        rows: ``(P,)``, whose sentence each is.
        positions: ``(P,)``, which of the ``B * T`` they are; None is all.
    """

    target: Tensor
    gold: Tensor
    counted: Tensor
    is_rollout: Tensor
    rows: Tensor
    positions: Tensor | None
    distillation: Optional[Distillation]
    gold_weight: float = 1.0
    teacher: TokenLogits | None = None
    advantages: Tensor | None = None
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        self.inputs: dict[str, Tensor] = {}

    def before(self, values: Tensor) -> Tensor:
        """The sums of ``(P,)`` values over each position's prefix: those of earlier positions of the same sentence."""
        grid = values.new_zeros(self.target.numel())
        if self.positions is None:
            grid = values.masked_fill(~self.counted, 0.0)
        else:
            grid[self.positions] = values
        sums = grid.view_as(self.target).cumsum(dim=-1).flatten() - grid
        return sums if self.positions is None else sums[self.positions]


def _moves(share: Schedule, end: int) -> bool:
    """Whether it is another at the end of a training than at its beginning."""
    return not isinstance(share, AdaptiveShare) and share(0) != share(end)


def _what_is_not_finite(
    sample: Batch, batch: _Positions, student: TokenLogits, losses: Tensor, divergence: str
) -> str:
    """Which sentences of a batch have a loss that is no number, and through whose fault, in one line."""
    broken = (~losses.isfinite() & batch.counted).nonzero().squeeze(-1)
    ids = sample["id"][batch.rows[broken].unique()].tolist() if broken.numel() else []
    where = ", ".join(map(str, ids[:8])) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    first = slice(int(broken[0]), int(broken[0]) + 1) if broken.numel() else slice(0, 1)
    if not bool(student.logits(first).isfinite().all()):
        who = "the student's logits are not finite; a smaller --lr or --clip-norm may help"
    elif batch.teacher is not None and bool(
        batch.teacher.logits(first).isnan().any() | (batch.teacher.logits(first) == torch.inf).any()
    ):
        who = "the teacher's logits are not finite; --teacher-dtype fp32 may help"
    elif batch.teacher is not None:
        who = f"--divergence {divergence} is not finite there, though the logits are; choose another"
    else:
        who = "the loss is too large to be a number"
    number = f"update {batch.distillation.update_num + 1}" if batch.distillation is not None else "this batch"
    return f"{number} is refused: the loss of sentence {where or '?'} is no finite number: {who}"


def _run(model: torch.nn.Module, sample: Batch) -> Tensor:
    """A student's logits, or hidden states, at all ``B * T`` positions."""
    return model(**sample["net_input"])[0].flatten(0, 1)


def _task_name(task: Any) -> str:
    return getattr(getattr(task, "cfg", None), "_name", None) or type(task).__name__
