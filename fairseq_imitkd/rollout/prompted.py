"""The decoding steps of a language model, which continues prompts of different lengths.

The fast path reads all prompts in one pass and keeps their keys and values. Prompts are padded on the right;
this padding is never attended to, and each row counts its own positions. So a row's logits do not depend on
the other rows.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_imitkd.models.prompted import PromptedModel, join
from fairseq_imitkd.rollout.fast_transformer import (
    Remembered,
    TransformerSteps,
    embedded,
    output,
    position_embeddings,
    unsupported_decoder_reason,
)


def begin_prompted(model: PromptedModel, prompts: Tensor, longest: int) -> "PromptedSteps | RereadingSteps":
    """Return the steps that continue prompts: the fast ones where the decoder is a stock transformer.

    Args:
        model: language model in evaluation mode.
        prompts: ``(R, S)``, each with an EOS at the end, padded on the right.
        longest: maximum number of tokens that the decoder will read per row after the prompt.
    """
    reason = unsupported_decoder_reason(model.decoder, with_cross_attention=False)
    if reason is None and type(model.decoder.embed_tokens) is nn.Embedding:  # not adaptive, not of letters
        return PromptedSteps(model.decoder, prompts, longest)
    return RereadingSteps(model, prompts)


class RereadingSteps:
    """The steps of any language model: each reads the prompt and all tokens again, without a cache.

    fairseq's incremental transformers can't read several positions at once.

    Args:
        model: language model in evaluation mode.
        prompts: as for :func:`begin_prompted`.
    """

    def __init__(self, model: PromptedModel, prompts: Tensor):
        self.model, self.prompts = model, prompts
        self.rows_computed = 0

    def logits(self, tokens: Tensor) -> Tensor:
        """See :class:`~fairseq_imitkd.rollout.steps.Steps`."""
        self.rows_computed += tokens.size(0)
        joined, places = join(self.prompts, tokens, self.model.encoder.dictionary.pad())
        # A finished row goes on until it is dropped, also beyond the model's positions.
        longest = self.model.max_decoder_positions()
        logits = self.model.decoder(joined[:, :longest])[0]
        last = places[:, -1].clamp(max=logits.size(1) - 1)
        return logits[torch.arange(last.numel(), device=last.device), last]

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows, ``(K,)`` indices in any order."""
        self.prompts = self.prompts.index_select(0, rows)


class PromptedSteps(TransformerSteps):
    """The fast steps of a stock ``transformer_lm``.

    The caches hold ``S`` columns of prompts, padded on the right, and then a column for each step.

    Args:
        decoder: decoder in evaluation mode that
            :func:`~fairseq_imitkd.rollout.fast_transformer.unsupported_decoder_reason` accepts.
        prompts: as for :func:`begin_prompted`.
        longest: as for :func:`begin_prompted`.
    """

    def __init__(self, decoder: Any, prompts: Tensor, longest: int):
        width, pad = prompts.size(1), decoder.padding_idx
        super().__init__(decoder, None, width + longest)
        self.positions = position_embeddings(decoder, width)  # of the first columns, (t, D)
        self.prompts: Tensor | None = prompts  # until they have been read
        lengths = prompts.ne(pad).sum(dim=-1)
        # (R,); the first step's logits are those of the prompt's last token.
        self.next_positions = lengths - 1
        # Padding, (R, 1, 1, S); None if no prompt is padded.
        is_padding = torch.arange(width, device=prompts.device) >= lengths.unsqueeze(-1)
        self.ignored = is_padding[:, None, None] if bool(is_padding.any()) else None

    def logits(self, tokens: Tensor) -> Tensor:
        """See :class:`~fairseq_imitkd.rollout.steps.Steps`."""
        if self.prompts is not None:
            logits = self._read_prompts(tokens[:, 0], self.prompts)
            self.prompts = None
        else:
            self.next_positions = self.next_positions + 1
            logits = self._next_logits(tokens[:, -1])
        self.rows_computed += tokens.size(0)
        return logits

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows, ``(K,)`` indices in any order."""
        self._reorder(rows)
        self.next_positions = self.next_positions.index_select(0, rows)
        if self.ignored is not None:
            self.ignored = self.ignored.index_select(0, rows)

    def _read_prompts(self, first_tokens: Tensor, prompts: Tensor) -> Tensor:
        """Compute the keys and values of all prompts, and the logits after each, ``(R, V)``."""
        width = prompts.size(1)
        inputs = torch.cat([first_tokens.unsqueeze(-1), prompts[:, :-1]], dim=1).t()  # (S, R)
        positions = None if self.positions is None else self.positions[:width].unsqueeze(1)
        x = embedded(self.decoder, inputs, positions)  # (S, R, D)
        for number, layer in enumerate(self.layers):
            query, key, value = layer.query_key_value(x)
            if number == 0:
                capacity = min(self.longest, 2 * width)
                self.own = key.new_empty((len(self.layers), 2, capacity, *key.shape[1:]))
            self.own[number, 0, :width], self.own[number, 1, :width] = key, value
            x = layer.feed_forward(layer.causal_self_attention(x, query, key=key, value=value))
        self.filled = width
        last = x[self.next_positions, torch.arange(x.size(1), device=x.device)]
        return output(self.decoder, last)

    def _position(self) -> Tensor | None:
        """Return the embedding of each row's next position, ``(R, D)``; None if the decoder has none."""
        positions = self.positions
        if positions is None:
            return None
        size = min(self._capacity(), self.decoder.max_positions())
        if self.filled >= positions.size(0) and size > positions.size(0):
            positions = self.positions = position_embeddings(self.decoder, size)
        assert positions is not None
        # A finished row goes on until it is dropped, also beyond the model's positions.
        return positions[self.next_positions.clamp(max=positions.size(0) - 1)]

    def _remember(self, number: int, key: Tensor, value: Tensor) -> Remembered:
        keys, values, _ = super()._remember(number, key, value)
        if self.ignored is None:
            return keys, values, None
        return keys, values, F.pad(self.ignored, (0, keys.size(0) - self.ignored.size(-1)), value=False)
