"""Rollouts of earlier updates to train on again, without decoding (Ko et al. 2024, section 3.2)."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PastRollout:
    """A rollout of an earlier update, with its source.

    Args:
        sentence_id: index of the sentence in the data set.
        update_num: the update at which it was written.
        truncated: whether the length cap cut it.
        source: ``(S,)`` int64 on the CPU, without padding.
        inputs: ``(T,)``, the decoder's inputs: the first input, then the target without its last token.
        target: ``(T,)``, the tokens that the student wrote.
    """

    sentence_id: int
    update_num: int
    truncated: bool
    source: Tensor
    inputs: Tensor
    target: Tensor

    @property
    def width(self) -> int:
        """The number of tokens of the source or of the target, whichever is longer."""
        return max(self.source.numel(), self.target.numel())


class ReplayBuffer:
    """The most recent rollouts, first in first out.

    The rollouts of an update become available at the next one. So fairseq's second attempt at an update
    (after an overflow with ``--amp``) finds what the first attempt found, and micro-batches of one update do
    not replay each other.

    Args:
        capacity: maximum number of rollouts.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._rollouts: deque[PastRollout] = deque(maxlen=capacity)
        self._newest: dict[int, PastRollout] = {}  # rollouts of the current update, by sentence id

    def __len__(self) -> int:
        return len(self._all())

    def add(self, rollout: PastRollout) -> None:
        """Keep a rollout, and drop the oldest one if the buffer is full.

        A second rollout of a sentence at the same update replaces the first.
        """
        self._settle(rollout.update_num)
        self._newest[rollout.sentence_id] = rollout

    def fitting(self, update_num: int, width: int) -> list[PastRollout]:
        """Return the rollouts that an update may replay in a batch of ``width`` tokens per sentence, oldest
        first.

        A longer rollout would pad all other sentences, and the batch would exceed ``--max-tokens``. Rollouts
        of at most half the width are returned only if there are no longer ones.
        """
        self._settle(update_num)
        fitting = [past for past in self._rollouts if past.width <= width]
        return [past for past in fitting if 2 * past.width > width] or fitting

    def state(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint: plain tensors, which torch's safe loader reads."""
        rollouts = self._all()
        numbers = [[past.sentence_id, past.update_num, int(past.truncated)] for past in rollouts]
        tokens = [part for past in rollouts for part in (past.source, past.inputs, past.target)]
        return {
            "numbers": torch.tensor(numbers, dtype=torch.int64).view(-1, 3),
            "lengths": torch.tensor([part.numel() for part in tokens], dtype=torch.int64),
            "tokens": torch.cat([part.int() for part in tokens])
            if tokens
            else torch.empty(0, dtype=torch.int32),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the result of :meth:`state`; a smaller buffer keeps the newest rollouts."""
        parts = state["tokens"].long().split(state["lengths"].tolist())
        self._rollouts.clear()
        self._newest.clear()
        for row, (sentence_id, update_num, truncated) in enumerate(state["numbers"].tolist()):
            self._rollouts.append(
                PastRollout(sentence_id, update_num, bool(truncated), *parts[3 * row : 3 * row + 3])
            )

    def _settle(self, update_num: int) -> None:
        """Make the rollouts of an earlier update available."""
        if self._newest and next(iter(self._newest.values())).update_num != update_num:
            self._rollouts.extend(self._newest.values())
            self._newest.clear()

    def _all(self) -> list[PastRollout]:
        return [*self._rollouts, *self._newest.values()][-self.capacity :]


def choose(rollouts: Sequence[PastRollout], uniforms: Tensor) -> list[PastRollout]:
    """Choose one rollout for each number in ``[0, 1)``, uniformly and without repetition.

    There must be at least as many rollouts as numbers.
    """
    left = list(rollouts)
    found = []
    for uniform in uniforms.tolist():
        place = min(int(uniform * len(left)), len(left) - 1)
        left[place], left[-1] = left[-1], left[place]
        found.append(left.pop())
    return found
