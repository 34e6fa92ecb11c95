"""Rollouts stop at a maximum length that depends on the source, or where the student chooses EOS."""

import pytest

from fairseq_imitkd.rollout import RolloutPolicy
from tests.helpers.fairseq_models import counting_student, letters, make_batch, roll_out, written

LETTER_B, EOS = letters().nspecial + 1, letters().eos()


def test_maximum_length_depends_on_the_own_source() -> None:
    """``max_len_a * source length + max_len_b``, with the source's EOS, whatever the neighbours' lengths."""
    sources = [[15] * 9, [15] * 5, [15] * 3, [15]]
    rollout = roll_out(
        counting_student(),
        make_batch([(source, [0]) for source in sources]),
        RolloutPolicy(max_len_a=0.5, max_len_b=1),
    )
    assert [len(row) for row in written(rollout)] == [6, 4, 3, 2]
    assert rollout.truncated.all()
    assert rollout.tokens.size(1) == 6


@pytest.mark.parametrize(
    ("wanted", "tokens", "truncated"), [(4, 5, False), (5, 6, False), (6, 5, True), (0, 1, False)]
)
def test_row_that_ends_at_its_maximum_is_not_truncated(wanted: int, tokens: int, truncated: bool) -> None:
    """With a maximum of 5, five letters and EOS are complete; a sixth letter is cut without an EOS."""
    rollout = roll_out(
        counting_student(), make_batch([([wanted], [0])]), RolloutPolicy(max_len_a=0.0, max_len_b=5)
    )
    assert written(rollout) == [[LETTER_B] * min(wanted, 5) + ([] if truncated else [EOS])]
    assert rollout.tokens.size(1) == tokens
    assert rollout.truncated.tolist() == [truncated]


def test_rows_keep_their_order_while_others_finish() -> None:
    """Rows that end at different steps keep their order, each with its own text."""
    counts = [3, 9, 0, 7, 1, 9, 2, 5]
    rollout = roll_out(
        counting_student(),
        make_batch([([n], [0]) for n in counts]),
        RolloutPolicy(max_len_a=0.0, max_len_b=8),
    )
    expected = [[LETTER_B] * min(n, 8) + ([EOS] if n <= 8 else []) for n in counts]
    assert written(rollout) == expected
    assert rollout.truncated.tolist() == [n > 8 for n in counts]


def test_finished_rows_leave_the_batch() -> None:
    """The decoder computes only unfinished sentences."""
    student = counting_student()
    roll_out(student, make_batch([([n], [0]) for n in range(8)]), RolloutPolicy(max_len_a=0.0, max_len_b=20))
    assert student.decoder.rows_at_step == [8, 7, 6, 5, 4, 3, 2, 1]


def test_decoding_stops_with_the_last_row() -> None:
    """No step follows the end of the last row, however great the maximum length."""
    student = counting_student()
    roll_out(student, make_batch([([2], [0])] * 3), RolloutPolicy(max_len_a=0.0, max_len_b=50))
    assert len(student.decoder.rows_at_step) == 3


def test_positions_bound_the_maximum_length() -> None:
    """The maximum length is at most what the models can represent, with one position for EOS."""
    policy = RolloutPolicy(max_len_a=0.0, max_len_b=10_000)
    sample = make_batch([([7], [0]), ([8], [0])])
    rollout = roll_out(counting_student(), sample, policy, max_positions=8)
    assert written(rollout) == [[LETTER_B] * 7 + [EOS], [LETTER_B] * 7]
    assert rollout.truncated.tolist() == [False, True]
