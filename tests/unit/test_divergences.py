"""Divergences against references written from their definitions, symbol by symbol, in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fairseq_imitkd.divergences import DIVERGENCES, forward_kl, full_precision, teacher_argmax

N, V = 5, 7


def probabilities(logits: list[float]) -> list[float]:
    """Softmax by its definition."""
    weights = [math.exp(logit) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def reference_forward_kl(student: list[float], teacher: list[float]) -> float:
    """Sum of p log(p / q) over the symbols that the teacher holds possible."""
    return sum(p * math.log(p / q) for p, q in zip(probabilities(teacher), probabilities(student), strict=True) if p > 0.0)


def reference_teacher_argmax(student: list[float], teacher: list[float]) -> float:
    """-log q of the symbol that no other beats."""
    return -math.log(probabilities(student)[teacher.index(max(teacher))])


REFERENCES: dict[str, Callable[[list[float], list[float]], float]] = {
    "forward-kl": reference_forward_kl,
    "teacher-argmax": reference_teacher_argmax,
}


def random_logits(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Student's and teacher's logits, far enough apart to tell p from q."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3.0 * torch.randn(N, V, generator=generator, dtype=torch.float64) for _ in range(2))
    return student.to(dtype), teacher.to(dtype)


def test_every_divergence_has_a_reference() -> None:
    """A divergence that is registered is checked here."""
    assert set(DIVERGENCES) == set(REFERENCES)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_values_follow_the_definition(name: str, seed: int) -> None:
    """Each of the N positions by itself."""
    student, teacher = random_logits(seed)
    expected = [REFERENCES[name](q, p) for q, p in zip(student.tolist(), teacher.tolist(), strict=True)]
    torch.testing.assert_close(DIVERGENCES[name](student, teacher), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradients_follow_the_definition(name: str) -> None:
    """Central differences of the reference, in each student logit of each position."""
    student, teacher = random_logits(4)
    student.requires_grad_(True)
    DIVERGENCES[name](student, teacher).sum().backward()
    step = 1e-5
    for row in range(N):
        for symbol in range(V):
            moved = [student[row].tolist() for _ in range(2)]
            moved[0][symbol] += step
            moved[1][symbol] -= step
            above, below = (REFERENCES[name](logits, teacher[row].tolist()) for logits in moved)
            assert float(student.grad[row, symbol]) == pytest.approx((above - below) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradcheck(name: str) -> None:
    """torch's own check of the backward pass."""
    student, teacher = random_logits(5)
    assert torch.autograd.gradcheck(lambda logits: DIVERGENCES[name](logits, teacher), student.requires_grad_(True))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_no_gradient_reaches_the_teacher(name: str) -> None:
    """What the teacher says is a constant: only the student's logits are asked for a gradient in training."""
    student, teacher = random_logits(6)
    assert not DIVERGENCES[name](student, teacher).requires_grad


def test_forward_kl_is_zero_at_equality_and_so_is_its_gradient() -> None:
    """Also when the logits differ by a constant, which is the same distribution."""
    student, _ = random_logits(7)
    teacher = student + 2.5
    student.requires_grad_(True)
    loss = forward_kl(student, teacher)
    loss.sum().backward()
    assert loss.abs().max() < 1e-12
    assert student.grad.abs().max() < 1e-12


def test_forward_kl_has_the_gradient_of_word_level_distillation() -> None:
    """Kim & Rush's ``-sum_v p(v) log q(v)`` differs from KL by a constant: its gradient is ``q - p``."""
    student, teacher = random_logits(8)
    student.requires_grad_(True)
    forward_kl(student, teacher).sum().backward()
    expected = [
        [q - p for q, p in zip(probabilities(q_logits), probabilities(p_logits), strict=True)]
        for q_logits, p_logits in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    torch.testing.assert_close(student.grad, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_teacher_may_forbid_symbols(name: str) -> None:
    """A teacher's ``-inf`` is a probability of 0: the loss and every gradient stay finite and right."""
    student, teacher = random_logits(9)
    teacher[:, 0] = teacher[0, 3] = -torch.inf
    student.requires_grad_(True)
    loss = DIVERGENCES[name](student, teacher)
    loss.sum().backward()
    expected = [REFERENCES[name](q, p) for q, p in zip(student.tolist(), teacher.tolist(), strict=True)]
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_broken_teacher_does_not_train_silently(name: str, value: float, dtype: torch.dtype) -> None:
    """One logit that is not finite: loss and gradient are NaN there, where fairseq stops, and right at the other positions."""
    student, teacher = random_logits(11, dtype)
    expected = DIVERGENCES[name](student, teacher)
    teacher[1, 4] = value
    student.requires_grad_(True)
    loss = DIVERGENCES[name](student, teacher)
    loss.sum().backward()
    sound = [0, 2, 3, 4]
    assert loss[1].isnan()
    assert student.grad[1].isnan().all()
    torch.testing.assert_close(loss[sound].detach(), expected[sound], rtol=0, atol=0)
    assert student.grad[sound].isfinite().all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_teacher_that_forbids_everything_does_not_train_silently(name: str) -> None:
    """``-inf`` at every symbol is no distribution."""
    student, teacher = random_logits(12)
    teacher[2] = -torch.inf
    student.requires_grad_(True)
    loss = DIVERGENCES[name](student, teacher)
    loss.sum().backward()
    assert loss.isnan().tolist() == [False, False, True, False, False]
    assert student.grad[2].isnan().all()


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    """The result is float32 and exactly the one of the same logits cast beforehand."""
    student, teacher = random_logits(10, dtype)
    loss = DIVERGENCES[name](student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, DIVERGENCES[name](student.float(), teacher.float()), rtol=0, atol=0)


def test_half_precision_sum_over_a_large_vocabulary_does_not_overflow() -> None:
    """70000 equal symbols: their weights together are beyond float16's 65504; a uniform teacher costs log V."""
    zeros = torch.zeros(1, 70_000, dtype=torch.float16)
    assert float(teacher_argmax(zeros, zeros)) == pytest.approx(math.log(70_000), rel=1e-5)
    assert float(forward_kl(zeros, zeros)) == pytest.approx(0.0, abs=1e-4)


def test_full_precision_leaves_other_dtypes_alone() -> None:
    """float32 and float64 pass through uncopied."""
    for dtype in (torch.float32, torch.float64):
        logits = torch.zeros(2, 3, dtype=dtype)
        assert full_precision(logits) is logits
