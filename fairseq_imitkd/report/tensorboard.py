"""What fairseq's ``--tensorboard-logdir`` leaves: a folder for each tag, with TensorBoard's event files."""

import math
from importlib import import_module
from pathlib import Path

from fairseq_imitkd.errors import UsageError


def files(path: Path) -> list[Path]:
    """The event files in a run's folder and the folders in it."""
    return sorted(path.rglob("events.out.tfevents.*")) if path.is_dir() else []


def read(path: Path, found: list[Path]) -> dict[str, dict[int, dict[str, float]]]:
    """Their figures by tag, update and name.

    Args:
        path: the run's folder.
        found: its files.

    Raises:
        UsageError: TensorBoard is not installed, or can't read them.
    """
    try:
        reader = import_module("tensorboard.backend.event_processing.event_accumulator")
    except ImportError as error:
        raise UsageError(
            f"RUN_DIR '{path}' has TensorBoard's files and no log, which needs tensorboard: pip install tensorboard"
        ) from error
    figures: dict[str, dict[int, dict[str, float]]] = {}
    for folder in dict.fromkeys(file.parent for file in found):
        rows = figures.setdefault(folder.name, {})
        try:
            events = reader.EventAccumulator(str(folder), size_guidance={reader.SCALARS: 0})
            events.Reload()
            for name in events.Tags()["scalars"]:
                for event in events.Scalars(name):
                    if math.isfinite(event.value):
                        rows.setdefault(event.step, {})[name] = event.value
        except Exception as error:  # whatever its many layers raise on a file that is damaged
            raise UsageError(
                f"'{folder}' has event files that tensorboard can't read: {type(error).__name__}"
            ) from error
    return {tag: rows for tag, rows in figures.items() if rows}
