"""The checkpoint that a training continues from: whether the student fits it, before any data is read."""

import os
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from fairseq.criterions import CRITERION_REGISTRY
from fairseq.models import BaseFairseqModel
from fairseq.optim import OPTIMIZER_REGISTRY
from omegaconf import DictConfig
from torch import Tensor

from fairseq_imitkd.checkpoints.progress import check_progress
from fairseq_imitkd.checkpoints.safe_load import read_untrusted
from fairseq_imitkd.criterion import DistillationCriterion
from fairseq_imitkd.errors import UsageError, as_usage_error
from fairseq_imitkd.training.configuration import flat
from fairseq_imitkd.training.configuration.paths import checkpoint_to_start_from

_SCHEDULE = "lr_scheduler"


def check_continued(config: DictConfig, student: BaseFairseqModel, criterion: Any) -> None:
    """Refuse a checkpoint of another student, criterion, optimizer or learning-rate schedule.

    fairseq finds out when the data is read.

    Args:
        config: the whole configuration.
        student: the student, as it was built.
        criterion: its criterion.

    Raises:
        UsageError: naming the checkpoint, and how it differs, or why it can't be read.
    """
    settings = flat(config)
    _check_averaged_weights(settings, student)
    start = checkpoint_to_start_from(settings)
    if start is None or not os.path.isfile(start[1]):
        return
    flag, path = start
    try:
        state = read_untrusted(path, None, (flag, None))
    except UsageError:
        if flag == "--save-dir":  # an older checkpoint may take its place
            return
        raise
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        return  # the reader says what it is
    named, other = f"{flag} '{path}'", "use one of this student"
    if flag == "--save-dir":
        folder, name = os.path.split(path)
        named, other = f"--save-dir '{folder}': its {name}", "use another --save-dir"
    unlike = _difference(student, state["model"])
    if unlike is not None:
        raise UsageError(f"{named} is of another student ({unlike}): {other}, or that student's flags")
    if flag == "--finetune-from-model" or settings.get("reset_optimizer"):
        return
    finetune = "--finetune-from-model to start from its weights"
    other = f"{other}, and {finetune}" if flag == "--save-dir" else f"use {finetune}"
    with as_usage_error(f"{flag} '{path}' can't be continued", finetune):
        check_progress(state)
    _check_history(state, settings, criterion, named=named, remedy=other)
    _check_schedule(state, settings, start=start)


def check_projection(config: DictConfig, criterion: DistillationCriterion) -> None:
    """Refuse to continue with the projection of ``--hidden-match`` to a teacher of another width.

    Args:
        config: the whole configuration.
        criterion: the criterion, with its projection.

    Raises:
        UsageError: naming the checkpoint and both widths.
    """
    settings = flat(config)
    start = checkpoint_to_start_from(settings)
    if start is None or not os.path.isfile(start[1]):
        return
    flag, path = start
    if flag == "--finetune-from-model" or settings.get("reset_optimizer"):
        return  # a new projection is learned
    try:
        state = read_untrusted(path, None, (flag, None))
    except UsageError:  # check_continued has refused it, unless an older checkpoint may take its place
        return
    theirs = state.get("criterion") if isinstance(state, dict) else None
    for name, own in criterion.state_dict().items():
        there = theirs.get(name) if isinstance(theirs, dict) else None
        if isinstance(there, Tensor) and there.shape != own.shape:
            raise UsageError(
                f"{flag} '{path}' was trained with --hidden-match to a teacher of width {there.size(0)}, but "
                f"here it has {own.size(0)}: use that teacher, or start by --finetune-from-model"
            )


def _check_averaged_weights(settings: Mapping[str, Any], student: BaseFairseqModel) -> None:
    """Refuse a file of ``--ema-seed-model`` without averaged weights, or with those of another student."""
    path = settings.get("ema_seed_model")
    if not settings.get("store_ema") or path is None:
        return
    state = read_untrusted(path, None, ("--ema-seed-model", None))
    extra = state.get("extra_state") if isinstance(state, dict) else None
    averaged = extra.get("ema") if isinstance(extra, dict) else None
    named, remedy = f"--ema-seed-model '{path}'", "use a checkpoint of this student trained with --store-ema"
    if not isinstance(averaged, dict) or not averaged:
        raise UsageError(f"{named} holds no averaged weights: {remedy}, or leave the flag out")
    unlike = _difference(student, averaged)
    if unlike is not None:
        raise UsageError(f"{named} is of another student ({unlike}): {remedy}")


def _difference(student: BaseFairseqModel, theirs: Mapping[str, Any]) -> str | None:
    """Return how a checkpoint's weights differ from the student's in name or shape; None if they do not."""
    weights = dict(theirs)
    try:
        student.upgrade_state_dict(weights)
    except Exception:  # of another architecture
        return "other layers"
    own = student.state_dict()
    for name in (*own, *weights):
        shapes = [
            tuple(part[name].shape) if isinstance(part.get(name), Tensor) else None for part in (weights, own)
        ]
        if shapes[0] != shapes[1]:
            there, here = (
                "missing" if shape is None else "x".join(map(str, shape)) or "one number" for shape in shapes
            )
            return f"{name} is {there} there and {here} here"
    return None


def _check_history(
    state: Mapping[str, Any], settings: Mapping[str, Any], criterion: Any, *, named: str, remedy: str
) -> None:
    """Refuse a state of the optimizer that fairseq would not continue from."""
    history = state.get("optimizer_history")
    if state.get("last_optimizer_state") is None or not isinstance(history, list) or not history:
        return
    last = history[-1] if isinstance(history[-1], dict) else {}
    own = {"criterion": type(criterion).__name__, "optimizer": _optimizer_class(settings)}
    for part, name in own.items():
        there = last.get(f"{part}_name")
        if name is not None and there is not None and there != name:
            there, name = (_registered(each) for each in (there, name))
            raise UsageError(f"{named} was trained with another --{part} ({there}, here {name}): {remedy}")
    learned = bool(state.get("criterion"))
    if isinstance(criterion, DistillationCriterion) and learned != criterion.method.matches_hidden:
        raise UsageError(
            f"{named} was trained with{'' if learned else 'out'} a projection of --hidden-match, unlike this "
            f"training: {remedy}"
        )


def _check_schedule(state: Mapping[str, Any], settings: Mapping[str, Any], *, start: tuple[str, str]) -> None:
    """Refuse the state of another schedule of the learning rate: fairseq would read it as this one's.

    Args:
        state: content of the checkpoint.
        settings: the settings of this training.
        start: the flag that names the checkpoint, and its path.
    """
    if state.get("last_optimizer_state") is None:  # fairseq then reads no schedule either
        return
    own, there = settings.get(_SCHEDULE), _schedule_of(state)
    if own is None or there is None or own == there or settings.get(f"reset_{_SCHEDULE}"):
        return
    flag, path = start
    named = os.path.dirname(path) if flag == "--save-dir" else path
    raise UsageError(
        f"{flag} '{named}' was begun with --lr-scheduler {there}; use it again, another {flag}, or "
        "--reset-lr-scheduler"
    )


def _schedule_of(state: Mapping[str, Any]) -> str | None:
    """Return the schedule that a checkpoint was trained with; None if it does not tell."""
    cfg, args = state.get("cfg"), state.get("args")
    section = cfg.get(_SCHEDULE) if isinstance(cfg, Mapping) else None
    if isinstance(section, Namespace):
        section = vars(section)
    found = section.get("_name") if isinstance(section, Mapping) else getattr(args, _SCHEDULE, None)
    return found if isinstance(found, str) else None


def _registered(name: str) -> str:
    """Return the name of a criterion in ``--criterion``; that of another class stays as it is."""
    found = [flag for flag, criterion in CRITERION_REGISTRY.items() if criterion.__name__ == name]
    return found[0] if found else name


def _optimizer_class(settings: Mapping[str, Any]) -> str | None:
    """Return the name of the optimizer's class, as fairseq saves it."""
    half = settings.get("fp16") or settings.get("bf16")
    if settings.get("use_bmuf"):
        return "FairseqBMUF"
    if half and (settings.get("memory_efficient_fp16") or settings.get("memory_efficient_bf16")):
        return "MemoryEfficientFP16Optimizer"
    if settings.get("amp") or half:
        return "AMPOptimizer" if settings.get("amp") else "FP16Optimizer"
    found = OPTIMIZER_REGISTRY.get(settings.get("optimizer"))
    return None if found is None else found.__name__
