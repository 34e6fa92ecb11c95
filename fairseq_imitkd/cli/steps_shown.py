"""Shows how the steps of a run go: a bar for each that runs on a terminal, and a line for each that ends."""

import datetime
import sys
import time
from collections.abc import Mapping
from types import TracebackType

from fairseq_imitkd.cli.terminal import Terminal
from fairseq_imitkd.pipeline.plan import Step
from fairseq_imitkd.pipeline.runner import DONE, FAILED, RUNNING, WAITING, Run, Status

SAID_EVERY = 60.0  # seconds


class Shown:
    """A context that shows a run.

    Args:
        run: the run.
    """

    def __init__(self, run: Run):
        self._run = run
        self._steps = {step.name: step for step in run.plan.steps}
        self._states = {name: status.state for name, status in run.statuses().items()}
        self._states = {name: state if state == DONE else WAITING for name, state in self._states.items()}
        self._began = time.time()
        self._terminal = Terminal.of_process() if sys.stderr.isatty() else None
        self._opened = self._terminal.opened() if self._terminal else None
        self._bars: dict[str, int] = {}
        # Seconds and updates of a training when an update of this run was first seen.
        self._first: dict[str, tuple[float, int]] = {}
        self._kept: dict[str, int] = {}  # updates that a training had when it began
        self._next: dict[str, float] = {}  # when a training's progress is said again, without a terminal
        kept = sum(state == DONE for state in self._states.values())
        if kept:
            self._say(f"{kept} of {len(self._steps)} steps are done already")

    def __enter__(self) -> "Shown":
        if self._opened is not None:
            self._opened.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._opened is not None:
            self._opened.__exit__(kind, error, trace)

    def show(self, statuses: Mapping[str, Status]) -> None:
        """Show what has changed."""
        for name, status in statuses.items():
            if status.state in (FAILED, RUNNING) and max(status.ended, status.began) < self._began:
                continue  # a note of an earlier run
            if status.state != self._states[name]:
                self._changed(name, status)
                self._states[name] = status.state
            step, seconds = self._steps[name], time.time() - status.began
            if status.state == RUNNING and status.updates > self._kept.get(name, 0):
                self._first.setdefault(name, (seconds, status.updates))
            time_left = left(step, status, seconds, first=self._first.get(name))
            if name in self._bars and self._terminal is not None:
                self._terminal.show(self._bars[name], status.updates, left=time_left)
            elif status.state == RUNNING and status.updates and time.time() >= self._next.get(name, 0.0):
                self._next[name] = time.time() + SAID_EVERY
                of = f" of {step.updates:,}" if step.updates else ""
                self._say(f"{name}: {status.updates:,}{of} updates after {time_left}")

    def _changed(self, name: str, status: Status) -> None:
        step = self._steps[name]
        if status.state == RUNNING:
            self._kept[name] = status.updates  # of a training that continues
            self._first.pop(name, None)
            if self._terminal is not None:
                self._bars[name] = self._terminal.begin(name, step.updates)
            else:
                self._say(f"{name}: begins")
            return
        if name in self._bars and self._terminal is not None:
            self._terminal.end(self._bars.pop(name))
        if status.state in (DONE, FAILED):
            took = duration(max(0.0, status.ended - status.began))
            # The error itself comes at the end of the command.
            log = f"; log: {self._run.log(name)}" if status.state == FAILED else ""
            self._say(f"{name}: {status.state} after {took}{log}")

    def _say(self, line: str) -> None:
        if self._terminal is not None:
            self._terminal.console.print(line)
        else:
            print(line, file=sys.stderr, flush=True)


def left(step: Step, status: Status, seconds: float, *, first: tuple[float, int] | None) -> str:
    """Return in words how long a step has run, and how long a training will still take.

    Args:
        step: the step.
        status: its status.
        seconds: how long it has run.
        first: seconds and updates of a training when an update of its own was first seen. What comes before,
            such as reading the data, does not come again.
    """
    text = duration(seconds)
    if step.updates and first is not None and status.updates > first[1]:
        pace = (seconds - first[0]) / (status.updates - first[1])
        text += f", {duration(pace * (step.updates - status.updates))} left"
    return text


def duration(seconds: float) -> str:
    """Return a time in hours, minutes and seconds."""
    return str(datetime.timedelta(seconds=round(seconds)))


def roughly(seconds: float) -> str:
    """Return an estimated time in its two largest units: ``20 s``, ``5 h 12 min``, ``4 d 5 h``."""
    whole = round(seconds)
    for name, unit, part, smaller in (("d", 86400, 3600, "h"), ("h", 3600, 60, "min"), ("min", 60, 1, "s")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // part} {smaller}"
    return f"{whole} s"
