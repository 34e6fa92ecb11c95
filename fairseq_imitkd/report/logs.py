"""What a training's log tells: fairseq's figures by update, and the settings that it began with."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.report import settings, tensorboard
from fairseq_imitkd.report.paths import told_apart
from fairseq_imitkd.text.scores import LESS_IS_BETTER, SCORES

INNER, EPOCH = (
    "train_inner",
    "train",
)  # fairseq's tags of figures every few updates, and of those of a whole epoch
# What only the plugin's criteria log.
OWN = (
    "student_share",
    "loss_data",
    "loss_rollout",
    "rollout_len",
    "agreement",
    "rollout_time",
    "teacher_time",
)

LONGEST_LINE = 1 << 20
LARGEST = 1e15  # beyond, a number says only that something is broken, and no axis is long enough for it
_TIME = re.compile(r"(?=\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| )")
_INNER = re.compile(r"(?:^|\| )epoch \d+:\s+\d+ / \d+ (.+)$")
_EPOCH = re.compile(r"(?:^|\| )epoch \d+ \| (?:valid on '(.*?)' subset \| )?(.+)$")
_JSON = re.compile(r"(?:^|\| )(\{\".*\})$")
_SETTINGS = re.compile(r"\| ((?:\{'|Namespace\().*[})])$")
_PARAMETERS = re.compile(r"num\. shared model params: ([\d,]+)")
_DONE = re.compile(r"done training in ([\d.]+) seconds")
_NAME = re.compile(r"[A-Za-z_]\w{0,60}")

Points = list[tuple[int, float]]  # updates and values


@dataclass
class Run:
    """One training.

    Args:
        name: what the page calls it.
        source: the file, or folder of TensorBoard's files, that it was read from.
        figures: by tag, update and name.
        settings: what fairseq was told, as :func:`~fairseq_imitkd.report.settings.parse` gives it.
        parameters: how many the student has.
        starts: how often fairseq began or went on with it.
        finished: whether it said that it was done, after its last start.
        notes: what a reader should know about the log, each a line.
    """

    name: str
    source: Path
    figures: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    starts: int = 0
    finished: bool = False
    notes: list[str] = field(default_factory=list)

    def add(self, tag: str, figures: dict[str, float]) -> None:
        """The figures of one update; a run that went on from an earlier checkpoint takes back what it had logged later."""
        update = int(figures.pop("num_updates"))
        rows = self.figures.setdefault(tag, {})
        if rows and update < next(reversed(rows)):
            for later in [each for each in rows if each >= update]:
                del rows[later]
        rows[update] = {**rows.pop(update, {}), **figures}

    def points(self, tag: str, name: str) -> Points:
        """One figure's values."""
        return [(update, row[name]) for update, row in self.figures.get(tag, {}).items() if name in row]

    def training(self, name: str) -> Points:
        """A figure's values while it trained: every few updates, or by epoch where that is all there is."""
        return self.points(INNER, name) or self.points(EPOCH, name)

    @property
    def validation(self) -> str | None:
        """The tag of the first validation set."""
        wanted = str(self.settings.get("valid_subset", "valid")).split(",")[0]
        others = [tag for tag in self.figures if tag not in (INNER, EPOCH)]
        return wanted if wanted in others else next(iter(others), None)

    def validated(self, name: str) -> Points:
        """A figure's values on the first validation set."""
        return self.points(self.validation, name) if self.validation else []

    @property
    def metric(self) -> str:
        """What the best checkpoint is chosen by."""
        if "best_checkpoint_metric" in self.settings:
            return str(self.settings["best_checkpoint_metric"])
        rows = self.figures.get(self.validation or "", {}).values()
        named = [name.removeprefix("best_") for row in rows for name in row if name.startswith("best_")]
        return next(iter(named), "loss")

    @property
    def more_is_better(self) -> bool:
        """Whether a higher value of :attr:`metric` is a better one."""
        likely = self.metric in (*SCORES.values(), "accuracy") and self.metric not in LESS_IS_BETTER
        return bool(self.settings.get("maximize_best_checkpoint_metric", likely))

    @property
    def best(self) -> tuple[int, float] | None:
        """The update of the best validation, the first of equals, and its value."""
        found = self.validated(self.metric)
        sign = -1 if self.more_is_better else 1
        return min(found, key=lambda point: (sign * point[1], point[0])) if found else None

    @property
    def updates(self) -> int:
        """How far it came."""
        return max((update for rows in self.figures.values() for update in rows), default=0)

    @property
    def is_distillation(self) -> bool:
        """Whether one of the plugin's criteria has logged."""
        return any(self.training(name) for name in OWN)


def read_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """All runs that can be read, and a line about each that can't and about whatever else is odd."""
    runs: list[Run] = []
    notes: list[str] = []
    seen: set[Path] = set()
    for path in paths:
        try:
            run = read_run(path)
        except UsageError as error:
            notes.append(str(error))
            continue
        whole = run.source.resolve()
        if whole in seen:  # also as a folder and as the log in it
            notes.append(f"RUN_DIR '{path}' is there twice; it is shown once")
            continue
        seen.add(whole)
        runs.append(run)
    notes += _tell_apart(runs)
    return runs, [*notes, *(note for run in runs for note in run.notes)]


def read_run(path: Path) -> Run:
    """One run.

    Args:
        path: its folder, or its log.

    Raises:
        UsageError: there is nothing of a training.
    """
    run = Run(path.resolve().name if os.path.isdir(path) else path.resolve().parent.name, path)
    logs = _logs(path)
    for log in logs:
        run.source = log
        read_log(run, log)
    if not run.figures and (files := tensorboard.files(path)):
        run.source = path
        for tag, rows in tensorboard.read(path, files).items():
            for update, row in sorted(rows.items()):
                run.add(tag, {**row, "num_updates": update})
    if not run.figures:
        raise UsageError(
            f"'{logs[0]}' has no figures of a training: give the log of fairseq-train with --log-format simple or json"
            if logs
            else f"RUN_DIR '{path}' has no train.log, nor another *.log: write fairseq-train's output to one"
        )
    return run


def _logs(path: Path) -> list[Path]:
    """What to read of a run, the oldest first."""
    try:
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise UsageError(f"RUN_DIR '{path}' is not there: give the folder of a training")
        if (path / "train.log").is_file():
            return [path / "train.log"]
        return sorted(path.glob("*.log"), key=lambda log: (log.stat().st_mtime, log.name))
    except OSError as error:
        raise UsageError(f"RUN_DIR '{path}' can't be read: {error.strerror}") from error


def read_log(run: Run, path: Path) -> None:
    """Add what a log tells to a run.

    Raises:
        UsageError: it can't be read.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in iter(lambda: file.readline(LONGEST_LINE), ""):
                if line.endswith("\n"):
                    # A killed run's last line has no end, and the next run's first one goes on there.
                    _read_line(run, _TIME.split(line.rstrip())[-1])
                elif not _skip_line(file) and run.figures:  # its last number may lack digits
                    run.notes.append(
                        f"'{path}' ends within a line, which is left out: the training was killed, or goes on"
                    )
    except OSError as error:
        raise UsageError(f"'{path}' can't be read: {error.strerror}") from error


def _skip_line(file: TextIO) -> bool:
    """Read on to the line's end, of which no figures are that far; whether there is one."""
    return any(part.endswith("\n") for part in iter(lambda: file.readline(LONGEST_LINE), ""))


def _read_line(run: Run, line: str) -> None:
    if figures := read_figures(line):
        run.add(*figures)
    elif found := _PARAMETERS.search(line):
        with suppress(ValueError):
            run.parameters = int(found[1].replace(",", ""))
    elif _DONE.search(line):
        run.finished = True
    elif line.endswith(("}", ")")) and (found := _SETTINGS.search(line)):
        parsed = settings.parse(found[1])
        if parsed:
            run.settings, run.starts, run.finished = parsed, run.starts + 1, False


def read_figures(line: str) -> tuple[str, dict[str, float]] | None:
    """The tag and the figures that a line holds, ``num_updates`` among them.

    Only its form tells the tag: in a file of ``--log-file`` there is nothing else.
    """
    if line.endswith("}") and (
        found := _JSON.search(line)
    ):  # without this end, each of many beginnings would be tried
        return _of_json(found[1])
    if found := _INNER.search(line):
        return _with_update(INNER, (pair.split("=", 1) for pair in found[1].split(",")))
    if found := _EPOCH.search(line):
        return _with_update(found[1] or EPOCH, (pair.split(None, 1) for pair in found[2].split("|")))
    return None


def _of_json(text: str) -> tuple[str, dict[str, float]] | None:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if "num_updates" in content:
        return _with_update(INNER, content.items())
    tag = next((key.removesuffix("_num_updates") for key in content if key.endswith("_num_updates")), "")
    return (
        _with_update(tag, ((key.removeprefix(f"{tag}_"), value) for key, value in content.items()))
        if tag
        else None
    )


def _with_update(tag: str, pairs: Iterable[Any]) -> tuple[str, dict[str, float]] | None:
    figures = dict(_numbers(pairs))
    return (tag, figures) if figures.get("num_updates", -1) >= 0 else None


def _numbers(pairs: Iterable[Any]) -> Iterator[tuple[str, float]]:
    for name, value in (pair for pair in pairs if len(pair) == 2):
        if _NAME.fullmatch(name.strip()) and isinstance(value, str | int | float):
            with suppress(ValueError, OverflowError):
                if abs(number := float(value)) < LARGEST:
                    yield name.strip(), number


def _tell_apart(runs: list[Run]) -> list[str]:
    """Name runs whose folders are named alike by as much of their paths as it takes."""
    notes = []
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(run.name, []).append(run)
    for name, group in alike.items():
        if len(group) > 1:
            folders = [_folder(run) for run in group]
            # Of logs in one folder only their own names tell.
            places = folders if len(set(folders)) == len(group) else [run.source for run in group]
            for run, found in zip(group, told_apart(places), strict=True):
                run.name = found
            notes.append(
                f"{len(group)} runs are called '{name}'; they are shown as {', '.join(run.name for run in group)}"
            )
    return notes


def _folder(run: Run) -> Path:
    whole = run.source.resolve()
    return whole if whole.is_dir() else whole.parent
