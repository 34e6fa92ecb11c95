"""Logits over the vocabulary at the positions of a batch: stored, averaged, or computed when they are asked for."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class TokenLogits(Protocol):
    """The logits of ``N`` positions over ``V`` symbols, made when they are asked for."""

    def logits(self, positions: slice) -> Tensor:
        """``(n, V)``, those of some positions."""

    def at(self, positions: Tensor) -> "TokenLogits":
        """The scores of some positions alone, ``(n,)`` rising indices."""


@dataclass(frozen=True)
class WholeLogits:
    """Logits that are there, ``(N, V)``."""

    values: Tensor

    def logits(self, positions: slice) -> Tensor:
        """See :class:`TokenLogits`."""
        return self.values[positions]

    def at(self, positions: Tensor) -> "WholeLogits":
        """See :class:`TokenLogits`."""
        return WholeLogits(self.values[positions])


@dataclass(frozen=True)
class AveragedLogits:
    """The logarithm of the weighted mean of several models' probabilities.

    Args:
        members: ``M`` scores of the same ``N`` positions.
        log_weights: ``(M,)``, or ``(N, M)`` where each position has its own; their exponentials add up to 1.
        of_logits: the weighted mean of the logits as they are, instead.
    """

    members: Sequence[TokenLogits]
    log_weights: Tensor
    of_logits: bool = False

    def logits(self, positions: slice) -> Tensor:
        """See :class:`TokenLogits`; of probabilities' means, these are log-probabilities."""
        weights = self.log_weights if self.log_weights.dim() == 1 else self.log_weights[positions]
        total: Tensor | None = None
        for number, member in enumerate(self.members):
            logits = full_precision(member.logits(positions))
            log_weight = weights[..., number].to(logits).unsqueeze(-1)
            if self.of_logits:
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
        return AveragedLogits([member.at(positions) for member in self.members], weights, self.of_logits)


@dataclass(frozen=True)
class ProjectedLogits:
    """Logits still to be made: hidden states ``(N, D)``, the output matrix ``(V, D)`` and its bias ``(V,)`` or None.

    ``as_they_are``: in the precision that these have, under autocast too.
    """

    features: Tensor
    weight: Tensor
    bias: Tensor | None = None
    as_they_are: bool = field(default=False, kw_only=True)

    def logits(self, positions: slice) -> Tensor:
        """See :class:`TokenLogits`."""
        with (
            torch.autocast(self.features.device.type, enabled=False)
            if self.as_they_are
            else contextlib.nullcontext()
        ):
            return F.linear(self.features[positions], self.weight, self.bias)

    def at(self, positions: Tensor) -> "ProjectedLogits":
        """See :class:`TokenLogits`."""
        return replace(self, features=self.features[positions])


def token_lprobs(scores: TokenLogits, tokens: Tensor, chunk: int) -> Tensor:
    """The log-probability of one symbol at each position, in float32 (float64 of float64), without gradient.

    Args:
        scores: of ``N`` positions.
        tokens: ``(N,)`` int64.
        chunk: positions at a time; 0 is all.
    """
    chunk = chunk or max(tokens.numel(), 1)
    found = []
    with torch.no_grad():
        for start in range(0, max(tokens.numel(), 1), chunk):
            positions = slice(start, start + chunk)
            logits = full_precision(scores.logits(positions))
            chosen = logits.gather(-1, tokens[positions].unsqueeze(-1)).squeeze(-1)
            found.append(chosen - logits.logsumexp(dim=-1))
    return torch.cat(found)


def full_precision(logits: Tensor) -> Tensor:
    """Half-precision logits as float32, since a sum over ``V`` symbols overflows or rounds away in half; others as they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
