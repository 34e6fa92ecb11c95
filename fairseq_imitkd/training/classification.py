"""Tasks whose labels are classes: the flags of labels, the number of classes, and the methods that can train
them.
"""

import os
from dataclasses import dataclass, field

from fairseq.data import Dictionary
from fairseq.dataclass import FairseqDataclass
from omegaconf import II

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.method.method import Method


@dataclass
class LabelConfig(FairseqDataclass):
    """The flags of labels, which are classes or numbers."""

    # fairseq reads these two from its own criterion's settings; here they belong to the task:
    # https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/tasks/sentence_prediction.py#L83-L84
    regression_target: bool = field(
        default=False,
        metadata={
            "help": "labels are numbers, and the student learns the label and the teacher's score by their "
            "squared errors; nan is a pair without a label (with --num-classes 1)"
        },
    )
    classification_head_name: str = field(
        default="sentence_classification_head",
        metadata={"help": "name of the classification head of the student and of the teacher"},
    )
    best_checkpoint_metric: str = II("checkpoint.best_checkpoint_metric")
    maximize_best_checkpoint_metric: bool = II("checkpoint.maximize_best_checkpoint_metric")


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
