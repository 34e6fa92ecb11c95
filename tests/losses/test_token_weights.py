"""Which tokens are the hardest, their queue, and the teacher's confidence, by their definitions."""

import math

import pytest
import torch

from fairseq_imitkd.losses.token_weights import (
    DifficultyQueue,
    entropy_confidence,
    is_among_hardest,
    probability_confidence,
)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.2, [4]), (0.21, [1, 4]), (0.5, [0, 1, 4]), (0.999, [0, 1, 2, 3, 4])]
)
def test_the_hardest_tokens_of_a_batch(share: float, expected: list[int]) -> None:
    """The share is rounded up. Tokens as hard as the last one are selected too."""
    difficulty = torch.tensor([2.0, 3.0, 0.5, 1.0, 5.0])
    assert is_among_hardest(difficulty, difficulty, share).nonzero().flatten().tolist() == expected
    tied = torch.tensor([1.0, 1.0, 0.0])
    assert is_among_hardest(tied, tied, 0.1).tolist() == [True, True, False]


def test_a_pool_of_other_tokens_sets_the_threshold() -> None:
    pool = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert is_among_hardest(torch.tensor([2.9, 3.0, 9.0]), pool, 0.5).tolist() == [False, True, True]
    assert is_among_hardest(torch.tensor([2.9]), torch.empty(0), 0.5).tolist() == [True]


def test_a_broken_difficulty_is_selected() -> None:
    """Its loss is then not finite, and the update is refused."""
    difficulty = torch.tensor([1.0, math.nan, 2.0])
    assert bool(is_among_hardest(difficulty, difficulty, 0.5)[1])


def test_the_queue_keeps_the_most_recent_tokens() -> None:
    queue = DifficultyQueue(4)
    assert queue.add(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
    assert queue.add(torch.tensor([3.0, 4.0, 5.0])).tolist() == [2.0, 3.0, 4.0, 5.0]
    assert queue.add(torch.arange(6.0)).tolist() == [2.0, 3.0, 4.0, 5.0]


def test_the_queue_continues_from_a_checkpoint() -> None:
    """A smaller queue keeps the newest tokens."""
    queue, other, smaller = DifficultyQueue(4), DifficultyQueue(4), DifficultyQueue(2)
    queue.add(torch.arange(5.0))
    saved = queue.state()
    queue.add(torch.tensor([9.0]))
    for each in (other, smaller):
        each.restore(saved)
    assert saved.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert other.add(torch.tensor([9.0])).equal(queue.state())
    assert smaller.add(torch.tensor([9.0])).tolist() == [4.0, 9.0]


def test_confidence_of_a_teacher() -> None:
    """From certain to uniform; forbidden symbols add nothing."""
    logits = torch.tensor(
        [[0.0] * 4, [0.0, -math.inf, -math.inf, -math.inf], [0.0, 0.0, -math.inf, -math.inf]],
        dtype=torch.float64,
    )
    assert entropy_confidence(logits).tolist() == pytest.approx([0.0, 1.0, 0.5])
    assert probability_confidence(logits).tolist() == pytest.approx([0.25, 1.0, 0.5])
    assert entropy_confidence(logits.half()).dtype == torch.float32


def test_the_queue_leaves_out_what_is_not_finite() -> None:
    """A skipped update of a student that overflows must not spoil the threshold of later ones."""
    queue = DifficultyQueue(4)
    assert queue.add(torch.tensor([1.0, torch.nan, torch.inf, 2.0])).tolist() == [1.0, 2.0]
