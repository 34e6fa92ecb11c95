"""Losses over the vocabulary in little memory.

A loss needs the student's and the teacher's logits at ``N`` positions over ``V`` symbols, and a gradient of
the same size. These ``(N, V)`` tensors would take most of the memory of a training step. This module computes
logits from hidden states and the output matrix for one chunk of positions at a time. It takes the chunk's
loss and gradients together, so no ``(N, V)`` tensor outlives its chunk, and the backward pass computes
nothing twice.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from fairseq_imitkd.models.logits import ProjectedLogits, full_precision

TokenValues = dict[str, Tensor]  # values to log by name, one for each position

# (the student's logits at n positions (n, V), which of the N positions these are) -> losses (n,), values (n,)
TokenLoss = Callable[[Tensor, slice], tuple[Tensor, TokenValues]]


def chunked_loss(student: ProjectedLogits, token_loss: TokenLoss, chunk: int) -> tuple[Tensor, TokenValues]:
    """Return the sum of a loss over ``N`` positions, computed in chunks, with its exact gradient.

    Args:
        student: hidden states and output matrix, which get the gradients. The loss and the sums of gradients
            are in float32 if these are in half precision.
        token_loss: pure function of the student's logits; it is called once per chunk, in order.
        chunk: number of positions per chunk, at least 1.

    Returns:
        the summed loss ``()``, and the values to log at all positions, ``(N,)`` each, without gradient.
    """
    parameters = (student.features, student.weight, student.bias)
    if not torch.is_grad_enabled():  # needs_input_grad of the function below ignores the grad mode
        parameters = (
            student.features.detach(),
            student.weight.detach(),
            None if student.bias is None else student.bias.detach(),
        )
    by_chunk: list[TokenValues] = []
    loss = cast(Tensor, _ChunkedLoss.apply(*parameters, token_loss, chunk, by_chunk))
    return loss, {name: torch.cat([values[name] for values in by_chunk]) for name in by_chunk[0]}


class _ChunkedLoss(torch.autograd.Function):
    """Computes the gradient of the summed loss together with the loss; the backward pass only scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        token_loss: TokenLoss,
        chunk: int,
        by_chunk: list[TokenValues],
    ) -> Tensor:
        student = ProjectedLogits(features, weight, bias)
        gradients = _Gradients(student) if any(ctx.needs_input_grad[:3]) else None
        total = features.new_zeros((), dtype=_sum_dtype(features))
        for start in range(0, max(features.size(0), 1), chunk):
            loss, values = _chunk_loss(student, slice(start, start + chunk), token_loss, gradients=gradients)
            total += loss
            by_chunk.append(values)
        if gradients is not None:
            ctx.save_for_backward(gradients.features, gradients.weight, gradients.bias)
            ctx.dtypes = (features.dtype, weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            None if grad is None else (grad * grad_outputs[0]).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None)


class _Gradients:
    """Gradients of hidden states ``(N, D)``, output matrix ``(V, D)`` and bias ``(V,)``, summed by chunk."""

    def __init__(self, student: ProjectedLogits):
        self._student, self._dtype = student, _sum_dtype(student.features)
        device = student.features.device.type
        half = student.features.dtype != self._dtype or torch.is_autocast_enabled(device)
        self._uses_tensor_cores = half and student.features.is_cuda
        self._weight = student.weight.to(self._dtype)
        self.features = torch.empty_like(student.features, dtype=self._dtype)
        self.weight = torch.zeros_like(student.weight, dtype=self._dtype)
        self.bias = None if student.bias is None else torch.zeros_like(student.bias, dtype=self._dtype)

    def add(self, positions: slice, grad: Tensor) -> None:
        """Add the gradients that follow from the gradient ``(n, V)`` of the logits at some positions."""
        features = self._student.features[positions]
        with torch.autocast(features.device.type, enabled=False), tensor_cores(self._uses_tensor_cores):
            grad = grad.to(self._dtype)
            torch.mm(grad, self._weight, out=self.features[positions])
            torch.addmm(self.weight, grad.t(), features.to(self._dtype), out=self.weight)
            if self.bias is not None:
                self.bias += grad.sum(dim=0)


@contextmanager
def tensor_cores(wanted: bool) -> Iterator[None]:
    """Compute float32 products on a GPU's tensor cores, in TF32, if this is wanted.

    TF32 has float32's range, so small gradients do not become 0, and the precision of float16. Without it,
    the gradient of a half-precision model would be computed on the much slower float32 units.
    """
    before = torch.get_float32_matmul_precision()
    if wanted:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _chunk_loss(
    student: ProjectedLogits, positions: slice, token_loss: TokenLoss, *, gradients: _Gradients | None
) -> tuple[Tensor, TokenValues]:
    """Return the summed loss and the values to log of one chunk, and add to ``gradients`` unless it is None.

    The chunk's large tensors are freed when this returns, before the next chunk needs memory.
    """
    logits = full_precision(student.logits(positions))  # in half precision, small gradients would round to 0
    if gradients is None:
        losses, values = token_loss(logits, positions)
    else:
        with torch.enable_grad():
            losses, values = token_loss(logits.requires_grad_(True), positions)
            (grad,) = torch.autograd.grad(losses.sum(), logits)
        gradients.add(positions, grad)
    return losses.detach().sum(), {name: value.detach() for name, value in values.items()}


def _sum_dtype(features: Tensor) -> torch.dtype:
    """Return the dtype of sums: an unscaled gradient in half precision would round to 0."""
    return torch.float32 if features.dtype in (torch.float16, torch.bfloat16) else features.dtype
