"""Simple recurrent units (Lei et al., EMNLP 2018, arXiv 1709.02755), in which the recurrence is elementwise.

One matrix product per layer covers all steps. The loop over time does three small operations per step in the
forward pass and one in the backward pass. Nothing is compiled.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.autograd.function import once_differentiable


class _Recurrence(torch.autograd.Function):
    """``c_t = f_t c_{t-1} + (1 - f_t) candidate_t`` with ``f_t = sigmoid(forget_t + weight c_{t-1})``."""

    @staticmethod
    def forward(ctx: Any, candidates: Tensor, forget: Tensor, weight: Tensor, initial: Tensor) -> Tensor:
        gates, states = torch.empty_like(candidates), torch.empty_like(candidates)
        state = initial
        for gate, candidate, bias, out in zip(gates, candidates, forget, states, strict=True):
            torch.addcmul(bias, state, weight, out=gate).sigmoid_()
            torch.lerp(candidate, state, gate, out=out)
            state = out
        ctx.save_for_backward(candidates, gates, states, weight, initial)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor) -> tuple[Tensor, ...]:
        candidates, gates, states, weight, initial = ctx.saved_tensors
        before = torch.cat([initial.unsqueeze(0), states[:-1]])
        slope = (before - candidates) * gates * (1.0 - gates)  # derivative of a state by its gate's argument
        carry = torch.addcmul(gates, slope, weight)  # derivative of a state by the previous state
        grad = grad_states.clone(memory_format=torch.contiguous_format)
        for step in range(grad.size(0) - 1, 0, -1):
            grad[step - 1].addcmul_(grad[step], carry[step])
        grad_forget = grad * slope
        return grad * (1.0 - gates), grad_forget, (grad_forget * before).sum(dim=(0, 1)), grad[0] * carry[0]


def recurrence(candidates: Tensor, forget: Tensor, *, weight: Tensor, initial: Tensor) -> Tensor:
    """Return all states of a layer: equation 4 of the paper, with the forget gate of equation 3.

    Args:
        candidates: candidate states, ``(T, B, D)``.
        forget: argument of the forget gate without the state's part, ``(T, B, D)``. Infinity keeps the state.
        weight: weight of the previous state in the gate's argument, ``(D,)``.
        initial: state before the first step, ``(B, D)``.

    Returns:
        states ``(T, B, D)`` in the dtype of ``candidates``, computed in float32 or float64.
    """
    exact = torch.promote_types(candidates.dtype, torch.float32)
    inputs, gates, weights, first = (each.to(exact) for each in (candidates, forget, weight, initial))
    if torch.compiler.is_exporting():
        states = _exported(inputs, gates, weight=weights, initial=first)
    else:
        states = _Recurrence.apply(inputs, gates, weights, first)
    return states.to(candidates.dtype)


def _exported(candidates: Tensor, forget: Tensor, *, weight: Tensor, initial: Tensor) -> Tensor:
    """Compute the states as an exportable graph, which is valid for any number of steps above 1."""

    def step(state: Tensor, read: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        candidate, bias = read
        after = torch.lerp(candidate, state, torch.sigmoid(torch.addcmul(bias, state, weight)))
        return after, after.clone()  # the outputs of a graph must be different tensors

    if candidates.size(0) == 1:
        return step(initial, (candidates[0], forget[0]))[0].unsqueeze(0)
    return scan(step, initial, (candidates, forget))[1]


class SRULayer(nn.Module):
    """One layer, in one direction or two.

    Args:
        input_size: width of the input.
        hidden_size: width of one direction's state.
        bidirectional: add a second direction that reads from the end, and concatenate both outputs.
        projection_size: factorise the layer's matrix into two with this inner width (0: do not).
        layer_norm: normalise the input.
        highway_bias: initial bias of the reset gate. The highway is scaled accordingly to keep the variance
            (section 3.3).
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bidirectional: bool = False,
        projection_size: int = 0,
        layer_norm: bool = False,
        highway_bias: float = 0.0,
    ):
        super().__init__()
        self.hidden_size, self.directions = hidden_size, 2 if bidirectional else 1
        width = hidden_size * self.directions
        self.parts = 3 if input_size == width else 4  # otherwise the highway needs a matrix
        self.norm = nn.LayerNorm(input_size) if layer_norm else None
        inner = projection_size or input_size
        self.project = nn.Linear(input_size, projection_size, bias=False) if projection_size else None
        self.transform = nn.Linear(inner, self.parts * width, bias=False)
        self.state_weights = nn.Parameter(torch.empty(2, width))  # forget gate and reset gate
        self.biases = nn.Parameter(torch.zeros(2, width))
        self.scale = math.sqrt(1.0 + 2.0 * math.exp(highway_bias)) if self.parts == 3 else 1.0
        for linear in filter(None, (self.project, self.transform)):
            bound = math.sqrt(3.0 / linear.in_features)  # variance 1 / d (section 3.3)
            nn.init.uniform_(linear.weight, -bound, bound)
        nn.init.uniform_(self.state_weights, -math.sqrt(1.5), math.sqrt(1.5))
        nn.init.constant_(self.biases[1], highway_bias)

    def forward(
        self, x: Tensor, initial: Tensor | None = None, padding: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Read a batch.

        Args:
            x: ``(T, B, input_size)``.
            initial: initial states ``(B, D)``, where ``D`` is the width of all directions together; None:
                zeros.
            padding: ``(T, B)`` bool, true at steps to skip, at either end; None: no padding.

        Returns:
            outputs ``(T, B, D)``, and the states ``(B, D)`` after the last step of each direction.
        """
        if self.norm is not None:
            x = self.norm(x)
        steps, rows, _ = x.shape
        width = self.hidden_size * self.directions
        inner = x if self.project is None else self.project(x)
        parts = self.transform(inner).view(steps, rows, self.parts, width)
        highway = x * self.scale if self.parts == 3 else parts[:, :, 3]
        candidates, forget, reset = (self._in_order(parts[:, :, part]) for part in range(3))
        forget = forget + self.biases[0]
        if padding is not None:
            pads = padding.unsqueeze(-1).expand(-1, -1, width)
            forget = forget.masked_fill(self._in_order(pads), math.inf)
        first = x.new_zeros(rows, width) if initial is None else initial
        states = recurrence(candidates, forget, weight=self.state_weights[0], initial=first)
        before = torch.cat([first.unsqueeze(0).to(states.dtype), states[:-1]])
        gate = torch.sigmoid(reset + self.biases[1] + self.state_weights[1] * before)
        return torch.lerp(highway, self._in_order(states), self._in_order(gate).to(highway.dtype)), states[-1]

    def _in_order(self, values: Tensor) -> Tensor:
        """Reverse the second direction's steps of ``(T, B, D)``."""
        if self.directions == 1:
            return values
        forward, backward = values.split(self.hidden_size, dim=-1)
        return torch.cat([forward, backward.flip(0)], dim=-1)


class SRU(nn.Module):
    """A stack of :class:`SRULayer` with dropout between the layers.

    Args:
        input_size: width of the input.
        hidden_size: width of one direction's state.
        layers: number of layers.
        dropout: dropout after each layer except the last.
        others: other arguments of :class:`SRULayer`.
    """

    def __init__(
        self, input_size: int, hidden_size: int, layers: int, *, dropout: float = 0.0, **others: Any
    ):
        super().__init__()
        width = hidden_size * (2 if others.get("bidirectional") else 1)
        self.layers = nn.ModuleList(
            SRULayer(input_size if number == 0 else width, hidden_size, **others) for number in range(layers)
        )
        self.dropout = dropout

    def forward(
        self, x: Tensor, initial: Tensor | None = None, padding: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Read a batch like :meth:`SRULayer.forward`, with the states ``(L, B, D)`` of all layers."""
        last = []
        for number, layer in enumerate(self.layers):
            if number > 0:
                x = F.dropout(x, self.dropout, self.training)
            x, state = layer(x, None if initial is None else initial[number], padding)
            last.append(state)
        return x, torch.stack(last)
