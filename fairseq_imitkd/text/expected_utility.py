"""Minimum Bayes risk: how similar is each translation of a sentence to all the others?

The expected utility of a translation, over a model's distribution, is estimated by its mean similarity to
samples or to the n best (Eikema & Aziz 2020, sampling-based minimum Bayes risk decoding). All pairs of a
sentence's translations are compared at once: their common n-grams are the product of two 0/1 matrices.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fairseq_imitkd.text.rewards import REWARDS, chrf_metric, sentence_bleu_metric

UTILITIES = tuple(REWARDS)


def expected_utilities(texts: Sequence[str], pairwise: Callable[[list[str]], np.ndarray]) -> np.ndarray:
    """Return the mean utility of each text with all texts as references, itself included.

    Args:
        texts: ``N`` translations of a sentence; equal ones count as often as they occur.
        pairwise: function from ``M`` different texts to the utility of each with each, ``(M, M)``, such as
            :func:`pairwise_utilities`.

    Returns:
        ``(N,)`` float64.
    """
    different, places, counts = np.unique(
        np.array(texts, dtype=object), return_inverse=True, return_counts=True
    )
    means = pairwise(list(different)) @ (counts / counts.sum())
    return means[places]


def pairwise_utilities(texts: Sequence[str], utility: str) -> np.ndarray:
    """Return the utility of every text with every text as its reference.

    The values are those of :data:`~fairseq_imitkd.text.rewards.REWARDS`, which are sacreBLEU's and
    rouge-score's.

    Args:
        texts: ``N`` translations of a sentence.
        utility: one of :data:`UTILITIES`.

    Returns:
        ``(N, N)`` float64, in 0..1: row ``i``, column ``j`` is text ``i`` with reference ``j``.
    """
    if utility == "chrf":
        return _chrf(texts)
    if utility == "sentence-bleu":
        return _sentence_bleu(texts)
    return np.array([[REWARDS[utility](text, reference) for reference in texts] for text in texts])


def _chrf(texts: Sequence[str]) -> np.ndarray:
    """Return sacreBLEU's chrF2 of all pairs, ``(N, N)``.

    https://github.com/mjpost/sacrebleu/blob/v2.5.1/sacrebleu/metrics/chrf.py#L108-L150
    """
    metric = chrf_metric()
    letters = [np.array([ord(letter) for letter in "".join(text.split())], np.int64) for text in texts]
    precision, recall, orders = (np.zeros((len(texts), len(texts))) for _ in range(3))
    for common, numbers in _common_ngrams(letters, metric.char_order):
        counts = (numbers[:, None] > 0) & (numbers[None, :] > 0)
        precision += np.where(counts, common / np.maximum(numbers, 1)[:, None], 0.0)
        recall += np.where(counts, common / np.maximum(numbers, 1)[None, :], 0.0)
        orders += counts
    precision, recall = (value / np.maximum(orders, 1) for value in (precision, recall))
    factor = metric.beta**2
    weighted = factor * precision + recall
    return (1 + factor) * precision * recall / np.where(weighted > 0, weighted, 1.0)


def _sentence_bleu(texts: Sequence[str]) -> np.ndarray:
    """Return sacreBLEU's sentence BLEU of all pairs, ``(N, N)``: exponential smoothing, effective order.

    https://github.com/mjpost/sacrebleu/blob/v2.5.1/sacrebleu/metrics/bleu.py#L260-L330
    """
    metric = sentence_bleu_metric()
    words = [metric.tokenizer(text.rstrip()).split() for text in texts]
    known: dict[str, int] = {}
    tokens = [np.array([known.setdefault(word, len(known)) for word in some], np.int64) for some in words]
    lengths = np.array([len(some) for some in tokens], dtype=np.float64)
    size = (len(texts), len(texts))
    log_precision, smoothing, any_common = np.zeros(size), np.ones(size), np.zeros(size, dtype=bool)
    effective_order = np.zeros((len(texts), 1))
    for common, numbers in _common_ngrams(tokens, metric.max_ngram_order):
        has_ngrams = numbers[:, None] > 0
        smoothing = np.where(common == 0, smoothing * 2.0, smoothing)
        matched = np.where(common == 0, 1.0 / smoothing, common)
        log_precision += np.where(has_ngrams, np.log(matched / np.maximum(numbers, 1)[:, None]), 0.0)
        effective_order += has_ngrams
        any_common |= common > 0
    shortness = np.minimum(1.0 - lengths[None, :] / np.maximum(lengths, 1)[:, None], 0.0)
    score = np.exp(shortness + log_precision / np.maximum(effective_order, 1))
    return np.where(any_common, score, 0.0)


def _common_ngrams(sequences: Sequence[np.ndarray], longest: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the common n-grams of all pairs of ``N`` sequences, for ``n`` from 1 to ``longest``.

    An n-gram that occurs twice in both has two common occurrences: the k-th occurrence of an n-gram is a
    feature of its own, so counting common features is a product of matrices.

    Args:
        sequences: ``(T,)`` int64 each.
        longest: greatest ``n``.

    Yields:
        ``(N, N)`` numbers of common n-grams, and ``(N,)`` numbers of n-grams.
    """
    lengths = np.array([len(sequence) for sequence in sequences])
    owners = np.repeat(np.arange(len(sequences)), lengths)
    left = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)  # tokens to the left
    left = np.repeat(lengths, lengths) - left  # tokens from here to the end
    tokens = np.unique(np.concatenate([*sequences, np.empty(0, np.int64)]), return_inverse=True)[1]
    ngrams, starts = tokens, np.arange(len(tokens))
    for order in range(1, longest + 1):
        if order > 1:  # an n-gram is the one before it and one more token
            fits = left[starts] >= order
            starts, ngrams = starts[fits], ngrams[fits]
            longer = ngrams * (tokens.max(initial=0) + 1) + tokens[starts + order - 1]
            ngrams = np.unique(longer, return_inverse=True)[1]
        numbers = np.bincount(owners[starts], minlength=len(sequences))
        yield _common(owners[starts], ngrams, len(sequences)), numbers


def _common(owners: np.ndarray, ngrams: np.ndarray, texts: int) -> np.ndarray:
    """Return the numbers of common occurrences, ``(N, N)``."""
    order = np.lexsort((ngrams, owners))
    owner, ngram = owners[order], ngrams[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (owner[1:] != owner[:-1]) | (ngram[1:] != ngram[:-1])
    place = np.arange(len(order))
    occurrence = place - np.maximum.accumulate(np.where(begins, place, 0))
    features = np.unique(ngram * (occurrence.max(initial=0) + 1) + occurrence, return_inverse=True)[1]
    present = np.zeros((texts, features.max(initial=-1) + 1), dtype=np.float32)
    present[owner, features] = 1.0
    return (present @ present.T).astype(np.float64)
