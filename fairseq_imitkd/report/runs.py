"""Reads trainings: what they logged at which update, and how they were configured."""

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Any

from fairseq_imitkd.data.files import kind_of
from fairseq_imitkd.errors import UsageError, in_one_line
from fairseq_imitkd.evaluate.schema import FILE as EVALUATION
from fairseq_imitkd.report import logs, rollouts, settings, tensorboard
from fairseq_imitkd.report.paths import disambiguate
from fairseq_imitkd.report.rollouts import RolloutsAt
from fairseq_imitkd.text.scores import LESS_IS_BETTER, SCORES
from fairseq_imitkd.training.run_files import CONFIG, EPOCH, EPOCH_BEGINS, INNER, METRICS, ROLLOUTS

# Metrics that only the plugin's criteria log.
DISTILLATION = (
    "student_share",
    "loss_data",
    "loss_rollout",
    "rollout_len",
    "agreement",
    "rollout_time",
    "teacher_time",
)

# Settings of a task that tell its teacher.
OF_THE_TEACHER = ("teacher_path", "teacher_cache", "teacher_weights", "teacher_selection")

# Settings of a criterion that do not change what it computes.
NOT_OF_THE_LOSS = (
    "seed",
    "max_update",
    "max_epoch",
    "ddp_backend",
    "disable_validation",
    "find_unused_parameters",
    "sentence_avg",
)

Points = list[tuple[int, float]]  # updates and values


@dataclass
class Run:
    """One training.

    Args:
        name: name of the run on the page.
        source: file that the metrics come from, or the folder of TensorBoard's files.
        metrics: values by tag, update and name.
        settings: fairseq's configuration as :func:`~fairseq_imitkd.report.settings.flatten` returns it; empty
            if unknown.
        loss: criterion, its settings and its teacher, which runs must share for their losses to be
            comparable; None if unknown.
        parameters: number of the student's parameters, or None if unknown.
        starts: how often the run was started or resumed; 0 if unknown.
        is_finished: whether the last start came to its end; None if unknown.
        parent: name of the run whose weights this one started from; None if it started from random ones, or
            from a checkpoint of no run on the page.
        before: updates of those weights, with those of the parent's own parent; 0 if there is no parent.
        notes: remarks about the source, one line each.
        rollouts: rollouts of a few updates, if ``--log-rollouts`` has written some.
    """

    name: str
    source: Path
    metrics: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] | None = None
    parameters: int | None = None
    starts: int = 0
    is_finished: bool | None = None
    parent: str | None = None
    before: int = 0
    notes: list[str] = field(default_factory=list)
    rollouts: list[RolloutsAt] = field(default_factory=list)

    def add(self, tag: str, update: int, values: dict[str, float]) -> None:
        """Add the metrics of one update. A run that went back to an earlier checkpoint loses its later
        metrics.
        """
        rows = self.metrics.setdefault(tag, {})
        if rows and update < next(reversed(rows)):
            for later in [each for each in rows if each >= update]:
                del rows[later]
        rows[update] = {**rows.pop(update, {}), **values}

    def points(self, tag: str, name: str) -> Points:
        """Return the values of one metric."""
        return [(update, row[name]) for update, row in self.metrics.get(tag, {}).items() if name in row]

    def training(self, name: str) -> Points:
        """Return a metric's training values: of every few updates, else of the epochs."""
        return self.points(INNER, name) or self.points(EPOCH, name)

    @property
    def validation(self) -> str | None:
        """The tag of the first validation set."""
        wanted = str(self.settings.get("valid_subset", "valid")).split(",")[0]
        others = [tag for tag in self.metrics if tag not in (INNER, EPOCH)]
        return wanted if wanted in others else next(iter(others), None)

    def validated(self, name: str) -> Points:
        """Return a metric's values on the first validation set."""
        return self.points(self.validation, name) if self.validation else []

    @property
    def best_metric(self) -> str:
        """The name of the metric that chooses the best checkpoint."""
        if "best_checkpoint_metric" in self.settings:
            return str(self.settings["best_checkpoint_metric"])
        rows = self.metrics.get(self.validation or "", {}).values()
        named = [name.removeprefix("best_") for row in rows for name in row if name.startswith("best_")]
        return next(iter(named), "loss")

    @property
    def more_is_better(self) -> bool:
        """Whether a higher value of :attr:`best_metric` is better."""
        likely = self.best_metric in (*SCORES.values(), "accuracy") and self.best_metric not in LESS_IS_BETTER
        return bool(self.settings.get("maximize_best_checkpoint_metric", likely))

    @property
    def best(self) -> tuple[int, float] | None:
        """The update of the best validation, the first one in a tie, and its value."""
        found = self.validated(self.best_metric)
        sign = -1 if self.more_is_better else 1
        return min(found, key=lambda point: (sign * point[1], point[0])) if found else None

    @property
    def updates(self) -> int:
        """The last update with metrics."""
        return max((update for rows in self.metrics.values() for update in rows), default=0)

    @property
    def start(self) -> PurePath | None:
        """The checkpoint whose weights a new training started from; None if they were random, or unknown."""
        path = self.settings.get("finetune_from_model")
        if not path and self.settings.get("reset_optimizer"):  # otherwise the same training goes on
            path = self.settings.get("restore_file")
        found = PurePath(str(path or ""))
        return found if found.parent.name else None  # a bare name is of the run's own folder

    @property
    def origin(self) -> str:
        """The weights that the run started from, in words; empty if they were random, or unknown."""
        if self.parent is not None:
            return f"after {self.before:,} updates of {self.parent}"
        return f"from the weights of {self.start.parent.name}" if self.start else ""

    def updates_at(self, checkpoint: str) -> int | None:
        """Return how many updates one of the run's checkpoints has had; None if its name does not say."""
        if checkpoint == "checkpoint_last.pt":
            return self.updates
        if checkpoint == "checkpoint_best.pt":
            return self.best[0] if self.best else None
        numbered = re.fullmatch(r"checkpoint_\d+_(\d{1,12})\.pt", checkpoint)
        return int(numbered[1]) if numbered else None

    @property
    def is_distillation(self) -> bool:
        """Whether one of the plugin's criteria has logged metrics."""
        return any(self.training(name) for name in DISTILLATION)


def read_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Read all runs that can be read.

    Args:
        paths: folders or files of trainings.

    Returns:
        the runs, and a line for each path that can't be read and for whatever else is odd.
    """
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
        if whole in seen:  # a folder and the file in it are the same run
            notes.append(f"RUN_DIR '{path}' is given twice; it is shown once")
            continue
        seen.add(whole)
        runs.append(run)
    notes += _rename_alike(runs)
    _find_parents(runs)
    return runs, [*notes, *(note for run in runs for note in run.notes)]


def read_run(path: Path) -> Run:
    """Read one run: ``metrics.jsonl`` and ``config.json``, else fairseq's JSON logs, else TensorBoard's
    files.

    Args:
        path: folder of the training, or its ``metrics.jsonl`` or log.

    Raises:
        UsageError: there are no metrics.
    """
    is_folder = kind_of(path, "RUN_DIR") == "folder"
    run = Run(path.resolve().name if is_folder else path.resolve().parent.name, path)
    sources = _sources(path, is_folder)
    for source in sources:
        run.source = source
        if source.suffix == ".jsonl":
            _read_metrics(run, source)
        else:
            _read_log(run, source)
    if not run.metrics and is_folder and (files := tensorboard.event_files(path)):
        run.source, run.is_finished = path, None
        for tag, rows in tensorboard.read(path, files).items():
            for update, row in sorted(rows.items()):
                run.add(tag, update, row)
    if not run.metrics:
        raise UsageError(_unread(path, sources))
    return run


def _unread(path: Path, sources: Sequence[Path]) -> str:
    """Return what is wrong with a path that has no metrics of a training."""
    if (path / EVALUATION).is_file():
        return f"RUN_DIR '{path}' is the folder of an evaluation: did you mean --evaluation {_typed(path)}?"
    trainings = [*path.glob(f"*/{METRICS}"), *path.glob(f"models/*/{METRICS}")]
    if trainings:
        example = _typed(trainings[0].parent)
        return f"RUN_DIR '{path}' has trainings in its folders; name those, such as {example}"
    if sources:
        if sources[0].suffix == ".pt":
            return f"RUN_DIR '{sources[0]}' is a checkpoint; use its folder, {_typed(sources[0].parent)}"
        return f"'{sources[0]}' has no metrics of a training; use {METRICS}, or a log of --log-format json"
    what = "is a data directory" if any(path.glob("*.idx")) else f"has no {METRICS} and no log"
    return (
        f"RUN_DIR '{path}' {what}; use the --save-dir of a training, or --evaluation with the --out folder "
        "of imitkd-evaluate"
    )


def _typed(path: Path) -> str:
    """Return a path as it is typed: between quotes if it has blanks."""
    return shlex.quote(str(path))


def _sources(path: Path, is_folder: bool) -> list[Path]:
    """Return the files to read, the oldest first."""
    if not is_folder:
        if not os.path.exists(path):
            raise UsageError(f"RUN_DIR '{path}' does not exist; use the folder of a training")
        return [path]
    try:
        for name in (METRICS, "train.log"):
            if (path / name).is_file():
                return [path / name]
        return sorted(path.glob("*.log"), key=lambda log: (log.stat().st_mtime, log.name))
    except OSError as error:
        raise UsageError(
            f"RUN_DIR '{path}' can't be read: {error.strerror}; check its permissions"
        ) from error


def _read_metrics(run: Run, path: Path) -> None:
    """Add what a training's own two files hold."""
    _read_config(run, path.with_name(CONFIG))
    try:
        run.rollouts = rollouts.read(path.parent)
    except OSError as error:
        run.notes.append(f"'{path.with_name(ROLLOUTS)}' can't be read: {error.strerror}")
    run.is_finished = False
    for line in _lines(run, path):
        if logged := logs.parse_metrics_line(line):
            run.is_finished = logged.tag == EPOCH  # nothing follows the last epoch's metrics
            if logged.tag != EPOCH_BEGINS:
                run.add(*logged)


def _read_log(run: Run, path: Path) -> None:
    """Add what fairseq has printed."""
    for line in _lines(run, path):
        if logged := logs.parse_log_line(line):
            run.add(*logged)
        elif (parameters := logs.parse_start(line)) is not None:
            run.parameters, run.starts, run.is_finished = parameters, run.starts + 1, False
        elif logs.is_end(line):
            run.is_finished = True


def _lines(run: Run, path: Path) -> Iterator[str]:
    """Yield the complete lines of a file; an incomplete one makes a note.

    Raises:
        UsageError: the file can't be read.
    """
    try:
        for line in logs.lines(path):
            if line is not None:
                yield line
            elif run.metrics:
                run.notes.append(
                    f"'{path}' ends in an incomplete line, which is skipped: the training was killed or "
                    "goes on"
                )
    except OSError as error:
        raise UsageError(f"'{path}' can't be read: {error.strerror}; check its permissions") from error


def _read_config(run: Run, path: Path) -> None:
    if not path.exists():
        return
    try:
        content = settings.read(path)
    except (OSError, ValueError) as error:
        run.notes.append(f"'{path}' can't be read ({in_one_line(error)}): the settings are missing")
        return
    run.settings = settings.flatten(content.get("config"))
    config = content.get("config")
    criterion = config.get("criterion") if isinstance(config, dict) else None
    if isinstance(criterion, dict):
        own = {name: value for name, value in criterion.items() if name not in NOT_OF_THE_LOSS}
        run.loss = {**own, **{name: run.settings.get(name) for name in OF_THE_TEACHER}}
    parameters, starts = (logs.number(content.get(name)) for name in ("parameters", "starts"))
    run.parameters, run.starts = None if parameters is None else int(parameters), int(starts or 0)


def _find_parents(runs: Sequence[Run]) -> None:
    """Find the runs that others started from, by the folders of their checkpoints."""
    found: dict[str, tuple[Run, int]] = {}
    for run in runs:
        parent = _run_in(run.start.parent, runs) if run.start else None
        updates = parent.updates_at(run.start.name) if parent and run.start else None
        if parent is not None and parent is not run and updates is not None:
            found[run.name] = parent, updates
    for run in runs:
        seen, name = {run.name}, run.name
        while name in found:
            parent, updates = found[name]
            if parent.name in seen:  # paths that name each other say nothing
                break
            seen.add(parent.name)
            run.parent, run.before, name = run.parent or parent.name, run.before + updates, parent.name


def _run_in(folder: PurePath, runs: Sequence[Run]) -> Run | None:
    """Return the run of a folder, which may have moved since: the one that shares the most of its last parts.

    None if several share as many, or if the folder is on this machine and holds none of the runs.
    """
    folders = [_folder(run) for run in runs]
    if folder.is_absolute() and os.path.isdir(folder):
        shared = [int(own == Path(folder).resolve()) for own in folders]
    else:
        shared = [_shared_parts(own, folder) for own in folders]
    most = max(shared)
    return runs[shared.index(most)] if most and shared.count(most) == 1 else None


def _shared_parts(one: PurePath, other: PurePath) -> int:
    """Return how many of their last parts two paths have in common."""
    pairs = zip(reversed(one.parts), reversed(other.parts), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _rename_alike(runs: list[Run]) -> list[str]:
    """Give runs of the same name as much of their paths as tells them apart; return a line for each such
    name.
    """
    notes = []
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(run.name, []).append(run)
    for name, group in alike.items():
        if len(group) > 1:
            folders = [_folder(run) for run in group]
            # Only their own names tell apart the logs of one folder.
            paths = folders if len(set(folders)) == len(group) else [run.source for run in group]
            for run, found in zip(group, disambiguate(paths), strict=True):
                run.name = found
            names = ", ".join(run.name for run in group)
            notes.append(f"{len(group)} runs are called '{name}'; they are shown as {names}")
    return notes


def _folder(run: Run) -> Path:
    whole = run.source.resolve()
    return whole if whole.is_dir() else whole.parent
