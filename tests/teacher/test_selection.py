"""Reinforced selection of teachers: the draw, the policy's gradient, its state."""

import pytest
import torch

from fairseq_imitkd.rollout import RandomKey
from fairseq_imitkd.rollout.keyed_random import SELECTING
from fairseq_imitkd.teacher.selection import RATE, TeacherSelector
from fairseq_imitkd.teacher.sentence_weights import SentenceWeights
from fairseq_imitkd.teacher.teacher import Teacher
from tests.helpers.fairseq_models import (
    build_student,
    give_teacher,
    make_batch,
    reversed_pairs,
    tiny_criterion,
    tiny_task,
    trained_student,
)

EQUAL = torch.tensor([0.5, 0.5]).log()
AGREEMENT = torch.tensor(
    [[-1.0, -2.0], [-3.0, -0.5], [-1.0, -1.0], [-0.1, -4.0], [-2.0, -1.9]], dtype=torch.float64
)


def batch() -> dict:
    return make_batch(reversed_pairs(5, seed=5))


def test_it_begins_with_agreement() -> None:
    """Each sentence's teacher is drawn by ``prior * exp(agreement)`` with the sentence's random number."""
    counts, model, sample = torch.zeros(5, 2), build_student(), batch()
    for update_num in range(300):
        selector = TeacherSelector(torch.tensor([0.8, 0.2]).log(), pad=1, seed=1)
        log_weights = selector.choose(sample, AGREEMENT, model, update_num=update_num, chunk=0)
        assert log_weights.exp().sum(dim=-1).tolist() == [1.0] * 5
        uniforms = RandomKey(1, update_num, SELECTING).uniforms(sample["id"])
        first = (torch.tensor([0.8, 0.2]).log() + AGREEMENT).softmax(-1)[:, 0]
        assert log_weights[:, 0].exp().tolist() == (uniforms < first).float().tolist()
        counts += log_weights.exp()
    torch.testing.assert_close((counts[:, 0] / 300).double(), first.double(), rtol=0, atol=0.1)


def test_gradient_is_reinforces() -> None:
    """``reward * grad log pi(chosen)`` for standardised gains of the student, by the definition."""
    before, after, sample = build_student(seed=1), trained_student("transformer"), batch()
    selector = TeacherSelector(EQUAL, pad=1, seed=1)
    chosen = selector.choose(sample, AGREEMENT, before, update_num=3, chunk=0).argmax(dim=-1)
    selector.learn(after)

    known = []
    for model in (before, after):
        with torch.no_grad():
            lprobs = model.eval()(**sample["net_input"])[0].double().log_softmax(-1)
        taken = lprobs.gather(-1, sample["target"].unsqueeze(-1)).squeeze(-1)
        counted = sample["target"].ne(1)
        known.append(torch.stack([taken[row][counted[row]].mean() for row in range(5)]))
    gain = known[1] - known[0]
    better = (gain - gain.mean()) / gain.std(unbiased=False)
    bias = EQUAL.double().clone().requires_grad_(True)
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    log_pi = (bias + weight * AGREEMENT).log_softmax(-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    (better * log_pi).mean().backward()
    torch.testing.assert_close(selector.bias, EQUAL.double() + RATE * bias.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(selector.weight, 1.0 + RATE * weight.grad, rtol=1e-4, atol=1e-6)


def test_it_learns_which_teacher_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both agree equally with the references, but the student only gains from the second."""
    selector, sample, model = TeacherSelector(EQUAL, pad=1, seed=1), batch(), build_student()
    level = torch.zeros(5)
    monkeypatch.setattr(TeacherSelector, "_reference_lprobs", lambda *_: level.clone())
    for update_num in range(200):
        chosen = selector.choose(sample, torch.zeros(5, 2), model, update_num=update_num, chunk=0).argmax(
            dim=-1
        )
        level += chosen.float()
        selector.learn(model)
    assert float((selector.bias).softmax(-1)[1]) > 0.8


def test_state_is_restored_and_nothing_is_learnt_twice() -> None:
    """A checkpoint keeps the policy; each choice counts once."""
    before, after, sample = build_student(seed=1), trained_student("transformer"), batch()
    selector = TeacherSelector(EQUAL, pad=1, seed=1)
    selector.choose(sample, AGREEMENT, before, update_num=3, chunk=4)
    selector.learn(after)
    learnt = selector.state()
    selector.learn(after)
    assert selector.state() == learnt != [*EQUAL.tolist(), 1.0]
    other = TeacherSelector(EQUAL, pad=1, seed=1)
    other.restore(learnt)
    assert other.state() == learnt
    three = TeacherSelector(torch.zeros(3), pad=1, seed=1)
    three.restore(learnt)
    assert three.state() == [0.0, 0.0, 0.0, 1.0], "the policy has another number of teachers"


def test_a_batch_that_is_tried_again_counts_once() -> None:
    """fairseq tries an update again after an overflow with --amp."""
    before, after, sample = build_student(seed=1), trained_student("transformer"), batch()
    states = []
    for tries in (1, 2):
        selector = TeacherSelector(EQUAL, pad=1, seed=1)
        for _ in range(tries):
            selector.choose(sample, AGREEMENT, before, update_num=3, chunk=0)
        selector.learn(after)
        states.append(selector.state())
    other = TeacherSelector(EQUAL, pad=1, seed=1)
    other.choose(sample, AGREEMENT, before, update_num=3, chunk=0)
    other.choose(
        make_batch(reversed_pairs(7, seed=5)),
        torch.cat([AGREEMENT, AGREEMENT[:2]]),
        before,
        update_num=3,
        chunk=0,
    )
    other.learn(after)
    assert states[0] == states[1] != other.state()


def test_gains_are_not_those_of_autocast() -> None:
    """Inside and outside of autocast the measure is the same; here no update was made in between."""
    model, sample = trained_student("transformer"), batch()
    selector = TeacherSelector(EQUAL, pad=1, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        selector.choose(sample, AGREEMENT, model, update_num=3, chunk=0)
    selector.learn(model)
    assert selector.state() == [*EQUAL.double().tolist(), 1.0]


def test_the_policy_has_learnt_before_a_checkpoint_is_saved() -> None:
    """A checkpoint does not hold choices that wait for their reward. To save it again changes nothing."""
    task, selector = tiny_task(), TeacherSelector(EQUAL, pad=1, seed=1)
    task.student = build_student(seed=1)
    teacher = Teacher([build_student(seed=3), build_student(seed=4)])
    give_teacher(task, teacher)
    task.select_teachers = lambda *_: SentenceWeights(teacher, pad=1, selector=selector)
    distiller = task.distiller_of(tiny_criterion("imitkd_full", task))
    selector.choose(batch(), AGREEMENT, build_student(seed=2), update_num=3, chunk=0)
    distiller.prepare_checkpoint(task.student)
    learnt = selector.state()
    assert learnt != [*EQUAL.tolist(), 1.0]
    assert task.get_checkpoint_dict() == {"TranslationWithTeacherTask": distiller.state.saved()}
    distiller.prepare_checkpoint(task.student)
    assert selector.state() == learnt
