"""How far the student is from the teacher at one prefix.

Pure functions ``(student logits, teacher logits) -> loss``, shapes ``(N, V), (N, V) -> (N,)`` in nats: ``N`` counted
target positions, ``V`` symbols. ``p`` is the teacher's distribution, ``q`` the student's. Half-precision logits are
computed in float32; float64 stays float64. No gradient flows to the teacher, whose logits carry none.

What else a divergence needs are its keyword arguments, and their names say where they come from: those of
:data:`TOKEN_INPUTS` are ``(N,)`` tensors of the batch; any other is the method's flag of that name (``jsd_weight`` is
``--jsd-weight``), so that a flag which a divergence does not name can be refused instead of ignored.
"""

import inspect
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_imitkd.models.logits import full_precision
from fairseq_imitkd.vocab_ops import most_probable

Divergence = Callable[..., Tensor]

# What a divergence may ask of each token, (N,): the target; whether the student wrote the sentence; the weight of p in
# the mixture of p and q; whether the teacher is among the batch's less certain half about the target; the token's weight.
TOKEN_INPUTS = ("target", "is_rollout", "mixture_weight", "is_hard", "token_weight")


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
    # A broken teacher (NaN, inf) has an argmax too; the product carries it into the loss, which the criterion refuses.
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


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """``KL(q || p) = sum_v q(v) (log q(v) - log p(v))`` (Agarwal et al. 2023, section 3; Wen et al. 2023, section 3.2).

    Args:
        student_logits, teacher_logits: ``(N, V)``, unnormalised, finite: it is infinite where ``p(v) = 0 < q(v)``.

    Returns:
        ``(N,)``, nats, at least 0.
    """
    log_q, log_p = _log_probs(student_logits), _log_probs(teacher_logits)
    return (log_q.exp() * (log_q - log_p)).sum(dim=-1)


def jsd(student_logits: Tensor, teacher_logits: Tensor, *, jsd_weight: float) -> Tensor:
    """``w KL(p || m) + (1 - w) KL(q || m)``, ``m = w p + (1 - w) q``: generalised JSD (Agarwal et al. 2023, section 2).

    It vanishes as ``w`` nears 0 or 1: see :func:`jsd_normalised`.

    Args:
        student_logits, teacher_logits: ``(N, V)``, unnormalised. A teacher's logit may be ``-inf``.
        jsd_weight: ``w``, above 0 and below 1.

    Returns:
        ``(N,)``, nats, at least 0 and at most ``log 2``.
    """
    log_q, log_p = _log_probs(student_logits), _log_probs(teacher_logits)
    log_m = torch.logaddexp(log_p + math.log(jsd_weight), log_q + math.log1p(-jsd_weight))
    return jsd_weight * _kl(log_p, log_m) + (1.0 - jsd_weight) * _kl(log_q, log_m)


def jsd_normalised(student_logits: Tensor, teacher_logits: Tensor, *, jsd_weight: float) -> Tensor:
    """Generalised JSD over ``w (1 - w)``, which moves from ``KL(p || q)`` at ``w = 0`` to ``KL(q || p)`` at ``w = 1``.

    The plain form's gradient vanishes towards both ends, where other implementations jump to the KL divergences, which
    are several times as large. Here the scale, and so the learning rate that fits, changes smoothly.

    Args:
        student_logits, teacher_logits: ``(N, V)``, unnormalised.
        jsd_weight: ``w`` in 0..1.

    Returns:
        ``(N,)``, nats, at least 0.
    """
    precision = full_precision(student_logits).dtype
    if jsd_weight == 0.0:
        return forward_kl(student_logits, teacher_logits)
    if jsd_weight == 1.0:
        return reverse_kl(student_logits, teacher_logits)
    if (
        min(jsd_weight, 1.0 - jsd_weight) < 0.01
    ):  # near the ends float32 would leave few digits of the quotient
        student_logits, teacher_logits = student_logits.double(), teacher_logits.double()
    plain = jsd(student_logits, teacher_logits, jsd_weight=jsd_weight) / (jsd_weight * (1.0 - jsd_weight))
    return plain.to(precision)


def tvd(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """``1/2 sum_v |p(v) - q(v)|``: total variation distance (Wen et al. 2023, section 3.4).

    Args:
        student_logits, teacher_logits: ``(N, V)``, unnormalised. A teacher's logit may be ``-inf``.

    Returns:
        ``(N,)``, in 0..1.
    """
    difference = full_precision(teacher_logits).softmax(dim=-1) - full_precision(student_logits).softmax(
        dim=-1
    )
    return 0.5 * difference.abs().sum(dim=-1)


def sequence_js(
    student_logits: Tensor, teacher_logits: Tensor, *, is_rollout: Tensor, mixture_weight: Tensor
) -> Tensor:
    """One token of the Jensen-Shannon divergence between the distributions of whole sentences (Wen et al. 2023, section 3.3).

    ``JS = 1/2 E_{y ~ p} log p(y) / m(y) + 1/2 E_{y ~ q} log q(y) / m(y)``. On a sentence that the teacher wrote a token
    has ``KL(p || m_t)``, on one that the student wrote ``KL(q || m_t)``, with ``m_t = w_t p + (1 - w_t) q``. Exactly,
    ``w_t = p(y<t) / (p(y<t) + q(y<t))``; the authors' code has one half everywhere.

    Args:
        student_logits, teacher_logits: ``(N, V)``, unnormalised. A teacher's logit may be ``-inf`` in teacher's sentences.
        is_rollout: ``(N,)`` bool: the student wrote the sentence.
        mixture_weight: ``(N,)``, ``w_t`` in 0..1, a constant to the gradient.

    Returns:
        ``(N,)``, nats, at least 0.
    """
    log_q, log_p = _log_probs(student_logits), _log_probs(teacher_logits)
    weight = (
        mixture_weight.to(log_p.dtype).clamp(1e-6, 1.0 - 1e-6).unsqueeze(-1)
    )  # neither side's log may be infinite
    log_m = torch.logaddexp(log_p + weight.log(), log_q + torch.log1p(-weight))
    return torch.where(is_rollout, _kl(log_q, log_m), _kl(log_p, log_m))


def skew_forward_kl(student_logits: Tensor, teacher_logits: Tensor, *, skew: float) -> Tensor:
    """``KL(p || a p + (1 - a) q)``: skew KL divergence (Ko et al. 2024, section 3.1).

    Args:
        student_logits, teacher_logits: ``(N, V)``, unnormalised. A teacher's logit may be ``-inf``.
        skew: ``a``, at least 0 and below 1.

    Returns:
        ``(N,)``, nats, at least 0.
    """
    if skew == 0.0:
        return forward_kl(student_logits, teacher_logits)
    log_q, log_p = _log_probs(student_logits), _log_probs(teacher_logits)
    return _kl(log_p, torch.logaddexp(log_p + math.log(skew), log_q + math.log1p(-skew)))


def skew_reverse_kl(student_logits: Tensor, teacher_logits: Tensor, *, skew: float) -> Tensor:
    """``KL(q || (1 - a) p + a q)``: skew reverse KL divergence (Ko et al. 2024, section 3.1).

    Args:
        student_logits, teacher_logits: ``(N, V)``, unnormalised. A teacher's logit may be ``-inf`` where ``a > 0``.
        skew: ``a``, at least 0 and below 1.

    Returns:
        ``(N,)``, nats, at least 0.
    """
    if skew == 0.0:
        return reverse_kl(student_logits, teacher_logits)
    log_q, log_p = _log_probs(student_logits), _log_probs(teacher_logits)
    return _kl(log_q, torch.logaddexp(log_p + math.log1p(-skew), log_q + math.log(skew)))


def logit_mse(
    student_logits: Tensor, teacher_logits: Tensor, *, annealing: float, logit_margin: float
) -> Tensor:
    """``max(0, 1/V ||z_q - f z_p||^2 - margin f)``, on the logits ``z`` as the models give them.

    Without margin it is stage I of Annealing-KD (Jafari et al. 2021, equation 7), with it the teacher's part of
    Continuation-KD (Jafari et al. 2022). The mean over ``V`` in place of the paper's sum keeps the loss of a large
    vocabulary on the scale of a cross-entropy.

    Args:
        student_logits, teacher_logits: ``(N, V)``, unnormalised, finite.
        annealing: ``f = 1 - (T - 1) / T_max`` in 0..1, which rises as the temperature ``T`` falls to 1.
        logit_margin: squared distance, for ``f = 1``, below which nothing is to be learnt; at least 0.

    Returns:
        ``(N,)``, at least 0.
    """
    difference = full_precision(student_logits) - annealing * full_precision(teacher_logits)
    distance = difference.square().mean(dim=-1)
    return (distance - logit_margin * annealing).clamp(min=0.0) if logit_margin > 0.0 else distance


def target_decoupled_kl(
    student_logits: Tensor, teacher_logits: Tensor, *, target: Tensor, is_hard: Tensor, token_weight: Tensor
) -> Tensor:
    """KL divergence in two parts, of which an easy token has only one: ATKD (Zhong et al. 2024, section 3.2).

    The first part is between ``(p(y), 1 - p(y))`` and ``(q(y), 1 - q(y))`` for the target ``y``, the second between ``p``
    and ``q`` over all other symbols, each normalised by itself. A hard token (the teacher is not sure of the target)
    has both, an easy one the second.

    Args:
        student_logits, teacher_logits: ``(N, V)``, unnormalised. A teacher's logit may be ``-inf``.
        target: ``(N,)`` int64.
        is_hard: ``(N,)`` bool.
        token_weight: ``(N,)``, what makes the sum over a batch one of means over its easy and its hard tokens.

    Returns:
        ``(N,)``, nats, at least 0.
    """
    target = target.unsqueeze(-1)
    (q_target, q_others), (p_target, p_others) = (
        _decoupled(student_logits, target),
        _decoupled(teacher_logits, target),
    )
    p_sides = torch.cat([p_target, p_others.logsumexp(dim=-1, keepdim=True)], dim=-1)
    q_sides = torch.cat([q_target, q_others.logsumexp(dim=-1, keepdim=True)], dim=-1)
    others = _kl(p_others.log_softmax(dim=-1), q_others.log_softmax(dim=-1))
    return (others + torch.where(is_hard, _kl(p_sides, q_sides), 0.0)) * token_weight.to(others)


DIVERGENCES: dict[str, Divergence] = {
    "teacher-argmax": teacher_argmax,
    "forward-kl": forward_kl,
    "reverse-kl": reverse_kl,
    "jsd": jsd,
    "jsd-normalised": jsd_normalised,
    "tvd": tvd,
    "sequence-js": sequence_js,
    "skew-forward-kl": skew_forward_kl,
    "skew-reverse-kl": skew_reverse_kl,
    "logit-mse": logit_mse,
    "target-decoupled-kl": target_decoupled_kl,
}


def needs(divergence: Divergence) -> tuple[set[str], set[str]]:
    """The names of the batch's tensors and of the settings that a divergence asks for."""
    parameters = inspect.signature(divergence).parameters.values()
    keywords = {
        parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    return keywords & set(TOKEN_INPUTS), keywords - set(TOKEN_INPUTS)


def most_probable_only(
    student_logits: Tensor, teacher_logits: Tensor, count: int, tail: str
) -> tuple[Tensor, Tensor]:
    """The same prefix with only the teacher's ``count`` most probable symbols told apart (``--teacher-topk``).

    Args:
        student_logits, teacher_logits: ``(N, V)``.
        count: below ``V``.
        tail: ``dropped``: the teacher's other symbols get probability 0, and the rest is renormalised (as in ImitKD's
            code). ``bucket``: all other symbols count as one, for teacher and student alike.

    Returns:
        the student's and the teacher's logits: ``(N, V)``, or with the bucket ``(N, count + 1)``.
    """
    best, symbols = teacher_logits.topk(count, dim=-1)
    if tail == "dropped":
        return student_logits, torch.full_like(teacher_logits, float("-inf")).scatter(-1, symbols, best)
    return _with_bucket(student_logits, symbols), _with_bucket(teacher_logits, symbols)


def _with_bucket(logits: Tensor, symbols: Tensor) -> Tensor:
    """The logits of some symbols, ``(N, K)``, and of all others together, ``(N, K + 1)``."""
    logits = full_precision(logits)
    others = logits.scatter(-1, symbols, float("-inf")).logsumexp(dim=-1, keepdim=True)
    return torch.cat([logits.gather(-1, symbols), others], dim=-1)


def _decoupled(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the target, ``(N, 1)``, and of all symbols with the target's taken out, ``(N, V)``."""
    log_probs = _log_probs(logits)
    return log_probs.gather(-1, target), log_probs.scatter(-1, target, float("-inf"))


def _log_probs(logits: Tensor) -> Tensor:
    return full_precision(logits).log_softmax(dim=-1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``sum_v p (log p - log q)`` of log-probabilities, ``(N, V) -> (N,)``; a symbol with ``p = 0`` adds nothing."""
    absent = log_p == float("-inf")
    ratio = torch.where(absent, 0.0, log_p) - torch.where(absent, 0.0, log_q)
    return (log_p.exp() * ratio).sum(dim=-1)
