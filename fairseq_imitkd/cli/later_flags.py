"""Checks the flags of commands that will run later, when the data and models that they name exist."""

import contextlib
import io
import logging
import shlex
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fairseq import options
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from fairseq_imitkd.cli import evaluate, export, export_huggingface, seqkd
from fairseq_imitkd.cli.fairseq_parser import check_precision, check_texts, one_line_parsers, parse_carefully
from fairseq_imitkd.criterion import DistillationCriterion
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.method.method import Method
from fairseq_imitkd.models.pruning import check_pruning
from fairseq_imitkd.text.imported import DESCRIPTION
from fairseq_imitkd.text.subwords import SUBWORDS
from fairseq_imitkd.training.checks import check_device, check_selection
from fairseq_imitkd.training.configuration import devices, ranges, sizes, texts, trainer
from fairseq_imitkd.training.validation import check_validation

SUBWORD_FILES = tuple(dict.fromkeys(name for names in SUBWORDS.values() for name in names))


def check_training(words: Sequence[str], name: Callable[[str], str]) -> None:
    """Check the arguments of ``imitkd-train``, apart from the files and folders that they name.

    Args:
        words: the arguments.
        name: returns what an error is about.

    Raises:
        UsageError: a flag is unknown, or a value is wrong.
    """
    with _named(name), _typed(words), one_line_parsers("imitkd-train"):
        check_precision(words)
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
        _check_method(args)


def _check_method(args: Namespace) -> None:
    """Check the flags of the method and of the task that ``imitkd-train`` checks when it builds them."""
    config = convert_namespace_to_omegaconf(args)
    check_pruning(config.task)
    check_validation(config.task)
    criterion = CRITERION_REGISTRY[args.criterion]
    if issubclass(criterion, DistillationCriterion):
        method = Method(args.criterion, config.criterion, criterion.Config())
        check_device(config.task, method)
        check_selection(config.task, method)


def check_command(words: Sequence[str], name: str) -> None:
    """Check the flags of ``imitkd-seqkd``, ``imitkd-export`` or ``imitkd-evaluate``.

    Args:
        words: the command and its arguments.
        name: the key of the recipe that gives the flags, for messages.

    Raises:
        UsageError: a flag is unknown, or a value is wrong.
    """
    command = {"imitkd-seqkd": seqkd, "imitkd-export": export, "imitkd-evaluate": evaluate}[words[0]]
    # Relative paths are those of the run's folder, not of the one that the user is in.
    with _named(lambda _: name), tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
        made = command.parser()
        args = made.parse_args(list(words[1:]))
        for flag, value in vars(args).items():
            is_file = flag.endswith((*SUBWORD_FILES, "source_text", "comet_model"))
            if is_file and value is not None and not Path(value).is_absolute():
                setattr(args, flag, Path(__file__))  # a file that exists, for one that the run makes
        if (imported := getattr(args, "subwords", None)) is not None and not imported.is_absolute():
            imported.mkdir()  # the run imports the teacher there
            (imported / DESCRIPTION).touch()
        if words[0] == "imitkd-evaluate":
            args.model = [f"{model.partition('=')[0]}={__file__}" for model in args.model]
            evaluate.job_of(args, shlex.join(words))
        elif words[0] == "imitkd-seqkd":
            seqkd.job(args)
        else:
            export_huggingface.check_flags(args, made)
            if args.format == export_huggingface.FORMAT:
                args.scores = None  # of an evaluation that comes later
                export_huggingface.job_of(args)
            else:
                export.job_of(args)


@contextlib.contextmanager
def _typed(words: Sequence[str]) -> Iterator[None]:
    """Return a context in which the parser looks for misspelt flags in these words, as in a command line."""
    own, sys.argv = sys.argv, ["imitkd-train", *words]
    try:
        yield
    finally:
        sys.argv = own


@contextlib.contextmanager
def _named(name: Callable[[str], str]) -> Iterator[None]:
    """Return a context whose errors and warnings name what they are about; argparse prints none of them."""
    stderr = io.StringIO()

    def named(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        prefix = f"{name(message)}: "
        if not message.startswith(prefix):  # another handler has named it
            record.msg, record.args = f"{prefix}{message}", ()
        return True

    handlers = logging.getLogger().handlers
    try:
        for handler in handlers:
            handler.addFilter(named)
        with contextlib.redirect_stderr(stderr):
            yield
    except UsageError as error:
        raise UsageError(f"{name(str(error))}: {error}") from error
    except SystemExit as error:
        lines = stderr.getvalue().strip().splitlines() or [str(error)]
        raise UsageError(f"{name(lines[-1])}: {lines[-1].removeprefix('error: ')}") from error
    finally:
        for handler in handlers:
            handler.removeFilter(named)
