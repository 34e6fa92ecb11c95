"""Errors that end a command with one line."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq_imitkd.cli import cache, seqkd
from fairseq_imitkd.errors import UsageError, as_usage_error, one_line_errors


def test_usage_error_is_a_value_error_and_ends_a_command() -> None:
    """Callers may catch a ``ValueError``. Uncaught, it ends a command like ``sys.exit``."""
    error = UsageError("--flag must be 1, but is 2")
    assert isinstance(error, ValueError)
    assert isinstance(error, SystemExit)
    assert str(error) == "--flag must be 1, but is 2"
    assert error.code == "error: --flag must be 1, but is 2"
    with pytest.raises(ValueError, match="but is 2"):
        raise error


def test_usage_error_ends_the_process_with_one_line_and_status_1() -> None:
    """No traceback is printed. The process imports only this module."""
    code = (
        "import importlib.util, sys; spec = importlib.util.spec_from_file_location('errors', sys.argv[1]); "
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module); "
        "raise module.UsageError('bad flag')"
    )
    file = sys.modules[UsageError.__module__].__file__
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(file)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr == "error: bad flag\n"
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("error", "remedy", "expected"),
    [
        (RuntimeError("bad\n  magic"), "use another", "FILE 'a' can't be read: bad magic; use another"),
        (KeyError("model"), "", "FILE 'a' can't be read: it lacks 'model'"),
        (EOFError(), "", "FILE 'a' can't be read: EOFError"),
        (ValueError("x" * 999), "", "FILE 'a' can't be read: " + "x" * 300),
        (UsageError("--flag is bad"), "use another", "--flag is bad"),
    ],
)
def test_other_errors_become_usage_errors(error: Exception, remedy: str, expected: str) -> None:
    """One line holds the problem, the message and the remedy. A usage error does not change."""
    with pytest.raises(UsageError) as found, as_usage_error("FILE 'a' can't be read", remedy):
        raise error
    assert str(found.value) == expected
    assert found.value.__cause__ is (None if found.value is error else error)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), torch.OutOfMemoryError("17 GB"), TypeError("1")])
def test_errors_that_are_not_converted(error: BaseException) -> None:
    """Ctrl-C, exhausted memory, and error types that were not listed pass unchanged."""
    with pytest.raises(type(error)) as found, as_usage_error("FILE", catch=(OSError, RuntimeError)):
        raise error
    assert found.value is error


def test_ctrl_c_ends_a_command_with_one_line(capsys: Any) -> None:
    """The status is the one that shells use. Other errors pass unchanged."""

    @one_line_errors("; it goes on")
    def command(error: BaseException | None, word: str = "done") -> str:
        if error:
            raise error
        return word

    assert command(None, word="well") == "well"
    with pytest.raises(UsageError):
        command(UsageError("bad flag"))
    assert capsys.readouterr().err == ""
    with pytest.raises(SystemExit) as end:
        command(KeyboardInterrupt())
    assert end.value.code == 130
    assert end.value.__suppress_context__
    assert capsys.readouterr() == ("", "stopped; it goes on\n")


@pytest.mark.parametrize("module", [cache, seqkd], ids=["imitkd-cache", "imitkd-seqkd"])
def test_ctrl_c_tells_whether_the_command_can_continue(module: Any, monkeypatch: Any, capsys: Any) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_cache" if module is cache else "make", stop)
    flags = [
        "data",
        "--teacher-path",
        "t.pt",
        "--out",
        "o",
        *(["--keep", "hidden"] if module is cache else []),
    ]
    with pytest.raises(SystemExit) as end:
        module.main(flags)
    assert end.value.code == 130
    assert capsys.readouterr().err == "stopped; the same command continues where it stopped\n"


def test_every_command_can_be_stopped() -> None:
    """Every installed command is checked."""
    setup = (Path(__file__).parents[1] / "setup.py").read_text()
    commands = re.findall(r'"imitkd-\w+ = ([\w.]+):(\w+)"', setup)
    assert len(commands) >= 10
    for module, name in commands:
        assert hasattr(getattr(importlib.import_module(module), name), "__wrapped__"), module
