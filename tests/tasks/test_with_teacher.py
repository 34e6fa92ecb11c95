"""A task that is neither translation nor classification gets a teacher by the mixin and the adapter."""

from argparse import Namespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.data import Dictionary
from fairseq.models import BaseFairseqModel
from fairseq.tasks import FairseqTask
from omegaconf import OmegaConf
from torch import Tensor, nn

from fairseq_imitkd.method.method import Method
from fairseq_imitkd.methods import METHODS
from fairseq_imitkd.mixing import BatchLayout
from fairseq_imitkd.models.logits import TokenLogits, WholeLogits
from fairseq_imitkd.rollout import Ensemble, SpecialSymbols
from fairseq_imitkd.tasks.with_teacher import WithTeacher, _warn_of_size
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.training import distiller
from tests.helpers.fairseq_models import letters

LETTERS = letters()
PAD, FIRST = LETTERS.pad(), LETTERS.nspecial


class LetterModel(BaseFairseqModel):
    """One layer: the logits of a letter's substitute depend on that letter alone."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.logits = nn.Embedding(len(LETTERS), len(LETTERS))

    def forward(self, src_tokens: Tensor) -> Tensor:
        return self.logits(src_tokens)


class LetterTeacher(Teacher):
    """A frozen letter model. It has no encoder and writes nothing."""

    max_positions = (100, 100)
    writer = Ensemble([], torch.empty(0))

    def encode(self, sample: dict[str, Any], *, cacheable: bool = True) -> list[Any]:
        return []

    @torch.no_grad()
    def score(self, sample: dict[str, Any], encoded: Any = None, **_: Any) -> TokenLogits:
        return WholeLogits(self.models[0](**sample["net_input"]).flatten(0, 1))


class CipherTask(FairseqTask):
    """A minimal fairseq task: substitute each letter by another."""

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> BaseFairseqModel:
        return LetterModel(seed=1)

    @property
    def target_dictionary(self) -> Dictionary:
        return LETTERS


class CipherWithTeacherTask(WithTeacher, CipherTask):
    """The task with a teacher."""

    decodes = False
    logs_accuracy = True
    uncounted = PAD
    opened = 0

    @property
    def layout(self) -> BatchLayout:
        return BatchLayout(PAD, SpecialSymbols.from_dictionary(LETTERS), left_pad_source=False)

    def run_student(self, model: nn.Module, sample: dict[str, Any]) -> Tensor:
        return model(**sample["net_input"]).flatten(0, 1)

    def check_method(self, method: Method) -> None:
        self.checked = method.name

    def check_training(self, method: Method) -> None:
        assert not self.opened, "flags are checked before the teacher is loaded"

    def open_teacher(self, method: Method) -> Teacher:
        self.opened += 1
        return LetterTeacher([LetterModel(seed=2)])


class Optimizer:
    """The part of fairseq's optimizer that a training step calls."""

    def backward(self, loss: Tensor) -> None:
        loss.backward()


@pytest.fixture
def task() -> CipherWithTeacherTask:
    return CipherWithTeacherTask(Namespace(train_subset="train"))


@pytest.fixture
def sample() -> dict[str, Any]:
    """Three words; the next letter substitutes each letter."""
    words = [[0, 1, 2, 3], [4, 5, 6], [7, 8]]
    source = torch.tensor([[FIRST + letter for letter in word] + [PAD] * (4 - len(word)) for word in words])
    return {
        "id": torch.arange(3),
        "net_input": {"src_tokens": source},
        "target": torch.where(source.eq(PAD), PAD, source + 1),
        "nsentences": 3,
        "ntokens": 9,
    }


def word_kd(task: CipherWithTeacherTask) -> Any:
    """Build the criterion as fairseq does."""
    cfg = METHODS["word_kd"](
        seed=1,
        max_update=10,
        max_epoch=0,
        ddp_backend="legacy_ddp",
        find_unused_parameters=False,
        disable_validation=False,
        sentence_avg=False,
    )
    cfg._name = "word_kd"
    return task.build_criterion(OmegaConf.create(vars(cfg)))


@pytest.mark.parametrize("part_cost", [None, 0])
def test_a_task_that_implements_the_adapter_distils(
    task: CipherWithTeacherTask, sample: Any, monkeypatch: pytest.MonkeyPatch, part_cost: int | None
) -> None:
    """One step of word_kd gives half the references' NLL and half the divergence, and its gradient.

    A batch of a task that does not decode stays whole, even where its parts would cost nothing.
    """
    if part_cost is not None:
        monkeypatch.setattr(distiller, "PART_COST", {"cpu": part_cost})
    student = task.build_model(None)
    criterion = word_kd(task)
    assert (task.checked, task.opened) == ("word_kd", 1)
    loss, count, logs = task.train_step(sample, student, criterion, Optimizer(), update_num=0)

    weights = student.logits.weight.detach().clone().requires_grad_()
    counted = sample["target"].ne(PAD)
    source, target = sample["net_input"]["src_tokens"][counted], sample["target"][counted]
    lprobs = weights[source].log_softmax(dim=-1)
    teacher = LetterModel(seed=2).logits.weight[source].log_softmax(dim=-1).detach()
    divergence = (teacher.exp() * (teacher - lprobs)).sum()
    expected = 0.5 * F.nll_loss(lprobs, target, reduction="sum") + 0.5 * divergence
    expected.backward()

    assert bool(loss.isfinite())
    torch.testing.assert_close(loss, expected, check_dtype=False)
    torch.testing.assert_close(student.logits.weight.grad, weights.grad)
    assert count == logs["ntokens"] == 9
    assert int(logs["correct"]) == int((lprobs.argmax(dim=-1) == target).sum())
    assert int(logs["rollouts"]) == 0


def test_the_teacher_of_such_a_task_stays_frozen(task: CipherWithTeacherTask, sample: Any) -> None:
    student, criterion = task.build_model(None), word_kd(task)
    task.train_step(sample, student, criterion, Optimizer(), update_num=0)
    [teacher] = task.distiller_of(criterion).teacher.models
    assert task.opened == 1
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert teacher.logits.weight.equal(LetterModel(seed=2).logits.weight)


def test_a_model_of_a_checkpoint_is_not_the_student(task: CipherWithTeacherTask) -> None:
    """A task that is fairseq's own builds its teacher too."""
    student = task.build_model(None)
    task.build_model(None, from_checkpoint=True)
    assert task.student is student


def test_another_criterion_trains_such_a_task_without_a_teacher(
    task: CipherWithTeacherTask, sample: Any
) -> None:
    student = task.build_model(None)
    criterion = CrossEntropyCriterion(task, sentence_avg=False)
    loss, _, logs = task.train_step(sample, student, criterion, Optimizer(), update_num=0)
    assert float(loss) > 0.0
    assert "rollouts" not in logs
    assert task.opened == 0


def test_a_student_that_is_larger_than_its_teacher_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """All models of an ensemble count, and weights in int8, which are buffers."""
    small, large = torch.nn.Linear(9, 9), torch.nn.Linear(10, 10)
    coded = torch.nn.Module()
    coded.register_buffer("weight", torch.zeros(11, 10, dtype=torch.int8))
    for teacher in ([large], [small, small], [coded]):
        _warn_of_size(large, teacher)
    assert not caplog.messages
    _warn_of_size(large, [small])
    assert caplog.messages == [
        "the student has 110 parameters and its teacher 90: a smaller student (--arch and its dimensions) "
        "would be faster"
    ]
