"""CTC by enumeration of all paths: the loss, the alignment, and the best path."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fairseq_imitkd.losses.ctc import aligned_tokens, best_path, ctc_loss

FRAMES, SYMBOLS, BLANK = 5, 4, 0
TEXTS = [[1, 2], [3], [2, 2], [1, 2, 1], [], [1, 1, 1, 1]]  # the last one needs seven frames
LENGTHS = [5, 4, 5, 5, 3, 5]


def text_of(path: tuple[int, ...]) -> list[int]:
    """Return a path without repetitions, then without blanks."""
    return [symbol for symbol, _ in itertools.groupby(path) if symbol != BLANK]


def paths(text: list[int], length: int) -> list[tuple[int, ...]]:
    """Return every path of a text."""
    return [path for path in itertools.product(range(SYMBOLS), repeat=length) if text_of(path) == text]


def batch() -> tuple[Tensor, dict[str, Any]]:
    """Return random log-probabilities in float64, and the texts."""
    generator = torch.Generator().manual_seed(1)
    lprobs = torch.randn(len(TEXTS), FRAMES, SYMBOLS, generator=generator, dtype=torch.float64)
    target = torch.full((len(TEXTS), 4), 1)
    for row, text in enumerate(TEXTS):
        target[row, : len(text)] = torch.tensor(text, dtype=torch.int64)
    given = {"frames": torch.tensor(LENGTHS), "target": target, "blank": BLANK}
    return lprobs.log_softmax(dim=-1), {**given, "tokens": torch.tensor([len(text) for text in TEXTS])}


def lprob(lprobs: Tensor, path: tuple[int, ...]) -> float:
    return sum(float(lprobs[frame, symbol]) for frame, symbol in enumerate(path))


def test_the_loss_is_that_of_all_paths() -> None:
    lprobs, given = batch()
    found = ctc_loss(lprobs, given.pop("frames"), given.pop("target"), **given)
    for row, (text, length) in enumerate(zip(TEXTS, LENGTHS, strict=True)):
        total = sum(math.exp(lprob(lprobs[row], path)) for path in paths(text, length))
        assert float(found[row]) == pytest.approx(-math.log(total) if total else 0.0, rel=1e-12)


def test_the_alignment_is_the_most_probable_path() -> None:
    lprobs, given = batch()
    found = aligned_tokens(lprobs, given.pop("frames"), given.pop("target"), **given)
    for row, (text, length) in enumerate(zip(TEXTS, LENGTHS, strict=True)):
        expected = [-1] * FRAMES
        every = paths(text, length)
        if every:
            best, token = max(every, key=lambda path: lprob(lprobs[row], path)), -1
            for frame, symbol in enumerate(best):
                if symbol != BLANK:
                    token += frame == 0 or best[frame - 1] != symbol
                    expected[frame] = token
        assert found[row].tolist() == expected, text


def test_the_best_path_is_that_of_each_frame() -> None:
    lprobs, given = batch()
    found = best_path(lprobs, given["frames"], BLANK)
    for row, (symbols, scores) in enumerate(found):
        path = tuple(lprobs[row, : LENGTHS[row]].argmax(dim=-1).tolist())
        assert symbols.tolist() == text_of(path)
        assert len(scores) == len(symbols)
    assert len({len(symbols) for symbols, _ in found}) > 1
