"""Makes the batches of a resumed training those of the training that was not stopped.

fairseq makes the batches of a training once, and draws the order of sentences of equal length by the seed and
the epoch in which it makes them. That is the first epoch, or the one that is resumed, which would have other
batches:
https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/tasks/fairseq_task.py#L286-L287
"""

import functools
from typing import Any

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
            return make(task, dataset, *more, **settings)
        seed, epoch = settings.get("seed", 1), settings.get("epoch", 1)
        batches = make(task, dataset, *more, **{**settings, "seed": seed + 1 - epoch})
        batches.seed = seed  # of the shuffling, which differs from epoch to epoch
        return batches

    FairseqTask.get_batch_iterator = make_batches


def _makes_batches_once(task: FairseqTask, dataset: Any, settings: dict[str, Any]) -> bool:
    each_epoch = ("disable_iterator_cache", "update_epoch_batch_itr")
    return task.can_reuse_epoch_itr(dataset) and not any(settings.get(name) for name in each_epoch)
