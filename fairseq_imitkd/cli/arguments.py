"""What the command lines of our own commands have in common."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Takes flags by their full names alone, and says in one line what is wrong with a command line.

    Args:
        prog: the command's name.
        description: what it does.
    """

    def __init__(self, prog: str, description: str):
        # A part of a name would mean another flag, or none, as soon as a release adds one.
        super().__init__(prog, description=description, allow_abbrev=False, formatter_class=HelpFormatter)

    def error(self, message: str) -> NoReturn:
        """End the command with status 2; the usage, dozens of lines, would hide what is wrong."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.splitlines())}; see {self.prog} --help\n")


class HelpFormatter(argparse.HelpFormatter):
    """Shows a flag's default, unless there is none to speak of or its help tells it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # Not `in`, by which 0 is False. A default of None or False says what a flag does only in words.
        silent = any(action.default is value for value in (None, False, argparse.SUPPRESS))
        if silent or not action.option_strings or action.help is None or "default" in action.help:
            return action.help
        return f"{action.help} (default: %(default)s)"


def positive(text: str) -> int:
    """The ``type`` of a flag that takes 1, 2, 3, …

    Raises:
        argparse.ArgumentTypeError: the text is no such number.
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, but is '{text}'")
    return number
