"""The order of parallel sentences and of sentences that have a source side alone."""

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary, LanguagePairDataset

from fairseq_imitkd.data.source_only import (
    NoReferences,
    SourceMix,
    fill_in,
    with_references,
    without_references,
)

PARALLEL, OTHERS = 60, 25


class Sentences(list):
    """Sentences of given lengths."""

    def __init__(self, lengths: list[int]):
        super().__init__(torch.full((length,), 4) for length in lengths)
        for sentence in self:
            sentence[-1] = 2
        self.sizes = np.array(lengths)


def dictionary() -> Dictionary:
    made = Dictionary()
    made.add_symbol("a")
    return made


def parallel(sentences: int = PARALLEL, targets: bool = True) -> LanguagePairDataset:
    generator = np.random.default_rng(1)
    sources, references = (Sentences(list(generator.integers(2, 9, sentences))) for _ in range(2))
    return LanguagePairDataset(
        sources, sources.sizes, dictionary(), references if targets else None,
        references.sizes if targets else None, dictionary(), left_pad_source=True,
    )  # fmt: skip


def mix(share: float, seed: int = 1) -> SourceMix:
    others = Sentences(list(np.random.default_rng(2).integers(2, 20, OTHERS)))
    return SourceMix(parallel(), others, share=share, seed=seed)


def epoch(mixed: SourceMix, number: int) -> np.ndarray:
    mixed.set_epoch(number)
    np.random.seed(3)
    return mixed.ordered_indices()


@pytest.mark.parametrize(("share", "expected"), [(0.25, 20), (0.5, 60), (0.9, 540), (0.001, 1)])
def test_epoch_has_the_parallel_sentences_once_and_the_share_of_others(share: float, expected: int) -> None:
    order = epoch(mix(share), 1)
    assert sorted(order[order < PARALLEL]) == list(range(PARALLEL))
    assert (order >= PARALLEL).sum() == expected


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_every_batch_has_the_share(share: float) -> None:
    order = epoch(mix(share), 1)
    for size in (8, 15, 40):
        for start in range(0, len(order) - size + 1):
            others = (order[start : start + size] >= PARALLEL).sum()
            assert abs(others - share * size) <= 1.0 + 1e-9


def test_both_kinds_rise_in_length() -> None:
    """Sentences of a batch are of similar place in their own corpus, so little of it is padding."""
    mixed = mix(0.5)
    order = epoch(mixed, 1)
    for some in (order[order < PARALLEL], order[order >= PARALLEL]):
        assert (np.diff(mixed.src_sizes[some]) >= 0).all()


def test_all_others_are_used_before_one_is_used_again() -> None:
    mixed = mix(0.25)  # 20 of 25 in each epoch
    used = [set(order[order >= PARALLEL].tolist()) for order in (epoch(mixed, number) for number in (1, 2))]
    assert used[0] | used[1] == set(range(PARALLEL, PARALLEL + OTHERS))
    counts = np.zeros(OTHERS, dtype=int)
    for number in range(1, 6):  # 100 of 25
        order = epoch(mixed, number)
        np.add.at(counts, order[order >= PARALLEL] - PARALLEL, 1)
    assert (counts == 4).all()


def test_an_epoch_depends_on_its_number_and_the_seed_alone() -> None:
    """A resumed run builds the data set of its epoch at once."""
    first = mix(0.25)
    epoch(first, 1)
    epoch(first, 2)
    assert (epoch(first, 3) == epoch(mix(0.25), 3)).all()
    assert (epoch(mix(0.25), 3) != epoch(mix(0.25, seed=2), 3)).any()


def test_batch_of_both_kinds() -> None:
    """The others' targets are padding alone, and their first decoder input is the same EOS."""
    mixed = mix(0.5)
    batch = mixed.collater([mixed[number] for number in (0, PARALLEL, 1, PARALLEL + 1)])
    is_other = batch["id"] >= PARALLEL
    pad = mixed.tgt_dict.pad()
    assert without_references(batch["target"], pad).tolist() == is_other.tolist()
    assert batch["target"][is_other].eq(pad).all()
    inputs = batch["net_input"]["prev_output_tokens"]
    assert inputs[:, 0].eq(mixed.tgt_dict.eos()).all()
    assert inputs[is_other, 1:].eq(pad).all()
    assert batch["ntokens"] == batch["target"].ne(pad).sum()


def test_data_set_without_a_target_side() -> None:
    dataset = parallel(targets=False)
    assert dataset.tgt is None
    fill_in(dataset)
    assert isinstance(dataset.tgt, NoReferences)
    batch = dataset.collater([dataset[0], dataset[1]])
    assert batch["target"].tolist() == [[1], [1]]
    kept, dropped = dataset.filter_indices_by_size(np.arange(PARALLEL), (5, 5))
    assert (dataset.src_sizes[kept] <= 5).all()
    assert len(kept) + len(dropped) == PARALLEL
    assert with_references(dataset) is None


def test_only_parallel_sentences_have_references() -> None:
    mixed = mix(0.5)
    assert with_references(mixed) is mixed.parallel
    assert with_references(mixed.parallel) is mixed.parallel
