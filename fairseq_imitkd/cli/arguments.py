"""What the command lines of this package's own commands have in common."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fairseq_imitkd.data.files import kind_of
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.huggingface.subwords import files_of
from fairseq_imitkd.quick.one_line_parser import OneLineParser, positive
from fairseq_imitkd.rollout.policy import (
    FAIRSEQ_MAX_LEN_A,
    FAIRSEQ_MAX_LEN_B,
    MAX_LEN_A,
    MAX_LEN_B,
    length_limit,
)
from fairseq_imitkd.text.subwords import IMPORTED, SUBWORDS, TextSettings

__all__ = ["Parser", "positive"]

# Help of flags that several commands have.
TEACHER_DATA = (
    "folder with the dictionaries that the teacher was trained with (default: the checkpoint's folder, then "
    "the data folder that the checkpoint names)"
)
TEACHER_ALLOW_POOR = (
    "go on although the teacher does not seem to know the data: it predicts the first references worse than "
    "symbol frequencies do, or hardly better from their own sources than from other ones"
)


class Parser(OneLineParser):
    """A parser that takes only full names of flags, and reports a wrong command line in one line.

    Args:
        prog: name of the command.
        description: what the command does.
    """

    def __init__(self, prog: str, description: str):
        super().__init__(prog, description=description, formatter_class=HelpFormatter)
        add_traceback_flag(self)


def up_to(most: int) -> Callable[[str], int]:
    """Return the ``type`` of a flag that takes a whole number from 1 to ``most``."""

    def parsed(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = 0
        if not 1 <= number <= most:
            raise argparse.ArgumentTypeError(
                f"must be a whole number from 1 to {most:,}, but is '{text:.60}'"
            )
        return number

    return parsed


def add_traceback_flag(parser: Any) -> None:
    """Show ``--traceback`` in the help; :func:`~fairseq_imitkd.errors.one_line_errors` reads the flag."""
    parser.add_argument(
        "--traceback",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the whole exception before the line of an error",
    )


def add_verbose_flag(parser: Any) -> None:
    """Show ``--verbose`` in the help; :class:`~fairseq_imitkd.cli.console.Console` reads the flag."""
    parser.add_argument(
        "--verbose",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show all that fairseq shows: its settings, the model, every message and warning",
    )


class HelpFormatter(argparse.HelpFormatter):
    """Shows the default of each flag, unless it is None or False or the help text already has it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # `in` would compare by equality, and 0 equals False.
        silent = any(action.default is value for value in (None, False, argparse.SUPPRESS))
        silent = silent or action.default in ([], (), "")
        if silent or not action.option_strings or action.help is None or "default" in action.help:
            return action.help
        return f"{action.help} (default: %(default)s)"


def add_checkpoint_flags(made: Any) -> None:
    """Add the flags of a command that reads one CHECKPOINT: its languages, and types of its file."""
    for flags, which in ((("-s", "--source-lang"), "source"), (("-t", "--target-lang"), "target")):
        made.add_argument(*flags, help=f"{which} language (default: that of CHECKPOINT)")
    made.add_argument(
        "--allow-globals",
        metavar="NAMES",
        help="types that CHECKPOINT may hold besides fairseq's own: module.name,… (for files that you trust)",
    )


def add_subword_flags(
    group: Any, of: str, kinds: Sequence[str] = tuple(SUBWORDS), *, prefix: str = ""
) -> None:
    """Add ``--bpe`` and the flags that name its files.

    Args:
        group: a parser, or a group of one.
        of: the text that is split into subwords.
        kinds: kinds of subwords, among :data:`~fairseq_imitkd.text.subwords.SUBWORDS`.
        prefix: what the names of the flags begin with, after the dashes.
    """
    helps = {
        "sentencepiece_model": f"model file for --{prefix}bpe sentencepiece",
        "bpe_codes": f"file of merges for --{prefix}bpe fastbpe or subword_nmt",
        "gpt2_encoder_json": f"file of symbols for --{prefix}bpe gpt2",
        "gpt2_vocab_bpe": f"file of merges for --{prefix}bpe gpt2",
    }
    group.add_argument(
        f"--{prefix}bpe",
        choices=list(kinds),
        help=f"how to split {of} into subwords (default: it consists of subwords already)",
    )
    for name in dict.fromkeys(name for kind in kinds for name in SUBWORDS[kind]):
        group.add_argument(_flag(name, prefix), type=Path, help=helps[name])


def add_imported_flag(group: Any) -> None:
    """Add ``--subwords``, the folder of an imported model, to the group of ``--bpe``."""
    group.add_argument(
        "--subwords",
        metavar="FOLDER",
        type=Path,
        help="folder of imitkd-import or imitkd-trim with which imitkd-encode split the text of --data, in "
        "place of --bpe",
    )


def text_settings(
    args: argparse.Namespace, tokenizer: str | None = None, *, prefix: str = ""
) -> TextSettings:
    """Return the settings that :func:`add_subword_flags` and :func:`add_imported_flag` describe.

    Args:
        args: the parsed flags.
        tokenizer: the tokeniser; None is none.
        prefix: as for :func:`add_subword_flags`.

    Raises:
        UsageError: a flag changes nothing, is missing, or does not name a file.
    """
    given = {_flag(name): value for name, value in vars(args).items()}
    bpe, flag = given[f"--{prefix}bpe"], f"--{prefix}bpe"
    folder = None if prefix else given.get("--subwords")
    if folder is not None and (bpe is not None or tokenizer is not None):
        raise UsageError("--subwords and --bpe or --tokenizer both say how text is split; use one of them")
    wanted = SUBWORDS.get(bpe, ())
    for name in dict.fromkeys(name for names in SUBWORDS.values() for name in names):
        if given.get(_flag(name, prefix)) is not None and name not in wanted:
            users = " or ".join(kind for kind, names in SUBWORDS.items() if name in names)
            raise UsageError(
                f"{_flag(name, prefix)} changes nothing without {flag} {users}; add it, or leave this out"
            )
    if folder is not None:
        return TextSettings(IMPORTED, files_of(folder, "--subwords"))
    files: dict[str, Path] = {}
    for name in wanted:
        path = given[_flag(name, prefix)]
        if path is None:
            raise UsageError(f"{flag} {bpe} needs {_flag(name, prefix)}; add it")
        if kind_of(path, _flag(name, prefix)) != "file":
            raise UsageError(
                f"{_flag(name, prefix)} '{path}' is not a file; use the file that {flag} {bpe} was made with"
            )
        files[name] = path
    return TextSettings(bpe, files, tokenizer)


def add_remove_bpe_flag(group: Any, what: str) -> None:
    """Add ``--remove-bpe``, which may stand alone, as in fairseq.

    Args:
        group: a parser, or a group of one.
        what: what the flag does, for the help.
    """
    group.add_argument(
        "--remove-bpe",
        nargs="?",
        const="@@ ",
        metavar="MARK",
        help=f"{what}, by fairseq's name: sentencepiece, '@@ ', … or none (default: auto, those of the "
        "dictionary; alone: '@@ ')",
    )


def _flag(name: str, prefix: str = "") -> str:
    return f"--{prefix}{name.replace('_', '-')}"


def add_search_flags(group: Any, beam: int | None, beam_help: str = "beam size") -> None:
    """Add the flags of the search, by fairseq-generate's names.

    Args:
        group: a parser, or a group of one.
        beam: default of ``--beam``; None leaves it to the command.
        beam_help: help of ``--beam``; it says what the default is if ``beam`` is None.
    """
    group.add_argument("--beam", type=int, default=beam, help=beam_help)
    group.add_argument(
        "--lenpen", type=float, default=1.0, help="length penalty; values below 1 favour shorter translations"
    )
    group.add_argument(
        "--max-len-a",
        type=float,
        help="a translation has at most A * source length + B tokens; this is A "
        f"(default: {MAX_LEN_A:g}; {FAIRSEQ_MAX_LEN_A:g} if only --max-len-b is given)",
    )
    group.add_argument(
        "--max-len-b",
        type=int,
        help="a translation has at most A * source length + B tokens; this is B "
        f"(default: {MAX_LEN_B}; {FAIRSEQ_MAX_LEN_B} if only --max-len-a is given)",
    )
    group.add_argument("--min-len", type=int, default=1, help="fewest tokens of a translation")
    group.add_argument(
        "--no-repeat-ngram-size",
        type=int,
        default=0,
        help="forbid that an n-gram of this size occurs twice (0: off)",
    )


def search_limits(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the search that limit a translation's length and repetition, from the flags of
    :func:`add_search_flags`.
    """
    max_len_a, max_len_b = length_limit(args.max_len_a, args.max_len_b)
    return {
        "max_len_a": max_len_a,
        "max_len_b": max_len_b,
        "min_len": args.min_len,
        "no_repeat_ngram_size": args.no_repeat_ngram_size,
    }
