"""Logits over the vocabulary at the positions of a batch: stored, averaged, or computed on demand."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# Up to this many logits are computed at once, more in chunks of this size. A chunk fits a CPU's cache, where
# chunks are also faster (see benchmarks/NOTES.md), and is large enough to keep a GPU busy.
CHUNK_LOGITS = {"cpu": 2**20}
CHUNK_LOGITS_ELSEWHERE = 2**26
# In smaller chunks, adding to the gradient of a large output matrix costs more than the logits.
LEAST_CHUNK = 64


class TokenLogits(Protocol):
    """Logits at ``N`` positions over ``V`` symbols."""

    def logits(self, positions: slice) -> Tensor:
        """Return the logits at ``n`` of the positions, ``(n, V)``."""

    def at(self, positions: Tensor) -> "TokenLogits":
        """Return these logits restricted to some positions, given as ``(n,)`` rising indices."""


@dataclass(frozen=True)
class WholeLogits:
    """Stored logits, ``(N, V)``."""

    values: Tensor

    def logits(self, positions: slice) -> Tensor:
        """See :class:`TokenLogits`."""
        return self.values[positions]

    def at(self, positions: Tensor) -> "WholeLogits":
        """See :class:`TokenLogits`."""
        return WholeLogits(self.values[positions])


@dataclass(frozen=True)
class AveragedLogits:
    """The weighted average of several models, as log-probabilities or as logits.

    Args:
        members: ``M`` models' logits at the same ``N`` positions.
        log_weights: logarithms of weights that add up to 1: ``(M,)``, or ``(N, M)`` if each position has its
            own.
        average_logits: average the logits. Otherwise the probabilities are averaged.
    """

    members: Sequence[TokenLogits]
    log_weights: Tensor
    average_logits: bool = field(default=False, kw_only=True)

    def logits(self, positions: slice) -> Tensor:
        """See :class:`TokenLogits`. Averaged probabilities are returned as their logarithms."""
        weights = self.log_weights if self.log_weights.dim() == 1 else self.log_weights[positions]
        total: Tensor | None = None
        for number, member in enumerate(self.members):
            logits = full_precision(member.logits(positions))
            log_weight = weights[..., number].to(logits).unsqueeze(-1)
            if self.average_logits:
                weighted = logits * log_weight.exp()
                total = weighted if total is None else total + weighted
            else:
                weighted = logits.log_softmax(dim=-1) + log_weight
                total = weighted if total is None else torch.logaddexp(total, weighted)
        assert total is not None
        return total

    def at(self, positions: Tensor) -> "AveragedLogits":
        """See :class:`TokenLogits`."""
        weights = self.log_weights if self.log_weights.dim() == 1 else self.log_weights[positions]
        return replace(self, members=[member.at(positions) for member in self.members], log_weights=weights)


@dataclass(frozen=True)
class ProjectedLogits:
    """Logits that are computed from hidden states when they are asked for.

    Args:
        features: ``(N, D)`` hidden states.
        weight: ``(V, D)`` output matrix.
        bias: ``(V,)`` output bias, or None.
        ignore_autocast: compute in the precision of these tensors, under autocast too.
    """

    features: Tensor
    weight: Tensor
    bias: Tensor | None = None
    ignore_autocast: bool = field(default=False, kw_only=True)

    def logits(self, positions: slice) -> Tensor:
        """See :class:`TokenLogits`."""
        own_precision = torch.autocast(self.features.device.type, enabled=False)
        with own_precision if self.ignore_autocast else contextlib.nullcontext():
            return F.linear(self.features[positions], self.weight, self.bias)

    def at(self, positions: Tensor) -> "ProjectedLogits":
        """See :class:`TokenLogits`."""
        return replace(self, features=self.features[positions])


class LaterLogits:
    """Logits that come when they are first asked for, and are kept.

    Args:
        fetch: returns them; it is called once at most.
    """

    def __init__(self, fetch: Callable[[], TokenLogits]):
        self._fetch = functools.cache(fetch)

    def logits(self, positions: slice) -> Tensor:
        """See :class:`TokenLogits`."""
        return self._fetch().logits(positions)

    def at(self, positions: Tensor) -> "LaterLogits":
        """See :class:`TokenLogits`. The logits still come later."""
        return LaterLogits(lambda: self._fetch().at(positions))


def chunk_size(positions: int, symbols: int, device: torch.device, *, asked: int = 0) -> int:
    """Return the number of positions per chunk, or 0 to compute all logits at once.

    Args:
        positions: number of positions in the batch.
        symbols: size of the vocabulary.
        device: device of the logits.
        asked: value of ``--loss-chunk``: 0 chooses by size, a positive number is the result, -1 never chunks.
    """
    if asked != 0:
        return max(asked, 0)
    limit = CHUNK_LOGITS.get(device.type, CHUNK_LOGITS_ELSEWHERE)
    return 0 if positions * symbols <= limit else max(LEAST_CHUNK, limit // symbols)


def token_lprobs(logits: TokenLogits, tokens: Tensor, chunk: int) -> Tensor:
    """Return the log-probability of one symbol at each position, without gradient.

    Args:
        logits: logits at ``N`` positions.
        tokens: ``(N,)`` int64, the symbols.
        chunk: number of positions whose logits exist at the same time; 0 means all.

    Returns:
        ``(N,)``, float64 for float64 logits and float32 otherwise.
    """
    chunk = chunk or max(tokens.numel(), 1)
    found = []
    with torch.no_grad():
        for start in range(0, max(tokens.numel(), 1), chunk):
            positions = slice(start, start + chunk)
            values = full_precision(logits.logits(positions))
            chosen = values.gather(-1, tokens[positions].unsqueeze(-1)).squeeze(-1)
            found.append(chosen - values.logsumexp(dim=-1))
    return torch.cat(found)


def full_precision(logits: Tensor) -> Tensor:
    """Return half-precision logits as float32 and others unchanged.

    In half precision a sum over ``V`` symbols overflows.
    """
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
