"""The folder that an evaluation writes: its results, the sentences, and what every model made of them."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.evaluate.sentences import Sentences
from fairseq_imitkd.evaluate.speed import Run
from fairseq_imitkd.files import is_left_over, partial, write_json

RESULTS, SOURCES, REFERENCES = "evaluation.json", "sources.txt", "references.txt"


def check(out: Path) -> None:
    """Whether an evaluation may be written there.

    Raises:
        UsageError: it is a file, or holds something else.
    """
    if out.exists() and (not out.is_dir() or (any(not is_left_over(path) for path in out.iterdir()) and not _is_former(out))):
        raise UsageError(f"--out '{out}' holds something that is no evaluation: give another folder, or delete it first")


def make(out: Path) -> None:
    """The folder, if it is not there.

    Raises:
        UsageError: it can't be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out '{out}' can't be made ({error.strerror}): give another folder") from error


def outputs(run: Run) -> str:
    """The name of the file of a model's translations."""
    name, search = run
    return f"{name}.{search.replace(' ', '')}.txt"


def write(out: Path, sentences: Sentences, texts: Mapping[Run, Sequence[str]], results: dict[str, Any]) -> None:
    """All files, the results last; the outputs of a former evaluation go, and what else is there stays."""
    for path in former_outputs(out):
        path.unlink(missing_ok=True)
    _write_lines(out / SOURCES, sentences.source_texts)
    _write_lines(out / REFERENCES, sentences.reference_texts)
    for run, lines in texts.items():
        _write_lines(out / outputs(run), lines)
    write_json(out / RESULTS, results)


def former_outputs(out: Path) -> list[Path]:
    """The translations that a former evaluation has left; nothing that lies elsewhere, whatever its file says."""
    if not _is_former(out):
        return []
    return [out / name for name in re.findall(r'"outputs": "([A-Za-z0-9][\w.+-]*\.txt)"', (out / RESULTS).read_text("utf-8"))]


def _is_former(out: Path) -> bool:
    try:
        found = json.loads((out / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and "format" in found and "models" in found


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    begun = partial(path)
    try:
        with open(begun, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)
        begun.replace(path)
    finally:
        begun.unlink(missing_ok=True)
