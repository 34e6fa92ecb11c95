"""A cache of the frozen teacher's encoder outputs, which are the same in every epoch."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from fairseq_imitkd.data.batch_type import Batch


class EncoderCache:
    """Encoder outputs by batch, on the teacher's device, up to a total size.

    A full cache takes nothing more and drops nothing. Every batch returns once per epoch, so the oldest batch
    in the cache is the one that is needed next.

    Args:
        room: maximum size of the cache, in bytes.
    """

    def __init__(self, room: int):
        self.room = room
        self.used = 0
        self._batches: dict[tuple[int, ...], tuple[Tensor, list[Any]]] = {}

    def find(self, sample: Batch) -> list[Any] | None:
        """Return the encoder outputs that were kept for a batch, or None.

        The ids and the tokens of the sentences must both be the same, because several data sets may use the
        same ids.
        """
        kept = self._batches.get(tuple(sample["id"].tolist()))
        return kept[1] if kept is not None and kept[0].equal(sample["net_input"]["src_tokens"]) else None

    def keep(self, sample: Batch, encoded: list[Any]) -> None:
        """Keep a batch's encoder outputs if there is room.

        Args:
            sample: the batch.
            encoded: encoder output of each member; nothing is kept if one is None.
        """
        source, encoded = (
            sample["net_input"]["src_tokens"],
            [_without_embeddings(member) for member in encoded],
        )
        tensors = {id(tensor): tensor for tensor in _tensors([source, encoded])}
        size = sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())
        key = tuple(sample["id"].tolist())
        is_complete = all(member is not None for member in encoded)
        # Of two batches with the same ids, the first stays.
        if is_complete and key not in self._batches and self.used + size <= self.room:
            self._batches[key] = (source, encoded)
            self.used += size


def _without_embeddings(encoder_out: Any) -> Any:
    """Drop the embeddings from the encoder output of fairseq's transformers, because no decoder reads them.

    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/models/transformer/transformer_encoder.py#L261
    """
    return {**encoder_out, "encoder_embedding": []} if isinstance(encoder_out, dict) else encoder_out


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
