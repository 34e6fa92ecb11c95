"""The one error that a user can cause: how it ends a command."""

import subprocess
import sys

import pytest

from fairseq_imitkd.errors import UsageError


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
    done = subprocess.run([sys.executable, "-I", "-c", code, str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "error: bad flag\n"
    assert done.stdout == ""
