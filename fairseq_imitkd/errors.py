"""Errors that end a command with one line instead of a traceback."""

import errno
import functools
import gc
import logging
import os
import re
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, ParamSpec, TypeVar

from torch import OutOfMemoryError
from torch.multiprocessing import ProcessExitedException

Given = ParamSpec("Given")
Result = TypeVar("Result")

LONGEST = 200  # characters of a foreign exception's text
LINE = 590  # characters of an error's line after "error: "
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
        self.code = f"error: {_cut(message)}"


class RefusedStart(UsageError, RuntimeError):
    """A training that is refused in its first step, before the first update.

    It is a ``RuntimeError`` because fairseq saves the student as ``crash.pt`` after other errors of a step:
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/trainer.py#L861-L874
    """


class RefusedUpdate(RuntimeError, SystemExit):
    """A training step that would spoil the student. The student's weights are unchanged, and the run ends.

    Args:
        message: one line that names the cause and the remedy.
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.code = f"error: {_cut(message)}"


def _cut(message: str) -> str:
    """Return a message as one line, cut in its middle: names of files may be of any length."""
    message = " ".join(message.splitlines())  # the name of a file may have several
    return message if len(message) <= LINE else f"{message[: LINE - 200]} … {message[-190:]}"


def in_one_line(error: BaseException, longest: int = 300) -> str:
    """Return an error's message as one line of at most ``longest`` characters.

    An error without a message is represented by the name of its type.
    """
    if isinstance(error, UnicodeDecodeError) and error.encoding.startswith("utf"):
        return "it is not UTF-8 text"
    return _shortened(str(error), longest) or type(error).__name__


def _shortened(text: str, longest: int) -> str:
    return " ".join(text.split())[:longest]


def percent(value: float) -> str:
    """Return which share a percentage was meant to be, for the end of a message; empty for other numbers."""
    return f"; did you mean {value / 100:g}?" if 5.0 <= value < 100.0 else ""


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


class Terminated(KeyboardInterrupt):
    """SIGTERM within :func:`stoppable`."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Return a context in which SIGTERM stops a command as Ctrl-C does.

    Raises:
        Terminated: the signal came.
    """

    def stop(*_: Any) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # others may not handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def one_line_errors(
    then: str | Callable[[], str] = "",
) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Return a decorator that ends a command with one line, whatever goes wrong in it.

    - A :class:`UsageError` and a :class:`RefusedUpdate` pass; their message is the line.
    - Any other exception becomes the line ``error: ITS OWN TEXT; WHAT TO DO``, with status 1.
    - Ctrl-C prints ``stopped`` and ends with status 130, as shells do; and so, with status 143, does SIGTERM
      within :func:`stoppable`.
    - If the reader of the output has ended (``| head``), so does the command, without a word and with status
      141, as shells do.

    The command also gets the flag ``--traceback``, which shows the whole exception before the line.

    Args:
        then: text to print after ``stopped``, or what returns it.
    """

    def decorate(main: Callable[Given, Result]) -> Callable[Given, Result]:
        @functools.wraps(main)
        def run(*arguments: Given.args, **settings: Given.kwargs) -> Result:
            shown, given = _without_traceback_flag(arguments)
            stopped = ""
            with _only_our_lines(shown):
                try:
                    result = main(*given, **settings)
                    sys.stdout.flush()
                    return result
                except KeyboardInterrupt as error:
                    stopped = f"stopped{then if isinstance(then, str) else then()}"
                    end = SystemExit(143 if isinstance(error, Terminated) else 130)
                except (Exception, SystemExit) as error:
                    end = _end_of(error, shown)
                # The exception and its frames are freed here. What they log when they are deleted comes
                # before the line, which the interpreter prints at its end.
                end.__cause__, end.__context__, end.__traceback__ = None, None, None
                gc.collect()
                _flush()
                if stopped:
                    print(stopped, file=sys.stderr)
            raise end

        return run

    return decorate


def _end_of(error: Exception | SystemExit, shown: bool) -> SystemExit:
    """Return the exception that ends a command, and show the whole one if ``--traceback`` is given."""
    if isinstance(error, SystemExit) and not isinstance(error, UsageError | RefusedUpdate):
        return error
    if isinstance(error, BrokenPipeError) and _reader_has_ended():
        return SystemExit(141)
    if shown:
        traceback.print_exception(error)
    return error if isinstance(error, SystemExit) else SystemExit(f"error: {described(error)}")


def described(error: BaseException) -> str:
    """Return an exception's own text in one line, and what to do about it."""
    text = str(error)
    if "Traceback (most recent call last)" in text:  # of another process; its last line has type and message
        kind, _, text = text.strip().splitlines()[-1].partition(": ")
        if kind.startswith("fairseq_imitkd."):
            return _shortened(text, 3 * LONGEST)
    if isinstance(error, OSError) and error.errno is not None:
        text = (f"'{error.filename}': " if error.filename is not None else "") + str(error.strerror)
    text = _shortened(text, LONGEST).rstrip(".") or type(error).__name__
    if isinstance(error, LookupError | AttributeError | TypeError | ArithmeticError):
        text = f"{type(error).__name__}: {text}"  # alone, "'steps'" would say nothing
    return f"{text}; {_remedy(error, text)}"


def _remedy(error: BaseException, text: str) -> str:
    if isinstance(error, OutOfMemoryError | MemoryError) or re.search("(out of|not enough) memory", text):
        return "lower --max-tokens or --batch-size, or use a smaller model"
    if isinstance(error, ImportError):
        return "install the package, or leave out the flag that needs it"
    if isinstance(error, OSError) and error.errno in FULL:
        return "make room, and run the same command again"
    if isinstance(error, OSError) and error.filename is not None:
        return "check the path and its permissions"
    if isinstance(error, ProcessExitedException):
        return "see the lines above"
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
    gc.freeze()  # then collecting what the command leaves behind takes no time for what was there before
    if not shown:
        logging.raiseExceptions = False
        sys.unraisablehook = lambda _: None
        threading.excepthook = _warn_of_thread
    try:
        yield
    finally:
        gc.unfreeze()
        logging.raiseExceptions, sys.unraisablehook, threading.excepthook = before


def _warn_of_thread(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_value is not None and not isinstance(failed.exc_value, SystemExit):
        print(f"warning: a thread ended: {described(failed.exc_value)}", file=sys.stderr)


def _reader_has_ended() -> bool:
    """Whether standard output is a pipe that nobody reads."""
    try:
        poll = select.poll()
        poll.register(sys.stdout, 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False


def _flush() -> None:
    """Write what standard output holds. If that can't be written, it is lost: the interpreter would report it
    once more at its end.
    """
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.stdout.flush()
