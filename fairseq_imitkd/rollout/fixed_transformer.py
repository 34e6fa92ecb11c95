"""A decoding step of a stock transformer whose inputs and outputs stay at fixed places in memory.

:mod:`~fairseq_imitkd.rollout.cuda_graphs` records such steps. A replayed step costs about the number of its
kernels, so this step has few: 12 a layer with ReLU.

- One product makes query, key and value. The query's scale is folded into its weights.
- One operation writes key and value.
- Attention is ``scaled_dot_product_attention``.
- The activation belongs to the first product of the feed-forward block, if it is ReLU.
- Bias, residual connection and layer norm are one operation
  (:mod:`~fairseq_imitkd.rollout.kernels`).

With autocast, a rollout makes the half-precision copies of all weights once, not at each step. The residual
stream and the norms stay in float32, as in autocast.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.modules.gelu import gelu
from torch import Tensor, nn

from fairseq_imitkd.models.layer_drop import layers_of
from fairseq_imitkd.rollout.fast_transformer import embedded, position_embeddings
from fairseq_imitkd.rollout.kernels import add_layer_norm

# (name, sizes, dtype) -> a tensor of these sizes at a fixed place
Buffers = Callable[[str, Sequence[int], torch.dtype], Tensor]


@dataclass(frozen=True)
class Norm:
    """The parameters of a layer norm."""

    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def of(cls, norm: Any) -> "Norm":
        """Return the parameters of torch's or apex's module."""
        return cls(norm.weight, norm.bias, norm.eps)

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise ``(R, D)`` in its own dtype."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Copies:
    """Copies of parameters: concatenated, scaled, or in another dtype.

    Args:
        dtype: dtype of the copies.
    """

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self._targets: list[Tensor] = []
        self._sources: list[Tensor] = []
        self._scaled: list[Tensor] = []
        self._factors: list[float] = []

    def plain(self, parameter: Tensor) -> Tensor:
        """Return the parameter, or a copy of it if it has another dtype."""
        return parameter if parameter.dtype == self.dtype else self.joined([parameter])

    def joined(self, parameters: Sequence[Tensor], *, first_times: float = 1.0) -> Tensor:
        """Return a copy of parameters, one below the other, the first one multiplied by a factor."""
        sizes = [parameter.size(0) for parameter in parameters]
        copy = parameters[0].new_empty((sum(sizes), *parameters[0].shape[1:]), dtype=self.dtype)
        parts = copy.split(sizes)
        self._targets += parts
        self._sources += parameters
        if first_times != 1.0:
            self._scaled.append(parts[0])
            self._factors.append(first_times)
        return copy

    def refresh(self) -> None:
        """Copy the current values. The number of launches does not depend on the number of parameters."""
        if self._targets:
            torch._foreach_copy_(self._targets, self._sources)
        if self._scaled:
            torch._foreach_mul_(self._scaled, self._factors)


class LayerWeights:
    """What a step of one layer multiplies by.

    Args:
        layer: fairseq's layer.
        copies: makes the copies.
    """

    def __init__(self, layer: Any, copies: Copies):
        own, cross = layer.self_attn, layer.encoder_attn
        self.heads, self.cross_heads = own.num_heads, cross.num_heads
        projections = (own.q_proj, own.k_proj, own.v_proj)
        scale = own.head_dim**-0.5
        self.own = copies.joined([module.weight for module in projections], first_times=scale)
        self.own_bias = copies.joined([module.bias for module in projections], first_times=scale)
        self.own_out = copies.plain(own.out_proj.weight)
        scale = cross.head_dim**-0.5
        self.query = copies.joined([cross.q_proj.weight], first_times=scale)
        self.query_bias = copies.joined([cross.q_proj.bias], first_times=scale)
        self.cross_out = copies.plain(cross.out_proj.weight)
        self.first, self.first_bias = copies.plain(layer.fc1.weight), copies.plain(layer.fc1.bias)
        self.second = copies.plain(layer.fc2.weight)
        # These are added in the precision of the residual stream.
        self.own_out_bias, self.cross_out_bias = own.out_proj.bias, cross.out_proj.bias
        self.second_bias = layer.fc2.bias
        self.activation = F.gelu if layer.activation_fn is gelu else layer.activation_fn
        self.normalizes_before = bool(layer.normalize_before)
        self.own_norm = Norm.of(layer.self_attn_layer_norm)
        self.cross_norm = Norm.of(layer.encoder_attn_layer_norm)
        self.final_norm = Norm.of(layer.final_layer_norm)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Return the feed-forward block's output without its last bias, ``(R, D)``."""
        if self.activation is F.relu:
            hidden = torch._addmm_activation(self.first_bias, x, self.first.t())
        else:
            hidden = self.activation(F.linear(x, self.first, self.first_bias))
        return F.linear(hidden, self.second)


class DecoderWeights:
    """What a step multiplies by. It holds no module of the decoder.

    Args:
        decoder: decoder that :func:`~fairseq_imitkd.rollout.fast_transformer.unsupported_reason` accepts.
        dtype: dtype of the matrix products: that of autocast, or of the parameters.
    """

    def __init__(self, decoder: Any, dtype: torch.dtype):
        self.dtype = dtype
        self._copies = Copies(dtype)
        self.layers = [LayerWeights(layer, self._copies) for layer in layers_of(decoder)]
        self.norm = None if decoder.layer_norm is None else Norm.of(decoder.layer_norm)
        projection = decoder.project_out_dim
        self.project_out = None if projection is None else self._copies.plain(projection.weight)
        self.output = self._copies.plain(decoder.output_projection.weight)
        self.refresh()

    def refresh(self) -> None:
        """Copy the current weights, after an optimizer has changed them in place."""
        self._copies.refresh()


def matrix_dtype(decoder: nn.Module) -> torch.dtype:
    """Return the dtype of a decoder's matrix products: autocast's if it is on, else the parameters'."""
    if torch.is_autocast_enabled("cuda"):
        return torch.get_autocast_dtype("cuda")
    return next(decoder.parameters()).dtype


class FixedTransformer:
    """The decoding steps of ``R`` rows with room for ``S`` source positions and ``T`` target positions.

    Unused source and target positions are masked and also set to 0, because old values may be NaN, which an
    attention weight of 0 would not remove. Unused rows are computed and thrown away.

    Args:
        decoder: fairseq's decoder.
        weights: its weights.
        encoder_out: fairseq's encoder output of the batch, whose rows are the first of the ``R``.
        sizes: ``(R, S, T)``.
        buffers: returns tensors at fixed places.
    """

    def __init__(
        self,
        decoder: Any,
        weights: DecoderWeights,
        encoder_out: dict[str, list[Tensor]],
        *,
        sizes: tuple[int, int, int],
        buffers: Buffers,
    ):
        self.decoder = decoder
        self.weights = weights
        self.buffers = buffers
        [encoded] = encoder_out["encoder_out"]  # (S, B, D)
        sources, count, _ = encoded.shape
        # The rounded size may exceed the decoder's positions; rows are finished before that.
        self.positions = position_embeddings(decoder, min(sizes[2], decoder.max_positions()))
        self._allocate(sizes, weights.layers[0].own.size(1))
        for number, layer in enumerate(layers_of(decoder)):
            attention = layer.encoder_attn
            self.cross[number, 0, :sources, :count] = attention.k_proj(encoded)
            self.cross[number, 1, :sources, :count] = attention.v_proj(encoded)
        self.cross[:, :, sources:] = 0
        self.own.zero_()
        # A row whose positions were all ignored would be NaN, so an unused row attends to position 0.
        self.source_mask.fill_(float("-inf"))
        self.source_mask[count:, :, :, 0] = 0
        padding = encoder_out["encoder_padding_mask"]
        self.source_mask[:count, 0, 0, :sources] = 0
        if padding:
            self.source_mask[:count, 0, 0, :sources].masked_fill_(padding[0], float("-inf"))

    def shrink(self, rows: Tensor, sizes: tuple[int, int, int]) -> None:
        """Move some rows to the first places of smaller buffers.

        Args:
            rows: places of the rows that go on, ``(R',)`` with ``R'`` of the new sizes.
            sizes: the new ``(R', S, T)``.
        """
        own, cross = self.own.index_select(3, rows), self.cross.index_select(3, rows)
        mask = self.source_mask.index_select(0, rows)
        self._allocate(sizes, self.own.size(-1))
        self.own.copy_(own)
        self.cross.copy_(cross)
        self.source_mask.copy_(mask)

    def logits(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Compute one step; a graph can record it.

        Args:
            tokens: last token of each row, ``(R,)``.
            position: its position, ``(1,)`` int64.

        Returns:
            logits ``(R, V)`` in the dtype of the products.
        """
        weights = self.weights
        place = None if self.embedded is None else self.embedded.index_select(0, position)
        unwritten = self.target_mask.index_select(0, position)[:, None, None]  # (1, 1, 1, T)
        x = embedded(self.decoder, tokens, place)
        first = weights.layers[0]
        h = (first.own_norm(x) if first.normalizes_before else x).to(weights.dtype)
        followers = [layer.own_norm for layer in weights.layers[1:]]
        for number, (layer, following) in enumerate(
            zip(weights.layers, [*followers, weights.norm], strict=True)
        ):
            x, h = self._layer(
                layer, x, h, number=number, position=position, unwritten=unwritten, following=following
            )
        if weights.project_out is not None:
            h = F.linear(h, weights.project_out)
        return F.linear(h, weights.output)

    def _layer(
        self,
        layer: LayerWeights,
        x: Tensor,
        h: Tensor,
        *,
        number: int,
        position: Tensor,
        unwritten: Tensor,
        following: Norm | None,
    ) -> tuple[Tensor, Tensor]:
        """Compute a layer: residual stream and input of a sublayer, ``(R, D)`` each, to those of the next."""

        def added(update: Tensor, bias: Tensor, *, own: Norm, next_one: Norm | None) -> tuple[Tensor, Tensor]:
            norm = next_one if layer.normalizes_before else own
            if norm is None:  # pre-norm layers without a norm after the last one
                total = x + (update + bias)
                return total, total.to(self.weights.dtype)
            return add_layer_norm(
                x,
                update,
                bias=bias,
                weight=norm.weight,
                norm_bias=norm.bias,
                eps=norm.eps,
                post_norm=not layer.normalizes_before,
                dtype=self.weights.dtype,
            )

        width = layer.own.size(0) // 3
        query, written = F.linear(h, layer.own, layer.own_bias).split((width, 2 * width), dim=1)
        key_and_value = written.unflatten(1, (2, width)).transpose(0, 1)  # (2, R, D)
        self.own[number].index_copy_(1, position, key_and_value.unsqueeze(1))
        keys, values = self.own[number]
        attended = _attend(query, keys, values, heads=layer.heads, mask=unwritten)
        x, h = added(
            F.linear(attended, layer.own_out),
            layer.own_out_bias,
            own=layer.own_norm,
            next_one=layer.cross_norm,
        )
        query = F.linear(h, layer.query, layer.query_bias)
        keys, values = self.cross[number]
        attended = _attend(query, keys, values, heads=layer.cross_heads, mask=self.source_mask)
        x, h = added(
            F.linear(attended, layer.cross_out),
            layer.cross_out_bias,
            own=layer.cross_norm,
            next_one=layer.final_norm,
        )
        return added(layer.feed_forward(h), layer.second_bias, own=layer.final_norm, next_one=following)

    def _allocate(self, sizes: tuple[int, int, int], width: int) -> None:
        rows, sources, targets = sizes
        layers, dtype = len(self.weights.layers), self.weights.dtype
        # Keys and values of self-attention and of cross-attention.
        self.own = self.buffers("own", (layers, 2, targets, rows, width), dtype)
        self.cross = self.buffers("cross", (layers, 2, sources, rows, width), dtype)
        # What is added to attention weights: -inf at positions to ignore.
        self.source_mask = self.buffers("source_mask", (rows, 1, 1, sources), dtype)
        self.target_mask = self.buffers("target_mask", (targets, targets), dtype)
        self.target_mask.fill_(float("-inf")).triu_(1)
        self.embedded: Tensor | None = None  # position embeddings, (T, D)
        if self.positions is not None:
            self.embedded = self.buffers("positions", (targets, self.positions.size(1)), self.positions.dtype)
            self.embedded[: self.positions.size(0)] = self.positions[:targets]


def _attend(query: Tensor, keys: Tensor, values: Tensor, *, heads: int, mask: Tensor) -> Tensor:
    """Attend with scaled queries ``(R, D)`` to keys and values ``(K, R, D)``.

    Args:
        query, keys, values: projected inputs of the attention.
        heads: number of attention heads.
        mask: what is added to the attention weights, ``(R, 1, 1, K)`` or ``(1, 1, 1, K)``.

    Returns:
        ``(R, D)``.
    """
    query = query.unflatten(1, (heads, -1)).unsqueeze(2)  # (R, heads, 1, D / heads)
    keys, values = (part.unflatten(2, (heads, -1)).permute(1, 2, 0, 3) for part in (keys, values))
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=1.0).flatten(1)
