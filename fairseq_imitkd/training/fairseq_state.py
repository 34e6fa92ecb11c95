"""What fairseq remembers of earlier validations and does not save in its checkpoints.

Without it, a resumed run counts the validations of ``--patience`` and ``--lr-patience`` from zero. A run that
is resumed at the end of an epoch also forgets that epoch's validation loss: fairseq saves the checkpoint
before the learning rate's schedule reads the loss.
https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq_cli/train.py#L187-L193
"""

import sys
from collections.abc import Mapping
from typing import Any

from fairseq_imitkd.checkpoints.saving import train_no_further

# The attributes in which fairseq and torch count validations without an improvement:
# https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq_cli/train.py#L235-L245
STOPPING = ("best", "num_runs")
PLATEAU = ("num_bad_epochs", "cooldown_counter", "last_epoch")


def read(trainer: Any, epoch_loss: float | None) -> dict[str, Any]:
    """Return what a checkpoint must hold; empty for most checkpoints within an epoch.

    Args:
        trainer: fairseq's trainer.
        epoch_loss: the validation loss of the epoch that ends with this checkpoint, if one does.
    """
    state = {
        "stopping": _attributes(_stopping(), STOPPING) if trainer.cfg.checkpoint.patience > 0 else {},
        "plateau": _attributes(_plateau(trainer), PLATEAU),
    }
    state = {name: part for name, part in state.items() if part}
    return state if epoch_loss is None else {**state, "epoch_loss": epoch_loss}


def restore(trainer: Any, epoch: int, saved: Mapping[str, Any]) -> None:
    """Continue from the result of :func:`read`. Without one, count from zero.

    Args:
        trainer: fairseq's trainer.
        epoch: the epoch that follows.
        saved: the state of the checkpoint; empty if there is none.
    """
    stopping = _stopping()
    for name in STOPPING:
        if name in saved.get("stopping", {}):
            setattr(stopping, name, saved["stopping"][name])
        elif hasattr(stopping, name):  # of an earlier training in the same process
            delattr(stopping, name)
    patience = trainer.cfg.checkpoint.patience
    if 0 < patience <= saved.get("stopping", {}).get("num_runs", 0):
        train_no_further(trainer, f"--patience {patience}")
    if trainer.cfg.checkpoint.reset_lr_scheduler:
        return
    for name, value in saved.get("plateau", {}).items():
        if _plateau(trainer) is not None:
            setattr(_plateau(trainer), name, value)
    if "epoch_loss" in saved:
        trainer.lr_step(epoch - 1, saved["epoch_loss"])


def _stopping() -> Any:
    return getattr(sys.modules.get("fairseq_cli.train"), "should_stop_early", None)


def _plateau(trainer: Any) -> Any:
    """Return torch's scheduler of ``--lr-scheduler reduce_lr_on_plateau``, or None."""
    return getattr(trainer.lr_scheduler, "lr_scheduler", None)


def _attributes(holder: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(holder, name) for name in names if hasattr(holder, name)}
