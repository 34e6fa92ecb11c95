"""Errors that end a command with one line instead of a traceback."""

import errno
import functools
import logging
import os
import re
import select
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, ParamSpec, TypeVar

from torch import OutOfMemoryError

Given = ParamSpec("Given")
Result = TypeVar("Result")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # numbers of OSErrors of a full disk


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


def one_line_errors(then: str = "") -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Return a decorator that ends a command with one line, whatever goes wrong in it.

    - A :class:`UsageError` and a :class:`RefusedUpdate` pass; their message is the line.
    - Any other exception becomes the line ``error: ITS OWN TEXT; WHAT TO DO``, with status 1.
    - Ctrl-C prints ``stopped`` and ends with status 130, as shells do.
    - If the reader of the output has ended (``| head``), so does the command, without a word and with status
      141, as shells do.

    The command also gets the flag ``--traceback``, which shows the whole exception before the line.

    Args:
        then: text to print after ``stopped``.
    """

    def decorate(main: Callable[Given, Result]) -> Callable[Given, Result]:
        @functools.wraps(main)
        def run(*arguments: Given.args, **settings: Given.kwargs) -> Result:
            shown, given = _without_traceback_flag(arguments)
            try:
                with _only_our_lines(shown):
                    result = main(*given, **settings)
                    sys.stdout.flush()
                    return result
            except KeyboardInterrupt:
                end: SystemExit = SystemExit(130)
                print(f"stopped{then}", file=sys.stderr)
            except SystemExit as error:
                end = error
                _show(error, shown and isinstance(error, UsageError | RefusedUpdate))
            except Exception as error:
                end = SystemExit(f"error: {described(error)}")
                if isinstance(error, BrokenPipeError) and _reader_has_ended():
                    end = SystemExit(141)
                else:
                    _show(error, shown)
            # The exception and its frames are freed here, so what they log when they are deleted comes before
            # the line, which the interpreter prints at its end.
            end.__cause__, end.__context__, end.__traceback__ = None, None, None
            _flush()
            raise end

        return run

    return decorate


def described(error: BaseException) -> str:
    """Return an exception's own text in one line, and what to do about it."""
    text = str(error)
    if "Traceback (most recent call last)" in text:  # of another process, which ends in type and message
        text = re.sub(r"^[\w.]+: ", "", text.strip().splitlines()[-1])
    text = in_one_line(Exception(text)) if text.strip() else type(error).__name__
    if isinstance(error, OSError) and error.errno is not None:
        named = f"'{error.filename}': " if error.filename is not None else ""
        text = in_one_line(Exception(f"{named}{error.strerror}"))
    elif isinstance(error, LookupError | AttributeError | TypeError | ArithmeticError):
        text = f"{type(error).__name__}: {text}"  # alone, "'steps'" would say nothing
    return f"{text.rstrip('.')}; {_remedy(error, text)}"


def _remedy(error: BaseException, text: str) -> str:
    if isinstance(error, OutOfMemoryError | MemoryError) or re.search("(out of|not enough) memory", text):
        return "lower --max-tokens or --batch-size, or use a smaller model"
    if isinstance(error, OSError) and error.errno in FULL:
        return "make room, and run the same command again"
    if isinstance(error, OSError) and error.filename is not None:
        return "check the path and its permissions"
    return "check the flags and files; --traceback shows where it happened"


def _without_traceback_flag(arguments: tuple[Any, ...]) -> tuple[bool, tuple[Any, ...]]:
    """Return whether ``--traceback`` is given, and the arguments of ``main`` without it."""
    given = arguments[0] if arguments and isinstance(arguments[0], list) else None
    words = sys.argv[1:] if given is None else given
    others = [word for word in words if word != "--traceback"]
    if len(others) == len(words):
        return False, arguments
    if given is None:
        sys.argv[1:] = others
        return True, arguments
    return True, (others, *arguments[1:])


@contextmanager
def _only_our_lines(shown: bool) -> Iterator[None]:
    """Keep Python from printing tracebacks of its own: of log lines that can't be written, and of objects and
    threads that fail when they end.
    """
    before = logging.raiseExceptions, sys.unraisablehook, threading.excepthook
    if not shown:
        logging.raiseExceptions = False
        sys.unraisablehook = lambda _: None
        threading.excepthook = _warn_of_thread
    try:
        yield
    finally:
        logging.raiseExceptions, sys.unraisablehook, threading.excepthook = before


def _warn_of_thread(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_value is not None and not isinstance(failed.exc_value, SystemExit):
        print(f"warning: a thread ended: {described(failed.exc_value)}", file=sys.stderr)


def _show(error: BaseException, shown: bool) -> None:
    if shown:
        traceback.print_exception(error)


def _reader_has_ended() -> bool:
    """Whether standard output is a pipe that nobody reads. Nothing more is written to it then."""
    try:
        poll = select.poll()
        poll.register(sys.stdout, 0)
        ended = any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False
    if ended:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ended


def _flush() -> None:
    with suppress(OSError, ValueError):
        sys.stdout.flush()
