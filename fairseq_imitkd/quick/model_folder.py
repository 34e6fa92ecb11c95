"""Tells folders of Hugging Face's format from others, without importing torch or fairseq."""

from contextlib import suppress
from pathlib import Path


def is_huggingface(folder: str | Path) -> bool:
    """Return whether a folder has a model of Hugging Face's format: a ``config.json`` with a model's type."""
    with suppress(OSError, ValueError), open(Path(folder) / "config.json", "rb") as file:
        return b'"model_type"' in file.read(2**20)  # trainings of this package write config.json too
    return False
