"""fairseq's configuration of a run, as ``config.json`` holds it, flat and side by side with that of other
runs.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

# The settings that tell most about a run, in this order. Others follow if runs differ in them.
FIRST = (
    "criterion",
    "arch",
    "task",
    "teacher_path",
    "student_share",
    "divergence",
    "rollout_policy",
    "gold_weight",
    "label_smoothing",
    "lr",
    "lr_scheduler",
    "warmup_updates",
    "max_update",
    "max_tokens",
    "batch_size",
    "update_freq",
    "dropout",
    "seed",
)
# Where a run is kept says nothing about it.
LOCATIONS = ("save_dir", "tensorboard_logdir", "log_file", "user_dir", "_name")
LARGEST_FILE = 1 << 24  # bytes


def read(path: Path) -> dict[str, Any]:
    """Read a JSON file.

    Raises:
        OSError: the file can't be read.
        ValueError: the file is not a JSON object, or is too large.
    """
    with open(path, "rb") as file:
        text = file.read(LARGEST_FILE)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not JSON") from error
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    return content


def flatten(config: Any) -> dict[str, Any]:
    """Return settings by name.

    A name that several sections have, with different values, gets its section before it, as in ``model.lr``.

    Args:
        config: sections of settings by name; empty if it is not a dictionary.
    """
    found: dict[str, dict[str, Any]] = {}
    for section, name, value in _flat(config if isinstance(config, dict) else {}):
        found.setdefault(name, {})[section] = value
    flat: dict[str, Any] = {}
    for name, by_section in found.items():
        # fairseq's older form of an architecture's section repeats the whole command line.
        sections = {key: value for key, value in by_section.items() if key != "model"} or by_section
        values = list(sections.values())
        if all(value == values[0] for value in values):
            flat[name] = values[0]
        else:
            flat.update(
                {f"{section}.{name}" if section else name: value for section, value in sections.items()}
            )
    return flat


def _flat(config: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield section, name and value of each setting."""
    for section, content in config.items():
        if not isinstance(content, dict):
            content = {section: content}
            section = ""
        for name, value in content.items():
            if name != "_name":
                if _is_shallow(value):
                    yield section, name, value
            elif value is not None:  # the name of a criterion, task, model or optimiser
                yield "", "arch" if section == "model" else section, value


def _is_shallow(value: Any, depth: int = 8) -> bool:
    """Whether a value is nested no deeper than this; no setting is, and Python can't print what is."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and all(_is_shallow(child, depth - 1) for child in children)


def shown(name: str, value: Any, parts: int = 1) -> str:
    """Return a value for a table.

    Paths are cut to their last parts, which two machines may have in common. A checkpoint's folder says more
    than its name.
    """
    if isinstance(value, str):
        paths = value.split(":") if name in ("teacher_path", "data") else [value]
        return ":".join(_last_parts(each, parts) for each in paths)
    if isinstance(value, list):
        return ", ".join(shown(name, each, parts) for each in value)
    return "" if value is None else "yes" if value is True else "no" if value is False else f"{value}"


def _last_parts(path: str, count: int) -> str:
    parts = PurePosixPath(path).parts
    if "/" not in path or not parts:
        return path
    if path.startswith("/"):
        parts = parts[3:] or parts[-1:]  # without a user's name, as in /home/someone/data
    return str(PurePosixPath(*parts[-count - parts[-1].startswith("checkpoint") :]))


def compared(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Put settings side by side: the most telling ones, and those in which runs differ.

    Args:
        runs: settings of each run by name.

    Returns:
        name of each setting, and its value in each run; empty text if a run has none.
    """
    names = dict.fromkeys([*FIRST, *(name for run in runs for name in run)])
    rows = []
    for name in names:
        if name.rsplit(".", 1)[-1] in LOCATIONS or all(run.get(name) in (None, "") for run in runs):
            continue
        values = [shown(name, run.get(name)) for run in runs]
        if len(set(values)) == 1 and any(run.get(name) != runs[0].get(name) for run in runs):
            values = [shown(name, run.get(name), 2) for run in runs]
        if name in FIRST or (len(set(values)) > 1 and sum(name in run for run in runs) == len(runs)):
            rows.append((name, values))
    return rows
