"""The direction that a checkpoint translates in: a joined dictionary would hide that it is the wrong one."""

import logging
from pathlib import Path
from typing import Any

from fairseq import utils
from fairseq.data import data_utils

logger = logging.getLogger(__name__)


def trained_pair(cfg: Any, data: str | Path | None = None) -> tuple[str, str] | None:
    """Return the languages that a checkpoint was trained on; None if nothing tells them.

    fairseq does not save languages that it guessed from the files of the training data. They are guessed
    again.

    Args:
        cfg: configuration of the checkpoint.
        data: a data directory whose files tell them if the one of the training is gone.
    """
    source, target = (getattr(cfg.task, name, None) for name in ("source_lang", "target_lang"))
    if source is None or target is None:
        guessed = _pair_of_files(getattr(cfg.task, "data", None)) or _pair_of_files(data) or (None, None)
        source, target = source or guessed[0], target or guessed[1]
    return (str(source), str(target)) if source and target else None


def _pair_of_files(data: Any) -> tuple[str, str] | None:
    try:
        source, target = data_utils.infer_language_pair(utils.split_paths(str(data))[0])
    except (OSError, IndexError):  # the data is gone, or was never named
        return None
    return (source, target) if source and target else None


def check_direction(
    cfg: Any, pair: tuple[str, str], *, reader: str, remedy: str, data: str | None = None
) -> None:
    """Refuse a checkpoint of the opposite direction, and warn of one whose languages have other names.

    Args:
        cfg: configuration of the checkpoint.
        pair: the source and the target language that it is to be used with.
        reader: what has these languages, for the message.
        remedy: what to do.
        data: as for :func:`trained_pair`.

    Raises:
        ValueError: it translates in the opposite direction.
    """
    trained = trained_pair(cfg, data)
    if trained is None or trained == pair:
        return
    if trained == pair[::-1] and trained_pair(cfg) == trained:  # not a guess from the data that is read
        raise ValueError(f"it translates {'-'.join(trained)}, but {reader} {'-'.join(pair)}; {remedy}")
    logger.warning(
        "a model translates %s, %s %s: make sure that they mean the same",
        "-".join(trained), reader, "-".join(pair),
    )  # fmt: skip


def flags_of(pair: tuple[str, str]) -> str:
    """Return the flags that name a pair of languages."""
    return f"--source-lang {pair[0]} --target-lang {pair[1]}"
