"""fairseq's own commands with the plugin loaded: ``imitkd-train``, ``imitkd-generate``, ``imitkd-interactive``."""

import importlib
import logging
import sys
from pathlib import Path

import fairseq_imitkd


def train() -> None:
    """``fairseq-train`` with the plugin loaded, for ``--task translation_with_teacher`` unless another is given."""
    _run("fairseq_cli.train")


def generate() -> None:
    """``fairseq-generate`` likewise; decoding, the task asks for no teacher."""
    _run("fairseq_cli.generate")


def interactive() -> None:
    """``fairseq-interactive`` likewise."""
    _run("fairseq_cli.interactive")


def _run(module: str) -> None:
    """Call a fairseq command as if the user had typed the default flags that they did not type."""
    defaults = {"--user-dir": str(Path(fairseq_imitkd.__file__).parent), "--task": "translation_with_teacher"}
    typed = {argument.split("=", 1)[0] for argument in sys.argv[1:]}
    sys.argv += [word for flag, value in defaults.items() if flag not in typed for word in (flag, value)]
    # A fairseq command sets up its logging when it is imported, but only if nothing logs yet; importing the plugin made
    # some of fairseq's modules do so.
    logging.root.handlers.clear()
    importlib.import_module(module).cli_main()
