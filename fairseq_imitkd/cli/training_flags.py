"""Checks the flags of a training that will run later, when its data and its teacher exist."""

import contextlib
import io
from collections.abc import Sequence

from fairseq import options

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
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr), one_line_parsers("imitkd-train"):
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
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error
    except SystemExit as error:
        lines = stderr.getvalue().strip().splitlines() or [str(error)]
        raise UsageError(f"{name}: {lines[-1].removeprefix('error: ')}") from error
