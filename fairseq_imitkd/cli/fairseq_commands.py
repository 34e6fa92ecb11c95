"""fairseq's commands with the plugin: ``imitkd-train``, ``imitkd-generate``, ``imitkd-interactive``."""

import importlib
import logging
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils, options, utils

import fairseq_imitkd
from fairseq_imitkd.checkpoints.guard import all_are_trusted
from fairseq_imitkd.checkpoints.safe_load import read_checkpoint
from fairseq_imitkd.data.directory import check_data, check_splits
from fairseq_imitkd.errors import UsageError, interruptible
from fairseq_imitkd.teacher.source import check_files
from fairseq_imitkd.training.ranks import together

TASKS = ("translation", "translation_with_teacher")  # tasks whose data directories are checked here


@interruptible("; the same command continues from its last checkpoint, if it has written one")
def train() -> None:
    """Run ``fairseq-train`` with the plugin loaded; the default task is ``translation_with_teacher``."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        _show_help()
    _run("fairseq_cli.train")


@interruptible()
def generate() -> None:
    """Run ``fairseq-generate`` with the plugin loaded; the task needs no teacher to decode."""
    _run("fairseq_cli.generate")


@interruptible()
def interactive() -> None:
    """Run ``fairseq-interactive`` with the plugin loaded."""
    _run("fairseq_cli.interactive")


def _show_help() -> None:
    """Show the flags of the task, criterion and architecture too, which fairseq's own help leaves out."""
    arguments = [argument for argument in _with_defaults() if argument not in ("-h", "--help")]
    typed = {argument.split("=", 1)[0] for argument in arguments}
    arguments += [] if "--criterion" in typed else ["--criterion", "imitkd"]
    arguments += [] if {"--arch", "-a"} & typed else ["--arch", "transformer"]
    seen: list[ArgumentParser] = []

    def show(parser: ArgumentParser) -> None:
        """fairseq calls this twice: before it adds the flags of the task and the others, and after."""
        seen.append(parser)
        if len(seen) > 1:
            parser.print_help()
            parser.exit()

    options.parse_args_and_arch(options.get_training_parser(), ["data", *arguments], modify_parser=show)


def _with_defaults() -> list[str]:
    """Return the command line, and the default flags that the user did not type."""
    defaults = {"--user-dir": str(Path(fairseq_imitkd.__file__).parent), "--task": "translation_with_teacher"}
    typed = {argument.split("=", 1)[0] for argument in sys.argv[1:]}
    return sys.argv[1:] + [
        word for flag, value in defaults.items() if flag not in typed for word in (flag, value)
    ]


def _run(module: str) -> None:
    """Call a fairseq command as if the user had typed the default flags."""
    sys.argv[1:] = _with_defaults()
    # A fairseq command configures logging when it is imported, unless something logs already. The import of
    # the plugin has loaded modules of fairseq that do.
    logging.root.handlers.clear()
    command = importlib.import_module(module)
    with together(sys.argv[1:]), _parsed_with_care(module.rpartition(".")[2]):
        command.cli_main()


@contextmanager
def _parsed_with_care(command: str) -> Iterator[None]:
    """Check the files that flags name before a command begins, and let ``--bf16`` work without a TPU.

    fairseq's command line takes ``--bf16`` for ``--tpu`` too, and then fails without a TPU:
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/options.py#L200-L201
    """
    parse = options.parse_args_and_arch

    def parse_and_check(*arguments: Any, **settings: Any) -> Namespace:
        args = parse(*arguments, **settings)
        if utils.xm is None and "--tpu" not in sys.argv:  # no torch_xla
            args.tpu = False
        _check(command, args)
        return args

    options.parse_args_and_arch = parse_and_check
    try:
        yield
    finally:
        options.parse_args_and_arch = parse


def _check(command: str, args: Namespace) -> None:
    """Check the files that the command line names; fairseq reports missing files by a traceback.

    Args:
        command: ``train``, ``generate`` or ``interactive``.
        args: the parsed command line.

    Raises:
        UsageError: a directory, a split or a checkpoint can't be used.
    """
    if getattr(args, "task", None) in TASKS and "://" not in (args.data or ""):
        languages = check_data(args.data, args.source_lang, args.target_lang)
        check_splits(args.data, languages, _splits(command, args), dataset_impl=args.dataset_impl)
    if command == "train":
        if args.max_tokens is None and args.batch_size is None:
            raise UsageError(
                "--max-tokens is not given; add the most tokens that a batch may hold, such as --max-tokens "
                "4096"
            )
        return
    for flag, paths in (("--path", args.path), ("--lm-path", args.lm_path)):
        if "://" in (paths or "") or (paths is None and flag == "--lm-path"):
            continue
        suffixed = (args.checkpoint_suffix, 0, args.checkpoint_shard_count)
        names = [
            checkpoint_utils.get_maybe_sharded_checkpoint_filename(path, *suffixed)
            for path in (paths or "").split(os.pathsep)
        ]  # fmt: skip
        check_files(os.pathsep.join(names), flag, "student")
        for name in names if not all_are_trusted() else ():
            read_checkpoint(name, None, (flag, None))


def _splits(command: str, args: Namespace) -> list[tuple[str, str]]:
    """Return the flags that name splits, and the splits that the command reads."""
    if command == "generate":
        return [("--gen-subset", args.gen_subset)]
    if command != "train":
        return []
    validated = [] if args.disable_validation or args.combine_valid_subsets else args.valid_subset.split(",")
    return [("--train-subset", args.train_subset), *(("--valid-subset", split) for split in validated)]
