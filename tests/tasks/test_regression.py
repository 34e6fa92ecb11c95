"""Regression with a teacher: the loss by its definition, pairs without labels, correlations, refusals."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.logging import metrics
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn

from fairseq_imitkd.criterion import DISTILLATION, Distillation
from fairseq_imitkd.data.corpus import dataset_builder
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.models.logits import WholeLogits
from fairseq_imitkd.tasks.sentence_prediction import (
    SentencePredictionWithTeacherConfig,
    SentencePredictionWithTeacherTask,
)
from fairseq_imitkd.training import regression
from fairseq_imitkd.training.regression import Correlations
from tests.helpers import in_process
from tests.helpers.classifiers import (
    STOCK,
    WIDTHS,
    dictionary_with_mask,
    sentences,
    write_classifier,
    write_dictionaries,
)
from tests.helpers.fairseq_models import LETTERS, AtUpdate, letters, tiny_criterion

UPDATES = 100
NAN = float("nan")
REGRESSION = ("--regression-target", "--num-classes", 1)
METHODS = {
    "word_kd": {"divergence": "logit-mse"},
    "annealing_kd": {},
    "continuation_kd": {"logit_margin": 0.1},
}


def regression_task(**settings: Any) -> SentencePredictionWithTeacherTask:
    """Return a task of letters with one score, without data or a teacher."""
    cfg = SentencePredictionWithTeacherConfig(
        data="", num_classes=1, regression_target=True, init_token=0, max_positions=16, **settings
    )
    dictionary = dictionary_with_mask(LETTERS)
    return SentencePredictionWithTeacherTask(cfg, dictionary, dictionary)


def batch(labels: Tensor, teacher: Tensor | None = None, update: int = 0) -> dict[str, Any]:
    """Return sentences with labels ``(B,)`` in float64, and the teacher's scores ``(B,)`` in training."""
    sample = {**sentences(len(labels)), "target": labels.double().unsqueeze(-1)}
    if update < 0:
        return sample
    none = torch.zeros(len(labels), dtype=torch.bool)
    scores = None if teacher is None else WholeLogits(teacher.unsqueeze(-1).clone())
    return {**sample, DISTILLATION: Distillation(scores, none, none, AtUpdate(update))}


class FixedScores(nn.Module):
    """A student with fixed scores and the interface of a RoBERTa."""

    def __init__(self, scores: Tensor):
        super().__init__()
        self.scores = nn.Parameter(scores.unsqueeze(-1))

    def forward(self, **_: Any) -> tuple[Tensor, None]:
        return self.scores, None


def defined_loss(name: str, update: int, student: Tensor, teacher: Tensor, labels: list[float]) -> Tensor:
    """Return a method's loss of a batch, pair by pair, from the papers' equations with squared errors."""
    total = student.new_zeros(())
    for score, theirs, label in zip(student, teacher, labels, strict=True):
        error = student.new_zeros(()) if math.isnan(label) else (score - label) ** 2
        if name == "word_kd":
            gold, distance = 0.5, (score - theirs) ** 2
        elif name == "annealing_kd":
            temperature = max(1, 10 - math.floor(update / (2 / 3 * UPDATES) * 10))
            gold = 1.0 if update >= 2 / 3 * UPDATES else 0.0
            distance = (score - (1 - (temperature - 1) / 10) * theirs) ** 2
        else:
            temperature = max(1, 10 - math.floor(update / UPDATES * 10))
            phi, gold = 1 - (temperature - 1) / 10, update / UPDATES
            distance = ((score - phi * theirs) ** 2 - 0.1 * phi).clamp(min=0.0)
        if math.isnan(label):
            total = total + (distance if gold < 1.0 else 0.0)
        else:
            total = total + gold * error + (1.0 - gold) * distance
    return total


@pytest.mark.parametrize("update", [0, 40, 99])
@pytest.mark.parametrize("name", METHODS)
def test_loss_and_gradient_follow_the_definition(name: str, update: int) -> None:
    """In float64; two of the pairs have no label. In half precision the loss differs only by its rounding."""
    own, theirs = torch.randn(2, 6, generator=torch.Generator().manual_seed(update), dtype=torch.float64)
    labels = [0.5, NAN, -1.0, 2.0, NAN, 0.25]
    criterion = tiny_criterion(name, regression_task(), max_update=UPDATES, **METHODS[name])
    asked = criterion.method.at(update).needs_teacher
    student, sample = FixedScores(own), batch(torch.tensor(labels), theirs if asked else None, update)
    loss, count, logs = criterion(student, sample)
    loss.backward()
    again = own.clone().requires_grad_()
    expected = defined_loss(name, update, again, theirs, labels)
    expected.backward()
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(student.scores.grad.squeeze(-1), again.grad, rtol=1e-9, atol=1e-9)
    assert count == (6 if asked else 4), "a pair with neither label nor teacher does not count"
    assert int(logs["labelled"]) == 4
    gold = torch.tensor(labels).double()
    assert float(logs["squared_error"]) == pytest.approx(float((own - gold).square().nansum()))

    half = FixedScores(own.half())
    rounded, _, _ = criterion(half, batch(torch.tensor(labels), theirs.half() if asked else None, update))
    rounded.backward()
    assert rounded.dtype == torch.float32
    assert float(rounded) == pytest.approx(float(expected), rel=5e-3, abs=1e-3)
    assert bool(half.scores.grad.isfinite().all())


def test_validation_logs_the_error_and_both_correlations() -> None:
    """Over all batches; a pair without a label does not count, and a repeated batch changes nothing."""
    task = regression_task()
    criterion = tiny_criterion("word_kd", task, divergence="logit-mse")
    labels = torch.tensor([0.1, 0.9, NAN, 0.4, 0.3, 0.7, 0.2])
    scores = torch.tensor([0.3, 0.8, 9.0, 0.35, 0.1, 0.5, 0.3])
    with metrics.aggregate() as meters:
        for rows in (slice(0, 4), slice(4, 7), slice(4, 7)):
            sample = batch(labels[rows], update=-1)
            sample["id"] = torch.arange(7)[rows]
            student = FixedScores(scores[rows])
            logs = task.valid_step(sample, student, criterion.eval())[2]
            task.reduce_metrics([logs], criterion)
    found, known = meters.get_smoothed_values(), ~labels.isnan()
    for name, statistic in (("pearson", pearsonr), ("spearman", spearmanr)):
        assert found[name] == pytest.approx(statistic(scores[known], labels[known])[0], abs=1e-4)
    errors = (scores - labels).square()[torch.tensor([0, 1, 3, 4, 5, 6, 4, 5, 6])]
    assert found["loss"] == found["squared_error"] == pytest.approx(float(errors.mean()), abs=1e-6)
    assert not {"ppl", "nll_loss", "accuracy"} & set(found)


def test_scores_that_do_not_vary_have_no_correlation() -> None:
    correlations = Correlations()
    with metrics.aggregate() as meters:
        correlations.add(torch.arange(3), torch.ones(3), torch.tensor([1.0, 2.0, 3.0]))
        correlations.log()
    assert meters.get_smoothed_values() == {"pearson": 0.0, "spearman": 0.0}


def test_scores_of_all_processes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process has another sentence, and one that this process has, too, as a filler batch."""

    def gather(gathered: list[Any], own: Any) -> None:
        assert own == {0: (1.0, 1.0), 1: (2.0, 3.0)}
        gathered[:] = [own, {1: (2.0, 3.0), 2: (5.0, 2.0)}]

    monkeypatch.setattr(regression, "several_processes", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    correlations = Correlations()
    with metrics.aggregate() as meters:
        correlations.add(torch.arange(2), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]))
        correlations.log()
    expected = pearsonr([1.0, 2.0, 5.0], [1.0, 3.0, 2.0])[0]
    assert meters.get_smoothed_value("pearson") == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("word_kd", {}, "--divergence forward-kl compares classes, but --regression-target has none: add"),
        ("atkd", {}, "--divergence target-decoupled-kl compares classes"),
        ("imitkd", {"student_share": "0"}, "--divergence teacher-argmax compares classes"),
        ("gkd", {"divergence": "logit-mse"}, "--criterion gkd writes sentences, but --task sentence_pred"),
        ("word_kd", {"divergence": "logit-mse", "label_smoothing": 0.1}, "--label-smoothing 0.1 needs"),
        ("word_kd", {"divergence": "logit-mse", "token_selection": "batch"}, "--token-selection batch needs"),
    ],
)  # fmt: skip
def test_methods_that_need_classes_are_refused(name: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        tiny_criterion(name, regression_task(), **settings)
    assert str(refused.value).startswith(said)
    assert len(str(refused.value)) <= 200


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of letters. The label is the share of early letters; a third has none in training."""
    folder = tmp_path_factory.mktemp("scores")
    for part in ("label", "input0"):
        (folder / part).mkdir()
    letters(LETTERS).save(str(folder / "input0" / "dict.txt"))
    generator = torch.Generator().manual_seed(1)
    for split, count in (("train", 300), ("valid", 60)):
        rows = [torch.randint(4, 20, (6,), generator=generator).tolist() for _ in range(count)]
        with dataset_builder(folder / "input0" / split, 20) as builder:
            for row in rows:
                builder.add_item(torch.tensor([*row, 2]))
        labels = [sum(letter < 12 for letter in row) / 6 for row in rows]
        if split == "train":
            labels[::3] = [NAN] * len(labels[::3])
        (folder / "label" / f"{split}.label").write_text("".join(f"{label}\n" for label in labels))
    return folder


def flags(*more: object) -> tuple[object, ...]:
    """Return the flags of a small regressor."""
    widths = [f"--encoder-{name.replace('_', '-')}={value}" for name, value in WIDTHS.items()]
    return ("--arch", "roberta", *widths, *REGRESSION, "--init-token", 0, "--max-positions", 16, *more)


@pytest.fixture(scope="module")
def teacher(data: Path) -> Path:
    """A stock regressor, trained on the labelled third that validates."""
    subset = ("--train-subset", "valid", "--disable-validation", "--max-update", 70, "--lr", "1e-2")
    in_process.train(data, data / "teacher", *flags(*STOCK, *subset))
    return data / "teacher" / "checkpoint_last.pt"


def distil(data: Path, folder: Path, teacher: Path, *more: object) -> in_process.Training:
    """Train a student with half of the loss on labels."""
    method = ("--criterion", "word_kd", "--divergence", "logit-mse", "--teacher-path", teacher)
    task = ("--task", "sentence_prediction_with_teacher", "--max-update", 45, "--lr", "1e-2")
    return in_process.train(data, folder, *flags(*task, *method, *more))


def test_a_student_learns_the_scores(data: Path, teacher: Path, tmp_path: Path) -> None:
    """With pairs that have no label. A correlation can choose the checkpoint, which stock fairseq loads."""
    best = ("--best-checkpoint-metric", "spearman", "--maximize-best-checkpoint-metric")
    training = distil(data, tmp_path, teacher, *best, "--validate-interval-updates", 15)
    valid, steps = training.metrics["valid"][-1], training.metrics["train_inner"]
    assert valid["pearson"] > 0.8
    assert valid["spearman"] > 0.8
    assert valid["loss"] == valid["squared_error"] < 0.05
    assert sum(step["labelled"] for step in steps) / len(steps) == pytest.approx(2 / 3, abs=0.02)
    saved = torch.load(tmp_path / "checkpoint_best.pt", weights_only=True)["extra_state"]["best"]
    assert saved == max(each["spearman"] for each in training.metrics["valid"])
    assert in_process.load_models(tmp_path / "checkpoint_best.pt")


def refusal(data: Path, folder: Path, teacher: Path, *more: object) -> str:
    with pytest.raises(UsageError) as refused:
        distil(data, folder, teacher, *more)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_runs_that_cannot_work_are_refused(data: Path, teacher: Path, tmp_path: Path) -> None:
    """Before the first update: classes, a worst checkpoint, missing labels, a teacher of another unit."""
    assert refusal(data, tmp_path, teacher, "--num-classes", 2) == (
        "--regression-target needs --num-classes 1, but it is 2"
    )
    worst = refusal(data, tmp_path, teacher, "--best-checkpoint-metric", "pearson")
    assert "pearson would keep the worst checkpoint" in worst
    for name, line, said in (
        ("missing", None, "--regression-target needs a number for each sentence of 'train' in "),
        ("infinite", "inf", "is infinite; write a number, or nan for no label"),
        ("words", "good", "could not convert string to float: 'good'"),
        ("few", "", "can't be read"),
    ):
        other = Path(shutil.copytree(data, tmp_path / name))
        labels = other / "label" / "train.label"
        lines = labels.read_text().splitlines()
        labels.unlink()
        if line is not None:
            labels.write_text("\n".join([*lines[:-1], line]) + ("\n" if line else ""))
        assert said in refusal(other, tmp_path / "saved", teacher), name
    large = Path(shutil.copytree(data, tmp_path / "percent"))
    for path in (large / "label").iterdir():
        path.write_text("".join(f"{100 * float(line)}\n" for line in path.read_text().splitlines()))
    assert "does not know this data: squared error" in refusal(large, tmp_path / "saved", teacher)
    assert not (tmp_path / "saved" / "crash.pt").exists()


def test_a_classifier_is_not_a_regressor(tmp_path: Path) -> None:
    folder = write_dictionaries(tmp_path / "data")
    classifier = write_classifier(tmp_path / "classifier.pt", folder)
    said = "has 2 classes, but --regression-target needs one score; use a teacher that was trained with it"
    assert said in refusal(folder, tmp_path / "saved", classifier)
