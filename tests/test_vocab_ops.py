"""Argmax and sampling over the vocabulary give torch's results for every size."""

import pytest
import torch

from fairseq_imitkd.vocab_ops import BLOCK, _inverse, most_probable, sample_categorical

SIZES = [2, BLOCK, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1, 5 * BLOCK + 7, 1000]


@pytest.mark.parametrize("size", SIZES)
def test_most_probable_is_argmax(size: int) -> None:
    """The logits are random, and one symbol is forbidden."""
    logits = torch.randn(200, size, generator=torch.Generator().manual_seed(size))
    logits[:, 1] = -torch.inf
    assert most_probable(logits).equal(logits.argmax(-1))


@pytest.mark.parametrize("size", SIZES)
def test_first_of_equals_is_chosen(size: int) -> None:
    """Torch's argmax does so on the CPU. Equal values are in one block, in two blocks, and in the rest."""
    logits = torch.randint(0, 3, (200, size), generator=torch.Generator().manual_seed(size)).float()
    expected = torch.tensor([row.index(max(row)) for row in logits.tolist()])
    assert most_probable(logits).equal(expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_most_probable_of_any_precision(dtype: torch.dtype) -> None:
    """Half precision has many ties."""
    logits = torch.randn(50, 500, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert most_probable(logits).equal(torch.tensor([row.index(max(row)) for row in logits.tolist()]))


def test_nan_counts_as_the_greatest_logit() -> None:
    """So NaN of a broken teacher reaches the loss."""
    logits = torch.zeros(3, 300)
    logits[0, 7] = logits[1, 299] = torch.nan
    assert most_probable(logits)[:2].tolist() == [7, 299]
    assert sample_categorical(logits, torch.full((3,), 0.5, dtype=torch.float64)).max() < 300


@pytest.mark.parametrize("size", SIZES)
def test_samples_invert_the_cumulative_distribution(size: int) -> None:
    """The reference adds up the symbols one by one in float64."""
    generator = torch.Generator().manual_seed(size)
    logits = 3.0 * torch.randn(300, size, generator=generator)
    uniforms = torch.rand(300, generator=generator, dtype=torch.float64)
    cumulative = logits.softmax(-1).double().cumsum(-1)
    expected = torch.searchsorted(
        cumulative, uniforms.unsqueeze(-1) * cumulative[:, -1:], right=True
    ).squeeze(-1)
    assert sample_categorical(logits, uniforms).equal(expected)


@pytest.mark.parametrize("size", SIZES)
def test_extreme_uniforms_never_sample_forbidden_symbols(size: int) -> None:
    """The uniforms are 0 and the greatest number below 1. Symbols at both ends of the vocabulary are
    forbidden.
    """
    logits = torch.zeros(4, size)
    if size > 2:
        logits[:, 0] = logits[:, -1] = -torch.inf
    uniforms = torch.tensor([0.0, 1.0 - 2.0**-53, 2.0**-53, 0.5], dtype=torch.float64)
    chosen = sample_categorical(logits, uniforms).tolist()
    low, high = (1, size - 2) if size > 2 else (0, size - 1)
    assert chosen[:3] == [low, high, low]
    assert low <= chosen[3] <= high


def test_samples_follow_the_distribution() -> None:
    """For 20,000 evenly spaced numbers, each of 300 symbols gets its share up to rounding."""
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(3))
    draws = 20_000
    uniforms = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    counts = torch.bincount(sample_categorical(logits.expand(draws, -1), uniforms), minlength=300).double()
    expected = logits.softmax(-1).squeeze(0).double() * draws
    assert float((counts - expected).abs().max()) <= 1.01


def test_position_within_a_symbol_stays_below_one() -> None:
    """Rounding would give 1, which the search in the next block could not use."""
    smallest = torch.tensor([[5e-324]], dtype=torch.float64)
    index, within = _inverse(smallest, torch.tensor([[0.9]], dtype=torch.float64))
    assert index.tolist() == [0]
    assert within.item() == 1.0 - 2.0**-53


@pytest.mark.parametrize("size", [5 * BLOCK + 7, 80 * BLOCK, 80 * BLOCK + 63])
def test_each_symbol_begins_where_the_one_before_ends(size: int) -> None:
    """This is exact to ``1e-5`` of each symbol's probability, because all sums are in float64."""
    logits = torch.randn(1, size, generator=torch.Generator().manual_seed(4))
    probs = logits.softmax(-1).double().squeeze(0)
    ends, total = probs.cumsum(-1), probs.sum()
    for share in (1e-5, 1.0 - 1e-5):
        uniforms = (ends - probs + share * probs) / total
        assert sample_categorical(logits.expand(size, -1), uniforms).tolist() == list(range(size))
