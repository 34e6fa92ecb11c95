"""``benchmarks/gpu.sh`` without a GPU: every step small, so that it is whole when there is one."""

import json
import os
import subprocess
from pathlib import Path

from tests.helpers.digit_corpus import REPO


def test_every_step_runs_and_is_not_done_again(tmp_path: Path) -> None:
    environment = {**os.environ, "DEVICE": "cpu", "RUN": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = ["bash", str(REPO / "benchmarks" / "gpu.sh")]
    first, again = (
        subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
        for _ in range(2)
    )
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
    assert first.stdout.endswith(again.stdout)  # the first also tells of the text
    for name in ("update_cost", "rollout_speed", "memory"):
        assert json.loads((tmp_path / f"{name}.json").read_text())
