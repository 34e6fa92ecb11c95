"""The fast path: one decoding step of a stock fairseq transformer.

At each step, fairseq's incremental attention copies all caches of keys and values to append to them, and
projects query, key and value separately. See
https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/modules/multihead_attention.py#L574-L674
Here the caches are preallocated and written in place, one matrix product makes the three projections, and the
keys and values of cross-attention are computed once. The arithmetic is that of fairseq's
``TransformerDecoderBase``, so the tokens are the same.

Only decoders that consist of fairseq's own modules take this path: see :func:`unsupported_reason`.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.models import BaseFairseqModel
from fairseq.models.speech_to_text.convtransformer import TransformerDecoderNoExtra
from fairseq.models.speech_to_text.s2t_transformer import TransformerDecoderScriptable
from fairseq.models.transformer import TransformerDecoder, TransformerDecoderBase
from fairseq.modules import FairseqDropout, MultiheadAttention
from fairseq.modules.transformer_layer import TransformerDecoderLayer, TransformerDecoderLayerBase
from torch import Tensor, nn

from fairseq_imitkd.models.layer_drop import layers_of

_DECODERS = (
    TransformerDecoderBase,
    TransformerDecoder,
    # Of speech models. They differ in what else they return.
    TransformerDecoderScriptable,
    TransformerDecoderNoExtra,
)
INITIAL_CAPACITY = 32  # positions that the caches can hold at first

# One layer's keys and values so far, (K, R, D) each, and a mask (1, 1, 1, K) of positions to ignore, or None.
Remembered = tuple[Tensor, Tensor, Tensor | None]


def unsupported_reason(model: BaseFairseqModel) -> str | None:
    """Return why a model can't take the fast path, in a few words, or None if it can.

    Supported are post-norm and pre-norm layers; learned, sinusoidal or no positions; tied and untied
    embeddings of any width; normalised embeddings; and LayerDrop, which keeps all layers in decoding.
    """
    return unsupported_decoder_reason(model.decoder, with_cross_attention=True)


def unsupported_decoder_reason(decoder: Any, *, with_cross_attention: bool) -> str | None:
    """Return why a decoder's layers can't be computed here, in a few words, or None if they can.

    Args:
        decoder: the decoder.
        with_cross_attention: whether its layers read a source, or none of them.
    """
    if type(decoder) not in _DECODERS:
        return f"its decoder is a {type(decoder).__name__}"
    if decoder.adaptive_softmax is not None:
        return "it has an adaptive softmax"
    if decoder.cross_self_attention or decoder.quant_noise is not None:
        return "it has cross-self-attention or quantisation noise"
    for layer in layers_of(decoder):
        if type(layer) not in (TransformerDecoderLayerBase, TransformerDecoderLayer):
            return f"a layer is a {type(layer).__name__}"
        if (layer.encoder_attn is not None) != with_cross_attention:
            return "it has no cross-attention" if with_cross_attention else "it has cross-attention"
        if any(
            part is not None for part in (layer.c_attn, layer.attn_ln, layer.ffn_layernorm, layer.w_resid)
        ):
            return "its layers are scaled (NormFormer)"
        for attention in filter(None, (layer.self_attn, layer.encoder_attn)):
            if type(attention) is not MultiheadAttention or attention.use_xformers:
                return "its attention is not fairseq's own"
            if attention.bias_k is not None or attention.add_zero_attn:
                return "its attention has extra keys"
            projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)
            if any(type(projection) is not nn.Linear for projection in (*projections, layer.fc1, layer.fc2)):
                return "a projection is not a plain linear layer"
    for module in decoder.modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return "its modules have hooks"
        if isinstance(module, FairseqDropout) and module.apply_during_inference:
            return "its dropout stays on in evaluation mode"
    return None


class TransformerSteps:
    """A batch of ``R`` rows part-way through decoding; see :class:`~fairseq_imitkd.rollout.steps.Steps`.

    Keys and values have the time in front, ``(T, R, D)``, as the projections return them. So each step writes
    one block of memory, and dropping rows copies whole blocks.

    Args:
        decoder: decoder in evaluation mode that :func:`unsupported_reason` accepts.
        encoder_out: fairseq's encoder output for ``B`` sentences and ``S`` source positions; None without
            cross-attention.
        longest: maximum number of tokens that the decoder will read per row; it bounds the caches.
        beam: number of adjacent rows per sentence, ``R = B * beam``. They share the keys and values of their
            source.
    """

    def __init__(
        self, decoder: Any, encoder_out: dict[str, list[Tensor]] | None, longest: int, *, beam: int = 1
    ):
        self.decoder = decoder
        self.longest = longest
        self.beam = beam
        self.layers = [DecoderLayer(layer) for layer in layers_of(decoder)]
        self.positions: Tensor | None = None  # embeddings of the first positions, (t, D)
        # Keys and values of self-attention, (layers, 2, capacity, R, D). The first key sets the dtype.
        self.own = torch.empty(len(self.layers), 2, 0)
        self.spare: Tensor | None = None  # memory for the next reordering of a beam
        self.filled = 0  # positions that hold a key
        self.rows_computed = 0
        self.cross: Any = None  # of each layer the source's keys and values, (S, B, D) each
        self.ignored: Tensor | None = None  # padding, (B, 1, 1, S); None if no sentence is padded
        if encoder_out is not None:
            [encoded] = encoder_out["encoder_out"]  # (S, B, D)
            self.cross = [layer.cross_keys_and_values(encoded) for layer in self.layers]
            padding = encoder_out["encoder_padding_mask"]
            if padding and bool(padding[0].any()):
                self.ignored = padding[0][:, None, None, :]

    def logits(self, tokens: Tensor) -> Tensor:
        """See :class:`~fairseq_imitkd.rollout.steps.Steps`."""
        logits = self._next_logits(tokens[:, -1])
        self.rows_computed += tokens.size(0)
        return logits

    def _next_logits(self, tokens: Tensor) -> Tensor:
        """Read one more position of all rows, their last tokens ``(R,)``, and return logits ``(R, V)``."""
        x = embedded(self.decoder, tokens, self._position())
        for number, layer in enumerate(self.layers):
            query, key, value = layer.query_key_value(x)
            x = layer.self_attention(x, query, self._remember(number, key, value))
            if self.cross is not None:
                x = layer.cross_attention(x, self.cross[number], self.ignored)
            x = layer.feed_forward(x)
        self.filled += 1
        return output(self.decoder, x)

    def keep(self, rows: Tensor) -> None:
        """Drop all rows except these, ``(K,)``.

        Without a beam, they are increasing indices. With a beam, they are ``beam`` rows of each remaining
        sentence, in any order.
        """
        self._reorder(rows)
        sentences = rows[:: self.beam] // self.beam if self.beam > 1 else rows
        if sentences.numel() < self.cross[0][0].size(1):
            self.cross = [
                (keys.index_select(1, sentences), values.index_select(1, sentences))
                for keys, values in self.cross
            ]
            if self.ignored is not None:
                self.ignored = self.ignored.index_select(0, sentences)

    def _reorder(self, rows: Tensor) -> None:
        """Let the caches of self-attention hold these rows, ``(K,)``."""
        layers, two, capacity, _, width = self.own.shape
        shape = (layers, two, capacity, rows.numel(), width)
        # A beam reorders its rows at every step. Allocating memory costs as much as the copy, so two blocks
        # alternate.
        own = self.own.new_empty(shape) if self.spare is None else self.spare[: math.prod(shape)].view(shape)
        torch.index_select(self.own[:, :, : self.filled], 3, rows, out=own[:, :, : self.filled])
        self.spare = self.own.flatten() if self.beam > 1 else None
        self.own = own

    def _position(self) -> Tensor | None:
        """Return the embedding of the next position, ``(D,)``, or None if the decoder has none."""
        if self.positions is None or self.filled >= self.positions.size(0):
            self.positions = position_embeddings(self.decoder, self._capacity())
        return None if self.positions is None else self.positions[self.filled]

    def _capacity(self) -> int:
        """Return the caches' next size. It doubles, because few sentences reach their maximum length."""
        return min(self.longest, max(INITIAL_CAPACITY, 2 * self.filled))

    def _remember(self, number: int, key: Tensor, value: Tensor) -> Remembered:
        """Store a layer's key and value of this position, ``(R, D)`` each; return those so far."""
        if number == 0 and self.filled >= self.own.size(2):
            self._grow(key)
        self.own[number, 0, self.filled] = key
        self.own[number, 1, self.filled] = value
        so_far = self.own[number, :, : self.filled + 1]
        return so_far[0], so_far[1], None

    def _grow(self, key: Tensor) -> None:
        own = key.new_empty((len(self.layers), 2, self._capacity(), *key.shape))
        if self.filled > 0:
            own[:, :, : self.filled] = self.own
        self.own, self.spare = own, None


def output(decoder: Any, x: Tensor) -> Tensor:
    """Return the logits ``(R, V)`` of the last layer's output ``(R, D)``."""
    if decoder.layer_norm is not None:
        x = decoder.layer_norm(x)
    if decoder.project_out_dim is not None:
        x = decoder.project_out_dim(x)
    return decoder.output_layer(x)


def embedded(decoder: Any, tokens: Tensor, position: Tensor | None) -> Tensor:
    """Return the input ``(R, D)`` of the first layer, or ``(S, R, D)`` of several positions.

    Args:
        decoder: fairseq's decoder.
        tokens: last token of each row, ``(R,)``, or tokens at ``S`` positions, ``(S, R)``.
        position: embedding of the position, in a shape that fits the result, or None.
    """
    x = decoder.embed_scale * decoder.embed_tokens(tokens)
    if decoder.project_in_dim is not None:
        x = decoder.project_in_dim(x)
    if position is not None:
        x = x + position
    if decoder.layernorm_embedding is not None:
        x = decoder.layernorm_embedding(x)
    return x


def position_embeddings(decoder: Any, longest: int) -> Tensor | None:
    """Return the embeddings of the first positions, ``(longest, D)``, or None if the decoder has none."""
    if decoder.embed_positions is None:
        return None
    pad = decoder.embed_positions.padding_idx
    # Any symbol but padding gives the same positions.
    tokens = torch.full((1, longest), pad + 1, device=decoder.embed_tokens.weight.device)
    return decoder.embed_positions(tokens)[0]


class DecoderLayer:
    """The parts of one decoder layer, at one position of ``R`` rows: ``(R, D)`` to ``(R, D)``.

    Parts that do not attend also take several positions, ``(S, R, D)``.

    Args:
        layer: fairseq's layer.
    """

    def __init__(self, layer: Any):
        self.layer = layer
        projections = (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
        self.own_weight = torch.cat([projection.weight for projection in projections])
        self.own_bias = torch.cat([projection.bias for projection in projections])

    def cross_keys_and_values(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of encoder outputs, each of the same shape ``(S, R, D)``."""
        return self.layer.encoder_attn.k_proj(encoded), self.layer.encoder_attn.v_proj(encoded)

    def query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value of self-attention, ``(R, D)`` each."""
        if self.layer.normalize_before:
            x = self.layer.self_attn_layer_norm(x)
        query, key, value = F.linear(x, self.own_weight, self.own_bias).chunk(3, dim=-1)
        return query, key, value

    def self_attention(self, x: Tensor, query: Tensor, remembered: Remembered) -> Tensor:
        """Attend with queries ``(R, D)`` to the positions so far."""
        layer, attention = self.layer, self.layer.self_attn
        keys, values, ignored = remembered
        attended = _attend(query, keys, values, heads=attention.num_heads, ignored=ignored)
        return self._add(x, attention.out_proj(attended), layer.self_attn_layer_norm)

    def causal_self_attention(self, x: Tensor, query: Tensor, *, key: Tensor, value: Tensor) -> Tensor:
        """Attend from ``S`` positions, ``(S, R, D)`` each, to themselves and to those before them.

        Padding on the right is read by padding alone.
        """
        layer, attention = self.layer, self.layer.self_attn
        positions, rows, width = query.shape
        queries, keys, values = (
            each.view(positions, rows, attention.num_heads, -1).permute(1, 2, 0, 3)
            for each in (query, key, value)
        )
        # (R, heads, S, D / heads)
        attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        joined = attended.permute(2, 0, 1, 3).reshape(positions, rows, width)
        return self._add(x, attention.out_proj(joined), layer.self_attn_layer_norm)

    def cross_attention(self, x: Tensor, cross: tuple[Tensor, Tensor], ignored: Tensor | None) -> Tensor:
        """Attend to the source's keys and values, ``(S, B, D)``, except where ``ignored`` is true."""
        layer, attention = self.layer, self.layer.encoder_attn
        normed = layer.encoder_attn_layer_norm(x) if layer.normalize_before else x
        attended = _attend(attention.q_proj(normed), *cross, heads=attention.num_heads, ignored=ignored)
        return self._add(x, attention.out_proj(attended), layer.encoder_attn_layer_norm)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Apply the feed-forward block, the last part of the layer."""
        layer = self.layer
        normed = layer.final_layer_norm(x) if layer.normalize_before else x
        return self._add(x, layer.fc2(layer.activation_fn(layer.fc1(normed))), layer.final_layer_norm)

    def _add(self, x: Tensor, update: Tensor, norm: nn.Module) -> Tensor:
        x = x + update
        return x if self.layer.normalize_before else norm(x)


def _attend(query: Tensor, keys: Tensor, values: Tensor, *, heads: int, ignored: Tensor | None) -> Tensor:
    """Attend with queries ``(R, D)``, ``R / B`` adjacent ones per sentence, to ``(K, B, D)`` keys and values.

    Args:
        query, keys, values: projected inputs of the attention.
        heads: number of attention heads.
        ignored: mask that is true at positions to ignore, ``(B, 1, 1, K)`` or ``(1, 1, 1, K)``, or None.

    Returns:
        ``(R, D)``.
    """
    (rows, width), sentences = query.shape, keys.size(1)
    head_dim, beam = width // heads, rows // sentences
    query = query * head_dim**-0.5
    if beam > 1:
        query = query.view(sentences, beam, heads, head_dim).transpose(1, 2)
    query = query.reshape(sentences * heads, beam, head_dim)
    keys = keys.view(-1, sentences * heads, head_dim).permute(1, 2, 0)
    weights = torch.bmm(query, keys)  # (B * heads, beam, K)
    if ignored is not None:
        by_head = weights.view(sentences, heads, beam, -1)
        weights = by_head.masked_fill(ignored, float("-inf")).view_as(weights)
    weights = weights.softmax(dim=-1)
    attended = torch.bmm(weights, values.view(-1, sentences * heads, head_dim).transpose(0, 1))
    if beam > 1:
        attended = attended.view(sentences, heads, beam, head_dim).transpose(1, 2).reshape(rows, width)
    return attended.view(rows, width)
