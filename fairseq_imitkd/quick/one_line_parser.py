"""A parser of command lines whose errors are one line. It imports neither torch nor fairseq."""

import argparse
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from fairseq_imitkd.quick.parser_messages import of_extras, said, unknown_words


class OneLineParser(ArgumentParser):
    """A parser that takes only full names of flags, and reports a wrong command line in one line.

    Args:
        prog: name of the command.
        settings: further arguments of :class:`argparse.ArgumentParser`.
    """

    def __init__(self, prog: str, **settings: Any):
        # An abbreviation changes its meaning when a release adds a flag.
        super().__init__(prog, allow_abbrev=False, **settings)
        self._typed: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse a command line, and remember it for :meth:`error`."""
        self._typed = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """End the command with status 2, without the usage: its dozens of lines would hide the message.

        A word that is wrong is named before one that is missing, which may be meant by it.
        """
        extras = unknown_words(self, self._typed) if "are required: " in message else []
        line = (
            of_extras(self, extras, typed=self._typed) if extras else said(self, message, typed=self._typed)
        )
        self.exit(2, f"error: {' '.join(line.split())}; see {self.prog} --help\n")


def positive(text: str) -> int:
    """Parse a whole number of 1 or more; the ``type`` of such a flag.

    Raises:
        argparse.ArgumentTypeError: the text is not such a number.
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, but is '{text}'")
    return number


_TYPES = {"int": int, "float": float, "positive": positive}
_SWITCH, _APPEND = "store_true", "append"


def described(parser: ArgumentParser) -> Iterator[dict[str, Any]]:
    """Yield the words that a parser takes, as JSON can hold them, for :func:`parser_of`."""
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            kind = getattr(action.type, "__name__", None)
            found = {
                "names": list(action.option_strings) or [action.dest],
                "required": bool(action.option_strings) and action.required,
                "action": _SWITCH if action.nargs == 0 else _APPEND if _appends(action) else None,
                "nargs": action.nargs or None,
                "type": kind if kind in _TYPES else None,
                "choices": None if action.choices is None else list(action.choices),
                "metavar": action.metavar,
            }
            yield {name: value for name, value in found.items() if value}


def _appends(action: argparse.Action) -> bool:
    return isinstance(action, argparse._AppendAction)


def parser_of(prog: str, words: Sequence[Mapping[str, Any]]) -> OneLineParser:
    """Return a parser that refuses what another one refuses, apart from what it reads of values.

    Args:
        prog: name of the command.
        words: what :func:`described` has returned of the other one.
    """
    made = OneLineParser(prog, add_help=False)
    for word in words:
        settings = {name: value for name, value in word.items() if name != "names"}
        if "type" in settings:
            settings["type"] = _TYPES[settings["type"]]
        made.add_argument(*word["names"], **settings)
    return made
