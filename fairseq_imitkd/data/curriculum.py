"""A curriculum: the sentences with the highest scores come first.

Instance-level curricula order training examples by how well a snapshot of the student does on them (Zhao et
al. 2021, https://arxiv.org/abs/2106.10885, for images). fairseq's ``--curriculum N`` keeps the order of the
data set in the first N epochs.
"""

import math
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from fairseq.data import BaseWrapperDataset

from fairseq_imitkd.errors import UsageError, as_usage_error

BUCKETS = 10  # of equal size: within one, batches have sentences of similar length


class HighestFirst(BaseWrapperDataset):
    """Sentences in buckets by their scores, the highest scores first; within a bucket the shortest first.

    Args:
        dataset: the sentences.
        scores: ``(N,)`` float64, a score for each.
    """

    def __init__(self, dataset: Any, scores: np.ndarray):
        super().__init__(dataset)
        self._bucket = np.empty(len(scores), dtype=np.int64)
        self._bucket[np.argsort(-scores, kind="stable")] = np.arange(len(scores)) * BUCKETS // len(scores)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the sentences, such as ``tgt``: they are the same."""
        if name == "dataset":  # it is not there yet while a process unpickles this
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def ordered_indices(self) -> np.ndarray:
        """Return the numbers of the sentences in that order, ``(N,)`` int64."""
        found = self.dataset.ordered_indices()
        return found[np.argsort(self._bucket[found], kind="stable")]


def read_scores(path: str) -> np.ndarray:
    """Return the numbers of ``--curriculum-scores``, one in each line, ``(N,)`` float64.

    Raises:
        UsageError: the file can't be read, or a line is not a finite number.
    """
    remedy = "write one for each training sentence, in the order of the text"
    found = array("d")
    with (
        as_usage_error(f"--curriculum-scores '{path}' can't be read", catch=(OSError, UnicodeDecodeError)),
        open(Path(path), encoding="utf-8-sig") as file,
    ):
        for number, line in enumerate(file, 1):
            try:
                score = float(line)
            except ValueError:
                score = math.nan
            if not math.isfinite(score):
                raise UsageError(
                    f"--curriculum-scores '{path}' must have a number in each line, but line {number} is "
                    f"'{line.strip()[:30]}'; {remedy}"
                )
            found.append(score)
    return np.frombuffer(found) if found else np.empty(0)
