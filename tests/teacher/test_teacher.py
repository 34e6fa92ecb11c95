"""The teacher's logits: precision, ensembles, agreement with the references."""

import math

import pytest
import torch
from fairseq import utils

from fairseq_imitkd.data.dictionaries import first_difference
from fairseq_imitkd.teacher.teacher import Teacher
from tests.helpers.emulated_cuda import DEVICE, emulated_cuda
from tests.helpers.fairseq_models import (
    build_student,
    make_batch,
    reversed_pairs,
    teacher_logits,
)


def test_ensemble_averages_probabilities() -> None:
    """The log of the mean probability, in float64 from the definition, and not the mean of logits."""
    members = [build_student(seed=seed).eval() for seed in (1, 2, 3)]
    sample = make_batch(reversed_pairs(4, seed=2))
    logits = teacher_logits(Teacher(members), sample)
    with torch.no_grad():
        scores = [member(**sample["net_input"])[0].double() for member in members]
    probabilities = sum(score.exp() / score.exp().sum(-1, keepdim=True) for score in scores) / 3
    torch.testing.assert_close(logits.double(), probabilities.log(), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits.double().softmax(-1), (sum(scores) / 3).softmax(-1), atol=1e-3)
    assert not logits.requires_grad


def test_max_positions_are_the_tightest_members() -> None:
    """For source and target separately: what one member can't read, the ensemble can't."""
    members = [build_student(max_source_positions=a, max_target_positions=b) for a, b in ((30, 50), (40, 20))]
    assert Teacher(members).max_positions == (30, 20)


@pytest.mark.parametrize(
    ("flag", "student", "expected"),
    [
        ("auto", torch.float32, torch.float32),
        ("auto", torch.bfloat16, torch.bfloat16),
        ("fp32", torch.float16, torch.float32),
        ("fp16", torch.float32, torch.float16),
        ("bf16", torch.float32, torch.bfloat16),
    ],
)
def test_place_sets_the_dtype(flag: str, student: torch.dtype, expected: torch.dtype) -> None:
    """The dtype of the flag, or the student's; a second placement changes nothing."""
    teacher = Teacher([build_student()], dtype=flag)
    for _ in range(2):
        teacher.place(torch.device("cpu"), student)
        assert {parameter.dtype for parameter in teacher.models[0].parameters()} == {expected}


@pytest.mark.parametrize("flag", ["auto", "fp32", "fp16"])
def test_first_placement_keeps_its_dtype(flag: str) -> None:
    """A student that is in half precision later must not round the weights of a placed teacher."""
    first = torch.float16 if flag == "fp16" else torch.float32
    teacher = Teacher([build_student(), build_student(seed=2)], dtype=flag)
    teacher.place(torch.device("cpu"), torch.float32)
    weights = [parameter.clone() for model in teacher.models for parameter in model.parameters()]
    for later in (torch.bfloat16, torch.float16, torch.float32):
        teacher.place(torch.device("cpu"), later)
    placed = [parameter for model in teacher.models for parameter in model.parameters()]
    assert {parameter.dtype for parameter in placed} == {first}
    assert all(after.equal(before) for after, before in zip(placed, weights, strict=True))


@pytest.mark.parametrize("materialise", [True, False])
def test_autocast_does_not_change_the_teachers_dtype(materialise: bool) -> None:
    """``--teacher-dtype fp32`` holds under ``--amp``, also for projected logits; ``auto`` does not."""
    sample, found = make_batch(reversed_pairs(6, seed=3)), {}
    for dtype in ("auto", "fp32"):
        teacher = Teacher([build_student(seed=2)], dtype=dtype)
        teacher.place(torch.device("cpu"), torch.float32)
        exact = teacher.score(sample).logits(slice(None))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = teacher.score(sample, teacher.encode(sample), materialise=materialise)
            logits = (
                scores.at(torch.arange(3)).logits(slice(None)),
                teacher.agreement(sample, teacher.encode(sample), pad=1, chunk=0),
            )
        found[dtype] = logits[0].dtype, float((logits[0].float() - exact[:3]).abs().max()) > 1e-5
    assert found == {"auto": (torch.bfloat16, True), "fp32": (torch.float32, False)}


@pytest.mark.parametrize("materialise", [True, False])
def test_a_teacher_elsewhere_answers_when_it_is_asked(
    materialise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is copied to the student's device before the logits are used, and then only once."""
    models, sample = [build_student(seed=2), build_student(seed=3)], make_batch(reversed_pairs(4, seed=3))
    expected = Teacher(models).score(sample).logits(slice(None))
    copied: list[torch.Tensor] = []
    bring = Teacher._to_student
    with emulated_cuda():
        teacher = Teacher(models, device=torch.device("cpu"))
        teacher.place(DEVICE, torch.float32)
        monkeypatch.setattr(Teacher, "_to_student", lambda *given: copied.append(given[1]) or bring(*given))
        there = utils.move_to_cuda(sample)
        logits = teacher.score(there, teacher.encode(there), materialise=materialise)
        some = logits.at(torch.arange(5, device="cuda"))
        assert not copied
        found = some.logits(slice(None)).cpu()
        number = len(copied)
        some.logits(slice(0, 2))
        assert len(copied) == number > 0
    assert torch.allclose(found, expected[:5], atol=1e-6)


def test_constructing_freezes_and_stops_dropout() -> None:
    """A model in training mode is switched to evaluation: two scores of a batch are equal."""
    model = build_student().train()
    teacher, sample = Teacher([model]), make_batch(reversed_pairs(4, seed=2))
    assert teacher_logits(teacher, sample).equal(teacher_logits(teacher, sample))
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        ("abc", "abc", None),
        ("abc", "abd", (2, "c", "d")),
        ("abc", "bac", (0, "a", "b")),
        ("abc", "ab", (2, "c", "(nothing)")),
        ("ab", "abc", (2, "(nothing)", "c")),
        ("", "", None),
    ],
)
def test_first_difference(teacher: str, student: str, expected: tuple[int, str, str] | None) -> None:
    """The first index at which two dictionaries differ; one may end there."""
    assert first_difference(teacher, student) == expected


def test_weights_of_an_ensemble() -> None:
    """The weighted mean of probabilities, by its definition."""
    members = [build_student(seed=seed).eval() for seed in (1, 2)]
    sample = make_batch(reversed_pairs(4, seed=2))
    logits = teacher_logits(Teacher(members, weights=[0.8, 0.2]), sample)
    with torch.no_grad():
        probs = [member(**sample["net_input"])[0].double().softmax(-1) for member in members]
    torch.testing.assert_close(logits.double().exp(), 0.8 * probs[0] + 0.2 * probs[1], rtol=1e-5, atol=1e-7)


def test_agreement_weighs_members_by_the_reference() -> None:
    """A sentence's weights: the members' own times the geometric mean of its reference's probabilities."""
    members = [build_student(seed=seed).eval() for seed in (1, 2)]
    sample = make_batch(reversed_pairs(5, seed=3))
    teacher = Teacher(members, weights=[0.8, 0.2])
    encoded = teacher.encode(sample)
    for chunk in (0, 4):
        agreement = teacher.agreement(sample, encoded, pad=1, chunk=chunk)
        log_weights = (agreement + teacher.log_weights).log_softmax(-1)
        for row, target in enumerate(sample["target"]):
            products = []
            for member, prior in zip(members, (0.8, 0.2), strict=True):
                with torch.no_grad():
                    lprobs = member(**sample["net_input"])[0].double().log_softmax(-1)[row]
                counted = [float(lprobs[at, token]) for at, token in enumerate(target.tolist()) if token != 1]
                products.append(prior * math.exp(sum(counted) / len(counted)))
            expected = [product / sum(products) for product in products]
            torch.testing.assert_close(
                log_weights[row].exp().double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-5
            )
    logits = teacher_logits(teacher, sample, encoded, log_weights=log_weights)
    with torch.no_grad():
        probs = torch.stack([member(**sample["net_input"])[0].double().softmax(-1) for member in members])
    mean = (log_weights.double().exp().t()[:, :, None, None] * probs).sum(0)
    torch.testing.assert_close(logits.double().exp(), mean, rtol=1e-4, atol=1e-6)


def test_ensemble_averages_logits() -> None:
    """For divergences that compare logits: one teacher twice is that teacher."""
    member, other = build_student(seed=1).eval(), build_student(seed=2).eval()
    sample = make_batch(reversed_pairs(4, seed=2))
    with torch.no_grad():
        logits = [model(**sample["net_input"])[0] for model in (member, other)]
    twice = teacher_logits(Teacher([member, member]), sample, average_logits=True)
    torch.testing.assert_close(twice, logits[0])
    weighed = teacher_logits(Teacher([member, other], weights=[0.8, 0.2]), sample, average_logits=True)
    torch.testing.assert_close(weighed, 0.8 * logits[0] + 0.2 * logits[1])
