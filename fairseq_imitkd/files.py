"""Files that are there whole or not at all, and what tells them apart."""

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from fairseq_imitkd.errors import UsageError


def partial(path: Path) -> Path:
    """What to call a file while it is written, like no other's: several machines may write the same at once."""
    return path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")


def write_json(path: Path, content: Any) -> None:
    """Write a file that is whole or, whenever the process or the machine stops, not changed at all."""
    begun = partial(path)
    with open(begun, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    begun.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name too
    finally:
        os.close(folder)


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
