"""Weights of the divergence at single positions: how hard the student finds them, and how sure the teacher
is.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fairseq_imitkd.models.logits import full_precision


def is_among_hardest(difficulty: Tensor, pool: Tensor, share: float) -> Tensor:
    """Return which tokens are as hard as the hardest ``share`` of a pool of tokens.

    This is selective distillation (Wang et al. 2021), where a token's difficulty is its cross-entropy under
    the student. The pool is the batch (batch-level selection) or a queue of recent tokens (global-level
    selection). The threshold is the ``ceil(share * M)``-th largest of the pool's ``M`` difficulties, as in
    the authors' code:
    https://github.com/LeslieOverfitting/selective_distillation/blob/6a49f5197b415ddd6b051dcb9337a9f4f00b7bfc/fairseq/criterions/label_smoothed_cross_entropy.py#L174-L178

    Args:
        difficulty: ``(N,)``, nats.
        pool: ``(M,)``, nats. An empty pool selects every token.
        share: in 0..1, above 0.

    Returns:
        ``(N,)`` bool.
    """
    if pool.numel() == 0:
        return torch.ones_like(difficulty, dtype=torch.bool)
    # Comparisons with NaN are false, so a NaN is selected too and reaches the loss, which is then refused.
    return ~(difficulty < pool.topk(math.ceil(share * pool.numel())).values[-1])


class DifficultyQueue:
    """The difficulties of the most recent tokens, first in first out (Wang et al. 2021).

    A batch that is repeated after an overflow of ``--amp``, or without the memory of graphs, enters twice.

    Args:
        capacity: maximum number of tokens.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._values = torch.empty(0)

    def add(self, difficulty: Tensor) -> Tensor:
        """Add the difficulties of some tokens ``(N,)``, and return those of all tokens in the queue.

        Half precision skips an update whose numbers overflow, so those that are not finite are left out.
        """
        finite = difficulty.detach()[difficulty.detach().isfinite()]
        self._values = torch.cat([self._values.to(difficulty), finite])[-self.capacity :]
        return self._values

    def state(self) -> Tensor:
        """Return the difficulties for a checkpoint, oldest first, on the CPU."""
        return self._values.cpu().clone()

    def restore(self, state: Tensor) -> None:
        """Continue from the result of :meth:`state`; a smaller queue keeps the newest tokens."""
        self._values = state[-self.capacity :].clone()


def entropy_confidence(teacher_logits: Tensor) -> Tensor:
    """Return ``1 - H(p) / log V``: 1 if the teacher is certain, and 0 if all symbols are equally probable.

    Args:
        teacher_logits: ``(N, V)``, unnormalised. A logit may be ``-inf``.

    Returns:
        ``(N,)``, in 0..1.
    """
    return 1.0 - entropy(teacher_logits) / math.log(teacher_logits.size(-1))


def probability_confidence(teacher_logits: Tensor) -> Tensor:
    """Return ``max_v p(v)``: the probability of the teacher's most probable symbol.

    Args:
        teacher_logits: ``(N, V)``, unnormalised. A logit may be ``-inf``.

    Returns:
        ``(N,)``, above 0 and at most 1.
    """
    return full_precision(teacher_logits).softmax(dim=-1).amax(dim=-1)


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of distributions with logits ``(N, V)``, ``(N,)`` in nats."""
    return torch.special.entr(full_precision(logits).softmax(dim=-1)).sum(dim=-1)


# Values of --rollout-confidence beside none.
CONFIDENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "entropy": entropy_confidence,
    "probability": probability_confidence,
}
