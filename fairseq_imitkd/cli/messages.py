"""Which of the log's messages a console shows, and in which words."""

import logging
import re
from typing import Any

from fairseq_imitkd.cli.terminal import Terminal

ONLY_IN_FILES = "only_in_files"  # attribute of a record that a terminal's bar shows already
# Libraries whose messages below a warning are for those who develop them.
_SILENT = ("fairseq", "fairseq_cli", "torch", "hydra", "matplotlib", "absl", "PIL", "numexpr")
# Messages of theirs that are shown all the same, and how; the first group or the whole text if None.
_SHOWN: dict[str, list[tuple[str, str | None]]] = {
    "fairseq_cli.train": [
        (r"num\. shared model params: ([\d,]+) .*", r"model: \1 parameters"),
        (r"early stop.*", None),
        (r"(?i)stopping training.*(stop_time_hours|minimum learning rate).*", None),
    ],
    "fairseq.tasks.translation": [
        (r".* (\S+) (\S+) 1 examples", r"data: 1 sentence of \1, \2"),
        (r".* (\S+) (\S+) (\d+) examples", r"data: \3 sentences of \1, \2"),
    ],
    "fairseq.trainer": [
        (r"Loaded checkpoint (.*) \(epoch (\d+) @ 0 updates\)", r"starts from the weights of \1"),
        (r"Loaded checkpoint (.*) \(epoch (\d+) @ (\d+) updates\)", r"continues \1 after \3 updates"),
        (r"(NOTE: gradient overflow.*)", None),
    ],
    "fairseq_cli.generate": [(r"Translated .*", None)],
    "fairseq_cli.interactive": [(r"Type the input sentence.*", None), (r"Total time.*", None)],
    "fairseq.logging.progress_bar": [(r"(?s).*", None)],
}


def shown_text(record: logging.LogRecord) -> str | None:
    """Return what a console shows of a message; None if it does not show it."""
    text = record.getMessage()
    if record.levelno >= logging.WARNING or record.name.partition(".")[0] not in _SILENT:
        return text
    for pattern, words in _SHOWN.get(record.name, ()):
        found = re.fullmatch(pattern, text)
        if found:
            return text if words is None else found.expand(words)
    return None


def show_warnings() -> None:
    """Print warnings alone, as ``warning: TEXT``."""
    handler = logging.StreamHandler()
    handler.setFormatter(_WithLevel())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


class _WithLevel(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {super().format(record)}"


class PlainMessages(logging.StreamHandler):
    """Writes messages with the time to a file, a pipe or a simple terminal."""

    def __init__(self, stream: Any):
        super().__init__(stream)
        self.addFilter(lambda record: shown_text(record) is not None)

    def format(self, record: logging.LogRecord) -> str:
        """Return a message with the time, and with its level if it is a warning or an error."""
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        time = logging.Formatter(datefmt="%Y-%m-%d %H:%M:%S").formatTime(record, "%Y-%m-%d %H:%M:%S")
        return f"{time} | {level}{shown_text(record)}{_traceback(record)}"


class TerminalMessages(logging.Handler):
    """Prints messages above the bars of a terminal."""

    def __init__(self, terminal: Terminal):
        super().__init__()
        self._terminal = terminal
        self.addFilter(lambda record: shown_text(record) is not None and not hasattr(record, ONLY_IN_FILES))

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message; warnings in yellow, and coloured text as it is."""
        from rich.text import Text

        try:
            text = Text()
            if record.levelno >= logging.WARNING:
                text.append(f"{record.levelname.lower()}: ", "yellow")
            for words, style in getattr(record, "coloured", [(shown_text(record) or "", "")]):
                text.append(words, style)
            text.append(_traceback(record))
            self._terminal.console.print(text, soft_wrap=True)
        except Exception:
            self.handleError(record)


def _traceback(record: logging.LogRecord) -> str:
    return "\n" + logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
