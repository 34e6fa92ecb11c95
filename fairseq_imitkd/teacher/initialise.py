"""A student that begins as a part of its teacher: some of its layers, its embeddings."""

import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from fairseq.models import BaseFairseqModel
from torch import nn

from fairseq_imitkd.errors import UsageError

logger = logging.getLogger(__name__)

Pair = tuple[str, nn.Module, nn.Module]  # a name, and what it is of the student's and of the teacher's

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
def initialise(
    student: BaseFairseqModel, teacher: BaseFairseqModel, parts: dict[str, list[int] | None]
) -> int:
    """Copy parts of a teacher into a student.

    Args:
        student, teacher: built over the same dictionaries.
        parts: as of :func:`parse_parts`.

    Returns:
        how many of the student's parameters are the teacher's now.

    Raises:
        UsageError: a part has other shapes or settings, a layer is none of the teacher's, or the student shares a tensor
            that is several of the teacher's. Nothing has then been copied.
    """
    pairs: list[Pair] = []
    for part, numbers in parts.items():
        pairs += (
            _embeddings(student, teacher)
            if part == "embeddings"
            else _layers(part, student, teacher, numbers)
        )
        _check_settings(part, student, teacher)
    for name, own, theirs in pairs:
        shapes, others = _shapes(own), _shapes(theirs)
        if type(own) is not type(theirs) or shapes != others:
            different = sorted(
                key for key in shapes.keys() | others.keys() if shapes.get(key) != others.get(key)
            )
            key = different[0] if different else ""
            raise UsageError(
                f"{FLAG}: the student's {name} must be built as the teacher's, but its {type(own).__name__} has {key} "
                f"{shapes.get(key, 'none')}, the teacher's {type(theirs).__name__} {others.get(key, 'none')}: give the student "
                "the teacher's widths, or leave this part out"
            )
    _check_shared(pairs)
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


def _check_settings(part: str, student: Any, teacher: Any) -> None:
    """Weights of the same shapes compute something else in a student with other heads, norms or activations."""
    own, theirs = _settings(part, student), _settings(part, teacher)
    for name in own:
        if name in theirs and own[name] != theirs[name]:
            raise UsageError(
                f"{FLAG} {part}: the student's {name} must be the teacher's, {theirs[name]}, but is {own[name]}: build the "
                f"student alike, or leave {part} out"
            )


def _settings(part: str, model: Any) -> dict[str, Any]:
    """What changes the meaning of a transformer's weights and not their shapes, by flag or name; of other models nothing."""
    settings: dict[str, Any] = {}
    if part == "embeddings":
        for name in ("encoder", "decoder"):
            side = getattr(model, name)
            if hasattr(side, "embed_scale"):
                settings["--no-scale-embedding"] = side.embed_scale == 1.0
                settings[f"{name}.embed_positions"] = _named(side, "embed_positions")
                settings[f"{name}.layernorm_embedding"] = _named(side, "layernorm_embedding")
        return settings
    side = getattr(model, part)
    layer: Any = side.layers[0] if len(side.layers) else None  # all are built alike
    if hasattr(layer, "normalize_before"):
        settings[f"--{part}-normalize-before"] = layer.normalize_before
        settings[f"{part}.layer_norm"] = _named(side, "layer_norm")
        if hasattr(layer, "self_attn"):  # fairseq's convolutions have none
            settings[f"--{part}-attention-heads"] = layer.self_attn.num_heads
            settings["--activation-fn"] = _named(layer, "activation_fn").replace("<lambda>", "linear")
    return settings


def _named(owner: Any, attribute: str) -> str:
    """What kind of module an attribute is, or which function."""
    part = getattr(owner, attribute, None)
    return "none" if part is None else getattr(part, "__name__", type(part).__name__)


def _check_shared(pairs: Iterable[Pair]) -> None:
    """A tensor of the student that has several names, as tied embeddings have, would keep the last of different values."""
    given: dict[int, tuple[str, torch.Tensor]] = {}
    for name, own, theirs in pairs:
        values = theirs.state_dict()
        for key, parameter in own.named_parameters():
            before, value = given.setdefault(id(parameter), (name, values[key]))
            if not torch.equal(value, values[key]):
                raise UsageError(
                    f"{FLAG}: the student's {before} and {name} are one tensor, but the teacher's differ: build a student that "
                    "shares no more (--share-all-embeddings, --share-decoder-input-output-embed), or leave this part out"
                )


def _embeddings(student: Any, teacher: Any) -> Iterator[Pair]:
    """Of words, of positions where they are learned, and the output matrix."""
    for side in ("encoder", "decoder"):
        own, theirs = getattr(student, side), getattr(teacher, side)
        for name in ("embed_tokens", "embed_positions", "layernorm_embedding", "output_projection"):
            mine = getattr(own, name, None)
            if mine is not None and list(mine.parameters()):
                yield f"{side}'s {name}", mine, getattr(theirs, name, None) or nn.Identity()


def _layers(side: str, student: Any, teacher: Any, numbers: list[int] | None) -> Iterator[Pair]:
    own, theirs = (getattr(getattr(model, side), "layers", None) for model in (student, teacher))
    if own is None or theirs is None:
        raise UsageError(
            f"{FLAG} {side} needs a student and a teacher with layers, such as transformers: leave it out"
        )
    numbers = spread(len(own), len(theirs)) if numbers is None else numbers
    if len(numbers) != len(own):
        raise UsageError(
            f"{FLAG} {side}:… must name as many layers as the student has, {len(own)}, but names {len(numbers)}"
        )
    for place, number in enumerate(numbers):
        if number >= len(theirs):
            raise UsageError(
                f"{FLAG} {side}:… must name layers in 0..{len(theirs) - 1}, the teacher's, but names {number}"
            )
        yield f"{side} layer {place} (of {number})", own[place], theirs[number]
    last = getattr(getattr(student, side), "layer_norm", None)
    if last is not None:
        yield (
            f"{side}'s layer_norm",
            last,
            getattr(getattr(teacher, side), "layer_norm", None) or nn.Identity(),
        )
