"""``train.log``: the messages of a training in its ``--save-dir``, whatever the console shows."""

import logging
from contextlib import suppress
from pathlib import Path
from typing import TextIO

LOG = "train.log"
MOST_KEPT = 1000  # messages before the folder is known; a process that writes no file keeps no more


class TrainLog(logging.Handler):
    """Keeps the messages of every logger until the training begins, and then writes them into a file.

    A training that is refused leaves no file. The file ends with the process, or when the next training of
    the process begins. A message that can't be written is dropped: a full disk costs
    no training.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s | %(levelname)s | %(name)s | %(message)s", "%F %T"))
        self._kept: list[str] = []
        self._file: TextIO | None = None

    @classmethod
    def attached(cls) -> "TrainLog":
        """Return the handler of this process's root logger; the first call adds it."""
        for handler in logging.root.handlers:
            if isinstance(handler, cls):
                return handler
        made = cls()
        logging.root.addHandler(made)
        return made

    def begin(self, folder: Path, *, continues: bool) -> None:
        """Write into a training's folder from now on, and what was kept first.

        Args:
            folder: the folder, which exists.
            continues: whether the training goes on from a checkpoint. Then the file is continued. It keeps
                what a killed run wrote after that checkpoint, because it is a log by time.

        Raises:
            OSError: the file can't be written.
        """
        self._end_file()
        with open(folder / LOG, "a" if continues else "w", encoding="utf-8", errors="replace") as file:
            file.writelines(self._kept)
        self._kept = []
        self._file = open(folder / LOG, "a", encoding="utf-8", errors="replace")  # noqa: SIM115

    def emit(self, record: logging.LogRecord) -> None:
        """Write or keep a message."""
        line = f"{self.format(record)}\n"
        if self._file is not None:
            with suppress(OSError):
                self._file.write(line)
                self._file.flush()
        elif len(self._kept) < MOST_KEPT:
            self._kept.append(line)

    def close(self) -> None:
        """End the file, and take no more messages. Without this call the process's end does it."""
        logging.root.removeHandler(self)
        self._end_file()
        super().close()

    def _end_file(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None
