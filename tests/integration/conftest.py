"""A student that ``imitkd-train`` has trained. Its teacher's file is deleted afterwards."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers import digit_corpus, in_process
from tests.helpers.shared import made_once


@dataclass(frozen=True)
class Student:
    """A student of ``--criterion imitkd`` with the method's defaults.

    Args:
        folder: its ``--save-dir``.
        output: what the command printed.
        teacher: path of the teacher that its checkpoints name; the file is deleted.
        updates: number of updates.
    """

    folder: Path
    output: str
    teacher: Path
    updates: int = 60

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint_last.pt"

    def metrics(self) -> dict[str, list[dict[str, float]]]:
        return in_process.read_metrics(self.output)


@pytest.fixture(scope="session")
def student(digits, teacher, tmp_path_factory) -> Student:
    folder = made_once(tmp_path_factory, "student", lambda folder: train_student(digits, teacher, folder))
    return Student(folder, (folder / "output.txt").read_text(), folder / "teacher.pt")


def train_student(digits, teacher: Path, folder: Path) -> None:
    own_teacher = folder / "teacher.pt"
    shutil.copy(teacher, own_teacher)
    done = digit_corpus.train(
        digits.data, folder, "--teacher-path", own_teacher, "--criterion", "imitkd", "--max-update",
        Student.updates, "--validate-interval-updates", 20, "--eval-bleu", "--eval-bleu-args", '{"beam": 1}',
        *digit_corpus.TINY,
        real=True,
    )  # fmt: skip
    own_teacher.unlink()
    (folder / "output.txt").write_text(done.stdout)
