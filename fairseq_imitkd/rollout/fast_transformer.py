"""The fast path: one decoding step of a stock fairseq transformer.

fairseq's incremental decoding appends to every key and value cache at each step, which copies all of them, computes
attention weights that nobody reads, and projects query, key and value apart. Here the caches have room to spare and are
written in place, the three projections are one, and cross-attention's keys and values are computed once. The arithmetic
is fairseq's own (``TransformerDecoderBase``), so the tokens are too.

Only decoders whose every module is exactly fairseq's take this path: see :func:`why_not`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.models import BaseFairseqModel
from fairseq.models.transformer import TransformerDecoder, TransformerDecoderBase
from fairseq.modules import FairseqDropout, MultiheadAttention
from fairseq.modules.transformer_layer import TransformerDecoderLayer, TransformerDecoderLayerBase
from torch import Tensor, nn

FIRST_ROOM = 32  # positions that the caches have room for at first


def why_not(student: BaseFairseqModel) -> str | None:
    """Why a student can't take the fast path, in a few words; None when it can.

    It can when its decoder computes what this module computes: post-norm or pre-norm, learned, sinusoidal or no
    positions, tied or untied embeddings of any width, layer-norm embeddings, LayerDrop (all layers decode).
    """
    decoder: Any = student.decoder
    if type(decoder) not in (TransformerDecoderBase, TransformerDecoder):
        return f"its decoder is a {type(decoder).__name__}"
    if decoder.adaptive_softmax is not None:
        return "it has an adaptive softmax"
    if decoder.cross_self_attention or decoder.quant_noise is not None:
        return "it has cross-self-attention or quantisation noise"
    for layer in layers_of(decoder):
        if type(layer) not in (TransformerDecoderLayerBase, TransformerDecoderLayer):
            return f"a layer is a {type(layer).__name__}"
        if layer.encoder_attn is None:
            return "it has no cross-attention"
        if any(
            part is not None for part in (layer.c_attn, layer.attn_ln, layer.ffn_layernorm, layer.w_resid)
        ):
            return "its layers are scaled (NormFormer)"
        for attention in (layer.self_attn, layer.encoder_attn):
            if type(attention) is not MultiheadAttention or attention.use_xformers:
                return "its attention is not fairseq's own"
            if attention.bias_k is not None or attention.add_zero_attn:
                return "its attention has extra keys"
            projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)
            if any(type(projection) is not nn.Linear for projection in (*projections, layer.fc1, layer.fc2)):
                return "a projection is no plain linear layer"
    for module in decoder.modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return "something is hooked to its modules"
        if isinstance(module, FairseqDropout) and module.apply_during_inference:
            return "its dropout stays on in evaluation"
    return None


class TransformerSteps:
    """A batch of ``R`` rows part-way through decoding; see :class:`~fairseq_imitkd.rollout.steps.Steps`.

    Keys and values lie with the time in front, ``(T, R, D)``, as the projections give them: a step writes one block of
    memory, and dropping rows moves whole ones.

    Args:
        decoder: in evaluation mode, one that :func:`why_not` has no objection to.
        encoder_out: fairseq's, of ``B`` sentences and ``S`` source positions.
        longest: the most tokens that will be fed, which the caches are made for.
        beam: rows of each sentence, ``R = B * beam``, one after another. They share its source's keys and values.
    """

    def __init__(self, decoder: Any, encoder_out: dict[str, list[Tensor]], longest: int, beam: int = 1):
        self.decoder = decoder
        self.longest = longest
        self.beam = beam
        self.layers = [DecoderLayer(layer) for layer in layers_of(decoder)]
        self.positions: Tensor | None = None  # embeddings of the first of them, (t, D)
        [encoded] = encoder_out["encoder_out"]  # (S, B, D)
        self.cross = [layer.cross_keys_and_values(encoded) for layer in self.layers]  # two of (S, B, D)
        self.own = torch.empty(
            len(self.layers), 2, 0
        )  # (layers, 2, room, R, D); made with the first key's dtype
        self.spare: Tensor | None = None  # memory for the next reordering of a beam
        self.filled = 0  # positions that hold a key
        self.rows_computed = 0
        padding = encoder_out["encoder_padding_mask"]
        self.ignored: Tensor | None = None  # (B, 1, 1, S), None where no sentence is padded
        if padding and bool(padding[0].any()):
            self.ignored = padding[0][:, None, None, :]

    def logits(self, tokens: Tensor) -> Tensor:
        """The next token's logits, ``(R, V)``, after prefixes ``(R, t + 1)``; each call is one position further."""
        logits = next_logits(
            self.decoder,
            self.layers,
            tokens[:, -1],
            self._position(),
            self._remember,
            self.cross,
            self.ignored,
        )
        self.filled += 1
        self.rows_computed += tokens.size(0)
        return logits

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows: ``(K,)`` rising indices; of a beam any, ``beam`` of each sentence that is left."""
        layers, two, room, _, width = self.own.shape
        shape = (layers, two, room, rows.numel(), width)
        # Beams move at every step: between two blocks of memory, for new ones cost as much as the copy.
        own = self.own.new_empty(shape) if self.spare is None else self.spare[: math.prod(shape)].view(shape)
        torch.index_select(self.own[:, :, : self.filled], 3, rows, out=own[:, :, : self.filled])
        self.spare = self.own.flatten() if self.beam > 1 else None
        self.own = own
        sentences = rows[:: self.beam] // self.beam if self.beam > 1 else rows
        if sentences.numel() < self.cross[0][0].size(1):
            self.cross = [
                (keys.index_select(1, sentences), values.index_select(1, sentences))
                for keys, values in self.cross
            ]
            if self.ignored is not None:
                self.ignored = self.ignored.index_select(0, sentences)

    def _position(self) -> Tensor | None:
        """The embedding of the position that comes next, ``(D,)``; None for a decoder without."""
        if self.positions is None or self.filled >= self.positions.size(0):
            self.positions = position_embeddings(self.decoder, self._room())
        return None if self.positions is None else self.positions[self.filled]

    def _room(self) -> int:
        """For as many positions again: few sentences come near a generous length cap."""
        return min(self.longest, max(FIRST_ROOM, 2 * self.filled))

    def _remember(self, number: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, None]:
        """Write this position's key and value; all keys and values so far, of one layer."""
        if number == 0 and self.filled >= self.own.size(2):
            self._grow(key)
        self.own[number, 0, self.filled] = key
        self.own[number, 1, self.filled] = value
        so_far = self.own[number, :, : self.filled + 1]
        return so_far[0], so_far[1], None

    def _grow(self, key: Tensor) -> None:
        own = key.new_empty((len(self.layers), 2, self._room(), *key.shape))
        if self.filled > 0:
            own[:, :, : self.filled] = self.own
        self.own, self.spare = own, None


# (number of a layer, its key and value at this position, (R, D) each) -> its keys and values so far, (K, R, D) each, and
# which of them to ignore, None or true in (1, 1, 1, K).
Remember = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]]


def next_logits(
    decoder: Any,
    layers: Sequence["DecoderLayer"],
    tokens: Tensor,
    position: Tensor | None,
    remember: Remember,
    cross: Sequence[tuple[Tensor, Tensor]],
    ignored: Tensor | None,
) -> Tensor:
    """The arithmetic of one step.

    Args:
        decoder: the layers' own.
        layers: as many as the decoder has.
        tokens: ``(R,)``, each row's last.
        position: the position's embedding, ``(D,)`` or ``(1, D)``: no row holds padding, so all are at the same one.
        remember: see :data:`Remember`.
        cross: each layer's keys and values of the source, ``(S, B, D)``.
        ignored: true at the source's padding, ``(B, 1, 1, S)``; None where there is none.

    Returns:
        ``(R, V)``.
    """
    x = decoder.embed_scale * decoder.embed_tokens(tokens)  # (R, D)
    if decoder.project_in_dim is not None:
        x = decoder.project_in_dim(x)
    if position is not None:
        x = x + position
    if decoder.layernorm_embedding is not None:
        x = decoder.layernorm_embedding(x)
    for number, layer in enumerate(layers):
        query, key, value = layer.query_key_value(x)
        x = layer.self_attention(x, query, *remember(number, key, value))
        x = layer.cross_attention(x, *cross[number], ignored)
        x = layer.feed_forward(x)
    if decoder.layer_norm is not None:
        x = decoder.layer_norm(x)
    if decoder.project_out_dim is not None:
        x = decoder.project_out_dim(x)
    return decoder.output_layer(x)


def layers_of(decoder: Any) -> list[Any]:
    """All layers. To iterate over fairseq's list, which drops layers in training, would draw random numbers."""
    return list(decoder.layers._modules.values())


def position_embeddings(decoder: Any, longest: int) -> Tensor | None:
    """The embeddings of a decoder's first positions, ``(longest, D)``; None for a decoder without."""
    if decoder.embed_positions is None:
        return None
    pad = decoder.embed_positions.padding_idx
    tokens = torch.full((1, longest), pad + 1, device=decoder.embed_tokens.weight.device)  # any but padding
    return decoder.embed_positions(tokens)[0]


class DecoderLayer:
    """One layer at one position of ``R`` rows, ``(R, D)`` to ``(R, D)``."""

    def __init__(self, layer: Any):
        self.layer = layer
        self.projections = (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
        self.own_weight = torch.cat([projection.weight for projection in self.projections])
        self.own_bias = torch.cat([projection.bias for projection in self.projections])

    def refresh(self) -> None:
        """Follow the weights, which an optimizer has changed, in the same memory."""
        torch.cat([projection.weight for projection in self.projections], out=self.own_weight)
        torch.cat([projection.bias for projection in self.projections], out=self.own_bias)

    def cross_keys_and_values(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """``(S, R, D)`` to two of the same."""
        return self.layer.encoder_attn.k_proj(encoded), self.layer.encoder_attn.v_proj(encoded)

    def query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Three of ``(R, D)``."""
        if self.layer.normalize_before:
            x = self.layer.self_attn_layer_norm(x)
        query, key, value = F.linear(x, self.own_weight, self.own_bias).chunk(3, dim=-1)
        return query, key, value

    def self_attention(
        self, x: Tensor, query: Tensor, keys: Tensor, values: Tensor, ignored: Tensor | None
    ) -> Tensor:
        """Queries ``(R, D)`` over what was written so far, ``(K, R, D)``; ``ignored`` is true where nothing is, or None."""
        layer, attention = self.layer, self.layer.self_attn
        attended = _attend(query, keys, values, attention.num_heads, ignored)
        return self._add(x, attention.out_proj(attended), layer.self_attn_layer_norm)

    def cross_attention(self, x: Tensor, keys: Tensor, values: Tensor, ignored: Tensor | None) -> Tensor:
        """Over the source, ``(S, B, D)``; ``ignored`` is true at its padding, or None."""
        layer, attention = self.layer, self.layer.encoder_attn
        normed = layer.encoder_attn_layer_norm(x) if layer.normalize_before else x
        attended = _attend(attention.q_proj(normed), keys, values, attention.num_heads, ignored)
        return self._add(x, attention.out_proj(attended), layer.encoder_attn_layer_norm)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The last part of the layer."""
        layer = self.layer
        normed = layer.final_layer_norm(x) if layer.normalize_before else x
        return self._add(x, layer.fc2(layer.activation_fn(layer.fc1(normed))), layer.final_layer_norm)

    def _add(self, x: Tensor, update: Tensor, norm: nn.Module) -> Tensor:
        x = x + update
        return x if self.layer.normalize_before else norm(x)


def _attend(query: Tensor, keys: Tensor, values: Tensor, heads: int, ignored: Tensor | None) -> Tensor:
    """Queries ``(R, D)`` over ``(K, B, D)``, ``R / B`` of them a sentence, to ``(R, D)``.

    ``ignored`` is ``(B, 1, 1, K)`` or ``(1, 1, 1, K)``, true where there is nothing to read.
    """
    (rows, width), sentences = query.shape, keys.size(1)
    head_dim, beam = width // heads, rows // sentences
    query = query * head_dim**-0.5
    if beam > 1:
        query = query.view(sentences, beam, heads, head_dim).transpose(1, 2)
    query = query.reshape(sentences * heads, beam, head_dim)
    weights = torch.bmm(
        query, keys.view(-1, sentences * heads, head_dim).permute(1, 2, 0)
    )  # (B * heads, beam, K)
    if ignored is not None:
        weights = (
            weights.view(sentences, heads, beam, -1).masked_fill(ignored, float("-inf")).view_as(weights)
        )
    weights = weights.softmax(dim=-1)
    attended = torch.bmm(weights, values.view(-1, sentences * heads, head_dim).transpose(0, 1))
    if beam > 1:
        attended = attended.view(sentences, heads, beam, head_dim).transpose(1, 2).reshape(rows, width)
    return attended.view(rows, width)
