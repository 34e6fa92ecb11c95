"""The terminal: bars at its foot, and messages above them, drawn by rich."""

import functools
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

REDRAWN_EVERY = 0.2  # seconds


class Terminal:
    """Draws on standard error.

    Nothing is drawn by a thread: its locks could be held when the data loader forks.

    Attributes:
        console: rich's console, for messages.
    """

    def __init__(self) -> None:
        from rich.console import Console  # loads in a fifth of a second, and only terminals need it

        self.console = Console(file=sys.stderr, highlight=False)
        self._bars: Any = None
        self._drawn = 0.0

    @classmethod
    @functools.cache
    def of_process(cls) -> "Terminal":
        """Return the terminal of this process."""
        return cls()

    @contextmanager
    def opened(self) -> Iterator["Terminal"]:
        """Return a context in which bars can be drawn. They are gone at its end."""
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[left]}", style="progress.remaining"),
            TextColumn("{task.fields[values]}", style="cyan"),
        )
        self._bars = Bars(
            *columns,
            console=self.console,
            auto_refresh=False,
            transient=True,
            expand=True,
            redirect_stdout=sys.stdout.isatty(),
        )
        try:
            with self._bars:
                self.console.show_cursor(True)  # a process that is killed could not bring it back
                yield self
        finally:
            self._bars = None

    def begin(self, description: str, total: float | None) -> int:
        """Add a bar.

        Args:
            description: what is done.
            total: its length; None if unknown.

        Returns:
            the bar, for :meth:`show`.
        """
        bar: int = self._bars.add_task(description, total=total, count="", left="", values="")
        self._draw()
        return bar

    def show(self, bar: int, done: float, **texts: str) -> None:
        """Move a bar.

        Args:
            bar: a result of :meth:`begin`.
            done: how far it is.
            texts: ``description``, ``count``, ``left`` and ``values``.
        """
        self._bars.update(bar, completed=done, **texts)
        if time.monotonic() - self._drawn >= REDRAWN_EVERY:
            self._draw()

    def end(self, bar: int) -> None:
        """Remove a bar."""
        if self._bars is not None:
            self._bars.remove_task(bar)
            self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        self._bars.refresh()
