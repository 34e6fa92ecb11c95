"""Where an update's time goes, without making a GPU wait."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StageClock:
    """Seconds spent in named stages of a training step.

    On a GPU, work is queued, so stages are marked by events on its stream and read a step later, when they have
    passed: :meth:`read` tells of the steps before the last. On the CPU it tells of everything up to now.

    Args:
        device: where the stages' work runs.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._open: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        if self._cuda:
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

    def read(self) -> dict[str, float]:
        """Seconds by stage since the last call; starts anew."""
        waiting = []
        for name, begin, end in self._open:
            if end.query():
                self._add(name, begin.elapsed_time(end) / 1000.0)
            else:
                waiting.append((name, begin, end))
        self._open = waiting
        seconds, self._seconds = self._seconds, {}
        return seconds

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
