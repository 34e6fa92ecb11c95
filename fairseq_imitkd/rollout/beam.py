"""fairseq's beam search, faster: its search and its bookkeeping over the rollout engine's decoding steps.

The beams of a sentence read the same source, so its keys and values are made once and not ``beam`` times, and only
the decoder's own caches move when beams change places.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.models import BaseFairseqModel, FairseqDecoder
from fairseq.models.transformer import TransformerModelBase
from fairseq.sequence_generator import EnsembleModel
from torch import Tensor

from fairseq_imitkd.rollout.fast_transformer import TransformerSteps, why_not


def beam_models(models: Sequence[BaseFairseqModel]) -> EnsembleModel:
    """What a ``SequenceGenerator`` asks for the next words: the fast way where every model is a stock transformer."""
    fast = all(
        hasattr(model, "decoder") and why_not(model) is None and softmax_of_its_logits(model)
        for model in models
    )
    return BeamModels(models) if fast else EnsembleModel(models)


class BeamModels(EnsembleModel):
    """One model, or several whose probabilities are averaged, decoding the beams of a batch.

    The base class hands encoder outputs and caches back and forth; here they are kept until :meth:`forget`, and what is
    handed is ignored.
    """

    def __init__(self, models: Sequence[BaseFairseqModel]):
        super().__init__(models)
        self.steps: list[TransformerSteps] = []
        self.encoded: list[Any] = []

    def forget(self) -> None:
        """Let go of a batch that is done: its caches and encoder outputs, and the weights that were put together for it."""
        self.encoded, self.steps = [], []

    def set_decoder_beam_size(self, beam_size: int) -> None:
        """Leaves the models as they are: the base class writes its beam into BART's attention, where it outlives it."""

    def forward_encoder(self, net_input: dict[str, Tensor]) -> list[Any]:
        """Encode a batch; the beam's size is known only when its rows are asked for."""
        self.encoded, self.steps = super().forward_encoder(net_input), []
        return self.encoded

    def reorder_encoder_out(self, encoder_outs: Any, new_order: Tensor) -> Any:
        """At first every sentence ``beam`` times; afterwards the steps see to it."""
        if not self.steps:
            beam = new_order.numel() // self.encoded[0]["encoder_out"][0].size(1)
            longest = self.max_decoder_positions()
            self.steps = [
                TransformerSteps(model.decoder, encoder_out, longest, beam)
                for model, encoder_out in zip(self.models, self.encoded, strict=True)
            ]
        return encoder_outs

    def forward_decoder(
        self, tokens: Tensor, encoder_outs: Any, incremental_states: Any, temperature: float = 1.0
    ) -> tuple[Tensor, None]:
        """The next tokens' log-probabilities, ``(R, V)``, after prefixes ``(R, t + 1)``."""
        lprobs = [self._lprobs(steps.logits(tokens), temperature) for steps in self.steps]
        if len(lprobs) == 1:
            return lprobs[0], None
        return torch.stack(lprobs).logsumexp(dim=0) - torch.tensor(float(len(lprobs))).log().item(), None

    def reorder_incremental_state(self, incremental_states: Any, new_order: Tensor) -> None:
        """Go on with these rows."""
        for steps in self.steps:
            steps.keep(new_order)

    @staticmethod
    def _lprobs(logits: Tensor, temperature: float) -> Tensor:
        return F.log_softmax(
            logits if temperature == 1.0 else logits / temperature, dim=-1, dtype=torch.float32
        )


def softmax_of_its_logits(model: Any) -> bool:
    """Whether a model's probabilities are the softmax of its decoder's logits; some decoders return probabilities."""
    own = (BaseFairseqModel.get_normalized_probs, TransformerModelBase.get_normalized_probs)
    return (
        type(model).get_normalized_probs in own
        and type(model).get_normalized_probs_scriptable is BaseFairseqModel.get_normalized_probs_scriptable
        and type(model.decoder).get_normalized_probs is FairseqDecoder.get_normalized_probs
        and type(model.decoder).get_normalized_probs_scriptable
        is FairseqDecoder.get_normalized_probs_scriptable
    )
