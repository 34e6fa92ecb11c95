"""Checks fairseq's memory-mapped data when it is opened: damaged files would give other sentences."""

import functools
import inspect
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from fairseq.data import Dictionary, indexed_dataset

from fairseq_imitkd.data.files import kind_of
from fairseq_imitkd.errors import UsageError

# The head of an index: a mark, the version, the type of the tokens, the number of sentences:
# https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/data/indexed_dataset.py#L437-L452
_HEADER = struct.Struct("<9sQBQ")
_LENGTH, _PLACE = np.dtype(np.int32), np.dtype(np.int64)
_AT_ONCE = 2**20  # sentences; 2**24 tokens
_REMEDY = "copy it again, or binarise again"


def check_all_reading() -> None:
    """Make fairseq check memory-mapped data that it opens, in trainings and in commands that decode.

    The replacement holds for the whole process, for the reason that
    :func:`~fairseq_imitkd.checkpoints.guard.guard_fairseq` gives.
    """
    make = indexed_dataset.make_dataset

    @functools.wraps(make)
    def check_and_make(*arguments: Any, **settings: Any) -> Any:
        given = inspect.signature(make).bind(*arguments, **settings).arguments
        if given["impl"] == "mmap" and indexed_dataset.MMapIndexedDataset.exists(given["path"]):
            check_files(given["path"], given.get("dictionary"))
        return make(*arguments, **settings)

    indexed_dataset.make_dataset = check_and_make


def check_files(prefix: str | Path, dictionary: Dictionary | None) -> None:
    """Refuse an index that does not describe its data, and tokens that are not in the dictionary.

    fairseq reads both files once when it opens them; they are read here once more.

    Args:
        prefix: the path without ``.idx`` and ``.bin``.
        dictionary: the dictionary that the data was binarised with; None if there is none.

    Raises:
        UsageError: naming the file, and the sentence.
    """
    index, binary = f"{prefix}.idx", f"{prefix}.bin"
    for path in (index, binary):
        if kind_of(path) != "file":
            raise UsageError(f"{path} is not a file; {_REMEDY}")
    with open(index, "rb") as file:
        mark, version, kind, count = _HEADER.unpack(file.read(_HEADER.size).ljust(_HEADER.size, b"\0"))
    if os.path.getsize(index) < _HEADER.size + count * (_LENGTH.itemsize + _PLACE.itemsize):
        raise UsageError(f"{index} ends early; {_REMEDY}")
    dtype = np.dtype(indexed_dataset._code_to_dtype.get(kind, float))
    if mark != indexed_dataset.MMapIndexedDataset.Index._HDR_MAGIC or version != 1 or dtype.kind not in "iu":
        raise UsageError(f"{index} is damaged; {_REMEDY}")
    if not count:
        return
    lengths = np.memmap(index, _LENGTH, "r", _HEADER.size, (count,))
    places = np.memmap(index, _PLACE, "r", _HEADER.size + lengths.nbytes, (count,))
    end = 0
    for start in range(0, count, _AT_ONCE):
        sizes = lengths[start : start + _AT_ONCE].astype(np.int64) * dtype.itemsize
        ends = end + np.cumsum(sizes)
        if (sizes < 0).any() or not np.array_equal(places[start : start + _AT_ONCE], ends - sizes):
            raise UsageError(f"{index} is damaged; {_REMEDY}")
        end = int(ends[-1])
    if end != os.path.getsize(binary):
        raise UsageError(
            f"{binary} has {os.path.getsize(binary):,} bytes, but {index} describes {end:,}; copy both "
            "again, or binarise again"
        )
    if dictionary is not None and end:
        _check_tokens(binary, dtype, places, symbols=len(dictionary))


def _check_tokens(binary: str, dtype: np.dtype, places: np.ndarray, *, symbols: int) -> None:
    tokens = np.memmap(binary, dtype, "r")
    for start in range(0, len(tokens), 16 * _AT_ONCE):
        part = tokens[start : start + 16 * _AT_ONCE]
        if int(part.max()) < symbols and int(part.min()) >= 0:
            continue
        at = int(np.argmax((part >= symbols) | (part < 0)))
        sentence = int(np.searchsorted(places, (start + at) * dtype.itemsize, "right")) - 1
        raise UsageError(
            f"sentence {sentence} of {binary} holds symbol {part[at]}, but its dictionary has only "
            f"{symbols}; binarise the data again (fairseq-preprocess --srcdict --tgtdict)"
        )
