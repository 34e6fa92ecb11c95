"""Processes that train together must have the same settings. A difference is refused before data is read."""

import json
import os
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from fairseq_imitkd.errors import UsageError

# Settings of one process or machine.
OWN = frozenset(
    {
        "distributed_rank", "distributed_init_method", "distributed_port", "distributed_num_procs",
        "nprocs_per_node", "device_id", "local_rank", "data", "save_dir", "user_dir", "log_file",
        "log_format", "log_interval", "no_progress_bar", "tensorboard_logdir", "wandb_project",
        "wandb_entity", "aim_repo", "aim_run_hash", "azureml_logging", "plasma_path", "num_workers",
        "num_workers_valid", "data_buffer_size", "profile", "_parent",
    }
)  # fmt: skip
# Paths that may differ between machines, though not in the names of the files.
PATHS = frozenset({"teacher_path", "teacher_cache", "teacher_data", "restore_file", "finetune_from_model"})
NAMES = {"model": "arch", "lr_scheduler": "lr-scheduler"}  # flags that choose a part of the settings
_KEY = "settings/"


def check_same_settings(store: Any, cfg: Any, rank: int) -> None:
    """Compare the settings of all processes. All of them call this together, and get the same result.

    Args:
        store: torch's store, which all processes have reached.
        cfg: fairseq's configuration.
        rank: the number of this process.

    Raises:
        UsageError: naming the flags that differ, and their values.
    """
    store.set(f"{_KEY}{rank}", json.dumps(flat_settings(cfg)))
    first: dict[str, str] = {}
    for other in range(cfg.distributed_training.distributed_world_size):
        settings = json.loads(store.get(f"{_KEY}{other}"))
        first = first or settings
        differing = [
            name for name in sorted({*first, *settings}) if first.get(name) != settings.get(name)
        ]  # fmt: skip
        if differing:
            shown = [
                f"--{name} is {first.get(name, 'not there')} on rank 0 and "
                f"{settings.get(name, 'not there')} on rank {other}"
                for name in sorted(differing, key=_is_choice, reverse=True)[:3]
            ]
            raise UsageError(f"{'; '.join(shown)}: start all processes with the same flags")


def _is_choice(name: str) -> bool:
    return name in ("task", "criterion", "arch", "optimizer", "lr-scheduler")


def flat_settings(cfg: Any) -> dict[str, str]:
    """Return the values of all flags by name, without those of one process or machine."""
    flat: dict[str, str] = {}
    for group, settings in _items(cfg):
        for name, value in _items(settings):
            if name in OWN:
                continue
            flag = NAMES.get(group, group) if name == "_name" else name.replace("_", "-")
            if name in PATHS and value:
                value = os.pathsep.join(os.path.basename(path) for path in str(value).split(os.pathsep))
            flat.setdefault(flag, str(value))
    return flat


def _items(settings: Any) -> list[tuple[str, Any]]:
    if OmegaConf.is_config(settings):
        settings = OmegaConf.to_container(settings, resolve=True)
    if isinstance(settings, Namespace):
        settings = vars(settings)
    return [(str(name), value) for name, value in settings.items()] if isinstance(settings, Mapping) else []
