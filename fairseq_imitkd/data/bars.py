"""Progress of long work: tqdm's bar on a terminal, and a line now and then in files and pipes."""

import sys
from typing import Any, TextIO

from tqdm import tqdm

SECONDS = 30.0  # between two lines


class Bar(tqdm):
    """A bar of tqdm. Where standard error is not a terminal, it writes lines, the first one after
    :data:`SECONDS`, so short work writes none.

    The arguments are tqdm's.
    """

    def __init__(self, *args: Any, **settings: Any):
        if not sys.stderr.isatty():
            settings.update(
                file=_Lines(sys.stderr),
                mininterval=SECONDS,
                delay=SECONDS,
                miniters=1,
                leave=True,  # so the last line is not that of 80%
                ncols=100,
            )
        super().__init__(*args, **settings)


class _Lines:
    """A file for tqdm, whose every state becomes a line; tqdm moves the cursor instead.

    Args:
        stream: where the lines go.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> None:
        """Write a state without the moves of the cursor."""
        if text.strip():
            self._stream.write(f"{text.strip()}\n")

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()
