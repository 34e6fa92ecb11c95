"""fairseq's commands with the plugin: ``imitkd-train``, ``imitkd-generate``, ``imitkd-interactive``."""

import importlib
import logging
import os
import queue
import re
import sys
import threading
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils, options, utils
from fairseq.data.iterators import BackgroundConsumer

import fairseq_imitkd
from fairseq_imitkd.checkpoints.guard import all_are_trusted
from fairseq_imitkd.checkpoints.safe_load import read_checkpoint
from fairseq_imitkd.cli import flags_of_training
from fairseq_imitkd.cli.console import Console
from fairseq_imitkd.cli.fairseq_help import ALL, TASK, all_flags, short_parser
from fairseq_imitkd.cli.fairseq_parser import (
    check_precision,
    check_texts,
    misspelt_flag,
    one_line_parsers,
    parse_carefully,
)
from fairseq_imitkd.cli.next_command import is_first_process, next_command
from fairseq_imitkd.cli.unfinished import no_trace_of_a_refusal, where_it_goes_on
from fairseq_imitkd.data.dictionaries import load_dictionary
from fairseq_imitkd.errors import UsageError, as_usage_error, one_line_errors
from fairseq_imitkd.quick.missing import ARCH, PATH
from fairseq_imitkd.rollout.policy import MAX_LEN_A, MAX_LEN_B
from fairseq_imitkd.teacher.source import check_files
from fairseq_imitkd.text import generate_scorer
from fairseq_imitkd.text.marks import subword_mark
from fairseq_imitkd.text.scores import LESS_IS_BETTER, SCORES
from fairseq_imitkd.training.configuration import check_configuration, data
from fairseq_imitkd.training.configuration.trainer import check_task
from fairseq_imitkd.training.ranks import together
from fairseq_imitkd.training.train_log import TrainLog
from fairseq_imitkd.training.validation import log_signatures, score_names

logger = logging.getLogger(__name__)


@one_line_errors(where_it_goes_on)
def train() -> None:
    """Run ``fairseq-train`` with the plugin loaded; the default task is ``translation_with_teacher``.

    Without an exception, the last line is the command that follows.
    """
    args = _run("train")
    log_signatures()
    line = next_command(args) if args is not None and is_first_process(args) else None
    if line is not None:
        print(f"Next: {line}", flush=True)


@one_line_errors()
def generate() -> None:
    """Run ``fairseq-generate`` with the plugin loaded; the task needs no teacher to decode."""
    _run("generate")


@one_line_errors()
def interactive() -> None:
    """Run ``fairseq-interactive`` with the plugin loaded."""
    _run("interactive")


def _show_help(command: str) -> None:
    """Print the help that the command line asks for, if it does, with the defaults of its method."""
    asked = {"-h", "--help", ALL} & set(sys.argv[1:])
    if not asked:
        return
    words = [word for word in sys.argv[1:] if word not in asked]
    # A name of DATA is left out, because fairseq's parser gets one.
    words = words[1:] if words and not words[0].startswith("-") else words
    with one_line_parsers(f"imitkd-{command}"):
        made = all_flags(command, words) if ALL in asked else short_parser(command, words)
    made.print_help()
    sys.exit(0)


def _with_defaults(command: str) -> list[str]:
    """Return the command line, and the default flags that the user did not type.

    A translation has the length limit and the score of the plugin's other commands.
    """
    defaults = {"--user-dir": str(Path(fairseq_imitkd.__file__).parent), **TASK}
    typed = _flags(sys.argv[1:])
    if command != "train" and not typed & {"--max-len-a", "--max-len-b"}:
        defaults.update({"--max-len-a": f"{MAX_LEN_A:g}", "--max-len-b": str(MAX_LEN_B)})
    if command == "generate" and "--sacrebleu" not in typed:
        defaults["--scoring"] = "sacrebleu"
    words = [word for flag, value in defaults.items() if flag not in typed for word in (flag, value)]
    return sys.argv[1:] + words + (_best_by_score(sys.argv[1:]) if command == "train" else [])


def _best_by_score(arguments: Sequence[str]) -> list[str]:
    """Return the flags by which the first score that the user asks for chooses the best checkpoint, in its
    direction. If the user names the metric, only the direction is added.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--eval-bleu", "--disable-validation", "--maximize-best-checkpoint-metric"):
        parser.add_argument(name, action="store_true")
    for name in ("--eval-metrics", "--best-checkpoint-metric"):
        parser.add_argument(name, nargs="?")
    args, _ = parser.parse_known_args(list(arguments))
    asked, named = score_names(args.eval_metrics, args.eval_bleu), args.best_checkpoint_metric
    if not asked or args.disable_validation:
        return []
    metric = named or SCORES[asked[0]]
    grows = metric in SCORES.values() and metric not in LESS_IS_BETTER
    direction = (
        [] if args.maximize_best_checkpoint_metric or not grows else ["--maximize-best-checkpoint-metric"]
    )
    return [*([] if named else ["--best-checkpoint-metric", metric]), *direction]


def _flags(arguments: Sequence[str]) -> set[str]:
    return {argument.split("=", 1)[0] for argument in arguments}


def _has_arch(arguments: Sequence[str]) -> bool:
    return any(re.match("--arch(=|$)|-a", argument) for argument in arguments)


def _run(name: str) -> Namespace | None:
    """Call a fairseq command as if the user had typed the default flags; return the parsed command line."""
    _show_help(name)
    words = _with_defaults(name)
    console = Console.of(name, words)
    sys.argv[1:] = words
    console.begin()  # a fairseq command configures logging when it is imported, unless something logs already
    command = importlib.import_module(f"fairseq_cli.{name}")
    if name == "train":
        TrainLog.attached()
    with (
        _readers_end(),
        together(sys.argv[1:]),
        _parsed_with_care(name) as parsed,
        console.around(command),
        no_trace_of_a_refusal() if name == "train" else nullcontext(),
    ):
        command.cli_main()
    return parsed[-1] if parsed else None


@contextmanager
def _readers_end(seconds: float = 2.0) -> Iterator[None]:
    """Return a context at whose end fairseq's threads that read batches ahead have ended.

    One that makes a batch while Python ends aborts the process, which then has a wrong exit status:
    https://github.com/python/cpython/issues/87135

    Args:
        seconds: how long to wait at most.
    """
    try:
        yield
    finally:
        deadline = time.monotonic() + seconds
        for reader in threading.enumerate():
            if isinstance(reader, BackgroundConsumer):
                reader._max_len = 0  # it ends after the batch that it makes
                while reader.is_alive() and time.monotonic() < deadline:
                    with suppress(queue.Empty):
                        reader._queue.get_nowait()  # it may wait for room
                    reader.join(0.02)


@contextmanager
def _parsed_with_care(command: str) -> Iterator[list[Namespace]]:
    """Check the whole command line before a command begins, and let ``--bf16`` work without a TPU.

    fairseq's command line takes ``--bf16`` for ``--tpu`` too, and then fails without a TPU:
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/options.py#L200-L201

    Args:
        command: ``train``, ``generate`` or ``interactive``.
    """
    parse, parsed = options.parse_args_and_arch, list[Namespace]()

    def parse_and_check(
        parser: ArgumentParser, input_args: list[str] | None = None, **settings: Any
    ) -> Namespace:
        given = sys.argv[1:] if input_args is None else input_args
        if command == "train" and not _has_arch(given):
            misspelt = misspelt_flag(parser, given)
            if misspelt is not None:
                raise UsageError(misspelt)
            raise UsageError(ARCH)
        check_precision(given)
        if command == "train":
            _check_task(given)
        # fairseq calls it before it parses, and when it has added the flags of the task and the others.
        settings["modify_parser"] = settings.get("modify_parser") or parse_carefully
        args = parse(parser, input_args, **settings)
        if utils.xm is None and "--tpu" not in sys.argv:  # no torch_xla
            args.tpu = False
        check_texts(args)
        _check(command, args)
        if command == "train":
            data.name_languages(args)
        parsed.append(args)
        return args

    options.parse_args_and_arch = parse_and_check
    # When hydra refuses a value, fairseq logs the values of all flags first.
    logged = logging.getLogger("fairseq.dataclass.utils")
    disabled, logged.disabled = logged.disabled, True
    try:
        with one_line_parsers(f"imitkd-{command}"):
            _check_user_dir()
            yield parsed
    finally:
        options.parse_args_and_arch, logged.disabled = parse, disabled


def _check_task(arguments: Sequence[str]) -> None:
    """Refuse a method with a task that has no teacher, before the parser refuses the teacher's flags."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--task", "--criterion"):
        parser.add_argument(name, nargs="?")
    args, _ = parser.parse_known_args(list(arguments))
    check_task(args.criterion, args.task)


def _check_user_dir() -> None:
    """Import the package that ``--user-dir`` names, so that its errors name the flag."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--user-dir")
    args, _ = parser.parse_known_args()
    name = f"--user-dir '{args.user_dir}'"
    if not os.path.isdir(args.user_dir or ""):
        inside = _inside_fairseq(args.user_dir)  # where fairseq itself would find it
        there = f"the one of fairseq is --user-dir {inside}" if inside else "use a Python package"
        raise UsageError(f"{name} is not a directory; {there}, or leave it out")
    with as_usage_error(f"{name} can't be imported", "mend it, or leave the flag out"):
        utils.import_user_module(args)


def _inside_fairseq(folder: str | None) -> str | None:
    """Return the path of a folder of this name beside fairseq's own code; None if there is none."""
    here = os.path.dirname(utils.__file__)
    paths = (os.path.normpath(os.path.join(here, up, folder or "")) for up in ("", ".."))
    return next((path for path in paths if folder and os.path.isdir(path)), None)


def _check(command: str, args: Namespace) -> None:
    """Check the command line, and the checkpoints that it decodes with.

    Args:
        command: ``train``, ``generate`` or ``interactive``.
        args: the parsed command line.

    Raises:
        UsageError: a flag, a directory, a split or a checkpoint can't be used.
    """
    if command != "train":
        flags_of_training.check(command, _flags(sys.argv[1:]))
    if command != "train" and not args.path:
        raise UsageError(PATH)
    dictionary = data.check(vars(args), command)
    check_configuration(vars(args), command)
    if command == "train":
        if args.task in (*data.TASKS, data.PAIRS):
            setattr(
                args, data.IGNORE, True
            )  # fairseq's own check refuses validation sets that are named, too
        return
    if (dictionary is not None or args.task in data.TASKS) and args.scoring == "sacrebleu":
        args.scoring, args.sacrebleu = generate_scorer.NAME, True
    for flag, paths in (("--path", args.path), ("--lm-path", args.lm_path)):
        if paths is None or "://" in paths:
            continue
        suffixed = (args.checkpoint_suffix, 0, args.checkpoint_shard_count)
        names = [
            checkpoint_utils.get_maybe_sharded_checkpoint_filename(path, *suffixed)
            for path in paths.split(os.pathsep)
        ]  # fmt: skip
        check_files(os.pathsep.join(names), flag, "student")
        for name in names if not all_are_trusted() else ():
            read_checkpoint(name, None, (flag, None))
    if dictionary is not None and args.bpe is None:  # --bpe joins subwords itself
        args.post_process = subword_mark(load_dictionary(dictionary), args.post_process, "--remove-bpe")
