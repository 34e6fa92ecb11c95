"""Choices among ``V`` symbols, made in few passes: torch's own are among a training step's slowest operations on a CPU."""

import torch
from torch import Tensor

BLOCK = 64


def most_probable(logits: Tensor) -> Tensor:
    """``logits.argmax(dim=-1)``, the first of equals.

    On a CPU torch's argmax is not vectorised and its maximum is, so the best block is found first, then the place in it.

    Args:
        logits: ``(N, V)``.

    Returns:
        ``(N,)`` int64.
    """
    if logits.device.type != "cpu" or logits.size(-1) < 2 * BLOCK:
        return logits.argmax(dim=-1)
    blocks, rest = _in_blocks(logits)  # (N, V // BLOCK, BLOCK)
    maxima = blocks.amax(dim=-1)
    best = maxima.argmax(dim=-1, keepdim=True)
    inside = blocks.take_along_dim(best.unsqueeze(-1), dim=1).squeeze(1)
    place = best * BLOCK + inside.argmax(dim=-1, keepdim=True)
    if rest.size(-1) > 0:
        (highest, last), found = rest.max(dim=-1, keepdim=True), maxima.gather(-1, best)
        # As in torch's argmax, NaN is above everything.
        place = torch.where((found >= highest) | found.isnan(), place, last + blocks.size(1) * BLOCK)
    return place.squeeze(-1)


def drawn(logits: Tensor, uniforms: Tensor) -> Tensor:
    """A sample of ``softmax(logits)``: the inverse of its cumulative distribution, symbols in their own order.

    One uniform number a row; a symbol of probability 0 is never met. Whole blocks are summed first, so that only one
    block of each row is summed up symbol by symbol.

    Args:
        logits: ``(N, V)``; ``-inf`` where a symbol is forbidden.
        uniforms: ``(N,)`` float64 in ``[0, 1)``.

    Returns:
        ``(N,)`` int64.
    """
    probs = logits.float().softmax(dim=-1)
    if probs.size(-1) < 2 * BLOCK:
        return _inverse(probs.double(), uniforms.unsqueeze(-1))[0]
    blocks, rest = _in_blocks(probs)
    sums = torch.cat(
        [blocks.sum(dim=-1, dtype=torch.float64), rest.sum(dim=-1, keepdim=True, dtype=torch.float64)], dim=-1
    )
    chosen, remainder = _inverse(sums, uniforms.unsqueeze(-1))
    padded = torch.nn.functional.pad(rest, (0, BLOCK - rest.size(-1)))
    in_rest = (chosen == blocks.size(1)).unsqueeze(-1)
    block = blocks.take_along_dim(chosen.clamp(max=blocks.size(1) - 1)[:, None, None], dim=1).squeeze(1)
    inside, _ = _inverse(torch.where(in_rest, padded, block).double(), remainder)
    return (chosen * BLOCK + inside).clamp(max=probs.size(-1) - 1)


def _in_blocks(values: Tensor) -> tuple[Tensor, Tensor]:
    """Views ``(N, V // BLOCK, BLOCK)`` and what is left over, ``(N, V % BLOCK)``."""
    whole = values.size(-1) // BLOCK * BLOCK
    return values[:, :whole].unflatten(-1, (-1, BLOCK)), values[:, whole:]


def _inverse(weights: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """The first place whose running sum exceeds a share of the whole, and how far into it, as a share, that share lies.

    ``(N, K)`` float64 weights, ``(N, 1)`` shares in ``[0, 1)`` to ``(N,)`` places of positive weight and ``(N, 1)``
    shares in ``[0, 1)``.
    """
    reached = weights.cumsum(dim=-1)
    whole = reached[:, -1:].contiguous()
    sought = shares * whole
    place = torch.searchsorted(reached, sought, right=True)
    # Where rounding leaves the sought sum at the very end, the last place of positive weight: beyond it all sums are equal.
    last = torch.searchsorted(reached, whole)
    place = torch.minimum(place, last).clamp(
        max=weights.size(-1) - 1
    )  # a broken student's NaN is beyond every place
    weight = weights.gather(-1, place)
    before = reached.gather(-1, place) - weight
    inside = ((sought - before) / weight).clamp(min=0.0, max=1.0 - 2.0**-53)
    return place.squeeze(-1), inside
