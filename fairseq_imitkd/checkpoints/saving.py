"""Makes fairseq's checkpoints survive kills and full disks, and continues from the newest whole one."""

import functools
import logging
import math
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from filelock import FileLock, Timeout

from fairseq_imitkd.checkpoints.safe_load import find_damage, read_untrusted
from fairseq_imitkd.data.files import atomic_files
from fairseq_imitkd.data.output_folder import NO_LOCKS
from fairseq_imitkd.errors import UsageError

logger = logging.getLogger(__name__)

# What a run that was killed while it wrote has left (see files.partial).
_LEFTOVER = re.compile(r".+\.[0-9a-f]{16}\.partial")
PATIENCE = 30.0  # seconds to wait for a lock: a run that was killed may leave a process that is just ending
writing = threading.RLock()  # held while a checkpoint gets its names


def guard_saving() -> None:
    """Replace fairseq's functions that write a checkpoint, copy it, and continue from it.

    fairseq writes a checkpoint once and copies it to its other names in place. A kill or a full disk can
    leave half a ``checkpoint_last.pt``, which the next run can't read:
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/checkpoint_utils.py#L138-L140

    The replacements hold for the whole process. They are made when the package is imported, because
    ``fairseq-train --user-dir fairseq_imitkd`` runs no other code of this package before it needs them.
    """
    checkpoint_utils.torch_persistent_save = _atomic(checkpoint_utils.torch_persistent_save)
    checkpoint_utils.PathManager = _AtomicCopies
    # fairseq keeps the best score as an attribute of the module's function of this name, so of the new one.
    checkpoint_utils.save_checkpoint = _on_all_ranks(checkpoint_utils.save_checkpoint)
    checkpoint_utils.load_checkpoint = _from_newest_whole(checkpoint_utils.load_checkpoint)


def _atomic(write: Callable[..., None]) -> Callable[..., None]:
    """Return fairseq's function that writes a checkpoint; the file is complete or absent."""

    @functools.wraps(write)
    def write_atomically(obj: Any, filename: str, async_write: bool = False) -> None:
        if async_write or PathManager.path_requires_pathmanager(filename):
            return write(obj, filename, async_write)
        return _write(Path(filename), obj)

    return write_atomically


def _on_all_ranks(save: Callable[..., Any]) -> Callable[..., Any]:
    """Return fairseq's function that saves; the task first collects the state of all processes."""

    @functools.wraps(save)
    def save_all_ranks(cfg: Any, trainer: Any, *more: Any) -> str | None:
        epoch_itr, val_loss = more
        prepare = getattr(trainer.task, "prepare_checkpoint", None)
        if prepare is not None and not cfg.no_save:
            prepare(trainer, val_loss if epoch_itr.end_of_epoch() else None)
        with writing:
            return save(cfg, trainer, *more)

    return save_all_ranks


def _from_newest_whole(load: Callable[..., Any]) -> Callable[..., Any]:
    """Return fairseq's function that continues a run; the run takes its folder, and the task its state."""

    @functools.wraps(load)
    def load_newest_whole(cfg: Any, trainer: Any, **arguments: Any) -> Any:
        if not cfg.no_save and not PathManager.path_requires_pathmanager(cfg.save_dir):
            _on_first_rank(trainer, lambda: _begin_run(cfg, trainer))
        extra_state, epoch_itr = load(cfg, trainer, **arguments)
        loaded = getattr(trainer.task, "checkpoint_loaded", None)
        if loaded is not None:
            loaded(trainer, epoch_itr.next_epoch_idx)
        if 0 < trainer.cfg.optimization.max_update <= trainer.get_num_updates():
            train_no_further(trainer, f"--max-update {trainer.cfg.optimization.max_update}")
        return extra_state, epoch_itr

    return load_newest_whole


def train_no_further(trainer: Any, end: str) -> None:
    """End a run that has reached its end before, so that the same command changes nothing.

    fairseq compares the number of updates after an update, so it would take one more:
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq_cli/train.py#L396-L405

    Args:
        trainer: fairseq's trainer, which has loaded the checkpoint.
        end: the flag and the value that have ended the run.
    """
    logger.info("this training has ended by %s already: raise it to train on", end)
    trainer.cfg.optimization.stop_min_lr = math.inf  # fairseq reads it before each epoch
    logging.getLogger("fairseq_cli.train").addFilter(_is_not_of_this_end)


def _is_not_of_this_end(record: logging.LogRecord) -> bool:
    """Whether a message is not fairseq's own about a training that ends by the learning rate of ``inf``."""
    return "(--stop-min-lr=inf)" not in record.getMessage()


class _AtomicCopies(PathManager):
    """fairseq's ``PathManager`` for checkpoints: a copy is complete or absent."""

    @staticmethod
    def copy(src_path: str, dst_path: str, overwrite: bool = False) -> Any:
        """Copy a file atomically, unless one of the paths is remote."""
        if any(PathManager.path_requires_pathmanager(path) for path in (src_path, dst_path)):
            return PathManager.copy(src_path, dst_path, overwrite)
        copy_atomically(Path(src_path), Path(dst_path))
        return True


def copy_atomically(source: Path, target: Path) -> None:
    """Copy a checkpoint; the copy is complete or absent.

    Raises:
        UsageError: the copy can't be written.
    """
    with _reported(target), open(source, "rb") as original, atomic_files(target) as [copy]:
        shutil.copyfileobj(original, copy, 1 << 22)


def _write(path: Path, content: Any) -> None:
    """Write a checkpoint that is complete or absent.

    torch turns an error of the file into an error about its own format, so the file remembers it.
    """
    with _reported(path), atomic_files(path) as [file]:
        remembering = _RemembersError(file)
        try:
            torch.save(content, cast(BinaryIO, remembering))
        except Exception:
            if remembering.error is not None:
                raise remembering.error from None
            raise


class _RemembersError:
    """A binary file for ``torch.save`` that remembers why it could not be written."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write bytes."""
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Flush the file."""
        self._file.flush()


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turn an error of the file system while a checkpoint is written into one line."""
    try:
        yield
    except OSError as error:
        then = "free some space, then run the same command"
        if any(path.parent.glob("checkpoint_last*.pt")):
            then = f"the checkpoints that are there are whole: {then} to continue"
        raise UsageError(
            f"--save-dir '{path.parent}': {path.name} can't be written ({error.strerror or error}); {then}"
        ) from error


def _begin_run(cfg: Any, trainer: Any) -> None:
    """Take the save directory for this run. If the run continues, make its last checkpoint whole."""
    folder = Path(cfg.save_dir)
    trainer.save_dir_lock = take_folder(folder)  # it is released with the trainer
    remove_leftovers(folder)
    if cfg.restore_file == "checkpoint_last.pt":
        prepare_folder(folder, trainer.checkpoint_suffix, fits=functools.partial(_fits, trainer))


def _fits(trainer: Any, state: Any) -> bool:
    """Whether a checkpoint is of a student and a criterion as this training's."""
    theirs = {name: getattr(value, "shape", None) for name, value in state["model"].items()}
    own = {name: value.shape for name, value in trainer.get_model().state_dict().items()}
    name = type(trainer.get_criterion()).__name__
    return theirs == own and state["optimizer_history"][-1]["criterion_name"] == name


def take_folder(folder: Path) -> FileLock | None:
    """Lock a save directory, so that no other training writes to it.

    The operating system releases the lock of a process that was killed. A file system without locks is used
    without one.

    Args:
        folder: ``--save-dir``.

    Returns:
        the lock, which is released when it is garbage.

    Raises:
        UsageError: another training has the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", is_singleton=True, fallback_to_soft=False)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise UsageError(
            f"--save-dir '{folder}' is in use by another training; wait until it ends, or use another "
            "--save-dir"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return lock


def remove_leftovers(folder: Path) -> None:
    """Remove the files that a killed run has left half-written in its save directory."""
    for path in folder.iterdir():
        if _LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def prepare_folder(folder: Path, suffix: str = "", *, fits: Callable[[Any], bool] = bool) -> None:
    """Make ``checkpoint_last.pt`` whole before a training continues from it.

    If it is damaged, the newest whole checkpoint of the folder takes its place. The damaged file is kept
    under another name.

    Args:
        folder: ``--save-dir``.
        suffix: fairseq's suffix of checkpoint names, for sharded models.
        fits: returns whether this training can continue from a checkpoint's content.

    Raises:
        UsageError: ``checkpoint_last.pt`` is damaged, and no other checkpoint is whole.
    """
    if not folder.is_dir():
        return
    last = folder / f"checkpoint_last{suffix}.pt"
    if not last.exists():
        _warn_of_new_start(folder, last)
        return
    damage = find_damage(last)
    if damage is None:
        return
    whole = newest_whole(folder, last, fits=fits)
    if whole is None:
        raise UsageError(
            f"--save-dir '{folder}': {last.name} is damaged ({damage}), and no other checkpoint there is "
            "whole and of this training; remove it to train from the start, or use another --save-dir"
        )
    update, source = whole
    copy_atomically(last, last.with_name(f"{last.name}.damaged"))
    copy_atomically(source, last)
    logger.warning(
        "--save-dir '%s': %s is damaged (%s); training continues from %s, at update %s, and the damaged file "
        "is kept as %s.damaged",
        folder, last.name, damage, source.name, f"{update:,}", last.name,
    )  # fmt: skip


def newest_whole(folder: Path, last: Path, *, fits: Callable[[Any], bool] = bool) -> tuple[int, Path] | None:
    """Return the update number and path of the newest whole checkpoint that a training can continue from.

    Args:
        folder: ``--save-dir``.
        last: the checkpoint that is not considered.
        fits: returns whether the training can continue from a checkpoint's content.
    """
    found = []
    for path in folder.glob("checkpoint*.pt"):
        update = _update_of(path, fits) if path != last else None
        if update is not None:
            found.append((update, path))
    return max(found, default=None)


def _update_of(path: Path, fits: Callable[[Any], bool]) -> int | None:
    """Return the update number of a checkpoint; None if no training can continue from it."""
    try:
        state = read_untrusted(str(path), None, ("checkpoint", None))
        is_resumable = state["extra_state"]["train_iterator"] and state["last_optimizer_state"]
        is_resumable = is_resumable and fits(state)
        return int(state["optimizer_history"][-1]["num_updates"]) if is_resumable else None
    except (UsageError, KeyError, TypeError, IndexError, ValueError, AttributeError):
        return None


def _warn_of_new_start(folder: Path, last: Path) -> None:
    whole = newest_whole(folder, last)
    if whole is not None:
        logger.warning(
            "--save-dir '%s' has no %s, so training starts from update 0 and replaces the checkpoints there; "
            "to continue from update %s, add --restore-file %s",
            folder, last.name, f"{whole[0]:,}", whole[1],
        )  # fmt: skip


def _on_first_rank(trainer: Any, work: Callable[[], None]) -> None:
    """Run ``work`` on the first process, and end all processes if it raises a :class:`UsageError`."""
    message = None
    if trainer.data_parallel_rank == 0:
        try:
            work()
        except UsageError as error:
            message = str(error)
    if trainer.data_parallel_world_size > 1:
        messages = [message]
        torch.distributed.broadcast_object_list(messages, src=0, device=trainer.device)
        message = messages[0]
    if message is not None:
        raise UsageError(message)
