"""Guards fairseq's own commands against checkpoints that would run code."""

import functools
import os
from argparse import Namespace
from typing import Any

from fairseq import checkpoint_utils
from fairseq.dataclass.utils import overwrite_args_by_name
from fairseq.file_io import PathManager

from fairseq_imitkd.checkpoints.bounds import check_model
from fairseq_imitkd.checkpoints.budget import is_building
from fairseq_imitkd.checkpoints.build import EMBEDDING_FILES, configuration, refuse_expressions
from fairseq_imitkd.checkpoints.compact import SPARSE
from fairseq_imitkd.checkpoints.safe_load import (
    TRUST,
    check_configuration_type,
    read_untrusted,
    reported,
)
from fairseq_imitkd.errors import UsageError, as_usage_error


def all_are_trusted() -> bool:
    """Return whether torch's environment variable says that all files are trusted."""
    return os.environ.get(TRUST, "0").lower() in ("1", "y", "yes", "true")


def guard_fairseq() -> None:
    """Make fairseq's ``load_checkpoint_to_cpu`` refuse checkpoints that would run code.

    ``fairseq-generate``, ``-interactive`` and ``-validate`` all read checkpoints by this function. The
    replacement holds for the whole process and is made when the package is imported. No later moment exists
    that keeps ``fairseq-generate --user-dir fairseq_imitkd`` guarded: with ``--task translation`` the import
    is the only code of this package that runs before fairseq loads the checkpoint, and fairseq has no hook
    there:
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq_cli/generate.py#L96

    If torch was told that all files are trusted, nothing is refused: such a file may hold any code anyway.
    """
    load = checkpoint_utils.load_checkpoint_to_cpu

    @functools.wraps(load)
    def guarded(path: str, arg_overrides: Any = None, load_on_all_ranks: bool | None = None) -> Any:
        if is_building() and "://" in path:
            raise UsageError(f"checkpoint '{path}' is of another machine, and is named by a checkpoint")
        local = str(PathManager.get_local_path(path))
        builds_model = load_on_all_ranks is None
        if not all_are_trusted():
            # Only the trainer passes this argument, and it loads the weights into a model that it has built
            # already:
            # https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/trainer.py#L495
            _refuse_unsafe(local, builds_model)
        with reported(local, "checkpoint"):
            state = load(path, arg_overrides, bool(load_on_all_ranks))
            if builds_model:
                _drop_files(state)
            return state

    checkpoint_utils.load_checkpoint_to_cpu = guarded


def _drop_files(state: dict[str, Any]) -> None:
    """Remove the names of files that start embeddings: the checkpoint holds the trained ones.

    fairseq would read the files when it builds the model.
    """
    for holder in (state.get("args"), state.get("cfg")):
        if isinstance(holder, Namespace):
            vars(holder).update({name: None for name in EMBEDDING_FILES if hasattr(holder, name)})
        elif holder is not None:
            overwrite_args_by_name(holder, dict.fromkeys(EMBEDDING_FILES))


def _refuse_unsafe(path: str, builds_model: bool) -> None:
    """Check a file as it is, before fairseq reads it and applies the user's overrides.

    Raises:
        UsageError: the file is not a checkpoint, or loading it or building its model would run code.
    """
    state = read_stock(path)
    if not builds_model or (state.get("cfg") is None and state.get("args") is None):
        return
    with reported(path, "checkpoint"):
        cfg = configuration(state)
        parts = [part for part in ("task", "model", "criterion") if cfg.get(part) is not None]
        try:
            refuse_expressions(cfg, parts)
        except ValueError as error:
            raise ValueError(f"{error}; if you trust the file, set {TRUST}=1") from error


def read_stock(path: str) -> dict[str, Any]:
    """Return the content of a checkpoint that fairseq itself will read.

    Args:
        path: the file.

    Raises:
        UsageError: it is not a checkpoint of fairseq, or it is damaged or unsafe.
    """
    state = read_untrusted(path, None, ("checkpoint", None))
    if not isinstance(state, dict) or "model" not in state:
        raise UsageError(
            f"checkpoint '{path}' is not a fairseq checkpoint: it lacks 'model'; use another file"
        )
    check_configuration_type(state, path, "checkpoint")
    if SPARSE in state:
        raise UsageError(
            f"checkpoint '{path}' is compact, which fairseq can't read; unpack it: imitkd-prune '{path}' "
            "--out FILE"
        )
    with as_usage_error(f"checkpoint '{path}' holds a model that is damaged", "use another copy"):
        check_model(state["model"])
    return state
