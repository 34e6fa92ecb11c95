"""What has been translated, kept so that a kill at any moment costs one batch and nothing else.

A journal is a file of records, one for each batch, that is only ever appended to by one process. A record that was being
written when its process died is cut off when the journal is opened again; what is read is whole, by its checksum.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.files import lock

# A record: this mark, the batch's number, the bytes of what follows and their CRC-32, the CRC-32 of all that; then a
# translated batch. With a checksum of its own, a damaged length is not taken for a record that ends early.
_HEADER = struct.Struct("<4sQQI")
_CHECKSUM = struct.Struct("<I")
_MARK = b"KD01"
_SIZES = struct.Struct("<QQQ")


@dataclass(frozen=True)
class Translated:
    """The hypotheses of a batch of ``B`` sentences, ``H`` in all, of ``T`` tokens in all.

    Args:
        ids: ``(B,)`` int64, the sentences' numbers.
        counts: ``(B,)`` int32, hypotheses of each, best first.
        lengths: ``(H,)`` int32, tokens of each, the EOS included.
        scores: ``(H,)`` float32, the mean log-probability of a token as fairseq reports it, in nats.
        cut: ``(H,)`` uint8, 1 where the length cap ended it.
        tokens: ``(T,)`` int32.
    """

    ids: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray
    cut: np.ndarray
    tokens: np.ndarray

    _TYPES: ClassVar = {"ids": "<i8", "counts": "<i4", "lengths": "<i4", "scores": "<f4", "cut": "u1", "tokens": "<i4"}

    def to_bytes(self) -> bytes:
        """For a record."""
        sizes = _SIZES.pack(self.ids.size, self.lengths.size, self.tokens.size)
        return sizes + b"".join(getattr(self, name).astype(kind).tobytes() for name, kind in self._TYPES.items())

    @classmethod
    def from_bytes(cls, data: memoryview) -> "Translated":
        """Views of a record's bytes."""
        sentences, hypotheses, tokens = _SIZES.unpack_from(data)
        sizes = {"ids": sentences, "counts": sentences, "tokens": tokens}
        parts, start = {}, _SIZES.size
        for name, kind in cls._TYPES.items():
            parts[name] = np.frombuffer(data, kind, sizes.get(name, hypotheses), start)
            start += parts[name].nbytes
        return cls(**parts)


class Journal:
    """One process's records, open to be added to.

    Args:
        path: the file, made if it is not there.
        patience: seconds to wait for another process that has it open.

    Raises:
        UsageError: it stays open elsewhere, or is damaged.
    """

    def __init__(self, path: Path, patience: float = 30.0):
        self.path = path
        self._file = open(path, "ab")  # noqa: SIM115  open as long as the journal is
        try:
            lock(self._file, path, patience)
            whole = _whole_length(path)
            if whole < path.stat().st_size:
                self._file.truncate(whole)
        except BaseException:
            self._file.close()
            raise

    def add(self, batch: int, translated: Translated) -> None:
        """Keep a batch; when this returns, it is on the disk."""
        data = translated.to_bytes()
        header = _HEADER.pack(_MARK, batch, len(data), zlib.crc32(data))
        self._file.write(header + _CHECKSUM.pack(zlib.crc32(header)) + data)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let another process have it."""
        self._file.close()


def records(folder: Path) -> Iterator[tuple[int, Translated]]:
    """All whole records of all journals of a folder, as ``(batch, hypotheses)``, views of the files.

    Raises:
        UsageError: a journal is damaged.
    """
    for path in sorted(folder.glob("*.journal")):
        if path.stat().st_size > 0:
            data = _mapped(path)
            for batch, start, end in _records_of(path, data):
                yield batch, Translated.from_bytes(data[start:end])


def _whole_length(path: Path) -> int:
    """How many of a file's bytes are whole records."""
    if path.stat().st_size == 0:
        return 0
    return max((end for _, _, end in _records_of(path, _mapped(path))), default=0)


def _mapped(path: Path) -> memoryview:
    return np.memmap(path, mode="r").data


def _records_of(path: Path, data: memoryview) -> Iterator[tuple[int, int, int]]:
    """``(batch, start, end)`` of each record's contents, up to one that ends early."""
    start = 0
    while start + _HEADER.size + _CHECKSUM.size <= len(data):
        begin = start + _HEADER.size + _CHECKSUM.size
        mark, batch, length, checksum = _HEADER.unpack_from(data, start)
        is_header = mark == _MARK and _CHECKSUM.unpack_from(data, start + _HEADER.size)[0] == zlib.crc32(
            data[start : start + _HEADER.size]
        )
        end = begin + length
        if is_header and end > len(data):
            return
        if not is_header or zlib.crc32(data[begin:end]) != checksum:
            raise UsageError(
                f"{path} is damaged at byte {start}: delete the file and run the same command again; its sentences are "
                "translated anew, all others are kept"
            )
        yield batch, begin, end
        start = end
