"""Classification with a teacher by the real commands: a stock teacher, two stages of annealing, a kill,
validation.
"""

import json
import random
import shutil
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.helpers import digit_corpus, in_process

PLUGIN = ("--user-dir", digit_corpus.REPO / "fairseq_imitkd")
ROBERTA = (
    "--arch", "roberta", "--encoder-attention-heads", 2, "--num-classes", 2, "--init-token", 0,
    "--max-positions", 32,
)  # fmt: skip
LARGE = ("--encoder-layers", 1, "--encoder-embed-dim", 32, "--encoder-ffn-embed-dim", 64)
SMALL = ("--encoder-layers", 1, "--encoder-embed-dim", 16, "--encoder-ffn-embed-dim", 16)
STOCK = ("--task", "sentence_prediction", "--criterion", "sentence_prediction")
WITH_TEACHER = ("--task", "sentence_prediction_with_teacher")
UPDATES = 91
STAGE_TWO = 62  # the first update of the last third
EACH = ("--lr", "1e-2", "--max-update", UPDATES, "--log-interval", 1)


@dataclass(frozen=True)
class Classes:
    """Sentences with words of praise and of blame among others. The more frequent kind is the sentence's
    class.
    """

    data: Path
    teacher: Path


def write_reviews(folder: Path, split: str, sentences: int, seed: int) -> None:
    """Write a sentence and a label in each line. Most words are neither praise nor blame."""
    generator = random.Random(seed)
    with open(folder / f"{split}.input0", "w") as text, open(folder / f"{split}.label", "w") as labels:
        for _ in range(sentences):
            label = generator.choice(["bad", "good"])
            words = [f"{label}{generator.randrange(6)}" for _ in range(2)]
            words += [
                f"{'bad' if label == 'good' else 'good'}{generator.randrange(6)}"
                for _ in range(generator.randrange(2))
            ]
            words += [f"word{generator.randrange(8)}" for _ in range(generator.randint(0, 6))]
            generator.shuffle(words)
            print(*words, file=text)
            print(label, file=labels)


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Classes:
    """The data by ``fairseq-preprocess``, and the teacher by ``fairseq-train`` with the stock task and
    criterion.
    """
    root = tmp_path_factory.mktemp("classes")
    for split, sentences, seed in (("train", 1200, 1), ("valid", 200, 2)):
        write_reviews(root, split, sentences, seed)
    for part in ("input0", "label"):
        digit_corpus.run(
            "fairseq-preprocess", "--only-source", "--destdir", root / "data" / part,
            "--trainpref", root / f"train.{part}", "--validpref", root / f"valid.{part}",
        )  # fmt: skip
    done = digit_corpus.train(
        root / "data", root / "teacher", *PLUGIN, *STOCK, *ROBERTA, *LARGE, "--max-update", 150,
        "--max-tokens", 800, command="fairseq-train",
    )  # fmt: skip
    assert in_process.read_metrics(done.stdout)["valid"][-1]["accuracy"] > 90
    return Classes(root / "data", root / "teacher" / "checkpoint_last.pt")


@dataclass(frozen=True)
class Student:
    """A student of ``annealing_kd`` and the output of its training. Its teacher is deleted."""

    folder: Path
    metrics: dict[str, list[dict[str, float]]]
    teacher: Path


def annealing(classes: Classes, teacher: Path) -> tuple:
    """Return the flags of a student that validates and saves every 15 updates."""
    return (
        *WITH_TEACHER, "--criterion", "annealing_kd", "--teacher-path", teacher,
        "--teacher-data", classes.data, *ROBERTA, *SMALL, *EACH, "--validate-interval-updates", 15,
        "--save-interval-updates", 15, "--keep-interval-updates", 1, "--validate-interval", 1000,
        "--save-interval", 1000,
    )  # fmt: skip


@pytest.fixture(scope="module")
def student(classes, tmp_path_factory) -> Student:
    folder = tmp_path_factory.mktemp("student")
    teacher = folder / "teacher.pt"
    shutil.copy(classes.teacher, teacher)
    done = digit_corpus.train(
        classes.data, folder, *PLUGIN, *annealing(classes, teacher), command="fairseq-train"
    )
    teacher.unlink()
    return Student(folder, in_process.read_metrics(done.stdout), teacher)


def test_both_stages_of_annealing(student) -> None:
    """Stage I learns the teacher's logits, and stage II the labels without it. Both end far above chance."""
    training, validations = student.metrics["train_inner"], student.metrics["valid"]
    assert len(training) == UPDATES
    first, second = training[: STAGE_TWO - 1], training[STAGE_TWO - 1 :]
    assert ["agreement" in metrics for metrics in training] == [True] * len(first) + [False] * len(second)
    assert all(metrics["loss"] == pytest.approx(metrics["nll_loss"], abs=0.0011) for metrics in second)
    assert any(abs(metrics["loss"] - metrics["nll_loss"]) > 0.1 for metrics in first)
    ends = {int(metrics["num_updates"]): metrics["accuracy"] for metrics in validations}
    assert ends[15] < 100
    assert ends[60] > 80, "after stage I, which never reads a label"
    assert ends[UPDATES] > 85
    assert (
        sum(metrics["agreement"] for metrics in first[-10:])
        > sum(metrics["agreement"] for metrics in first[:10]) + 2
    )


def test_word_kd_through_the_plugins_command(classes, tmp_path) -> None:
    """``imitkd-train`` needs no ``--user-dir``. It finds the teacher's dictionaries by the teacher's
    checkpoint.
    """
    done = digit_corpus.train(
        classes.data, tmp_path, *WITH_TEACHER, "--criterion", "word_kd", "--teacher-path", classes.teacher,
        *ROBERTA, *SMALL, *EACH, "--save-interval", 1000,
    )  # fmt: skip
    metrics = in_process.read_metrics(done.stdout)
    accuracy = [interval["accuracy"] for interval in metrics["valid"]]
    assert accuracy[-1] > 85
    assert metrics["train_inner"][-1]["loss"] < metrics["train_inner"][0]["loss"]
    assert metrics["train_inner"][-1]["agreement"] > 0.8
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for tag, logged in metrics.items():
        lines = [line for line in written if line["tag"] == tag]
        assert [line["loss"] for line in lines] == pytest.approx([each["loss"] for each in logged], rel=1e-4)


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(classes, student, tmp_path) -> None:
    """The process is killed in stage I and another one resumes. The weights are equal to the last bit."""
    flags = annealing(classes, classes.teacher)
    command = [classes.data, "--save-dir", tmp_path, *in_process.SETTINGS, *flags]
    process = subprocess.Popen(
        [digit_corpus.BIN / "fairseq-train", *map(str, command), *map(str, PLUGIN)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=digit_corpus.ENVIRONMENT,
    )  # fmt: skip
    watchdog = threading.Timer(300, process.terminate)
    watchdog.start()
    for line in process.stdout:
        if "Saved checkpoint" in line and "@ 30 updates" in line:
            process.kill()
            break
    watchdog.cancel()
    process.stdout.close()
    assert process.wait(timeout=60) == -9, "the first process must be killed before its end"

    saved = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)["optimizer_history"][-1][
        "num_updates"
    ]
    assert 30 <= saved < STAGE_TWO
    resumed = in_process.train(classes.data, tmp_path, *flags)
    assert len(resumed.metrics["train_inner"]) == UPDATES - saved
    ends = [
        torch.load(folder / "checkpoint_last.pt", weights_only=True) for folder in (student.folder, tmp_path)
    ]
    for end in ends:
        assert end["optimizer_history"][-1]["num_updates"] == UPDATES
    torch.testing.assert_close(ends[1]["model"], ends[0]["model"], rtol=0, atol=0)


def test_checkpoint_holds_nothing_of_the_teacher(classes, student) -> None:
    """It holds the student's weights alone. Stock fairseq loads it without the teacher's file."""
    assert not student.teacher.exists()
    state = torch.load(student.folder / "checkpoint_last.pt", weights_only=True)
    assert not [
        name for name in [*state["model"], *state["task_state"], *state["extra_state"]] if "teacher" in name
    ]
    (model,) = in_process.load_models(student.folder / "checkpoint_last.pt")
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in state["model"].items()
    }


def test_fairseq_validate(classes, student) -> None:
    """It rebuilds task and criterion without the teacher, and gives the metrics of the training."""
    done = digit_corpus.run(
        "fairseq-validate", classes.data, *PLUGIN, *WITH_TEACHER, "--path",
        student.folder / "checkpoint_last.pt", "--cpu", "--max-tokens", 400, "--log-format", "json",
    )  # fmt: skip
    (metrics,) = in_process.read_metrics(done.stdout)["valid"]
    last = student.metrics["valid"][-1]
    assert metrics["accuracy"] == pytest.approx(last["accuracy"], abs=0.001)
    assert metrics["loss"] == pytest.approx(last["loss"], abs=0.001)
