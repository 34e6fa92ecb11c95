"""What of a training can't be derived from the update number, kept in fairseq's checkpoints so that a resumed run goes on
as it would have. Most methods have none of it."""

from collections.abc import Mapping
from typing import Any

from fairseq_imitkd.method.schedules import AdaptiveShare
from fairseq_imitkd.mixing.replay import ReplayBuffer
from fairseq_imitkd.teacher.selection import TeacherSelector
from fairseq_imitkd.text.rewards import RunningMean


class TrainingState:
    """The parts of a method that remember.

    All processes feed theirs the same summed figures. Only the replay buffer holds what its own process saw: a
    checkpoint keeps the first process's, with which all go on.

    Args:
        share: the student's share that validations move, or None.
        baseline: the running mean of rewards, or None.
        replay: past rollouts, or None.
        selector: the policy that chooses among teachers, or None.
    """

    def __init__(
        self,
        share: AdaptiveShare | None = None,
        baseline: RunningMean | None = None,
        replay: ReplayBuffer | None = None,
        selector: TeacherSelector | None = None,
    ):
        self.share, self.baseline, self.replay, self.selector = share, baseline, replay, selector
        self._validation = [0.0, 0.0]  # the loss of the validation that is going on, and its tokens
        self._listening = True  # to it; not to that of further sets

    @property
    def listens(self) -> bool:
        """Whether figures matter to it."""
        return self.share is not None or self.baseline is not None

    def validation_begins(self) -> None:
        """A new validation's figures follow."""
        self._validation, self._listening = [0.0, 0.0], True

    def validated(self) -> None:
        """One set is through. Only the first --valid-subset counts, as for fairseq's best checkpoint: others may be tests."""
        self._listening = False

    def logged(self, total: Mapping[str, float], training: bool) -> None:
        """Take in the summed figures of an update, or of one batch of a validation."""
        if training:
            if self.baseline is not None and total.get("rewarded", 0) > 0:
                self.baseline.add(total["reward"] / total["rewarded"])
        elif self._listening:
            self._validation[0] += total.get("loss", 0.0)
            self._validation[1] += total.get("ntokens", 0.0)

    def update_begins(self) -> None:
        """What a validation found, if there was one, is taken in."""
        loss, tokens = self._validation
        if self.share is not None and tokens > 0:
            self.share.validated(loss / tokens)
        self._validation = [0.0, 0.0]

    def saved(self) -> dict[str, Any]:
        """Numbers and tensors for a checkpoint; empty where nothing is remembered."""
        saved = {name: part.state() for name, part in self._parts()}
        return {**saved, "validation": list(self._validation)} if saved else {}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint keeps; parts that it lacks stay as they are."""
        for name, part in self._parts():
            if name in saved:
                part.restore(saved[name])
        self._validation = [float(number) for number in saved.get("validation", (0.0, 0.0))]

    def _parts(self) -> list[tuple[str, Any]]:
        parts = {
            "share": self.share,
            "baseline": self.baseline,
            "replay": self.replay,
            "selector": self.selector,
        }
        return [(name, part) for name, part in parts.items() if part is not None]
