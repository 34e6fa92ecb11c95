"""Files that are complete or absent, and what a path holds."""

import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal

from fairseq_imitkd.errors import FULL, UsageError

EXPORTED = "imitkd.json"  # file of a folder that imitkd-export has made
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)  # OWNER/MODEL


def hub_download(path: str | Path) -> str | None:
    """Return the command that downloads a model of Hugging Face's hub, if nothing is there and it may be one.

    Args:
        path: what was given as a file or folder: ``OWNER/MODEL`` if it is a model of the hub.
    """
    name = str(path)
    if name.endswith(".pt") or not _HUB_NAME.fullmatch(name) or kind_of(Path(name).parent) is not None:
        return None
    return f"hf download {name} --local-dir {Path(name).name}"


def kind_of(path: str | Path, flag: str = "") -> Literal["file", "folder", "other"] | None:
    """Return what a path leads to, or None if there is nothing.

    ``Path.is_file`` raises a ``PermissionError`` up to Python 3.13; this function ends in one line instead.

    Args:
        path: the path.
        flag: the flag whose value it is, for the message.

    Raises:
        UsageError: the folder of the path may not be searched.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: the name holds a null byte
        return None
    except OSError as error:
        named = f"{flag} '{path}'".lstrip()
        raise UsageError(
            f"{named} can't be looked at ({error.strerror}); make its folder readable or use another"
        ) from error
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"


def is_compressed(first: bytes) -> bool:
    """Whether a file is compressed, by its first bytes: those of gzip, bzip2, xz, Zstandard or zip."""
    return first.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK\x03\x04"))


def not_text(name: str, path: str | Path, number: int | None = None, *, has_null: bool = False) -> UsageError:
    """Return the error of a file that must hold text, but holds something else.

    Args:
        name: what the message calls the file.
        path: the file, to see whether it is compressed.
        number: number of the line that is wrong, if it is known.
        has_null: whether this line has a null byte, and is not in another encoding.
    """
    with open(path, "rb") as file:
        if is_compressed(file.read(8)):
            return UsageError(f"{name} is compressed; unpack it")
    place = f"line {number}" if number is not None else "it"
    if has_null:
        return UsageError(f"{name} is not text: {place} has a null byte; name a file of text")
    return UsageError(f"{name} must be UTF-8, but {place} is not; convert the file (iconv)")


def remedy_to_write(error: BaseException, other: str) -> str:
    """Return what to do about a path that can't be written.

    Args:
        error: why not.
        other: what can be used in its place, such as "another file".
    """
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"check the permissions of its folder, or use {other}"
    return f"make room or use {other}" if number in (*FULL, None) else f"use {other}"  # torch hides it


def checkpoint_in(folder: str | Path) -> str | None:
    """Return the path of the best checkpoint of a training's folder, else its last; None if it has none."""
    paths = (os.path.join(folder, f"checkpoint_{name}.pt") for name in ("best", "last"))
    return next((path for path in paths if os.path.isfile(path)), None)


def partial(path: Path) -> Path:
    """Return a temporary name beside a path. It is unique: several machines may write one file at once."""
    return path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")


@contextmanager
def atomic_files(*paths: Path, replace: bool = True) -> Iterator[list[BinaryIO]]:
    """Open files for writing that get their names when all of them are complete and on the disk.

    If the block raises, or the process or the machine stops, the files that were there before are unchanged.

    Args:
        paths: the files, named in this order.
        replace: whether a file that is there already is replaced.

    Yields:
        the open files, in the order of ``paths``.

    Raises:
        FileExistsError: ``replace`` is False and a file is there already.
    """
    begun = [partial(path) for path in paths]
    try:
        with ExitStack() as opened:
            files: list[BinaryIO] = [opened.enter_context(open(path, "wb")) for path in begun]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        for temporary, path in zip(begun, paths, strict=True):
            temporary.replace(path) if replace else _link(temporary, path)
    except BaseException:
        for path in begun:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        raise
    for folder in {path.parent for path in paths}:
        sync(folder)


def _link(begun: Path, path: Path) -> None:
    """Rename a file unless the new name is taken."""
    try:
        os.link(begun, path)
        begun.unlink()
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(path) from None
        begun.replace(path)


def write_json(path: Path, content: Any, replace: bool = True) -> bool:
    """Write a JSON file atomically.

    Args:
        path: the file.
        content: what the file holds.
        replace: whether a file that is there already is replaced.

    Returns:
        whether the file was written.
    """
    try:
        with atomic_files(path, replace=replace) as [file]:
            file.write((json.dumps(content, indent=2) + "\n").encode())
    except FileExistsError:
        return False
    return True


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def sha256(path: str | Path) -> str:
    """Return a file's SHA-256 in hexadecimal digits.

    Raises:
        UsageError: the file can't be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(
            f"'{path}' can't be read: {error.strerror}; check its path and permissions"
        ) from error
