"""Minimum Bayes risk: all pairs at once, against sacreBLEU's own scores of each pair."""

import random
from functools import partial

import numpy as np
import pytest

from fairseq_imitkd.text.expected_utility import UTILITIES, expected_utilities, pairwise_utilities
from fairseq_imitkd.text.rewards import REWARDS

TEXTS = (
    "a man rides a horse .", "a man is riding a horse .", "the man rides the horse", "a man", "a", "",
    "a horse rides a man !", "a a a a a a a a", "ein Mann reitet auf einem Pferd .", "男の人が馬に乗る。",
    "x", "it's 3.5% of U.S. & more", "   spaces   ", "a man rides a horse .",
)  # fmt: skip


def random_texts(seed: int, number: int) -> list[str]:
    generator = random.Random(seed)
    words = ["a", "an", "banana", "the", "cat", "cats", ".", ",", "sat", "é"]
    return [" ".join(generator.choices(words, k=generator.randrange(0, 14))) for _ in range(number)]


@pytest.mark.parametrize("utility", UTILITIES)
@pytest.mark.parametrize("texts", [TEXTS, random_texts(1, 20), random_texts(2, 33), ["only one"], ["", ""]])
def test_pairs_have_the_scores_of_the_library(utility: str, texts: list[str]) -> None:
    expected = [[REWARDS[utility](text, reference) for reference in texts] for text in texts]
    np.testing.assert_allclose(pairwise_utilities(texts, utility), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("utility", UTILITIES)
def test_expected_utility_is_the_mean_over_all_texts(utility: str) -> None:
    """Equal texts count as often as they occur."""
    texts = [*random_texts(3, 9), *random_texts(3, 4), "a cat", "a cat", "a cat"]
    expected = [np.mean([REWARDS[utility](text, reference) for reference in texts]) for text in texts]
    np.testing.assert_allclose(
        expected_utilities(texts, partial(pairwise_utilities, utility=utility)), expected, rtol=0, atol=1e-12
    )


def test_hand_made_consensus() -> None:
    """The best candidate need not be the most frequent one: it is the one that is nearest to all."""
    texts = ["x y z", "x y z", "a b c d", "a b c e", "a b f d", "g b c d"]
    assert (
        texts[int(expected_utilities(texts, partial(pairwise_utilities, utility="sentence-bleu")).argmax())]
        == "a b c d"
    )
