"""The frozen teacher: one model or an ensemble that scores every prefix of a batch."""

import contextlib
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from fairseq import utils
from fairseq.models import BaseFairseqModel, FairseqEncoderDecoderModel
from fairseq.models.bart import BARTModel
from fairseq.models.lstm import LSTMModel
from fairseq.models.speech_to_text import S2TTransformerModel
from fairseq.models.transformer import TransformerModelBase
from torch import Tensor

from fairseq_imitkd.data.batch_type import Batch, teacher_input
from fairseq_imitkd.models.access import features_for_logits, output_projection
from fairseq_imitkd.models.encoding import encode, encoder_width, mean_over_time
from fairseq_imitkd.models.logits import (
    AveragedLogits,
    LaterLogits,
    ProjectedLogits,
    TokenLogits,
    WholeLogits,
    token_lprobs,
)
from fairseq_imitkd.rollout import Ensemble
from fairseq_imitkd.teacher import int8
from fairseq_imitkd.teacher.encoder_cache import EncoderCache
from fairseq_imitkd.teacher.subset import Outside

logger = logging.getLogger(__name__)

_ENCODER_INPUT = {"src_tokens", "src_lengths"}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Teacher:
    """One frozen model, or an ensemble whose members are averaged.

    A teacher is not a ``torch.nn.Module`` and is not part of one. So no optimizer, checkpoint or distributed
    wrapper sees its weights.

    Args:
        models: ``M`` encoder-decoder models over the student's dictionaries.
        dtype: precision of the teacher: ``fp32``, ``fp16``, ``bf16``, or ``auto`` for the student's; ``int8``
            is ``auto`` with the weights of linear layers in eight bits.
        cache: cache of encoder outputs; None encodes every batch anew.
        weights: ``M`` weights of the members that add up to 1; None weighs all members alike.
        device: device of the members; None is the student's. A teacher on another device can only score.
        outside: the symbols of the only member that the student lacks; None if there are none.
    """

    def __init__(
        self,
        models: Sequence[BaseFairseqModel],
        *,
        dtype: str = "auto",
        cache: EncoderCache | None = None,
        weights: Sequence[float] | None = None,
        device: torch.device | None = None,
        outside: Outside | None = None,
    ):
        self.outside = outside
        self.models = [_without_attention_weights(model.eval().requires_grad_(False)) for model in models]
        self.dtype = dtype
        self.cache = cache
        self.log_weights = torch.tensor(
            [math.log(weight) for weight in weights or [1.0 / len(models)] * len(models)]
        )
        self._device = device
        self._dtype: torch.dtype | None = None
        self._placed_on: torch.device | None = None
        self._students_device: torch.device | None = None
        self._outputs: dict[int, tuple[Tensor, Tensor | None]] = {}  # copies on the student's device

    def place(self, device: torch.device, student_dtype: torch.dtype) -> None:
        """Move the teacher to its device, which is the student's unless another one was asked for.

        The first call also fixes the precision. Later calls keep it, since rounded weights can't be restored.

        Args:
            device: device of the student.
            student_dtype: precision of the student, which the teacher takes if its ``dtype`` is ``auto``.
        """
        if self._students_device != device:
            if self._dtype is None:
                self._dtype = DTYPES.get(self.dtype, student_dtype)
                if self.dtype == "int8":  # before it moves, since it may not fit otherwise
                    for model in self.models:
                        int8.quantise(model, self._dtype)
            self._placed_on, self._students_device = self._device or device, device
            self.models = [model.to(device=self._placed_on, dtype=self._dtype) for model in self.models]
            logger.info("teacher on %s: %.1f MB", self._placed_on, sum(map(int8.megabytes, self.models)))
            self.log_weights = self.log_weights.to(device)
            self._outputs = {}

    @property
    def max_positions(self) -> tuple[int, int]:
        """The longest source and target, in tokens, that every member accepts."""
        limits = [model.max_positions() for model in self.models]
        return min(source for source, _ in limits), min(target for _, target in limits)

    @property
    def writer(self) -> Ensemble:
        """The members as one writer of rollouts."""
        return Ensemble(self.models, self.log_weights)

    @torch.no_grad()
    def encode(self, sample: Batch, *, cacheable: bool = True) -> list[Any]:
        """Encode the sources of a batch for :meth:`score`.

        A batch that the cache holds is not encoded again, and its logits are bitwise the same as before.

        Args:
            sample: batch on the student's device.
            cacheable: whether the batch returns in later epochs; one that does not is not cached.

        Returns:
            the encoder output of each member; None for a member whose encoder can't run separately.
        """
        sample = self._here(sample)
        known = self.cache.find(sample) if self.cache and cacheable else None
        if known is not None:
            return known
        net_input = teacher_input(sample)
        with self._precision():
            encoded = [
                encode(model, net_input) if _encodes_separately(model, net_input) else None
                for model in self.models
            ]
        if self.cache and cacheable:
            self.cache.keep(sample, encoded)
        return encoded

    @property
    def encoder_width(self) -> int | None:
        """The features of the only member's encoder outputs; None without such outputs or with several
        members.
        """
        [model, *others] = self.models
        is_separate = not others and _encodes_separately(model, dict.fromkeys(_ENCODER_INPUT))
        return encoder_width(model) if is_separate else None

    @torch.no_grad()
    def sentence_vectors(self, encoded: Sequence[Any]) -> Tensor:
        """Return the mean outputs of the only member's encoder, from the result of :meth:`encode`.

        Returns:
            ``(B, D)``, on the student's device.
        """
        vectors = mean_over_time(encoded[0])
        return vectors.to(self._students_device) if self._is_elsewhere else vectors

    @torch.no_grad()
    def score(
        self,
        sample: Batch,
        encoded: Sequence[Any] | None = None,
        *,
        rows: Tensor | None = None,
        materialise: bool = True,
        log_weights: Tensor | None = None,
        average_logits: bool = False,
    ) -> TokenLogits:
        """Return the teacher's logits at every prefix of a batch.

        Args:
            sample: batch of ``B`` sentences with ``T`` target positions, on the student's device.
            encoded: result of :meth:`encode` for the batch that ``sample`` was taken from; None encodes
                ``sample`` anew.
            rows: ``(B,)`` int64, the rows of that batch that ``sample`` holds; None means that it holds all
                of them.
            materialise: compute the logits now. Otherwise they are computed when they are asked for, if a
                member can do that.
            log_weights: ``(B, M)`` logarithms of the members' weights for each sentence; None takes the
                teacher's own.
            average_logits: average the members' logits instead of their probabilities.

        Returns:
            the logits of ``B * T`` positions, row by row. For an ensemble whose probabilities are averaged,
            these are the log-probabilities of the average.
        """
        members = self._members_logits(sample, encoded, rows=rows, materialise=materialise)
        if len(members) == 1:
            return members[0]
        if log_weights is not None:
            log_weights = log_weights.repeat_interleave(sample["target"].size(1), dim=0)
        weights = self.log_weights if log_weights is None else log_weights
        return AveragedLogits(members, weights, average_logits=average_logits)

    @torch.no_grad()
    def agreement(self, sample: Batch, encoded: Sequence[Any], *, pad: int, chunk: int) -> Tensor:
        """Return how probable each member finds the references of a batch.

        Args:
            sample: batch of ``B`` sentences with their references.
            encoded: result of :meth:`encode` for this batch.
            pad: index of the padding symbol in the target dictionary.
            chunk: number of positions whose logits exist at the same time; 0 means all.

        Returns:
            ``(B, M)``, the mean log-probability of a reference's tokens.
        """
        members = self._members_logits(sample, encoded, materialise=chunk == 0)
        return torch.stack(
            [mean_lprobs(logits, sample["target"], pad=pad, chunk=chunk) for logits in members], dim=-1
        )

    def _members_logits(
        self,
        sample: Batch,
        encoded: Sequence[Any] | None,
        *,
        rows: Tensor | None = None,
        materialise: bool = True,
    ) -> list[TokenLogits]:
        """Return the logits of each member. The arguments are those of :meth:`score`."""
        members = zip(self.models, [None] * len(self.models) if encoded is None else encoded, strict=True)
        if self._is_elsewhere:
            sample, rows = self._here(sample), None if rows is None else rows.to(self._placed_on)
        with self._precision():
            logits = [
                token_logits(
                    model,
                    sample,
                    encoder_out,
                    rows=rows,
                    materialise=materialise and not self._is_elsewhere,
                )
                for model, encoder_out in members
            ]
        if self._is_elsewhere:
            # The student's device would wait for a copy. So it comes after the student's forward pass.
            return [
                LaterLogits(partial(self._come_back, number, one, materialise=materialise))
                for number, one in enumerate(logits)
            ]
        return [self._in_own_precision(one) for one in logits]

    def _in_own_precision(self, logits: TokenLogits) -> TokenLogits:
        if isinstance(logits, ProjectedLogits):
            return replace(logits, ignore_autocast=self.dtype in DTYPES)
        return logits

    @property
    def _is_elsewhere(self) -> bool:
        """Whether the teacher is on another device than the student."""
        return self._device is not None and self._placed_on != self._students_device

    def _here(self, sample: Batch) -> Batch:
        """Return a batch on the teacher's device."""
        if not self._is_elsewhere:
            return sample
        moved: Batch = utils.apply_to_sample(lambda tensor: tensor.to(self._placed_on), sample)
        return moved

    @torch.no_grad()
    def _come_back(self, number: int, logits: TokenLogits, *, materialise: bool) -> TokenLogits:
        """Return a member's logits on the student's device.

        Hidden states are moved if there are any, and multiplied by a copy of the output matrix, because
        logits are much larger.
        """
        if not isinstance(logits, ProjectedLogits):
            return WholeLogits(self._to_student(logits.logits(slice(None))))
        if number not in self._outputs:
            self._outputs[number] = (self._to_student(logits.weight), self._to_student(logits.bias))
        projected = ProjectedLogits(self._to_student(logits.features), *self._outputs[number])
        if not materialise:
            return self._in_own_precision(projected)
        with self._precision():
            return WholeLogits(projected.logits(slice(None)))

    def _to_student(self, tensor: Any) -> Any:
        return None if tensor is None else tensor.to(self._students_device)

    def _precision(self) -> contextlib.AbstractContextManager:
        """Switch autocast off if a precision was asked for; ``--amp`` then affects the student alone."""
        if self.dtype not in DTYPES or self._placed_on is None:
            return contextlib.nullcontext()
        return torch.autocast((self._students_device or self._placed_on).type, enabled=False)


def mean_lprobs(logits: TokenLogits, target: Tensor, *, pad: int, chunk: int) -> Tensor:
    """Return the mean log-probability of each sentence's tokens.

    Args:
        logits: logits at ``B * T`` positions.
        target: ``(B, T)`` tokens, padded.
        pad: index of the padding symbol in the target dictionary.
        chunk: number of positions whose logits exist at the same time; 0 means all.

    Returns:
        ``(B,)``; 0 for a sentence without tokens.
    """
    counted = target.ne(pad)
    lprobs = token_lprobs(logits, target.flatten(), chunk).view_as(target).masked_fill(~counted, 0.0)
    return lprobs.sum(dim=-1) / counted.sum(dim=-1).clamp(min=1)


def token_logits(
    model: BaseFairseqModel,
    sample: Batch,
    encoder_out: Any = None,
    *,
    rows: Tensor | None = None,
    materialise: bool = True,
) -> TokenLogits:
    """Return the logits of one model at every prefix of a batch.

    Args:
        model: encoder-decoder model.
        sample: batch of ``B`` sentences with ``T`` target positions.
        encoder_out: the model's encoder output for the batch that ``sample`` was taken from; None runs the
            encoder.
        rows: see :meth:`Teacher.score`.
        materialise: see :meth:`Teacher.score`.
    """
    projection = None if materialise else output_projection(model.decoder)
    if projection is None:
        return WholeLogits(_decoder_output(model, sample, encoder_out, rows=rows).flatten(0, 1))
    with features_for_logits(model.decoder):
        features = _decoder_output(model, sample, encoder_out, rows=rows).flatten(0, 1)
    return ProjectedLogits(features, *projection)


def _decoder_output(
    model: BaseFairseqModel, sample: Batch, encoder_out: Any, *, rows: Tensor | None
) -> Tensor:
    net_input = sample["net_input"]
    if encoder_out is None:
        return model(**teacher_input(sample), prev_output_tokens=net_input["prev_output_tokens"])[0]
    if rows is not None:
        encoder_out = model.encoder.reorder_encoder_out(encoder_out, rows)
    return model.decoder(net_input["prev_output_tokens"], encoder_out=encoder_out)[0]


def _without_attention_weights(model: BaseFairseqModel) -> BaseFairseqModel:
    """Switch off the averaged attention weights, which fairseq's decoder layers compute in evaluation mode.

    Nothing here reads them. In fairseq a layer asks for them if ``need_attn`` is set and it is not training:
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/modules/transformer_layer.py#L494
    """
    for module in model.modules():
        if getattr(module, "need_attn", None) is True:
            module.need_attn = False
    return model


def _encodes_separately(model: BaseFairseqModel, encoder_input: Batch) -> bool:
    """Return whether a model's forward pass is its encoder's followed by its decoder's, and nothing else.

    This holds for fairseq's own forward passes. Their decoder reads only what the encoder returns by default.
    """
    stock = (
        FairseqEncoderDecoderModel.forward,
        TransformerModelBase.forward,
        BARTModel.forward,
        LSTMModel.forward,
        S2TTransformerModel.forward,
    )
    return type(model).forward in stock and encoder_input.keys() == _ENCODER_INPUT
