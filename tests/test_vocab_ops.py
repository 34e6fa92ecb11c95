"""Choices among the vocabulary: the same as torch's plain ones, whatever the size."""

import pytest
import torch

from fairseq_imitkd.vocab_ops import BLOCK, drawn, most_probable

SIZES = [2, BLOCK, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1, 5 * BLOCK + 7, 1000]


@pytest.mark.parametrize("size", SIZES)
def test_most_probable_is_argmax(size: int) -> None:
    """Random logits, some forbidden."""
    logits = torch.randn(200, size, generator=torch.Generator().manual_seed(size))
    logits[:, 1] = -torch.inf
    assert most_probable(logits).equal(logits.argmax(-1))


@pytest.mark.parametrize("size", SIZES)
def test_first_of_equals_is_chosen(size: int) -> None:
    """As torch's argmax does on the CPU: within a block, between blocks, and in what is left over."""
    logits = torch.randint(0, 3, (200, size), generator=torch.Generator().manual_seed(size)).float()
    expected = torch.tensor([row.index(max(row)) for row in logits.tolist()])
    assert most_probable(logits).equal(expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_most_probable_of_any_precision(dtype: torch.dtype) -> None:
    """Half precision has many ties."""
    logits = torch.randn(50, 500, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert most_probable(logits).equal(torch.tensor([row.index(max(row)) for row in logits.tolist()]))


def test_broken_logits_are_found() -> None:
    """A NaN counts as the highest, so that a broken teacher can't hide behind its sound logits."""
    logits = torch.zeros(3, 300)
    logits[0, 7] = logits[1, 299] = torch.nan
    assert most_probable(logits)[:2].tolist() == [7, 299]
    assert drawn(logits, torch.full((3,), 0.5, dtype=torch.float64)).max() < 300


@pytest.mark.parametrize("size", SIZES)
def test_drawn_inverts_the_cumulative_distribution(size: int) -> None:
    """Reference: every symbol summed up one by one, in float64."""
    generator = torch.Generator().manual_seed(size)
    logits = 3.0 * torch.randn(300, size, generator=generator)
    uniforms = torch.rand(300, generator=generator, dtype=torch.float64)
    cumulative = logits.softmax(-1).double().cumsum(-1)
    expected = torch.searchsorted(
        cumulative, uniforms.unsqueeze(-1) * cumulative[:, -1:], right=True
    ).squeeze(-1)
    assert drawn(logits, uniforms).equal(expected)


@pytest.mark.parametrize("size", SIZES)
def test_extreme_uniforms_meet_only_possible_symbols(size: int) -> None:
    """0 and the last number below 1, with forbidden symbols at both ends of the vocabulary."""
    logits = torch.zeros(4, size)
    if size > 2:
        logits[:, 0] = logits[:, -1] = -torch.inf
    uniforms = torch.tensor([0.0, 1.0 - 2.0**-53, 2.0**-53, 0.5], dtype=torch.float64)
    chosen = drawn(logits, uniforms).tolist()
    low, high = (1, size - 2) if size > 2 else (0, size - 1)
    assert chosen[:3] == [low, high, low]
    assert low <= chosen[3] <= high


def test_drawn_follows_the_distribution() -> None:
    """Chi-square over 20,000 evenly spaced numbers: each symbol of 300 its own share, to within rounding."""
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(3))
    draws = 20_000
    uniforms = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    counts = torch.bincount(drawn(logits.expand(draws, -1), uniforms), minlength=300).double()
    expected = logits.softmax(-1).squeeze(0).double() * draws
    assert float((counts - expected).abs().max()) <= 1.01
