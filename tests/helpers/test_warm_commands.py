"""Forked commands behave like new processes: streams, status, signals and fresh state."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers import warm_commands


def python(code: str, *arguments: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    command = [warm_commands.folder() / "python", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **kwargs)  # type: ignore[call-overload]


def test_streams_arguments_and_environment(tmp_path: Path) -> None:
    """A command has the caller's streams, arguments, working directory and environment, and nothing else."""
    code = "import os, sys; print(sys.argv[1], input(), os.getcwd(), dict(os.environ)); sys.stderr.write('e')"
    environment = {"NAME": "value", "LC_ALL": "C.UTF-8"}
    done = python(code, "an argument", cwd=tmp_path, input="a line\n", env=environment)
    assert done.stdout == f"an argument a line {tmp_path} {environment}\n"
    assert (done.stderr, done.returncode) == ("e", 0)


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('a message')", 1, "a message"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
    ],
)
def test_exit_status_and_error(code: str, status: int, error: str) -> None:
    done = python(code)
    assert done.returncode == status
    assert done.stderr.strip().splitlines()[-1:] == ([error] if error else [])


def test_every_command_has_fresh_state() -> None:
    code = "import fairseq_imitkd as module; print(getattr(module, 'mark', None)); module.mark = 1"
    assert [python(code).stdout for _ in range(2)] == ["None\n", "None\n"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signals_reach_it(number: signal.Signals) -> None:
    """SIGKILL can't be passed on. The server kills the process when its client has ended."""
    code = (
        "import os, signal, time; signal.signal(signal.SIGTERM, lambda *_: os._exit(5)); "
        "print(os.getpid(), flush=True); time.sleep(600)"
    )
    command = [warm_commands.folder() / "python", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        forked = int(process.stdout.readline())
        process.send_signal(number)
        try:
            status = process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()  # else the test would wait until the process has slept its fill
            raise
        process.stdout.read()  # ends when the forked process has ended
    assert status == {signal.SIGTERM: 5, signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}[number]
    until = time.monotonic() + 60
    while os.path.exists(f"/proc/{forked}"):  # the server takes note of its end
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_client_that_is_killed_at_once_does_no_harm() -> None:
    for _ in range(10):
        client = subprocess.Popen([warm_commands.folder() / "python", "-c", ""])
        client.kill()
        client.wait()
    assert python("print('still there')").stdout == "still there\n"
