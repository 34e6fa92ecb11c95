"""One student, trained by the real ``imitkd-train``, whose teacher is gone afterwards."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers import digit_corpus, in_process


@dataclass(frozen=True)
class Student:
    """A student of ``--criterion imitkd`` under that method's own defaults.

    Args:
        folder: its ``--save-dir``.
        output: what the command printed.
        teacher: the path that its checkpoints name, where no file is any more.
        updates: of its training.
    """

    folder: Path
    output: str
    teacher: Path
    updates: int = 60

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint_last.pt"

    def figures(self) -> dict[str, list[dict[str, float]]]:
        return in_process.read_figures(self.output)


@pytest.fixture(scope="session")
def student(digits, teacher, tmp_path_factory) -> Student:
    folder = tmp_path_factory.mktemp("student")
    own_teacher = folder / "teacher.pt"
    shutil.copy(teacher, own_teacher)
    done = digit_corpus.train(
        digits.data, folder, "--teacher-path", own_teacher, "--criterion", "imitkd", "--max-update", Student.updates,
        "--validate-interval-updates", 20, "--eval-bleu", "--eval-bleu-args", '{"beam": 1}', "--best-checkpoint-metric", "bleu",
        "--maximize-best-checkpoint-metric", *digit_corpus.TINY, timeout=300,
    )  # fmt: skip
    own_teacher.unlink()
    return Student(folder, done.stdout, own_teacher)
