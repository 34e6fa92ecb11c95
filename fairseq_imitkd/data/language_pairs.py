"""Batches of several language pairs, as fairseq's ``translation_multi_simple_epoch`` reads them.

fairseq puts the target's language tag before the target, and the model then learns to write the tag. In
distillation the tag is the decoder's first input instead, as the EOS is in other batches. So a target holds
words alone, and a rollout begins where its reference does.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from fairseq.data import FairseqDataset
from fairseq.data.multilingual.multilingual_data_manager import MultilingualDatasetManager
from fairseq.data.multilingual.sampled_multi_dataset import CollateFormat, SampledMultiDataset
from fairseq.data.multilingual.sampled_multi_epoch_dataset import SampledMultiEpochDataset

from fairseq_imitkd.data.batch_type import Batch


class PairDataset(FairseqDataset):
    """The sentences of one language pair, with numbers that no other pair has.

    Args:
        dataset: fairseq's data set of the pair; its targets have no tag.
        pair: index of the pair among all.
        pairs: number of all pairs.
        first_input: the tag that the decoder reads first; None leaves what the data set has.
    """

    def __init__(self, dataset: Any, *, pair: int, pairs: int, first_input: int | None):
        super().__init__()
        self.dataset, self.pair, self.pairs, self.first_input = dataset, pair, pairs, first_input
        inner = getattr(dataset, "dataset", dataset)  # fairseq's other way of tags has a wrapper
        self.src_dict, self.tgt_dict, self.src, self.tgt = (
            inner.src_dict,
            inner.tgt_dict,
            inner.src,
            inner.tgt,
        )

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)

    def collater(self, samples: Sequence[Any], **settings: Any) -> Batch:
        """Return the batch of some sentences, whose ids are unique among all pairs."""
        batch: Batch = self.dataset.collater(samples, **settings)
        if batch:
            batch["id"] = batch["id"] * self.pairs + self.pair
            if self.first_input is not None:
                batch["net_input"]["prev_output_tokens"][:, 0] = self.first_input
        return batch

    @property
    def sizes(self) -> np.ndarray:
        """``(N, 2)``, the numbers of tokens of source and target."""
        return np.asarray(self.dataset.sizes)

    def num_tokens(self, index: int) -> int:
        """Return the number of tokens of a sentence's longer side."""
        return int(self.dataset.num_tokens(index))

    def size(self, index: int) -> Any:
        """Return the numbers of tokens of a sentence's source and target."""
        return self.dataset.size(index)


class PairDataManager(MultilingualDatasetManager):
    """fairseq's data manager, which can make the batches of distillation.

    Attributes:
        distils: whether targets have no tag (see the module).
    """

    distils = False
    lang_pairs: list[str]

    @property
    def tag_is_written(self) -> bool:
        """Whether fairseq's own targets begin with the target's tag."""
        return self.args.langtoks["main"][1] is not None and not self.args.lang_tok_replacing_bos_eos

    def load_pairs(
        self, split: str, pair: str | None, *, training: bool, epoch: int, **settings: Any
    ) -> SampledMultiDataset:
        """Read a split of all pairs, or of one.

        Args:
            split: name of the split.
            pair: the pair; None reads all.
            training: as for ``load_dataset``.
            epoch: number of the epoch, from 1.
            settings: the other arguments of ``load_dataset``.
        """
        all_pairs = self.lang_pairs
        try:
            if pair is not None:
                self.lang_pairs = [pair]
                self._num_shards_dict.pop(split, None)
            return self.load_dataset(split, training, epoch=epoch, **settings)
        finally:
            if pair is not None:
                self.lang_pairs = all_pairs
                self._num_shards_dict.pop(split, None)

    def load_a_dataset(self, split: str, *args: Any, **settings: Any) -> Any:
        """See the base class."""
        dataset = super().load_a_dataset(split, *args, **settings)
        if not self.distils:
            return dataset
        target, spec = settings["tgt"], settings["langtok_spec"][1]
        all_pairs = self.args.lang_pairs
        return PairDataset(
            dataset,
            pair=all_pairs.index(f"{settings['src']}-{target}"),
            pairs=len(all_pairs),
            first_input=self.get_decoder_langtok(target, spec) if self.tag_is_written else None,
        )

    def tgt_dataset_tranform_func(self, *args: Any, **settings: Any) -> Any:
        """Add the tag to targets, but not in distillation."""
        if not self.distils:
            return super().tgt_dataset_tranform_func(*args, **settings)
        return args[2]

    def load_into_concat_dataset(self, split: str, datasets: Any, data_param_list: Any) -> Any:
        """Join the pairs of a validation set; those of distillation make their batches themselves."""
        if not self.distils:
            return super().load_into_concat_dataset(split, datasets, data_param_list)
        return SampledMultiDataset(
            OrderedDict(datasets), collate_format=CollateFormat.single, virtual_size=None, split=split
        )

    def _shared_collater(self) -> bool:
        return super()._shared_collater() and not self.distils


def first_epoch(dataset: Any, epoch: int) -> int:
    """Return the epoch whose draw of sentences a virtual epoch (``--virtual-epoch-size``) is a part of.

    fairseq draws anew when a resumed run begins in the middle of them:
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/data/multilingual/sampled_multi_epoch_dataset.py#L179-L199
    """
    if not isinstance(dataset, SampledMultiEpochDataset):
        return epoch
    return epoch - (epoch - 1) % int(dataset.num_virtual_epochs)
