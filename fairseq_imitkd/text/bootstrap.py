"""Paired bootstrap of a score of a corpus (Koehn, 2004), with sacreBLEU's settings: how much of a score is
chance.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sacrebleu.significance import estimate_ci

# sacreBLEU's defaults; SACREBLEU_SEED sets another seed.
RESAMPLES, SEED = 1000, "12345"


@dataclass(frozen=True)
class Difference:
    """The difference of two scores, and its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Bootstrap:
    """One score of one system: its value, and ``(RESAMPLES,)`` values on resampled test sets."""

    score: float
    resampled: np.ndarray

    def interval(self) -> tuple[float, float]:
        """Return the ends of the score's 95% interval."""
        mean, half = map(float, estimate_ci(self.resampled))
        return mean - half, mean + half

    def minus(self, other: "Bootstrap") -> Difference:
        """Return the difference from another system's score on the same resamples."""
        difference = Bootstrap(self.score - other.score, self.resampled - other.resampled)
        return Difference(difference.score, *difference.interval())

    def p(self, base: "Bootstrap") -> float | None:
        """Return the chance of a lead over the baseline this large, or behind it; None if no resample has a
        difference.

        It is sacreBLEU's p, which is one-sided: the chance of a difference this large in either direction is
        about twice as large. See
        https://github.com/mjpost/sacrebleu/blob/v2.6.0/sacrebleu/significance.py
        """
        if np.array_equal(self.resampled, base.resampled):
            return None
        differences = np.abs(self.resampled - base.resampled)
        larger = int((differences - differences.mean() > abs(base.score - self.score)).sum())
        return (larger + 1) / (RESAMPLES + 1)


def seed() -> str:
    """Return the seed of the resamples; ``none`` is a new one each time."""
    return os.environ.get("SACREBLEU_SEED", SEED).lower()


def resamples(count: int) -> np.ndarray:
    """Draw resamples of a corpus.

    Args:
        count: number ``N`` of its sentences.

    Returns:
        ``(RESAMPLES, N)`` float64: how often each resample has each sentence.
    """
    generator = np.random.default_rng(None if seed() == "none" else int(seed()))
    chosen = generator.choice(count, (RESAMPLES, count))
    return np.stack([np.bincount(numbers, minlength=count) for numbers in chosen]).astype(float)


def of_metric(metric: Any, texts: Sequence[str], times: np.ndarray) -> Bootstrap:
    """Return a score by one of sacreBLEU's metrics.

    Args:
        metric: the metric, made with its references.
        texts: ``N`` lines.
        times: resamples of :func:`resamples`, ``(RESAMPLES, N)``.
    """
    statistics = metric._extract_corpus_statistics(texts, None)
    # In single precision, as sacreBLEU has them; the sums themselves are whole numbers.
    sums = (times @ np.array(statistics, float)).astype("float32")
    resampled = np.array([metric._compute_score_from_stats(each).score for each in sums])
    return Bootstrap(float(metric._aggregate_and_compute(statistics).score), resampled)


def of_means(values: Sequence[float], times: np.ndarray) -> Bootstrap:
    """Return a score that is the mean of its sentences' scores, such as ROUGE.

    Args:
        values: ``N`` scores.
        times: resamples of :func:`resamples`, ``(RESAMPLES, N)``.
    """
    return Bootstrap(sum(values) / len(values), times @ np.array(values) / len(values))
