"""Tasks whose labels are numbers: the methods that can train them, exact labels, and the correlations of a
validation.
"""

import math
from typing import Any

import torch
import torch.distributed
from fairseq.data import RawLabelDataset
from fairseq.logging import metrics
from fairseq.logging.meters import Meter
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.method.method import Method
from fairseq_imitkd.teacher.selection import several_processes

PEARSON, SPEARMAN = "pearson", "spearman"  # as the log calls them
Pairs = dict[int, tuple[float, float]]  # the number of a sentence -> its score and its label


def check_regression(method: Method) -> None:
    """Refuse a method or a flag that needs classes.

    Raises:
        UsageError: naming the flag.
    """
    cfg, needed = method.cfg, ""
    for name, is_used in (
        (f"--label-smoothing {cfg.label_smoothing}", cfg.label_smoothing > 0),
        (f"--token-selection {cfg.token_selection}", str(cfg.token_selection) != "all"),
        (f"--loss-chunk {cfg.loss_chunk}", cfg.loss_chunk > 0),
    ):
        needed = needed or (name if is_used else "")
    if not method.compares_logits:
        raise UsageError(
            f"--divergence {cfg.divergence} compares classes, but --regression-target has none: add "
            "--divergence logit-mse, or use --criterion annealing_kd or continuation_kd"
        )
    if needed:
        raise UsageError(f"{needed} needs classes, but --regression-target has none: leave it out")


def give_exact_labels(dataset: Any, path: str) -> None:
    """Make a data set of ``sentence_prediction`` give its labels in float64.

    Args:
        dataset: fairseq's data set, sorted or not.
        path: the file of its labels, for messages.

    Raises:
        UsageError: there are more or fewer labels than sentences, or one is infinite.
    """
    sentences = getattr(dataset, "dataset", dataset)
    labels = sentences.defn["target"].labels
    if len(labels) != len(sentences):
        raise UsageError(f"{path} has {len(labels):,} labels for {len(sentences):,} sentences; make it again")
    infinite = next((line for line, [label] in enumerate(labels, 1) if math.isinf(label)), None)
    if infinite is not None:
        raise UsageError(f"line {infinite} of {path} is infinite; write a number, or nan for no label")
    sentences.defn["target"] = ExactLabels(labels)


class ExactLabels(RawLabelDataset):
    """Labels in float64, because fairseq's trainer rounds all float32 of a batch under ``--fp16``:

    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/trainer.py#L1337-L1341
    """

    def collater(self, samples: list[list[float]]) -> Tensor:
        """Return the labels of ``B`` sentences, ``(B, 1)``."""
        return torch.tensor(samples, dtype=torch.float64)


class Correlations:
    """Collects a validation's scores, and logs Pearson's and Spearman's correlation with the labels.

    Spearman's needs all scores at once, so it is not a quotient of sums, as fairseq's other metrics are.
    """

    def __init__(self) -> None:
        self._pairs: Pairs = {}

    def add(self, numbers: Tensor, scores: Tensor, labels: Tensor) -> None:
        """Add a batch of ``B`` sentences. All processes call this together, with filler batches too.

        A filler batch repeats sentences, which count once. A sentence without a label does not count.

        Args:
            numbers: ``(B,)``, the sentences' numbers in the data.
            scores: ``(B,)``, the student's.
            labels: ``(B,)``, NaN where there is none.
        """
        rows = zip(*(values.double().tolist() for values in (numbers, scores, labels)), strict=True)
        own: Pairs = {int(number): (score, label) for number, score, label in rows if not math.isnan(label)}
        gathered = [own]
        if several_processes():
            gathered = [{} for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(gathered, own)
        for pairs in gathered:
            self._pairs.update(pairs)

    def log(self) -> None:
        """Log the batches since the last call, if there were any."""
        if self._pairs:
            metrics.log_custom(_PairsMeter, "_scores", self._pairs)  # fairseq hides names that begin with _
            metrics.log_derived(PEARSON, lambda meters: correlation(pearsonr, meters["_scores"].pairs))
            metrics.log_derived(SPEARMAN, lambda meters: correlation(spearmanr, meters["_scores"].pairs))
            self._pairs = {}


def correlation(statistic: Any, pairs: Pairs) -> float:
    """Return a correlation of scores and labels; 0 if one of them does not vary, where it is undefined.

    Args:
        statistic: scipy's function.
        pairs: the scores and labels.
    """
    scores, labels = zip(*pairs.values(), strict=True)
    if len(set(scores)) < 2 or len(set(labels)) < 2:
        return 0.0
    return round(float(statistic(scores, labels)[0]), 4)


class _PairsMeter(Meter):
    """The scores of a validation so far."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.pairs: Pairs = {}

    def update(self, pairs: Pairs) -> None:
        self.pairs.update(pairs)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass
