"""Where a teacher comes from: the values of the ``--teacher-*`` flags, parsed and checked."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fairseq_imitkd.checkpoints.safe_load import check_readable
from fairseq_imitkd.errors import UsageError


@dataclass(frozen=True)
class TeacherSource:
    """A teacher's checkpoints and how to load them.

    Args:
        path: ``--teacher-path``: checkpoint files joined by ``:``.
        dtype: ``--teacher-dtype``: ``fp32``, ``fp16``, ``bf16``, ``int8``, or ``auto`` for the student's.
        data: ``--teacher-data``: folder with the dictionaries that the teacher was trained with. By default
            they are looked for beside the checkpoint and in the folder that the checkpoint names. If both
            have them, they must be equal.
        allow_globals: ``--teacher-allow-globals``: types that the checkpoints may hold, ``module.name,…``.
        weights: weights of an ensemble's members that add up to 1; None weighs all members alike.
        device: ``--teacher-device``; None is the student's.
    """

    path: str
    dtype: str = "auto"
    data: str | None = None
    allow_globals: str | None = None
    weights: Sequence[float] | None = None
    device: torch.device | None = None

    @classmethod
    def from_flags(cls, flags: Any) -> "TeacherSource":
        """Parse and check flags.

        Args:
            flags: object with the attributes of :class:`~fairseq_imitkd.teacher.config.TeacherConfig`.

        Raises:
            UsageError: a checkpoint is missing or unreadable, or the weights or the device do not parse.
        """
        check_files(flags.teacher_path)
        return cls(
            flags.teacher_path,
            dtype=str(flags.teacher_dtype),
            data=flags.teacher_data,
            allow_globals=flags.teacher_allow_globals,
            weights=parse_weights(flags.teacher_weights, flags.teacher_path),
            device=parse_device(getattr(flags, "teacher_device", None)),
        )

    @property
    def paths(self) -> list[str]:
        """The checkpoint files."""
        return self.path.split(os.pathsep)


def check_files(paths: str | None, flag: str = "--teacher-path", model: str = "teacher") -> None:
    """Refuse missing or unreadable checkpoints before anything slow happens.

    Args:
        paths: checkpoint files joined by ``:``.
        flag: flag that names them, for messages.
        model: what they hold, for messages.

    Raises:
        UsageError: no path is given, or one is not a readable file.
    """
    if not paths:
        raise UsageError(
            f"{flag} is not given; name the {model}'s checkpoint, or several joined by ':' (an ensemble)"
        )
    for path in paths.split(os.pathsep):
        check_readable(path, flag)


def parse_weights(text: str | None, paths: str | None) -> list[float] | None:
    """Parse ``--teacher-weights``, and scale the weights so that they add up to 1.

    Args:
        text: positive numbers joined by ``:``, one for each teacher; None weighs all teachers alike.
        paths: ``--teacher-path``.

    Raises:
        UsageError: a weight is not a positive number, or their count is not that of the teachers.
    """
    if text is None:
        return None
    count = len((paths or "").split(os.pathsep))
    try:
        weights = [float(part) for part in text.split(":")]
    except ValueError:
        weights = []
    if len(weights) != count or not all(0.0 < weight < float("inf") for weight in weights):
        raise UsageError(
            f"--teacher-weights must be {count} positive numbers joined by ':', one for each teacher of "
            f"--teacher-path, but is '{text}'"
        )
    return [weight / sum(weights) for weight in weights]


def parse_device(text: str | None) -> torch.device | None:
    """Parse ``--teacher-device``; None is the student's device.

    Args:
        text: ``cpu``, or a GPU such as ``cuda:1``.

    Raises:
        UsageError: the text is not a device, or this machine does not have it.
    """
    if not text:
        return None
    found = re.fullmatch(r"cpu|cuda:(\d{1,3})", text)
    if not found:
        raise UsageError(f"--teacher-device must be cpu or a GPU such as cuda:1, but is '{text}'")
    if found[1] and int(found[1]) >= torch.cuda.device_count():
        raise UsageError(
            f"--teacher-device is {text}, but the number of visible GPUs is {torch.cuda.device_count()}; use "
            "the number of one of them, from 0, or cpu"
        )
    return torch.device(text)


def parse_bytes(text: str, flag: str) -> int:
    """Parse a size such as ``512MB`` or ``2GB`` (powers of 1,024) and return it in bytes.

    Args:
        text: the size.
        flag: flag whose value it is, for messages.

    Raises:
        UsageError: the text is not a size.
    """
    size = re.fullmatch(r"(\d{1,15}(?:\.\d+)?) ?([KMGT]?)B?", text.strip(), flags=re.IGNORECASE)
    if not size:
        raise UsageError(f"{flag} must be a size such as 512MB or 2GB, or 0 for none, but is '{text}'")
    return int(float(size[1]) * 1024 ** ["", "K", "M", "G", "T"].index(size[2].upper()))
