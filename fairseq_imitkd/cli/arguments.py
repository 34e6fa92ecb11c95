"""What the command lines of our own commands have in common."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from fairseq_imitkd.data.files import kind_of
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.text.subwords import SUBWORDS, TextSettings


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


def add_subword_flags(group: Any, of: str, kinds: Sequence[str] = tuple(SUBWORDS)) -> None:
    """``--bpe`` and the flags that name its files.

    Args:
        group: of a parser.
        of: what is made subwords.
        kinds: of subwords, among :data:`~fairseq_imitkd.text.subwords.SUBWORDS`.
    """
    helps = {
        "sentencepiece_model": "file of the model of --bpe sentencepiece",
        "bpe_codes": "file of the merges of --bpe fastbpe or subword_nmt",
        "gpt2_encoder_json": "file of the symbols of --bpe gpt2",
        "gpt2_vocab_bpe": "file of the merges of --bpe gpt2",
    }
    group.add_argument(
        "--bpe", choices=list(kinds), help=f"how to make subwords of {of} (default: it is of subwords)"
    )
    for name in dict.fromkeys(name for kind in kinds for name in SUBWORDS[kind]):
        group.add_argument(_flag(name), type=Path, help=helps[name])


def text_settings(args: argparse.Namespace, tokenizer: str | None = None) -> TextSettings:
    """What the flags of :func:`add_subword_flags` ask for.

    Raises:
        UsageError: one changes nothing, is missing, or names no file.
    """
    wanted = SUBWORDS.get(args.bpe, ())
    for name in dict.fromkeys(name for names in SUBWORDS.values() for name in names):
        if getattr(args, name, None) is not None and name not in wanted:
            users = " or ".join(kind for kind, names in SUBWORDS.items() if name in names)
            raise UsageError(f"{_flag(name)} changes nothing without --bpe {users}")
    files: dict[str, Path] = {}
    for name in wanted:
        path = getattr(args, name)
        if path is None:
            raise UsageError(f"--bpe {args.bpe} needs a {_flag(name)}: give its file")
        if kind_of(path, _flag(name)) != "file":
            raise UsageError(
                f"{_flag(name)} '{path}' is no file: give the one that --bpe {args.bpe} was made with"
            )
        files[name] = path
    return TextSettings(args.bpe, files, tokenizer)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_search_flags(group: Any, beam: int | None, beam_help: str = "beam size") -> None:
    """How a translation is searched for, by fairseq-generate's names.

    Args:
        group: of a parser.
        beam: the default of ``--beam``; None leaves it to the command, whose ``beam_help`` says what it then is.
    """
    group.add_argument("--beam", type=int, default=beam, help=beam_help)
    group.add_argument(
        "--lenpen", type=float, default=1.0, help="length penalty: below 1 favours shorter translations"
    )
    group.add_argument("--max-len-a", type=float, default=0.0, help="at most A * source length + B tokens: A")
    group.add_argument("--max-len-b", type=int, default=200, help="at most A * source length + B tokens: B")
    group.add_argument("--min-len", type=int, default=1, help="least tokens")
    group.add_argument(
        "--no-repeat-ngram-size", type=int, default=0, help="no n-gram of this size comes twice (0: off)"
    )
