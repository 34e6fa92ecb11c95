"""Files that are there whole or not at all, folders that one run writes at a time, and what tells files apart."""

import fcntl
import hashlib
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from fairseq_imitkd.errors import UsageError

LOCK = ".lock"


def kind_of(path: str | Path, flag: str = "") -> Literal["file", "folder", "other"] | None:
    """What is at a path; None where nothing is. Python 3.11's ``Path.is_file`` raises where one may not look.

    Args:
        path: to look at.
        flag: whose value it is.

    Raises:
        UsageError: one may not look there.
    """
    try:
        mode = os.stat(path).st_mode
    except (
        FileNotFoundError,
        NotADirectoryError,
        ValueError,
    ):  # a ValueError: a name such as no file can have
        return None
    except OSError as error:
        named = f"{flag} '{path}'".lstrip()
        raise UsageError(
            f"{named} can't be looked at ({error.strerror}): see that you may read its folder, or give another"
        ) from error
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"


def partial(path: Path) -> Path:
    """What to call a file while it is written, like no other's: several machines may write the same at once."""
    return path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")


def is_left_over(path: Path) -> bool:
    """Whether a run that was killed has left a file that means nothing any more."""
    return path.name.endswith(".partial") or path.name == LOCK


def write_json(path: Path, content: Any, replace: bool = True) -> bool:
    """Write a file that is whole or, whenever the process or the machine stops, not changed at all.

    Args:
        path: the file.
        content: of it.
        replace: also a file that is there; otherwise that one stays.

    Returns:
        whether the file is this one.
    """
    begun = partial(path)
    try:
        with open(begun, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        if replace:
            begun.replace(path)
        else:
            _link(begun, path)
    except FileExistsError:
        return False
    finally:
        begun.unlink(missing_ok=True)
    sync(path.parent)  # the new name too
    return True


def _link(begun: Path, path: Path) -> None:
    """Give a file a name that is nobody's yet."""
    try:
        os.link(begun, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without a second name for a file
        if path.exists():
            raise FileExistsError(path) from None
        begun.replace(path)


def sync(path: Path) -> None:
    """Return when a file, or a folder's names, are on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def lock(file: IO[bytes], path: Path, patience: float = 30.0, shared: bool = False) -> None:
    """Keep other runs from a file until it is closed. A run that was killed may leave a process that is just ending.

    Args:
        file: open to be written.
        path: what a message calls it.
        patience: seconds to wait for others.
        shared: let others in that ask for the same.

    Raises:
        UsageError: another run keeps it, or it can't be kept.
    """
    until = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise UsageError(
                    f"another run is writing {path}: wait for it, or give --out another folder"
                ) from None
            time.sleep(0.1)
        except OSError as error:
            raise UsageError(
                f"{path} is on a file system that can't lock files ({error.strerror}): give --out a folder on another"
            ) from error


@contextmanager
def alone(folder: Path, shared: bool = False, patience: float = 30.0) -> Iterator[None]:
    """No other run in a folder meanwhile; of shared ones, no other that is not.

    Raises:
        UsageError: there is one.
    """
    path = folder / LOCK
    while True:
        file = open(path, "ab")  # noqa: SIM115
        try:
            lock(file, folder, patience, shared)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break  # else the run that had it has thrown the file away
        except BaseException:
            file.close()
            raise
        file.close()
    try:
        yield
    finally:
        with suppress(OSError):  # others share it
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        file.close()


def sha256(path: str | Path) -> str:
    """A file's SHA-256, in hexadecimal digits.

    Raises:
        UsageError: it can't be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"'{path}' can't be read: {error.strerror}") from error
