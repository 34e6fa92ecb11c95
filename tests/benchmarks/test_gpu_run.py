"""The stages of ``gpu.sh``: what each of them leaves, whatever happens in it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def gpu_run(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from benchmarks import gpu_run

    return gpu_run


def code(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_a_stage_that_fails_or_takes_too_long_leaves_the_others_results(gpu_run: Any, tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text('{"speed": 2}')
    stages = [
        gpu_run.Stage("good", 20, {"one": code("print('| a table |')"), "two": code("print('| another |')")}),
        gpu_run.Stage("bad", 20, {"bad": code("import sys; sys.exit('no memory')")}),
        gpu_run.Stage("long", 20, {"long": code("import time; print('begun', flush=True); time.sleep(60)")}),
        gpu_run.Stage("last", 20, {"last": code("")}),
    ]
    for stage, seconds in zip(stages[:3], (20, 20, 1), strict=True):
        gpu_run.execute(stage, tmp_path, seconds)
        gpu_run.publish(stages, tmp_path, tmp_path / "..")
    report = (tmp_path / ".." / "report.md").read_text()
    assert "## good\n\n| a table |\n\n| another |" in report
    rows = [line for line in report.splitlines() if line.startswith("| ")][1:5]
    results = [row.split(" | ")[2] for row in rows]
    assert results == ["done |", "failed (bad: 1) |", "failed (long: stopped after 1 s) |", " |"]
    assert json.loads((tmp_path / ".." / "figures.json").read_text())["good"] == {"speed": 2}
    log = (tmp_path / ".." / "stages.log").read_text()
    assert "no memory" in log
    assert "begun" in log


def test_losses_of_trainings_are_compared(gpu_run: Any) -> None:
    lines = [f'x | train_inner | {{"num_updates": "{n}", "loss": "{8 - n}"}}' for n in (1, 2)]
    found = gpu_run.losses_by_update({"fp32": "\n".join(lines), "fp16": lines[0]})
    assert found.splitlines()[2:] == ["| fp32 | 7 | 6 |", "| fp16 | 7 |  |"]


def test_all_stages_fit_into_the_minutes(gpu_run: Any, tmp_path: Path) -> None:
    """Those worth most come first, even if each takes as long as it may."""
    stages = list(gpu_run.stages_of(tmp_path, gpu_run.SIZES["cuda"]))
    names = [stage.name for stage in stages]
    assert names[:5] == ["parity", "decoding_step", "teacher", "update_profile", "update_cost_fp16_4096"]
    assert sum(stage.seconds for stage in stages[:6]) <= 9 * 60 - 25
    assert all("--precision" in flat for stage in stages for flat in stage.commands.values()
               if stage.name.startswith("update_cost"))  # fmt: skip
