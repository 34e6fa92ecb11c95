"""What the loss of scores needs: labels that are numbers. Some may be missing."""

import torch
from torch import Tensor

from fairseq_imitkd.models.logits import full_precision


def with_zeros(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return labels ``(N,)`` with 0 for those that are missing, and which are missing, ``(N,)`` bool.

    A missing label is NaN, which would reach the gradient even where the loss is masked.
    """
    missing = labels.isnan()
    return torch.where(missing, torch.zeros_like(labels), labels), missing


def squared_error(scores: Tensor, labels: Tensor) -> Tensor:
    """Return ``(s - y)^2``.

    Args:
        scores: ``(N, 1)``, the model's only output for each sentence.
        labels: ``(N,)``, finite.

    Returns:
        ``(N,)``, in float32 or, for scores in float64, in float64.
    """
    scores = full_precision(scores).squeeze(-1)
    return (scores - labels.to(scores.dtype)).square()
