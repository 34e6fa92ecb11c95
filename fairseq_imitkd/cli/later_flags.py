"""Checks the flags of commands that will run later, when the data and models that they name exist."""

import contextlib
import io
import sys
from collections.abc import Iterator, Sequence

from fairseq import options

from fairseq_imitkd.cli import evaluate, export, export_huggingface, seqkd
from fairseq_imitkd.cli.fairseq_parser import check_texts, one_line_parsers, parse_carefully
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.training.configuration import devices, ranges, sizes, texts, trainer


def check_training(words: Sequence[str], name: str) -> None:
    """Check the arguments of ``imitkd-train``, apart from the files and folders that they name.

    Args:
        words: the arguments.
        name: what the training is, for messages.

    Raises:
        UsageError: a flag is unknown, or a value is wrong.
    """
    with _named(name), _typed(words), one_line_parsers("imitkd-train"):
        args = options.parse_args_and_arch(
            options.get_training_parser("translation_with_teacher"),
            list(words),
            modify_parser=parse_carefully,
        )
        check_texts(args)
        settings = vars(args)
        ranges.check(settings)
        texts.check(settings)
        sizes.check(settings)
        devices.check(settings, "train")
        trainer.check(settings)


def check_command(words: Sequence[str], name: str) -> None:
    """Check the flags of ``imitkd-seqkd``, ``imitkd-export`` or ``imitkd-evaluate``.

    Args:
        words: the command and its arguments.
        name: the key of the recipe that gives the flags, for messages.

    Raises:
        UsageError: a flag is unknown, or a value is wrong.
    """
    command = {"imitkd-seqkd": seqkd, "imitkd-export": export, "imitkd-evaluate": evaluate}[words[0]]
    with _named(name):
        made = command.parser()
        args = made.parse_args(list(words[1:]))
        if words[0] == "imitkd-export":
            export_huggingface.check_flags(args, made)


@contextlib.contextmanager
def _typed(words: Sequence[str]) -> Iterator[None]:
    """Return a context in which the parser looks for misspelt flags in these words, as in a command line."""
    own, sys.argv = sys.argv, ["imitkd-train", *words]
    try:
        yield
    finally:
        sys.argv = own


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Return a context whose errors name what they are about; argparse prints none of them."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            yield
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error
    except SystemExit as error:
        lines = stderr.getvalue().strip().splitlines() or [str(error)]
        raise UsageError(f"{name}: {lines[-1].removeprefix('error: ')}") from error
