"""fairseq's own commands with the plugin loaded: ``imitkd-train``, ``imitkd-generate``, ``imitkd-interactive``."""

import importlib
import logging
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fairseq import options, utils

import fairseq_imitkd


def train() -> None:
    """``fairseq-train`` with the plugin loaded, for ``--task translation_with_teacher`` unless another is given."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        _show_help()
    _run("fairseq_cli.train")


def generate() -> None:
    """``fairseq-generate`` likewise; decoding, the task asks for no teacher."""
    _run("fairseq_cli.generate")


def interactive() -> None:
    """``fairseq-interactive`` likewise."""
    _run("fairseq_cli.interactive")


def _show_help() -> None:
    """Every flag of the task, criterion and architecture that were typed; fairseq shows its own before it knows them."""
    arguments = [argument for argument in _with_defaults() if argument not in ("-h", "--help")]
    typed = {argument.split("=", 1)[0] for argument in arguments}
    arguments += [] if "--criterion" in typed else ["--criterion", "imitkd"]
    arguments += [] if {"--arch", "-a"} & typed else ["--arch", "transformer"]
    seen: list[ArgumentParser] = []

    def show(parser: ArgumentParser) -> None:
        """fairseq asks twice: before it adds the flags of what was typed, and after."""
        seen.append(parser)
        if len(seen) > 1:
            parser.print_help()
            parser.exit()

    options.parse_args_and_arch(options.get_training_parser(), ["data", *arguments], modify_parser=show)


def _with_defaults() -> list[str]:
    """The command line, and the default flags that the user did not type."""
    defaults = {"--user-dir": str(Path(fairseq_imitkd.__file__).parent), "--task": "translation_with_teacher"}
    typed = {argument.split("=", 1)[0] for argument in sys.argv[1:]}
    return sys.argv[1:] + [word for flag, value in defaults.items() if flag not in typed for word in (flag, value)]


def _run(module: str) -> None:
    """Call a fairseq command as if the user had typed the default flags that they did not type."""
    sys.argv[1:] = _with_defaults()
    # A fairseq command sets up its logging when it is imported, but only if nothing logs yet; importing the plugin made
    # some of fairseq's modules do so.
    logging.root.handlers.clear()
    command = importlib.import_module(module)
    with _bf16_without_tpu():
        command.cli_main()


@contextmanager
def _bf16_without_tpu() -> Iterator[None]:
    """``--bf16`` on whatever device there is: fairseq's command line takes it for ``--tpu`` as well, and dies without one."""
    parse = options.parse_args_and_arch

    def parse_without_tpu(*arguments: Any, **settings: Any) -> Namespace:
        args = parse(*arguments, **settings)
        if utils.xm is None and "--tpu" not in sys.argv:  # no torch_xla
            args.tpu = False
        return args

    options.parse_args_and_arch = parse_without_tpu
    try:
        yield
    finally:
        options.parse_args_and_arch = parse
