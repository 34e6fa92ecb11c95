"""Flags of a training that fairseq's commands that decode accept, and that change nothing there."""

from collections.abc import Collection
from dataclasses import fields
from typing import Any

from fairseq.dataclass.configs import CheckpointConfig
from fairseq.optim.lr_scheduler.fixed_schedule import FixedLRScheduleConfig

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.models.pruning import PruningConfig
from fairseq_imitkd.teacher.config import SequenceTeacherConfig
from fairseq_imitkd.training.configuration.ranges import flag
from fairseq_imitkd.training.configuration.trainer import OF_SCORES
from fairseq_imitkd.training.curriculum import CurriculumConfig
from fairseq_imitkd.training.source_only import SourceOnlyConfig
from fairseq_imitkd.training.validation import ValidationConfig

_CONFIGS = (
    SequenceTeacherConfig,
    SourceOnlyConfig,
    CurriculumConfig,
    PruningConfig,
    ValidationConfig,
    CheckpointConfig,
    FixedLRScheduleConfig,
)
_OTHERS = (
    "criterion", "optimizer", "eval_bleu", *OF_SCORES, "train_subset", "valid_subset",
    "combine_valid_subsets", "ignore_unused_valid_subsets", "validate_interval", "validate_interval_updates",
    "validate_after_updates",
    "disable_validation", "max_tokens_valid", "batch_size_valid", "max_valid_steps", "curriculum",
    "tensorboard_logdir", "wandb_project", "aim_repo", "azureml_logging",
)  # fmt: skip
_OF_DECODING = ("checkpoint_suffix", "checkpoint_shard_count")


def _names(kind: Any) -> set[str]:
    """Return the fields of a dataclass, without those whose value it takes from another flag."""
    return {item.name for item in fields(kind) if not str(item.default).startswith("${")}


def check(command: str, typed: Collection[str]) -> None:
    """Refuse flags of a training.

    Args:
        command: ``generate`` or ``interactive``.
        typed: the flags that the user typed.

    Raises:
        UsageError: naming the first one.
    """
    names = set(_OTHERS).union(*map(_names, _CONFIGS)) - set(_OF_DECODING)
    for name in sorted(names):
        if not name.startswith("_") and flag(name) in typed:
            raise UsageError(
                f"{flag(name)} changes nothing in imitkd-{command}, because it is a flag of imitkd-train: "
                "leave it out"
            )
