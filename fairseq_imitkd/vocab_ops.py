"""Fast argmax and sampling over the vocabulary.

torch's are among the slowest CPU operations of a training step.
"""

import torch
from torch import Tensor

BLOCK = 64  # symbols per block


def most_probable(logits: Tensor) -> Tensor:
    """Return ``logits.argmax(dim=-1)``; among equal logits, the first.

    On a CPU, torch vectorises the maximum but not the argmax, so this finds the best block first and then the
    symbol in it.

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
    best_block = blocks.take_along_dim(best.unsqueeze(-1), dim=1).squeeze(1)
    symbol = best * BLOCK + best_block.argmax(dim=-1, keepdim=True)
    if rest.size(-1) > 0:
        (highest, last), found = rest.max(dim=-1, keepdim=True), maxima.gather(-1, best)
        # As in torch's argmax, NaN counts as the greatest value.
        symbol = torch.where((found >= highest) | found.isnan(), symbol, last + blocks.size(1) * BLOCK)
    return symbol.squeeze(-1)


def sample_categorical(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Sample from ``softmax(logits)`` by inverting its cumulative distribution over the symbols.

    Each row uses one uniform number, and never gets a symbol of probability 0. Blocks are summed first, so
    that only one block of each row needs a sum per symbol.

    Args:
        logits: ``(N, V)``; ``-inf`` forbids a symbol.
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
    within, _ = _inverse(torch.where(in_rest, padded, block).double(), remainder)
    return (chosen * BLOCK + within).clamp(max=probs.size(-1) - 1)


def _in_blocks(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return views of the blocks, ``(N, V // BLOCK, BLOCK)``, and of the rest, ``(N, V % BLOCK)``."""
    whole = values.size(-1) // BLOCK * BLOCK
    return values[:, :whole].unflatten(-1, (-1, BLOCK)), values[:, whole:]


def _inverse(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Invert the cumulative distribution of unnormalised weights.

    Args:
        weights: ``(N, K)`` float64.
        uniforms: ``(N, 1)`` in ``[0, 1)``.

    Returns:
        indices ``(N,)`` of positive weight, and the position within that weight, ``(N, 1)`` in ``[0, 1)``.
    """
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    target = uniforms * total
    index = torch.searchsorted(cumulative, target, right=True)
    # Rounding can move the target to the total. Then take the last positive weight: after it, all sums are
    # equal.
    last = torch.searchsorted(cumulative, total)
    # With NaN logits, every index is beyond the end.
    index = torch.minimum(index, last).clamp(max=weights.size(-1) - 1)
    weight = weights.gather(-1, index)
    before = cumulative.gather(-1, index) - weight
    within = ((target - before) / weight).clamp(min=0.0, max=1.0 - 2.0**-53)
    return index.squeeze(-1), within
