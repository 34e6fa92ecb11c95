"""``benchmarks/gpu.sh`` without a GPU: every stage runs with tiny models, so the script is complete."""

import json
import os
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers import scripts
from tests.helpers.digit_corpus import BIN, REPO

SCRIPT = REPO / "benchmarks" / "gpu.sh"


def assert_complete(out: Path) -> None:
    """Every stage is done, and its tables and figures are there."""
    report = (out / "report.md").read_text()
    for row in (
        "| losses | ",
        "| transformer_iwslt_de_en | 4 | bf16 | greedy | off |",
        "| imitkd, share 1, pool of 2 updates |",
        "| rollout engine |",
        "teacher's weights",
        "| fp32, graphs auto |",
        "| bf16, graphs auto |",
    ):
        assert row in report, row
    figures = json.loads((out / "figures.json").read_text())
    stages = [row for row in report.splitlines() if row.endswith("| done |")]
    assert [row.split(" | ")[0][2:] for row in stages] == list(figures["seconds"])
    for name in (
        "decoding_step",
        "update_profile",
        "update_cost_bf16_300",
        "losses",
        "rollout_speed",
        "memory",
    ):
        assert figures[name], name


@pytest.mark.slow
def test_every_stage_runs(tmp_path: Path) -> None:
    """Commands are forks of a process that has imported the package."""
    done = scripts.call(SCRIPT, env=scripts.environment(tmp_path))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert_complete(tmp_path / "results")


@pytest.mark.slow
def test_a_machine_without_an_installation(tmp_path: Path) -> None:
    """There is ``python3`` with torch, and a folder of wheels. The script installs into a folder."""
    path, wheels, out = (tmp_path / name for name in ("path", "wheels", "out"))
    for folder in (path, wheels):
        folder.mkdir()
    (path / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (path / "python3").chmod(0o755)
    # This Python has fairseq. The wheel has no modules.
    with zipfile.ZipFile(wheels / "fairseq_fixed-0.12.3.1-py3-none-any.whl", "w") as wheel:
        folder = "fairseq_fixed-0.12.3.1.dist-info"
        wheel.writestr(
            f"{folder}/METADATA", "Metadata-Version: 2.1\nName: fairseq-fixed\nVersion: 0.12.3.1\n"
        )
        wheel.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{folder}/RECORD", "")
    environment = {
        "PATH": f"{path}:/usr/bin:/bin", "HOME": str(tmp_path / "home"), "OUT": str(out), "DEVICE": "cpu",
        "RUN": str(tmp_path / "run"), "WHEELS": str(wheels), "BIN": str(tmp_path / "absent"),
    }  # fmt: skip
    done = scripts.call(SCRIPT, env=environment, timeout=3600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert (tmp_path / "home" / "site" / "bin" / "imitkd-train").exists()
    assert_complete(out)


def test_a_machine_that_lacks_something(tmp_path: Path) -> None:
    """One line says what to do."""
    (tmp_path / "python3").symlink_to("/bin/true")
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "BIN": str(tmp_path / "absent"),
    }
    done = scripts.call(SCRIPT, env={**environment, "WHEELS": str(tmp_path)})
    assert done.returncode == 1
    assert done.stderr.startswith("gpu.sh: imitkd-train is not on PATH, and WHEELS")
    assert done.stderr.count("\n") == 1
    done = scripts.call(SCRIPT, "measure", env={**os.environ, "BIN": str(BIN)})
    assert done.stderr == "gpu.sh: the argument must be prepare or nothing, but is 'measure'\n"
