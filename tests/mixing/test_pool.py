"""The pool: which batches are decoded together, and what fairseq sees of it, which is nothing."""

from typing import Any

import pytest
import torch
from fairseq.data.iterators import CountingIterator, EpochBatchIterator, GroupedIterator

from fairseq_imitkd.mixing.pool import LookAheadIterator, PooledRollout, RolloutPool


def batch(number: int) -> dict[str, Any]:
    """A batch that only has a name."""
    return {"id": torch.tensor([number])}


class Numbers(torch.utils.data.Dataset):
    """Sentences that are their own numbers, one a batch."""

    def __getitem__(self, index: int) -> int:
        return index

    def __len__(self) -> int:
        return 7


def epoch_iterator() -> EpochBatchIterator:
    return EpochBatchIterator(
        Numbers(), collate_fn=lambda rows: batch(rows[0]), batch_sampler=[[i] for i in range(7)]
    )


def numbers(batches: Any) -> list[int]:
    return [int(one["id"]) for one in batches]


def test_looking_ahead_takes_nobodys_turn() -> None:
    """Every batch is handed out once, in order; the count is of those handed out."""
    batches = LookAheadIterator(CountingIterator([batch(i) for i in range(6)]))
    first = next(batches)
    assert numbers([first, *batches.ahead(3)]) == [0, 1, 2, 3]
    assert batches.n == 1
    assert numbers(batches.ahead(2)) == [1, 2]
    assert numbers(batches) == [1, 2, 3, 4, 5]
    assert batches.ahead(3) == []
    assert not batches.has_next()


def test_looking_ahead_ends_with_the_epoch() -> None:
    """Also where fairseq shortens it."""
    batches = LookAheadIterator(CountingIterator([batch(i) for i in range(6)])).take(4)
    assert numbers([next(batches), *batches.ahead(9)]) == [0, 1, 2, 3]
    assert len(batches) == 4
    assert numbers(batches) == [1, 2, 3]


@pytest.mark.parametrize(
    ("updates", "expected"), [(1, [(0, [0, 1])]), (2, [(0, [0, 1]), (1, [2, 3])]), (9, None)]
)
def test_window_holds_the_updates_batches(updates: int, expected: Any) -> None:
    """Those of fairseq's group, then those of the groups after it, each with its own distance."""
    pool = RolloutPool(updates)
    groups = GroupedIterator(pool.watch(epoch_iterator()).next_epoch_itr(shuffle=False), 2)
    first = next(groups)
    window = pool.window(first[0])
    found = [
        (later, [int(one["id"]) for when, one in window if when == later])
        for later in sorted({w for w, _ in window})
    ]
    assert found == (expected or [(0, [0, 1]), (1, [2, 3]), (2, [4, 5]), (3, [6])])
    assert [numbers(group) for group in groups] == [[2, 3], [4, 5], [6]]


def test_window_of_a_later_update_begins_with_it() -> None:
    """Groups whose rollouts were waiting are not decoded again."""
    pool = RolloutPool(2)
    groups = GroupedIterator(pool.watch(epoch_iterator()).next_epoch_itr(shuffle=False), 1)
    windows = []
    for group in groups:
        if pool.waiting(group[0]) is None:
            window = pool.window(group[0])
            windows.append(numbers(one for _, one in window))
            for _, one in window:
                pool.keep(one, PooledRollout(torch.ones(1, dtype=torch.bool), None, 0))
    assert windows == [[0, 1], [2, 3], [4, 5], [6]]


def test_unknown_batch_is_alone() -> None:
    """Such as fairseq's dummy batch, or one of an iterator that nobody watches."""
    pool = RolloutPool(3)
    assert numbers(one for _, one in pool.window(batch(5))) == [5]
    groups = GroupedIterator(pool.watch(epoch_iterator()).next_epoch_itr(shuffle=False), 2)
    next(groups)
    assert numbers(one for _, one in pool.window(batch(50))) == [50]


def test_new_epoch_forgets_what_waits() -> None:
    """The same batch comes back every epoch, to a student that has changed."""
    pool, iterator = RolloutPool(2), epoch_iterator()
    assert pool.watch(iterator) is pool.watch(iterator)
    groups = GroupedIterator(iterator.next_epoch_itr(shuffle=False), 1)
    for group in groups:
        pool.keep(group[0], PooledRollout(torch.ones(1, dtype=torch.bool), None, 0))
    assert pool.waiting(batch(6)) is not None
    assert iterator.end_of_epoch()
    iterator.next_epoch_itr(shuffle=False)
    assert pool.waiting(batch(6)) is None
    assert iterator.epoch == 2


def test_checkpoints_count_what_was_trained_on() -> None:
    """Not what was looked at: a resumed epoch goes on with the next batch that was not."""
    pool, iterator = RolloutPool(3), epoch_iterator()
    groups = GroupedIterator(pool.watch(iterator).next_epoch_itr(shuffle=False), 2)
    pool.window(next(groups)[0])
    assert iterator.iterations_in_epoch == 2
    assert not iterator.end_of_epoch()
    resumed = epoch_iterator()
    resumed.load_state_dict(iterator.state_dict())
    rest = GroupedIterator(RolloutPool(3).watch(resumed).next_epoch_itr(shuffle=False), 2)
    assert rest.n == 1
    assert [numbers(group) for group in rest] == [[2, 3], [4, 5], [6]]
