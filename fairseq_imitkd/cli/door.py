"""``imitkd COMMAND …``, and the console scripts ``imitkd-COMMAND``: the way into every command."""

import importlib
import sys
from collections.abc import Callable

from fairseq_imitkd import quick
from fairseq_imitkd.cli.warnings_shown import silence_warnings


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


def function_of(command: str) -> Callable[[], object]:
    """Return the function that runs a command."""
    module, name = ("fairseq_commands", command) if command in quick.FAIRSEQS else (command, "main")
    function: Callable[[], object] = getattr(importlib.import_module(f"fairseq_imitkd.cli.{module}"), name)
    return function
