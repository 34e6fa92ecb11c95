"""Criteria of students without a decoder (``--arch s2t_ctc``): ``speech_ctc``; ``ctc_kd`` with a teacher."""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from torch import Tensor

from fairseq_imitkd.criterion import DISTILLATION, DistillationCriterion
from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.losses import metrics
from fairseq_imitkd.losses.ctc import Frames, aligned_tokens
from fairseq_imitkd.losses.divergences import DIVERGENCES, needs
from fairseq_imitkd.method.config import DistillationConfig
from fairseq_imitkd.models.ctc import SpeechCTC
from fairseq_imitkd.vocab_ops import most_probable

# What frames can have of the settings of other methods.
_SETTINGS = {
    "divergence", "jsd_weight", "skew", "rank_topk", "entropy_threshold", "student_temperature",
    "teacher_temperature", "teacher_topk", "teacher_tail", "gold_weight", "schedule_by",
}  # fmt: skip


def _check_student(criterion: str, task: Any) -> None:
    student = getattr(task, "student", None)
    if student is not None and not isinstance(student, SpeechCTC):
        other = "word_kd" if criterion == "ctc_kd" else "cross_entropy"
        raise UsageError(
            f"--criterion {criterion} trains students without a decoder, but --arch builds a "
            f"{type(student).__name__}: use --arch s2t_ctc, or --criterion {other}"
        )


@dataclass
class SpeechCTCCriterionConfig(FairseqDataclass):
    """It has no settings."""


@register_criterion("speech_ctc", dataclass=SpeechCTCCriterionConfig)
class SpeechCTCCriterion(metrics.LogsSums, FairseqCriterion):
    """The CTC loss of the targets (Graves et al. 2006), without a teacher."""

    trains_ctc = True

    def __init__(self, task: Any):
        super().__init__(task)
        _check_student("speech_ctc", task)

    def forward(
        self, model: torch.nn.Module, sample: Batch, reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Return the summed loss, the number of tokens without their EOS, and sums to log."""
        found = Frames.of(model, sample, self.task.target_dictionary)
        tokens = int(found.counted.sum())
        loss = found.loss.sum() if reduce else found.per_token()[found.counted.flatten()]
        sums = {"loss": found.loss.detach().sum(), "nll_loss": found.loss.detach().sum()}
        counts = {"ntokens": tokens, "nsentences": len(found.tokens), "sample_size": tokens}
        return loss, tokens, {**sums, **counts, "tokens_data": tokens, "distilled_tokens": 0}


@dataclass
class CTCDistillationConfig(DistillationConfig):
    """Distillation from an autoregressive recogniser to one without a decoder (Gong et al. 2022).

    ``gold_weight`` weighs the CTC loss of the targets, and one minus it the divergence from the teacher. For
    the paper's knowledge of sequences, the targets are the teacher's own texts (SeqKD).
    """

    gold_weight: str = field(
        default="0.5", metadata=dict(DistillationConfig.__dataclass_fields__["gold_weight"].metadata)
    )


@register_criterion("ctc_kd", dataclass=CTCDistillationConfig)
class CTCDistillationCriterion(DistillationCriterion):
    """CTC loss of the targets, and the teacher's distribution at the frames of each token.

    The student's most probable path of the target says which frames a token has. At these frames the student
    is compared with the teacher's distribution of that token. A token's frames have a weight of one together.
    Gong et al. (2022) have objectives of frames and of sequences; their form here is not the paper's own.
    """

    Config = CTCDistillationConfig
    trains_ctc = True

    def __init__(self, cfg: CTCDistillationConfig, task: Any):
        super().__init__(cfg, task)
        _check_student("ctc_kd", task)
        own = self.Config()
        for item in fields(DistillationConfig):
            value, name = getattr(cfg, item.name), item.name
            is_changed = item.metadata.get("help") and str(value) != str(getattr(own, name))
            if is_changed and name not in _SETTINGS:
                raise UsageError(
                    f"--{name.replace('_', '-')} {value} can't be used with --criterion ctc_kd, whose "
                    "student has no decoder: leave it out"
                )
        if needs(DIVERGENCES[cfg.divergence])[0] or self._anneals:
            raise UsageError(
                f"--divergence {cfg.divergence} can't be used with --criterion ctc_kd: choose one that "
                "compares two distributions alone, such as forward-kl"
            )

    def forward(
        self, model: torch.nn.Module, sample: Batch, reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Compute the loss of one batch. See :meth:`DistillationCriterion.forward`; tokens have no EOS."""
        found, distillation = Frames.of(model, sample, self.task.target_dictionary), sample.get(DISTILLATION)
        gold_weight = 1.0 if distillation is None else distillation.now.gold_weight
        nll = found.per_token()
        losses, values = gold_weight * nll, {"nll": nll.detach()}
        if distillation is not None and distillation.teacher is not None:
            divergence, more = self._at_frames(found, sample)
            losses, values = losses + (1.0 - gold_weight) * divergence, {**values, **more}
        values["loss"], counted = losses.detach(), found.counted.flatten()
        loss = losses.sum() if reduce else losses[counted]
        logged = metrics.batch_sums(
            sample,
            values,
            counted=counted,
            tokens=int(counted.sum()),
            is_rollout=torch.zeros_like(counted),
            distillation=distillation,
            by_sentence=False,
            pad=self.padding_idx,
        )
        return loss, logged["sample_size"], logged

    def _at_frames(self, found: Frames, sample: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the divergence of each token, ``(B * T,)``, and values to log."""
        target, distillation = sample["target"], sample[DISTILLATION]
        places = aligned_tokens(
            found.lprobs, found.frames, target, tokens=found.tokens, blank=SpeechCTC.blank
        )
        rows, frames = (places >= 0).nonzero(as_tuple=True)
        token = rows * target.size(1) + places[rows, frames]  # which of the B * T tokens each frame has
        student = found.logits[rows, frames]
        teacher = distillation.teacher.at(token).logits(slice(None))
        divergence = self._divergence_of(student, teacher, now=distillation.now, inputs={})
        none = divergence.new_zeros(target.numel())
        number = none.index_add(0, token, torch.ones_like(divergence))  # of frames
        share = 1.0 / number[token]
        agrees = (most_probable(student.detach()) == most_probable(teacher)) * share
        values = {"compared": number > 0, "agrees": none.index_add(0, token, agrees)}
        return none.index_add(0, token, divergence * share), values
