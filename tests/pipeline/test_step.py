"""A step leaves complete results or none, continues what it can, and ends when its parent ends."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fairseq_imitkd.pipeline import step as program
from fairseq_imitkd.pipeline.runner import last_error

SHELL = {"given": None, "out": None, "statuses": [0]}


def run(
    folder: Path, script: str, *, name: str = "one", key: str = "k1", resumes: bool = False, **more: Any
) -> Any:
    """Run a step whose command is a shell script that makes the result ``made``."""
    command = {**SHELL, "words": ["sh", "-c", script], **more}
    step = {"name": name, "key": key, "needs": [], "results": ["made"], "resumes": resumes, "gpus": 0}
    step |= {"threads": 1, "commands": [command]}
    plan = {"state": "s", "programs": str(Path(sys.executable).parent), "environment": {}, "steps": [step]}
    (folder / "plan.json").write_text(json.dumps(plan))
    words = [sys.executable, "-IS", program.__file__, "plan.json", name]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_a_result_gets_its_name_when_its_command_has_ended(tmp_path: Path) -> None:
    assert run(tmp_path, "echo half > made.part; exit 3").wait() == 3
    assert not (tmp_path / "made").exists()
    assert json.loads((tmp_path / "s/notes/one.json").read_text())["state"] == "failed"
    assert run(tmp_path, "echo whole > made.part").wait() == 0
    assert (tmp_path / "made").read_text() == "whole\n"
    assert [path.name for path in (tmp_path / "s/done").iterdir()] == ["one.k1"]


def test_a_command_can_read_the_first_lines_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("1\n2\n3\n")
    for lines, found in ((None, "1\n2\n3\n"), (2, "1\n2\n"), (9, "1\n2\n3\n")):
        assert run(tmp_path, "cat > made.part", given="text", lines=lines).wait() == 0
        assert (tmp_path / "made").read_text() == found


def test_a_command_as_a_shell_takes_it(tmp_path: Path) -> None:
    """Its line does what the step does."""
    (tmp_path / "a b").write_text("1\n2\n3\n")
    command = {**SHELL, "words": ["cat", "-"], "given": "a b", "out": "the result"}
    for lines, result in ((None, "1\n2\n3\n"), (2, "1\n2\n")):
        line = program.typed({**command, "lines": lines})
        assert subprocess.run(line, shell=True, cwd=tmp_path).returncode == 0
        assert (tmp_path / "the result").read_text() == result
    assert program.typed({**SHELL, "words": ["echo", "x y"]}) == "echo 'x y'"
    many = program.typed({**SHELL, "words": ["imitkd-train", "DATA"], "processes": 2})
    assert many.startswith("python -P -m torch.distributed.run --standalone --nproc-per-node 2 ")
    assert many.endswith("step.py --rank imitkd-train DATA")


def test_a_full_disk_ends_in_its_line_and_loses_nothing(tmp_path: Path) -> None:
    """``/dev/full`` refuses what the command writes."""
    begin = "mkdir -p made; echo 1 >> made/kept; "
    assert run(tmp_path, f"{begin} cat made/kept > /dev/full", resumes=True).wait() != 0
    assert last_error(tmp_path / "logs/one.log").endswith("No space left on device")
    assert not list((tmp_path / "s/done").iterdir())
    assert run(tmp_path, begin, resumes=True).wait() == 0
    assert (tmp_path / "made/kept").read_text() == "1\n1\n"


def test_a_disk_that_is_full_at_the_end_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step has not ended then, and says why."""
    assert run(tmp_path, "echo 1 > made.part; exit 1").wait() == 1
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["steps"][0]["commands"][0]["words"][-1] = "echo 1 > made.part"
    monkeypatch.chdir(tmp_path)
    stock = program.write

    def full(path: Path, text: str) -> None:
        if path.parent.name == "done":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        stock(path, text)

    monkeypatch.setattr(program, "write", full)
    assert program.Step(plan["steps"][0], plan).run() == 1
    assert last_error(tmp_path / "logs/one.log") == "s/done/one.k1: No space left on device"
    assert json.loads((tmp_path / "s/notes/one.json").read_text())["state"] == "failed"
    monkeypatch.setattr(program, "write", stock)
    assert program.Step(plan["steps"][0], plan).run() == 0
    note = json.loads((tmp_path / "s/notes/one.json").read_text())
    assert note["cpu"] > 0.0
    assert note["peak"] > 0


def test_a_process_of_several_learns_its_rank(tmp_path: Path) -> None:
    """torchrun names it in the environment; the command gets it as a flag, last."""
    words = [sys.executable, "-IS", program.__file__, "--rank", "echo", "--distributed-world-size", "2"]
    done = subprocess.run(words, env={**os.environ, "RANK": "1"}, capture_output=True, text=True, check=True)
    assert done.stdout == "--distributed-world-size 2 --distributed-rank 1\n"
    command = {**SHELL, "words": ["imitkd-train", "data"], "processes": 2}
    step = {"name": "one", "key": "k", "threads": 4, "gpus": 0, "commands": [command]}
    made = program.Step(step, {"state": "s", "programs": "/nowhere", "environment": {}})
    assert made.environment["OMP_NUM_THREADS"] == "2"
    launched = program.started(command)
    assert launched[1:4] == ["-P", "-m", "torch.distributed.run"]
    assert launched[4:7] == ["--standalone", "--nproc-per-node", "2"]
    assert launched[-3:] == ["--rank", "imitkd-train", "data"]


def test_gpus_are_kept_for_a_step(tmp_path: Path) -> None:
    environment = {"IMITKD_GPUS": "0,1,2"}
    with program._gpus(2, tmp_path, environment):
        assert environment["CUDA_VISIBLE_DEVICES"] == "0,1"
        other = {"IMITKD_GPUS": "0,1,2"}
        with program._gpus(1, tmp_path, other):
            assert other["CUDA_VISIBLE_DEVICES"] == "2"
    with program._gpus(3, tmp_path, environment):
        assert environment["CUDA_VISIBLE_DEVICES"] == "0,1,2"


def test_a_status_that_counts_as_success(tmp_path: Path) -> None:
    assert run(tmp_path, "echo 1 > made; exit 3", statuses=[0, 3]).wait() == 0
    assert (tmp_path / "made").exists()


def test_work_with_the_same_key_is_continued_and_other_work_is_deleted(tmp_path: Path) -> None:
    add = "mkdir -p made; echo line >> made/lines; exit 1"
    note = tmp_path / "s/notes/one.json"
    for key, lines in (("k1", 1), ("k1", 2), ("k2", 1)):
        assert run(tmp_path, add, key=key, resumes=True).wait() == 1
        assert (tmp_path / "made/lines").read_text() == "line\n" * lines
        found = json.loads(note.read_text())
        assert (found["cpu"] > 100.0) == (lines == 2)  # with that of the attempt that it continues
        assert (found["peak"] == 1 << 50) == (lines == 2)
        note.write_text(json.dumps({**found, "cpu": 100.0, "peak": 1 << 50}))
    assert run(tmp_path, add, key="k2").wait() == 1
    assert (tmp_path / "made/lines").read_text() == "line\n", "it can't be continued"


def test_a_rerun_takes_away_that_the_step_was_done(tmp_path: Path) -> None:
    assert run(tmp_path, "echo 1 > made").wait() == 0
    assert run(tmp_path, "exit 1", key="k2").wait() == 1
    assert not list((tmp_path / "s/done").iterdir())


def test_a_step_that_makes_the_result_of_another_takes_away_that_it_was_done(tmp_path: Path) -> None:
    """Nor can that one continue then, in a folder that holds other work."""
    add = "mkdir -p made; echo line >> made/lines"
    assert run(tmp_path, add, resumes=True).wait() == 0
    assert run(tmp_path, add, name="other").wait() == 0
    assert [path.name for path in (tmp_path / "s/done").iterdir()] == ["other.k1"]
    assert run(tmp_path, add, resumes=True).wait() == 0
    assert (tmp_path / "made/lines").read_text() == "line\n"
    assert [path.name for path in (tmp_path / "s/done").iterdir()] == ["one.k1"]


def test_the_error_is_that_of_the_last_attempt(tmp_path: Path) -> None:
    """A command that is killed leaves no message of its own."""
    for number, said in (
        (9, "killed by signal 9, probably because memory was short; free some, or give fewer --cores"),
        (11, "killed by signal 11"),
    ):
        assert run(tmp_path, "echo error: the disk is full; exit 1", resumes=True).wait() == 1
        assert last_error(tmp_path / "logs/one.log") == "the disk is full"
        assert run(tmp_path, f"echo update 5; kill -{number} $$", resumes=True).wait() != 0
        assert last_error(tmp_path / "logs/one.log") == said


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
