"""Opens the text of a folder that ``imitkd-import`` has written."""

import json
from pathlib import Path
from typing import Any

from fairseq.data import Dictionary

from fairseq_imitkd.data.dictionaries import load_dictionary
from fairseq_imitkd.data.files import kind_of
from fairseq_imitkd.errors import UsageError, as_usage_error
from fairseq_imitkd.text.imported import (
    DESCRIPTION,
    SUBWORD_FILES,
    Encoder,
    Files,
    encoder_of,
    read_description,
)


def open_encoder(folder: Path, side: str, *, tags: bool = True) -> Encoder:
    """Open the subwords of an imported model.

    Args:
        folder: what ``imitkd-import`` has written.
        side: ``source`` or ``target``.
        tags: whether sentences get the model's tags.

    Raises:
        UsageError: the folder is another one, or it has no subwords.
    """
    return encoder_of(files_of(folder), side, dictionary_of(folder, side), tags=tags)


def dictionary_of(folder: Path, side: str) -> Dictionary:
    """Return the dictionary of a side of an imported model.

    Raises:
        UsageError: as in :func:`open_encoder`.
    """
    files = files_of(folder)
    description = read_description(files)
    with as_usage_error(f"'{files[DESCRIPTION]}' can't be used", "import the model again"):
        language = description["text"][side]["language"]
    path = folder / f"dict.{language}.txt"
    if not path.is_file():
        raise UsageError(f"'{folder}' has no {path.name}; use a folder that imitkd-import has written")
    return load_dictionary(path)


def files_of(folder: Path, flag: str | None = None) -> Files:
    """Return the files of an imported model's text by their name.

    Args:
        folder: the folder.
        flag: the flag that names it; None for an argument without a flag.

    Raises:
        UsageError: the folder is not one that ``imitkd-import`` has written.
    """
    name = f"{flag} '{folder}'" if flag else f"'{folder}'"
    remedy = "use a folder that imitkd-import has written"
    if kind_of(folder, flag or "FOLDER") != "folder":
        raise UsageError(f"{name} is not a folder; {remedy}")
    if not (folder / DESCRIPTION).is_file():
        raise UsageError(f"{name} has no {DESCRIPTION}; {remedy}")
    return {name: folder / name for name in (DESCRIPTION, *SUBWORD_FILES) if (folder / name).is_file()}


def write_description(folder: Path, content: Any) -> None:
    """Write what an import knows."""
    (folder / DESCRIPTION).write_text(
        json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
