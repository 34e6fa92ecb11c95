"""Compare divergences with references that follow their definitions, symbol by symbol, in float64."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from fairseq_imitkd.losses.divergences import (
    DIVERGENCES,
    TOKEN_INPUTS,
    forward_kl,
    jsd,
    jsd_normalised,
    logit_mse,
    most_probable_only,
    needs,
    sequence_js,
    target_decoupled_kl,
    teacher_argmax,
    tvd,
)
from fairseq_imitkd.models.logits import full_precision

N, V = 5, 7

Distribution = list[float]


def probabilities(logits: list[float]) -> Distribution:
    """Softmax."""
    weights = [math.exp(logit) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def mixture(weight: float, p: Distribution, q: Distribution) -> Distribution:
    """``weight p + (1 - weight) q``."""
    return [weight * p_v + (1.0 - weight) * q_v for p_v, q_v in zip(p, q, strict=True)]


def kl(p: Distribution, q: Distribution) -> float:
    """Sum of p log(p / q) over the symbols with p > 0; infinite if q is 0 at one of them."""
    if any(q_v == 0.0 < p_v for p_v, q_v in zip(p, q, strict=True)):
        return math.inf
    return sum(p_v * math.log(p_v / q_v) for p_v, q_v in zip(p, q, strict=True) if p_v > 0.0)


def reference_teacher_argmax(q: Distribution, p: Distribution) -> float:
    """-log q of the most probable symbol of p."""
    return -math.log(q[p.index(max(p))])


def reference_forward_kl(q: Distribution, p: Distribution) -> float:
    """KL(p || q)."""
    return kl(p, q)


def reference_reverse_kl(q: Distribution, p: Distribution) -> float:
    """KL(q || p)."""
    return kl(q, p)


def reference_jsd(q: Distribution, p: Distribution, jsd_weight: float) -> float:
    """KL of both distributions to their mixture, with the weights of the mixture."""
    m = mixture(jsd_weight, p, q)
    return jsd_weight * kl(p, m) + (1.0 - jsd_weight) * kl(q, m)


def reference_jsd_normalised(q: Distribution, p: Distribution, jsd_weight: float) -> float:
    """The same divided by w (1 - w), and its limits at both ends."""
    limits = {0.0: kl(p, q), 1.0: kl(q, p)}
    if jsd_weight in limits:
        return limits[jsd_weight]
    return reference_jsd(q, p, jsd_weight) / (jsd_weight * (1.0 - jsd_weight))


def reference_tvd(q: Distribution, p: Distribution) -> float:
    """Half the sum of absolute differences."""
    return 0.5 * sum(abs(p_v - q_v) for p_v, q_v in zip(p, q, strict=True))


def reference_sequence_js(q: Distribution, p: Distribution, is_rollout: bool, mixture_weight: float) -> float:
    """KL of the writer of the sentence to the mixture."""
    return kl(q if is_rollout else p, mixture(mixture_weight, p, q))


def reference_skew_forward_kl(q: Distribution, p: Distribution, skew: float) -> float:
    """KL(p || a p + (1 - a) q)."""
    return kl(p, mixture(skew, p, q))


def reference_skew_reverse_kl(q: Distribution, p: Distribution, skew: float) -> float:
    """KL(q || a q + (1 - a) p)."""
    return kl(q, mixture(skew, q, p))


def reference_logit_mse(
    student: list[float], teacher: list[float], annealing: float, logit_margin: float
) -> float:
    """Mean squared distance to the scaled logits less the scaled margin, at least 0."""
    squares = [(z_q - annealing * z_p) ** 2 for z_q, z_p in zip(student, teacher, strict=True)]
    return max(0.0, sum(squares) / len(squares) - logit_margin * annealing)


def target_part(q: Distribution, p: Distribution, target: int) -> float:
    """KL of the two outcomes: the target, or not."""
    return kl([p[target], 1.0 - p[target]], [q[target], 1.0 - q[target]])


def others_part(q: Distribution, p: Distribution, target: int) -> float:
    """KL of the distributions over all symbols but the target."""
    without = [
        [
            share / (1.0 - distribution[target])
            for symbol, share in enumerate(distribution)
            if symbol != target
        ]
        for distribution in (p, q)
    ]
    return kl(*without)


def reference_target_decoupled_kl(
    q: Distribution, p: Distribution, target: int, is_hard: bool, token_weight: float
) -> float:
    """Both parts for a hard token, one for an easy token, times the token's weight."""
    return token_weight * (others_part(q, p, target) + (target_part(q, p, target) if is_hard else 0.0))


def reference_ranked_kl(q: Distribution, p: Distribution, rank_topk: int) -> float:
    """KL, and what the student's probabilities lack of the teacher's order, pair by pair."""
    best_p, best_q = (sorted(range(len(p)), key=lambda v: -each[v])[:rank_topk] for each in (p, q))
    first = sum(max(0.0, q[v] - q[best_p[0]]) for v in best_p)
    others = sum(max(0.0, q[u] - q[v]) for v in best_p for u in best_q if p[v] > p[u])
    return kl(p, q) + first + others


def reference_entropy_aware_kl(q: Distribution, p: Distribution, entropy_threshold: float) -> float:
    """KL(q || p), plus KL(p || q) if the entropy of p is above the threshold."""
    entropy = -sum(p_v * math.log(p_v) for p_v in p if p_v > 0.0)
    return kl(q, p) + (kl(p, q) if entropy > entropy_threshold else 0.0)


def of_distributions(reference: Callable[..., float]) -> Callable[..., float]:
    """Let a reference take logits instead of distributions."""
    return lambda student, teacher, **keywords: reference(
        probabilities(student), probabilities(teacher), **keywords
    )


# (one position's student logits, teacher logits, settings, that position's token inputs) -> loss
REFERENCES: dict[str, Callable[..., float]] = {
    "teacher-argmax": of_distributions(reference_teacher_argmax),
    "forward-kl": of_distributions(reference_forward_kl),
    "reverse-kl": of_distributions(reference_reverse_kl),
    "jsd": of_distributions(reference_jsd),
    "jsd-normalised": of_distributions(reference_jsd_normalised),
    "tvd": of_distributions(reference_tvd),
    "sequence-js": of_distributions(reference_sequence_js),
    "skew-forward-kl": of_distributions(reference_skew_forward_kl),
    "skew-reverse-kl": of_distributions(reference_skew_reverse_kl),
    "logit-mse": reference_logit_mse,
    "target-decoupled-kl": of_distributions(reference_target_decoupled_kl),
    "ranked-kl": of_distributions(reference_ranked_kl),
    "entropy-aware-kl": of_distributions(reference_entropy_aware_kl),
}


@dataclass(frozen=True)
class Case:
    """A divergence with its settings and the inputs of each of N tokens.

    Args:
        name, settings, inputs: the divergence and its keyword arguments.
        forbids: whether it stays finite if the teacher gives a symbol probability 0.
        divergence: whether it is 0 for equal distributions.
    """

    name: str
    settings: dict[str, float] = field(default_factory=dict)
    inputs: dict[str, list[Any]] = field(default_factory=dict)
    forbids: bool = True
    divergence: bool = True

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The package's loss, ``(N, V), (N, V) -> (N,)``."""
        inputs = {
            name: torch.tensor(values, dtype=torch.float64 if name == "mixture_weight" else None)
            for name, values in self.inputs.items()
        }
        return DIVERGENCES[self.name](student, teacher, **self.settings, **inputs)

    def reference(self, row: int, student: list[float], teacher: list[float]) -> float:
        """The loss of one token by the definition."""
        inputs = {name: values[row] for name, values in self.inputs.items()}
        return REFERENCES[self.name](student, teacher, **self.settings, **inputs)

    def references(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of each token by the definition, ``(N,)`` float64."""
        rows = enumerate(zip(student.tolist(), teacher.tolist(), strict=True))
        return torch.tensor([self.reference(row, q, p) for row, (q, p) in rows], dtype=torch.float64)


MIXED = [True, False, False, True, True]
TARGETS = [3, 0, 6, 6, 2]

CASES: dict[str, Case] = {
    "teacher-argmax": Case("teacher-argmax", divergence=False),
    "forward-kl": Case("forward-kl"),
    "reverse-kl": Case("reverse-kl", forbids=False),
    **{f"jsd-{w}": Case("jsd", {"jsd_weight": w}) for w in (0.1, 0.5, 0.9)},
    **{
        f"jsd-normalised-{w}": Case("jsd-normalised", {"jsd_weight": w}, forbids=w < 1.0)
        for w in (0.0, 0.1, 0.5, 1.0)
    },
    "tvd": Case("tvd"),
    "sequence-js-half": Case("sequence-js", inputs={"is_rollout": MIXED, "mixture_weight": [0.5] * N}),
    "sequence-js-varied": Case(
        "sequence-js",
        inputs={"is_rollout": MIXED, "mixture_weight": [0.25, 1e-5, 0.9, 1.0 - 2.0**-16, 2.0**-16]},
    ),
    "sequence-js-teacher-wrote": Case(
        "sequence-js", inputs={"is_rollout": [False] * N, "mixture_weight": [0.1, 0.999, 0.5, 0.7, 0.001]}
    ),
    "sequence-js-student-wrote": Case(
        "sequence-js", inputs={"is_rollout": [True] * N, "mixture_weight": [0.1, 0.999, 0.5, 0.7, 0.001]}
    ),
    **{f"skew-forward-kl-{a}": Case("skew-forward-kl", {"skew": a}) for a in (0.0, 0.1, 0.5)},
    **{
        f"skew-reverse-kl-{a}": Case("skew-reverse-kl", {"skew": a}, forbids=a > 0.0) for a in (0.0, 0.1, 0.5)
    },
    **{
        f"logit-mse-{f}-{margin}": Case(
            "logit-mse", {"annealing": f, "logit_margin": margin}, forbids=False, divergence=f == 1.0
        )
        for f, margin in product((0.3, 1.0), (0.0, 0.5, 15.0, 1e6))
    },
    "target-decoupled-kl-mixed": Case(
        "target-decoupled-kl",
        inputs={"target": TARGETS, "is_hard": MIXED, "token_weight": [0.5, 1.5, 1.0, 0.25, 3.0]},
    ),
    "target-decoupled-kl-hard": Case(
        "target-decoupled-kl", inputs={"target": TARGETS, "is_hard": [True] * N, "token_weight": [1.0] * N}
    ),
    "target-decoupled-kl-easy": Case(
        "target-decoupled-kl", inputs={"target": TARGETS, "is_hard": [False] * N, "token_weight": [1.0] * N}
    ),
    **{f"ranked-kl-{k}": Case("ranked-kl", {"rank_topk": k}) for k in (1, 3, V, 100)},
    **{
        f"entropy-aware-kl-{h}": Case("entropy-aware-kl", {"entropy_threshold": h}, forbids=False)
        for h in (0.0, 0.8, 5.0)
    },
}

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def cases_where(keep: Callable[[Case], bool]) -> Any:
    """Parametrise a test over some of the cases."""
    chosen = {name: case for name, case in CASES.items() if keep(case)}
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen.keys())


def random_logits(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Clearly different logits of student and teacher."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3.0 * torch.randn(N, V, generator=generator, dtype=torch.float64) for _ in range(2))
    return student.to(dtype), teacher.to(dtype)


def value_and_gradient(case: Case, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The losses ``(N,)``, and the gradient of their sum for the student's logits."""
    student = student.clone().requires_grad_(True)
    loss = case(student, teacher)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    return loss.detach(), gradient


def central_differences(case: Case, student: Tensor, teacher: Tensor, step: float = 1e-5) -> Tensor:
    """The numerical gradient of the reference for the student's logits."""
    gradient = torch.zeros_like(student)
    for row, symbol in product(range(student.size(0)), range(student.size(1))):
        moved = []
        for sign in (1.0, -1.0):
            logits = student[row].tolist()
            logits[symbol] += sign * step
            moved.append(case.reference(row, logits, teacher[row].tolist()))
        gradient[row, symbol] = (moved[0] - moved[1]) / (2.0 * step)
    return gradient


def test_every_divergence_has_a_reference_and_a_case() -> None:
    """A new divergence must be tested here."""
    assert set(DIVERGENCES) == set(REFERENCES) == {case.name for case in CASES.values()}


@every_case
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_values_follow_the_definition(case: Case, seed: int) -> None:
    """Each of N positions separately."""
    student, teacher = random_logits(seed)
    torch.testing.assert_close(
        case(student, teacher), case.references(student, teacher), rtol=1e-11, atol=1e-12
    )


@every_case
def test_gradients_follow_the_definition(case: Case) -> None:
    """Compare with central differences of the reference."""
    student, teacher = random_logits(4)
    torch.testing.assert_close(
        value_and_gradient(case, student, teacher)[1],
        central_differences(case, student, teacher),
        rtol=1e-8,
        atol=1e-8,
    )


@every_case
def test_gradcheck(case: Case) -> None:
    """torch's own check of the backward pass."""
    student, teacher = random_logits(5)
    assert torch.autograd.gradcheck(lambda logits: case(logits, teacher), student.requires_grad_(True))


@every_case
def test_only_the_student_has_a_gradient_and_neither_is_changed(case: Case) -> None:
    """The teacher's logits are constants, and both logits are used again for figures."""
    student, teacher = random_logits(6)
    copies = student.clone(), teacher.clone()
    assert not case(student, teacher).requires_grad
    student.requires_grad_(True)
    case(student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.detach().equal(copies[0])
    assert teacher.equal(copies[1])


@every_case
def test_each_position_is_by_itself(case: Case) -> None:
    """Losses and gradients do not depend on other positions, so a batch can be split in any way."""
    student, teacher = random_logits(7)
    other_student, other_teacher = random_logits(8)
    other_student[2], other_teacher[2] = student[2], teacher[2]
    (loss, gradient), (other_loss, other_gradient) = (
        value_and_gradient(case, *logits) for logits in ((student, teacher), (other_student, other_teacher))
    )
    assert loss[2].equal(other_loss[2])
    assert gradient[2].equal(other_gradient[2])
    if case.settings.get("logit_margin") != 1e6:
        assert not loss[[0, 1, 3, 4]].equal(other_loss[[0, 1, 3, 4]])


@every_case
def test_no_loss_is_negative(case: Case) -> None:
    """Also for nearly equal distributions."""
    student, teacher = random_logits(9)
    for distance in (1.0, 1e-3, 1e-6):
        assert case(student, student + distance * (teacher - student)).min() >= -1e-10


@cases_where(lambda case: case.divergence)
def test_divergence_is_zero_at_equality_and_so_is_its_gradient(case: Case) -> None:
    """Also if the logits differ by a constant, which leaves the distribution unchanged."""
    student, _ = random_logits(10)
    # The total variation has a kink there, which rounding would leave. logit-mse compares the logits
    # themselves.
    moved = 0.0 if case.name in ("tvd", "logit-mse") else 2.5
    loss, gradient = value_and_gradient(case, student, student + moved)
    assert loss.abs().max() < 1e-11
    assert gradient.abs().max() < 1e-11


@cases_where(lambda case: not case.divergence)
def test_other_losses_are_positive_at_equality(case: Case) -> None:
    """The most probable symbol could be more probable, and scaled logits differ."""
    student, _ = random_logits(10)
    assert (case(student, student).min() > 0.0) == (case.settings.get("logit_margin", 0.0) <= 0.5)


@cases_where(lambda case: case.name != "logit-mse")
def test_a_constant_added_to_all_logits_changes_nothing(case: Case) -> None:
    """The logits are unnormalised, so only the distributions matter."""
    student, teacher = random_logits(11)
    torch.testing.assert_close(
        case(student + 7.0, teacher - 3.0), case(student, teacher), rtol=1e-10, atol=1e-12
    )


def test_forward_kl_has_the_gradient_of_word_level_distillation() -> None:
    """Kim & Rush's ``-sum_v p(v) log q(v)`` differs from KL by a constant: its gradient is ``q - p``."""
    student, teacher = random_logits(12)
    expected = [
        [q - p for q, p in zip(probabilities(q_logits), probabilities(p_logits), strict=True)]
        for q_logits, p_logits in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    gradient = value_and_gradient(CASES["forward-kl"], student, teacher)[1]
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("weight", [0.05, 0.3, 0.5, 0.8])
def test_jsd_of_swapped_distributions_has_the_other_weight(weight: float) -> None:
    """``JSD_w(p, q) = JSD_{1 - w}(q, p)``. It is symmetric only for a weight of one half."""
    student, teacher = random_logits(13)
    for divergence in (jsd, jsd_normalised):
        one = divergence(student, teacher, jsd_weight=weight)
        torch.testing.assert_close(
            divergence(teacher, student, jsd_weight=1.0 - weight), one, rtol=1e-11, atol=0.0
        )
        swapped = divergence(teacher, student, jsd_weight=weight)
        assert torch.allclose(swapped, one, rtol=1e-10, atol=0.0) == (weight == 0.5)


@pytest.mark.parametrize(("end", "inside"), [(0.0, 1e-4), (1.0, 1.0 - 1e-4)])
def test_normalised_jsd_is_continuous_at_its_ends(end: float, inside: float) -> None:
    """Value and gradient approach those of the KL divergences; the plain form approaches 0."""
    student, teacher = (logits / 3.0 for logits in random_logits(14))
    near, at = (
        value_and_gradient(Case("jsd-normalised", {"jsd_weight": w}), student, teacher) for w in (inside, end)
    )
    torch.testing.assert_close(near, at, rtol=1e-2, atol=1e-3)
    nearer = value_and_gradient(Case("jsd-normalised", {"jsd_weight": abs(end - 1e-6)}), student, teacher)
    torch.testing.assert_close(nearer, at, rtol=1e-4, atol=1e-5)
    assert (jsd(student, teacher, jsd_weight=inside) < 1e-2 * at[0]).all()


@pytest.mark.parametrize("weight", [1e-5, 1.0 - 1e-5])
def test_normalised_jsd_is_precise_near_its_ends(weight: float) -> None:
    """In float32 alone, the quotient would keep few digits. The result has the dtype of the logits."""
    student, teacher = (logits.float() for logits in random_logits(14))
    found = jsd_normalised(student, teacher, jsd_weight=weight)
    assert found.dtype == torch.float32
    exact = jsd_normalised(student.double(), teacher.double(), jsd_weight=weight)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("scale", [0.1, 1.0, 300.0])
def test_bounded_divergences_keep_their_bounds(scale: float) -> None:
    """Total variation is at most 1 and JSD at most log 2. Very different distributions come close."""
    generator = torch.Generator().manual_seed(15)
    student, teacher = scale * torch.randn(2, 50, V, generator=generator, dtype=torch.float64)
    bounded = {
        1.0: tvd(student, teacher),
        math.log(2.0): torch.stack([jsd(student, teacher, jsd_weight=w) for w in (0.1, 0.5, 0.9)]),
    }
    for bound, values in bounded.items():
        assert values.min() >= -1e-15
        assert values.max() <= bound + 1e-12
        assert (values.max() > 0.99 * bound) == (scale == 300.0)


def test_logit_margin_teaches_nothing_within_and_the_same_gradient_beyond() -> None:
    """The hinge is at the margin's share of the annealing."""
    student, teacher = random_logits(16)
    distance, gradient = value_and_gradient(
        Case("logit-mse", {"annealing": 0.5, "logit_margin": 0.0}), student, teacher
    )
    margin = 2.0 * float(distance.median())
    loss, hinged = value_and_gradient(
        Case("logit-mse", {"annealing": 0.5, "logit_margin": margin + 1e-9}), student, teacher
    )
    within = distance <= distance.median()
    assert within.sum() == 3
    assert loss[within].eq(0.0).all()
    assert hinged[within].eq(0.0).all()
    torch.testing.assert_close(loss[~within], distance[~within] - 0.5 * margin, rtol=1e-8, atol=1e-8)
    assert hinged[~within].equal(gradient[~within])


def test_target_decoupled_kl_decouples_the_kl_divergence() -> None:
    """``KL(p || q)`` is the target's part plus ``1 - p(y)`` times the others' part; ATKD drops the weight."""
    student, teacher = random_logits(17)
    target = torch.tensor(TARGETS)
    both, others = (
        target_decoupled_kl(
            student, teacher, target=target, is_hard=torch.full((N,), hard), token_weight=torch.ones(N)
        )
        for hard in (True, False)
    )
    not_target = []
    for row, (q_logits, p_logits) in enumerate(zip(student.tolist(), teacher.tolist(), strict=True)):
        q, p, y = probabilities(q_logits), probabilities(p_logits), TARGETS[row]
        assert target_part(q, p, y) + (1.0 - p[y]) * others_part(q, p, y) == pytest.approx(
            kl(p, q), rel=1e-12
        )
        not_target.append(1.0 - p[y])
    whole = (both - others) + torch.tensor(not_target, dtype=torch.float64) * others
    torch.testing.assert_close(whole, forward_kl(student, teacher), rtol=1e-11, atol=1e-12)
    assert (others > 1e-3).all()
    assert (both - others > 1e-6).all()


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_sequence_js_with_an_extreme_mixture_is_a_kl_divergence(end: float) -> None:
    """If one of the models gives the prefix probability 0. The other model's divergence is then 0."""
    student, teacher = (logits / 3.0 for logits in random_logits(18))
    case = Case("sequence-js", inputs={"is_rollout": MIXED, "mixture_weight": [end] * N})
    loss, gradient = value_and_gradient(case, student, teacher)
    torch.testing.assert_close(loss, case.references(student, teacher), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, central_differences(case, student, teacher), rtol=1e-4, atol=1e-4)
    teacher[:, 0] = -torch.inf
    loss, gradient = value_and_gradient(case, student, teacher)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


END, LONGEST = 2, 3


def prefixes() -> list[tuple[int, ...]]:
    """All prefixes over three symbols that can continue: without end symbol and below the greatest length."""
    return [prefix for length in range(LONGEST) for prefix in product((0, 1), repeat=length)]


def sentences() -> list[tuple[int, ...]]:
    """All sentences: with the end symbol last, or without it at the greatest length."""
    return [
        (*prefix, symbol)
        for prefix in prefixes()
        for symbol in range(3)
        if symbol == END or len(prefix) == LONGEST - 1
    ]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sequence_js_sums_to_the_divergence_of_sentences(seed: int) -> None:
    """With exact weights, the tokens' divergences sum to that of sentences, over all sentences of a language.

    ``KL(P || M)`` with ``M = (P + Q) / 2`` of the probabilities of whole sentences, for the teacher's and the
    student's halves of the Jensen-Shannon divergence.
    """
    generator = torch.Generator().manual_seed(seed)
    order = {prefix: number for number, prefix in enumerate(prefixes())}
    student, teacher = 1.5 * torch.randn(2, len(order), 3, generator=generator, dtype=torch.float64)
    q, p = ([probabilities(row) for row in logits.tolist()] for logits in (student, teacher))

    def probability(distribution: list[Distribution], tokens: tuple[int, ...]) -> float:
        return math.prod(distribution[order[tokens[:at]]][token] for at, token in enumerate(tokens))

    whole = {sentence: (probability(p, sentence), probability(q, sentence)) for sentence in sentences()}
    for side in (0, 1):
        assert sum(both[side] for both in whole.values()) == pytest.approx(1.0, rel=1e-12)
    weights = torch.tensor(
        [probability(p, prefix) / (probability(p, prefix) + probability(q, prefix)) for prefix in order],
        dtype=torch.float64,
    )
    for side, is_rollout in ((0, False), (1, True)):
        of_prefix = sequence_js(
            student, teacher, is_rollout=torch.full((len(order),), is_rollout), mixture_weight=weights
        ).tolist()
        by_tokens = sum(
            both[side] * sum(of_prefix[order[sentence[:at]]] for at in range(len(sentence)))
            for sentence, both in whole.items()
        )
        of_sentences = sum(both[side] * math.log(both[side] / (sum(both) / 2.0)) for both in whole.values())
        assert by_tokens == pytest.approx(of_sentences, rel=1e-11)
        half = sequence_js(
            student,
            teacher,
            is_rollout=torch.full((len(order),), is_rollout),
            mixture_weight=torch.full_like(weights, 0.5),
        ).tolist()
        by_halves = sum(
            both[side] * sum(half[order[sentence[:at]]] for at in range(len(sentence)))
            for sentence, both in whole.items()
        )
        assert abs(by_halves - of_sentences) > 1e-3  # with weights of one half, it is another quantity


@cases_where(lambda case: case.forbids)
def test_teacher_may_forbid_symbols(case: Case) -> None:
    """A teacher's ``-inf`` is a probability of 0. Loss and gradients stay finite and correct."""
    student, teacher = random_logits(19)
    teacher[:, 0] = teacher[0, 3] = teacher[3, 6] = -torch.inf  # targets of some positions and not of others
    loss, gradient = value_and_gradient(case, student, teacher)
    torch.testing.assert_close(loss, case.references(student, teacher), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(gradient, central_differences(case, student, teacher), rtol=1e-8, atol=1e-8)


@cases_where(lambda case: not case.forbids)
def test_loss_is_infinite_if_its_definition_is(case: Case) -> None:
    """The student allows a symbol that the teacher forbids. The criterion then refuses the update."""
    student, teacher = random_logits(20)
    teacher[1, 4] = -torch.inf
    expected = case.references(student, teacher)
    assert expected.isinf().tolist() == [False, True, False, False, False]
    torch.testing.assert_close(case(student, teacher), expected, rtol=1e-10, atol=1e-12)


@every_case
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_broken_teacher_does_not_train_silently(case: Case, value: float, dtype: torch.dtype) -> None:
    """One logit is not finite: the loss is NaN there, so the criterion stops, and correct elsewhere.

    The gradient is NaN too, except for absolute differences, whose gradient can't hold NaN, and for squares,
    where only that logit's gradient is affected.
    """
    student, teacher = random_logits(21, dtype)
    expected = value_and_gradient(case, student, teacher)
    teacher[1, 4] = value
    loss, gradient = value_and_gradient(case, student, teacher)
    sound = [0, 2, 3, 4]
    if case.name == "logit-mse":
        assert loss[1].isnan() if math.isnan(value) else loss[1].isposinf()
    else:
        assert loss[1].isnan()
        assert case.name == "tvd" or gradient[1].isnan().all()
    assert loss[sound].equal(expected[0][sound])
    assert gradient[sound].equal(expected[1][sound])


@every_case
def test_broken_student_does_not_train_silently(case: Case) -> None:
    """A diverged student's NaN reaches the loss."""
    student, teacher = random_logits(22)
    student[3, 2] = torch.nan
    assert case(student, teacher).isnan().tolist() == [False, False, False, True, False]


@every_case
def test_teacher_that_forbids_everything_does_not_train_silently(case: Case) -> None:
    """``-inf`` at every symbol is not a distribution. Its distance as logits is infinite."""
    student, teacher = random_logits(23)
    teacher[2] = -torch.inf
    loss, gradient = value_and_gradient(case, student, teacher)
    if case.name == "logit-mse":
        assert loss.isposinf().tolist() == [False, False, True, False, False]
    else:
        assert loss.isnan().tolist() == [False, False, True, False, False]
        assert case.name == "tvd" or gradient[2].isnan().all()
    assert loss[[0, 1, 3, 4]].isfinite().all()
    assert gradient[[0, 1, 3, 4]].isfinite().all()


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(case: Case, dtype: torch.dtype) -> None:
    """The loss equals that of logits cast to float32 before. The gradient is rounded once."""
    student, teacher = random_logits(24, dtype)
    loss, gradient = value_and_gradient(case, student, teacher)
    expected, precise = value_and_gradient(case, student.float(), teacher.float())
    assert loss.dtype == torch.float32
    assert loss.equal(expected)
    assert gradient.dtype == dtype
    assert gradient.equal(precise.to(dtype))


@every_case
def test_float32_is_close_to_float64(case: Case) -> None:
    """float32 is the precision of training."""
    student, teacher = random_logits(25)
    precise, single = (
        value_and_gradient(case, student.to(dtype), teacher.to(dtype))
        for dtype in (torch.float64, torch.float32)
    )
    torch.testing.assert_close(single[0].double(), precise[0], rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(single[1].double(), precise[1], rtol=2e-5, atol=2e-5)


@every_case
def test_certain_models_have_finite_losses_and_gradients(case: Case) -> None:
    """Probabilities that float32 rounds to 0 or 1, in one model or both."""
    student, teacher = random_logits(26, torch.float32)
    for student_scale, teacher_scale in ((300.0, 1.0), (1.0, 300.0), (300.0, 300.0)):
        loss, gradient = value_and_gradient(case, student_scale * student, teacher_scale * teacher)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()


@cases_where(lambda case: case.divergence and case.name != "logit-mse")
def test_half_precision_sum_over_a_large_vocabulary_does_not_overflow(case: Case) -> None:
    """The sum over 70000 equal symbols exceeds float16's maximum 65504. The loss of two uniforms is 0."""
    zeros = torch.zeros(N, 70_000, dtype=torch.float16)
    torch.testing.assert_close(case(zeros, zeros), torch.zeros(N), rtol=0.0, atol=2e-4)


def test_half_precision_argmax_and_squares_do_not_overflow() -> None:
    """A uniform student has the loss log V, and the square of 300 exceeds float16's maximum 65504."""
    zeros = torch.zeros(1, 70_000, dtype=torch.float16)
    assert float(teacher_argmax(zeros, zeros)) == pytest.approx(math.log(70_000), rel=1e-5)
    assert float(logit_mse(zeros + 300.0, zeros, annealing=1.0, logit_margin=0.0)) == pytest.approx(90_000.0)


def test_full_precision_leaves_other_dtypes_alone() -> None:
    """float32 and float64 are returned without copy; half precision becomes float32."""
    for dtype in (torch.float32, torch.float64):
        logits = torch.zeros(2, 3, dtype=dtype)
        assert full_precision(logits) is logits
    for dtype in (torch.float16, torch.bfloat16):
        assert full_precision(torch.zeros(2, 3, dtype=dtype)).dtype == torch.float32


def test_needs_names_the_inputs_and_settings() -> None:
    """The inputs that the criterion passes, and the flags that have an effect."""
    expected: dict[str, tuple[set[str], set[str]]] = {
        "teacher-argmax": (set(), set()),
        "forward-kl": (set(), set()),
        "reverse-kl": (set(), set()),
        "jsd": (set(), {"jsd_weight"}),
        "jsd-normalised": (set(), {"jsd_weight"}),
        "tvd": (set(), set()),
        "sequence-js": ({"is_rollout", "mixture_weight"}, set()),
        "skew-forward-kl": (set(), {"skew"}),
        "skew-reverse-kl": (set(), {"skew"}),
        "logit-mse": (set(), {"annealing", "logit_margin"}),
        "target-decoupled-kl": ({"target", "is_hard", "token_weight"}, set()),
        "ranked-kl": (set(), {"rank_topk"}),
        "entropy-aware-kl": (set(), {"entropy_threshold"}),
    }
    assert {name: needs(divergence) for name, divergence in DIVERGENCES.items()} == expected
    assert set().union(*(inputs for inputs, _ in expected.values())) == set(TOKEN_INPUTS)
    for case in CASES.values():
        assert (set(case.inputs), set(case.settings)) == expected[case.name]


def truncated(q: Distribution, p: Distribution, count: int, tail: str) -> tuple[Distribution, Distribution]:
    """Both distributions with only the teacher's most probable symbols kept."""
    best = sorted(range(len(p)), key=lambda symbol: -p[symbol])[:count]
    if tail == "dropped":
        kept = sum(p[symbol] for symbol in best)
        return q, [share / kept if symbol in best else 0.0 for symbol, share in enumerate(p)]
    rest = [symbol for symbol in range(len(p)) if symbol not in best]
    one, other = (
        [*(shares[symbol] for symbol in best), sum(shares[symbol] for symbol in rest)] for shares in (q, p)
    )
    return one, other


def topk_loss(name: str, count: int, tail: str, student: Tensor, teacher: Tensor) -> Tensor:
    """The package's loss under ``--teacher-topk``."""
    case = CASES[name]
    return case(*most_probable_only(student, teacher, count, tail=tail))


TOPK = [
    *(
        (name, "bucket")
        for name in (
            "forward-kl",
            "reverse-kl",
            "jsd-0.1",
            "tvd",
            "skew-reverse-kl-0.1",
            "sequence-js-varied",
        )
    ),
    *(
        (name, "dropped")
        for name in ("forward-kl", "jsd-0.1", "tvd", "skew-reverse-kl-0.1", "sequence-js-varied")
    ),
]


@pytest.mark.parametrize("count", [1, 3, V - 2])
@pytest.mark.parametrize(("name", "tail"), TOPK)
def test_most_probable_only_follows_the_definition(name: str, tail: str, count: int) -> None:
    """Value and gradient, also for the student's symbols outside the teacher's best."""
    student, teacher = random_logits(27)
    reference = {
        "forward-kl": reference_forward_kl,
        "reverse-kl": reference_reverse_kl,
        "jsd": reference_jsd,
        "tvd": reference_tvd,
        "skew-reverse-kl": reference_skew_reverse_kl,
        "sequence-js": reference_sequence_js,
    }[CASES[name].name]

    def expected(row: int, q_logits: list[float], p_logits: list[float]) -> float:
        q, p = truncated(probabilities(q_logits), probabilities(p_logits), count, tail)
        inputs = {key: values[row] for key, values in CASES[name].inputs.items()}
        return reference(q, p, **CASES[name].settings, **inputs)

    student.requires_grad_(True)
    loss = topk_loss(name, count, tail, student, teacher)
    loss.sum().backward()
    rows = enumerate(zip(student.tolist(), teacher.tolist(), strict=True))
    values = torch.tensor([expected(row, q, p) for row, (q, p) in rows], dtype=torch.float64)
    torch.testing.assert_close(loss.detach(), values, rtol=1e-6, atol=1e-11)
    step, gradient = 1e-5, torch.zeros(N, V, dtype=torch.float64)
    for row, symbol in product(range(N), range(V)):
        above, below = student[row].tolist(), student[row].tolist()
        above[symbol] += step
        below[symbol] -= step
        sides = [expected(row, logits, teacher[row].tolist()) for logits in (above, below)]
        gradient[row, symbol] = (sides[0] - sides[1]) / (2.0 * step)
    torch.testing.assert_close(student.grad, gradient, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("name", "tail"), TOPK)
def test_gradcheck_of_most_probable_only(name: str, tail: str) -> None:
    """torch's own check of the backward pass."""
    student, teacher = random_logits(28)
    assert torch.autograd.gradcheck(
        lambda logits: topk_loss(name, 3, tail, logits, teacher), student.requires_grad_(True)
    )


@pytest.mark.parametrize(("tail", "width"), [("dropped", V), ("bucket", 4)])
def test_most_probable_only_keeps_the_best_and_their_order_of_merit(tail: str, width: int) -> None:
    """The bucket is the last symbol, dropped symbols have probability 0, and the inputs do not change."""
    student, teacher = random_logits(29)
    copies = student.clone(), teacher.clone()
    kept_student, kept_teacher = most_probable_only(student, teacher, 3, tail=tail)
    assert kept_student.shape == kept_teacher.shape == (N, width)
    assert student.equal(copies[0])
    assert teacher.equal(copies[1])
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    expected = [truncated(probabilities(q), probabilities(p), 3, tail) for q, p in rows]
    for number, logits in enumerate((kept_student, kept_teacher)):
        wanted = torch.tensor([pair[number] for pair in expected], dtype=torch.float64)
        torch.testing.assert_close(logits.softmax(-1), wanted, rtol=1e-12, atol=0.0)
    if tail == "dropped":
        assert kept_teacher.isneginf().sum(-1).eq(V - 3).all()


def test_bucket_of_a_teacher_that_forbids_the_rest_is_empty() -> None:
    """Its logit is ``-inf``: forward KL stays finite and right, and its gradient too."""
    student, teacher = random_logits(30)
    teacher[:, 3:] = -torch.inf
    student.requires_grad_(True)
    loss = topk_loss("forward-kl", 3, "bucket", student, teacher)
    loss.sum().backward()
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    expected = [kl(probabilities(p), probabilities(q)) for q, p in rows]
    torch.testing.assert_close(
        loss.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=0.0
    )
    softmax = [
        [q - p for q, p in zip(probabilities(a), probabilities(b), strict=True)]
        for a, b in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        student.grad, torch.tensor(softmax, dtype=torch.float64), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(("name", "tail"), TOPK)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_most_probable_only_does_not_hide_a_broken_teacher(
    name: str, tail: str, value: float, dtype: torch.dtype
) -> None:
    """A logit that is not finite counts as most probable. Half precision is computed in float32."""
    student, teacher = random_logits(31, dtype)
    sound = topk_loss(name, 2, tail, student, teacher)
    teacher[1, 4] = value
    loss = topk_loss(name, 2, tail, student, teacher)
    assert loss.dtype == torch.float32
    assert loss.isnan().tolist() == [False, True, False, False, False]
    assert loss[[0, 2, 3, 4]].equal(sound[[0, 2, 3, 4]])


@pytest.mark.parametrize("is_rollout", [False, True])
def test_sequence_js_bounds_the_mixture_weight(is_rollout: bool) -> None:
    """The weight is clamped to 1e-6 .. 1 - 1e-6. So a symbol that one side excludes costs ``log 1e6``."""
    student, teacher = torch.tensor([[0.0, -100.0]]), torch.tensor([[-100.0, 0.0]])
    weight = torch.tensor([1.0 if is_rollout else 0.0])
    loss = sequence_js(student, teacher, is_rollout=torch.tensor([is_rollout]), mixture_weight=weight)
    # In float32, 1 - 1e-6 is not exact.
    assert loss.item() == pytest.approx(math.log(1e6), rel=1e-2)
