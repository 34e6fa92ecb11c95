"""How long the stages of a training step take, measured without making a GPU wait."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StageTimer:
    """Seconds spent in named stages of a training step.

    On a GPU, work is queued. Events on its stream mark the stages, and are read a step later, when they have
    passed. So :meth:`read` reports the steps before the last on a GPU, and everything so far on the CPU.
    """

    def __init__(self) -> None:
        self._open: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, device: torch.device) -> Iterator[None]:
        """Time the work inside the context.

        Args:
            name: the stage.
            device: the device that the work runs on.
        """
        if device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            try:
                yield
            finally:
                end.record()
                self._open.append((name, begin, end))
        else:
            begun = time.perf_counter()
            try:
                yield
            finally:
                self._add(name, time.perf_counter() - begun)

    def read(self, *names: str) -> dict[str, float]:
        """Return the seconds of these stages since the last call, and start again from 0."""
        waiting = []
        for name, begin, end in self._open:
            if end.query():
                self._add(name, begin.elapsed_time(end) / 1000.0)
            else:
                waiting.append((name, begin, end))
        self._open = waiting
        seconds, self._seconds = self._seconds, {}
        return {name: seconds.get(name, 0.0) for name in names}

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
