"""Parses lines of ``metrics.jsonl`` and of fairseq's logs in ``--log-format json``; they are not trusted."""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from fairseq_imitkd.training.run_files import INNER

LONGEST_LINE = 1 << 20
LARGEST = 1e15  # a larger number says only that something is broken, and no axis is long enough for it
_TIME = re.compile(r"(?=\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| )")
_JSON = re.compile(r"(?:^|\| )(\{\".*\})$")
_PARAMETERS = re.compile(r"num\. shared model params: ([\d,]{1,20})")
_DONE = re.compile(r"done training in [\d.]+ seconds")
_NAME = re.compile(r"[A-Za-z_]\w{0,60}")


class Logged(NamedTuple):
    """The metrics of one line.

    Attributes:
        tag: fairseq's name for the kind of metrics: ``train_inner``, ``train`` or a validation set.
        update: number of the update.
        values: finite numbers by name.
    """

    tag: str
    update: int
    values: dict[str, float]


def lines(path: Path) -> Iterator[str | None]:
    """Yield the lines of a file without their ends; None for a last line without an end.

    Lines of :data:`LONGEST_LINE` letters or more are skipped.

    Raises:
        OSError: the file can't be read.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        parts = iter(lambda: file.readline(LONGEST_LINE), "")
        for part in parts:
            if part.endswith("\n"):
                yield part.rstrip()
            elif not any(rest.endswith("\n") for rest in parts):
                yield None


def parse_metrics_line(line: str) -> Logged | None:
    """Return the metrics of a line of ``metrics.jsonl``; None if it has none."""
    content = _parse_json(line)
    tag = content.get("tag")
    return _logged(tag, content.items()) if isinstance(tag, str) else None


def parse_log_line(line: str) -> Logged | None:
    """Return the metrics of a log's line; None if it has none.

    The tag is read from the names of the metrics: a file of ``--log-file`` has it nowhere else.
    """
    # The end is looked at first; else a line of many beginnings would be searched from each of them.
    found = _JSON.search(_last_record(line)) if line.endswith("}") else None
    if found is None:
        return None
    content = _parse_json(found[1])
    if "num_updates" in content:
        return _logged(INNER, content.items())
    key = next((name for name in content if name.endswith("_num_updates")), None)
    if key is None:
        return None
    tag = key.removesuffix("_num_updates")
    return _logged(tag, ((name.removeprefix(f"{tag}_"), value) for name, value in content.items()))


def parse_start(line: str) -> int | None:
    """Return the number of the student's parameters, which fairseq prints at each start; None for other
    lines.
    """
    found = _PARAMETERS.search(line)
    digits = found[1].replace(",", "") if found else ""
    return int(digits) if digits else None


def is_end(line: str) -> bool:
    """Whether fairseq says here that the training is done."""
    return _DONE.search(line) is not None


def number(value: Any) -> float | None:
    """Return a number that a figure has room for, also if it is written as text; None for anything else."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            if abs(found := float(value)) < LARGEST:  # false for NaN
                return found
    return None


def _last_record(line: str) -> str:
    """Return what follows the last time stamp: the last line of a killed run has no end, and the next run
    goes on there.
    """
    return _TIME.split(line)[-1]


def _parse_json(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _logged(tag: str, pairs: Iterable[tuple[str, Any]]) -> Logged | None:
    values = {
        name: value for name, text in pairs if _NAME.fullmatch(name) and (value := number(text)) is not None
    }
    update = values.pop("num_updates", -1.0)
    return Logged(tag, int(update), values) if update >= 0 else None
