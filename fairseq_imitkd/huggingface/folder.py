"""The folder of a model as ``huggingface_hub`` or ``git`` leaves it. Its files are untrusted input."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_imitkd.data.files import hub_download, kind_of
from fairseq_imitkd.errors import UsageError

CONFIG = "config.json"
_POINTER = b"version https://git-lfs"  # how a file begins that git has not fetched yet
_LARGEST_JSON = 2**29  # bytes; the largest tokenizer.json that is published has some 35 million


@dataclass(frozen=True)
class ModelFolder:
    """A folder with a model.

    Args:
        path: the folder.
    """

    path: Path

    @property
    def name(self) -> str:
        """What messages call the model."""
        return f"MODEL_DIR '{self.path}'"

    def file(self, name: str) -> Path | None:
        """Return a file of the folder, or None if it is missing.

        Raises:
            UsageError: it is not a file, or git has left a pointer in its place.
        """
        path = self.path / name
        kind = kind_of(path)
        if kind is None:
            return None
        if kind != "file" or not os.access(path, os.R_OK):
            raise UsageError(f"'{path}' must be a file that can be read; copy it again")
        with open(path, "rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise UsageError(f"'{path}' is only a pointer of git-lfs; run 'git lfs pull' in its folder")
        return path

    def json(self, name: str) -> dict[str, Any] | None:
        """Return the content of a JSON file, or None if the file is missing.

        Raises:
            UsageError: the file does not hold a JSON object.
        """
        path = self.file(name)
        return None if path is None else read_json(path)

    def config(self) -> Mapping[str, Any]:
        """Return the content of ``config.json``.

        Raises:
            UsageError: the folder or the file is missing, or the file is damaged.
        """
        kind = kind_of(self.path, "MODEL_DIR")
        if kind is None and (download := hub_download(self.path)):
            raise UsageError(
                f"{self.name} is not a folder; if it is a model of the hub: {download}, and use that folder"
            )
        if kind != "folder":
            raise UsageError(f"{self.name} is not a folder; use the folder with the model's config.json")
        content = self.json(CONFIG)
        if content is None:
            raise UsageError(
                f"{self.name} has no config.json; use the folder of a model that transformers can load"
            )
        return content


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file.

    Raises:
        UsageError: the file does not hold a JSON object.
    """
    content: Any = None
    if path.stat().st_size <= _LARGEST_JSON:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            content = None
    if not isinstance(content, dict):
        raise UsageError(f"'{path}' must hold a JSON object; copy it again")
    return content
