"""The pool: which batches are decoded together. Looking ahead does not change fairseq's iteration."""

from typing import Any

import pytest
import torch
from fairseq.data.iterators import CountingIterator, EpochBatchIterator, GroupedIterator

from fairseq_imitkd.mixing.pool import BatchRollout, LookAheadIterator, RolloutPool


def batch(number: int) -> dict[str, Any]:
    """Return a batch that has only a name."""
    return {"id": torch.tensor([number])}


class Numbers(torch.utils.data.Dataset):
    """A data set whose sentences are their own numbers, one in each batch."""

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


def test_looking_ahead_does_not_change_the_iteration() -> None:
    """Every batch is returned once, in order. The iterator counts only returned batches."""
    batches = LookAheadIterator(CountingIterator([batch(i) for i in range(6)]))
    first = next(batches)
    assert numbers([first, *batches.ahead(3)]) == [0, 1, 2, 3]
    assert batches.n == 1
    assert numbers(batches.ahead(2)) == [1, 2]
    assert numbers(batches) == [1, 2, 3, 4, 5]
    assert batches.ahead(3) == []
    assert not batches.has_next()


def test_looking_ahead_ends_with_the_epoch() -> None:
    """This also holds if fairseq shortens the epoch."""
    batches = LookAheadIterator(CountingIterator([batch(i) for i in range(6)])).take(4)
    assert numbers([next(batches), *batches.ahead(9)]) == [0, 1, 2, 3]
    assert len(batches) == 4
    assert numbers(batches) == [1, 2, 3]


@pytest.mark.parametrize(
    ("updates", "expected"), [(1, [(0, [0, 1])]), (2, [(0, [0, 1]), (1, [2, 3])]), (9, None)]
)
def test_window_holds_the_updates_batches(updates: int, expected: Any) -> None:
    """The window holds the batches of the current group and of the following groups, each with its distance
    in updates.
    """
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
    """Groups whose rollouts are ready are not decoded again."""
    pool = RolloutPool(2)
    groups = GroupedIterator(pool.watch(epoch_iterator()).next_epoch_itr(shuffle=False), 1)
    windows = []
    for group in groups:
        if pool.waiting(group[0]) is None:
            window = pool.window(group[0])
            windows.append(numbers(one for _, one in window))
            for _, one in window:
                pool.keep(one, BatchRollout(torch.ones(1, dtype=torch.bool), None, 0))
    assert windows == [[0, 1], [2, 3], [4, 5], [6]]


def test_unknown_batch_is_alone() -> None:
    """fairseq's dummy batch and batches of other iterators are decoded alone."""
    pool = RolloutPool(3)
    assert numbers(one for _, one in pool.window(batch(5))) == [5]
    groups = GroupedIterator(pool.watch(epoch_iterator()).next_epoch_itr(shuffle=False), 2)
    next(groups)
    assert numbers(one for _, one in pool.window(batch(50))) == [50]


def test_new_epoch_drops_waiting_rollouts() -> None:
    """The same batch returns in every epoch, but the student has changed."""
    pool, iterator = RolloutPool(2), epoch_iterator()
    assert pool.watch(iterator) is pool.watch(iterator)
    groups = GroupedIterator(iterator.next_epoch_itr(shuffle=False), 1)
    for group in groups:
        pool.keep(group[0], BatchRollout(torch.ones(1, dtype=torch.bool), None, 0))
    assert pool.waiting(batch(6)) is not None
    assert iterator.end_of_epoch()
    iterator.next_epoch_itr(shuffle=False)
    assert pool.waiting(batch(6)) is None
    assert iterator.epoch == 2


def test_checkpoints_count_the_batches_trained_on() -> None:
    """A resumed epoch continues with the first batch that was not trained on, even if the pool had
    read it.
    """
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


def test_watching_again_changes_nothing() -> None:
    """fairseq returns the same iterator every epoch. Its batches pass through the pool only once."""
    pool, iterator = RolloutPool(2), epoch_iterator()
    for _ in range(3):
        pool.watch(iterator)
    batches = iterator.next_epoch_itr(shuffle=False)
    assert isinstance(batches, LookAheadIterator)
    assert not isinstance(batches.batches, LookAheadIterator)


def test_arguments_of_an_epoch_reach_the_iterator() -> None:
    """The pool passes on positional and keyword arguments."""
    calls: list[Any] = []

    class Epoch:
        def next_epoch_itr(self, *args: Any, **kwargs: Any) -> CountingIterator:
            calls.append((args, kwargs))
            return CountingIterator([], start=0)

    assert numbers(RolloutPool().watch(Epoch()).next_epoch_itr(False, fix_batches_to_gpus=True)) == []
    assert calls == [((False,), {"fix_batches_to_gpus": True})]
