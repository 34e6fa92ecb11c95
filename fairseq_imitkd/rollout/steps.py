"""The decoding steps of a batch, one after another, for any kind of model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from fairseq.models import BaseFairseqModel
from torch import Tensor

from fairseq_imitkd.models.encoding import encode
from fairseq_imitkd.models.prompted import PromptedModel
from fairseq_imitkd.models.tagged import TaggedModel, Tags
from fairseq_imitkd.rollout.fast_transformer import TransformerSteps, unsupported_reason
from fairseq_imitkd.rollout.prompted import begin_prompted


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


def writers_of(writer: BaseFairseqModel | Ensemble) -> Sequence[BaseFairseqModel]:
    """Return the models of an ensemble, or the model."""
    return writer.models if isinstance(writer, Ensemble) else [writer]


def average_log_probabilities(logits: Sequence[Tensor], log_weights: Tensor) -> Tensor:
    """Return the logarithm of the models' average probabilities, ``(R, V)`` float32.

    Args:
        logits: logits of each of ``M`` models, ``(R, V)``.
        log_weights: ``(M,)``, as in :class:`Ensemble`.
    """
    lprobs = torch.stack([each.float().log_softmax(dim=-1) for each in logits], dim=-1)
    return (lprobs + log_weights.float()).logsumexp(dim=-1)


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
        logits = [member.logits(tokens) for member in self.members]
        self.rows_computed = self.members[0].rows_computed
        return average_log_probabilities(logits, self.log_weights)

    def keep(self, rows: Tensor) -> None:
        """See :class:`Steps`."""
        for member in self.members:
            member.keep(rows)


class TaggedSteps:
    """The steps of a model with language tags. The tags are read, but none of them counts as a step.

    Args:
        inner: steps of the model inside.
        tags: where the tags stand.
    """

    def __init__(self, inner: Steps, tags: Tags):
        self.inner, self.tags = inner, tags
        self.rows_computed = 0

    def logits(self, tokens: Tensor) -> Tensor:
        """See :class:`Steps`."""
        prefixes = self.tags.prefixes(tokens)
        if tokens.size(1) == 1:
            for width in range(1, prefixes.size(1)):
                self.inner.logits(prefixes[:, :width])
        logits = self.inner.logits(prefixes)
        self.rows_computed = self.inner.rows_computed
        return logits

    def keep(self, rows: Tensor) -> None:
        """See :class:`Steps`."""
        self.inner.keep(rows)


def begin_decoding(
    writer: BaseFairseqModel | Ensemble,
    net_input: dict[str, Any],
    *,
    longest: int,
    samples: int = 1,
) -> Steps:
    """Encode a batch, and return the steps that decode it.

    Args:
        writer: model in evaluation mode, or an ensemble of such models.
        net_input: the encoder's arguments.
        longest: maximum number of tokens that the decoder will read per row.
        samples: number of adjacent rows per sentence.
    """
    members = [
        _begin_one(model, encode(model, net_input, samples=samples), longest) for model in writers_of(writer)
    ]
    if isinstance(writer, Ensemble) and len(members) > 1:
        return EnsembleSteps(members, writer.log_weights)
    return members[0]


def _begin_one(model: BaseFairseqModel, encoder_out: Any, longest: int) -> Steps:
    if isinstance(model, TaggedModel):
        return TaggedSteps(_begin_one(model.inner, encoder_out, longest + model.tags.added[1]), model.tags)
    if isinstance(model, PromptedModel):
        return begin_prompted(model, encoder_out["src_tokens"][0], longest)
    if unsupported_reason(model) is None:
        return TransformerSteps(model.decoder, encoder_out, longest)
    return IncrementalSteps(model, encoder_out)
