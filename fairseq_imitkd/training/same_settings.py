"""Processes that train together must have the same settings and files. A difference is refused before data
is read.
"""

import json
import os
import zipfile
import zlib
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
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
PATHS = frozenset(
    {
        "teacher_path", "teacher_cache", "teacher_data", "restore_file", "finetune_from_model",
        "ema_seed_model", "continue_once", "encoder_embed_path", "decoder_embed_path",
        "quantization_config_path",
    }
)  # fmt: skip
NAMES = {"model": "arch", "lr_scheduler": "lr-scheduler"}  # flags that choose a part of the settings
_KEY = "settings/"


def check_same_settings(store: Any, cfg: Any, rank: int) -> None:
    """Compare the settings and files of all processes. All of them call this together, with one result.

    Args:
        store: torch's store, which all processes have reached.
        cfg: fairseq's configuration.
        rank: the number of this process.

    Raises:
        UsageError: naming the flags or files that differ.
    """
    own = {f"--{name}": value for name, value in flat_settings(cfg).items()}
    store.set(f"{_KEY}{rank}", json.dumps({**own, **marks_of_files(cfg)}))
    first: dict[str, str] = {}
    for other in range(cfg.distributed_training.distributed_world_size):
        settings = json.loads(store.get(f"{_KEY}{other}"))
        first = first or settings
        # A file that is not there is named by the process that needs it.
        names = {name for name in {*first, *settings} if name.startswith("--")} | (first.keys() & settings)
        differing = [name for name in sorted(names) if first.get(name) != settings.get(name)]
        if differing:
            shown = [
                f"{name} is {first.get(name, 'not there')} on rank 0 and "
                f"{settings.get(name, 'not there')} on rank {other}"
                for name in sorted(differing, key=_is_choice, reverse=True)[:3]
            ]
            raise UsageError(f"{'; '.join(shown)}: start all processes with the same flags and files")


def _is_choice(name: str) -> bool:
    return name in ("--task", "--criterion", "--arch", "--optimizer", "--lr-scheduler")


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


def marks_of_files(cfg: Any) -> dict[str, str]:
    """Return marks that tell files of the data, and teachers, from others of the same name.

    They are the check sums of dictionaries and teachers, and the sizes of the text. Little is read: torch
    stores a check sum of each weight.
    """
    marks = {}
    data, teachers = (str(getattr(cfg.task, name, None) or "") for name in ("data", "teacher_path"))
    for folder in filter(os.path.isdir, data.split(os.pathsep)):
        for path in sorted(Path(folder).rglob("*")):
            name = f"DATA/{path.relative_to(folder)}"
            if path.match("dict*.txt"):
                marks[name] = f"{zlib.crc32(path.read_bytes()):08x} (check sum)"
            elif path.suffix in (".idx", ".bin"):
                marks[name] = f"{path.stat().st_size:,} bytes"
    for teacher in filter(zipfile.is_zipfile, filter(os.path.isfile, teachers.split(os.pathsep))):
        with zipfile.ZipFile(teacher) as archive:
            sums = repr([part.CRC for part in archive.infolist()])
        marks[f"the content of {os.path.basename(teacher)}"] = f"{zlib.crc32(sums.encode()):08x} (check sum)"
    return marks


def _items(settings: Any) -> list[tuple[str, Any]]:
    if OmegaConf.is_config(settings):
        settings = OmegaConf.to_container(settings, resolve=True)
    if isinstance(settings, Namespace):
        settings = vars(settings)
    return [(str(name), value) for name, value in settings.items()] if isinstance(settings, Mapping) else []
