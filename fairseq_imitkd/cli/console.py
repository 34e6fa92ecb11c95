"""What ``imitkd-train``, ``imitkd-generate`` and ``imitkd-interactive`` show while they work.

fairseq prints its settings, the model and some forty lines before the first update. Here it prints what a
user reads: a bar on a terminal, a line now and then elsewhere, scores and warnings. ``--log-format`` and
``--verbose`` bring back fairseq's own lines.
"""

import functools
import importlib
import logging
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import progress_bar
from omegaconf import DictConfig

from fairseq_imitkd.cli.messages import PlainMessages, TerminalMessages
from fairseq_imitkd.cli.progress import Progress, bars_of
from fairseq_imitkd.cli.terminal import Terminal
from fairseq_imitkd.warnings_shown import VERBOSE, silence_warnings

_stock_mains: dict[str, Callable[..., Any]] = {}  # fairseq's own functions, while ours stand in for them


@dataclass(frozen=True)
class Console:
    """How a command uses its console.

    Args:
        command: ``train``, ``generate`` or ``interactive``.
        verbose: show everything that fairseq shows, and every warning.
        stock: let fairseq format its lines and draw its bars.
    """

    command: str
    verbose: bool
    stock: bool

    @classmethod
    def of(cls, command: str, words: list[str]) -> "Console":
        """Return the console that a command line asks for, and take :data:`VERBOSE` out of it.

        Args:
            command: name of the command.
            words: the command line without the command; it is changed.
        """
        verbose = VERBOSE in words
        words[:] = [word for word in words if word != VERBOSE]
        formatted = any(re.match("--log-format(=|$)", word) for word in words)
        return cls(command, verbose, verbose or formatted)

    @contextmanager
    def around(self, module: Any) -> Iterator[None]:
        """Return a context in which fairseq's command uses this console, in the processes that it starts too.

        Args:
            module: module of fairseq's command.
        """
        stock = module.main
        _stock_mains[self.command] = stock
        module.main = functools.partial(run_main, self)  # fairseq pickles it for the processes that it starts
        try:
            yield
        finally:
            module.main = stock
            del _stock_mains[self.command]

    def begin(self) -> None:
        """Let messages of this process go where they belong; fairseq adds no handler if there is one."""
        if not self.verbose:
            silence_warnings()
        logging.root.handlers.clear()
        if not self.stock:
            logging.root.setLevel(os.environ.get("LOGLEVEL", "INFO").upper())
            for handler in self._handlers():
                logging.root.addHandler(handler)
        logger = logging.getLogger(f"fairseq_cli.{self.command}")
        (logger.removeFilter if self.verbose else logger.addFilter)(_is_short)

    def _handlers(self) -> list[logging.Handler]:
        """Return the handlers of a terminal, and of the file or pipe beside it."""
        handlers: list[logging.Handler] = []
        if self.drawn_on_terminal:
            handlers.append(TerminalMessages(Terminal.of_process()))
        # Translations have standard output to themselves.
        stream = sys.stdout if self.command == "train" else sys.stderr
        if not stream.isatty() or not handlers:
            handlers.append(PlainMessages(stream))
        return handlers

    @property
    def drawn_on_terminal(self) -> bool:
        """Whether standard error is a terminal on which a bar can be drawn."""
        return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def draws(self, cfg: DictConfig) -> bool:
        """Whether a bar is drawn: not over translations that go to the terminal, perhaps through a pipe."""
        if not self.drawn_on_terminal or cfg.common.no_progress_bar:
            return False
        if self.command == "train":
            return True
        hidden = cfg.common_eval.quiet or cfg.common_eval.results_path is not None
        return hidden or _is_file(sys.stdout)


def run_main(console: Console, cfg: Any, **settings: Any) -> Any:
    """Run the main function of a fairseq command with its console; it stands in for fairseq's own.

    Args:
        console: how the command uses its console.
        cfg: fairseq's configuration.
        settings: passed to fairseq's function.
    """
    main = _stock_mains.get(console.command)
    if main is None:  # in a process that fairseq has started
        main = importlib.import_module(f"fairseq_cli.{console.command}").main
        console.begin()
    if isinstance(cfg, Namespace):
        cfg = convert_namespace_to_omegaconf(cfg)
    if console.stock or cfg.distributed_training.distributed_rank:
        return main(cfg, **settings)
    with ExitStack() as shown:
        terminal = shown.enter_context(Terminal.of_process().opened()) if console.draws(cfg) else None
        progress = Progress(cfg, console.command, terminal)
        shown.enter_context(_drawing(progress))
        result = main(cfg, **settings)
        progress.done()
        return result


@contextmanager
def _drawing(progress: Progress) -> Iterator[None]:
    """Return a context in which fairseq's progress bars are those of ``progress``.

    fairseq's function makes a bar by the ``--log-format``, and wraps it for TensorBoard and others. The bar
    of the format ``none`` is replaced, so these wrappers stay.
    """
    make, stock = progress_bar.progress_bar, progress_bar.NoopProgressBar

    @functools.wraps(make)
    def make_ours(*args: Any, **settings: Any) -> Any:
        if progress.has_log_file:
            settings["log_file"] = None  # fairseq would add the file again for every bar
        progress.has_log_file = progress.has_log_file or bool(settings.get("log_file"))
        return make(*args, **{**settings, "log_format": "none"})

    progress_bar.progress_bar, progress_bar.NoopProgressBar = make_ours, bars_of(progress)
    try:
        yield
    finally:
        progress_bar.progress_bar, progress_bar.NoopProgressBar = make, stock


def _is_short(record: logging.LogRecord) -> bool:
    """Whether a message is neither fairseq's whole configuration nor a model."""
    return not isinstance(record.msg, DictConfig | torch.nn.Module)


def _is_file(stream: Any) -> bool:
    try:
        return os.path.isfile(f"/dev/fd/{stream.fileno()}")
    except (OSError, ValueError):
        return False
