"""Losses over the vocabulary that do not fill memory.

A loss needs the student's and the teacher's logits at ``N`` positions over ``V`` symbols, and its gradient as many
again. Kept whole, these ``(N, V)`` tensors are most of a training step's memory. Here logits are made from what is
small, hidden states and the output matrix, for a chunk of positions at a time; the chunk's loss and its gradient for
hidden states and matrix are taken at once, so that no ``(N, V)`` tensor outlives a chunk and nothing is computed twice in
the backward pass.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_imitkd.models.logits import ProjectedLogits, full_precision

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


def chunked_loss(student: ProjectedLogits, token_loss: TokenLoss, chunk: int) -> tuple[Tensor, Figures]:
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
