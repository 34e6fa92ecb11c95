"""The frozen teacher's encoder outputs, kept from one epoch to the next."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.errors import UsageError


class EncoderCache:
    """The frozen teacher's encoder outputs, by batch, in a bounded room on the teacher's device.

    Args:
        room: bytes. Once it is full nothing more is kept: an epoch comes back in cycles, where throwing out the oldest
            would throw out what is wanted next.
    """

    def __init__(self, room: int):
        self.room = room
        self.used = 0
        self._batches: dict[tuple[int, ...], tuple[Tensor, list[Any]]] = {}

    def find(self, sample: Batch) -> list[Any] | None:
        """What was kept of this very batch: the same sentences and, since several data sets share numbers, words."""
        kept = self._batches.get(tuple(sample["id"].tolist()))
        return kept[1] if kept is not None and kept[0].equal(sample["net_input"]["src_tokens"]) else None

    def keep(self, sample: Batch, encoded: list[Any]) -> None:
        """Keep a batch's encoder outputs if there is room."""
        source, encoded = sample["net_input"]["src_tokens"], [_without_unread(member) for member in encoded]
        size = sum(
            tensor.untyped_storage().nbytes()
            for tensor in {id(t): t for t in _tensors([source, encoded])}.values()
        )
        name = tuple(sample["id"].tolist())
        # Of two batches of the same numbers, the first is kept.
        if (
            name not in self._batches
            and self.used + size <= self.room
            and all(member is not None for member in encoded)
        ):
            self._batches[name] = (source, encoded)
            self.used += size


def _without_unread(encoder_out: Any) -> Any:
    """fairseq's transformers also return the embeddings, which no decoder reads."""
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


def parse_bytes(text: str, flag: str) -> int:
    """Bytes of a size such as ``512MB`` or ``2GB`` (powers of 1,024); ``0`` is none.

    Raises:
        UsageError: the text is no size.
    """
    size = re.fullmatch(r"(\d{1,15}(?:\.\d+)?) ?([KMGT]?)B?", text.strip(), flags=re.IGNORECASE)
    if not size:
        raise UsageError(f"{flag} must be a size such as 512MB or 2GB, or 0 for none, but is '{text}'")
    return int(float(size[1]) * 1024 ** ["", "K", "M", "G", "T"].index(size[2].upper()))
