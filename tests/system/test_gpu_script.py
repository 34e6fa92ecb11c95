"""``benchmarks/gpu.sh`` without a GPU: every step runs with tiny models, so the script is complete."""

import json
from pathlib import Path

import pytest

from tests.helpers import scripts
from tests.helpers.digit_corpus import REPO


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["forked", "real"])
def test_every_step_runs_and_is_not_done_again(real: bool, tmp_path: Path) -> None:
    """Commands are forks of a process that has imported the package, or each is a new Python (slow)."""
    environment = scripts.environment(tmp_path, real=real)
    first, again = (scripts.call(REPO / "benchmarks" / "gpu.sh", env=environment) for _ in range(2))
    for done in (first, again):
        assert done.returncode == 0, done.stderr[-4000:]
        for row in (
            "| imitkd, share 1 |",
            "| rollout engine |",
            "teacher's weights",
            "imitkd_fp32:",
            "imitkd_bf16:",
        ):
            assert row in done.stdout, row
    assert first.stdout.endswith(again.stdout)  # the first call also prints facts about the text
    for name in ("update_cost", "rollout_speed", "memory"):
        assert json.loads((tmp_path / f"{name}.json").read_text())
