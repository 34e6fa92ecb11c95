"""Warns of a student whose rollouts do not end, are empty, or repeat themselves, and does not get better."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed

from fairseq_imitkd.teacher.selection import several_processes

logger = logging.getLogger(__name__)

WINDOW = 500  # updates with rollouts that are judged together
BOUND = 0.25  # greatest share that is not warned of
FALLING = 0.9  # a share below this part of the last window's falls


@dataclass(frozen=True)
class Fault:
    """What can be wrong with rollouts.

    Args:
        metric: its name in the log.
        part, whole: the logged sums whose ratio is the share.
        words: what the share is of.
        remedy: what helps against this fault alone.
    """

    metric: str
    part: str
    whole: str
    words: str
    remedy: str


_FOR_SAMPLES = "lower --rollout-temperature, or sample with --rollout-topp 0.9"
FAULTS = (
    Fault(
        "truncated",
        "rollouts_truncated",
        "rollouts",
        "of the rollouts do not end before the length cap",
        "if the texts are longer than the cap, raise --rollout-max-len-b",
    ),
    Fault(
        "empty", "rollouts_empty", "rollouts", "of the rollouts are empty", "check the shortest references"
    ),
    Fault(
        "repetition",
        "tokens_repeated",
        "tokens_rollout",
        "of the rollouts' tokens repeat the tokens before them",
        "use --rollout-policy sampling",
    ),
)


class RolloutWatch:
    """Compares the shares of faulty rollouts with a bound, window by window.

    An untrained student's rollouts are faulty, and soon get better. So there is a warning only if a share is
    above :data:`BOUND` in a window of :data:`WINDOW` updates, and was not clearly higher in the window before
    it. The first updates do not count. Each fault is warned of once in a run.

    All processes see the same sums, so their states are equal. The first one warns.

    Args:
        warm_up: number of first updates that do not count: those of the learning rate's warm-up.
        samples: whether rollouts are sampled.
    """

    def __init__(self, warm_up: int = 0, *, samples: bool = False):
        self.warm_up, self.samples = warm_up, samples
        self._seen = 0  # updates so far
        self._updates = 0  # of the current window
        self._sums: dict[str, float] = {}  # of the current window
        self._last: dict[str, float] = {}  # the shares of the last window, by metric
        self._warned: list[str] = []

    def logged(self, total: Mapping[str, float]) -> None:
        """Read the summed values of an update; one without rollouts does not count."""
        self._seen += 1
        if self._seen <= self.warm_up or not total.get("rollouts", 0) > 0:
            return
        for name in {name for fault in FAULTS for name in (fault.part, fault.whole)}:
            self._sums[name] = self._sums.get(name, 0.0) + total.get(name, 0.0)
        self._updates += 1
        if self._updates == WINDOW:
            for fault in FAULTS:
                self._judge(fault)
            self._updates, self._sums = 0, {}

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, in plain types."""
        return {
            "seen": self._seen,
            "updates": self._updates,
            "sums": dict(self._sums),
            "last": dict(self._last),
            "warned": list(self._warned),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the result of :meth:`state`."""
        self._seen, self._updates = int(state["seen"]), int(state["updates"])
        self._sums, self._last = dict(state["sums"]), dict(state["last"])
        self._warned = list(state["warned"])

    def _judge(self, fault: Fault) -> None:
        share, last = self._sums[fault.part] / self._sums[fault.whole], self._last.get(fault.metric)
        self._last[fault.metric] = share
        if last is None or share <= BOUND or share < FALLING * last or fault.metric in self._warned:
            return
        self._warned.append(fault.metric)
        if not several_processes() or torch.distributed.get_rank() == 0:
            logger.warning(
                "%.0f%% %s in the last %d updates ('%s' in the log), and the share does not fall: train the "
                "student on references or on SeqKD's data first (--finetune-from-model), or let its share "
                "rise later (--student-share linear:0,warmup=0.2); %s",
                100.0 * share,
                fault.words,
                WINDOW,
                fault.metric,
                _FOR_SAMPLES if self.samples else fault.remedy,
            )
