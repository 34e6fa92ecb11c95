"""Losses over the vocabulary that do not fill memory.

A loss needs the student's and the teacher's logits at ``N`` positions over ``V`` symbols, and its gradient as many
again. Kept whole, these ``(N, V)`` tensors are most of a training step's memory. Here logits are made from what is
small, hidden states and the output matrix, for a chunk of positions at a time; the chunk's loss and its gradient for
hidden states and matrix are taken at once, so that no ``(N, V)`` tensor outlives a chunk and nothing is computed twice in
the backward pass.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_imitkd.losses.divergences import full_precision

Figures = dict[str, Tensor]

# (the student's logits at n positions (n, V), which of the N positions) -> the loss to add up (n,), figures (n,) of each
TokenLoss = Callable[[Tensor, slice], tuple[Tensor, Figures]]

# Logits of up to this many numbers are kept whole; more are made in chunks of so many. Few enough for a CPU's cache, where
# chunks are the faster way too (see benchmarks/NOTES.md); many enough to keep a GPU busy.
CHUNK_LOGITS = {"cpu": 2**20}
CHUNK_LOGITS_ELSEWHERE = 2**26
LEAST_CHUNK = (
    64  # positions: below, adding to the gradient of a large output matrix costs more than the logits
)


class Scores(Protocol):
    """The logits of ``N`` positions over ``V`` symbols, made when they are asked for."""

    def logits(self, positions: slice) -> Tensor:
        """``(n, V)``, those of some positions."""

    def at(self, positions: Tensor) -> "Scores":
        """The scores of some positions alone, ``(n,)`` rising indices."""


@dataclass(frozen=True)
class Whole:
    """Logits that are there, ``(N, V)``."""

    values: Tensor

    def logits(self, positions: slice) -> Tensor:
        """See :class:`Scores`."""
        return self.values[positions]

    def at(self, positions: Tensor) -> "Whole":
        """See :class:`Scores`."""
        return Whole(self.values[positions])


@dataclass(frozen=True)
class Averaged:
    """The logarithm of the weighted mean of several models' probabilities.

    Args:
        members: ``M`` scores of the same ``N`` positions.
        log_weights: ``(M,)``, or ``(N, M)`` where each position has its own; their exponentials add up to 1.
        of_logits: the weighted mean of the logits as they are, instead.
    """

    members: Sequence[Scores]
    log_weights: Tensor
    of_logits: bool = False

    def logits(self, positions: slice) -> Tensor:
        """See :class:`Scores`; of probabilities' means, these are log-probabilities."""
        weights = self.log_weights if self.log_weights.dim() == 1 else self.log_weights[positions]
        total: Tensor | None = None
        for number, member in enumerate(self.members):
            logits = full_precision(member.logits(positions))
            log_weight = weights[..., number].to(logits).unsqueeze(-1)
            if self.of_logits:
                weighted = logits * log_weight.exp()
                total = weighted if total is None else total + weighted
            else:
                weighted = logits.log_softmax(dim=-1) + log_weight
                total = weighted if total is None else torch.logaddexp(total, weighted)
        assert total is not None
        return total

    def at(self, positions: Tensor) -> "Averaged":
        """See :class:`Scores`."""
        weights = self.log_weights if self.log_weights.dim() == 1 else self.log_weights[positions]
        return Averaged([member.at(positions) for member in self.members], weights, self.of_logits)


@dataclass(frozen=True)
class Projected:
    """Logits still to be made: hidden states ``(N, D)``, the output matrix ``(V, D)`` and its bias ``(V,)`` or None.

    ``as_they_are``: in the precision that these have, under autocast too.
    """

    features: Tensor
    weight: Tensor
    bias: Tensor | None = None
    as_they_are: bool = field(default=False, kw_only=True)

    def logits(self, positions: slice) -> Tensor:
        """See :class:`Scores`."""
        with (
            torch.autocast(self.features.device.type, enabled=False)
            if self.as_they_are
            else contextlib.nullcontext()
        ):
            return F.linear(self.features[positions], self.weight, self.bias)

    def at(self, positions: Tensor) -> "Projected":
        """See :class:`Scores`."""
        return replace(self, features=self.features[positions])


def chunk_size(positions: int, symbols: int, device: torch.device, asked: int = 0) -> int:
    """How many positions a chunk of the loss has; 0 takes the logits whole.

    Args:
        positions, symbols: of the batch's logits.
        device: where they are.
        asked: ``--loss-chunk``: 0 chooses by size, a positive number is the answer, -1 is never to chunk.
    """
    if asked != 0:
        return max(asked, 0)
    room = CHUNK_LOGITS.get(device.type, CHUNK_LOGITS_ELSEWHERE)
    return 0 if positions * symbols <= room else max(LEAST_CHUNK, room // symbols)


def chunked_loss(student: Projected, token_loss: TokenLoss, chunk: int) -> tuple[Tensor, Figures]:
    """The sum of a loss over ``N`` positions, a chunk at a time, with its exact gradient.

    Args:
        student: hidden states and output matrix, whose gradients are wanted. In half precision the loss and the
            gradients' sums are computed in float32.
        token_loss: pure, of the student's logits; may be called for every chunk in turn.
        chunk: positions of one chunk, 1 or more.

    Returns:
        the summed loss ``()``, and each figure for all positions, ``(N,)``, without gradient.
    """
    parameters = (student.features, student.weight, student.bias)
    if not torch.is_grad_enabled():  # which a function's own needs_input_grad does not say
        parameters = (
            student.features.detach(),
            student.weight.detach(),
            None if student.bias is None else student.bias.detach(),
        )
    figures: list[Figures] = []
    loss = cast(Tensor, _ChunkedLoss.apply(*parameters, token_loss, chunk, figures))
    return loss, {name: torch.cat([part[name] for part in figures]) for name in figures[0]}


class _ChunkedLoss(torch.autograd.Function):
    """Takes the gradient while it takes the loss, for a loss that is going to be summed: backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        token_loss: TokenLoss,
        chunk: int,
        figures: list[Figures],
    ) -> Tensor:
        differentiate = any(ctx.needs_input_grad[:3])
        # Sums of many small numbers: a half-precision gradient, not yet scaled, would round to 0.
        precise = torch.float32 if features.dtype in (torch.float16, torch.bfloat16) else features.dtype
        total = features.new_zeros((), dtype=precise)
        if differentiate:
            features_grad = torch.empty_like(features, dtype=precise)
            weight_grad = torch.zeros_like(weight, dtype=precise)
            bias_grad = None if bias is None else torch.zeros_like(bias, dtype=precise)
            precise_weight = weight.to(precise)
        for start in range(0, max(features.size(0), 1), chunk):
            positions = slice(start, start + chunk)
            part = features[positions]
            logits = full_precision(
                F.linear(part, weight, bias)
            )  # its gradient would round away in half precision
            if not differentiate:
                losses, found = token_loss(logits, positions)
            else:
                with torch.enable_grad():
                    losses, found = token_loss(logits.requires_grad_(True), positions)
                    (grad,) = torch.autograd.grad(losses.sum(), logits)
                with torch.autocast(features.device.type, enabled=False):
                    grad = grad.to(precise)
                    torch.mm(grad, precise_weight, out=features_grad[positions])
                    torch.addmm(weight_grad, grad.t(), part.to(precise), out=weight_grad)
                    if bias_grad is not None:
                        bias_grad += grad.sum(dim=0)
            total += losses.detach().sum()
            figures.append({name: value.detach() for name, value in found.items()})
            logits = losses = found = grad = None  # type: ignore[assignment]  # let go of them before the next chunk's
        if differentiate:
            ctx.save_for_backward(features_grad, weight_grad, bias_grad)
            ctx.dtypes = (features.dtype, weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            None if grad is None else (grad * grad_outputs[0]).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None)


def token_lprobs(scores: Scores, tokens: Tensor, chunk: int) -> Tensor:
    """The log-probability of one symbol at each position, in float32 (float64 of float64), without gradient.

    Args:
        scores: of ``N`` positions.
        tokens: ``(N,)`` int64.
        chunk: positions at a time; 0 is all.
    """
    chunk = chunk or max(tokens.numel(), 1)
    found = []
    with torch.no_grad():
        for start in range(0, max(tokens.numel(), 1), chunk):
            positions = slice(start, start + chunk)
            logits = full_precision(scores.logits(positions))
            chosen = logits.gather(-1, tokens[positions].unsqueeze(-1)).squeeze(-1)
            found.append(chosen - logits.logsumexp(dim=-1))
    return torch.cat(found)
