"""What has been translated, kept so that a kill at any moment costs one batch and nothing else.

A journal is a file of records, one for each batch, that is only ever appended to by one process. A record that was being
written when its process died is cut off when the journal is opened again; what is read is whole, by its checksum.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fairseq_imitkd.data.files import lock
from fairseq_imitkd.engines.base import Translated
from fairseq_imitkd.errors import UsageError

# A record: this mark, the batch's number, the bytes of what follows and their CRC-32, the CRC-32 of all that; then a
# translated batch. With a checksum of its own, a damaged length is not taken for a record that ends early.
_HEADER = struct.Struct("<4sQQI")
_CHECKSUM = struct.Struct("<I")
_MARK = b"KD01"


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
