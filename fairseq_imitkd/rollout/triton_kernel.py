"""The kernels of :mod:`~fairseq_imitkd.rollout.kernels`. Only this module needs Triton."""

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


@triton.jit
def nucleus_kernel(probs, kept, topp, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Compute one row: one program of ``(N,)``. Positive floats have the order of their bits as integers."""
    row = tl.program_id(0).to(tl.int64) * WIDTH
    bound = tl.zeros((), dtype=tl.int32)
    for step in range(30):  # bit by bit, the largest probability at which the set is large enough
        higher = bound | (1 << (29 - step))
        mass = tl.zeros((), dtype=tl.float64)
        for start in range(0, WIDTH, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            part = tl.load(probs + row + columns, mask=columns < WIDTH, other=0.0)
            mass += tl.sum(
                tl.where(part.to(tl.int32, bitcast=True) >= higher, part, 0.0).to(tl.float64), axis=0
            )
        bound = tl.where(mass >= topp, higher, bound)
    least = bound.to(tl.float32, bitcast=True)
    above = tl.zeros((), dtype=tl.float64)
    for start in range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        part = tl.load(probs + row + columns, mask=columns < WIDTH, other=0.0)
        above += tl.sum(tl.where(part > least, part, 0.0).to(tl.float64), axis=0)
    before = tl.zeros((), dtype=tl.int32)  # tokens of the least probability in earlier blocks
    for start in range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        part = tl.load(probs + row + columns, mask=columns < WIDTH, other=-1.0)
        equal = (part == least).to(tl.int32)
        rank = before + tl.cumsum(equal, axis=0) - 1
        enough = above + rank.to(tl.float64) * least.to(tl.float64) >= topp
        tl.store(kept + row + columns, (part > least) | ((equal > 0) & (enough == 0)), mask=columns < WIDTH)
        before += tl.sum(equal, axis=0)
