"""Rollouts of several batches decoded as one.

fairseq hands a task one micro-batch at a time. To decode those of a whole update together, or those of several updates
as the ImitKD paper does, the pool watches the training iterator: it remembers the batches of the group that fairseq
has fetched for the coming update, and can look further ahead without the iterator's count of consumed batches, which
checkpoints hold, running ahead too.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

from fairseq.data.iterators import CountingIterator
from torch import Tensor

from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.rollout import Rollout


@dataclass(frozen=True)
class PooledRollout:
    """What the student wrote for one batch of ``B`` sentences.

    Args:
        drawn: ``(B,)`` bool, the sentences that were rolled out.
        rollout: of those, in the batch's order; None when none was drawn.
        update_num: the update before which the student wrote it.
    """

    drawn: Tensor
    rollout: Rollout | None
    update_num: int


class LookAheadIterator(CountingIterator):
    """An epoch's batches: counts those handed out, remembers the last of them, and can fetch some before their turn."""

    def __init__(self, batches: CountingIterator):
        super().__init__(batches, start=batches.n, total=len(batches))
        self.total: int
        self.batches = batches
        self.handed_out: list[Batch] = []
        self._ahead: deque[Batch] = deque()

    def __next__(self) -> Batch:
        if not self.has_next():
            raise StopIteration
        batch = self._ahead.popleft() if self._ahead else next(self.batches)
        self.n += 1
        self.handed_out.append(batch)
        return batch

    def take(self, n: int) -> "LookAheadIterator":
        """End the epoch after ``n`` batches at the latest."""
        self.batches.take(n)
        self.total = min(self.total, n)
        return self

    def ahead(self, count: int) -> list[Batch]:
        """The next ``count`` batches, or as many as the epoch still has; each still gets its turn."""
        count = min(count, self.total - self.n)
        while len(self._ahead) < count:
            self._ahead.append(next(self.batches))
        return list(self._ahead)[:count]


class RolloutPool:
    """Which batches to decode together, and the rollouts that wait for their batch's turn.

    Args:
        updates: how many updates' batches are decoded at once; 1 is exactly on-policy, more is not: the student has
            changed by the time a rollout is learnt from.
    """

    def __init__(self, updates: int = 1):
        self.updates = updates
        self._batches: LookAheadIterator | None = None
        self._waiting: dict[tuple[int, ...], PooledRollout] = {}

    def watch(self, epoch_itr: Any) -> Any:
        """Watch the batches of each epoch that an ``EpochBatchIterator`` begins from now on."""
        if getattr(epoch_itr, "watching_pool", None) is self:  # fairseq hands out the same one every epoch
            return epoch_itr
        begin_epoch = epoch_itr.next_epoch_itr

        def next_epoch_itr(*args: Any, **kwargs: Any) -> LookAheadIterator:
            self._batches = LookAheadIterator(begin_epoch(*args, **kwargs))
            self._waiting.clear()
            # What fairseq asks how far the epoch is, for its checkpoints and for its end.
            epoch_itr._cur_epoch_itr = self._batches
            return self._batches

        epoch_itr.next_epoch_itr = next_epoch_itr
        epoch_itr.watching_pool = self
        return epoch_itr

    def waiting(self, sample: Batch) -> PooledRollout | None:
        """The rollout that was decoded for a batch. It stays until the next window: a repeated update finds it again."""
        found = self._waiting.get(_name(sample))
        if found is not None:
            self.forget()
        return found

    def forget(self) -> None:
        """Let go of the batches that fairseq fetched for this update: none of them needs a window."""
        if self._batches is not None:
            self._batches.handed_out.clear()

    def window(self, sample: Batch) -> list[tuple[int, Batch]]:
        """The batches to decode together with one whose turn it is.

        Returns:
            pairs of how many updates later a batch has its turn, and the batch, the given one first. A batch that the
            iterator did not hand out is alone.
        """
        self._waiting.clear()
        group, ahead = self._group(sample), []
        if self._batches is not None and self.updates > 1 and len(group) > 0:
            ahead = self._batches.ahead((self.updates - 1) * len(group))
        batches = [(0, sample)] + [(0, batch) for batch in group[1:]]
        batches += [(1 + number // len(group), batch) for number, batch in enumerate(ahead)]
        return [
            (later, batch) for later, batch in batches if batch
        ]  # uneven shards are filled with empty ones

    def keep(self, sample: Batch, rollout: PooledRollout) -> None:
        """Let a rollout wait for its batch's turn."""
        self._waiting[_name(sample)] = rollout

    def _group(self, sample: Batch) -> list[Batch]:
        """The batches that fairseq fetched for this update, from the given one on; they are forgotten."""
        if self._batches is None:
            return []
        handed_out, self._batches.handed_out = self._batches.handed_out, []
        names, name = [_name(batch) if batch else () for batch in handed_out], _name(sample)
        return handed_out[names.index(name) :] if name in names else []


def _name(sample: Batch) -> tuple[int, ...]:
    return tuple(sample["id"].tolist())
