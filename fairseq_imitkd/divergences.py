"""How far the student is from the teacher at one prefix.

Pure functions ``(student logits, teacher logits) -> loss``, shapes ``(N, V), (N, V) -> (N,)`` in nats: ``N`` counted
target positions, ``V`` symbols. ``p`` is the teacher's distribution, ``q`` the student's. Half-precision logits are
computed in float32; float64 stays float64. No gradient flows to the teacher, whose logits carry none.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_imitkd.vocabulary import most_probable

Divergence = Callable[[Tensor, Tensor], Tensor]


def teacher_argmax(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """``-log q(v*)`` with ``v* = argmax_v p(v)``: ImitKD's optimal-action loss (Lin et al. 2020, section 3).

    Args:
        student_logits, teacher_logits: ``(N, V)``, unnormalised.

    Returns:
        ``(N,)``, nats; NaN where the teacher's highest logit is not finite. Others may be ``-inf``.
    """
    label = most_probable(teacher_logits)
    best = teacher_logits.gather(-1, label.unsqueeze(-1)).squeeze(-1)
    loss = F.cross_entropy(full_precision(student_logits), label, reduction="none")
    # A broken teacher (NaN, inf) has an argmax too; the product carries it into the loss, where fairseq stops the run.
    return loss * (1.0 + 0.0 * best)


def forward_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """``KL(p || q) = sum_v p(v) (log p(v) - log q(v))``.

    It is the loss ``-sum_v p(v) log q(v)`` of word-level distillation (Kim & Rush 2016, section 3.1) and of ImitKD's
    full variant (Lin et al. 2020, section 3) less the teacher's entropy, a constant: the same gradient, and 0 when
    the student equals the teacher.

    Args:
        student_logits, teacher_logits: ``(N, V)``, unnormalised. A teacher's logit may be ``-inf``.

    Returns:
        ``(N,)``, nats, at least 0.
    """
    teacher_probs = full_precision(teacher_logits).softmax(dim=-1)
    entropy = torch.special.entr(teacher_probs).sum(dim=-1)
    return F.cross_entropy(full_precision(student_logits), teacher_probs, reduction="none") - entropy


DIVERGENCES: dict[str, Divergence] = {"teacher-argmax": teacher_argmax, "forward-kl": forward_kl}


def full_precision(logits: Tensor) -> Tensor:
    """Half-precision logits as float32, since a sum over ``V`` symbols overflows or rounds away in half; others as they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
