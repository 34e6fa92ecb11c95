"""Makes the batches of a resumed training those of the training that was not stopped.

fairseq makes the batches of a training once, and draws the order of sentences of equal length by the seed and
the epoch in which it makes them. That is the first epoch, or the one that is resumed, which would have other
batches:
https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/tasks/fairseq_task.py#L286-L287

It also decides in the first epoch of a process whether batches are shuffled, and keeps that. So the order of
``--curriculum`` would have no end, or none of it would be left in a resumed run:
https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/data/iterators.py#L484-L486
"""

import functools
from typing import Any

from fairseq.data.iterators import EpochBatchIterator
from fairseq.tasks import FairseqTask


def order_without_epochs() -> None:
    """Replace the method of every fairseq task that makes batches. The order does not depend on the epoch.

    The replacement holds for the whole process, for the reason that
    :func:`~fairseq_imitkd.checkpoints.guard.guard_fairseq` gives. A second call changes nothing.
    """
    make = FairseqTask.get_batch_iterator
    if hasattr(make, "__wrapped__"):
        return

    @functools.wraps(make)
    def make_batches(task: FairseqTask, dataset: Any, *more: Any, **settings: Any) -> Any:
        if not _makes_batches_once(task, dataset, settings):
            return _shuffled_as_asked(make(task, dataset, *more, **settings))
        seed, epoch = settings.get("seed", 1), settings.get("epoch", 1)
        batches = make(task, dataset, *more, **{**settings, "seed": seed + 1 - epoch})
        batches.seed = seed  # of the shuffling, which differs from epoch to epoch
        return _shuffled_as_asked(batches)

    FairseqTask.get_batch_iterator = make_batches


def _shuffled_as_asked(batches: EpochBatchIterator) -> EpochBatchIterator:
    """Shuffle each epoch's batches if that epoch's call asks for it. A second call changes nothing."""
    begin = batches._get_iterator_for_epoch
    if hasattr(begin, "__wrapped__"):
        return batches

    @functools.wraps(begin)
    def begin_epoch(epoch: int, shuffle: bool, *more: Any, **settings: Any) -> Any:
        sampler = getattr(batches, "epoch_batch_sampler", None)  # of an earlier epoch
        if sampler is not None:
            sampler.shuffle = shuffle
        return begin(epoch, shuffle, *more, **settings)

    batches._get_iterator_for_epoch = begin_epoch
    return batches


def _makes_batches_once(task: FairseqTask, dataset: Any, settings: dict[str, Any]) -> bool:
    each_epoch = ("disable_iterator_cache", "update_epoch_batch_itr")
    return task.can_reuse_epoch_itr(dataset) and not any(settings.get(name) for name in each_epoch)
