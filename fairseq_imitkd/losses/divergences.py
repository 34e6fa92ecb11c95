"""Divergences between the student's and the teacher's next-token distributions.

Each is a pure function ``(student logits, teacher logits) -> loss`` of shapes ``(N, V), (N, V) -> (N,)``, in
nats, for ``N`` target positions and ``V`` symbols. ``p`` is the teacher's distribution and ``q`` the
student's. Losses of half-precision logits are computed in float32; float64 stays float64. The teacher's
logits have no gradient.

Other inputs are keyword arguments, and their names tell where they come from. The names in
:data:`TOKEN_INPUTS` are ``(N,)`` tensors of the batch. Any other name is a flag of the method: ``jsd_weight``
is ``--jsd-weight``. So the program can refuse a flag that the divergence does not use.
"""

import inspect
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_imitkd.losses.token_weights import entropy
from fairseq_imitkd.models.logits import full_precision
from fairseq_imitkd.vocab_ops import most_probable

Divergence = Callable[..., Tensor]

# Inputs of each token, (N,). target: the target symbol. is_rollout: whether the student wrote the sentence.
# mixture_weight: weight of p in the mixture of p and q. is_hard: whether the teacher's certainty about the
# target is in the lower half of the batch. token_weight: weight of the token's loss.
TOKEN_INPUTS = ("target", "is_rollout", "mixture_weight", "is_hard", "token_weight")


def teacher_argmax(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return ``-log q(v*)`` with ``v* = argmax_v p(v)``.

    This is ImitKD's optimal-action loss (Lin et al. 2020, section 3).

    Args:
        student_logits, teacher_logits: ``(N, V)``, unnormalised.

    Returns:
        ``(N,)``, nats; NaN where the teacher's greatest logit is not finite. Its other logits may be
        ``-inf``.
    """
    label = most_probable(teacher_logits)
    best = teacher_logits.gather(-1, label.unsqueeze(-1)).squeeze(-1)
    loss = F.cross_entropy(full_precision(student_logits), label, reduction="none")
    # NaN or infinite logits have an argmax too. The product passes them on to the loss, which the criterion
    # refuses.
    return loss * (1.0 + 0.0 * best)


def forward_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return ``KL(p || q) = sum_v p(v) (log p(v) - log q(v))``.

    Word-level distillation (Kim & Rush 2016, section 3.1) and ImitKD's full variant (Lin et al. 2020, section
    3) have the loss ``-sum_v p(v) log q(v)``. It differs from this one by the teacher's entropy, a constant,
    so the gradients are equal. This loss is 0 if the student equals the teacher.

    Args:
        student_logits, teacher_logits: ``(N, V)``, unnormalised. A teacher's logit may be ``-inf``.

    Returns:
        ``(N,)``, nats, at least 0.
    """
    teacher_probs = full_precision(teacher_logits).softmax(dim=-1)
    teacher_entropy = torch.special.entr(teacher_probs).sum(dim=-1)
    return F.cross_entropy(full_precision(student_logits), teacher_probs, reduction="none") - teacher_entropy


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return ``KL(q || p) = sum_v q(v) (log q(v) - log p(v))``.

    See Agarwal et al. 2023, section 3, and Wen et al. 2023, section 3.2.

    Args:
        student_logits, teacher_logits: ``(N, V)``, unnormalised, finite: the loss is infinite if ``p(v) = 0 <
            q(v)``.

    Returns:
        ``(N,)``, nats, at least 0.
    """
    log_q, log_p = _log_probs(student_logits), _log_probs(teacher_logits)
    return (log_q.exp() * (log_q - log_p)).sum(dim=-1)


def jsd(student_logits: Tensor, teacher_logits: Tensor, *, jsd_weight: float) -> Tensor:
    """Return ``w KL(p || m) + (1 - w) KL(q || m)`` with ``m = w p + (1 - w) q``.

    This is the generalised Jensen-Shannon divergence (Agarwal et al. 2023, section 2). It approaches 0 as
    ``w`` approaches 0 or 1; :func:`jsd_normalised` does not.

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
    """Return :func:`jsd` divided by ``w (1 - w)``.

    It changes continuously from ``KL(p || q)`` at ``w = 0`` to ``KL(q || p)`` at ``w = 1``.

    The gradient of the plain form vanishes towards both ends, where other implementations jump to the much
    larger KL divergences. Here the scale of the loss, and with it the best learning rate, changes smoothly.

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
    if min(jsd_weight, 1.0 - jsd_weight) < 0.01:  # near the ends, float32 leaves the quotient few digits
        student_logits, teacher_logits = student_logits.double(), teacher_logits.double()
    plain = jsd(student_logits, teacher_logits, jsd_weight=jsd_weight) / (jsd_weight * (1.0 - jsd_weight))
    return plain.to(precision)


def tvd(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return ``1/2 sum_v |p(v) - q(v)|``: the total variation distance (Wen et al. 2023, section 3.4).

    Args:
        student_logits, teacher_logits: ``(N, V)``, unnormalised. A teacher's logit may be ``-inf``.

    Returns:
        ``(N,)``, in 0..1.
    """
    p, q = (full_precision(logits).softmax(dim=-1) for logits in (teacher_logits, student_logits))
    return 0.5 * (p - q).abs().sum(dim=-1)


def sequence_js(
    student_logits: Tensor, teacher_logits: Tensor, *, is_rollout: Tensor, mixture_weight: Tensor
) -> Tensor:
    """Return each token's part of the Jensen-Shannon divergence between distributions over sentences.

    The divergence is ``JS = 1/2 E_{y ~ p} log p(y) / m(y) + 1/2 E_{y ~ q} log q(y) / m(y)`` (Wen et al. 2023,
    section 3.3). A token has the loss ``KL(p || m_t)`` if the teacher wrote the sentence and ``KL(q || m_t)``
    if the student wrote it, with ``m_t = w_t p + (1 - w_t) q``. The exact weight is ``w_t = p(y<t) / (p(y<t)
    + q(y<t))``. The released code uses one half by default:
    https://github.com/MANGA-UOFA/fdistill/blob/8e2ff7cdcea99db8cbbb87c4ebe80413e948969a/chat/kd.py#L268-L302
    https://github.com/MANGA-UOFA/fdistill/blob/8e2ff7cdcea99db8cbbb87c4ebe80413e948969a/chat/kd.py#L357

    Args:
        student_logits, teacher_logits: ``(N, V)``, unnormalised. A teacher's logit may be ``-inf`` in
            sentences that the teacher wrote.
        is_rollout: ``(N,)`` bool, true if the student wrote the sentence.
        mixture_weight: ``(N,)``, ``w_t`` in 0..1, treated as a constant by the gradient.

    Returns:
        ``(N,)``, nats, at least 0.
    """
    log_q, log_p = _log_probs(student_logits), _log_probs(teacher_logits)
    # The clamp keeps both logarithms finite.
    weight = mixture_weight.to(log_p.dtype).clamp(1e-6, 1.0 - 1e-6).unsqueeze(-1)
    log_m = torch.logaddexp(log_p + weight.log(), log_q + torch.log1p(-weight))
    return torch.where(is_rollout, _kl(log_q, log_m), _kl(log_p, log_m))


def skew_forward_kl(student_logits: Tensor, teacher_logits: Tensor, *, skew: float) -> Tensor:
    """Return ``KL(p || a p + (1 - a) q)``: the skew KL divergence (Ko et al. 2024, section 3.1).

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
    """Return ``KL(q || (1 - a) p + a q)``: the skew reverse KL divergence (Ko et al. 2024, section 3.1).

    Args:
        student_logits, teacher_logits: ``(N, V)``, unnormalised. A teacher's logit may be ``-inf`` if ``a >
            0``.
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
    """Return ``max(0, 1/V ||z_q - f z_p||^2 - margin f)`` for the unnormalised logits ``z``.

    Without a margin, this is stage I of Annealing-KD (Jafari et al. 2021, equation 7). With a margin, it is
    the teacher's part of Continuation-KD (Jafari et al. 2022). The mean over ``V``, instead of the papers'
    sum, keeps the loss on the scale of a cross-entropy if the vocabulary is large.

    Args:
        student_logits, teacher_logits: ``(N, V)``, unnormalised, finite.
        annealing: ``f = 1 - (T - 1) / T_max`` in 0..1, which rises as the temperature ``T`` falls to 1.
        logit_margin: mean squared distance, for ``f = 1``, below which the loss is 0; at least 0.

    Returns:
        ``(N,)``, at least 0.
    """
    difference = full_precision(student_logits) - annealing * full_precision(teacher_logits)
    distance = difference.square().mean(dim=-1)
    return (distance - logit_margin * annealing).clamp(min=0.0) if logit_margin > 0.0 else distance


def target_decoupled_kl(
    student_logits: Tensor, teacher_logits: Tensor, *, target: Tensor, is_hard: Tensor, token_weight: Tensor
) -> Tensor:
    """Return ATKD's KL divergence in two parts, target and others (Zhong et al. 2024, section 3.2).

    The target part compares ``(p(y), 1 - p(y))`` with ``(q(y), 1 - q(y))`` for the target ``y``. The other
    part compares ``p`` with ``q`` over all other symbols, both renormalised. Hard tokens, of whose target the
    teacher is uncertain, have both parts. Easy tokens have only the second.

    Args:
        student_logits, teacher_logits: ``(N, V)``, unnormalised. A teacher's logit may be ``-inf``.
        target: ``(N,)`` int64.
        is_hard: ``(N,)`` bool.
        token_weight: ``(N,)`` weights that turn the batch's sum into a sum of means over easy and over hard
            tokens.

    Returns:
        ``(N,)``, nats, at least 0.
    """
    target = target.unsqueeze(-1)
    q_target, q_others = _decoupled(student_logits, target)
    p_target, p_others = _decoupled(teacher_logits, target)
    p_sides = torch.cat([p_target, p_others.logsumexp(dim=-1, keepdim=True)], dim=-1)
    q_sides = torch.cat([q_target, q_others.logsumexp(dim=-1, keepdim=True)], dim=-1)
    others = _kl(p_others.log_softmax(dim=-1), q_others.log_softmax(dim=-1))
    return (others + torch.where(is_hard, _kl(p_sides, q_sides), 0.0)) * token_weight.to(others)


def ranked_kl(student_logits: Tensor, teacher_logits: Tensor, *, rank_topk: int) -> Tensor:
    """Return ``KL(p || q)`` plus TIE-KD's hierarchical ranking loss (Zhang et al. 2023).

    Let ``A`` be the teacher's ``k`` most probable symbols, the first of them ``a``, and ``B`` the student's
    ``k`` most probable ones. The ranking loss has two terms. ``sum_{v in A} max(0, q(v) - q(a))`` keeps the
    teacher's first symbol above the rest of ``A``. ``sum_{v in A, u in B} [p(v) > p(u)] max(0, q(u) - q(v))``
    keeps ``A`` above the student's other candidates. Loss and ``k = 5`` are those of the authors' code:
    https://github.com/songmzhang/NMT-KD/blob/e01c09c921c4950016c5eb9e95921c76f297b01c/fairseq-kd/fairseq/criterions/label_smoothed_cross_entropy_advanced_kd.py#L174-L197

    Args:
        student_logits, teacher_logits: ``(N, V)``, unnormalised. A teacher's logit may be ``-inf``.
        rank_topk: ``k``, at least 1; more than ``V`` means ``V``.

    Returns:
        ``(N,)``, at least 0.
    """
    # Cast once: the gradients of two casts would be rounded twice.
    student_logits, teacher_logits = full_precision(student_logits), full_precision(teacher_logits)
    p, q = teacher_logits.softmax(dim=-1), student_logits.softmax(dim=-1)
    count = min(rank_topk, p.size(-1))
    p_of_a, a = p.topk(count, dim=-1)  # (N, K)
    q_of_b, b = q.topk(count, dim=-1)
    q_of_a, p_of_b = q.gather(-1, a), p.gather(-1, b)
    first = (q_of_a - q_of_a[:, :1]).clamp(min=0.0).sum(dim=-1)
    above = p_of_a.unsqueeze(-1) > p_of_b.unsqueeze(-2)  # (N, K, K): whether p(v) > p(u)
    others = (q_of_b.unsqueeze(-2) - q_of_a.unsqueeze(-1)).clamp(min=0.0) * above
    return forward_kl(student_logits, teacher_logits) + first + others.sum(dim=(-2, -1))


def entropy_aware_kl(student_logits: Tensor, teacher_logits: Tensor, *, entropy_threshold: float) -> Tensor:
    """Return ``KL(q || p)``, plus ``KL(p || q)`` where the teacher's entropy is above a threshold.

    Entropy-aware on-policy distillation (Jin et al. 2026): the reverse KL divergence follows a teacher that
    is sure, and the forward KL divergence keeps all good continuations where it is not.

    Args:
        student_logits, teacher_logits: ``(N, V)``, unnormalised, finite: the loss is infinite if ``p(v) = 0 <
            q(v)``.
        entropy_threshold: nats, at least 0.

    Returns:
        ``(N,)``, nats, at least 0.
    """
    student_logits = full_precision(student_logits)  # once, as in ranked_kl
    unsure = entropy(teacher_logits) > entropy_threshold
    forward = forward_kl(student_logits, teacher_logits)
    return reverse_kl(student_logits, teacher_logits) + torch.where(unsure, forward, 0.0)


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
    "ranked-kl": ranked_kl,
    "entropy-aware-kl": entropy_aware_kl,
}


def needs(divergence: Divergence) -> tuple[set[str], set[str]]:
    """Return the names of the token inputs and of the flags that a divergence uses."""
    parameters = inspect.signature(divergence).parameters.values()
    keywords = {each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}
    return keywords & set(TOKEN_INPUTS), keywords - set(TOKEN_INPUTS)


def most_probable_only(
    student_logits: Tensor, teacher_logits: Tensor, count: int, *, tail: str
) -> tuple[Tensor, Tensor]:
    """Keep only the teacher's ``count`` most probable symbols (``--teacher-topk``).

    Args:
        student_logits, teacher_logits: ``(N, V)``.
        count: number of symbols to keep, less than ``V``.
        tail: what happens to the others. ``dropped``: the teacher gives them probability 0 and is
            renormalised, as in ImitKD's released code. ``bucket``: they count as one symbol, for teacher and
            student. See
            https://github.com/asappresearch/imitkd/blob/8b9fadded0e9eed7e16bf6ce6c3235f3ad5132e8/generation/distillation.py#L526-L535

    Returns:
        the student's and the teacher's logits: ``(N, V)``, or ``(N, count + 1)`` with a bucket.
    """
    best, symbols = teacher_logits.topk(count, dim=-1)
    if tail == "dropped":
        return student_logits, torch.full_like(teacher_logits, float("-inf")).scatter(-1, symbols, best)
    return _with_bucket(student_logits, symbols), _with_bucket(teacher_logits, symbols)


def _with_bucket(logits: Tensor, symbols: Tensor) -> Tensor:
    """Return the logits of some symbols ``(N, K)`` and, last, of all others together: ``(N, K + 1)``."""
    logits = full_precision(logits)
    others = logits.scatter(-1, symbols, float("-inf")).logsumexp(dim=-1, keepdim=True)
    return torch.cat([logits.gather(-1, symbols), others], dim=-1)


def _decoupled(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of the target ``(N, 1)``, and of all symbols without the target ``(N, V)``."""
    log_probs = _log_probs(logits)
    return log_probs.gather(-1, target), log_probs.scatter(-1, target, float("-inf"))


def _log_probs(logits: Tensor) -> Tensor:
    return full_precision(logits).log_softmax(dim=-1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return ``sum_v p (log p - log q)``, ``(N, V) -> (N,)``. A symbol with ``p = 0`` contributes 0."""
    absent = log_p == float("-inf")
    ratio = torch.where(absent, 0.0, log_p) - torch.where(absent, 0.0, log_q)
    return (log_p.exp() * ratio).sum(dim=-1)
