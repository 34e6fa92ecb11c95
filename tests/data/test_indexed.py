"""Memory-mapped data is compared with its index and its dictionary when fairseq opens it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairseq.data import data_utils

from fairseq_imitkd.data import indexed
from fairseq_imitkd.data.corpus import dataset_builder
from fairseq_imitkd.errors import UsageError
from tests.helpers.fairseq_models import letters
from tests.helpers.hostile_folders import HEAD, changed_index

ROWS = [[4, 5, 2], [6, 2], [7, 8, 9, 2]]


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """The prefix of three sentences of letters."""
    with dataset_builder(tmp_path / "test", 20) as builder:
        for row in ROWS:
            builder.add_item(torch.tensor(row))
    return tmp_path / "test"


def opened(prefix: Path) -> Any:
    """Open data as fairseq does."""
    return data_utils.load_indexed_dataset(str(prefix), letters(), None)


def test_whole_data_opens(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts, too."""
    for at_once in (2**20, 2):
        monkeypatch.setattr(indexed, "_AT_ONCE", at_once)
        assert [tokens.tolist() for tokens in opened(prefix)] == ROWS


@pytest.mark.parametrize(
    ("end", "change", "message"),
    [
        ("idx", lambda data: data[:-1], "test.idx ends early"),
        ("idx", changed_index(count=2**60), "test.idx ends early"),
        ("idx", changed_index(version=2), "test.idx is damaged"),
        ("idx", changed_index(type=99), "test.idx is damaged"),
        ("idx", changed_index(type=7), "test.idx is damaged"),
        ("idx", changed_index(type=1), "test.idx is damaged"),
        ("idx", changed_index(size=-1), "test.idx is damaged"),
        ("idx", changed_index(size=2**31 - 1), "test.idx is damaged"),
        ("idx", changed_index(place=-2), "test.idx is damaged"),
        ("bin", lambda data: data[:-2], "test.bin has 16 bytes, but .*test.idx describes 18; copy both"),
        ("bin", lambda data: data + b"\0\0", "test.bin has 20 bytes, but .*test.idx describes 18"),
        (
            "bin",
            lambda data: np.array([4, 5, 2, 6, 20, 7, 8, 9, 2], np.uint16).tobytes(),
            "sentence 1 of .*test.bin holds symbol 20, but its dictionary has only 20; binarise",
        ),
    ],
)
@pytest.mark.parametrize("at_once", [2**20, 1])
def test_damaged_data_is_refused(
    prefix: Path,
    end: str,
    change: Callable[[bytes], bytes],
    message: str,
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When it is opened, by whatever part of fairseq opens it."""
    monkeypatch.setattr(indexed, "_AT_ONCE", at_once)
    path = Path(f"{prefix}.{end}")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UsageError, match=message):
        opened(prefix)


def test_the_index_is_changed_as_it_is_written(prefix: Path) -> None:
    """So the cases above change one thing each."""
    data = Path(f"{prefix}.idx").read_bytes()
    assert changed_index()(data) == data
    assert len(data) == HEAD.size + 3 * 12


def test_a_side_that_is_not_complete_leaves_no_file(tmp_path: Path) -> None:
    def ends_early() -> None:
        with dataset_builder(tmp_path / "test", 20) as builder:
            builder.add_item(torch.tensor([4, 2]))
            raise KeyError

    with pytest.raises(KeyError):
        ends_early()
    assert not list(tmp_path.iterdir())
