"""Simple recurrent units (Lei et al., EMNLP 2018, arXiv 1709.02755): all that depends on the step before is elementwise.

A layer's matrix products are one, over all steps at once. What is left for the loop over time is, per step, three small
operations forward and one backward; nothing is compiled.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.autograd.function import once_differentiable


class _Recurrence(torch.autograd.Function):
    """``c_t = f_t * c_{t-1} + (1 - f_t) * candidate_t`` with ``f_t = sigmoid(forget_t + weight * c_{t-1})``."""

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
        slope = (before - candidates) * gates * (1.0 - gates)  # of a state over its gate's argument
        carry = torch.addcmul(gates, slope, weight)  # of a state over the one before
        grad = grad_states.clone(memory_format=torch.contiguous_format)
        for step in range(grad.size(0) - 1, 0, -1):
            grad[step - 1].addcmul_(grad[step], carry[step])
        grad_forget = grad * slope
        return grad * (1.0 - gates), grad_forget, (grad_forget * before).sum(dim=(0, 1)), grad[0] * carry[0]


def recurrence(candidates: Tensor, forget: Tensor, weight: Tensor, initial: Tensor) -> Tensor:
    """All states of a layer (equation 4, whose forget gate is equation 3).

    Args:
        candidates: ``(T, B, D)``, what a step would remember.
        forget: ``(T, B, D)``, the forget gate's argument but for the state's part; where it is infinite the state stays.
        weight: ``(D,)``, of the state in that argument.
        initial: ``(B, D)``, the state before the first step.

    Returns:
        ``(T, B, D)`` states, in the dtype of ``candidates``; computed in float32 at least.
    """
    exact = torch.promote_types(candidates.dtype, torch.float32)
    arguments = [each.to(exact) for each in (candidates, forget, weight, initial)]
    states = _exported(*arguments) if torch.compiler.is_exporting() else _Recurrence.apply(*arguments)
    return states.to(candidates.dtype)


def _exported(candidates: Tensor, forget: Tensor, weight: Tensor, initial: Tensor) -> Tensor:
    """The same as a graph: for any number of steps, where it is more than 1."""

    def step(state: Tensor, read: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        candidate, bias = read
        after = torch.lerp(candidate, state, torch.sigmoid(torch.addcmul(bias, state, weight)))
        return after, after.clone()  # a graph's outputs may not be one tensor

    if candidates.size(0) == 1:
        return step(initial, (candidates[0], forget[0]))[0].unsqueeze(0)
    return scan(step, initial, (candidates, forget))[1]


class SRULayer(nn.Module):
    """One layer, in one direction or two.

    Args:
        input_size: of the layer below.
        hidden_size: of a direction's state.
        bidirectional: a second direction reads from the end; the two are put side by side.
        projection_size: factorise the layer's matrix by so narrow a product; 0 does not.
        layer_norm: normalise the input.
        highway_bias: of the reset gate; the highway is scaled for it, so that variances stay (section 3.3).
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bidirectional: bool = False,
        projection_size: int = 0,
        layer_norm: bool = False,
        highway_bias: float = 0.0,
    ):
        super().__init__()
        self.hidden_size, self.directions = hidden_size, 2 if bidirectional else 1
        width = hidden_size * self.directions
        self.parts = (
            3 if input_size == width else 4
        )  # with another width, the highway needs a matrix of its own
        self.norm = nn.LayerNorm(input_size) if layer_norm else None
        inner = projection_size or input_size
        self.project = nn.Linear(input_size, projection_size, bias=False) if projection_size else None
        self.transform = nn.Linear(inner, self.parts * width, bias=False)
        self.state_weights = nn.Parameter(torch.empty(2, width))  # of the forget and the reset gate
        self.biases = nn.Parameter(torch.zeros(2, width))
        self.scale = math.sqrt(1.0 + 2.0 * math.exp(highway_bias)) if self.parts == 3 else 1.0
        for linear in filter(None, (self.project, self.transform)):  # section 3.3: variance 1 / d
            nn.init.uniform_(
                linear.weight, -math.sqrt(3.0 / linear.in_features), math.sqrt(3.0 / linear.in_features)
            )
        nn.init.uniform_(self.state_weights, -math.sqrt(1.5), math.sqrt(1.5))
        nn.init.constant_(self.biases[1], highway_bias)

    def forward(
        self, x: Tensor, initial: Tensor | None = None, padding: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Read a batch.

        Args:
            x: ``(T, B, input_size)``.
            initial: ``(B, D)`` states to go on from, ``D`` of all directions together; None is zeros.
            padding: ``(T, B)`` bool, steps at which nothing is read; at either end. None is none.

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
        states = recurrence(candidates, forget, self.state_weights[0], first)
        before = torch.cat([first.unsqueeze(0).to(states.dtype), states[:-1]])
        gate = torch.sigmoid(reset + self.biases[1] + self.state_weights[1] * before)
        return torch.lerp(highway, self._in_order(states), self._in_order(gate).to(highway.dtype)), states[-1]

    def _in_order(self, values: Tensor) -> Tensor:
        """``(T, B, D)`` with the second direction's steps from the last to the first, or back."""
        if self.directions == 1:
            return values
        forward, backward = values.split(self.hidden_size, dim=-1)
        return torch.cat([forward, backward.flip(0)], dim=-1)


class SRU(nn.Module):
    """Layers of :class:`SRULayer`, with dropout between them.

    Args:
        layers: how many.
        dropout: of each layer's output but the last's.
        others: as of a layer.
    """

    def __init__(self, input_size: int, hidden_size: int, layers: int, dropout: float = 0.0, **others: Any):
        super().__init__()
        width = hidden_size * (2 if others.get("bidirectional") else 1)
        self.layers = nn.ModuleList(
            SRULayer(input_size if number == 0 else width, hidden_size, **others) for number in range(layers)
        )
        self.dropout = dropout

    def forward(
        self, x: Tensor, initial: Tensor | None = None, padding: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`SRULayer.forward`, with states ``(L, B, D)`` of all layers."""
        last = []
        for number, layer in enumerate(self.layers):
            if number > 0:
                x = F.dropout(x, self.dropout, self.training)
            x, state = layer(x, None if initial is None else initial[number], padding)
            last.append(state)
        return x, torch.stack(last)
