"""``imitkd COMMAND …``, and the console scripts ``imitkd-COMMAND``: the way into every command."""

import importlib
import sys
from collections.abc import Callable
from typing import Any

from fairseq_imitkd import quick
from fairseq_imitkd.warnings_shown import silence_warnings


def main() -> None:
    """Run the command that the command line names."""
    answer = quick.answer(sys.argv)
    if answer is not None:
        answer.give()
    command, words = quick.split(sys.argv)
    if command is None:
        from fairseq_imitkd.cli.completion import completion

        print(completion(words[1]), end="")
        return
    sys.argv[:] = [f"imitkd-{command}", *words]
    silence_warnings(words)
    function_of(command)()


def module_of(command: str) -> Any:
    """Return the module of a command of this package."""
    name = "import_model" if command == "import" else command  # "import" is a word of Python
    return importlib.import_module(f"fairseq_imitkd.cli.{name}")


def function_of(command: str) -> Callable[[], object]:
    """Return the function that runs a command."""
    is_fairseqs = command in quick.FAIRSEQS
    module = module_of("fairseq_commands" if is_fairseqs else command)
    function: Callable[[], object] = getattr(module, command if is_fairseqs else "main")
    return function
