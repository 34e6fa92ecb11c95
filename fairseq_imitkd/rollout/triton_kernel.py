"""The kernel of :func:`~fairseq_imitkd.rollout.kernels.add_layer_norm`. Only this module needs Triton."""

import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]


@triton.jit
def add_layer_norm_kernel(  # type: ignore[no-untyped-def]
    x, update, bias, weight, norm_bias, residual, normed, width, eps,
    POST_NORM: tl.constexpr, ALONE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute one row: one program of ``(R,)``. ``ALONE``: the residual stream is the only result."""
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    places = tl.program_id(0) * width + columns
    total = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(update + places, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / width
    centred = tl.where(inside, total - mean, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / width + eps)
    normal = centred * scale * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    normal += tl.load(norm_bias + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(residual + places, normal if POST_NORM else total, mask=inside)
    if not ALONE:
        tl.store(normed + places, normal, mask=inside)
