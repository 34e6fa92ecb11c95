"""One fused operation of a decoding step on a GPU: the residual connection and the layer norm after it.

A step on a GPU costs about the number of its kernels. torch takes three for this: the bias, the residual and
the norm. Triton, which CUDA builds of torch bring along, makes it one. Without Triton, torch's are used.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LIBRARY = torch.library.Library("fairseq_imitkd", "DEF")
_LIBRARY.define(
    "add_layer_norm(Tensor x, Tensor update, Tensor bias, Tensor weight, Tensor norm_bias, float eps,"
    " bool post_norm, ScalarType dtype) -> (Tensor, Tensor)"
)


def add_layer_norm(
    x: Tensor,
    update: Tensor,
    *,
    bias: Tensor,
    weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    post_norm: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Add a sublayer's output to the residual stream, and normalise the sum.

    Args:
        x: residual stream, ``(R, D)``.
        update: output of the sublayer without its bias, ``(R, D)``.
        bias: that bias, ``(D,)``.
        weight, norm_bias: parameters of the layer norm, ``(D,)``.
        eps: constant of the layer norm.
        post_norm: the normalised sum is the new residual stream; otherwise the sum itself is.
        dtype: dtype of the next sublayer's input.

    Returns:
        the residual stream in its own dtype, and the normalised sum in ``dtype``, ``(R, D)`` each.
    """
    residual, normed = torch.ops.fairseq_imitkd.add_layer_norm(
        x, update, bias, weight, norm_bias, eps, post_norm, dtype
    )
    return residual, residual if post_norm and x.dtype == dtype else normed


def _with_torch(
    x: Tensor,
    update: Tensor,
    bias: Tensor,
    weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    post_norm: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    precise = torch.promote_types(x.dtype, torch.float32)
    total = x.to(precise) + (update.to(precise) + bias.to(precise))
    normed = F.layer_norm(total, total.shape[-1:], weight.to(precise), norm_bias.to(precise), eps)
    if not post_norm:
        return total.to(x.dtype, copy=True), normed.to(dtype)
    return normed.to(x.dtype), normed.new_empty(0, dtype=dtype) if x.dtype == dtype else normed.to(dtype)


def _with_triton(
    x: Tensor,
    update: Tensor,
    bias: Tensor,
    weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    post_norm: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    kernel = _triton_kernel()
    if kernel is None or x.dtype == torch.float64:
        return _with_torch(x, update, bias, weight, norm_bias, eps, post_norm, dtype)
    rows, width = x.shape
    residual = torch.empty_like(x)
    alone = post_norm and x.dtype == dtype
    normed = torch.empty((0,) if alone else x.shape, dtype=dtype, device=x.device)
    block = 1 << max(width - 1, 1).bit_length()
    kernel[(rows,)](
        x, update, bias, weight, norm_bias, residual, normed, width, eps,
        POST_NORM=post_norm, ALONE=alone, BLOCK=block, num_warps=min(max(block // 256, 1), 8),
    )  # fmt: skip
    return residual, normed


@functools.cache
def _triton_kernel() -> Any:
    """Return the kernel, or None without Triton."""
    try:
        from fairseq_imitkd.rollout.triton_kernel import add_layer_norm_kernel
    except ImportError:
        return None
    return add_layer_norm_kernel


_LIBRARY.impl("add_layer_norm", _with_torch, "CPU")
_LIBRARY.impl("add_layer_norm", _with_triton, "CUDA")
