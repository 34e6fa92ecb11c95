"""Files that are complete or absent, and what a path leads to."""

import errno
import itertools
import json
import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fairseq_imitkd.cli.arguments import text_settings
from fairseq_imitkd.cli.report import check_out
from fairseq_imitkd.data.files import atomic_files, kind_of, partial, sha256, write_json
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.teacher.source import check_files


def test_whole_files(tmp_path: Path) -> None:
    """One is replaced, or stays, as asked for; nothing is left beside it."""
    path = tmp_path / "file.json"
    assert write_json(path, {"a": 1}, replace=False)
    assert not write_json(path, {"a": 2}, replace=False)
    assert json.loads(path.read_text()) == {"a": 1}
    assert write_json(path, {"a": 3})
    assert json.loads(path.read_text()) == {"a": 3}
    assert [each.name for each in tmp_path.iterdir()] == ["file.json"]
    assert partial(path) != partial(path)


def write(paths: list[Path]) -> None:
    with atomic_files(*paths) as files:
        for file in files:
            file.write(b"after")


def test_files_that_get_their_names_together(tmp_path: Path, monkeypatch: Any) -> None:
    """In the given order; a disk that is full at any of them, or an error in the block, changes nothing."""
    paths = [tmp_path / name for name in "ab"]
    paths[0].write_text("before")
    fsync = os.fsync
    for place in range(2):
        calls = itertools.count()

        def full(file: int, place: int = place, calls: Iterator[int] = calls) -> None:
            if next(calls) == place:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(file)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space"):
                write(paths)
        assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
    with pytest.raises(KeyboardInterrupt), atomic_files(*paths):
        raise KeyboardInterrupt
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
    named: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, to: named.append(to.name) or replace(path, to))
    write(paths)
    assert named == ["a", "b"]
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["after", "after"]


def test_file_systems_without_links(tmp_path: Path, monkeypatch: Any) -> None:
    """Some network disks have none."""

    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "file.json"
    assert write_json(path, {"a": 1}, replace=False)
    assert not write_json(path, {"a": 2}, replace=False)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["file.json"]


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    with pytest.raises(UsageError, match="can't be read: No such file"):
        sha256(tmp_path / "none")


def test_kinds(tmp_path: Path, monkeypatch: Any) -> None:
    """A path that leads nowhere differs from one that may not be looked at, where ``Path.is_file`` raises."""
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    names = (".", "file", "pipe", "none", "file/none", "nul\0")
    assert [kind_of(tmp_path / name) for name in names] == ["folder", "file", "other", None, None, None]
    assert kind_of(str(tmp_path)) == "folder"

    forbid_looking(monkeypatch)
    told = r"^--out 'private/file' can't be looked at \(Permission denied\); make its folder readable"
    with pytest.raises(UsageError, match=told):
        kind_of("private/file", "--out")


def forbid_looking(monkeypatch: Any) -> None:
    """As in a folder of someone else's, which root may read."""

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "stat", refuse)


@pytest.mark.parametrize(
    ("flag", "asks"),
    [
        ("--teacher-path", lambda path: check_files(str(path))),
        ("--out", check_out),
        ("--bpe-codes", lambda path: text_settings(Namespace(bpe="fastbpe", bpe_codes=path))),
    ],
)
def test_flags_of_files_that_may_not_be_looked_at(
    flag: str, asks: Callable[[Path], object], monkeypatch: Any
) -> None:
    """One line for each of them."""
    forbid_looking(monkeypatch)
    with pytest.raises(UsageError, match=rf"^{flag} 'private/file' can't be looked at \(Permission denied\)"):
        asks(Path("private/file"))
