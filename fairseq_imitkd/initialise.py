"""A student that begins as a part of its teacher: some of its layers, its embeddings."""

import logging
import re
from collections.abc import Iterator
from typing import Any

import torch
from fairseq.models import BaseFairseqModel
from torch import nn

from fairseq_imitkd.errors import UsageError

logger = logging.getLogger(__name__)

FLAG = "--init-from-teacher"
FORM = "'embeddings', 'encoder' and 'decoder' joined by commas, a side with layers of the teacher if wished: 'encoder:0.2.5'"


def parse_parts(text: str) -> dict[str, list[int] | None]:
    """What to copy: ``embeddings``, ``encoder``, ``decoder``; for a side, the teacher's layers, or None for evenly spread ones.

    Raises:
        UsageError: the text is none of these.
    """
    parts: dict[str, list[int] | None] = {}
    for word in text.split(","):
        matched = re.fullmatch(r"(embeddings|encoder|decoder)(?::(\d+(?:\.\d+)*))?", word.strip())
        if matched is None or (matched[1] == "embeddings" and matched[2]) or matched[1] in parts:
            raise UsageError(f"{FLAG} must be {FORM}, but is '{text}'")
        parts[matched[1]] = [int(number) for number in matched[2].split(".")] if matched[2] else None
    return parts


def spread(student_layers: int, teacher_layers: int) -> list[int]:
    """A teacher's layer for each of the student's: the first, the last, evenly between (Shleifer & Rush, arXiv 2010.13002)."""
    if student_layers == 1:
        return [0]
    return [round(number * (teacher_layers - 1) / (student_layers - 1)) for number in range(student_layers)]


@torch.no_grad()
def initialise(student: BaseFairseqModel, teacher: BaseFairseqModel, parts: dict[str, list[int] | None]) -> int:
    """Copy parts of a teacher into a student.

    Args:
        student, teacher: built over the same dictionaries.
        parts: as of :func:`parse_parts`.

    Returns:
        how many of the student's parameters are the teacher's now.

    Raises:
        UsageError: a part has other shapes, or a layer is none of the teacher's. Nothing has then been copied.
    """
    pairs: list[tuple[str, nn.Module, nn.Module]] = []
    for part, numbers in parts.items():
        pairs += _embeddings(student, teacher) if part == "embeddings" else _layers(part, student, teacher, numbers)
    for name, own, theirs in pairs:
        shapes, others = _shapes(own), _shapes(theirs)
        if type(own) is not type(theirs) or shapes != others:
            different = sorted(key for key in shapes.keys() | others.keys() if shapes.get(key) != others.get(key))
            key = different[0] if different else ""
            raise UsageError(
                f"{FLAG}: the student's {name} must be built as the teacher's, but its {type(own).__name__} has {key} "
                f"{shapes.get(key, 'none')}, the teacher's {type(theirs).__name__} {others.get(key, 'none')}: give the student "
                "the teacher's widths, or leave this part out"
            )
    copied: dict[int, int] = {}
    for _, own, theirs in pairs:
        own.load_state_dict(theirs.state_dict())
        copied |= {id(parameter): parameter.numel() for parameter in own.parameters()}
    count = sum(copied.values())
    logger.info(
        "%s of the student's %s parameters are the teacher's: %s",
        f"{count:,}",
        f"{sum(parameter.numel() for parameter in student.parameters()):,}",
        ", ".join(name for name, _, _ in pairs),
    )
    return count


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(values.shape) for name, values in module.state_dict().items()}


def _embeddings(student: Any, teacher: Any) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Of words, of positions where they are learned, and the output matrix."""
    for side in ("encoder", "decoder"):
        own, theirs = getattr(student, side), getattr(teacher, side)
        for name in ("embed_tokens", "embed_positions", "layernorm_embedding", "output_projection"):
            mine = getattr(own, name, None)
            if mine is not None and list(mine.parameters()):
                yield f"{side}'s {name}", mine, getattr(theirs, name, None) or nn.Identity()


def _layers(side: str, student: Any, teacher: Any, numbers: list[int] | None) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    own, theirs = (getattr(getattr(model, side), "layers", None) for model in (student, teacher))
    if own is None or theirs is None:
        raise UsageError(f"{FLAG} {side} needs a student and a teacher with layers, such as transformers: leave it out")
    numbers = spread(len(own), len(theirs)) if numbers is None else numbers
    if len(numbers) != len(own):
        raise UsageError(f"{FLAG} {side}:… must name as many layers as the student has, {len(own)}, but names {len(numbers)}")
    for place, number in enumerate(numbers):
        if number >= len(theirs):
            raise UsageError(f"{FLAG} {side}:… must name layers in 0..{len(theirs) - 1}, the teacher's, but names {number}")
        yield f"{side} layer {place} (of {number})", own[place], theirs[number]
    last = getattr(getattr(student, side), "layer_norm", None)
    if last is not None:
        yield f"{side}'s layer_norm", last, getattr(getattr(teacher, side), "layer_norm", None) or nn.Identity()
