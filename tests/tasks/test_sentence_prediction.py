"""Classification with a teacher: losses by their definitions, the teacher's scores, logs and refusals."""

import math
import shutil
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import tasks
from fairseq.data import Dictionary
from fairseq.dataclass.configs import FairseqConfig
from fairseq.logging import metrics
from fairseq.models import ARCH_CONFIG_REGISTRY
from omegaconf import OmegaConf
from torch import Tensor, nn

from fairseq_imitkd.criterion import DISTILLATION, Distillation
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.methods import METHODS
from fairseq_imitkd.models.logits import WholeLogits
from fairseq_imitkd.tasks.sentence_prediction import (
    SentencePredictionWithTeacherConfig,
    SentencePredictionWithTeacherTask,
)
from fairseq_imitkd.teacher.classifier import ClassifyingTeacher
from tests.helpers import in_process
from tests.helpers.classifiers import CLASSES, HEAD, sentences
from tests.helpers.fairseq_models import (
    LETTERS,
    AtUpdate,
    build_student,
    checkpoint_state,
    give_teacher,
    letters,
    tiny_criterion,
    training_config,
)

UPDATES = 100
CLASSIFYING = ["word_kd", "annealing_kd", "continuation_kd", "atkd"]
TINY_ROBERTA = {
    "encoder_layers": 1, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 16, "encoder_attention_heads": 2,
}  # fmt: skip
ROBERTA_FLAGS = (
    "--arch", "roberta",
    *(word for name, value in TINY_ROBERTA.items() for word in ("--" + name.replace("_", "-"), value)),
)  # fmt: skip


def read_as_fairseq_does(symbols: Sequence[str]) -> Dictionary:
    """Return a dictionary with the mask that ``sentence_prediction`` adds."""
    dictionary = letters(symbols)
    dictionary.add_symbol("<mask>")
    return dictionary


def classifying_task(**settings: Any) -> SentencePredictionWithTeacherTask:
    """Return a task that sorts letters into three classes, without data or a teacher."""
    cfg = SentencePredictionWithTeacherConfig(
        data="", num_classes=CLASSES, init_token=0, max_positions=16, **settings
    )
    return SentencePredictionWithTeacherTask(cfg, read_as_fairseq_does(LETTERS), read_as_fairseq_does("012"))


def build_classifier(seed: int = 1, task: Any = None, **changes: Any) -> nn.Module:
    """Return an untrained RoBERTa with a classification head and dropout. Its weights are large enough for
    distinct classes.
    """
    args = Namespace(**{"arch": "roberta", **TINY_ROBERTA, "dropout": 0.1, "max_positions": 16, **changes})
    ARCH_CONFIG_REGISTRY["roberta"](args)
    torch.manual_seed(seed)
    model = (task or classifying_task()).build_model(args)
    for parameter in model.classification_heads.parameters():
        parameter.data.normal_(std=0.5)
    return model


class FixedStudent(nn.Module):
    """A student with fixed logits and the interface of a RoBERTa."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.scores = nn.Parameter(logits)

    def forward(
        self, src_tokens: Tensor, src_lengths: Tensor, features_only: bool, classification_head_name: str
    ) -> tuple[Tensor, dict[str, Any]]:
        assert features_only
        assert classification_head_name == HEAD
        return self.scores, {}


def with_teacher(sample: dict[str, Any], teacher_logits: Tensor | None, update: int) -> dict[str, Any]:
    """Return the batch that the criterion gets from the task."""
    none = torch.zeros(sample["target"].size(0), dtype=torch.bool)
    scores = None if teacher_logits is None else WholeLogits(teacher_logits.clone())
    return {**sample, DISTILLATION: Distillation(scores, none, none, AtUpdate(update))}


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The Kullback-Leibler divergence by its definition, over the last dimension."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def defined_loss(name: str, update: int, student: Tensor, teacher: Tensor, gold: list[int]) -> Tensor:
    """Return a method's loss of a batch, computed sentence by sentence from the paper's equations."""
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    unsure = [-float(log_p[row, label]) for row, label in enumerate(gold)]
    median = sorted(unsure)[(len(gold) - 1) // 2]
    hard = sum(value >= median for value in unsure)
    total = student.new_zeros(())
    for row, label in enumerate(gold):
        nll, q, p = -log_q[row, label], log_q[row], log_p[row]
        if name == "word_kd":
            total = total + 0.5 * nll + 0.5 * kl(p, q)
        elif name == "annealing_kd":
            temperature = max(1, 10 - math.floor(update / (2 / 3 * UPDATES) * 10))
            scaled = (1 - (temperature - 1) / 10) * teacher[row]
            total = total + (nll if update >= 2 / 3 * UPDATES else ((student[row] - scaled) ** 2).mean())
        elif name == "continuation_kd":
            temperature, psi = max(1, 10 - math.floor(update / UPDATES * 10)), update / UPDATES
            phi = 1 - (temperature - 1) / 10
            distance = ((student[row] - phi * teacher[row]) ** 2).mean()
            total = total + psi * nll + (1 - psi) * (distance - 0.1 * phi).clamp(min=0.0)
        else:
            others = [symbol for symbol in range(student.size(-1)) if symbol != label]
            of_others = kl(teacher[row, others].log_softmax(-1), student[row, others].log_softmax(-1))
            if unsure[row] >= median:
                sides = [torch.stack([x[label], x[others].logsumexp(-1)]) for x in (p, q)]
                total = total + 0.8 * len(gold) / hard * (of_others + kl(*sides))
            else:
                total = total + 0.2 * len(gold) / (len(gold) - hard) * of_others
    return total


@pytest.mark.parametrize("update", [0, 33, 66, 67, 99])
@pytest.mark.parametrize("name", CLASSIFYING)
def test_loss_and_gradient_follow_the_definition(name: str, update: int) -> None:
    """Loss, count and the gradient of each logit are compared in float64."""
    generator = torch.Generator().manual_seed(update)
    own, theirs = 2.0 * torch.randn(2, 9, CLASSES, generator=generator, dtype=torch.float64)
    sample = sentences(9)
    gold = sample["target"].flatten().tolist()
    assert set(gold) == {0, 1, 2}
    student = FixedStudent(own)
    criterion = tiny_criterion(name, classifying_task(), max_update=UPDATES)
    asked = criterion.method.at(update).needs_teacher
    loss, count, logs = criterion(student, with_teacher(sample, theirs if asked else None, update))
    loss.backward()
    again = own.clone().requires_grad_()
    expected = defined_loss(name, update, again, theirs, gold)
    expected.backward()
    assert count == 9
    assert float(expected.detach()) > 0.1
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(student.scores.grad, again.grad, rtol=1e-9, atol=1e-9)
    assert int(logs["correct"]) == int((own.argmax(-1) == sample["target"].flatten()).sum())
    assert int(logs["teacher_agrees"]) == (int((own.argmax(-1) == theirs.argmax(-1)).sum()) if asked else 0)


@pytest.mark.parametrize("name", CLASSIFYING)
def test_class_number_one_counts_like_any_other(name: str) -> None:
    """1 is the number of padding in fairseq's text. Swapping classes 0 and 1 everywhere changes nothing."""
    own, theirs = torch.randn(2, 6, CLASSES, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    criterion = tiny_criterion(name, classifying_task(), max_update=UPDATES)
    swap, found = [1, 0, 2], []
    for order in ([0, 1, 2], swap):
        sample = sentences(6, classes=[order[label] for label in (1, 1, 1, 1, 0, 2)])
        loss, count, logs = criterion(FixedStudent(own[:, order]), with_teacher(sample, theirs[:, order], 50))
        found.append((float(loss), count, logs["ntokens"], int(logs["correct"])))
    assert found[0] == pytest.approx(found[1])
    assert found[0][1:3] == (6, 6)
    only_ones = with_teacher(sentences(4, classes=[1] * 4), theirs[:4], 50)
    loss, count, _ = criterion(FixedStudent(own[:4]), only_ones)
    assert count == 4
    assert float(loss) > 0.0


def test_teachers_scores_are_its_logits() -> None:
    """The teacher scores the whole batch in evaluation mode, without gradients, in the student's
    precision.
    """
    model, sample = build_classifier(seed=5).train(), sentences()
    teacher = ClassifyingTeacher([model], HEAD)
    teacher.place(torch.device("cpu"), torch.float64)
    scores = teacher.score(sample).logits(slice(None))
    expected = (
        build_classifier(seed=5).double().eval()(**sample["net_input"], classification_head_name=HEAD)[0]
    )
    assert scores.shape == (7, CLASSES)
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores, expected.detach())
    assert not scores.requires_grad
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_ensemble_averages_probabilities_by_weight() -> None:
    """The weights are 1/4 and 3/4. Without weights they are equal."""
    models, sample = [build_classifier(seed).eval() for seed in (5, 6)], sentences()
    with torch.no_grad():
        first, second = (
            model(**sample["net_input"], classification_head_name=HEAD)[0].softmax(-1) for model in models
        )
    assert float((first - second).abs().max()) > 0.05
    for weights, expected in (([0.25, 0.75], 0.25 * first + 0.75 * second), (None, (first + second) / 2)):
        scores = ClassifyingTeacher(models, HEAD, weights=weights).score(sample)
        torch.testing.assert_close(scores.logits(slice(None)).exp(), expected)


class Optimizer:
    """The part of fairseq's optimizer that a training step calls."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients."""
        loss.backward()


def test_training_step_learns_from_the_teacher() -> None:
    """Loss and gradient are those for the teacher's scores of this batch. The batch itself does not
    change.
    """
    task, model, sample = (
        classifying_task(),
        build_classifier(seed=1, dropout=0.0, attention_dropout=0.0),
        sentences(),
    )
    give_teacher(task, ClassifyingTeacher([build_classifier(seed=9)], HEAD))
    criterion, keys = tiny_criterion("word_kd", task), set(sample)
    loss, count, _ = task.train_step(sample, model, criterion, Optimizer(), 5)
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    model.zero_grad()
    logits = [
        m(**sample["net_input"], classification_head_name=HEAD)[0]
        for m in (model, task.given_teacher.models[0])
    ]
    expected = defined_loss("word_kd", 5, *logits, sample["target"].flatten().tolist())
    expected.backward()
    assert count == 7
    torch.testing.assert_close(loss.detach(), expected.detach())
    assert len(gradients) > 10
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(gradients[name], parameter.grad)
    assert set(sample) == keys


def test_stage_two_of_annealing_does_not_ask_the_teacher() -> None:
    """In the last third the labels alone are trained on, and the log counts no teacher token."""
    task, model, sample = classifying_task(), build_classifier(), sentences()
    asked = []

    class Teacher(ClassifyingTeacher):
        def score(self, *args: Any, **settings: Any) -> Any:
            asked.append(True)
            return super().score(*args, **settings)

    give_teacher(task, Teacher([build_classifier(seed=9)], HEAD))
    criterion = tiny_criterion("annealing_kd", task, max_update=UPDATES)
    found = {}
    for update in (0, 66, 67, 99):
        asked.clear()
        logs = task.train_step(sample, model, criterion, Optimizer(), update)[2]
        found[update] = (len(asked), int(logs["teacher_tokens"]))
    assert found == {0: (1, 7), 66: (1, 7), 67: (0, 0), 99: (0, 0)}


@pytest.mark.parametrize("name", CLASSIFYING)
def test_same_keys_in_every_batch(name: str) -> None:
    """Processes add logs up by position: in training, in stage II, for the empty batches of uneven shards,
    and in validation.
    """
    task, model, sample = classifying_task(), build_classifier(), sentences()
    give_teacher(task, ClassifyingTeacher([build_classifier(seed=9)], HEAD))
    criterion = tiny_criterion(name, task, max_update=UPDATES)
    training = [task.train_step(sample, model, criterion, Optimizer(), update)[2] for update in (0, 99)]
    empty = task.train_step(sample, model, criterion, Optimizer(), 0, ignore_grad=True)[2]
    validation = task.valid_step(sample, model, criterion)[2]
    kinds = [
        [(key, isinstance(value, Tensor)) for key, value in logs.items()]
        for logs in (*training, empty, validation)
    ]
    assert kinds[0] == kinds[1] == kinds[2]
    assert kinds[3] == [
        kind for kind in kinds[0] if kind[0] in validation
    ]  # without the work of a training step


def test_validation_is_the_labels_likelihood_and_accuracy() -> None:
    """The teacher is not asked. Accuracy is the percentage of sentences whose most probable class
    is right.
    """
    task, model = classifying_task(), build_classifier().eval()
    batches = [sentences(7, seed=1), sentences(4, seed=2)]
    criterion = tiny_criterion("annealing_kd", task)
    outputs, nll, right = [], 0.0, 0
    for sample in batches:
        loss, _, logs = task.valid_step(sample, model, criterion)
        outputs.append(logs)
        with torch.no_grad():
            lprobs = model(**sample["net_input"], classification_head_name=HEAD)[0].double().log_softmax(-1)
        nll -= float(lprobs.gather(1, sample["target"]).sum())
        right += int((lprobs.argmax(-1) == sample["target"].flatten()).sum())
        assert float(loss) == pytest.approx(-float(lprobs.gather(1, sample["target"]).sum()), rel=1e-5)
    with metrics.aggregate() as meters:
        criterion.reduce_metrics(outputs)
    assert meters.get_smoothed_value("accuracy") == pytest.approx(100 * right / 11, abs=0.005)
    assert meters.get_smoothed_value("loss") == pytest.approx(nll / 11 / math.log(2), abs=0.001)
    assert 0 < right < 11


# Refusals. There are dictionaries but no sentences, so reading data would fail with another error.


def write_dictionaries(folder: Path, symbols: Sequence[str] = LETTERS, labels: Sequence[str] = "01") -> Path:
    """Write dictionaries as ``fairseq-preprocess`` does, padded to a multiple of eight."""
    for part, listed in (("input0", symbols), ("label", labels)):
        (folder / part).mkdir(parents=True)
        dictionary = letters(listed)
        dictionary.pad_to_multiple_(8)
        dictionary.save(str(folder / part / "dict.txt"))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dictionaries(tmp_path_factory.mktemp("classes") / "data")


def config(data: Path, *flags: object) -> Any:
    """Return the configuration that ``fairseq-train`` makes of a command line with two classes."""
    classes = ("--num-classes", 2, "--init-token", 0, "--max-positions", 16)
    return in_process.config(data, data / "saved", *ROBERTA_FLAGS, *classes, "--max-update", UPDATES, *flags)


STOCK = ("--task", "sentence_prediction", "--criterion", "sentence_prediction")


def write_teacher(path: Path, data: Path, *flags: object, **changes: Any) -> Path:
    """Write the checkpoint of an untrained teacher, as the stock task saves it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cfg = config(data, *STOCK, *flags)
    torch.save(checkpoint_state(tasks.setup_task(cfg.task).build_model(cfg.model), cfg, **changes), path)
    return path


@pytest.fixture(scope="module")
def teacher(data) -> Path:
    return write_teacher(data / "teacher.pt", data)


def build_task_and_criterion(
    data: Path, method: str = "word_kd", criterion: dict[str, Any] | None = None, **settings: Any
) -> Any:
    """Build the task, the criterion and the teacher, as training does before it reads data."""
    settings = {"num_classes": 2, "init_token": 0, "max_positions": 16, **settings}
    task = OmegaConf.structured(SentencePredictionWithTeacherConfig(data=str(data), seed=1, **settings))
    task._name = "sentence_prediction_with_teacher"
    whole = OmegaConf.structured(FairseqConfig())  # both read the length of the training from it
    whole.task = task
    whole.optimization.max_update, whole.dataset.max_tokens = UPDATES, 100
    whole.optimizer = {"_name": "adam"}
    whole.criterion = OmegaConf.structured(METHODS[method](**(criterion or {})))
    whole.criterion._name = method
    return tasks.setup_task(whole.task).build_criterion(whole.criterion)


def refusal(data: Path, *args: Any, **settings: Any) -> str:
    """Return the message that ends it."""
    with pytest.raises(UsageError) as caught:
        build_task_and_criterion(
            data,
            *args,
            **{name: str(value) if isinstance(value, Path) else value for name, value in settings.items()},
        )
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.code == f"error: {message}"
    return message


@pytest.mark.parametrize(
    "name", ["imitkd", "imitkd_full", "gkd", "f_distill", "f_distill_rkl", "distillm", "speculative_kd"]
)
def test_methods_with_rollouts_are_refused(name: str, data: Path, teacher: Path) -> None:
    """The task writes no sentences."""
    message = refusal(data, name, teacher_path=teacher)
    for part in (
        f"--criterion {name}",
        "sentence_prediction_with_teacher",
        "annealing_kd",
        "--student-share 0",
    ):
        assert part in message


def test_teacher_samples_are_refused(data: Path, teacher: Path) -> None:
    """The teacher writes no sentences either."""
    message = refusal(data, "f_distill_kl", {"teacher_samples": True}, teacher_path=teacher)
    assert message.startswith("--criterion f_distill_kl writes sentences, but --task sentence_prediction_")
    assert message.endswith("or a method without --teacher-samples")


def test_the_remedy_for_methods_with_rollouts(data: Path, teacher: Path) -> None:
    """``--student-share 0``, which the message names, is accepted. Methods without rollouts are
    accepted too.
    """
    assert not build_task_and_criterion(
        data, "imitkd", {"student_share": "0"}, teacher_path=str(teacher)
    ).method.writes
    for name in CLASSIFYING:
        assert not build_task_and_criterion(data, name, teacher_path=str(teacher)).method.writes


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"num_classes": 1}, ("--num-classes must be 2 or more", "is 1")),
        ({"num_classes": 3}, ("--num-classes 3", "label/dict.txt", "give --num-classes 2")),
        ({"num_classes": 4}, ("--num-classes 4", "give --num-classes 2")),
        ({"teacher_weights": "1:2"}, ("--teacher-weights", "1 positive numbers", "1:2")),
        (
            {"classification_head_name": "topic"},
            ("no classification head 'topic'", "--classification-head-name", HEAD),
        ),
        ({"init_token": 2}, ("--init-token", "trained with", "0", "2")),
        (
            {"best_checkpoint_metric": "accuracy"},
            ("worst checkpoint", "add --maximize-best-checkpoint-metric"),
        ),
        (
            {"max_positions": 17},
            ("--max-positions 17", "use --max-positions 16", "--shorten-method truncate"),
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_flags_without_effect_are_refused(
    settings: dict[str, Any], parts: tuple, data: Path, teacher: Path
) -> None:
    """Each message has the flag, its value and the remedy."""
    message = refusal(data, teacher_path=teacher, **settings)
    for part in parts:
        assert part in message


@pytest.mark.parametrize("topk", [2, 5])
def test_teacher_topk_must_be_below_the_number_of_classes(topk: int, data: Path, teacher: Path) -> None:
    """Keeping all classes would have no effect. One class fewer is accepted."""
    message = refusal(data, "word_kd", {"teacher_topk": topk}, teacher_path=teacher)
    assert message == (
        f"--teacher-topk {topk} changes nothing, because there are 2 classes (--num-classes): lower it or "
        "leave it out"
    )
    build_task_and_criterion(data, "word_kd", {"teacher_topk": 1}, teacher_path=str(teacher))


def test_fewer_classes_than_labels_are_refused(tmp_path: Path) -> None:
    """A third label would have no logit."""
    three = write_dictionaries(tmp_path / "three", labels="012")
    assert "give --num-classes 3" in refusal(three, teacher_path="never read")


def test_teachers_that_do_not_fit_are_refused(data: Path, teacher: Path, tmp_path: Path) -> None:
    """They have other classes, no head (fairseq would make a random one), or are a translation model, not a
    model, or not a file.
    """

    def message(path: Path) -> str:
        text = refusal(data, teacher_path=path)
        assert f"--teacher-path '{path}'" in text
        return text

    assert "is not a file" in message(tmp_path / "missing.pt")
    assert "--teacher-path is not given" in refusal(data)
    assert "missing.pt' is not a file" in refusal(data, teacher_path=f"{teacher}:{tmp_path / 'missing.pt'}")

    three = write_dictionaries(tmp_path / "three", labels="012")
    other = write_teacher(tmp_path / "three.pt", three, "--num-classes", 3)
    assert "has 3 classes, but the student 2 (--num-classes)" in message(other)

    state = torch.load(teacher, weights_only=True)
    headless = tmp_path / "headless.pt"
    weights = {
        name: value for name, value in state["model"].items() if not name.startswith("classification_heads.")
    }
    torch.save({**state, "model": weights}, headless)
    assert (
        f"no classification head '{HEAD}'; use a teacher that was trained with --task sentence_prediction"
        in message(headless)
    )

    translator = tmp_path / "translator.pt"
    cfg = training_config(data, "--task", "translation", "--criterion", "cross_entropy")
    torch.save(checkpoint_state(build_student(), cfg), translator)
    assert "trained with --task sentence_prediction" in message(translator)

    bare = tmp_path / "bare.pt"
    torch.save(state["model"], bare)
    assert "is not a fairseq checkpoint: it lacks 'model'" in message(bare)

    half = tmp_path / "half.pt"
    torch.save(
        {
            **state,
            "model": {name: value for name, value in state["model"].items() if "layers.0.fc1" not in name},
        },
        half,
    )
    assert "can't be used" in message(half)
    assert "fc1" in message(half)


def test_other_dictionaries_are_refused(data: Path, teacher: Path, tmp_path: Path) -> None:
    """Two symbols are swapped, in the dictionary of the text or of the labels."""
    swapped = write_dictionaries(tmp_path / "swapped", symbols="ba" + LETTERS[2:])
    message = refusal(swapped, teacher_path=teacher)
    assert (
        f"{data / 'input0' / 'dict.txt'} differs from the student's at index 4: teacher 'a', student 'b'"
        in message
    )
    turned = write_dictionaries(tmp_path / "turned", labels="10")
    message = refusal(turned, teacher_path=teacher)
    assert (
        f"{data / 'label' / 'dict.txt'} differs from the student's at index 4: teacher '0', student '1'"
        in message
    )
    given = refusal(data, teacher_path=teacher, teacher_data=turned)
    assert "teacher '1', student '0'" in given
    beside = shutil.copy(teacher, turned / "teacher.pt")
    message = refusal(turned, teacher_path=beside)
    assert (
        f"lies beside {turned / 'label' / 'dict.txt'}, but names {data / 'label' / 'dict.txt'}, and they "
        "differ" in message
    )
    (turned / "label" / "dict.txt").unlink()
    missing = refusal(data, teacher_path=teacher, teacher_data=turned)
    assert "--teacher-data must name" in missing
    assert str(turned) in missing
