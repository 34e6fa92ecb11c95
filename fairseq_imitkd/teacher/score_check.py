"""Checks that a teacher knows the data of a task whose labels are numbers."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from fairseq import utils

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.teacher.classifier import ClassifyingTeacher

logger = logging.getLogger(__name__)

LABELS = 64  # that a teacher is asked about
LEAST = 32  # labels that show anything
WORSE = 1.5  # a teacher's squared error, as a multiple of the labels' variance, from which it is refused


def check_scores(
    teacher: ClassifyingTeacher, dataset: Any, *, paths: Sequence[str], allow_poor: bool = False
) -> None:
    """Log each member's squared error on labels, and refuse a member that is clearly worse than a constant.

    Its scores may have another unit, such as per cent, or its dictionary may be another training's.

    Args:
        teacher: the teacher, on its device.
        dataset: fairseq's data set with labels, which may be NaN.
        paths: the checkpoint of each member.
        allow_poor: ``--teacher-allow-poor``: only warn.

    Raises:
        UsageError: naming the member.
    """
    rows = _labelled(dataset, teacher.max_positions[0])
    if len(rows) < LEAST:
        logger.info("teacher: not compared with the labels, because there are only %d", len(rows))
        return
    batch = dataset.collater(rows)
    sample = utils.move_to_cuda(batch) if teacher.log_weights.is_cuda else batch
    labels = sample["target"].double().flatten()
    variance = float(labels.var(unbiased=False))
    for path, scores in zip(paths, teacher.each_score(sample), strict=True):
        error = float((scores.double() - labels).square().mean())
        known = f"squared error {error:.4g} on {len(labels)} labels, whose variance is {variance:.4g}"
        logger.info("teacher %s: %s", path, known)
        if error <= WORSE * variance:
            continue
        message = f"--teacher-path '{path}' does not know this data: {known}"
        if not allow_poor:
            raise UsageError(
                f"{message}; check its labels' unit and --teacher-data, or add --teacher-allow-poor"
            )
        logger.warning("%s", message)


def _labelled(dataset: Any, longest: int) -> list[Any]:
    """Return sentences with a label, drawn from the whole data set, in which few may have one."""
    found: list[Any] = []
    for number in np.random.RandomState(0).permutation(len(dataset)).tolist():
        row = dataset[number]
        if not math.isnan(row["target"][0]) and row["net_input.src_tokens"].numel() <= longest:
            found.append(row)
        if len(found) == LABELS:
            break
    return found
