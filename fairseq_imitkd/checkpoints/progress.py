"""The part of a checkpoint that a training continues from: whether fairseq can read it."""

from collections.abc import Mapping
from typing import Any

_MOST = 10**12  # updates, and batches of an epoch
_EPOCHS = 10**9


def check_progress(state: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose record of the training is of the wrong types, or can't be true.

    Parts that are absent pass; fairseq fills them in, as for files of older versions.

    Args:
        state: content of the checkpoint.

    Raises:
        ValueError: naming the part, and what it must be.
    """
    history = state.get("optimizer_history", [{}])
    if not isinstance(history, list) or not history or not all(isinstance(each, dict) for each in history):
        raise ValueError("its 'optimizer_history' must be a list of at least one dictionary")
    extra = _mapping(state, "extra_state")
    iterator = _mapping(extra, "train_iterator")
    for holder, name, most in (
        (history[-1], "num_updates", _MOST),
        (iterator, "epoch", _EPOCHS),
        (iterator, "iterations_in_epoch", _MOST),
    ):
        value = holder.get(name, 0)
        if type(value) is not int or not 0 <= value <= most:
            raise ValueError(f"its '{name}' must be a whole number in 0..{most:,}, but is {value!r:.40}")
    _mapping(history[-1], "lr_scheduler_state")
    _mapping(extra, "metrics")
    for name in ("last_optimizer_state", "task_state"):
        _mapping(state, name)
    best = extra.get("best")
    if best is not None and not isinstance(best, int | float):
        raise ValueError(f"its 'best' score must be a number, but is a {type(best).__name__}")


def _mapping(holder: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a part of a checkpoint, which may be absent.

    Raises:
        ValueError: it is something other than a dictionary.
    """
    value = holder.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"its '{name}' must be a dictionary, but is a {type(value).__name__}")
    return value
