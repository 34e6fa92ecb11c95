"""Errors that end a command with one line instead of a traceback."""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from torch import OutOfMemoryError

Given = ParamSpec("Given")
Result = TypeVar("Result")


class UsageError(ValueError, SystemExit):
    """A flag, a file or a combination of flags that can't work.

    It is a ``ValueError``, so callers of the library can catch it. It is also a ``SystemExit``, so every
    command, including fairseq's own, ends with its message and status 1. To turn other exceptions into this
    one, use :func:`as_usage_error`.

    Args:
        message: one line that names the flag or file, its value, what it must be, and the remedy.
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.code = f"error: {message}"


class RefusedUpdate(RuntimeError, SystemExit):
    """A training step that would spoil the student. The student's weights are unchanged, and the run ends.

    Args:
        message: one line that names the cause and the remedy.
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.code = f"error: {message}"


def in_one_line(error: BaseException, longest: int = 300) -> str:
    """Return an error's message as one line of at most ``longest`` characters.

    An error without a message is represented by the name of its type.
    """
    return " ".join(str(error).split())[:longest] or type(error).__name__


@contextmanager
def as_usage_error(
    problem: str, remedy: str = "", *, catch: type[Exception] | tuple[type[Exception], ...] = Exception
) -> Iterator[None]:
    """Turn an exception of the enclosed code into a :class:`UsageError`: ``PROBLEM: MESSAGE; REMEDY``.

    A ``UsageError`` passes unchanged, and so does torch's ``OutOfMemoryError``, whose remedy is another one.
    Ctrl-C is not an ``Exception`` and passes too.

    Args:
        problem: what can't be used, with its flag and value.
        remedy: what to do instead; empty if the message of the exception says enough.
        catch: types to turn into a ``UsageError``; others pass.

    Raises:
        UsageError: the enclosed code raised one of these types.
    """
    try:
        yield
    except (UsageError, OutOfMemoryError):
        raise
    except catch as error:
        detail = f"it lacks {in_one_line(error)}" if isinstance(error, KeyError) else in_one_line(error)
        raise UsageError(f"{problem}: {detail}" + (f"; {remedy}" if remedy else "")) from error


def interruptible(then: str = "") -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Return a decorator that lets Ctrl-C end a command with one line and status 130, as shells do.

    Args:
        then: text to print after ``stopped``.
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
