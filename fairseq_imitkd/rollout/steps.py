"""One decoding step after another, however the student is built."""

from typing import Any, Protocol

import torch
from fairseq.models import BaseFairseqModel
from torch import Tensor

from fairseq_imitkd.rollout.transformer import TransformerSteps, why_not


class Steps(Protocol):
    """A batch of ``R`` rows part-way through decoding."""

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

    def logits(self, tokens: Tensor) -> Tensor:
        """See :class:`Steps`."""
        return self.student.decoder(tokens, encoder_out=self.encoder_out, incremental_state=self.state)[0][:, -1]

    def keep(self, rows: Tensor) -> None:
        """See :class:`Steps`."""
        self.student.decoder.reorder_incremental_state_scripting(self.state, rows)
        self.encoder_out = self.student.encoder.reorder_encoder_out(self.encoder_out, rows)


def begin(student: BaseFairseqModel, net_input: dict[str, Any], longest: int, samples: int = 1) -> Steps:
    """Encode a batch and stand before its first token.

    Args:
        student: in evaluation mode.
        net_input: the encoder's arguments.
        longest: the most tokens that will be fed.
        samples: rows of each sentence, one after another.
    """
    encoder_out = student.encoder.forward_torchscript(net_input)
    if samples > 1:
        sentences = torch.arange(net_input["src_tokens"].size(0), device=net_input["src_tokens"].device)
        encoder_out = student.encoder.reorder_encoder_out(encoder_out, sentences.repeat_interleave(samples))
    if why_not(student) is None:
        return TransformerSteps(student.decoder, encoder_out, longest)
    return IncrementalSteps(student, encoder_out)
