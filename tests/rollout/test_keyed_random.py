"""Random numbers that belong to a sentence.

A number depends only on (seed, update, stream, step, sentence id). The golden values below must not change: a
run that is resumed with a newer release must get the same numbers. Do not update them to make the test pass.
"""

import pytest
import torch

from fairseq_imitkd.rollout import RandomKey, sampling_uniforms
from fairseq_imitkd.rollout.keyed_random import MIXING, SAMPLING, STEPS_AT_ONCE, TEACHER_SAMPLING

BITS64 = 2**64
GOLDEN_RATIO = 0x9E3779B97F4A7C15


def splitmix_output(value: int) -> int:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014) on Python's unbounded integers."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % BITS64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % BITS64
    return value ^ (value >> 31)


def reference(seed: int, update: int, stream: int, step: int, sentence: int) -> float:
    """Mix the parts in turn, the sentence last and twice; return the top 53 bits as a fraction."""
    state = 0
    for part in (seed, stream, update, step):
        state = splitmix_output((state + (part + 1) * GOLDEN_RATIO) % BITS64)
    bits = splitmix_output((state + sentence * GOLDEN_RATIO) % BITS64)
    bits = splitmix_output((bits + GOLDEN_RATIO) % BITS64)
    return (bits >> 11) / 2**53


def draw(count: int = 20_000, **key: int) -> torch.Tensor:
    """The numbers of the first sentences."""
    return RandomKey(**{"seed": 1, "update": 0, **key}).uniforms(torch.arange(count))


@pytest.mark.parametrize(
    "key",
    [
        (1, 0, MIXING, 0),
        (1, 0, SAMPLING, 0),
        (42, 123_456, SAMPLING, 99),
        (0, 0, MIXING, 0),
        (2**31, 2**40, SAMPLING, 3),
        (-5, 7, MIXING, 0),
    ],
)
def test_numbers_follow_the_reference(key: tuple[int, int, int, int]) -> None:
    """Bit for bit, for small and large parts and ids, including those where int64 wraps around."""
    sentences = [0, 1, 2, 1000, 2**31, 2**40 + 1, 2**62, 2**63 - 1]
    numbers = RandomKey(*key).uniforms(torch.tensor(sentences))
    assert numbers.dtype == torch.float64
    assert numbers.tolist() == [reference(*key, sentence) for sentence in sentences]


@pytest.mark.parametrize(
    ("key", "golden"),
    [
        (RandomKey(1, 0), [0.33093912676428916, 0.21338681906000434, 0.3458606446598268]),
        (RandomKey(1, 1000), [0.031155141070770997, 0.2291774527539201, 0.8061818494740605]),
        (RandomKey(42, 7, SAMPLING, 3), [0.9602060040380989, 0.6008087669163685, 0.05038412665923375]),
    ],
)
def test_golden_values(key: RandomKey, golden: list[float]) -> None:
    """The numbers of sentences 0, 1 and 12345, which are fixed across releases."""
    assert key.uniforms(torch.tensor([0, 1, 12345])).tolist() == golden


@pytest.mark.parametrize(
    "key",
    [{}, {"update": 77}, {"stream": SAMPLING}, {"stream": SAMPLING, "step": 5}, {"seed": 0}, {"seed": 12345}],
)
def test_numbers_are_uniform(key: dict[str, int]) -> None:
    """Chi-square in 64 bins: 103.4 is the 0.999 quantile at 63 degrees of freedom. The keys are fixed."""
    numbers = draw(**key)
    assert float(numbers.min()) >= 0.0
    assert float(numbers.max()) < 1.0
    expected = numbers.numel() / 64
    counts = torch.histc(numbers, bins=64, min=0.0, max=1.0)
    assert float(((counts - expected) ** 2 / expected).sum()) < 103.4


def test_one_sentences_numbers_are_uniform_over_updates() -> None:
    """A sentence is rolled out as often as the share says, in the course of training."""
    sentence = torch.tensor([17])
    numbers = torch.cat([RandomKey(1, update).uniforms(sentence) for update in range(3000)])
    counts = torch.histc(numbers, bins=10, min=0.0, max=1.0)
    assert float(((counts - 300) ** 2 / 300).sum()) < 27.9  # 0.999 quantile, 9 degrees of freedom


@pytest.mark.parametrize("part", ["seed", "update", "stream", "step"])
@pytest.mark.parametrize("distance", [1, 2, 1000])
def test_each_part_of_the_key_changes_the_numbers(part: str, distance: int) -> None:
    """No number is equal, and the correlation is small: |r| < 4 / sqrt(n)."""
    one, other = draw(**{part: 1}), draw(**{part: 1 + distance})
    assert not one.eq(other).any()
    correlation = torch.corrcoef(torch.stack([one, other]))[0, 1]
    assert abs(float(correlation)) < 4.0 / one.numel() ** 0.5


def test_neighbouring_sentences_are_uncorrelated() -> None:
    """Consecutive ids have independent numbers."""
    numbers = draw()
    correlation = torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1]
    assert abs(float(correlation)) < 4.0 / numbers.numel() ** 0.5


def test_batch_order_and_composition_do_not_matter() -> None:
    """A sentence's number is the same alone, beside others and in any order; torch's generator is unused."""
    key, sentences = RandomKey(5, 9), torch.arange(50)
    state = torch.get_rng_state()
    numbers = key.uniforms(sentences)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert key.uniforms(order).tolist() == numbers[order].tolist()
    assert key.uniforms(sentences[13:14]).tolist() == [float(numbers[13])]
    assert torch.get_rng_state().equal(state)


def test_at_keeps_seed_and_update() -> None:
    """The key of the same update for another purpose and step."""
    assert RandomKey(3, 4).at(SAMPLING, 5) == RandomKey(seed=3, update=4, stream=SAMPLING, step=5)
    assert MIXING != SAMPLING


def test_rollouts_use_the_numbers_of_each_step() -> None:
    """Each step gets its key's numbers for the remaining rows, in the rollout's order."""
    sentences = [(RandomKey(3, 5), torch.tensor([4, 9, 2])), (RandomKey(3, 6), torch.tensor([9, 7]))]
    order = torch.tensor([3, 0, 4, 2, 1])
    in_batches, in_order = (
        sampling_uniforms(sentences, stream=TEACHER_SAMPLING),
        sampling_uniforms(sentences, order),
    )
    for step in (*range(2 * STEPS_AT_ONCE + 2), 1):
        for draw, places, stream in (
            (in_batches, torch.arange(5), TEACHER_SAMPLING),
            (in_order, order, SAMPLING),
        ):
            expected = torch.cat([key.at(stream, step).uniforms(ids) for key, ids in sentences])[places]
            for rows in (torch.arange(5), torch.tensor([1, 4])):
                assert draw(step, rows).tolist() == expected[rows].tolist()
