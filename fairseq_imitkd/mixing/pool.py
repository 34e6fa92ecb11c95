"""Rollouts of several batches decoded at once.

fairseq hands a task one micro-batch at a time. To decode the rollouts of a whole update together, or of
several updates as the ImitKD paper does, the pool watches the training iterator. It remembers the batches
that fairseq has fetched for the coming update. It can also look further ahead, without changing the
iterator's count of consumed batches, which checkpoints hold.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from fairseq.data.iterators import CountingIterator
from torch import Tensor

from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.rollout import Rollout


@dataclass(frozen=True)
class BatchRollout:
    """The student's rollouts for one batch of ``B`` sentences.

    Args:
        is_fresh: ``(B,)`` bool: the student wrote the target.
        rollout: the targets that it wrote, in the batch's order; None if there are none.
        update_num: the student wrote them with its weights before this update.
    """

    is_fresh: Tensor
    rollout: Rollout | None
    update_num: int

    def to(self, device: torch.device) -> "BatchRollout":
        """Return the same rollouts on a device; they are on the CPU after a resume."""
        if self.is_fresh.device == device:
            return self
        rollout = None if self.rollout is None else self.rollout.to(device)
        return replace(self, is_fresh=self.is_fresh.to(device), rollout=rollout)


class LookAheadIterator(CountingIterator):
    """The batches of an epoch. It remembers those of the current update, and can fetch batches before their
    turn.
    """

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
        """End the epoch after at most ``n`` batches."""
        self.batches.take(n)
        self.total = min(self.total, n)
        return self

    def ahead(self, count: int) -> list[Batch]:
        """Return the next ``count`` batches, or as many as the epoch still has. Each still gets its turn."""
        count = min(count, self.total - self.n)
        while len(self._ahead) < count:
            self._ahead.append(next(self.batches))
        return list(self._ahead)[:count]


class RolloutPool:
    """Chooses which batches are decoded together, and keeps the rollouts until their batch has its turn.

    Args:
        updates: number of updates whose batches are decoded at once. 1 is exactly on-policy. More is not: the
            student has changed by the time it trains on a rollout.
    """

    def __init__(self, updates: int = 1):
        self.updates = updates
        self._batches: LookAheadIterator | None = None
        self._waiting: dict[tuple[int, ...], BatchRollout] = {}
        self._had_turn: set[tuple[int, ...]] = set()
        self._restored: dict[tuple[int, ...], BatchRollout] = {}  # for the epoch that is resumed

    def watch(self, epoch_itr: Any) -> Any:
        """Watch the batches of each epoch that an ``EpochBatchIterator`` begins from now on."""
        if getattr(epoch_itr, "watching_pool", None) is self:  # fairseq returns the same iterator every epoch
            return epoch_itr
        begin_epoch = epoch_itr.next_epoch_itr

        def next_epoch_itr(*args: Any, **kwargs: Any) -> LookAheadIterator:
            self._batches = LookAheadIterator(begin_epoch(*args, **kwargs))
            self._begin_window(self._restored)
            self._restored = {}
            # fairseq asks this attribute for the position in the epoch, for its checkpoints and for the
            # epoch's end:
            # https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/data/iterators.py#L428-L436
            epoch_itr._cur_epoch_itr = self._batches
            return self._batches

        epoch_itr.next_epoch_itr = next_epoch_itr
        epoch_itr.watching_pool = self
        return epoch_itr

    def waiting(self, sample: Batch) -> BatchRollout | None:
        """Return the rollouts that were decoded for a batch, if any.

        They stay until the next window, so that a repeated update finds them again.
        """
        found = self._waiting.get(_ids(sample))
        if found is None:
            return None
        self.forget()
        self._had_turn.add(_ids(sample))
        return found.to(sample["id"].device)

    def forget(self) -> None:
        """Forget the batches that fairseq fetched for this update, because none of them needs a window."""
        if self._batches is not None:
            self._batches.handed_out.clear()

    def window(self, sample: Batch) -> list[tuple[int, Batch]]:
        """Return the batches to decode together with the batch whose turn it is.

        Returns:
            pairs: how many updates later a batch has its turn, and the batch. The given batch is the first. A
            batch that the iterator did not hand out is decoded alone.
        """
        self._begin_window({})
        self._had_turn.add(_ids(sample))
        group, ahead = self._group(sample), []
        if self._batches is not None and self.updates > 1 and len(group) > 0:
            ahead = self._batches.ahead((self.updates - 1) * len(group))
        batches = [(0, sample)] + [(0, batch) for batch in group[1:]]
        batches += [(1 + number // len(group), batch) for number, batch in enumerate(ahead)]
        # A process that has run out of batches gets empty ones.
        return [(later, batch) for later, batch in batches if batch]

    def keep(self, sample: Batch, rollout: BatchRollout) -> None:
        """Keep the rollouts of a batch until it has its turn."""
        self._waiting[_ids(sample)] = rollout

    def state(self) -> list[dict[str, Any]]:
        """Return the rollouts of batches that have not had their turn, as a checkpoint can hold them."""
        return [
            {
                "ids": list(ids),
                "is_fresh": written.is_fresh.cpu(),
                "update_num": written.update_num,
                "rollout": None if written.rollout is None else written.rollout.state(),
            }
            for ids, written in self._waiting.items()
            if ids not in self._had_turn
        ]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Continue from the result of :meth:`state`, when the resumed epoch begins."""
        self._restored = {
            tuple(saved["ids"]): BatchRollout(
                saved["is_fresh"],
                None if saved["rollout"] is None else Rollout(**saved["rollout"]),
                saved["update_num"],
            )
            for saved in state
        }

    def _begin_window(self, waiting: dict[tuple[int, ...], BatchRollout]) -> None:
        self._waiting = waiting
        self._had_turn.clear()

    def _group(self, sample: Batch) -> list[Batch]:
        """Return the batches that fairseq fetched for this update, from the given one on, and forget them."""
        if self._batches is None:
            return []
        handed_out, self._batches.handed_out = self._batches.handed_out, []
        names, name = [_ids(batch) if batch else () for batch in handed_out], _ids(sample)
        return handed_out[names.index(name) :] if name in names else []


def _ids(sample: Batch) -> tuple[int, ...]:
    return tuple(sample["id"].tolist())
