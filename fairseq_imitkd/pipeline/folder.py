"""The folder of a run: whose it is, and the recipe that it keeps."""

import hashlib
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fairseq_imitkd.data.files import atomic_files, write_json
from fairseq_imitkd.data.output_folder import OutputFolder
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.pipeline.plan import STATE
from fairseq_imitkd.pipeline.reading import content_of, parsed, text_of
from fairseq_imitkd.text.counted import counted

KEPT = "recipe.yaml"  # the recipe of a run, in its folder
NOTE = f"{STATE}/recipe.json"  # where that recipe came from, and a hash of it as it was written


@dataclass(frozen=True)
class Given:
    """The recipe that a command line names or describes.

    Args:
        text: its text, which says where relative paths start.
        path: its file; None if it comes with the package, or flags describe it.
        name: what stands for it without a file.
        rehearses: whether it is rehearsed.
    """

    text: str
    path: Path | None = None
    name: str = "flags"
    rehearses: bool = False

    def origin(self, out: Path) -> str:
        """Return where the recipe comes from; a file's path starts from a run's folder, so both may move."""
        origin = self.name if self.path is None else os.path.relpath(self.path, out)
        return f"{origin}, rehearsed" if self.rehearses else origin


def folder_of(path: Path) -> Path:
    """Return the folder of a recipe's run: the recipe that a run has kept continues this run."""
    is_kept = path.name == KEPT and (path.parent / STATE).is_dir()
    return path.parent if is_kept else path.parent / path.stem


def recipe_in(folder: Path) -> Path:
    """Return the recipe of a run whose folder is named in its place.

    Raises:
        UsageError: the folder is not that of a run.
    """
    if (folder / STATE).is_dir() and (folder / KEPT).is_file():
        return folder / KEPT
    outer = next((path for path in folder.absolute().parents if (path / STATE).is_dir()), None)
    if outer is not None and (outer / KEPT).is_file():
        near = os.path.relpath(outer)
        raise UsageError(f"RECIPE '{folder}' is a folder within a run: did you mean {near}?")
    found = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    such = f", such as {found[0]}" if found else ""
    raise UsageError(f"RECIPE '{folder}' is a folder, but not that of a run; name a YAML file{such}")


def check(out: Path, given: Given) -> None:
    """Refuse a folder in which this recipe may not run: steps delete former results there.

    Raises:
        UsageError: the folder holds something else than a run, the run of another recipe, or a recipe that
            was edited there.
    """
    if not (out / STATE).is_dir():
        OutputFolder(out, "a run of imitkd-distill").check()
        return
    own = out / KEPT
    if _is_kept(out, given) or not own.exists() or (text := text_of(own)) == given.text:
        return
    noted = OutputFolder(out, "a run of imitkd-distill").read(NOTE) or {}
    if "origin" in noted and noted["origin"] != given.origin(out):
        raise UsageError(
            f"--out '{out}' is the run of '{noted['origin']}'; use another --out, or delete '{own}' to let "
            "this recipe go on there"
        )
    content_of(text, own)  # which may be YAML no longer
    if given.name == "flags" and given.path is None:
        raise UsageError(
            f"'{own}' differs from what these flags say in {differing(text, given.text)}; go on with it by: "
            f"{_going_on(own)}, or use another --out"
        )
    if noted.get("sha256") != _hash(text):
        raise UsageError(
            f"'{own}' was edited in {differing(text, given.text)}; run {_going_on(own)}, or delete that file"
        )


def differing(one: str, other: str) -> str:
    """Return the keys in which two recipes differ, in words."""
    parts = [parsed(text) for text in (one, other)]
    contents = [dict(_leaves(each)) if isinstance(each, Mapping) else {} for each in parts]
    keys = [key for key in {**contents[0], **contents[1]} if contents[0].get(key) != contents[1].get(key)]
    if not keys:
        return "its comments or its layout"
    return (
        " and ".join(keys)
        if len(keys) < 3
        else f"{', '.join(keys[:2])} and {counted(len(keys) - 2, 'other key')}"
    )


def _leaves(content: Mapping[str, Any], of: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{of}{key}.")
        else:
            yield f"{of}{key}", value


def keep(out: Path, given: Given) -> None:
    """Keep a recipe in the folder of its run."""
    (out / STATE).mkdir(parents=True, exist_ok=True)
    if _is_kept(out, given):
        return
    with atomic_files(out / KEPT) as [file]:
        file.write(given.text.encode())
    write_json(out / NOTE, {"origin": given.origin(out), "sha256": _hash(given.text)})


def with_folder(text: str, folder: Path, *, rehearses: bool = False) -> str:
    """Return a recipe's text with a key that says where its relative paths start.

    Args:
        text: the recipe.
        folder: absolute path of the folder in which the recipe was.
        rehearses: whether the recipe becomes one of a rehearsal.
    """
    given = parsed(text)
    start: dict[str, Any] = {"folder": str(folder / Path(given.get("folder") or "").expanduser())}
    if rehearses:
        start["rehearsal"] = True
    content = {**given, **start}
    if given == content:
        return text
    first = yaml.safe_dump(start, allow_unicode=True) + text
    with suppress(ValueError, yaml.YAMLError):
        if parsed(first) == content:
            return first  # with its comments
    written: str = yaml.safe_dump(content, sort_keys=False, width=100, allow_unicode=True)
    return written


def _is_kept(out: Path, given: Given) -> bool:
    """Whether a recipe is the one that the run has kept."""
    own = out / KEPT
    return given.path is not None and given.path.exists() and own.exists() and own.samefile(given.path)


def _going_on(kept: Path) -> str:
    """Return the command that continues a run by its recipe; its folder may be named as a packaged one."""
    return shlex.join(["imitkd-distill", str(kept)])


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
