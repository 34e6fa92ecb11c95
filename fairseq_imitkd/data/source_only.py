"""Sentences without references: data sets that have a source side alone, and their mix with parallel ones.

The reference of such a sentence is one padding symbol. So none of its positions counts in a loss, whatever
reads the batch, and its first decoder input is fairseq's own.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import ConcatDataset, LanguagePairDataset, indexed_dataset
from torch import Tensor


class NoReferences:
    """The target side of sentences that have no reference.

    Args:
        sentences: their number.
        pad: index of the padding symbol in the target dictionary.
    """

    supports_prefetch = True
    can_reuse_epoch_itr_across_epochs = True

    def __init__(self, sentences: int, pad: int):
        self.sizes = np.ones(sentences, dtype=np.int64)
        self._nothing = torch.tensor([pad])

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Tensor:
        return self._nothing

    def prefetch(self, indices: Any) -> None:
        """Do nothing: there is nothing to read."""


def without_references(sentences: Tensor, pad: int) -> Tensor:
    """Return which sentences of a batch have no reference, ``(B,)`` bool.

    Args:
        sentences: ``(B, T)``, the batch's targets.
        pad: index of the padding symbol in the target dictionary.
    """
    return sentences[:, 0].eq(pad)  # targets are padded on the right


def fill_in(dataset: LanguagePairDataset) -> None:
    """Give a data set that has a source side alone its :class:`NoReferences`."""
    missing = NoReferences(len(dataset.src), dataset.tgt_dict.pad())
    dataset.tgt, dataset.tgt_sizes = missing, missing.sizes
    dataset.sizes = np.vstack((dataset.src_sizes, dataset.tgt_sizes)).T


def with_references(dataset: Any) -> Any | None:
    """Return the part of a data set that has references; None if no sentence has one."""
    if isinstance(dataset, SourceMix):
        dataset = dataset.parallel
    return None if isinstance(getattr(dataset, "tgt", None), NoReferences) else dataset


def has_sources(folder: str | Path, split: str, languages: tuple[str, str]) -> bool:
    """Whether a data directory has the source side of a split. The languages are source and target."""
    return _has_side(folder, split, languages, side=languages[0])


def lacks_references(folder: str | Path, split: str, languages: tuple[str, str]) -> bool:
    """Whether a data directory has the source side of a split, but not its target side."""
    source, target = (_has_side(folder, split, languages, side=side) for side in languages)
    return source and not target


def _has_side(folder: str | Path, split: str, languages: tuple[str, str], *, side: str) -> bool:
    pairs = ("-".join(languages), "-".join(languages[::-1]))
    paths = (os.path.join(folder, f"{split}.{pair}.{side}") for pair in pairs)
    return any(indexed_dataset.dataset_exists(path, None) for path in paths)


class SourceMix(LanguagePairDataset):
    """Parallel sentences, and with them sentences that have a source side alone.

    An epoch has every parallel sentence once, and as many others as their share asks for. The others follow
    each other in random orders: the next epoch goes on where the last one ended, and all of them have been
    used before one is used again. Every run of neighbours in :meth:`ordered_indices`, and so every batch, has
    the share of the others, to within one sentence. Long parallel sentences stand beside long others.

    Args:
        parallel: the parallel sentences, numbers ``0 .. P - 1``.
        sources: the others, ``(S,)`` token ids each, numbers ``P .. P + M - 1``.
        share: share of the others, above 0 and below 1.
        seed: seed of their orders.
    """

    can_reuse_epoch_itr_across_epochs = False  # each epoch has other sentences

    def __init__(self, parallel: LanguagePairDataset, sources: Any, *, share: float, seed: int):
        missing = NoReferences(len(sources), parallel.tgt_dict.pad())
        all_sources = ConcatDataset([parallel.src, sources])
        targets = ConcatDataset([parallel.tgt, missing])
        super().__init__(
            all_sources,
            all_sources.sizes,
            parallel.src_dict,
            targets,
            targets.sizes,
            parallel.tgt_dict,
            left_pad_source=parallel.left_pad_source,
            left_pad_target=parallel.left_pad_target,
            shuffle=parallel.shuffle,
            eos=parallel.eos,
            pad_to_multiple=parallel.pad_to_multiple,
        )
        self.parallel, self.seed, self.epoch = parallel, seed, 1
        self.others = max(1, round(len(parallel) * share / (1.0 - share)))  # in an epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the sentences of an epoch (1 = first)."""
        super().set_epoch(epoch)
        self.epoch = epoch

    def ordered_indices(self) -> np.ndarray:
        """Return the numbers of an epoch's sentences, the shortest first, both kinds spread evenly."""
        parallel = self.parallel.ordered_indices()
        others = np.random.permutation(self._others_of_epoch()) if self.shuffle else self._others_of_epoch()
        others = others[np.argsort(self.src_sizes[others], kind="mergesort")]
        # Where a sentence stands in its own order decides where it stands in the common one.
        places = [(np.arange(len(some)) + 0.5) / max(len(some), 1) for some in (parallel, others)]
        return np.concatenate([parallel, others])[np.argsort(np.concatenate(places), kind="stable")]

    def _others_of_epoch(self) -> np.ndarray:
        """Return the next numbers of an endless row of random orders."""
        all_others, begin = len(self) - len(self.parallel), (self.epoch - 1) * self.others
        first, last = begin // all_others, (begin + self.others - 1) // all_others
        orders = [
            np.random.default_rng([self.seed, order]).permutation(all_others)
            for order in range(first, last + 1)
        ]
        start = begin - first * all_others
        found = np.concatenate(orders)[start : start + self.others] if orders else np.empty(0, np.int64)
        return found.astype(np.int64) + len(self.parallel)
