"""The folder that an evaluation writes: its results, the sentences, and what every model made of them."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from fairseq_imitkd.data.files import alone, is_left_over, partial, sync, write_json
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.evaluate.sentences import Sentences
from fairseq_imitkd.evaluate.speed import Run

RESULTS, SOURCES, REFERENCES = "evaluation.json", "sources.txt", "references.txt"


def check(out: Path) -> None:
    """Whether an evaluation may be written there.

    Raises:
        UsageError: it is a file, holds something else, or can't be looked into.
    """
    try:
        if not os.path.exists(out) or (
            out.is_dir() and (all(map(is_left_over, out.iterdir())) or _is_former(out))
        ):
            return
    except OSError as error:
        raise _unwritable(out, error) from error
    raise UsageError(
        f"--out '{out}' holds something that is no evaluation: give another folder, or delete it first"
    )


@contextmanager
def held(out: Path) -> Iterator[None]:
    """The folder, made if it is not there, and no other run's meanwhile. One that was made goes if nothing was written.

    Raises:
        UsageError: it can't be made or written, or another run has it.
    """
    is_new = not os.path.exists(out)
    try:
        with ExitStack() as stack:
            try:
                out.mkdir(parents=True, exist_ok=True)
                stack.enter_context(alone(out))
            except OSError as error:
                raise _unwritable(out, error) from error
            yield
    finally:
        if is_new:
            with suppress(OSError):  # it has something in it now
                out.rmdir()


def _unwritable(out: Path, error: OSError) -> UsageError:
    return UsageError(
        f"--out '{out}' can't be written ({error.strerror or error}): make room, or give another folder"
    )


def outputs(run: Run) -> str:
    """The name of the file of a model's translations."""
    name, search = run
    return f"{name}.{search.replace(' ', '')}.txt"


def write(
    out: Path, sentences: Sentences, texts: Mapping[Run, Sequence[str]], results: dict[str, Any]
) -> None:
    """All files, the results last; the outputs of a former evaluation go after that, and what else is there stays.

    Nothing has its name before everything is on the disk: a full one leaves the former evaluation as it is.

    Raises:
        UsageError: they can't be written.
    """
    texts_of = {SOURCES: sentences.source_texts, REFERENCES: sentences.reference_texts}
    texts_of.update({outputs(run): lines for run, lines in texts.items()})
    begun = {name: partial(out / name) for name in (*texts_of, RESULTS)}
    former = former_outputs(out)
    try:
        for name, lines in texts_of.items():
            _write_lines(begun[name], lines)
        write_json(begun[RESULTS], results)
        for name, path in begun.items():
            path.replace(out / name)
        sync(out)
    except OSError as error:
        raise _unwritable(out, error) from error
    finally:
        for path in begun.values():
            with suppress(OSError):
                path.unlink(missing_ok=True)
    written = {name.lower() for name in begun}  # a file system may not tell case
    for path in former:
        if path.name.lower() not in written:
            with suppress(OSError):  # it is one too many, but nothing names it any more
                path.unlink(missing_ok=True)


def former_outputs(out: Path) -> list[Path]:
    """The translations that a former evaluation has left; nothing that lies elsewhere, whatever its file says."""
    if not _is_former(out):
        return []
    return [
        out / name
        for name in re.findall(r'"outputs": "([A-Za-z0-9][\w.+-]*\.txt)"', (out / RESULTS).read_text("utf-8"))
    ]


def _is_former(out: Path) -> bool:
    try:
        found = json.loads((out / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and "format" in found and "models" in found


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())  # some disks are full only now
