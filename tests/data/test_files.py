"""Files that are whole, and folders that one run writes at a time."""

import errno
import fcntl
import json
import os
import threading
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairseq_imitkd.checkpoints.safe_load import check_files
from fairseq_imitkd.cli.arguments import text_settings
from fairseq_imitkd.cli.report import check_out
from fairseq_imitkd.data.files import LOCK, alone, is_left_over, kind_of, partial, sha256, write_json
from fairseq_imitkd.errors import UsageError


def test_shared_and_sole_runs(tmp_path: Path) -> None:
    """Machines' shares go side by side; the last run goes alone, and takes the lock's file away."""
    with alone(tmp_path, shared=True), alone(tmp_path, shared=True, patience=0.0):
        for _ in range(2):
            with pytest.raises(UsageError, match="another run is writing"), alone(tmp_path, patience=0.1):
                pass
    with alone(tmp_path, patience=0.0):
        for shared in (True, False):
            with (
                pytest.raises(UsageError, match="another run is writing"),
                alone(tmp_path, shared, patience=0.1),
            ):
                pass
    assert not list(tmp_path.iterdir())
    with alone(tmp_path, patience=0.0):
        pass


def test_runs_that_wait_are_one_at_a_time(tmp_path: Path) -> None:
    """Whoever waited for a file that the run before has thrown away takes the new one."""
    inside, most, begun = [0], [0], threading.Barrier(8)

    def run() -> None:
        begun.wait()
        for _ in range(5):
            with alone(tmp_path):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_file_system_without_locks(tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    told = r"is on a file system that can't lock files \(No locks available\): give --out"
    with pytest.raises(UsageError, match=told), alone(tmp_path):
        pass


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
    assert is_left_over(partial(path))
    assert is_left_over(tmp_path / LOCK)
    assert not is_left_over(path)


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
    """What is no file is told from what may not be looked at, which Python 3.11's own questions raise at."""
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    names = (".", "file", "pipe", "none", "file/none", "nul\0")
    assert [kind_of(tmp_path / name) for name in names] == ["folder", "file", "other", None, None, None]
    assert kind_of(str(tmp_path)) == "folder"

    forbid_looking(monkeypatch)
    told = r"^--out 'private/file' can't be looked at \(Permission denied\): see that you may read its folder, or give another$"
    with pytest.raises(UsageError, match=told):
        kind_of("private/file", "--out")


def forbid_looking(monkeypatch: Any) -> None:
    """As in a folder of someone else's; for root there is none."""

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
