"""A language model that continues prompts, in the form of an encoder-decoder model.

A prompt is a source, and what follows it is a target. So whatever trains, scores and decodes translations
also does so with continuations, and logits exist for the positions of continuations alone. The wrapper has no
weights: a checkpoint's names and values are those of the language model.
"""

from typing import Any

import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from fairseq.models import (
    BaseFairseqModel,
    FairseqEncoder,
    FairseqEncoderDecoderModel,
    FairseqIncrementalDecoder,
    FairseqLanguageModel,
)
from torch import Tensor


class PromptReader(FairseqEncoder):
    """An encoder without weights: its output is the prompts themselves.

    Args:
        dictionary: the language model's.
        longest: the longest prompt with its EOS, in tokens.
    """

    def __init__(self, dictionary: Dictionary, longest: int):
        super().__init__(dictionary)
        self.longest = longest

    def forward(self, src_tokens: Tensor, src_lengths: Tensor | None = None, **_: Any) -> dict[str, Any]:
        """Return the prompts ``(B, S)``, each with an EOS at its end, padded on the right."""
        return {"src_tokens": [src_tokens]}

    def reorder_encoder_out(self, encoder_out: Any, new_order: Tensor) -> dict[str, Any]:
        """See :class:`fairseq.models.FairseqEncoder`."""
        return {"src_tokens": [encoder_out["src_tokens"][0].index_select(0, new_order)]}

    def max_positions(self) -> int:
        """Return the longest prompt, in tokens, its EOS included."""
        return self.longest


class PromptedModel(FairseqEncoderDecoderModel):
    """A language model whose sources are prompts and whose targets are continuations.

    The decoder reads the first input of the continuation (an EOS), the prompt, and the continuation. Both
    share its positions.

    Args:
        decoder: the language model's decoder.
    """

    def __init__(self, decoder: FairseqIncrementalDecoder):
        super().__init__(PromptReader(decoder.dictionary, decoder.max_positions()), decoder)

    def forward(
        self, src_tokens: Tensor, src_lengths: Tensor | None, prev_output_tokens: Tensor, **others: Any
    ) -> tuple[Tensor, Any]:
        """Return logits, or hidden states, after every prefix of the continuations.

        Args:
            src_tokens: prompts with an EOS at the end, ``(B, S)``, padded on the right.
            src_lengths: not read.
            prev_output_tokens: an EOS and the continuations, ``(B, T)``, padded on the right.
            others: the decoder's other arguments.

        Returns:
            ``(B, T, V)``; and what else the decoder returns.
        """
        joined, places = join(src_tokens, prev_output_tokens, self.encoder.dictionary.pad())
        output, more = self.decoder(joined, **others)[:2]
        return output.gather(1, places.unsqueeze(-1).expand(-1, -1, output.size(-1))), more


def join(prompts: Tensor, inputs: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Join prompts and continuations to the inputs of a language model.

    Args:
        prompts: ``(B, S)``, each with an EOS at the end, padded on the right.
        inputs: the first input (EOS) and the continuations, ``(B, T)``, padded on the right.
        pad: index of the padding symbol.

    Returns:
        ``(B, W)``, the first input, the prompt and the continuation, padded on the right; and ``(B, T)``, at
        which of these positions the tokens of the continuation are predicted. Padding has any position.
    """
    ends = prompts.ne(pad).sum(dim=-1, keepdim=True) - 1  # where the prompt's last token stands
    places = ends + torch.arange(inputs.size(1), device=inputs.device)
    joined = F.pad(prompts[:, :-1], (1, inputs.size(1) - 1), value=pad)
    columns = torch.arange(joined.size(1), device=inputs.device)
    joined = joined.masked_fill(columns > ends, pad)
    joined[:, 0] = inputs[:, 0]
    joined.scatter_(1, places[:, 1:], inputs[:, 1:])
    if not joined.is_cuda:  # on a GPU, the host would wait for the width
        width = int(joined.ne(pad).sum(dim=-1).max())
        joined, places = joined[:, :width], places.clamp(max=width - 1)
    return joined, places


def prompted(model: BaseFairseqModel) -> BaseFairseqModel:
    """Return a language model as a :class:`PromptedModel`, and any other model as it is."""
    is_incremental = isinstance(getattr(model, "decoder", None), FairseqIncrementalDecoder)
    if isinstance(model, FairseqLanguageModel) and is_incremental:
        return PromptedModel(model.decoder)
    return model
