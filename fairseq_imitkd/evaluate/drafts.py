"""How many tokens of a student's draft its teacher accepts in speculative decoding, and the speed-up that
follows.

In speculative decoding the student drafts a few tokens, and one pass of the teacher checks them all. The
first one that the teacher rejects is replaced by the teacher's own; if it accepts all of them, it adds one.
So the output is the teacher's. On-policy distillation raises the acceptance (Zhou et al. 2024).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fairseq_imitkd.evaluate.schema import DraftResults

LENGTHS = range(1, 17)  # numbers of tokens in a draft


def greedy_acceptance(own: Tensor, theirs: Tensor) -> Tensor:
    """Return whether the teacher accepts the student's most probable token, if both decode greedily.

    Args:
        own, theirs: log-probabilities of student and teacher, ``(N, V)``.

    Returns:
        ``(N,)`` float64, 1 if both find the same token the most probable, else 0.
    """
    return own.argmax(dim=-1).eq(theirs.argmax(dim=-1)).double()


def sampling_acceptance(own: Tensor, theirs: Tensor) -> Tensor:
    """Return the probability that the teacher accepts a sample of the student: ``sum_v min(p(v), q(v))``.

    See Leviathan et al. 2023, section 3.2.

    Args:
        own, theirs: log-probabilities of student and teacher, ``(N, V)``.

    Returns:
        ``(N,)`` float64, in 0..1.
    """
    return torch.minimum(own.double().exp(), theirs.double().exp()).sum(dim=-1)


def acceptance_of_outputs(own: Tensor, theirs: Tensor, tokens: Tensor) -> Tensor:
    """Return the probability that tokens of a sampled output were accepted drafts, not the teacher's own.

    An accepted draft is the token ``y`` with probability ``min(p(y), q(y))``, and the output is ``y`` with
    probability ``p(y)``. So the quotient ``min(1, q(y) / p(y))`` is the probability of acceptance given the
    output.

    Args:
        own, theirs: log-probabilities of student and teacher, ``(N, V)``.
        tokens: ``(N,)`` int64, the output.

    Returns:
        ``(N,)`` float64, in 0..1.
    """
    places = tokens.unsqueeze(-1)
    ratio = own.gather(-1, places).squeeze(-1).double() - theirs.gather(-1, places).squeeze(-1).double()
    return ratio.clamp(max=0.0).exp()


def teacher_calls(acceptance: Sequence[float], length: int) -> float:
    """Return the expected number of the teacher's passes for one output.

    Args:
        acceptance: for each token of the output, the last of them the EOS, the probability that it is
            accepted if it is drafted.
        length: number of tokens in a draft, at least 1.
    """
    end = len(acceptance)
    calls = [0.0] * (end + 1)  # for the tokens from each place on
    for place in reversed(range(end)):
        calls[place], probability = 1.0, 1.0
        stop = min(place + length, end)
        for rejected in range(place, stop):
            calls[place] += probability * (1.0 - acceptance[rejected]) * calls[rejected + 1]
            probability *= acceptance[rejected]
        calls[place] += probability * calls[min(stop + 1, end)]
    return calls[0]


def expected_tokens(acceptance: float, length: int) -> float:
    """Return the tokens that one pass of the teacher yields: ``(1 - a^(g + 1)) / (1 - a)``.

    This assumes the same acceptance at all positions, independently (Leviathan et al. 2023, equation 1).

    Args:
        acceptance: ``a``, in 0..1.
        length: ``g``, number of tokens in a draft.
    """
    return sum(acceptance**power for power in range(length + 1))


def expected_speedup(acceptance: float, length: int, cost: float) -> float:
    """Return how many times as fast speculative decoding is: ``(1 - a^(g + 1)) / ((1 - a) (g c + 1))``.

    See Leviathan et al. 2023, theorem 3.8. The teacher checks a whole draft in the time of one token.

    Args:
        acceptance: ``a``, in 0..1.
        length: ``g``, number of tokens in a draft.
        cost: ``c``, time of a token of the student divided by that of the teacher.
    """
    return expected_tokens(acceptance, length) / (length * cost + 1.0)


def results(acceptance: Tensor, outputs: Sequence[Tensor], cost: float) -> DraftResults:
    """Return the results for the length of drafts that is the fastest by the formula.

    Args:
        acceptance: ``(N,)``, at each position of all outputs.
        outputs: the same by output, as :func:`teacher_calls` reads it.
        cost: time of a token of the student divided by that of the teacher.
    """
    mean = float(acceptance.mean())
    length = max(LENGTHS, key=lambda length: expected_speedup(mean, length, cost))
    calls = sum(teacher_calls(each.tolist(), length) for each in outputs)
    return DraftResults(
        tokens=acceptance.numel(),
        acceptance=mean,
        length=length,
        tokens_per_call=acceptance.numel() / calls,
        cost=cost,
        speedup=expected_speedup(mean, length, cost),
    )
