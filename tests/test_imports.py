"""Importing the package loads what training needs, and none of the stages before or after training."""

import subprocess
import sys

from tests.helpers.digit_corpus import REPO

NOT_LOADED = (
    "fairseq_imitkd.cli",
    "fairseq_imitkd.engines",
    "fairseq_imitkd.evaluate",
    "fairseq_imitkd.export",
    "fairseq_imitkd.huggingface",
    "fairseq_imitkd.pipeline",
    "fairseq_imitkd.report",
    "fairseq_imitkd.seqkd",
    "fairseq_imitkd.serving",
    "fairseq_imitkd.teacher.cache.writer",
)


def test_importing_the_package_loads_training_alone() -> None:
    """A new Python loads the modules that register tasks and methods. It loads none of those that run before
    or after training.
    """
    script = "import sys, fairseq_imitkd; print(*sorted(name for name in sys.modules if 'imitkd' in name))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], cwd=REPO, capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert {"fairseq_imitkd.tasks.translation", "fairseq_imitkd.training.distiller"} <= set(loaded)
    assert [name for name in loaded if name.startswith(NOT_LOADED)] == []
