"""Training state that can't be recomputed from the update number.

It is saved in fairseq's checkpoints, so a resumed run continues exactly. Most methods have no such state.
"""

from collections.abc import Mapping
from typing import Any

from fairseq_imitkd.method.schedules import AdaptiveShare
from fairseq_imitkd.mixing.replay import ReplayBuffer
from fairseq_imitkd.teacher.selection import TeacherSelector
from fairseq_imitkd.text.rewards import RunningMean


class TrainingState:
    """The parts of a training that have a state.

    The states of all processes are equal, because all of them read the same summed values. Only the replay
    buffers differ: each holds the rollouts of its own process. A checkpoint keeps the first process's buffer,
    and after a resume every process continues with that one.

    Args:
        share: the student's share, if it depends on the validation loss.
        baseline: the running mean of rewards, if the method has one.
        replay: the rollouts of earlier updates, if the method replays them.
        selector: the policy that chooses among teachers, if there is one.
    """

    def __init__(
        self,
        share: AdaptiveShare | None = None,
        baseline: RunningMean | None = None,
        replay: ReplayBuffer | None = None,
        *,
        selector: TeacherSelector | None = None,
    ):
        self.share, self.baseline, self.replay, self.selector = share, baseline, replay, selector
        self._loss, self._tokens = 0.0, 0.0  # sums of the current validation
        self._is_first_set = True

    @property
    def reads_logs(self) -> bool:
        """Whether the state depends on logged values."""
        return self.share is not None or self.baseline is not None

    def validation_begins(self) -> None:
        """Expect the values of a new validation."""
        self._loss, self._tokens, self._is_first_set = 0.0, 0.0, True

    def validated(self) -> None:
        """Ignore the rest of this validation: one ``--valid-subset`` is done, and only the first counts.

        fairseq chooses its best checkpoint by the first one too. The others may be test sets.
        """
        self._is_first_set = False

    def logged(self, total: Mapping[str, float], training: bool) -> None:
        """Read the summed values of an update, or of one batch of a validation."""
        if training:
            if self.baseline is not None and total.get("rewarded", 0) > 0:
                self.baseline.add(total["reward"] / total["rewarded"])
        elif self._is_first_set:
            self._loss += total.get("loss", 0.0)
            self._tokens += total.get("ntokens", 0.0)

    def update_begins(self) -> None:
        """Apply the result of the validation before this update, if there was one."""
        if self.share is not None and self._tokens > 0:
            self.share.validated(self._loss / self._tokens)
        self._loss, self._tokens = 0.0, 0.0

    def saved(self) -> dict[str, Any]:
        """Return numbers and tensors for a checkpoint; empty for a method without state."""
        saved = {name: part.state() for name, part in self._parts()}
        return {**saved, "validation": [self._loss, self._tokens]} if saved else {}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's state. Parts that the checkpoint lacks stay as they are."""
        for name, part in self._parts():
            if name in saved:
                part.restore(saved[name])
        self._loss, self._tokens = (float(number) for number in saved.get("validation", (0.0, 0.0)))

    def _parts(self) -> list[tuple[str, Any]]:
        parts = {
            "share": self.share,
            "baseline": self.baseline,
            "replay": self.replay,
            "selector": self.selector,
        }
        return [(name, part) for name, part in parts.items() if part is not None]
