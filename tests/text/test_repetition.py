"""What repeats itself, by a search that shares nothing with the code."""

import itertools
import random
import re

import pytest
import torch

from fairseq_imitkd.text.repetition import LONGEST, REPEATS, repeated, repeats


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a man a man a man", True),
        ("he saw a man a man a man .", True),
        ("a man a man", False),
        ("very very", False),
        ("very very very", True),
        ("one two three one two three one two", False),
        ("one two three one two three one two three", True),
        ("x one two x one two y one two", False),
        ("", False),
        ("word", False),
    ],
)
def test_repetition(text: str, expected: bool) -> None:
    """Three times or more in a row."""
    assert repeats(text) is expected


def test_repetition_is_what_a_search_for_it_finds() -> None:
    """On all short sequences of two words, by a regular expression that shares nothing with the code."""
    for length in range(10):
        for words in itertools.product("ab", repeat=length):
            assert repeats(" ".join(words)) is bool(re.search(r"(.+)\1\1", "".join(words))), words


def found_by_hand(tokens: list[int]) -> list[bool]:
    """Return, for each place, whether the last tokens are the same phrase three times."""
    return [
        any(
            end >= REPEATS * size and tokens[end - REPEATS * size : end] == REPEATS * tokens[end - size : end]
            for size in range(1, LONGEST + 1)
        )
        for end in range(1, len(tokens) + 1)
    ]


@pytest.mark.parametrize("symbols", [1, 2, 3, 9])
def test_all_rows_are_compared_at_once(symbols: int) -> None:
    """Random tokens, with phrases that are repeated, padded to one width."""
    generator, rows = random.Random(symbols), [[], [7], [7, 7], [7, 7, 7]]
    for _ in range(40):
        row = [generator.randrange(symbols) for _ in range(generator.randint(1, 20))]
        rows.append(row + row[-generator.randint(1, 8) :] * generator.randint(0, 4) + [symbols])
    rows.append(list(range(LONGEST)) * 3)
    rows.append(list(range(LONGEST + 1)) * 3)  # too long a phrase
    width = max(map(len, rows))
    found = repeated(torch.tensor([row + [99] * (width - len(row)) for row in rows]))
    for row, own in zip(rows, found.tolist(), strict=True):
        assert own[: len(row)] == found_by_hand(row), row
    assert found[-2].any()
    assert not found[-1].any()


@pytest.mark.parametrize("width", [0, 1, 2])
def test_rows_that_are_too_short(width: int) -> None:
    assert repeated(torch.zeros(3, width, dtype=torch.int64)).tolist() == [[False] * width] * 3
