"""fairseq's beam search on top of the rollout engine's decoding steps, which are faster.

The beams of a sentence share its source's keys and values, which are computed once and not ``beam`` times.
When beams are reordered, only the caches of self-attention move.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.models import BaseFairseqModel, FairseqDecoder
from fairseq.models.speech_to_text import ConvTransformerModel, S2TTransformerModel
from fairseq.models.transformer import TransformerModelBase
from fairseq.sequence_generator import EnsembleModel
from torch import Tensor

from fairseq_imitkd.models.prompted import PromptedModel
from fairseq_imitkd.rollout.fast_transformer import TransformerSteps, unsupported_reason
from fairseq_imitkd.rollout.prompted import begin_prompted


def beam_models(models: Sequence[BaseFairseqModel]) -> EnsembleModel:
    """Wrap models for a ``SequenceGenerator``.

    Stock transformers get the engine's steps through :class:`BeamModels`, and language models through
    :class:`PromptedBeamModels`; other models get fairseq's wrapper.
    """
    if all(isinstance(model, PromptedModel) for model in models):
        return PromptedBeamModels(models)
    fast = all(
        hasattr(model, "decoder") and unsupported_reason(model) is None and has_softmax_output(model)
        for model in models
    )
    return BeamModels(models) if fast else EnsembleModel(models)


class BeamModels(EnsembleModel):
    """One model, or several whose probabilities are averaged, decoding the beams of a batch.

    The base class gets encoder outputs and caches as arguments. This class ignores those arguments and keeps
    its own until :meth:`forget`.

    Args:
        models: stock transformers over the same dictionaries.
    """

    def __init__(self, models: Sequence[BaseFairseqModel]):
        super().__init__(models)
        self.steps: list[Any] = []
        self.encoded: list[Any] = []

    def forget(self) -> None:
        """Free the memory of a finished batch: encoder outputs, caches and concatenated weights."""
        self.encoded, self.steps = [], []

    def set_decoder_beam_size(self, beam_size: int) -> None:
        """Do nothing. The base class would write the beam size into BART's attention and leave it there.

        See
        https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/models/bart/model.py#L282-L291
        """

    def forward_encoder(self, net_input: dict[str, Tensor]) -> list[Any]:
        """Encode a batch. The beam size is unknown until :meth:`reorder_encoder_out`."""
        self.encoded, self.steps = super().forward_encoder(net_input), []
        return self.encoded

    def reorder_encoder_out(self, encoder_outs: Any, new_order: Tensor) -> Any:
        """Begin decoding on the first call, when ``new_order`` tells the beam size; later do nothing."""
        if not self.steps:
            beam = new_order.numel() // self.encoded[0]["encoder_out"][0].size(1)
            longest = self.max_decoder_positions()
            self.steps = [
                TransformerSteps(model.decoder, encoder_out, longest, beam=beam)
                for model, encoder_out in zip(self.models, self.encoded, strict=True)
            ]
        return encoder_outs

    def forward_decoder(
        self, tokens: Tensor, encoder_outs: Any, incremental_states: Any, temperature: float = 1.0
    ) -> tuple[Tensor, None]:
        """Return the next token's log-probabilities, ``(R, V)``, after the prefixes ``(R, t + 1)``."""
        lprobs = [self._lprobs(steps.logits(tokens), temperature) for steps in self.steps]
        if len(lprobs) == 1:
            return lprobs[0], None
        return torch.stack(lprobs).logsumexp(dim=0) - torch.tensor(float(len(lprobs))).log().item(), None

    def reorder_incremental_state(self, incremental_states: Any, new_order: Tensor) -> None:
        """Continue with these rows."""
        for steps in self.steps:
            steps.keep(new_order)

    @staticmethod
    def _lprobs(logits: Tensor, temperature: float) -> Tensor:
        return F.log_softmax(
            logits if temperature == 1.0 else logits / temperature, dim=-1, dtype=torch.float32
        )


class PromptedBeamModels(BeamModels):
    """The same with language models, which continue prompts. The beams of a prompt read it once each.

    Args:
        models: language models over the same dictionary.
    """

    def reorder_encoder_out(self, encoder_outs: Any, new_order: Tensor) -> Any:
        """Begin decoding on the first call; later do nothing."""
        if not self.steps:
            longest = self.max_decoder_positions()
            self.steps = [
                begin_prompted(model, encoded["src_tokens"][0].index_select(0, new_order), longest)
                for model, encoded in zip(self.models, self.encoded, strict=True)
            ]
        return encoder_outs


def has_softmax_output(model: Any) -> bool:
    """Return whether a model's probabilities are the softmax of its decoder's output.

    Some decoders return probabilities instead of logits.
    """
    own = (
        BaseFairseqModel.get_normalized_probs,
        TransformerModelBase.get_normalized_probs,
        S2TTransformerModel.get_normalized_probs,
        ConvTransformerModel.get_normalized_probs,
    )
    return (
        type(model).get_normalized_probs in own
        and type(model).get_normalized_probs_scriptable is BaseFairseqModel.get_normalized_probs_scriptable
        and type(model.decoder).get_normalized_probs is FairseqDecoder.get_normalized_probs
        and type(model.decoder).get_normalized_probs_scriptable
        is FairseqDecoder.get_normalized_probs_scriptable
    )
