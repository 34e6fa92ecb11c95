"""The journal of translated batches: what a kill leaves behind is cut off, damage is refused, and one process writes it."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fairseq_imitkd.engines.base import Translated
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.seqkd import journal as module
from fairseq_imitkd.seqkd.journal import Journal, records


def batch(seed: int, sentences: int = 2, hypotheses: int = 1) -> Translated:
    """Random contents."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 4, sentences * hypotheses)
    return Translated(
        ids=random.integers(0, 2**40, sentences),
        counts=np.full(sentences, hypotheses, dtype=np.int32),
        lengths=lengths.astype(np.int32),
        scores=random.normal(size=lengths.size).astype(np.float32),
        cut=random.integers(0, 2, lengths.size).astype(np.uint8),
        tokens=random.integers(0, 2**31, lengths.sum()).astype(np.int32),
    )


def write(path: Path, numbers: Sequence[int]) -> list[int]:
    """A journal of these batches, each with its number for a seed; where each record ends."""
    ends = [0]
    journal = Journal(path)
    for number in numbers:
        journal.add(number, batch(number))
        ends.append(path.stat().st_size)
    journal.close()
    return ends


def check(folder: Path, numbers: Sequence[int]) -> None:
    """Exactly these batches are there, every array of them as it was written."""
    found = list(records(folder))
    assert [number for number, _ in found] == list(numbers)
    for number, translated in found:
        for name, value in vars(batch(number)).items():
            read = getattr(translated, name)
            assert read.dtype == value.dtype
            assert np.array_equal(read, value), name


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    """Batches of several hypotheses and of none too; numbers in the order of writing."""
    write(tmp_path / "000-000.journal", [3, 0, 2**40])
    check(tmp_path, [3, 0, 2**40])
    several, nothing = batch(7, sentences=3, hypotheses=4), batch(8, sentences=0)
    for translated in (several, nothing):
        copy = Translated.from_bytes(memoryview(translated.to_bytes()))
        assert all(np.array_equal(getattr(copy, name), value) for name, value in vars(translated).items())


def test_added_batch_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When ``add`` returns, another process reads it, and the system was told to write it out."""
    synced = []
    monkeypatch.setattr(module.os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    journal = Journal(tmp_path / "000-000.journal")
    journal.add(5, batch(5))
    check(tmp_path, [5])
    assert synced == [(tmp_path / "000-000.journal").stat().st_size]
    journal.close()


def test_torn_at_every_byte(tmp_path: Path) -> None:
    """A write that stopped at any byte: whole records stay, the rest is cut off, and new ones follow without a gap."""
    path = tmp_path / "000-000.journal"
    ends = write(path, [0, 1, 2])
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        kept = sum(end <= size for end in ends) - 1
        check(tmp_path, range(kept))
        Journal(path).close()
        assert path.read_bytes() == whole[: ends[kept]], f"cut at {size}"
        write(path, [9])
        check(tmp_path, [*range(kept), 9])


@pytest.mark.parametrize("bits", [0x01, 0x80, 0xFF])
def test_damage_of_every_byte_is_refused(tmp_path: Path, bits: int) -> None:
    """The header's bytes too: a wrong length must not pass for a torn end, nor a wrong number for another batch."""
    path = tmp_path / "000-000.journal"
    ends = write(path, [0, 1, 2])
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= bits
        path.write_bytes(damaged)
        start = max(end for end in ends if end <= place)
        for read in (lambda: list(records(tmp_path)), lambda: Journal(path)):
            with pytest.raises(UsageError) as error:
                read()
            assert str(error.value).startswith(f"{path} is damaged at byte {start}: delete the file and run")
            assert "\n" not in str(error.value)
        assert path.read_bytes() == damaged, "nothing is thrown away"
    path.write_bytes(whole)
    check(tmp_path, [0, 1, 2])


def test_garbage_is_refused(tmp_path: Path) -> None:
    """A file that never was a journal."""
    path = tmp_path / "000-000.journal"
    path.write_bytes(b"once upon a time there was no journal at all")
    with pytest.raises(UsageError, match="damaged at byte 0"):
        Journal(path)


def test_all_journals_are_read(tmp_path: Path) -> None:
    """In the order of their names; one that is empty or torn has its whole records; other files are none."""
    assert list(records(tmp_path)) == []
    assert list(records(tmp_path / "missing")) == []
    write(tmp_path / "000-001.journal", [4, 5])
    write(tmp_path / "000-000.journal", [2, 6])
    (tmp_path / "001-000.journal").touch()
    torn = tmp_path / "001-001.journal"
    write(torn, [7, 8])
    torn.write_bytes(torn.read_bytes()[:-1])
    (tmp_path / "source.bin").write_bytes(b"none of these")
    check(tmp_path, [2, 6, 4, 5, 7])


def test_empty_file(tmp_path: Path) -> None:
    """Of a run that was killed before its first batch."""
    path = tmp_path / "000-000.journal"
    path.touch()
    write(path, [1])
    check(tmp_path, [1])


def test_one_process_writes(tmp_path: Path) -> None:
    """A second one is refused in time, and leaves the torn end of the first's record alone; it may follow."""
    path = tmp_path / "000-000.journal"
    first = Journal(path)
    first.add(0, batch(0))
    path.write_bytes(path.read_bytes() + b"KD01 half a record")
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"another run is writing .*000-000\.journal: wait for it"):
        Journal(path, patience=0.15)
    assert path.read_bytes() == before
    Journal(tmp_path / "000-001.journal", patience=0.0).close()
    first.close()
    Journal(path, patience=0.0).close()
    check(tmp_path, [0])


def test_waits_for_a_process_that_is_just_ending(tmp_path: Path) -> None:
    """Until it lets go of the file."""
    path = tmp_path / "000-000.journal"
    first = Journal(path)
    timer = threading.Timer(0.3, first.close)
    timer.start()
    Journal(path, patience=60.0).close()
    timer.join()


def test_refused_journal_is_let_go(tmp_path: Path) -> None:
    """A damaged one can be looked at, mended and opened by the same process."""
    path = tmp_path / "000-000.journal"
    path.write_bytes(b"x" * 100)
    with pytest.raises(UsageError) as error:
        Journal(path)
    path.write_bytes(b"")
    Journal(path, patience=0.0).close()
    assert "damaged" in str(error.value)
