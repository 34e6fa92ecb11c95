"""Reads the event files of fairseq's ``--tensorboard-logdir``, which has a folder for each tag."""

import math
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from fairseq_imitkd.errors import UsageError


def event_files(path: Path) -> list[Path]:
    """Return the event files in a folder and in the folders below it."""
    return sorted(path.rglob("events.out.tfevents.*")) if path.is_dir() else []


def read(path: Path, files: Iterable[Path]) -> dict[str, dict[int, dict[str, float]]]:
    """Read the metrics of event files.

    Args:
        path: folder of the run, for messages.
        files: its event files.

    Returns:
        finite values by tag, update and name.

    Raises:
        UsageError: TensorBoard is not installed, or can't read the files.
    """
    try:
        reader = import_module("tensorboard.backend.event_processing.event_accumulator")
    except ImportError as error:
        raise UsageError(
            f"RUN_DIR '{path}' has only TensorBoard's files, and reading them needs tensorboard: "
            "pip install tensorboard"
        ) from error
    metrics: dict[str, dict[int, dict[str, float]]] = {}
    for folder in dict.fromkeys(file.parent for file in files):
        rows = metrics.setdefault(folder.name, {})
        try:
            events = reader.EventAccumulator(str(folder), size_guidance={reader.SCALARS: 0})
            events.Reload()
            for name in events.Tags()["scalars"]:
                for event in events.Scalars(name):
                    if math.isfinite(event.value):
                        rows.setdefault(event.step, {})[name] = event.value
        except Exception as error:  # its many layers raise all kinds of errors on a damaged file
            raise UsageError(
                f"'{folder}' has event files that tensorboard can't read: {type(error).__name__}"
            ) from error
    return {tag: rows for tag, rows in metrics.items() if rows}
