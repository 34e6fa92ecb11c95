"""One decoding step after another, however the student is built."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from fairseq.models import BaseFairseqModel
from torch import Tensor

from fairseq_imitkd.rollout.cuda_graphs import GraphedSteps
from fairseq_imitkd.rollout.fast_transformer import TransformerSteps, why_not

logger = logging.getLogger(__name__)


class Steps(Protocol):
    """A batch of ``R`` rows part-way through decoding.

    Attributes:
        rows_computed: over all steps so far, those among them that only round a number up.
    """

    rows_computed: int

    def logits(self, tokens: Tensor) -> Tensor:
        """The next token's logits, ``(R, V)``, after prefixes ``(R, t + 1)``; each call is one position further."""

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these, ``(K,)`` rising indices."""


class IncrementalSteps:
    """Steps of any ``FairseqIncrementalDecoder``, through fairseq's own incremental API."""

    def __init__(self, student: BaseFairseqModel, encoder_out: Any):
        self.student = student
        self.encoder_out = encoder_out
        self.state: dict[str, dict[str, Tensor | None]] = {}
        self.rows_computed = 0

    def logits(self, tokens: Tensor) -> Tensor:
        """See :class:`Steps`."""
        self.rows_computed += tokens.size(0)
        return self.student.decoder(tokens, encoder_out=self.encoder_out, incremental_state=self.state)[0][
            :, -1
        ]

    def keep(self, rows: Tensor) -> None:
        """See :class:`Steps`."""
        self.student.decoder.reorder_incremental_state_scripting(self.state, rows)
        self.encoder_out = self.student.encoder.reorder_encoder_out(self.encoder_out, rows)


@dataclass(frozen=True)
class Ensemble:
    """Several models that write as one: their probabilities are averaged.

    Args:
        models: ``M`` encoder-decoders over the same dictionaries, in evaluation mode.
        log_weights: ``(M,)``; their exponentials add up to 1.
    """

    models: Sequence[BaseFairseqModel]
    log_weights: Tensor


class EnsembleSteps:
    """Steps of an :class:`Ensemble`; the logits are log-probabilities."""

    def __init__(self, members: Sequence[Steps], log_weights: Tensor):
        self.members = members
        self.log_weights = log_weights
        self.rows_computed = 0  # of the first member

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


def begin(
    author: BaseFairseqModel | Ensemble,
    net_input: dict[str, Any],
    longest: int,
    samples: int = 1,
    cuda_graphs: bool = False,
) -> Steps:
    """Encode a batch and stand before its first token.

    Args:
        author: a model in evaluation mode, or an ensemble of them.
        net_input: the encoder's arguments.
        longest: the most tokens that will be fed.
        samples: rows of each sentence, one after another.
        cuda_graphs: replay steps, where that can be done.
    """
    if not isinstance(author, Ensemble):
        return _begin(author, net_input, longest, samples, cuda_graphs)
    members = [_begin(model, net_input, longest, samples, cuda_graphs) for model in author.models]
    return members[0] if len(members) == 1 else EnsembleSteps(members, author.log_weights)


def _begin(
    model: BaseFairseqModel, net_input: dict[str, Any], longest: int, samples: int, cuda_graphs: bool
) -> Steps:
    tokens = net_input["src_tokens"]
    encoder_out = model.encoder.forward_torchscript(net_input)
    if samples > 1:
        sentences = torch.arange(tokens.size(0), device=tokens.device)
        encoder_out = model.encoder.reorder_encoder_out(encoder_out, sentences.repeat_interleave(samples))
    objection = why_not(model)
    if cuda_graphs:
        objection_to_graphs = objection if tokens.is_cuda else "the model is not on a GPU"
        if objection_to_graphs is None:
            return GraphedSteps(model.decoder, encoder_out, longest)
        _say_once(f"rollouts do without CUDA graphs for a {type(model).__name__}: {objection_to_graphs}")
    return (
        TransformerSteps(model.decoder, encoder_out, longest)
        if objection is None
        else IncrementalSteps(model, encoder_out)
    )


@functools.cache
def _say_once(message: str) -> None:
    logger.warning(message)
