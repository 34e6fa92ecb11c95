"""What ends a run with one line instead of a traceback."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Result = TypeVar("Result")


class UsageError(ValueError, SystemExit):
    """A flag, file or combination that cannot work: one line that names it, its value and the remedy.

    It is a ``ValueError`` for callers that catch it, and a ``SystemExit`` so that every command, fairseq's own
    included, ends with this one line instead of a traceback that hides it.
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.code = f"error: {message}"


class RefusedUpdate(RuntimeError, SystemExit):
    """A training step that would spoil the student. Its weights are as they were; the run ends with this one line."""

    def __init__(self, message: str):
        super().__init__(message)
        self.code = f"error: {message}"


def in_one_line(error: BaseException, longest: int = 300) -> str:
    """The error's message as one line of at most ``longest`` characters; its type's name if it has no message."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


def interruptible(then: str = "") -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Let Ctrl-C end a command with one line, and with status 130 as shells have it.

    Args:
        then: what may be said beside ``stopped``.
    """

    def decorate(main: Callable[Given, Result]) -> Callable[Given, Result]:
        @functools.wraps(main)
        def run(*arguments: Given.args, **settings: Given.kwargs) -> Result:
            try:
                return main(*arguments, **settings)
            except KeyboardInterrupt:
                print(f"stopped{then}", file=sys.stderr)
                raise SystemExit(130) from None

        return run

    return decorate
