"""Statistics of shares: an interval of one, and a test of the difference between two."""

import math
from typing import Any

from torch import Tensor


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's 95% interval of a proportion (Wilson 1927)."""
    share, shrink = right / total, 1.0 + z * z / total
    middle = (share + z * z / (2 * total)) / shrink
    half = z * math.sqrt(share * (1.0 - share) / total + (z / (2 * total)) ** 2) / shrink
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(baseline: Tensor, system: Tensor) -> dict[str, Any]:
    """Return McNemar's exact test: the sentences that only one of two models gets right, and the p-value.

    Args:
        baseline, system: ``(N,)`` bool, which sentences each of them gets right.
    """
    gained, lost = int((system & ~baseline).sum()), int((baseline & ~system).sum())
    tail = sum(math.comb(gained + lost, k) for k in range(min(gained, lost) + 1)) / 2 ** (gained + lost)
    return {"gained": gained, "lost": lost, "p": min(1.0, 2.0 * tail)}
