"""The one criterion of every method: it turns a batch with the teacher's logits into a summed loss and its
count.

It holds neither a model nor a teacher. fairseq's trainer divides the summed gradient by the summed count
once, over all processes and micro-batches.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion
from fairseq.models import BaseFairseqModel
from fairseq.tasks import TASK_REGISTRY
from torch import Tensor

from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.errors import RefusedUpdate, UsageError
from fairseq_imitkd.losses import metrics
from fairseq_imitkd.losses.chunked import TokenValues, chunked_loss
from fairseq_imitkd.losses.divergences import DIVERGENCES, most_probable_only, needs
from fairseq_imitkd.losses.hidden_match import HiddenMatch
from fairseq_imitkd.losses.regression import squared_error, with_zeros
from fairseq_imitkd.losses.token_weights import CONFIDENCES, DifficultyQueue, is_among_hardest
from fairseq_imitkd.method.config import DistillationConfig
from fairseq_imitkd.method.method import Method, Moment
from fairseq_imitkd.models.access import features_for_logits, output_projection, unwrapped
from fairseq_imitkd.models.encoding import kept_outputs, mean_over_time
from fairseq_imitkd.models.logits import (
    ProjectedLogits,
    TokenLogits,
    WholeLogits,
    chunk_size,
    full_precision,
    token_lprobs,
)
from fairseq_imitkd.vocab_ops import most_probable

logger = logging.getLogger(__name__)

# The key under which a training batch carries its Distillation.
DISTILLATION = "distillation"


@dataclass(frozen=True)
class Distillation:
    """What a training batch of ``B`` sentences and ``T`` target positions has beside fairseq's own keys.

    Args:
        teacher: the teacher's logits at all ``B * T`` positions, row by row. The criterion may overwrite them
            at padding. None if the update does not need a teacher.
        is_rollout: ``(B,)`` bool: the student wrote the target.
        truncated: ``(B,)`` bool: the target is a rollout that the maximum length cut.
        now: the method's schedules at this update.
        advantages: ``(B,)``, each rollout's reward minus the baseline; under ``--loss-average token`` times
            the tokens per sentence of the whole batch. None without rewards.
        observe: called with the teacher's most probable tokens, ``(B, T)``; at positions where the loss
            ignores the teacher they mean nothing. None is not called.
        difficulties: the difficulties of recent tokens, under ``--token-selection queue``.
        sentence_vectors: ``(B, D)``, the means of the teacher's encoder outputs, under ``--hidden-match``.
        can_skip: the optimizer skips an update whose gradient is not finite, and lowers its loss scale.
    """

    teacher: TokenLogits | None
    is_rollout: Tensor
    truncated: Tensor
    now: Moment
    advantages: Tensor | None = None
    observe: Callable[[Tensor], None] | None = None
    difficulties: DifficultyQueue | None = None
    sentence_vectors: Tensor | None = None
    can_skip: bool = False


class DistillationCriterion(metrics.LogsSums, FairseqCriterion):
    """Summed distillation loss over the tokens of data sentences and rollouts.

    At each position of a data sentence the loss is ``gold_weight * NLL(reference) + (1 - gold_weight) *
    divergence`` (Kim & Rush 2016, section 3.1). At each position of a rollout it is the divergence; with a
    reward it is ``reward_weight * advantage * NLL(rollout) + (1 - reward_weight) * divergence`` (Agarwal et
    al. 2023, equation 4, by REINFORCE). In validation, and in filler batches, it is the references' negative
    log-likelihood. Where scores are learned (``--regression-target``), the squared error to the label
    replaces the NLL, and a sentence without a label has the divergence alone.

    Args:
        cfg: the method's settings.
        task: a task with a teacher (see :class:`~fairseq_imitkd.tasks.with_teacher.WithTeacher`).

    Raises:
        UsageError: a setting is out of range or can't be used with another, or the task has no teacher.
    """

    Config: type[DistillationConfig] = DistillationConfig

    def __init__(self, cfg: DistillationConfig, task: Any):
        super().__init__(task)
        name = getattr(cfg, "_name", None) or "distillation"
        if not getattr(task, "has_teacher", False):
            raise UsageError(no_teacher(name, _task_name(task)))
        self.method = Method(name, cfg, self.Config())
        task.check_method(self.method)
        self.padding_idx = task.uncounted
        self._run_student = task.run_student
        self._logs_accuracy, self._regresses = task.logs_accuracy, task.regresses
        # With --find-unused-parameters torch searches the forward pass for the parameters that are used.
        # Chunks use the output matrix outside it.
        self._loss_chunk = -1 if cfg.find_unused_parameters or not task.decodes else cfg.loss_chunk

        self._divergence_name, self._divergence = cfg.divergence, DIVERGENCES[cfg.divergence]
        self._inputs, settings = needs(self._divergence)
        self._anneals = "annealing" in settings
        self._settings = {setting: getattr(cfg, setting) for setting in settings - {"annealing"}}
        self._exact_mixture = str(cfg.js_weights) == "exact"
        self._easy_weight = cfg.easy_weight
        self._selection, self._selected_share = str(cfg.token_selection), cfg.selected_share
        self._confidence = CONFIDENCES.get(str(cfg.rollout_confidence))
        self._student_temperature, self._teacher_temperature = (
            cfg.student_temperature,
            cfg.teacher_temperature,
        )
        self._teacher_topk, self._teacher_tail = cfg.teacher_topk, str(cfg.teacher_tail)
        self._label_smoothing = cfg.label_smoothing
        self._by_sentence = str(cfg.loss_average) == "sentence"
        self._reward_weight = cfg.reward_weight
        self.hidden_match: HiddenMatch | None = None  # see begin_matching

    def begin_matching(self, student_width: int, teacher_width: int) -> None:
        """Make the projection of ``--hidden-match``, before the optimizer is built.

        Args:
            student_width, teacher_width: features of the encoders' outputs.
        """
        cfg = self.method.cfg
        self.hidden_match = HiddenMatch(
            (student_width, teacher_width), distance=str(cfg.hidden_match_distance), seed=cfg.seed
        )

    def load_state_dict(self, state_dict: Mapping[str, Any] | None, *more: Any, **kwargs: Any) -> Any:
        """Continue with the projection of a checkpoint.

        One whose weights alone are the start may have none, or that of a teacher of another width. Then a new
        projection is learned.
        """
        own = {name: tensor.shape for name, tensor in self.state_dict().items()}
        if state_dict is None or own != {name: tensor.shape for name, tensor in state_dict.items()}:
            which = "no projection" if state_dict is None else "a projection of another width"
            logger.info("the checkpoint has %s of --hidden-match, so a new one is learned", which)
            return None
        return super().load_state_dict(state_dict, *more, **kwargs)

    def chunk(self, model: torch.nn.Module, target: Tensor) -> int:
        """Return the number of positions per chunk for targets ``(B, T)``; 0 computes all logits at once."""
        if self._loss_chunk < 0:
            return 0
        decoder = getattr(unwrapped(model), "decoder", None)
        projection = output_projection(decoder) if decoder is not None else None
        if projection is None:
            return 0
        return chunk_size(target.numel(), projection[0].size(0), target.device, asked=self._loss_chunk)

    def forward(
        self, model: BaseFairseqModel, sample: Batch, reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Compute the loss of one batch.

        Args:
            model: the student, wrapped or not.
            sample: a fairseq batch; in training it has a :class:`Distillation` under the key
                ``DISTILLATION``.
            reduce: False returns the loss of each counted token, ``(N,)``, instead of their sum.

        Returns:
            the loss in nats, ``()`` or ``(N,)``; its count, which is the number of target tokens or of
            sentences; and sums to log, with the same keys and types for every batch.

        Raises:
            RefusedUpdate: the loss is not finite, and the optimizer can't skip the update, or the student is
                not the cause.
        """
        chunk = self.chunk(model, sample["target"]) if reduce else 0
        positions = self._positions(sample, only_counted=chunk > 0)
        with kept_outputs(unwrapped(model).encoder if self._matches(positions) else None) as encoded:
            student = self._student_logits(model, sample, positions, chunked=chunk > 0)
        self._add_inputs(positions, student, chunk)
        if isinstance(student, ProjectedLogits):
            loss, values = chunked_loss(student, partial(self._token_loss, positions), chunk)
        else:
            losses, values = self._token_loss(positions, student.logits(slice(None)), slice(None))
            loss = losses.sum() if reduce else losses[positions.counted]
            values = {name: value.detach() for name, value in values.items()}
        if self.hidden_match is not None:
            matched = self._matching_loss(positions, encoded, values)
            loss = loss + (matched.sum() if reduce else matched[positions.counted])
        is_finite, tokens = torch.stack([loss.detach().isfinite().all(), positions.counted.sum()]).tolist()
        if not is_finite:
            self._refuse_or_warn(sample, positions, student, losses=values["loss"])
            loss = loss * math.nan  # so is the gradient, in all processes, and the optimizer skips the update
        distillation = positions.distillation
        if distillation is not None and distillation.observe is not None and "teacher_token" in values:
            distillation.observe(positions.grid(values["teacher_token"]))
        logged = metrics.batch_sums(
            sample,
            values,
            counted=positions.counted,
            tokens=tokens,
            is_rollout=positions.is_rollout,
            distillation=distillation,
            by_sentence=self._by_sentence and distillation is not None,
            pad=self.padding_idx,
        )
        return loss, logged["sample_size"], logged

    def _positions(self, sample: Batch, only_counted: bool) -> "_Positions":
        """Collect what the loss reads at all positions of a batch, or at the counted ones alone."""
        target, distillation = sample["target"], sample.get(DISTILLATION)
        gold = target.flatten()
        counted = gold.ne(self.padding_idx)
        lacks_label = None
        if self._regresses:
            gold, lacks_label = with_zeros(gold)
            has_teacher = distillation is not None and distillation.teacher is not None
            counted = torch.ones_like(counted) if has_teacher else ~lacks_label
        indices = counted.nonzero().squeeze(-1) if only_counted else None
        rows = torch.arange(target.size(0), device=target.device).unsqueeze(-1).expand_as(target).flatten()
        if indices is not None:
            gold, rows, counted = gold[indices], rows[indices], counted[indices]
        none = torch.zeros_like(counted)
        lacks_reference = none if lacks_label is None else lacks_label  # a task that regresses has no chunks
        positions = _Positions(target, gold, counted, none, lacks_reference, rows, indices, distillation)
        if distillation is None:
            return positions
        positions.is_rollout = distillation.is_rollout[rows] & counted
        if lacks_label is None:  # a score is not written, so a task that regresses has no rollouts
            positions.lacks_reference = positions.is_rollout
        positions.gold_weight = distillation.now.gold_weight
        positions.teacher = distillation.teacher
        if indices is not None and positions.teacher is not None:
            positions.teacher = positions.teacher.at(indices)
        if distillation.advantages is not None:
            positions.advantages = distillation.advantages[rows]
        if self._by_sentence:
            positions.scale = 1.0 / target.ne(self.padding_idx).sum(dim=-1).clamp(min=1)[rows]
        return positions

    def _student_logits(
        self, model: BaseFairseqModel, sample: Batch, positions: "_Positions", *, chunked: bool
    ) -> TokenLogits:
        """Run the student. With chunks its logits are computed later, from the hidden states."""
        if not chunked:
            return WholeLogits(full_precision(self._run_student(model, sample)))
        decoder = unwrapped(model).decoder
        with features_for_logits(decoder):
            features = self._run_student(model, sample)
        weight, bias = output_projection(decoder)  # type: ignore[misc]  # chunk() returned 0 otherwise
        return ProjectedLogits(features[positions.indices], weight, bias)

    def _matches(self, positions: "_Positions") -> bool:
        """Whether the batch's loss has the term of ``--hidden-match``."""
        return positions.distillation is not None and positions.distillation.sentence_vectors is not None

    def _matching_loss(self, positions: "_Positions", encoded: list[Any], values: TokenValues) -> Tensor:
        """Return the term of ``--hidden-match`` at all positions, ``(P,)``, and add it to the logged values.

        Each token has the distance of its sentence. So distances are averaged as tokens are: over all tokens,
        or per sentence first.

        Args:
            positions: the batch's positions.
            encoded: what the student's encoder has returned.
            values: values to log at the positions.
        """
        assert self.hidden_match is not None
        distance = torch.zeros_like(values["loss"])
        if self._matches(positions):
            teacher = cast(Any, positions.distillation).sentence_vectors
            found = self.hidden_match(mean_over_time(encoded[-1]), teacher)
            distance = found[positions.rows].masked_fill(~positions.counted, 0.0)
        else:  # distributed wrappers expect a gradient of all weights
            distance = distance + 0.0 * sum(part.sum() for part in self.hidden_match.parameters())
        loss = self.method.cfg.hidden_match * distance
        values["hidden_match"] = distance.detach()
        values["loss"] = values["loss"] + loss.detach()
        return loss if positions.scale is None else loss * positions.scale.to(loss.dtype)

    def _add_inputs(self, positions: "_Positions", student: TokenLogits, chunk: int) -> None:
        """Compute the tensors that the divergence reads beside logits (see ``divergences.TOKEN_INPUTS``)."""
        if positions.teacher is None:
            return
        if "target" in self._inputs:
            positions.inputs["target"] = positions.gold
        if "is_rollout" in self._inputs:
            positions.inputs["is_rollout"] = positions.is_rollout
        if "is_hard" in self._inputs:
            uncertainty = -token_lprobs(positions.teacher, positions.gold, chunk)
            median = (
                uncertainty[positions.counted].nanmedian()
                if bool(positions.counted.any())
                else uncertainty.new_zeros(())
            )
            is_hard = uncertainty >= median
            positions.inputs["is_hard"] = is_hard
            positions.inputs["token_weight"] = self._easy_and_hard_weights(is_hard, positions.counted)
        if "mixture_weight" in self._inputs:
            positions.inputs["mixture_weight"] = torch.full_like(positions.gold, 0.5, dtype=torch.float32)
            if self._exact_mixture:
                difference = token_lprobs(positions.teacher, positions.gold, chunk) - token_lprobs(
                    student, positions.gold, chunk
                )
                positions.inputs["mixture_weight"] = positions.prefix_sums(difference).sigmoid()
        if self._selection != "all" and self.training:  # the queue is of training batches alone
            positions.selected = self._hardest(positions, -token_lprobs(student, positions.gold, chunk))

    def _hardest(self, positions: "_Positions", difficulty: Tensor) -> Tensor:
        """Return at which positions, ``(P,)`` bool, the loss compares with the teacher.

        The difficulty ``(P,)`` of a position is the cross-entropy of its target under the student.
        """
        compared = positions.counted if positions.gold_weight < 1.0 else positions.is_rollout
        pool = difficulty[compared]
        if self._selection == "queue":
            queue = positions.distillation.difficulties if positions.distillation else None
            assert queue is not None
            pool = queue.add(pool)
        return is_among_hardest(difficulty, pool, self._selected_share)

    def _easy_and_hard_weights(self, is_hard: Tensor, counted: Tensor) -> Tensor:
        """Return weights ``(N,)`` that turn a mean over all tokens into ``w * mean(easy) + (1 - w) *
        mean(hard)``.
        """
        hard, count = (is_hard & counted).sum().double(), counted.sum().double()
        easy_weight = self._easy_weight * count / (count - hard).clamp(min=1)
        hard_weight = (1.0 - self._easy_weight) * count / hard.clamp(min=1)
        return torch.where(is_hard, hard_weight, easy_weight)

    def _token_loss(
        self, positions: "_Positions", student_logits: Tensor, at: slice
    ) -> tuple[Tensor, TokenValues]:
        """Return the loss at ``n`` positions of a batch, ``(n, V) -> (n,)``, and ``(n,)`` values to log."""
        logits, part = full_precision(student_logits), positions.part(at)
        loss, nll, reinforced = self._reference_loss(part, logits)
        values = {"squared_error" if self._regresses else "nll": nll.detach()}
        if positions.teacher is not None:
            divergence = self._teacher_loss(part, logits, positions.teacher.logits(at), values=values)
            on_data, on_rollouts = 1.0 - positions.gold_weight, 1.0
            if positions.advantages is not None:
                on_rollouts = 1.0 - self._reward_weight
            if on_data == on_rollouts == 1.0:
                loss = loss + divergence
            else:
                weight = torch.full_like(divergence, on_data).masked_fill_(part.lacks_reference, on_rollouts)
                loss = loss + divergence * weight
        elif part.distillation is not None and part.gold_weight == 0.0:  # --hidden-match-only
            loss = 0.0 * logits[:, 0]  # chunks and distributed wrappers expect a gradient
        # Padding is computed too, then masked: indexing it away would copy all logits twice.
        loss = loss.masked_fill(~part.counted, 0.0)
        total = loss if part.scale is None else loss * part.scale.to(loss.dtype)
        if reinforced is not None:  # REINFORCE weighs a sentence's log-probability, a sum and not a mean
            loss, total = loss + reinforced, total + reinforced
        values["loss"] = loss.detach()
        if self._regresses:
            values["labelled"] = part.counted & ~part.lacks_reference
        if self._logs_accuracy:
            values["correct"] = logits.detach().argmax(dim=-1) == part.gold
        return total, values

    def _reference_loss(self, part: "_Positions", logits: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the weighted NLL of data tokens, the NLL of all tokens, and the REINFORCE term, ``(n,)``
        each. Where scores are learned, the NLL is the squared error to the label.
        """
        if self._regresses:
            error = squared_error(logits, part.gold).masked_fill(part.lacks_reference, 0.0)
            return part.gold_weight * error, error, None
        if part.gold_weight == 0.0 and part.advantages is None:
            with torch.no_grad():  # only to log, without an N x V tensor
                nll = logits.logsumexp(dim=-1) - logits.gather(-1, part.gold.unsqueeze(-1)).squeeze(-1)
            return torch.zeros_like(nll), nll, None
        nll = F.cross_entropy(logits, part.gold, reduction="none")
        loss = (part.gold_weight * self._smoothed(logits, nll, part)).masked_fill(part.is_rollout, 0.0)
        if part.advantages is None:
            return loss, nll, None
        advantages = self._reward_weight * part.advantages.to(logits.dtype)
        return loss, nll, (advantages * nll).masked_fill(~part.is_rollout, 0.0)

    def _smoothed(self, logits: Tensor, nll: Tensor, part: "_Positions") -> Tensor:
        """Return the NLL with fairseq's label smoothing, which gives every other symbol ``label_smoothing /
        (V - 1)``.
        """
        if part.distillation is None or self._label_smoothing == 0.0:
            return nll
        smoothing = self._label_smoothing * logits.size(-1) / (logits.size(-1) - 1)
        uniform = logits.logsumexp(dim=-1) - logits.mean(dim=-1)
        return nll + smoothing * (uniform - nll)

    def _teacher_loss(
        self, part: "_Positions", logits: Tensor, teacher_logits: Tensor, *, values: TokenValues
    ) -> Tensor:
        """Return the divergence at ``n`` positions, ``(n,)``.

        Add to ``values`` where the loss compares the student with the teacher, and where both find the same
        token most probable.
        """
        # Where the loss ignores the teacher's logits, they are set to 0. In half precision they can be NaN at
        # padding, and 0 * NaN would reach the gradient.
        ignored = ~part.counted if part.gold_weight < 1.0 else ~part.counted | ~part.is_rollout
        if part.indices is None or part.gold_weight == 1.0:
            teacher_logits = _with_zeros_at(ignored, teacher_logits)
        values["compared"] = ~ignored
        teacher_token = most_probable(teacher_logits)
        values["agrees"] = (most_probable(logits.detach()) == teacher_token) & ~ignored
        if part.distillation is not None and part.distillation.observe is not None:
            values["teacher_token"] = teacher_token
        assert part.distillation is not None
        divergence = self._divergence_of(
            logits, teacher_logits, now=part.distillation.now, inputs=part.inputs
        )
        if part.selected is not None:
            divergence = divergence * part.selected
        if self._confidence is not None:
            confidence = self._confidence(teacher_logits).to(divergence)
            divergence = divergence * torch.where(part.is_rollout, confidence, 1.0)
        return divergence

    def _divergence_of(
        self, student_logits: Tensor, teacher_logits: Tensor, *, now: Moment, inputs: dict[str, Tensor]
    ) -> Tensor:
        """Return the divergence at the method's temperatures, ``(n, V), (n, V) -> (n,)``."""
        if self._student_temperature != 1.0:
            student_logits = student_logits / self._student_temperature
        if self._teacher_temperature != 1.0:
            teacher_logits = full_precision(teacher_logits) / self._teacher_temperature
        if 0 < self._teacher_topk < teacher_logits.size(-1):
            student_logits, teacher_logits = most_probable_only(
                student_logits, teacher_logits, self._teacher_topk, tail=self._teacher_tail
            )
        settings = dict(self._settings)
        if self._anneals:
            settings["annealing"] = now.annealing
        divergence = self._divergence(student_logits, teacher_logits, **settings, **inputs)
        # The gradient at a temperature T shrinks with its square (Hinton et al. 2015, section 2.1).
        if self._student_temperature == 1.0:
            return divergence
        return divergence * self._student_temperature**2

    def _refuse_or_warn(
        self, sample: Batch, positions: "_Positions", student: TokenLogits, *, losses: Tensor
    ) -> None:
        """Refuse an update whose loss is not finite; or warn, if the optimizer will skip it.

        fairseq's half precision skips it if the student's numbers overflow. It lowers the loss scale at each
        such update, and refuses the one at which the scale reaches its minimum.
        """
        where, broken = _sentences_of(sample, positions, losses)
        distillation = positions.distillation
        first = slice(int(broken[0]), int(broken[0]) + 1) if broken.numel() else slice(0, 1)
        teacher_logits = None if positions.teacher is None else positions.teacher.logits(first)
        vectors = None if distillation is None else distillation.sentence_vectors
        teacher_is_sound = teacher_logits is None or not bool(
            (teacher_logits.isnan() | (teacher_logits == torch.inf)).any()
        )
        update = "this batch" if distillation is None else f"update {distillation.now.update_num + 1}"
        if not bool(student.logits(first).isfinite().all()):
            if teacher_is_sound and distillation is not None and distillation.can_skip:
                logger.warning(
                    "%s is skipped: the student's logits are not finite in sentence %s; "
                    "the loss scale is lowered",
                    update,
                    where,
                )
                return
            cause = "the student's logits are not finite; a smaller --lr or --clip-norm may help"
        elif vectors is not None and not bool(vectors.isfinite().all()):
            cause = "the outputs of the teacher's encoder are not finite; --teacher-dtype fp32 may help"
        elif teacher_logits is None:
            cause = "the loss is too large for its number format"
        elif not teacher_is_sound:
            cause = "the teacher's logits are not finite; --teacher-dtype fp32 may help"
        else:
            cause = (
                f"--divergence {self._divergence_name} is not finite there, though the logits are; choose "
                "another"
            )
        raise RefusedUpdate(f"{update} is refused: the loss of sentence {where} is not finite: {cause}")


@dataclass
class _Positions:
    """What the loss reads at ``P`` positions of a batch: all ``B * T``, or the counted ones.

    Args:
        target: ``(B, T)``.
        gold: ``(P,)``, the target symbols.
        counted: ``(P,)`` bool, False at padding.
        is_rollout: ``(P,)`` bool, the counted positions of rollouts.
        lacks_reference: ``(P,)`` bool, the positions of rollouts, and of sentences without a label.
        rows: ``(P,)``, the sentence of each position.
        indices: ``(P,)``, their indices among the ``B * T`` positions; None means all.
        distillation: the batch's :class:`Distillation`; None in validation and in filler batches.
        gold_weight: weight of the reference's NLL in data sentences.
        teacher: the teacher's logits at the ``P`` positions.
        advantages: ``(P,)``, the advantage of each position's sentence.
        scale: ``(P,)``, factors that turn the sum over tokens into a sum of means per sentence; None keeps
            the sum over tokens.
        inputs: ``(P,)`` tensors by name, which the divergence reads beside logits.
        selected: ``(P,)`` bool, whether the position counts in the divergence; None selects all.
    """

    target: Tensor
    gold: Tensor
    counted: Tensor
    is_rollout: Tensor
    lacks_reference: Tensor
    rows: Tensor
    indices: Tensor | None
    distillation: Distillation | None
    gold_weight: float = 1.0
    teacher: TokenLogits | None = None
    advantages: Tensor | None = None
    scale: Tensor | None = None
    inputs: dict[str, Tensor] = field(default_factory=dict)
    selected: Tensor | None = None

    def part(self, at: slice) -> "_Positions":
        """Return what the loss reads at ``n`` of the positions, without the teacher's logits."""
        return replace(
            self,
            gold=self.gold[at],
            counted=self.counted[at],
            is_rollout=self.is_rollout[at],
            lacks_reference=self.lacks_reference[at],
            teacher=None,
            advantages=None if self.advantages is None else self.advantages[at],
            scale=None if self.scale is None else self.scale[at],
            inputs={name: values[at] for name, values in self.inputs.items()},
            selected=None if self.selected is None else self.selected[at],
        )

    def prefix_sums(self, values: Tensor) -> Tensor:
        """Return, for each position, the sum of ``(P,)`` values over the sentence's earlier positions."""
        grid = self.grid(values if self.indices is not None else values.masked_fill(~self.counted, 0.0))
        sums = grid.cumsum(dim=-1).flatten() - grid.flatten()
        return sums if self.indices is None else sums[self.indices]

    def grid(self, values: Tensor) -> Tensor:
        """Return ``(P,)`` values as a grid ``(B, T)``, with 0 at positions that were not computed."""
        if self.indices is None:
            return values.view_as(self.target)
        grid = values.new_zeros(self.target.numel())
        grid[self.indices] = values
        return grid.view_as(self.target)


def _sentences_of(sample: Batch, positions: "_Positions", losses: Tensor) -> tuple[str, Tensor]:
    """Return the ids of the sentences whose losses ``(P,)`` are not finite, and these positions."""
    broken = (~losses.isfinite() & positions.counted).nonzero().squeeze(-1)
    ids = sample["id"][positions.rows[broken].unique()].tolist() if broken.numel() else []
    more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
    return ", ".join(map(str, ids[:8])) + more or "?", broken


def unwrapped_criterion(criterion: Any) -> Any:
    """Return a criterion without its distributed wrappers, which it has if it has weights of its own."""
    while not isinstance(criterion, FairseqCriterion) and hasattr(criterion, "module"):
        criterion = criterion.module
    return criterion


def no_teacher(criterion: str, task: str) -> str:
    """Return the message that a criterion can't be used with a task, because it has no teacher.

    It names the one with a teacher, else all that have one, those of ``--user-dir`` too.
    """
    suffix = "_with_teacher"
    if f"{task}{suffix}" in TASK_REGISTRY:
        return f"--criterion {criterion} has no teacher in --task {task}: use --task {task}{suffix}"
    names = sorted(name for name, kind in TASK_REGISTRY.items() if getattr(kind, "has_teacher", False))
    kinds = ",".join(name.removesuffix(suffix) for name in names if name.endswith(suffix))
    use = ", ".join([f"{{{kinds}}}{suffix}", *(name for name in names if not name.endswith(suffix))])
    begin = f"--criterion {criterion} has no teacher in --task {task}: use"
    message = f"{begin} {use} (or CONTRIBUTING.md)"
    return message if len(message) <= 193 else f"{begin} a task that ends in {suffix} (or CONTRIBUTING.md)"


def _task_name(task: Any) -> str:
    """Return the name of a task as ``--task`` has it. Old tasks keep it in their arguments."""
    settings = getattr(task, "cfg", None) or getattr(task, "args", None)
    return getattr(settings, "_name", None) or getattr(settings, "task", None) or type(task).__name__


def _with_zeros_at(rows: Tensor, logits: Tensor) -> Tensor:
    """Set the rows ``(n, V)`` where ``(n,)`` is true to 0, in place."""
    if logits.is_cuda:  # to fill fewer elements, the host would wait for the number of rows
        return logits.masked_fill_(rows.unsqueeze(-1), 0.0)
    return logits.index_fill_(0, rows.nonzero().squeeze(-1), 0.0)
