"""Word and phoneme error rates, where a word has several right answers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from nltk.metrics.distance import edit_distance

RESAMPLES, SEED = 10_000, 12345


class Errors(NamedTuple):
    """Error rates of a test set, in per cent.

    Args:
        words: share of the words whose answer equals none of the right ones.
        phonemes: edits to each word's nearest right answer, by the phonemes of these right answers.
        right: for each word, whether it is right.
    """

    words: float
    phonemes: float
    right: list[bool]


def errors(answers: Sequence[str], right: Sequence[Sequence[str]]) -> Errors:
    """Return the error rates of answers.

    Args:
        answers: phonemes of each word, with blanks between them.
        right: all right answers of each word; at least one.
    """
    edits = phonemes = 0
    found = []
    for answer, every in zip(answers, right, strict=True):
        found.append(answer in every)
        symbols = answer.split()
        # Of equally near right answers, the longest one counts.
        nearest, length = min((edit_distance(symbols, each.split()), -len(each.split())) for each in every)
        edits, phonemes = edits + nearest, phonemes - length
    return Errors(100 * (1 - sum(found) / len(found)), 100 * edits / phonemes, found)


def packed(right: Sequence[bool]) -> str:
    """Return which words are right as hexadecimal digits, four words each."""
    return np.packbits(np.array(right, bool)).tobytes().hex()


def unpacked(text: str, words: int) -> np.ndarray:
    """Return which words are right: ``(words,)``, 0 or 1."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=words)


def chance(ones: np.ndarray, others: np.ndarray) -> tuple[float, tuple[float, float], float]:
    """Compare two methods by a paired bootstrap over the words, the same ones in every seed.

    A resample has the same words in every seed, and its difference is the mean over the seeds.

    Args:
        ones, others: ``(seeds, words)``, whether each word is right.

    Returns:
        the difference in right words in points of 100, its 95% interval, and the two-sided p-value.
    """
    # (words,): what a word adds to the difference, averaged over the seeds
    each = 100 * (ones.astype(float) - others.astype(float)).mean(axis=0)
    values, counts = np.unique(each, return_counts=True)
    # A resample draws words; only how often each value is drawn matters.
    drawn = np.random.default_rng(SEED).multinomial(len(each), counts / len(each), RESAMPLES)
    means = drawn @ values / len(each)
    low, high = np.percentile(means, [2.5, 97.5])
    tail = min((means <= 0).sum(), (means >= 0).sum())
    return float(each.mean()), (float(low), float(high)), min(1.0, 2 * (int(tail) + 1) / (RESAMPLES + 1))
