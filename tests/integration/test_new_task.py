"""The sketch of a new task in CONTRIBUTING.md."""

import json
import re
import shutil
from pathlib import Path

from tests.helpers import digit_corpus

FLAGS = (
    "--sample-break-mode", "complete", "--tokens-per-sample", 32, "--mask", 0.3, "--replace-length", 1,
    "--rotate", 0, "--max-source-positions", 32, "--max-target-positions", 32, "--disable-validation",
    *digit_corpus.TINY,
)  # fmt: skip


def sketch() -> str:
    """The code of the section, word for word."""
    guide = (digit_corpus.REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```py\n(.*?)```", guide, flags=re.DOTALL)
    return code


def one_sided(data: Path, folder: Path) -> Path:
    """The targets of a translation data set as the data of ``denoising``."""
    folder.mkdir()
    shutil.copy(data / "dict.tgt.txt", folder / "dict.txt")
    for suffix in ("bin", "idx"):
        shutil.copy(data / f"train.src-tgt.tgt.{suffix}", folder / f"train.{suffix}")
    return folder


def test_contributings_task_trains_with_rollouts(digits, tmp_path):
    """By the real command, under a teacher that fairseq's own task has trained."""
    data, package = one_sided(digits.data, tmp_path / "data"), tmp_path / "denoising_with_teacher"
    package.mkdir()
    (package / "__init__.py").write_text(sketch())
    pretrain = ("--task", "denoising", "--criterion", "cross_entropy", "--max-update", 2)
    digit_corpus.train(data, tmp_path / "teacher", *pretrain, *FLAGS)
    distil = ("--task", "denoising_with_teacher", "--criterion", "gkd", "--max-update", 10)
    teacher = ("--teacher-path", tmp_path / "teacher" / "checkpoint_last.pt", "--teacher-allow-poor")
    digit_corpus.train(data, tmp_path / "saved", "--user-dir", package, *distil, *teacher, *FLAGS)
    lines = map(json.loads, (tmp_path / "saved" / "metrics.jsonl").read_text().splitlines())
    shares = [line["student_share"] for line in lines if line["tag"] == "train_inner"]
    assert shares == [1.0, 1.0]
    assert (tmp_path / "saved" / "checkpoint_last.pt").exists()
