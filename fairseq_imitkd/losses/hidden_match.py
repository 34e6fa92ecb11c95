"""``--hidden-match``: the student's sentence vectors learn those of the teacher.

A sentence vector is the mean of the encoder's outputs over time. A learned projection makes the student's as
wide as the teacher's.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq_imitkd.models.logits import full_precision


def l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean of ``|s_i - t_i|`` over the features.

    The authors of two-stage textual distillation (Kim et al. 2021) match utterance vectors first, and logits
    second by the sum of this distance. Their code of the first stage is not public. A mean instead of a sum
    makes a weight mean the same at every width:
    https://github.com/clovaai/textual-kd-slu/blob/ba1460783e721c0162d0f682f495ace2816a3edb/finetuning.py#L191

    Args:
        student, teacher: ``(B, D)``.

    Returns:
        ``(B,)``, at least 0.
    """
    return (student - teacher).abs().mean(dim=-1)


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean of ``(s_i - t_i)^2`` over the features, ``(B, D), (B, D) -> (B,)``."""
    return (student - teacher).square().mean(dim=-1)


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Return ``1 - cos(s, t)``, ``(B, D), (B, D) -> (B,)``, in 0..2. The vectors' lengths do not count."""
    return 1.0 - F.cosine_similarity(student, teacher, dim=-1)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": l1,
    "squared-error": squared_error,
    "cosine": cosine,
}


class HiddenMatch(nn.Module):
    """The distance of a student's sentence vectors from the teacher's, after a learned projection.

    The projection is a part of the criterion. So fairseq trains it, averages its gradient over processes, and
    saves it beside the student, but not in it.

    Args:
        widths: features of the student's and of the teacher's encoder outputs.
        distance: a name of ``DISTANCES``.
        seed: the projection begins with random weights that depend on this number alone.
    """

    def __init__(self, widths: tuple[int, int], *, distance: str, seed: int):
        super().__init__()
        self._distance = DISTANCES[distance]
        self.projection = nn.Linear(*widths, device="meta").to_empty(device="cpu")
        numbers = torch.Generator().manual_seed(seed)
        nn.init.xavier_uniform_(self.projection.weight, generator=numbers)
        nn.init.zeros_(self.projection.bias)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return distances, in float32 or, for vectors in float64, in float64.

        Args:
            student: ``(B, D)`` sentence vectors, which get the gradient.
            teacher: ``(B, E)``, without a gradient.

        Returns:
            ``(B,)``.
        """
        with torch.autocast(student.device.type, enabled=False):
            student = full_precision(student)
            weight, bias = (each.to(student.dtype) for each in self.projection.parameters())
            return self._distance(F.linear(student, weight, bias), teacher.detach().to(student.dtype))
