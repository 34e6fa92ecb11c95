"""How far a training or a translation is: a bar on a terminal, and a line now and then for files."""

import datetime
import logging
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from fairseq.logging import metrics, progress_bar
from fairseq.logging.meters import MetersDict
from omegaconf import DictConfig

from fairseq_imitkd.cli.messages import ONLY_IN_FILES
from fairseq_imitkd.cli.terminal import Terminal
from fairseq_imitkd.text.scores import SCORES
from fairseq_imitkd.training.run_files import updates_so_far

# The first line comes after this many seconds; from then on one comes after a tenth of the time so far.
SHORTEST, SHARE, LONGEST = 10.0, 0.1, 300.0
DEFAULT_INTERVAL = 100  # fairseq's --log-interval: a user who types another one wants lines then
# Metrics of a training that a line shows, by fairseq's names and ours; the first two fit on a bar, too.
_TRAINING = {
    "loss": "loss {:.3f}",
    "student_share": "rollouts {:.0%}",
    "agreement": "agreement {:.0%}",
    "reward": "reward {:.3f}",
    "sparsity": "sparsity {:.0%}",
}
_ON_BAR = 2
_VALIDATION = ("accuracy", *SCORES.values(), "loss", "ppl")

logger = logging.getLogger("fairseq.logging.progress_bar")  # fairseq's --log-file gets its messages


class Progress:
    """What fairseq's progress bars of one command share: the terminal, the time, and the last score.

    Args:
        cfg: fairseq's configuration.
        command: ``train``, ``generate`` or ``interactive``.
        terminal: where bars are drawn; None draws none.

    Attributes:
        has_log_file: whether fairseq has opened its ``--log-file``.
    """

    def __init__(self, cfg: DictConfig, command: str, terminal: Terminal | None):
        self.cfg, self.terminal = cfg, terminal
        self.has_log_file = False
        self._trains = command == "train"
        self._start = self._said = time.monotonic()
        self._training: _Training | None = None
        self._score = ""

    def training(self, epoch: int, updates: int, done: int) -> "_Training":
        """Return the progress of the training, when an epoch begins.

        Args:
            epoch: number of the epoch, from 1.
            updates: number of its updates.
            done: number of those that are done already.
        """
        if self._training is None:
            self._training = _Training(self)
        self._training.begin_epoch(epoch, updates, done)
        return self._training

    def is_time(self) -> bool:
        """Whether it is time for the next line."""
        now = time.monotonic()
        if now - self._said < min(max(SHORTEST, SHARE * (now - self._start)), LONGEST):
            return False
        self._said = now
        return True

    def say(self, line: str, *, always: bool = False) -> None:
        """Log a line.

        Args:
            line: the line.
            always: also where a bar shows it.
        """
        drawn = self.terminal is not None and not always
        logger.info("%s", line, extra={ONLY_IN_FILES: True} if drawn else {})

    def validated(self, subset: str, update: int, stats: Mapping[str, str]) -> None:
        """Log the scores of a validation set.

        Args:
            subset: its name.
            update: number of updates so far.
            stats: metrics as fairseq shows them, by name.
        """
        chosen = self.cfg.checkpoint.best_checkpoint_metric
        names = [name for name in dict.fromkeys((chosen, *_VALIDATION)) if name in stats]
        parts = [f"{name} {stats[name]}" for name in names]
        # fairseq tells the best value from the second validation of the first set on.
        if parts and stats.get(f"best_{chosen}") == stats[names[0]]:
            parts[0] += " (best so far)"
        if parts and subset == self.cfg.dataset.valid_subset.split(",")[0]:
            self._score = f"{names[0]} {stats[names[0]]}"
        self.say(f"{subset}, update {update:,}: {', '.join(parts)}", always=True)

    def done(self) -> None:
        """Log that the training has come to its end."""
        if self._trains and self._training is not None:
            score = f", last {self._score}" if self._score else ""
            seconds = time.monotonic() - self._start
            self.say(f"trained {updates_so_far():,} updates in {_time(seconds)}{score}", always=True)

    @property
    def score(self) -> str:
        """The score of the last validation; empty before the first one."""
        return self._score


class _Training:
    """The progress of a training over its epochs.

    Args:
        progress: that of the command.
    """

    def __init__(self, progress: Progress):
        self._progress = progress
        self._epoch = 0
        self._total: int | None = None
        self._first = updates_so_far()
        self._began: float | None = None  # when the first update was done; it is slower than others
        self._bar: int | None = None

    def begin_epoch(self, epoch: int, updates: int, done: int) -> None:
        """See :meth:`Progress.training`."""
        limits = self._progress.cfg.optimization
        ends = [limits.max_update] if limits.max_update > 0 else []
        if limits.max_epoch > 0:
            ends.append(updates_so_far() + updates - done + (limits.max_epoch - epoch) * updates)
        self._epoch, self._total = epoch, min(ends, default=None)
        terminal = self._progress.terminal
        if terminal is not None and self._bar is None:
            self._bar = terminal.begin(f"epoch {epoch}", self._total)

    def updated(self, meters: MetersDict) -> None:
        """Show that an update is done.

        Args:
            meters: the metrics since the last line; a line resets them.
        """
        update = updates_so_far()
        if self._began is None:
            self._began, self._first = time.monotonic(), update
        if self._bar is not None and self._progress.terminal is not None:
            self._progress.terminal.show(
                self._bar,
                update,
                description=f"epoch {self._epoch}",
                count=self._count(update),
                left=self._left(update),
                values="  ".join([*_values(meters)[:_ON_BAR], self._progress.score]).rstrip(),
            )
        if self._is_due(update):
            parts = [
                f"update {self._count(update)}, epoch {self._epoch}",
                *_values(meters),
                *self._speed(update),
                self._left(update),
            ]
            self._progress.say(" | ".join(part for part in parts if part))
            meters.reset()

    def _is_due(self, update: int) -> bool:
        """Whether a line is due: by time, or where a user has typed ``--log-interval``, by updates."""
        interval = self._progress.cfg.common.log_interval
        if interval == DEFAULT_INTERVAL or interval <= 0:
            return self._progress.is_time()
        return update % interval == 0

    def _count(self, update: int) -> str:
        return f"{update:,}" + (f"/{self._total:,}" if self._total else "")

    def _seconds_each(self, update: int) -> float | None:
        """Return how long an update takes, validation and checkpoints included; None if it is unknown."""
        if self._began is None or update <= self._first:
            return None
        return (time.monotonic() - self._began) / (update - self._first)

    def _speed(self, update: int) -> list[str]:
        seconds = self._seconds_each(update)
        if seconds is None:
            return []
        return [f"{1 / seconds:.1f} updates/s" if seconds < 1 else f"{seconds:.1f} s an update"]

    def _left(self, update: int) -> str:
        seconds = self._seconds_each(update)
        if seconds is None or self._total is None:
            return ""
        return f"{_time(max(0, self._total - update) * seconds)} left"


def bars_of(progress: Progress) -> type:
    """Return a class that stands in for fairseq's progress bar without output."""

    class Bar(_Bar):
        shared = progress

    return Bar


class _Bar(progress_bar.BaseProgressBar):
    """One of fairseq's progress bars: of an epoch, of a validation set, or of a translation."""

    shared: Progress
    iterable: Any
    n: int
    epoch: int | None
    prefix: str

    def __init__(self, iterable: Any, epoch: int | None = None, prefix: str | None = None):
        super().__init__(iterable, epoch, prefix)
        self._validates = prefix is not None
        validated = re.fullmatch("valid on '(.*)' subset", prefix or "")
        self._what = f"validate {validated[1]}" if validated else prefix or "translate"

    def __iter__(self) -> Iterator[Any]:
        if self.epoch is not None and not self._validates:
            yield from self._epoch_of_training(self.epoch)
        else:
            yield from self._batches()

    def _epoch_of_training(self, epoch: int) -> Iterator[Any]:
        training = self.shared.training(epoch, len(self.iterable), self.n)
        with metrics.aggregate() as meters:  # without a name, so no checkpoint holds them
            for batches in self.iterable:
                yield batches
                training.updated(meters)

    def _batches(self) -> Iterator[Any]:
        shared, terminal, total = self.shared, self.shared.terminal, len(self.iterable)
        bar = terminal.begin(self._what, total) if terminal is not None else None
        began = time.monotonic()
        try:
            for done, batch in enumerate(self.iterable, start=1):
                yield batch
                left = f"{_time((time.monotonic() - began) / done * (total - done))} left"
                if terminal is not None and bar is not None:
                    terminal.show(bar, done, count=f"{done:,}/{total:,}", left=left)
                # A short validation says its scores alone.
                if time.monotonic() - began >= SHORTEST and shared.is_time():
                    shared.say(f"{self._what}: batch {done:,}/{total:,} | {left}")
        finally:
            if terminal is not None and bar is not None:
                terminal.end(bar)

    def log(self, stats: Mapping[str, Any], tag: str | None = None, step: int | None = None) -> None:
        """Show nothing: lines come by time."""

    def print(self, stats: Mapping[str, Any], tag: str | None = None, step: int | None = None) -> None:
        """Show the scores of a validation."""
        if self._validates:
            self.shared.validated(tag or "valid", step or 0, self._format_stats(stats))


def _values(meters: MetersDict) -> list[str]:
    """Return the metrics of a training in words."""
    found = {name: meters[name].smoothed_value for name in _TRAINING if name in meters}
    return [_TRAINING[name].format(float(value)) for name, value in found.items() if value is not None]


def _time(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
