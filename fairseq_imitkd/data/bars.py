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
        self._writes_lines = not sys.stderr.isatty()
        if self._writes_lines:
            settings.update(
                file=_Lines(sys.stderr),
                mininterval=SECONDS,
                delay=SECONDS,
                miniters=1,
                leave=False,
                ncols=100,
            )
        super().__init__(*args, **settings)

    def close(self) -> None:
        """End the bar. In a file, its last line is that of the end."""
        if self._writes_lines:
            self.leave = self.n != self.last_print_n
        super().close()


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
