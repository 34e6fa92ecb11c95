"""The shell scripts of ``examples/`` and ``benchmarks/``, with commands that start at once."""

import os
import subprocess
from pathlib import Path

from tests.helpers import warm_commands
from tests.helpers.digit_corpus import BIN, REPO

EXAMPLES = REPO / "examples"


def environment(run: Path, real: bool = False, **variables: str) -> dict[str, str]:
    """Return the environment of a script.

    Args:
        run: the script's ``RUN``: the folder for everything it makes.
        real: every command is a new Python, not a fork of a process that has imported the package.
        variables: further variables of the environment.
    """
    commands = BIN if real else warm_commands.folder()
    return {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "BIN": str(commands),
        "RUN": str(run),
        "DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        **variables,
    }


def call(
    script: Path, *arguments: str, env: dict[str, str], timeout: int = 900
) -> subprocess.CompletedProcess[str]:
    """Run a script in bash and capture its output."""
    return subprocess.run(
        ["bash", str(script), *arguments], env=env, capture_output=True, text=True, timeout=timeout
    )
