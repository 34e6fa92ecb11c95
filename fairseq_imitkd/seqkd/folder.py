"""The output folder of ``imitkd-seqkd``.

    job.json       the job's identity; the first file that is written
    decoded/       while the job runs: what has been translated
        NUMBER.npz     the hypotheses of one batch
        NUMBER.reverse.npy   what the reverse teacher says about them
        source.*       the sources of --source-text or --translations, binarised; reference.*: the references
        places.npy     where the lines of each sentence begin in the files of --translations
        ctranslate2/   the teacher as a CTranslate2 model, and agreement.json, its comparison with fairseq
    building/      while the data set is written: text/ and data-bin/, later decoded/
    text/, data-bin/   the data set
    manifest.json  how the data set was made; written last

Each batch is a file of its own, written atomically: a kill costs one batch, workers write in parallel without
locks. A file of 64 sentences takes 7 ms to write and 0.7 ms to read (ext4), against 4 ms for an append to a
shared journal. A batch takes much longer than that to translate, and the 30,000 batches of WMT'14 take 20 s
to read, so files are not grouped.
"""

import io
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fairseq_imitkd.data.files import atomic_files, sha256
from fairseq_imitkd.data.output_folder import OutputFolder, difference
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.seqkd.translator import TranslatedBatch

JOB, DECODED, BUILDING, MANIFEST = "job.json", "decoded", "building", "manifest.json"
CONVERTED, AGREEMENT = f"{DECODED}/ctranslate2", f"{DECODED}/agreement.json"


def output_folder(out: Path) -> OutputFolder:
    """Return the output folder at a path."""
    return OutputFolder(out, "a folder of imitkd-seqkd", marks=(JOB,), resumes=True)


def save_batch(out: Path, number: int, batch: TranslatedBatch) -> None:
    """Save a batch. It is on the disk when this function returns."""
    with atomic_files(_path(out, number)) as [file]:
        np.savez(file, **vars(batch))


def saved_batches(out: Path) -> Iterator[tuple[int, TranslatedBatch]]:
    """Read all batches, in the order of their numbers.

    Raises:
        UsageError: a file is damaged, or an older version of the plugin began the folder.
    """
    for journal in (out / DECODED).glob("*.journal"):
        raise UsageError(
            f"--out '{out}' was begun by an older version of fairseq-imitkd, whose {journal.name} can't be "
            "read; finish with that version, or use another folder"
        )
    for path in saved_files(out):
        yield _read(path)


def saved_files(out: Path) -> list[Path]:
    """Return the files of all batches, in the order of their numbers."""
    return sorted((out / DECODED).glob("*.npz"), key=lambda path: (len(path.stem), path.stem))


def read_batch(out: Path, number: int) -> TranslatedBatch:
    """Read a batch that is saved.

    Raises:
        UsageError: its file is damaged.
    """
    return _read(_path(out, number))[1]


def _path(out: Path, number: int) -> Path:
    return out / DECODED / f"{number:07d}.npz"


def _read(path: Path) -> tuple[int, TranslatedBatch]:
    content = io.BytesIO(path.read_bytes())
    try:
        with np.load(content, allow_pickle=False) as arrays:
            return int(path.stem), TranslatedBatch.checked(dict(arrays))
    except Exception as error:  # NumPy and zipfile raise many types
        raise UsageError(
            f"'{path}' is damaged; delete the file and run the same command again: only its sentences are "
            "translated again"
        ) from error


def finished(folder: OutputFolder, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the manifest of a finished folder, or None if the folder is not finished.

    Raises:
        UsageError: a file of the data set has gone or changed.
    """
    out = folder.path
    manifest = folder.read(MANIFEST)
    if manifest is None:
        return None
    shutil.rmtree(out / BUILDING, ignore_errors=True)  # the run before may have been killed at its very end
    files = manifest.get("files")
    if difference(manifest, identity) or not isinstance(files, dict):
        raise UsageError(
            f"'{out / MANIFEST}' belongs to another job than '{out / JOB}'; use another --out, or delete "
            f"'{out}'"
        )
    for name, expected in files.items():
        path = out / name
        if (
            not path.is_file()
            or path.stat().st_size != expected.get("bytes")
            or sha256(path) != expected.get("sha256")
        ):
            raise UsageError(
                f"'{path}' is not what {MANIFEST} says any more; delete '{out}' and run the same command "
                "again"
            )
    return manifest
