"""``config.json``, ``metrics.jsonl`` and ``train.log``, which a training writes into its ``--save-dir``."""

import json
import logging
import math
import platform
import time
from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from numbers import Number
from pathlib import Path
from typing import Any

import torch
from fairseq.distributed.utils import is_master
from fairseq.logging import metrics
from fairseq.logging.meters import MetersDict
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fairseq_imitkd.data.files import atomic_files, write_json
from fairseq_imitkd.training.train_log import LOG, TrainLog
from fairseq_imitkd.version import __version__

logger = logging.getLogger(__name__)

CONFIG, METRICS, FORMAT = "config.json", "metrics.jsonl", 1
ROLLOUTS = "rollouts.jsonl"  # of --log-rollouts
# fairseq's tags for the metrics of every --log-interval updates and for those of a whole epoch. The third one
# is ours: its lines say that an epoch begins.
INNER, EPOCH, EPOCH_BEGINS = "train_inner", "train", "epoch_begins"
# CPU time of the training so far, in seconds: of all threads of this process, without validation, data
# loader processes and the start of the program. A resumed training continues the count of its last line.
CPU_SECONDS = "cpu_seconds"


class RunFiles:
    """Writes the configuration once, then a line for each set of metrics that fairseq logs in any
    ``--log-format``.

    A task creates one and calls it in its methods ``begin_epoch``, ``begin_valid_epoch`` and
    ``post_validate``. Only the first process writes. A file that can't be written costs a warning, not the
    training.

    fairseq has no hook for what its progress bars show. It reads the metrics of a tag, shows them and resets
    the tag's meters. Here the meters of the two training tags write their line when they are reset.
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq_cli/train.py#L337-L358

    Args:
        task_config: configuration of the task, a node of the configuration of the whole run. Nothing is
            written if it has no such parent, as in a task that is built by hand.
    """

    def __init__(self, task_config: Any):
        self._task_config = task_config
        self._folder: Path | None = None
        self._began = False
        self._epoch = 0
        self._valid_subsets: list[str] = []
        self._validated = 0
        self._last: dict[str, int] = {}  # the update of each tag's last line
        self._cpu = CpuSeconds()

    def begin_epoch(self, epoch: int, model: torch.nn.Module) -> None:
        """Note that an epoch begins; the first call begins the files.

        Args:
            epoch: number of the epoch, from 1.
            model: the student.
        """
        self._epoch = epoch
        if not self._began:
            self._began = True
            self._begin(model)
        if self._folder is None:
            return
        self._write(EPOCH_BEGINS, {"num_updates": updates_so_far()})
        for tag in (INNER, EPOCH):
            # These are the meters that fairseq uses. Loading a checkpoint replaces them, so earlier is too
            # early.
            with metrics.aggregate(tag) as meters:
                meters.reset = partial(self._write_and_reset, tag, meters)

    def begin_valid_epoch(self) -> None:
        """Note that the validation sets follow, from the first one."""
        self._validated = 0
        self._cpu.pause()

    def post_validate(self, stats: Mapping[str, Any]) -> None:
        """Write the metrics of the next validation set.

        Args:
            stats: metrics as fairseq shows them, by name.
        """
        if self._folder is not None:
            self._write(self._valid_subsets[self._validated % len(self._valid_subsets)], stats)
            self._validated += 1
            if self._validated % len(self._valid_subsets) == 0:
                self._cpu.go_on()

    def _begin(self, model: torch.nn.Module) -> None:
        config = whole_config(self._task_config)
        if config is None or not is_master(config.distributed_training):
            return
        if not config.dataset.disable_validation:
            logger.info(
                "the best checkpoint is the one of the %s %s (--best-checkpoint-metric)",
                "highest" if config.checkpoint.maximize_best_checkpoint_metric else "lowest",
                config.checkpoint.best_checkpoint_metric,
            )
        self._valid_subsets = config.dataset.valid_subset.split(",")
        folder, update = Path(config.checkpoint.save_dir), updates_so_far()
        parameters = sum(each.numel() for each in model.parameters() if not getattr(each, "expert", False))
        try:
            write_json(
                folder / CONFIG,
                {
                    "format": FORMAT,
                    "starts": 1 + (_starts(folder / CONFIG) if update > 0 else 0),
                    "parameters": parameters,
                    "versions": versions(),
                    "config": _plain(config),
                },
            )
            self._last = continue_metrics(folder / METRICS, update)
            continue_metrics(folder / ROLLOUTS, update)
            self._cpu = CpuSeconds(_last_number(folder / METRICS, CPU_SECONDS))
            TrainLog.attached().begin(folder, continues=update > 0)
        except OSError as error:
            _warn(folder, error)
        else:
            self._folder = folder

    def _write_and_reset(self, tag: str, meters: MetersDict) -> None:
        stats = meters.get_smoothed_values()
        wall = active_meter("wall")
        if wall is not None:
            stats["wall"] = round(wall.elapsed_time)
        self._write(tag, stats)
        MetersDict.reset(meters)

    def _write(self, tag: str, stats: Mapping[str, Any]) -> None:
        """Append a line, unless the same update has one already."""
        numbers = {name: number for name, value in stats.items() if (number := _number(value)) is not None}
        update = numbers.pop("num_updates", None)
        if self._folder is None or not isinstance(update, int):
            return
        numbers[CPU_SECONDS] = round(self._cpu.read(), 2)
        line = json.dumps({"tag": tag, "epoch": self._epoch, "num_updates": update, **numbers})
        try:
            if update < self._last.get(tag, -1):  # --reset-optimizer begins to count again
                self._last = continue_metrics(self._folder / METRICS, update)
            if update != self._last.get(tag):
                with open(self._folder / METRICS, "a", encoding="utf-8") as file:
                    file.write(f"{line}\n")
                self._last[tag] = update
        except OSError as error:
            _warn(self._folder, error)
            self._folder = None


class CpuSeconds:
    """CPU seconds of this process since the object was made, without the time between a pause and its end.

    Args:
        before: seconds of earlier starts of the same training.
    """

    def __init__(self, before: float = 0.0):
        self._before, self._began = before, time.process_time()
        self._paused: float | None = None

    def pause(self) -> None:
        """Stop counting; a second call changes nothing."""
        if self._paused is None:
            self._paused = time.process_time()

    def go_on(self) -> None:
        """Count again."""
        if self._paused is not None:
            self._began += time.process_time() - self._paused
            self._paused = None

    def read(self) -> float:
        """Return the seconds so far, those of earlier starts included."""
        now = time.process_time() if self._paused is None else self._paused
        return self._before + now - self._began


def continue_metrics(path: Path, update: int) -> dict[str, int]:
    """Drop the lines that a resumed run will write again, and what a killed run has left of its last line.

    Args:
        path: file of an earlier start, which need not exist.
        update: the update from which the run goes on; lines of later ones are dropped.

    Returns:
        the update of each tag's last line.
    """
    last: dict[str, int] = {}
    if not path.exists():
        return last
    with open(path, encoding="utf-8", errors="replace") as old, atomic_files(path) as [new]:
        for line in old:
            tag, found = _tag_and_update(line)
            if line.endswith("\n") and tag and 0 <= found <= update:
                new.write(line.encode())
                last[tag] = found
    return last


def _last_number(path: Path, name: str) -> float:
    """Return a value of a file's last line; 0 without one."""
    try:
        return float(json.loads(path.read_text(encoding="utf-8").splitlines()[-1])[name])
    except (OSError, IndexError, KeyError, ValueError, TypeError):
        return 0.0


def versions() -> dict[str, str]:
    """Return the versions of what a training's numbers depend on."""
    try:
        fairseq = version("fairseq-fixed")
    except PackageNotFoundError:  # installed under another name
        fairseq = "unknown"
    return {
        "fairseq_imitkd": __version__,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "fairseq": fairseq,
    }


def updates_so_far() -> int:
    """Return the number of updates so far; after a checkpoint was loaded, the checkpoint's."""
    meter = active_meter("num_updates")
    return 0 if meter is None else int(meter.val)


def active_meter(name: str) -> Any:
    """Return a meter of the whole run that fairseq logs into; None if there is no such meter.

    Loading a checkpoint replaces the meters of ``metrics.get_meter``, but fairseq goes on logging into the
    active ones, so the others stay at their values of that time (see ``load_state_dict`` in
    fairseq/logging/metrics.py).
    """
    meters = (aggregator.get(name) for aggregator in metrics.get_active_aggregators())
    return next((meter for meter in meters if meter is not None), None)


def whole_config(task_config: Any) -> DictConfig | None:
    """Return the configuration of the run that holds a task's; None outside a run."""
    root = task_config._get_root() if isinstance(task_config, DictConfig) else {}
    return root if {"checkpoint", "dataset", "distributed_training"} <= set(root) else None


def _plain(config: DictConfig) -> Any:
    """Return the configuration in JSON's types; a namespace becomes a dictionary, and an enum its text."""
    try:
        content = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException:  # an expression that only hydra resolves
        content = OmegaConf.to_container(config)

    def other(value: Any) -> Any:
        return vars(value) if isinstance(value, Namespace) else str(value)

    return json.loads(json.dumps(content, default=other))


def _starts(path: Path) -> int:
    """Return how often the run has started, by its configuration file; 0 without a file."""
    try:
        return int(json.loads(path.read_bytes())["starts"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _tag_and_update(line: str) -> tuple[str, int]:
    try:
        content = json.loads(line)
        return str(content["tag"]), int(content["num_updates"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "", -1


def _number(value: Any) -> int | float | str | None:
    """Return a metric as JSON can hold it, infinities and NaN as text; None for what is not a number."""
    if torch.is_tensor(value) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Number):
        return None
    number = int(value) if isinstance(value, int) else float(value)  # type: ignore[arg-type]
    return number if math.isfinite(number) else str(number)


def _warn(folder: Path, error: OSError) -> None:
    logger.warning(
        "--save-dir '%s': %s, %s and %s can't be written (%s); training goes on without them",
        folder, CONFIG, METRICS, LOG, error.strerror or error,
    )  # fmt: skip
