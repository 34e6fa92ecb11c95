"""Two fused operations of a decoding step on a GPU. A step there costs about the number of its kernels.

:func:`add_layer_norm` is the residual connection and the layer norm after it, for which torch takes three
kernels: the bias, the residual and the norm. :func:`nucleus` finds the tokens of nucleus sampling without
sorting the vocabulary. On a GPU, both use Triton, which CUDA builds of torch bring along. Without Triton,
torch's kernels are used.
"""

import functools
import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_imitkd.errors import in_one_line

logger = logging.getLogger(__name__)

_LIBRARY = torch.library.Library("fairseq_imitkd", "DEF")
_LIBRARY.define(
    "add_layer_norm(Tensor x, Tensor update, Tensor bias, Tensor weight, Tensor norm_bias, float eps,"
    " bool post_norm, ScalarType dtype) -> (Tensor, Tensor)"
)
_LIBRARY.define("nucleus(Tensor probs, float topp) -> Tensor")

FEW = 64  # tokens that are sorted first on a CPU


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


def nucleus(probs: Tensor, topp: float) -> Tensor:
    """Find the smallest set of tokens whose total probability reaches ``topp``.

    Among tokens of equal probability, those of lower index come first.

    Args:
        probs: probabilities, ``(N, V)`` float32.
        topp: above 0 and at most 1.

    Returns:
        ``(N, V)`` bool: whether a token is in its row's set.
    """
    found: Tensor = torch.ops.fairseq_imitkd.nucleus(probs, topp)
    return found


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
    rows, width = x.shape
    residual = torch.empty_like(x)
    alone = post_norm and x.dtype == dtype
    normed = torch.empty((0,) if alone else x.shape, dtype=dtype, device=x.device)
    block = 1 << max(width - 1, 1).bit_length()
    is_done = x.dtype != torch.float64 and _launch(
        "add_layer_norm", rows, x, update, bias, weight, norm_bias, residual, normed, width, eps,
        POST_NORM=post_norm, ALONE=alone, BLOCK=block, num_warps=min(max(block // 256, 1), 8),
    )  # fmt: skip
    if not is_done:
        return _with_torch(x, update, bias, weight, norm_bias, eps, post_norm, dtype)
    return residual, normed


def _nucleus_by_sorting_few(probs: Tensor, topp: float) -> Tensor:
    """Sort the most probable tokens, and more of them until they are enough in all rows."""
    count = FEW
    while True:
        few = probs.topk(min(count, probs.size(-1)), dim=-1).values
        sums = few.double().cumsum(dim=-1)
        if few.size(-1) == probs.size(-1) or bool((sums[:, -1] >= topp).all()):
            break
        count *= 16
    last = (sums < topp).sum(dim=-1, keepdim=True).clamp(max=few.size(-1) - 1)
    bound = few.gather(-1, last)
    found = probs >= bound
    has_ties = bool((found.sum(dim=-1, keepdim=True) != last + 1).any())
    return _at_least(probs, bound, topp) if has_ties else found


def _nucleus_by_bisection(probs: Tensor, topp: float) -> Tensor:
    """Find the least probability of the set bit by bit, with nothing for which the host waits.

    Positive floats have the order of their bits as integers.
    """
    bits = probs.view(torch.int32)
    bound = torch.zeros_like(bits[:, :1])
    for bit in range(29, -1, -1):  # 1.0 has no higher bit
        higher = bound | (1 << bit)
        mass = probs.masked_fill(bits < higher, 0.0).sum(dim=-1, keepdim=True, dtype=torch.float64)
        bound = torch.where(mass >= topp, higher, bound)
    return _at_least(probs, bound.view(torch.float32), topp)


def _at_least(probs: Tensor, bound: Tensor, topp: float) -> Tensor:
    """Return the tokens above a probability, ``(N, 1)``, and as many of this probability as are needed."""
    above, equal = probs > bound, probs == bound
    mass = probs.masked_fill(~above, 0.0).sum(dim=-1, keepdim=True, dtype=torch.float64)
    rank = equal.cumsum(dim=-1) - 1
    return above | (equal & (mass + rank * bound.double() < topp))


def _nucleus_with_triton(probs: Tensor, topp: float) -> Tensor:
    probs = probs.contiguous()
    kept = torch.empty_like(probs, dtype=torch.bool)
    rows, width = probs.shape
    block = min(1 << max(width - 1, 1).bit_length(), 4096)
    if not _launch("nucleus", rows, probs, kept, topp, WIDTH=width, BLOCK=block, num_warps=8):
        return _nucleus_by_bisection(probs, topp)
    return kept


def _launch(name: str, rows: int, *arguments: Any, **constants: Any) -> bool:
    """Launch a Triton kernel with a program for each row. Return whether this was possible.

    Triton compiles a kernel at its first launch, for which it needs a C compiler.
    """
    kernel = _triton_kernels().get(name)
    if kernel is None:
        return False
    try:
        kernel[(rows,)](*arguments, **constants)
    except Exception as error:
        del _triton_kernels()[name]
        logger.warning("Triton's kernel %s is not used: %s", name, in_one_line(error))
        return False
    return True


@functools.cache
def _triton_kernels() -> dict[str, Any]:
    """Return the kernels by name; none without Triton."""
    try:
        from fairseq_imitkd.rollout import triton_kernel
    except ImportError:
        return {}
    return {"add_layer_norm": triton_kernel.add_layer_norm_kernel, "nucleus": triton_kernel.nucleus_kernel}


_LIBRARY.impl("add_layer_norm", _with_torch, "CPU")
_LIBRARY.impl("add_layer_norm", _with_triton, "CUDA")
_LIBRARY.impl("nucleus", _nucleus_by_sorting_few, "CPU")
_LIBRARY.impl("nucleus", _nucleus_with_triton, "CUDA")
