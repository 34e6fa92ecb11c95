"""Batches with rollouts in them, compared exactly. In the letters' dictionary EOS is 2, padding is 1 and
``a`` is 4.
"""

import copy
import itertools
from typing import Any

import pytest
import torch

from fairseq_imitkd.mixing.batch import (
    encoder_inputs,
    first_decoder_inputs,
    join_encoder_inputs,
    split_by_length,
    take,
    with_rollouts,
)
from fairseq_imitkd.rollout import Rollout
from tests.helpers.fairseq_models import assert_same, layout, make_batch, reversed_pairs

PAD, EOS = 1, 2


def rollout_of(*rows: list[int], truncated: list[bool] | None = None) -> Rollout:
    """Return a rollout of these rows of tokens, padded on the right."""
    width = max(map(len, rows))
    tokens = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    return Rollout(tokens, torch.tensor(truncated or [False] * len(rows)))


def sample_of_three() -> dict[str, Any]:
    """Return a batch with the targets ``b c d EOS``, ``e f EOS`` and ``g EOS``."""
    return make_batch([([1, 2, 3], [1, 2, 3]), ([4, 5], [4, 5]), ([6], [6])], ids=[70, 80, 90])


def test_rollout_rows_replace_data_rows() -> None:
    """Row 1 becomes the rollout, and the decoder reads it shifted by one. The other rows stay."""
    new = with_rollouts(sample_of_three(), torch.tensor([1]), rollout_of([9, 8, EOS]), pad=PAD)
    assert new["target"].tolist() == [[5, 6, 7, EOS], [9, 8, EOS, PAD], [10, EOS, PAD, PAD]]
    assert new["net_input"]["prev_output_tokens"].tolist() == [
        [EOS, 5, 6, 7],
        [EOS, 9, 8, PAD],
        [EOS, 10, PAD, PAD],
    ]
    assert new["ntokens"] == 9
    assert new["id"].tolist() == [70, 80, 90]
    assert new["net_input"]["src_tokens"].equal(sample_of_three()["net_input"]["src_tokens"])


def test_width_grows_to_a_longer_rollout() -> None:
    """Data rows get more padding."""
    new = with_rollouts(sample_of_three(), torch.tensor([2]), rollout_of([9, 8, 9, 8, 9, EOS]), pad=PAD)
    assert new["target"].tolist() == [
        [5, 6, 7, EOS, PAD, PAD],
        [8, 9, EOS, PAD, PAD, PAD],
        [9, 8, 9, 8, 9, EOS],
    ]
    assert new["net_input"]["prev_output_tokens"].tolist() == [
        [EOS, 5, 6, 7, PAD, PAD],
        [EOS, 8, 9, PAD, PAD, PAD],
        [EOS, 9, 8, 9, 8, 9],
    ]
    assert new["ntokens"] == 13


def test_width_shrinks_to_what_is_needed() -> None:
    """When the longest reference is replaced, no column of padding alone is left."""
    new = with_rollouts(sample_of_three(), torch.tensor([0]), rollout_of([9, EOS]), pad=PAD)
    assert new["target"].tolist() == [[9, EOS, PAD], [8, 9, EOS], [10, EOS, PAD]]
    assert new["net_input"]["prev_output_tokens"].tolist() == [[EOS, 9, PAD], [EOS, 8, 9], [EOS, 10, PAD]]
    assert new["ntokens"] == 7


def test_all_rows_rolled_out() -> None:
    """No reference is left. An empty rollout is a single EOS."""
    new = with_rollouts(sample_of_three(), torch.arange(3), rollout_of([EOS], [9, EOS], [EOS]), pad=PAD)
    assert new["target"].tolist() == [[EOS, PAD], [9, EOS], [EOS, PAD]]
    assert new["net_input"]["prev_output_tokens"].tolist() == [[EOS, PAD], [EOS, 9], [EOS, PAD]]
    assert new["ntokens"] == 4


def test_truncated_row_gets_no_end() -> None:
    """The student did not end the sentence. So EOS is not a target, and the last token is a target but not an
    input.
    """
    new = with_rollouts(
        sample_of_three(),
        torch.tensor([0, 1]),
        rollout_of([9, 9, 9], [8, EOS], truncated=[True, False]),
        pad=PAD,
    )
    assert new["target"].tolist() == [[9, 9, 9], [8, EOS, PAD], [10, EOS, PAD]]
    assert new["net_input"]["prev_output_tokens"].tolist() == [[EOS, 9, 9], [EOS, 8, PAD], [EOS, 10, PAD]]
    assert new["ntokens"] == 7


def test_language_tags_stay_the_first_input() -> None:
    """Each row keeps its own first decoder input, whatever the student writes."""
    sample = sample_of_three()
    sample["net_input"]["prev_output_tokens"][:, 0] = torch.tensor([17, 18, 19])
    assert first_decoder_inputs(sample).tolist() == [17, 18, 19]
    new = with_rollouts(sample, torch.tensor([0, 2]), rollout_of([9, EOS], [8, 8, EOS]), pad=PAD)
    assert new["net_input"]["prev_output_tokens"].tolist() == [[17, 9, PAD], [18, 8, 9], [19, 8, 8]]


@pytest.mark.parametrize("rows", [[0], [1], [2], [0, 1, 2]])
def test_given_batch_is_untouched(rows: list[int]) -> None:
    """On the CPU it belongs to the data iterator, and fairseq's dummy batch may share its tensors."""
    sample = sample_of_three()
    before = copy.deepcopy(sample)
    new = with_rollouts(sample, torch.tensor(rows), rollout_of(*[[9, 8, 7, EOS]] * len(rows)), pad=PAD)
    new["target"].fill_(15)
    new["net_input"]["prev_output_tokens"].fill_(15)
    new["net_input"]["extra"] = 1
    assert_same(sample, before)


def test_alignments_of_the_references_are_dropped() -> None:
    """They would point into targets that no longer exist. Other keys stay."""
    sample = {
        **sample_of_three(),
        "alignments": torch.zeros(3, 2),
        "align_weights": None,
        "something": "else",
    }
    new = with_rollouts(sample, torch.tensor([0]), rollout_of([9, EOS]), pad=PAD)
    assert "alignments" not in new
    assert new["something"] == "else"


@pytest.mark.parametrize("left_pad", [True, False])
def test_encoder_inputs_drop_columns_of_padding(left_pad: bool) -> None:
    """Without the long sentences the batch is narrower, on either side of padding. Lengths stay those of the
    rows.
    """
    sample = make_batch([([1, 2, 3, 4], [1]), ([5, 6], [2]), ([7], [3])], left_pad_source=left_pad)
    chosen = encoder_inputs(sample, torch.tensor([1, 2]), PAD)
    expected = [[9, 10, EOS], [PAD, 11, EOS]] if left_pad else [[9, 10, EOS], [11, EOS, PAD]]
    assert chosen["src_tokens"].tolist() == expected
    assert chosen["src_lengths"].tolist() == [3, 2]
    assert set(chosen) == {"src_tokens", "src_lengths"}


def test_encoder_inputs_take_the_rows_of_every_tensor() -> None:
    """Other tensors with a row for each sentence are indexed too. Values without such rows stay whole."""
    sample = sample_of_three()
    sample["net_input"].update(
        weights=torch.tensor([0.1, 0.2, 0.3]), table=torch.arange(5), number=torch.tensor(7), flag=True
    )
    before = copy.deepcopy(sample)
    chosen = encoder_inputs(sample, torch.tensor([0, 2]), PAD)
    assert chosen["weights"].tolist() == pytest.approx([0.1, 0.3])
    assert chosen["table"].tolist() == [0, 1, 2, 3, 4]
    assert int(chosen["number"]) == 7
    assert chosen["flag"] is True
    assert_same(sample, before)


def varied_batch() -> dict[str, Any]:
    """Return eight sentences with targets of 1 to 12 tokens in random order. Source lengths fall."""
    lengths = [5, 0, 11, 2, 8, 2, 0, 6]
    return make_batch([([1] * (9 - row), [2] * length) for row, length in enumerate(lengths)])


def least_work(lengths: list[int], cost: int) -> int:
    """Return the cost of the cheapest division, found by trying every division of the sentences sorted by
    length.
    """
    lengths = sorted(lengths)
    best = None
    for cuts in itertools.product([False, True], repeat=len(lengths) - 1):
        ends = [place + 1 for place, cut in enumerate(cuts) if cut] + [len(lengths)]
        starts = [0, *ends[:-1]]
        work = sum(lengths[end - 1] * (end - start) + cost for start, end in zip(starts, ends, strict=True))
        best = work if best is None else min(best, work)
    return best


@pytest.mark.parametrize("cost", [0, 1, 3, 8, 20, 1000])
def test_division_by_length_is_the_cheapest(cost: int) -> None:
    """No other division costs less. Each sentence is in one part, and rows rise within a part."""
    target = varied_batch()["target"]
    lengths = target.ne(PAD).sum(-1)
    parts = split_by_length(target, PAD, cost)
    assert sorted(torch.cat(parts).tolist()) == list(range(8))
    assert all(part.tolist() == sorted(part.tolist()) for part in parts)
    assert sum(int(lengths[part].max()) * part.numel() + cost for part in parts) == least_work(
        lengths.tolist(), cost
    )
    assert (len(parts) == 1) == (cost == 1000)


def test_a_part_is_the_same_sentences_without_empty_columns() -> None:
    """Source and target keep their sides of padding. The original batch does not change."""
    sample, rows = varied_batch(), torch.tensor([1, 3, 6])
    before = copy.deepcopy(sample)
    part = take({**sample, "alignments": torch.zeros(3, 2)}, rows, layout=layout())
    assert part["id"].equal(sample["id"][rows])
    assert part["target"].shape == (3, 3)
    assert part["ntokens"] == 1 + 3 + 1
    assert part["nsentences"] == 3
    assert "alignments" not in part
    for name in ("src_tokens", "prev_output_tokens"):
        whole, own = sample["net_input"][name][rows], part["net_input"][name]
        assert [row[row.ne(PAD)].tolist() for row in own] == [row[row.ne(PAD)].tolist() for row in whole]
        assert own.ne(PAD).any(dim=0).all()
    assert part["net_input"]["src_lengths"].equal(sample["net_input"]["src_lengths"][rows])
    assert part["net_input"]["src_tokens"][:, -1].eq(EOS).all()
    assert sample["target"].equal(before["target"])
    assert sample["net_input"]["src_tokens"].equal(before["net_input"]["src_tokens"])


@pytest.mark.parametrize("left_pad", [True, False])
def test_joined_sources_are_sorted_and_padded_on_their_side(left_pad: bool) -> None:
    """The sentences of both batches are sorted by falling length. The returned order maps each to
    its place.
    """
    batches = [make_batch(reversed_pairs(5, seed), left_pad_source=left_pad) for seed in (1, 2)]
    inputs = [encoder_inputs(batch, torch.tensor([0, 2, 4]), PAD) for batch in batches]
    joined, order = join_encoder_inputs(inputs, layout=layout(left_pad))
    expected = [row[row.ne(PAD)].tolist() for part in inputs for row in part["src_tokens"]]
    assert [row[row.ne(PAD)].tolist() for row in joined["src_tokens"]] == [
        expected[place] for place in order.tolist()
    ]
    lengths = joined["src_lengths"].tolist()
    assert lengths == sorted(lengths, reverse=True)
    assert lengths == joined["src_tokens"].ne(PAD).sum(-1).tolist()
    edge = -1 if left_pad else 0
    assert joined["src_tokens"][:, edge].ne(PAD).all()
