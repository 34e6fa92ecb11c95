"""Errors that end a command with one line."""

import errno
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from fairseq_imitkd.cli import cache, door, seqkd
from fairseq_imitkd.errors import UsageError, as_usage_error, one_line_errors
from fairseq_imitkd.quick import SUMMARIES
from tests.helpers.digit_corpus import ENVIRONMENT
from tests.helpers.warm_commands import folder


def test_usage_error_is_a_value_error_and_ends_a_command() -> None:
    """Callers may catch a ``ValueError``. Uncaught, it ends a command like ``sys.exit``."""
    error = UsageError("--flag must be 1, but is 2")
    assert isinstance(error, ValueError)
    assert isinstance(error, SystemExit)
    assert str(error) == "--flag must be 1, but is 2"
    assert error.code == "error: --flag must be 1, but is 2"
    with pytest.raises(ValueError, match="but is 2"):
        raise error


def test_text_in_another_encoding_is_told_without_a_codec() -> None:
    expected = r"^'x' can't be read: it is not UTF-8 text; use another$"
    with pytest.raises(UsageError, match=expected), as_usage_error("'x' can't be read", "use another"):
        b"\x8b".decode()


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


class Stuck(Exception):
    """An exception that nobody has heard of."""


CHILD = """

-- Process 0 terminated with the following error:
Traceback (most recent call last):
  File "a.py", line 1, in <module>
{}
"""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            Stuck("the\n weights  are odd."),
            "the weights are odd; check the flags and files; --traceback shows",
        ),
        (Stuck(), "Stuck; check the flags and files; --traceback shows where it happened"),
        (Stuck("x" * 999), "x" * 200 + "; check the flags"),
        (KeyError("steps"), "KeyError: 'steps'; check the flags"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero; check the flags"),
        (FileNotFoundError(2, "No such file", "a.txt"), "'a.txt': No such file; check the path and its"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; make room, and run"),
        (ModuleNotFoundError("No module named 'apex'"), "No module named 'apex'; install the package"),
        (torch.OutOfMemoryError("tried to allocate 9 GB"), "tried to allocate 9 GB; lower --max-tokens"),
        (RuntimeError("not enough memory: you tried to allocate 9 bytes"), "not enough memory: you tried to"),
        (RuntimeError(CHILD.format("torch.AcceleratorError: it is hot")), "it is hot; check the flags"),
        (RuntimeError(CHILD.format("fairseq_imitkd.errors.UsageError: --x must be 1")), "--x must be 1"),
    ],
)
def test_any_exception_of_a_command_is_one_line(error: Exception, line: str, capsys: Any) -> None:
    """It has the exception's own text and a hint. With ``--traceback`` the rest is shown before the line."""

    @one_line_errors()
    def command(arguments: list[str]) -> None:
        assert arguments == ["--flag"]
        raise error

    for arguments in (["--flag"], ["--flag", "--traceback"]):
        with pytest.raises(SystemExit) as end:
            command(arguments)
        assert str(end.value.code).startswith(f"error: {line}")
        assert "\n" not in str(end.value.code)
        shown = capsys.readouterr()
        assert ("Traceback (most recent call last)" in shown.err) == (len(arguments) == 2)
        assert shown.out == ""


def test_refusals_pass_as_they_are(monkeypatch: Any, capsys: Any) -> None:
    """Their cause is shown with ``--traceback``, which fairseq's parsers do not see."""

    @one_line_errors()
    def command() -> None:
        assert sys.argv == ["imitkd-train", "data"]
        with as_usage_error("FILE 'a'"):
            raise Stuck("why")

    for words in (["imitkd-train", "data"], ["imitkd-train", "--traceback", "data"]):
        monkeypatch.setattr(sys, "argv", list(words))
        with pytest.raises(UsageError, match=r"^FILE 'a': why$"):
            command()
        assert ("Stuck: why" in capsys.readouterr().err) == ("--traceback" in words)


OUTPUT = """
import logging, sys, threading
from fairseq_imitkd.errors import one_line_errors

class Noisy:
    def __del__(self):
        logging.getLogger("noisy").warning("deleted")
        raise ValueError("in __del__")

@one_line_errors()
def main():
    noisy = Noisy()
    noisy.itself = noisy
    {}

logging.basicConfig(stream=sys.stdout, force=True)
main()
"""


@pytest.mark.parametrize(
    ("body", "out", "line"),
    [
        ("raise RuntimeError('it is odd')", os.devnull, "error: it is odd; check the flags and files;"),
        ("thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()", os.devnull, None),
        ("print('lost')", "/dev/full", "error: No space left on device; make room"),
        ("logging.error('x' * 99999); raise RuntimeError('why')", "/dev/full", "error: why; check the flags"),
    ],
    ids=["raised", "thread", "full", "log"],
)
def test_the_line_comes_last_and_no_traceback_before_it(body: str, out: str, line: str | None) -> None:
    """Nor one of Python's own: of an object that fails when it is deleted, a thread, or a log that is full.

    The object logs while it is deleted.
    """
    with open(out, "w") as output:
        done = python(OUTPUT.format(body), output)
    assert done.returncode == (1 if line else 0)
    assert "Traceback" not in done.stderr
    shown = [
        text for text in done.stderr.splitlines() if not text.startswith("warning: a thread ended: Zero")
    ]
    assert len(shown) == (1 if line else 0)
    assert line is None or shown[0].startswith(line)


def test_a_reader_that_ends_ends_the_command() -> None:
    """``imitkd-report ... | head -1`` prints nothing more, and ends as shells report a broken pipe."""
    read, write = os.pipe()
    os.close(read)
    done = python(OUTPUT.format("[print('x' * 999) for _ in range(999)]"), write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def python(code: str, out: Any) -> subprocess.CompletedProcess:
    """Run code in a process that has imported the package."""
    return subprocess.run(
        [folder() / "python", "-c", code],
        stdout=out,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        timeout=60,
    )


def test_every_command_can_be_stopped() -> None:
    """Every installed command is checked: the door runs these functions."""
    assert len(SUMMARIES) >= 10
    for command in SUMMARIES:
        assert hasattr(door.function_of(command), "__wrapped__"), command
