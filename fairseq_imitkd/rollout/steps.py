"""The decoding steps of a batch, one after another, for any kind of model."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from fairseq.models import BaseFairseqModel
from torch import Tensor

from fairseq_imitkd.rollout.cuda_graphs import GraphedSteps
from fairseq_imitkd.rollout.fast_transformer import TransformerSteps, unsupported_reason

logger = logging.getLogger(__name__)


class Steps(Protocol):
    """A batch of ``R`` rows part-way through decoding.

    Attributes:
        rows_computed: number of rows computed so far, summed over the steps, including padding rows.
    """

    rows_computed: int

    def logits(self, tokens: Tensor) -> Tensor:
        """Return the next token's logits, ``(R, V)``, after the prefixes ``(R, t + 1)``.

        Each call reads one more position.
        """

    def keep(self, rows: Tensor) -> None:
        """Drop all rows except these, ``(K,)`` increasing indices."""


class IncrementalSteps:
    """The steps of any ``FairseqIncrementalDecoder``, through fairseq's incremental API."""

    def __init__(self, model: BaseFairseqModel, encoder_out: Any):
        self.model = model
        self.encoder_out = encoder_out
        self.state: dict[str, dict[str, Tensor | None]] = {}
        self.rows_computed = 0

    def logits(self, tokens: Tensor) -> Tensor:
        """See :class:`Steps`."""
        self.rows_computed += tokens.size(0)
        logits = self.model.decoder(tokens, encoder_out=self.encoder_out, incremental_state=self.state)[0]
        return logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        """See :class:`Steps`."""
        self.model.decoder.reorder_incremental_state_scripting(self.state, rows)
        self.encoder_out = self.model.encoder.reorder_encoder_out(self.encoder_out, rows)


@dataclass(frozen=True)
class Ensemble:
    """Models that write together: their probabilities are averaged.

    Args:
        models: ``M`` encoder-decoders over the same dictionaries, in evaluation mode.
        log_weights: ``(M,)`` logarithms of weights that sum to 1.
    """

    models: Sequence[BaseFairseqModel]
    log_weights: Tensor


class EnsembleSteps:
    """The steps of an :class:`Ensemble`. Its logits are log-probabilities.

    Args:
        members: steps of each model.
        log_weights: ``(M,)``, as in :class:`Ensemble`.
    """

    def __init__(self, members: Sequence[Steps], log_weights: Tensor):
        self.members = members
        self.log_weights = log_weights
        self.rows_computed = 0  # by the first member alone

    def logits(self, tokens: Tensor) -> Tensor:
        """See :class:`Steps`."""
        lprobs = torch.stack(
            [member.logits(tokens).float().log_softmax(dim=-1) for member in self.members], dim=-1
        )
        self.rows_computed = self.members[0].rows_computed
        return (lprobs + self.log_weights.float()).logsumexp(dim=-1)

    def keep(self, rows: Tensor) -> None:
        """See :class:`Steps`."""
        for member in self.members:
            member.keep(rows)


def begin_decoding(
    writer: BaseFairseqModel | Ensemble,
    net_input: dict[str, Any],
    *,
    longest: int,
    samples: int = 1,
    cuda_graphs: bool = False,
) -> Steps:
    """Encode a batch, and return the steps that decode it.

    Args:
        writer: model in evaluation mode, or an ensemble of such models.
        net_input: the encoder's arguments.
        longest: maximum number of tokens that the decoder will read per row.
        samples: number of adjacent rows per sentence.
        cuda_graphs: replay the steps as CUDA graphs if the model and the device allow it; otherwise warn
            once.
    """
    models = writer.models if isinstance(writer, Ensemble) else [writer]
    members = [
        _begin_one(model, net_input, longest=longest, samples=samples, cuda_graphs=cuda_graphs)
        for model in models
    ]
    if isinstance(writer, Ensemble) and len(members) > 1:
        return EnsembleSteps(members, writer.log_weights)
    return members[0]


def _begin_one(
    model: BaseFairseqModel, net_input: dict[str, Any], *, longest: int, samples: int, cuda_graphs: bool
) -> Steps:
    tokens = net_input["src_tokens"]
    encoder_out = model.encoder.forward_torchscript(net_input)
    if samples > 1:
        sentences = torch.arange(tokens.size(0), device=tokens.device)
        encoder_out = model.encoder.reorder_encoder_out(encoder_out, sentences.repeat_interleave(samples))
    reason = unsupported_reason(model)
    if cuda_graphs:
        graphs_reason = reason if tokens.is_cuda else "the model is not on a GPU"
        if graphs_reason is None:
            return GraphedSteps(model.decoder, encoder_out, longest)
        _warn_once(f"rollouts of a {type(model).__name__} do not use CUDA graphs: {graphs_reason}")
    if reason is None:
        return TransformerSteps(model.decoder, encoder_out, longest)
    return IncrementalSteps(model, encoder_out)


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
