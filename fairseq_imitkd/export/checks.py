"""Comparison of an exported student with fairseq's: log-probabilities, greedy translations, a score."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sacrebleu.metrics import BLEU, CHRF, TER
from torch import Tensor

from fairseq_imitkd.engines.base import Engine
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.text import bootstrap
from fairseq_imitkd.text.bootstrap import Bootstrap, Difference
from fairseq_imitkd.text.scores import LESS_IS_BETTER, SCORES, CorpusScores, rouge_scorer

METRICS: dict[str, Any] = {"bleu": BLEU, "chrf": CHRF, "ter": TER}  # sacreBLEU's, by their names in SCORES
TOLERANCE = 1e-4  # of a log-probability, in nats
BATCH = 32  # sentences


@dataclass(frozen=True)
class Agreement:
    """The agreement of two engines' greedy translations.

    Args:
        sentences: number of sentences.
        identical: number of sentences with identical translations.
        tokens: share of fairseq's tokens that the other engine has at the same position.
        unexplained: number of sentences that first differ where the two tokens are not a tie.
    """

    sentences: int
    identical: int
    tokens: float
    unexplained: int


def batches(sources: Sequence[Tensor]) -> Iterator[list[int]]:
    """Yield the numbers of the sentences in batches, longest sentences first."""
    order = sorted(range(len(sources)), key=lambda number: -sources[number].numel())
    for start in range(0, len(order), BATCH):
        yield order[start : start + BATCH]


def lprob_difference(
    ours: Engine, fairseqs: Engine, *, sources: Sequence[Tensor], targets: Sequence[Tensor]
) -> float:
    """Return the largest difference between two engines' log-probabilities of a target token.

    Args:
        ours: engine that is checked.
        fairseqs: engine that it is compared with.
        sources: ``N`` tensors ``(S,)`` int64 with an EOS.
        targets: ``N`` tensors ``(T,)`` int64 with an EOS.

    Returns:
        the difference in nats; infinity if a log-probability is not a number.
    """
    largest = 0.0
    for numbers in batches(sources):
        pairs = [sources[number] for number in numbers], [targets[number] for number in numbers]
        for own, theirs in zip(ours.score(*pairs), fairseqs.score(*pairs), strict=True):
            difference = (own.double() - theirs.double()).abs().max().item()
            largest = max(largest, difference if difference == difference else float("inf"))
    return largest


def translations(engine: Engine, sources: Sequence[Tensor]) -> list[Tensor]:
    """Return each sentence's best translation, ``(T,)`` int64 with an EOS, in the order of the sources."""
    found: dict[int, Tensor] = {}
    for numbers in batches(sources):
        hypotheses = engine.translate(numbers, [sources[number] for number in numbers], 1)
        found.update(zip(numbers, (best[0].tokens for best in hypotheses), strict=True))
    return [found[number] for number in range(len(sources))]


def agreement(
    own: Sequence[Tensor], theirs: Sequence[Tensor], fairseqs: Engine, *, sources: Sequence[Tensor]
) -> Agreement:
    """Compare greedy translations of the same sentences.

    If two models' log-probabilities agree within :data:`TOLERANCE`, their greedy translations can first
    differ only where the two tokens' log-probabilities differ by at most twice the tolerance. Any other
    difference is a fault.

    Args:
        own: translations by the engine that is checked.
        theirs: translations by fairseq.
        fairseqs: engine that says how probable a token is.
        sources: the sentences.
    """
    unexplained, same, total = 0, 0, 0
    for source, mine, other in zip(sources, own, theirs, strict=True):
        shorter = min(mine.numel(), other.numel())
        equal = mine[:shorter].eq(other[:shorter])
        same, total = same + int(equal.sum()), total + other.numel()
        if torch.equal(mine, other):
            continue
        position = int(equal.long().argmin()) if not bool(equal.all()) else shorter - 1
        [first], [second] = fairseqs.score([source], [other]), fairseqs.score([source], [mine])
        if not abs(float(first[position] - second[position])) <= 2 * TOLERANCE:
            unexplained += 1
    identical = sum(torch.equal(mine, other) for mine, other in zip(own, theirs, strict=True))
    return Agreement(len(own), identical, same / max(total, 1), unexplained)


def refuse_another_model(difference: float, agreement: Agreement) -> None:
    """Refuse an exported model that is not the student.

    Args:
        difference: what :func:`lprob_difference` has found.
        agreement: what :func:`agreement` has found.

    Raises:
        UsageError: the difference is too large, or translations differ without a tie.
    """
    if not difference <= TOLERANCE:
        raise UsageError(
            f"the exported student is not the student: a log-probability differs by {difference:.2g}, more "
            f"than {TOLERANCE:g}; nothing was written. Please report it with the checkpoint's --arch "
            "and flags"
        )
    if agreement.unexplained:
        raise UsageError(
            f"the exported student is not the student: {agreement.unexplained} of {agreement.sentences} "
            "greedy translations differ beyond ties; nothing was written. Please report it with the "
            "checkpoint's --arch and flags"
        )


class Scorer:
    """The score by which exported models are compared with the student, in points of 0 to 100.

    Args:
        name: key of :data:`~fairseq_imitkd.text.scores.SCORES`.
        references: ``N`` lines.

    Attributes:
        signature: settings with which the score is comparable.
    """

    def __init__(self, name: str, references: Sequence[str]):
        self.name, self.references = name, references
        self.times = bootstrap.resamples(len(references))
        self._metric = METRICS[name](references=[list(references)]) if name in METRICS else None
        self.signature = CorpusScores([name]).signatures()[SCORES[name]]

    def score(self, texts: Sequence[str]) -> Bootstrap:
        """Return the score of ``N`` lines, and those of its resamples."""
        if self._metric is not None:
            return bootstrap.of_metric(self._metric, texts, self.times)
        pairs = zip(self.references, texts, strict=True)
        if self.name == "exact":
            values = [float(reference == text) for reference, text in pairs]
        else:
            kind = SCORES[self.name]
            scorer = rouge_scorer((kind,))
            values = [scorer.score(reference, text)[kind].fmeasure for reference, text in pairs]
        return bootstrap.of_means([100.0 * value for value in values], self.times)

    def loss(self, own: Bootstrap, exact: Bootstrap) -> Difference:
        """Return what a quantised model loses against the exact one; positive values are losses."""
        return own.minus(exact) if self.name in LESS_IS_BETTER else exact.minus(own)


def is_too_large(loss: Difference, max_loss: float) -> bool:
    """Return whether a quantisation is refused: it loses more than allowed, and not by chance."""
    return loss.value > max_loss and loss.low > 0.0
