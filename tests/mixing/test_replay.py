"""The replay buffer: what it keeps, draws and saves, and batches in which earlier rollouts replace
sentences.
"""

import copy
import io
from typing import Any

import pytest
import torch

from fairseq_imitkd.mixing.batch import with_past_rollouts
from fairseq_imitkd.mixing.replay import PastRollout, ReplayBuffer, choose
from tests.helpers.fairseq_models import assert_same, layout, make_batch, reversed_pairs

PAD, EOS = 1, 2


def past(
    number: int, source: list[int] | None = None, target: list[int] | None = None, **changes: Any
) -> PastRollout:
    """Return a rollout of sentence ``number``, written before update ``10 * number``."""
    source, target = source or [4 + number % 7, EOS], target or [5 + number % 5, EOS]
    values = {"update_num": 10 * number, "truncated": number % 3 == 0, **changes}
    return PastRollout(
        sentence_id=number,
        source=torch.tensor(source),
        inputs=torch.tensor([EOS, *target[:-1]]),
        target=torch.tensor(target),
        **values,
    )


def filled(capacity: int, count: int) -> ReplayBuffer:
    """Return a buffer with the rollouts 0, 1, … of varied lengths."""
    buffer = ReplayBuffer(capacity)
    for number in range(count):
        buffer.add(past(number, source=[4] * (number % 4) + [9, EOS], target=[6] * (number % 3) + [8, EOS]))
    return buffer


def contents(buffer: ReplayBuffer) -> list[tuple[Any, ...]]:
    """Return all rollouts of a buffer as plain numbers, the oldest first."""
    every = copy.deepcopy(buffer).fitting(10**9, 10**9)
    return [
        (
            old.sentence_id,
            old.update_num,
            old.truncated,
            old.source.tolist(),
            old.inputs.tolist(),
            old.target.tolist(),
        )
        for old in every
    ]


def numbers(buffer: ReplayBuffer) -> list[int]:
    """Return the sentence numbers of a buffer's rollouts, the oldest first."""
    return [entry[0] for entry in contents(buffer)]


@pytest.mark.parametrize(
    ("capacity", "count", "kept"),
    [(3, 0, []), (3, 2, [0, 1]), (3, 3, [0, 1, 2]), (3, 5, [2, 3, 4]), (1, 4, [3])],
)
def test_first_in_first_out(capacity: int, count: int, kept: list[int]) -> None:
    """A full buffer keeps the newest rollouts."""
    buffer = filled(capacity, count)
    assert len(buffer) == len(kept)
    assert numbers(buffer) == kept


@pytest.mark.parametrize("count", [1, 3, 7])
def test_each_is_chosen_equally_often_and_never_twice(count: int) -> None:
    rollouts = [past(number) for number in range(count)]
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(600):
        uniforms = torch.rand(min(2, count), generator=generator, dtype=torch.float64)
        numbers = [old.sentence_id for old in choose(rollouts, uniforms)]
        assert len(set(numbers)) == len(numbers)
        found += numbers
    expected = len(found) / count
    assert all(abs(found.count(number) - expected) < 0.25 * expected + 1 for number in range(count))
    assert [old.sentence_id for old in rollouts] == list(range(count))
    assert choose(rollouts, torch.empty(0)) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_extreme_uniforms_choose_a_rollout(dtype: torch.dtype) -> None:
    """0 chooses the oldest rollout. The largest number below 1 chooses the newest one that is left."""
    largest = torch.nextafter(torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype))
    found = choose(
        [past(number) for number in range(1000)],
        torch.stack([largest, torch.zeros((), dtype=dtype), largest]),
    )
    assert [old.sentence_id for old in found] == [999, 0, 997]


def test_fitting_rollouts_are_about_as_wide_as_the_batch() -> None:
    """Rollouts wider than the batch never fit. Much narrower ones fit only if there are no others. The width
    is that of the longer side.
    """
    buffer = ReplayBuffer(20)
    for number, (source, target) in enumerate([(2, 2), (9, 3), (3, 10), (4, 5), (5, 6), (30, 2)]):
        buffer.add(past(number, source=[4] * source, target=[5] * target))
    for width, fitting in (
        (1, []),
        (2, [0]),
        (4, [0]),
        (9, [1, 3, 4]),
        (10, [1, 2, 4]),
        (100, [0, 1, 2, 3, 4, 5]),
    ):
        assert [old.sentence_id for old in buffer.fitting(1000, width)] == fitting, width


def test_an_update_does_not_replay_its_own_rollouts() -> None:
    """This holds for its other micro-batches, and for an update that is tried again."""
    buffer = ReplayBuffer(3)
    for number in (1, 2):
        buffer.add(past(number, update_num=1))
    assert buffer.fitting(1, 9) == []
    assert [old.sentence_id for old in buffer.fitting(2, 9)] == [1, 2]
    for number in (3, 4):
        buffer.add(past(number, update_num=2))
    assert [old.sentence_id for old in buffer.fitting(2, 9)] == [1, 2]
    assert len(buffer) == 3
    assert numbers(buffer) == [2, 3, 4]


def saved_and_loaded(state: Any) -> Any:
    """Return a state after a checkpoint was saved and loaded."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(("capacity", "count"), [(5, 0), (5, 1), (5, 5), (5, 12)])
def test_state_restores_the_buffer(capacity: int, count: int) -> None:
    """Every field of every rollout survives torch's safe loader. The previous contents are replaced."""
    one, other = filled(capacity, count), filled(capacity, 3)
    other.restore(saved_and_loaded(one.state()))
    assert contents(other) == contents(one)
    assert len(one) == len(other) == min(capacity, count)
    for old in other.fitting(10**9, 9):
        assert old.source.dtype == old.inputs.dtype == old.target.dtype == torch.int64
        assert isinstance(old.truncated, bool)
    for buffer in (one, other):
        buffer.add(past(77))
    assert contents(other) == contents(one)
    assert numbers(other)[-1] == 77


def test_smaller_buffer_keeps_the_newest() -> None:
    """A run may resume with a smaller or a larger buffer."""
    state = saved_and_loaded(filled(6, 6).state())
    for capacity, kept in ((2, [4, 5]), (20, [0, 1, 2, 3, 4, 5])):
        buffer = ReplayBuffer(capacity)
        buffer.restore(state)
        assert numbers(buffer) == kept
    assert contents(buffer) == contents(filled(6, 6))


def test_step_that_is_tried_again_adds_nothing() -> None:
    """fairseq repeats a step after an overflow with --amp. The next update's rollouts of the same sentences
    are added.
    """
    buffer = ReplayBuffer(10)
    for update_num in (3, 3, 4, 5, 5):
        for number in (7, 8):
            buffer.add(past(number, update_num=update_num))
    kept = [tuple(numbers) for numbers in buffer.state()["numbers"][:, :2].tolist()]
    assert kept == [(7, 3), (8, 3), (7, 4), (8, 4), (7, 5), (8, 5)]


def test_state_is_a_copy() -> None:
    """A saved state does not change when rollouts are added later."""
    buffer = filled(3, 3)
    state = buffer.state()
    buffer.add(past(50))
    other = ReplayBuffer(3)
    other.restore(state)
    assert numbers(other) == [0, 1, 2]


def sample_of_three(left_pad_source: bool = True) -> dict[str, Any]:
    """Return a batch with the sources ``b c d EOS``, ``e f EOS`` and ``g EOS``. Each target is the source in
    reverse.
    """
    pairs = [([1, 2, 3], [3, 2, 1]), ([4, 5], [5, 4]), ([6], [6])]
    return make_batch(pairs, ids=[70, 80, 90], left_pad_source=left_pad_source)


def replaced(
    sample: dict[str, Any], rows: list[int], rollouts: list[PastRollout], left_pad: bool = True
) -> tuple[dict[str, Any], list[int]]:
    """Return the batch with earlier rollouts, and the earlier index of each row."""
    new, order = with_past_rollouts(sample, torch.tensor(rows), rollouts, layout=layout(left_pad))
    return new, order.tolist()


@pytest.mark.parametrize("left_pad", [True, False])
def test_past_rollout_replaces_a_row(left_pad: bool) -> None:
    """Source, decoder inputs, target and id are the rollout's. Rows are sorted by falling source length
    again.
    """
    sample = sample_of_three(left_pad)
    new, order = replaced(sample, [1], [past(5, [11, 12, 13, 14, EOS], [9, 8, EOS])], left_pad)
    assert order == [1, 0, 2]
    assert new["id"].tolist() == [5, 70, 90]
    assert new["net_input"]["src_lengths"].tolist() == [5, 4, 2]
    sources = [[11, 12, 13, 14, EOS], [5, 6, 7, EOS], [10, EOS]]
    expected = [[PAD] * (5 - len(row)) + row if left_pad else row + [PAD] * (5 - len(row)) for row in sources]
    assert new["net_input"]["src_tokens"].tolist() == expected
    assert new["target"].tolist() == [[9, 8, EOS, PAD], [7, 6, 5, EOS], [10, EOS, PAD, PAD]]
    assert new["net_input"]["prev_output_tokens"].tolist() == [
        [EOS, 9, 8, PAD],
        [EOS, 7, 6, 5],
        [EOS, 10, PAD, PAD],
    ]
    assert new["ntokens"] == 9
    assert new["nsentences"] == 3


@pytest.mark.parametrize("left_pad", [True, False])
def test_widths_are_those_needed(left_pad: bool) -> None:
    """The batch gets narrower when its longest sentence is replaced, and wider for a longer rollout."""
    new, order = replaced(sample_of_three(left_pad), [0], [past(5, [11, EOS], [9, EOS])], left_pad)
    assert order == [1, 0, 2], "of equal lengths the first comes first"
    assert new["net_input"]["src_tokens"].size(1) == 3
    assert new["target"].tolist() == [[9, 8, EOS], [9, EOS, PAD], [10, EOS, PAD]]
    assert new["ntokens"] == 7
    wide, _ = replaced(sample_of_three(left_pad), [2], [past(5, [11, EOS], [9] * 6 + [EOS])], left_pad)
    assert wide["target"].shape == wide["net_input"]["prev_output_tokens"].shape == (3, 7)
    assert wide["ntokens"] == 4 + 3 + 7


def test_truncated_rollout_has_no_eos() -> None:
    """No EOS is added. The inputs are the rollout's tokens except the last one."""
    new, _ = replaced(sample_of_three(), [2], [past(5, [11, EOS], [9, 8, 9, 8, 9])])
    assert new["target"][2].tolist() == [9, 8, 9, 8, 9]
    assert new["net_input"]["prev_output_tokens"][2].tolist() == [EOS, 9, 8, 9, 8]


def test_first_decoder_token_is_the_rollouts_own() -> None:
    """A language tag in place of EOS stays with its sentence."""
    old = past(5, [11, EOS], [9, EOS])
    tagged = PastRollout(5, 0, False, old.source, torch.tensor([17, 9]), old.target)
    new, order = replaced(sample_of_three(), [1], [tagged])
    assert new["net_input"]["prev_output_tokens"][order.index(1)].tolist() == [17, 9, PAD, PAD]
    assert new["net_input"]["prev_output_tokens"][order.index(0)].tolist() == [EOS, 7, 6, 5]


def test_rows_get_the_rollouts_in_their_order() -> None:
    """This holds for rows in any order, and for a rollout that is drawn twice."""
    one, other = past(5, [11, EOS], [9, EOS]), past(6, [12, EOS], [8, EOS])
    new, order = replaced(sample_of_three(), [2, 0], [one, other])
    assert {row: int(new["id"][order.index(row)]) for row in range(3)} == {0: 6, 1: 80, 2: 5}
    twice, _ = replaced(sample_of_three(), [0, 1, 2], [one, one, other])
    assert twice["id"].tolist() == [5, 5, 6]
    assert twice["target"].tolist() == [[9, EOS], [9, EOS], [8, EOS]]
    assert twice["net_input"]["src_tokens"].tolist() == [[11, EOS], [11, EOS], [12, EOS]]


@pytest.mark.parametrize("left_pad", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_other_rows_do_not_change(left_pad: bool, seed: int) -> None:
    """Without padding, every row is either the old batch's row that ``order`` names, or the rollout that
    replaced it.
    """
    sample = make_batch(reversed_pairs(8, seed), left_pad_source=left_pad)
    rows = [1, 4, 5]
    rollouts = [past(100 + row, [4 + row] * (3 * row % 8) + [EOS], [5 + row] * (row % 6 + 1)) for row in rows]
    new, order = replaced(sample, rows, rollouts, left_pad)
    assert sorted(order) == list(range(8))
    lengths = new["net_input"]["src_lengths"].tolist()
    assert lengths == sorted(lengths, reverse=True)
    assert new["ntokens"] == int(new["target"].ne(PAD).sum())
    for place, row in enumerate(order):
        found = [
            new["net_input"]["src_tokens"][place], new["net_input"]["prev_output_tokens"][place],
            new["target"][place],
        ]  # fmt: skip
        if row in rows:
            old = rollouts[rows.index(row)]
            expected, number = [old.source, old.inputs, old.target], old.sentence_id
        else:
            before = (
                sample["net_input"]["src_tokens"][row],
                sample["net_input"]["prev_output_tokens"][row],
                sample["target"][row],
            )
            expected, number = [tokens[tokens.ne(PAD)] for tokens in before], int(sample["id"][row])
        assert [tokens[tokens.ne(PAD)].tolist() for tokens in found] == [
            tokens.tolist() for tokens in expected
        ]
        assert int(new["id"][place]) == number
        assert lengths[place] == expected[0].numel()
    for key in ("id", "target"):
        assert new[key].dtype == sample[key].dtype
    assert all(value.dtype == sample["net_input"][key].dtype for key, value in new["net_input"].items())


def test_given_batch_is_not_changed() -> None:
    """It belongs to the data iterator. Alignments to the references are dropped."""
    sample = {**sample_of_three(), "alignments": torch.zeros(3, 2), "align_weights": torch.ones(3)}
    before = copy.deepcopy(sample)
    rollout = past(5, [11, 12, EOS], [9, 8, EOS])
    new, _ = replaced(sample, [0, 2], [rollout, past(6)])
    new["target"].fill_(0)
    new["net_input"]["src_tokens"].fill_(0)
    new["net_input"]["prev_output_tokens"].fill_(0)
    new["id"].fill_(0)
    assert_same(sample, before)
    assert new.keys() == sample.keys() - {"alignments", "align_weights"}
    assert (rollout.source.tolist(), rollout.target.tolist()) == ([11, 12, EOS], [9, 8, EOS]), (
        "nor is the rollout"
    )


@pytest.mark.parametrize("count", [0, 2])
def test_state_always_has_the_same_types(count: int) -> None:
    """An empty buffer has them too. Tokens are int32, which halves the memory."""
    types = {name: tensor.dtype for name, tensor in filled(3, count).state().items()}
    assert types == {"numbers": torch.int64, "lengths": torch.int64, "tokens": torch.int32}


def test_a_sentence_without_a_reference_keeps_its_first_input() -> None:
    """The teacher may still write its target."""
    sample = make_batch([([4, 5], [6, 7]), ([5, 6], [7, 8])])
    sample["target"][0], sample["net_input"]["prev_output_tokens"][0, 1:] = 1, 1
    past = PastRollout(9, 0, False, torch.tensor([4, 2]), torch.tensor([2, 5]), torch.tensor([5, 2]))
    new, order = with_past_rollouts(sample, torch.tensor([1]), [past], layout=layout())
    row = order.tolist().index(0)
    assert new["target"][row].eq(1).all()
    assert new["net_input"]["prev_output_tokens"][row].tolist()[:2] == [2, 1]
    assert new["ntokens"] == 2
