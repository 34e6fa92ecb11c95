"""Checks of a whole configuration, fairseq's own flags included, before anything is built or read.

fairseq meets most wrong values late and with a traceback, and takes some without a word.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from fairseq_imitkd.training.configuration import (
    devices,
    generation,
    paths,
    ranges,
    sizes,
    texts,
    trainer,
)

# Sections of fairseq's configuration, in the order in which they may name a flag. The others repeat flags of
# these, or belong to other commands.
_SECTIONS = (
    "common", "common_eval", "distributed_training", "dataset", "optimization", "checkpoint", "bmuf",
    "generation",
    "interactive", "ema", "task", "model", "criterion", "optimizer", "lr_scheduler", "bpe", "tokenizer",
)  # fmt: skip
_CHOICES = ("task", "criterion", "optimizer", "lr_scheduler", "bpe", "tokenizer")


def check_configuration(settings: Mapping[str, Any], command: str) -> None:
    """Check the settings of a command of fairseq's.

    Args:
        settings: the values of all flags by name, as argparse names them: ``vars(args)`` or :func:`flat`.
        command: ``train``, ``generate`` or ``interactive``; ``decode`` is one of the last two.

    Raises:
        UsageError: one line that names the flag, its value, what it must be, and the remedy.
    """
    ranges.check(settings)
    texts.check(settings)
    sizes.check(settings)
    devices.check(settings, command)
    if command == "train":
        trainer.check(settings)
    else:
        generation.check(settings, command)
    paths.check(settings, command)


def flat(config: DictConfig) -> dict[str, Any]:
    """Return the settings of fairseq's configuration by the names of the flags.

    Args:
        config: the whole configuration, with sections such as ``common``, ``task`` and ``model``.
    """
    found: dict[str, Any] = {}
    for section in reversed(_SECTIONS):
        part = config.get(section)
        items = vars(part) if isinstance(part, argparse.Namespace) else part
        if isinstance(items, DictConfig | dict):
            found.update(items)
            if section in _CHOICES:
                found[section] = items.get("_name")
            if section == "model":
                found["arch"] = items.get("_name")
    return found
