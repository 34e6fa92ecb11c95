"""A step leaves complete results or none, continues what it can, and ends when its parent ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fairseq_imitkd.pipeline import step as program

SHELL = {"given": None, "out": None, "statuses": [0]}


def run(folder: Path, script: str, *, key: str = "k1", resumes: bool = False, **more: Any) -> Any:
    """Run a step whose command is a shell script that makes the result ``made``."""
    command = {**SHELL, "words": ["sh", "-c", script], **more}
    step = {"name": "one", "key": key, "needs": [], "results": ["made"], "resumes": resumes, "gpus": 0}
    step |= {"threads": 1, "commands": [command]}
    plan = {"state": "s", "programs": str(Path(sys.executable).parent), "environment": {}, "steps": [step]}
    (folder / "plan.json").write_text(json.dumps(plan))
    words = [sys.executable, "-IS", program.__file__, "plan.json", "one"]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_a_result_gets_its_name_when_its_command_has_ended(tmp_path: Path) -> None:
    assert run(tmp_path, "echo half > made.part; exit 3").wait() == 3
    assert not (tmp_path / "made").exists()
    assert json.loads((tmp_path / "s/notes/one.json").read_text())["state"] == "failed"
    assert run(tmp_path, "echo whole > made.part").wait() == 0
    assert (tmp_path / "made").read_text() == "whole\n"
    assert [path.name for path in (tmp_path / "s/done").iterdir()] == ["one.k1"]


def test_a_status_that_counts_as_success(tmp_path: Path) -> None:
    assert run(tmp_path, "echo 1 > made; exit 3", statuses=[0, 3]).wait() == 0
    assert (tmp_path / "made").exists()


def test_work_with_the_same_key_is_continued_and_other_work_is_deleted(tmp_path: Path) -> None:
    add = "mkdir -p made; echo line >> made/lines; exit 1"
    for key, lines in (("k1", 1), ("k1", 2), ("k2", 1)):
        assert run(tmp_path, add, key=key, resumes=True).wait() == 1
        assert (tmp_path / "made/lines").read_text() == "line\n" * lines
    assert run(tmp_path, add, key="k2").wait() == 1
    assert (tmp_path / "made/lines").read_text() == "line\n", "it can't be continued"


def test_a_rerun_takes_away_that_the_step_was_done(tmp_path: Path) -> None:
    assert run(tmp_path, "echo 1 > made").wait() == 0
    assert run(tmp_path, "exit 1", key="k2").wait() == 1
    assert not list((tmp_path / "s/done").iterdir())


def test_the_command_ends_when_the_step_is_killed(tmp_path: Path) -> None:
    process = run(tmp_path, "echo $$ > pid.part; mv pid.part pid; sleep 60")
    deadline = time.monotonic() + 20
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    number = int((tmp_path / "pid").read_text())
    while time.monotonic() < deadline:
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{number}/stat").read_text().split()[2] == "Z":
            return  # dead, and not yet collected by its new parent
        time.sleep(0.02)
    os.kill(number, signal.SIGKILL)
    raise AssertionError("the command goes on without its step")
