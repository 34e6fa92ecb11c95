"""Tasks whose labels are classes: their number, and the methods that can train them."""

import os

from fairseq.data import Dictionary

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.method.method import Method


def check_num_classes(classes: int, labels: Dictionary, data: str) -> None:
    """Refuse another number of classes than the data have.

    Args:
        classes: ``--num-classes``.
        labels: dictionary of the labels. fairseq's own symbols do not count, nor those that it adds to reach
            a multiple of eight.
        data: folder of the data, for messages.

    Raises:
        UsageError: naming the flag.
    """
    symbols = labels.symbols[labels.nspecial :]
    found = sum(symbol != "<mask>" and not symbol.startswith("madeupword") for symbol in symbols)
    if found != classes:
        file = os.path.join(data, "label", "dict.txt")
        raise UsageError(
            f"--num-classes {classes} is not the number of labels in {file}: give --num-classes {found}"
        )


def check_classification(method: Method, classes: int) -> None:
    """Refuse settings that change nothing where there are few classes.

    Args:
        method: the method.
        classes: ``--num-classes``.

    Raises:
        UsageError: naming the flag.
    """
    cfg = method.cfg
    if cfg.loss_chunk > 0:
        raise UsageError(
            f"--loss-chunk {cfg.loss_chunk} changes nothing, because there are few classes: leave it out"
        )
    if cfg.teacher_topk >= classes:
        raise UsageError(
            f"--teacher-topk {cfg.teacher_topk} changes nothing, because there are {classes} classes "
            "(--num-classes): lower it or leave it out"
        )
