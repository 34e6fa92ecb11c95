"""The one error that a user can cause: how it ends a command."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fairseq_imitkd.cli import cache, seqkd
from fairseq_imitkd.errors import UsageError, interruptible


def test_is_a_value_error_and_ends_a_command() -> None:
    """Callers may catch a ``ValueError``; a command ends as by ``sys.exit``."""
    error = UsageError("--flag must be 1, but is 2")
    assert isinstance(error, ValueError)
    assert isinstance(error, SystemExit)
    assert str(error) == "--flag must be 1, but is 2"
    assert error.code == "error: --flag must be 1, but is 2"
    with pytest.raises(ValueError, match="but is 2"):
        raise error


def test_ends_the_process_with_one_line_and_status_1() -> None:
    """No traceback. The package is not imported here, so that nothing else can have set it up."""
    code = (
        "import importlib.util, sys; spec = importlib.util.spec_from_file_location('errors', sys.argv[1]); "
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module); raise module.UsageError('bad flag')"
    )
    file = sys.modules[UsageError.__module__].__file__
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(file)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr == "error: bad flag\n"
    assert done.stdout == ""


def test_ctrl_c_ends_a_command_with_one_line(capsys: Any) -> None:
    """As shells have it, by status; anything else goes through."""

    @interruptible("; it goes on")
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
def test_commands_that_go_on_say_so(module: Any, monkeypatch: Any, capsys: Any) -> None:
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
    assert capsys.readouterr().err == "stopped; the same command goes on where this one was\n"


def test_every_command_can_be_stopped() -> None:
    """Each that is installed."""
    setup = (Path(__file__).parents[1] / "setup.py").read_text()
    commands = re.findall(r'"imitkd-\w+ = ([\w.]+):(\w+)"', setup)
    assert len(commands) >= 10
    for module, name in commands:
        assert hasattr(getattr(importlib.import_module(module), name), "__wrapped__"), module
