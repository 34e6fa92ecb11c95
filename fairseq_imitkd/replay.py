"""Rollouts of earlier updates, to learn from again (Ko et al. 2024, section 3.2): old ones cost no decoding."""

from collections import deque
from collections.abc import Mapping
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


class ReplayBuffer:
    """The last rollouts, first in first out.

    Args:
        capacity: how many.
    """

    def __init__(self, capacity: int):
        self._rollouts: deque[PastRollout] = deque(maxlen=capacity)
        self._update, self._numbers = -1, set[int]()  # the newest update, and the sentences that it has added

    def __len__(self) -> int:
        return len(self._rollouts)

    def add(self, rollout: PastRollout) -> None:
        """Keep a rollout, in place of the oldest when there is no room.

        A step that is tried again, as fairseq does after an overflow with ``--amp``, writes what it wrote: that is kept once.
        """
        if rollout.update_num != self._update:
            self._update, self._numbers = rollout.update_num, set()
        if rollout.number not in self._numbers:
            self._numbers.add(rollout.number)
            self._rollouts.append(rollout)

    def drawn(self, uniforms: Tensor) -> list[PastRollout]:
        """For each number in ``[0, 1)`` one of the rollouts, all alike probable."""
        places = (uniforms * len(self._rollouts)).long().clamp(max=len(self._rollouts) - 1)
        return [self._rollouts[place] for place in places.tolist()]

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: plain tensors, which torch's safe loader reads."""
        numbers = [[past.number, past.update_num, int(past.truncated)] for past in self._rollouts]
        tokens = [part for past in self._rollouts for part in (past.source, past.inputs, past.target)]
        return {
            "numbers": torch.tensor(numbers, dtype=torch.int64).view(-1, 3),
            "lengths": torch.tensor([part.numel() for part in tokens], dtype=torch.int64),
            "tokens": torch.cat([part.int() for part in tokens]) if tokens else torch.empty(0, dtype=torch.int32),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a :meth:`state`; the newest are kept if this buffer is smaller."""
        parts = state["tokens"].long().split(state["lengths"].tolist())
        self._rollouts.clear()
        for row, (number, update_num, truncated) in enumerate(state["numbers"].tolist()):
            self.add(PastRollout(number, update_num, bool(truncated), *parts[3 * row : 3 * row + 3]))
