"""Rollouts of earlier updates, to learn from again (Ko et al. 2024, section 3.2): old ones cost no decoding."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PastRollout:
    """A sentence that the student once wrote.

    Args:
        number: of the sentence in the data set.
        update_num: when it was written.
        truncated: whether the length cap cut it.
        source: ``(S,)`` int64 on the CPU, without padding.
        inputs: ``(T,)``, what the decoder read: the first token, then the target's but the last.
        target: ``(T,)``, what the student wrote.
    """

    number: int
    update_num: int
    truncated: bool
    source: Tensor
    inputs: Tensor
    target: Tensor

    @property
    def width(self) -> int:
        """Tokens of its longer side."""
        return max(self.source.numel(), self.target.numel())


class ReplayBuffer:
    """The last rollouts, first in first out.

    What an update writes is there from the next one on, so that fairseq's second try of an update (after an overflow with
    ``--amp``) finds what the first one found, and its micro-batches do not replay each other.

    Args:
        capacity: how many.
    """

    def __init__(self, capacity: int):
        self._rollouts: deque[PastRollout] = deque(maxlen=capacity)
        self._newest: dict[int, PastRollout] = {}  # of the update that is under way, by sentence

    def __len__(self) -> int:
        return len(self._all())

    def add(self, rollout: PastRollout) -> None:
        """Keep a rollout, in place of the oldest when there is no room; one that its update has written before is kept once."""
        self._settle(rollout.update_num)
        self._newest[rollout.number] = rollout

    def fitting(self, update_num: int, width: int) -> list[PastRollout]:
        """What an update may replay in a batch of ``width`` tokens a sentence, from the oldest to the newest.

        A longer one would pad all others, beyond ``--max-tokens``; where there are any, none is below half of it.
        """
        self._settle(update_num)
        fitting = [past for past in self._rollouts if past.width <= width]
        return [past for past in fitting if 2 * past.width > width] or fitting

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: plain tensors, which torch's safe loader reads."""
        rollouts = self._all()
        numbers = [[past.number, past.update_num, int(past.truncated)] for past in rollouts]
        tokens = [part for past in rollouts for part in (past.source, past.inputs, past.target)]
        return {
            "numbers": torch.tensor(numbers, dtype=torch.int64).view(-1, 3),
            "lengths": torch.tensor([part.numel() for part in tokens], dtype=torch.int64),
            "tokens": torch.cat([part.int() for part in tokens])
            if tokens
            else torch.empty(0, dtype=torch.int32),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state`; the newest are kept if this buffer is smaller."""
        parts = state["tokens"].long().split(state["lengths"].tolist())
        self._rollouts.clear()
        self._newest.clear()
        for row, (number, update_num, truncated) in enumerate(state["numbers"].tolist()):
            self._rollouts.append(
                PastRollout(number, update_num, bool(truncated), *parts[3 * row : 3 * row + 3])
            )

    def _settle(self, update_num: int) -> None:
        """Take in what was written before an update."""
        if self._newest and next(iter(self._newest.values())).update_num != update_num:
            self._rollouts.extend(self._newest.values())
            self._newest.clear()

    def _all(self) -> list[PastRollout]:
        return [*self._rollouts, *self._newest.values()][-self._rollouts.maxlen :]  # type: ignore[operator]  # it has one


def chosen(rollouts: Sequence[PastRollout], uniforms: Tensor) -> list[PastRollout]:
    """One of the rollouts for each number in ``[0, 1)``, none twice, all alike probable; there must be as many."""
    left = list(rollouts)
    found = []
    for uniform in uniforms.tolist():
        place = min(int(uniform * len(left)), len(left) - 1)
        left[place], left[-1] = left[-1], left[place]
        found.append(left.pop())
    return found
