"""Saved batches: complete or absent, the same when they are read, and refused when they are damaged."""

import os
from pathlib import Path

import numpy as np
import pytest

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.seqkd.folder import save_batch, saved_batches
from fairseq_imitkd.seqkd.translator import TranslatedBatch


def batch(seed: int, sentences: int = 2, hypotheses: int = 1) -> TranslatedBatch:
    """Random contents."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 4, sentences * hypotheses)
    return TranslatedBatch(
        ids=random.integers(0, 2**40, sentences),
        counts=np.full(sentences, hypotheses, dtype=np.int32),
        lengths=lengths.astype(np.int32),
        scores=random.normal(size=lengths.size).astype(np.float32),
        cut=random.integers(0, 2, lengths.size).astype(np.uint8),
        tokens=random.integers(0, 2**31, lengths.sum()).astype(np.int32),
    )


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "decoded").mkdir()
    return tmp_path


def assert_equal(found: TranslatedBatch, expected: TranslatedBatch) -> None:
    for name, value in vars(expected).items():
        read = getattr(found, name)
        assert read.dtype == value.dtype
        assert np.array_equal(read, value), name


def test_what_is_read_is_what_was_saved(out: Path) -> None:
    """Batches of several hypotheses and of none, in the order of their numbers; other files are not read."""
    assert list(saved_batches(out)) == []
    assert list(saved_batches(out / "missing")) == []
    saved = {12: batch(1), 3: batch(7, sentences=3, hypotheses=4), 2**20: batch(8, sentences=0)}
    saved[10**7] = batch(9)  # its name has a digit more
    for number, translated in saved.items():
        save_batch(out, number, translated)
    for name in ("source.bin", "0000001.npz.12.partial"):
        (out / "decoded" / name).write_bytes(b"none of these")
    found = list(saved_batches(out))
    assert [number for number, _ in found] == [3, 12, 2**20, 10**7]
    for number, translated in found:
        assert_equal(translated, saved[number])


def test_saved_batch_is_on_the_disk(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system was told to write out the file, all of it, and its name."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    save_batch(out, 5, batch(5))
    [path] = (out / "decoded").iterdir()
    assert synced == [path.stat().st_size, (out / "decoded").stat().st_size]


def test_damage_of_every_byte(out: Path) -> None:
    """It is refused with the file's name, or changes nothing: some bytes of a zip file have no meaning."""
    save_batch(out, 1, batch(1))
    [path] = (out / "decoded").iterdir()
    whole, refused = path.read_bytes(), []
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= (0x01, 0x80, 0xFF)[place % 3]
        path.write_bytes(damaged)
        try:
            [(_, found)] = saved_batches(out)
        except UsageError as error:
            refused.append(str(error))
        else:
            assert_equal(found, batch(1))
    told = f"'{path}' is damaged; delete the file and run the same command again: only its sentences are"
    assert all(message.startswith(told) for message in refused)
    assert len(refused) > 0.5 * len(whole)


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_files_that_end_early(out: Path, size: int) -> None:
    """An atomic write leaves none, but a copy may."""
    save_batch(out, 1, batch(1))
    [path] = (out / "decoded").iterdir()
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UsageError, match="is damaged"):
        list(saved_batches(out))


@pytest.mark.parametrize(
    "change",
    [
        {"ids": np.zeros(3, dtype=np.int64)},
        {"ids": np.zeros(2, dtype=np.int32)},
        {"counts": np.array([2, 1], dtype=np.int32)},
        {"lengths": np.array([1, 1, 1], dtype=np.int32)},
        {"scores": np.zeros(3, dtype=np.float32)},
        {"scores": np.array([None, None])},
        {"cut": np.zeros((2, 1), dtype=np.uint8)},
        {"tokens": np.zeros(1, dtype=np.int32)},
        {"more": np.zeros(1)},
    ],
    ids=str,
)
def test_arrays_that_do_not_fit_together(out: Path, change: dict[str, np.ndarray]) -> None:
    np.savez(out / "decoded" / "0000001.npz", **{**vars(batch(1)), **change})
    with pytest.raises(UsageError, match="is damaged"):
        list(saved_batches(out))


def test_missing_arrays_and_names_without_a_number(out: Path) -> None:
    np.savez(out / "decoded" / "0000001.npz", ids=np.zeros(3))
    with pytest.raises(UsageError, match=r"0000001\.npz' is damaged"):
        list(saved_batches(out))
    (out / "decoded" / "0000001.npz").unlink()
    save_batch(out, 1, batch(1))
    (out / "decoded" / "0000001.npz").rename(out / "decoded" / "one.npz")
    with pytest.raises(UsageError, match=r"one\.npz' is damaged"):
        list(saved_batches(out))
