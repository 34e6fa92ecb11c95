"""Whether an exported student is still the student: its probabilities, its translations, its BLEU."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import sacrebleu
import torch
from torch import Tensor

from fairseq_imitkd.engines.exported import Engine

TOLERANCE = 1e-4  # of a log-probability, in nats
BATCH = 32  # sentences


@dataclass(frozen=True)
class Agreement:
    """How far one engine's greedy translations are another's.

    Args:
        sentences: that were translated.
        identical: how many are the same.
        tokens: the share of the other's tokens that are the same at the same place.
        unexplained: where they part though the two tokens were no tie.
    """

    sentences: int
    identical: int
    tokens: float
    unexplained: int


def batches(sources: Sequence[Tensor]) -> Iterator[list[int]]:
    """Numbers of sentences, by falling length."""
    order = sorted(range(len(sources)), key=lambda number: -sources[number].numel())
    for start in range(0, len(order), BATCH):
        yield order[start : start + BATCH]


def lprob_difference(
    ours: Engine, fairseqs: Engine, sources: Sequence[Tensor], targets: Sequence[Tensor]
) -> float:
    """The most by which a target's token differs in log-probability; infinity where one is no number.

    Args:
        ours, fairseqs: the two engines.
        sources, targets: ``(S,)`` and ``(T,)`` int64 each, with an EOS.
    """
    largest = 0.0
    for numbers in batches(sources):
        pairs = [sources[number] for number in numbers], [targets[number] for number in numbers]
        for own, theirs in zip(ours.score(*pairs), fairseqs.score(*pairs), strict=True):
            difference = (own.double() - theirs.double()).abs().max().item()
            largest = max(largest, difference if difference == difference else float("inf"))
    return largest


def translations(engine: Engine, sources: Sequence[Tensor]) -> list[Tensor]:
    """Each sentence's best translation, ``(T,)`` with an EOS."""
    found: dict[int, Tensor] = {}
    for numbers in batches(sources):
        every = engine.translate(numbers, [sources[number] for number in numbers], 1)
        found.update(zip(numbers, (best[0].tokens for best in every), strict=True))
    return [found[number] for number in range(len(sources))]


def agreement(
    own: Sequence[Tensor], theirs: Sequence[Tensor], fairseqs: Engine, sources: Sequence[Tensor]
) -> Agreement:
    """Compare greedy translations of the same sentences.

    Where probabilities agree within :data:`TOLERANCE`, two greedy decoders can part only at tokens that are as probable
    within twice as much: anything else is a fault.

    Args:
        own, theirs: the translations, theirs by fairseq.
        fairseqs: what says how probable a token is.
        sources: of the translations.
    """
    unexplained, same, total = 0, 0, 0
    for source, mine, other in zip(sources, own, theirs, strict=True):
        shorter = min(mine.numel(), other.numel())
        equal = mine[:shorter].eq(other[:shorter])
        same, total = same + int(equal.sum()), total + other.numel()
        if torch.equal(mine, other):
            continue
        place = int(equal.long().argmin()) if not bool(equal.all()) else shorter - 1
        [first], [second] = fairseqs.score([source], [other]), fairseqs.score([source], [mine])
        if not abs(float(first[place] - second[place])) <= 2 * TOLERANCE:
            unexplained += 1
    identical = sum(torch.equal(mine, other) for mine, other in zip(own, theirs, strict=True))
    return Agreement(len(own), identical, same / max(total, 1), unexplained)


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """sacreBLEU, and its signature."""
    metric = sacrebleu.BLEU()
    return metric.corpus_score(list(hypotheses), [list(references)]).score, str(metric.get_signature())
