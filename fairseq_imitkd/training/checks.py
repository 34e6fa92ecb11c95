"""What is refused before a teacher is loaded: flags and students that can't be trained."""

import os
from typing import Any

from fairseq.models import BaseFairseqModel

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.method.method import Method
from fairseq_imitkd.models.access import output_projection, unsupported_reason
from fairseq_imitkd.models.encoding import encoder_width
from fairseq_imitkd.teacher.initialise import parse_parts
from fairseq_imitkd.teacher.source import parse_device
from fairseq_imitkd.teacher.teacher import Teacher


def check_student(student: BaseFairseqModel, method: Method) -> None:
    """Refuse a student that the method can't train.

    Raises:
        UsageError: naming ``--arch`` or the flag that does not fit it.
    """
    reason = unsupported_reason(student)
    if reason:
        raise UsageError(reason)
    if method.cfg.loss_chunk > 0 and output_projection(student.decoder) is None:
        raise UsageError(
            f"--loss-chunk {method.cfg.loss_chunk} can't be used with this --arch, whose logits are not the "
            "product of hidden states and one matrix: leave it out"
        )


def widths_to_match(student: BaseFairseqModel, teacher: Any, method: Method) -> tuple[int, int]:
    """Return the features of the student's and the teacher's encoder outputs, for ``--hidden-match``.

    Raises:
        UsageError: there are several teachers, or one of the models has no such outputs.
    """
    flag = f"--hidden-match {method.cfg.hidden_match}"
    if isinstance(teacher, Teacher) and len(teacher.models) > 1:
        raise UsageError(
            f"{flag} matches one teacher, but --teacher-path names {len(teacher.models)}: use one, or leave "
            "the flag out"
        )
    own, theirs = encoder_width(student), teacher.encoder_width
    if own is None or theirs is None:
        name, model = ("--arch", student) if own is None else ("--teacher-path", teacher.models[0])
        raise UsageError(
            f"{flag} compares outputs of encoders, but the model of {name}, a {type(model).__name__}, has "
            "none to compare: leave the flag out"
        )
    return own, theirs


def check_topk(method: Method, symbols: int) -> None:
    """Refuse ``--teacher-topk`` as large as the vocabulary.

    Args:
        method: the method that is trained.
        symbols: size of the vocabulary.

    Raises:
        UsageError: naming the flag.
    """
    if symbols <= method.cfg.teacher_topk:
        raise UsageError(
            f"--teacher-topk {method.cfg.teacher_topk} changes nothing, because there are {symbols} "
            "symbols: lower it or leave it out"
        )


def check_device(cfg: Any, method: Method) -> None:
    """Refuse a teacher's device that is not there, and a teacher elsewhere that does more than score.

    Args:
        cfg: the task's settings.
        method: the method that is trained.

    Raises:
        UsageError: naming the flag.
    """
    if parse_device(cfg.teacher_device) is None:
        return
    for flag, is_used in (
        ("--teacher-samples", method.teacher_samples),
        ("--rollout-policy speculative", method.rollout_policy.speculates),
        (f"--teacher-selection {cfg.teacher_selection}", str(cfg.teacher_selection) != "fixed"),
    ):
        if is_used:
            raise UsageError(
                f"--teacher-device {cfg.teacher_device} can't be used with {flag}, which needs the "
                "teacher on the student's device; leave one of them out"
            )


def check_selection(cfg: Any, method: Method) -> None:
    """Refuse ``--teacher-selection`` with one teacher, or with rollouts that have no reference.

    Args:
        cfg: the task's settings.
        method: the method that is trained.

    Raises:
        UsageError: naming the flag.
    """
    if str(cfg.teacher_selection) == "fixed":
        return
    flag = f"--teacher-selection {cfg.teacher_selection}"
    if os.pathsep not in (cfg.teacher_path or ""):
        raise UsageError(
            f"{flag} chooses among several teachers: give --teacher-path several, joined by ':', or leave "
            "it out"
        )
    if method.replay_capacity:
        raise UsageError(
            f"{flag} can't be used with replayed rollouts, which have no reference: add --rollout-replay 0"
        )


def parts_to_copy(cfg: Any) -> dict[str, list[int] | None]:
    """Parse ``--init-from-teacher``; empty if it is not given.

    Args:
        cfg: the task's settings.

    Raises:
        UsageError: the flag does not parse, or can't be used with another.
    """
    if not cfg.init_from_teacher:
        return {}
    parts = parse_parts(cfg.init_from_teacher)
    if cfg.finetune_from_model:
        raise UsageError(
            "--init-from-teacher changes nothing with --finetune-from-model, whose weights win: leave one out"
        )
    if getattr(cfg, "teacher_cache", None):
        raise UsageError(
            "--init-from-teacher needs --teacher-path, not --teacher-cache, which holds no weights"
        )
    return parts
