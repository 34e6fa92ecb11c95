"""Training state that can't be recomputed from the update number.

It is saved in fairseq's checkpoints, so a resumed run continues exactly. Most methods have no such state.
"""

from collections.abc import Mapping
from typing import Any

import torch.distributed

from fairseq_imitkd.losses.token_weights import DifficultyQueue
from fairseq_imitkd.method.schedules import AdaptiveShare
from fairseq_imitkd.mixing.pool import RolloutPool
from fairseq_imitkd.mixing.replay import ReplayBuffer
from fairseq_imitkd.teacher.selection import TeacherSelector, several_processes
from fairseq_imitkd.text.rewards import RunningMean
from fairseq_imitkd.training.rollout_watch import RolloutWatch


class TrainingState:
    """The parts of a training that have a state.

    The share, the baseline, the selector and the watch are equal in all processes, because all of them read
    the same summed values. The rollouts of the replay buffer and of the pool and the difficulties differ:
    each process has its own. A checkpoint holds those of all processes.

    Args:
        share: the student's share, if it depends on the validation loss.
        baseline: the running mean of rewards, if the method has one.
        replay: the rollouts of earlier updates, if the method replays them.
        pool: the rollouts that wait for their batch's turn, if the method decodes ahead.
        difficulties: the difficulties of recent tokens, if the method selects the hardest ones among them.
        selector: the policy that chooses among teachers, if there is one.
        watch: what warns of faulty rollouts, if the method has rollouts.
    """

    def __init__(
        self,
        share: AdaptiveShare | None = None,
        baseline: RunningMean | None = None,
        replay: ReplayBuffer | None = None,
        *,
        pool: RolloutPool | None = None,
        difficulties: DifficultyQueue | None = None,
        selector: TeacherSelector | None = None,
        watch: RolloutWatch | None = None,
    ):
        self.share, self.baseline, self.selector = share, baseline, selector
        self.replay, self.pool, self.watch = replay, pool, watch
        self.difficulties = difficulties
        self._gathered: list[dict[str, Any]] | None = None  # each process's own parts, for a checkpoint
        self._loss, self._tokens = 0.0, 0.0  # sums of the current validation
        self._is_first_set = True

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
            if self.watch is not None:
                self.watch.logged(total)
        elif self._is_first_set:
            self._loss += total.get("loss", 0.0)
            self._tokens += total.get("ntokens", 0.0)

    def update_begins(self) -> None:
        """Apply the result of the validation before this update, if there was one."""
        if self.share is not None and self._tokens > 0:
            self.share.validated(self._loss / self._tokens)
        self._loss, self._tokens = 0.0, 0.0

    def gather(self) -> None:
        """Collect the parts that differ between processes, for the checkpoint that is saved next.

        All processes must call this together. Only the first one saves.
        """
        own = self._own_states()
        if own and several_processes():
            self._gathered = [{}] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(self._gathered, own)

    def saved(self) -> dict[str, Any]:
        """Return numbers and tensors for a checkpoint; empty for a method without state."""
        saved: dict[str, Any] = {name: part.state() for name, part in self._shared_parts()}
        if self._own_parts():
            saved["processes"], self._gathered = self._gathered or [self._own_states()], None
        return {**saved, "validation": [self._loss, self._tokens]} if saved else {}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's state. Parts that the checkpoint lacks stay as they are.

        With another number of processes than before, some continue from the same rollouts, or some rollouts
        are dropped. Checkpoints of older versions hold those of the first process alone.
        """
        for name, part in self._shared_parts():
            if name in saved:
                part.restore(saved[name])
        processes = saved.get("processes") or [saved]
        own = processes[torch.distributed.get_rank() % len(processes) if several_processes() else 0]
        for name, part in self._own_parts():
            if name in own:
                part.restore(own[name])
        self._loss, self._tokens = (float(number) for number in saved.get("validation", (0.0, 0.0)))

    def _shared_parts(self) -> list[tuple[str, Any]]:
        return _present(share=self.share, baseline=self.baseline, selector=self.selector, watch=self.watch)

    def _own_parts(self) -> list[tuple[str, Any]]:
        return _present(replay=self.replay, pool=self.pool, difficulties=self.difficulties)

    def _own_states(self) -> dict[str, Any]:
        return {name: part.state() for name, part in self._own_parts()}


def _present(**parts: Any) -> list[tuple[str, Any]]:
    return [(name, part) for name, part in parts.items() if part is not None]
