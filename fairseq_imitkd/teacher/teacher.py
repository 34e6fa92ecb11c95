"""The frozen teacher, one model or several: asked for its scores at every prefix of a batch.

It is no part of any module: no optimizer, checkpoint or distributed wrapper ever sees it.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from fairseq.models import BaseFairseqModel, FairseqEncoderDecoderModel
from fairseq.models.bart import BARTModel
from fairseq.models.lstm import LSTMModel
from fairseq.models.transformer import TransformerModelBase
from torch import Tensor

from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.models.access import features_for_logits, output_projection
from fairseq_imitkd.models.logits import (
    AveragedLogits,
    ProjectedLogits,
    TokenLogits,
    WholeLogits,
    token_lprobs,
)
from fairseq_imitkd.rollout import Ensemble
from fairseq_imitkd.teacher.encoder_cache import EncoderCache

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Teacher:
    """One frozen model, or an ensemble whose probabilities are averaged.

    Args:
        models: encoder-decoder models over the student's dictionaries.
        dtype: ``fp32``, ``fp16``, ``bf16``, or ``auto``: the student's own.
        cache: where encoder outputs are kept; None keeps none.
        weights: of the members, adding up to 1; None is all alike.
    """

    def __init__(
        self,
        models: Sequence[BaseFairseqModel],
        dtype: str = "auto",
        cache: EncoderCache | None = None,
        weights: Sequence[float] | None = None,
    ):
        self.models = [_without_attention_weights(model.eval().requires_grad_(False)) for model in models]
        self.dtype = dtype
        self.cache = cache
        self.log_weights = torch.tensor(
            [math.log(weight) for weight in weights or [1.0 / len(models)] * len(models)]
        )
        self._dtype: torch.dtype | None = None
        self._placed_on: torch.device | None = None

    def place(self, device: torch.device, student_dtype: torch.dtype) -> None:
        """Move to the student's device, in the dtype asked for, the first time: rounding could not be undone later."""
        if self._placed_on != device:
            self._dtype = self._dtype or DTYPES.get(self.dtype, student_dtype)
            self.models = [model.to(device=device, dtype=self._dtype) for model in self.models]
            self.log_weights = self.log_weights.to(device)
            self._placed_on = device

    @property
    def max_positions(self) -> tuple[int, int]:
        """The longest source and target, in tokens, that every member can represent."""
        limits = [model.max_positions() for model in self.models]
        return min(source for source, _ in limits), min(target for _, target in limits)

    @property
    def writer(self) -> Ensemble:
        """The members as one author of rollouts."""
        return Ensemble(self.models, self.log_weights)

    def _precision(self) -> contextlib.AbstractContextManager:
        """In which it computes: the one that was asked for, whatever ``--amp`` does to the student's."""
        if self.dtype == "auto" or self._placed_on is None:
            return contextlib.nullcontext()
        return torch.autocast(self._placed_on.type, enabled=False)

    @torch.no_grad()
    def encode(self, sample: Batch, comes_back: bool = True) -> list[Any]:
        """Each member's encoder output for a batch, for :meth:`score`; None for a member that can't encode apart.

        With a cache, a batch that was encoded before (the same sentences in the same order, as fairseq's batches come
        back every epoch) is not encoded again, and its logits are bitwise the same. One that will not come back is not kept.
        """
        known = self.cache.find(sample) if self.cache and comes_back else None
        if known is not None:
            return known
        net_input = {
            name: value for name, value in sample["net_input"].items() if name != "prev_output_tokens"
        }
        with self._precision():
            encoded = [
                model.encoder(**net_input) if _encodes_apart(model, net_input) else None
                for model in self.models
            ]
        if self.cache and comes_back:
            self.cache.keep(sample, encoded)
        return encoded

    @torch.no_grad()
    def score(
        self,
        sample: Batch,
        encoded: Sequence[Any] | None = None,
        rows: Tensor | None = None,
        whole: bool = True,
        log_weights: Tensor | None = None,
        of_logits: bool = False,
    ) -> TokenLogits:
        """The teacher's scores at every prefix of the batch.

        Args:
            sample: a batch with ``net_input`` for ``B`` sentences of ``T`` target positions, on the teacher's device.
            encoded: what :meth:`encode` gave for the batch that this one is part of; None encodes anew.
            rows: ``(B,)`` int64, the rows of that batch that this one holds; None is all of them.
            whole: logits are computed at once; otherwise when they are asked for, where a member can.
            log_weights: ``(B, M)`` of the members for each sentence; None is the teacher's own.
            of_logits: average the members' logits, not their probabilities.

        Returns:
            scores of ``B * T`` positions, row by row. For an ensemble, log-probabilities: of the mean of the members'.
        """
        members = self._scores(sample, [None] * len(self.models) if encoded is None else encoded, rows, whole)
        if len(members) == 1:
            return members[0]
        if log_weights is not None:
            log_weights = log_weights.repeat_interleave(sample["target"].size(1), dim=0)
        return AveragedLogits(members, self.log_weights if log_weights is None else log_weights, of_logits)

    @torch.no_grad()
    def agreement(self, sample: Batch, encoded: Sequence[Any], pad: int, chunk: int) -> Tensor:
        """How probable the members find the references.

        Args:
            sample: a batch of ``B`` sentences with its references.
            encoded: what :meth:`encode` gave for it.
            pad: of the target dictionary.
            chunk: positions at a time, 0 is all.

        Returns:
            ``(B, M)``, the mean log-probability of a reference's tokens.
        """
        scores = self._scores(sample, encoded, None, chunk == 0)
        return torch.stack([mean_lprobs(member, sample["target"], pad, chunk) for member in scores], dim=-1)

    def _scores(
        self, sample: Batch, encoded: Sequence[Any], rows: Tensor | None, whole: bool
    ) -> list[TokenLogits]:
        """Each member's."""
        members = zip(self.models, encoded, strict=True)
        with self._precision():
            scores = [scores_of(model, sample, encoder_out, rows, whole) for model, encoder_out in members]
        asked = self.dtype != "auto"
        return [
            replace(one, as_they_are=asked) if isinstance(one, ProjectedLogits) else one for one in scores
        ]


def mean_lprobs(scores: TokenLogits, target: Tensor, pad: int, chunk: int) -> Tensor:
    """The mean log-probability of each sentence's tokens, ``(B,)``, of targets ``(B, T)``."""
    counted = target.ne(pad)
    lprobs = token_lprobs(scores, target.flatten(), chunk).view_as(target).masked_fill(~counted, 0.0)
    return lprobs.sum(dim=-1) / counted.sum(dim=-1).clamp(min=1)


def scores_of(
    model: BaseFairseqModel,
    sample: Batch,
    encoder_out: Any = None,
    rows: Tensor | None = None,
    whole: bool = True,
) -> TokenLogits:
    """One model's scores at every prefix of a batch; arguments as of :meth:`Teacher.score`."""
    projection = None if whole else output_projection(model.decoder)
    if projection is None:
        return WholeLogits(_outputs(model, sample, encoder_out, rows).flatten(0, 1))
    with features_for_logits(model.decoder):
        features = _outputs(model, sample, encoder_out, rows).flatten(0, 1)
    return ProjectedLogits(features, *projection)


def _outputs(model: BaseFairseqModel, sample: Batch, encoder_out: Any, rows: Tensor | None) -> Tensor:
    net_input = sample["net_input"]
    if encoder_out is None:
        return model(**net_input)[0]
    if rows is not None:
        encoder_out = model.encoder.reorder_encoder_out(encoder_out, rows)
    return model.decoder(net_input["prev_output_tokens"], encoder_out=encoder_out)[0]


def _without_attention_weights(model: BaseFairseqModel) -> BaseFairseqModel:
    """In evaluation mode fairseq's decoder layers also average attention weights over heads, which nobody reads here."""
    for module in model.modules():
        if getattr(module, "need_attn", None) is True:
            module.need_attn = False
    return model


def _encodes_apart(model: BaseFairseqModel, encoder_input: Batch) -> bool:
    """Whether a model's forward pass is fairseq's: its encoder's, then its decoder's, and nothing else.

    What the decoder reads of an encoder's output is then all that the encoder gives by default.
    """
    stock = (
        FairseqEncoderDecoderModel.forward,
        TransformerModelBase.forward,
        BARTModel.forward,
        LSTMModel.forward,
    )
    return type(model).forward in stock and encoder_input.keys() == {"src_tokens", "src_lengths"}
