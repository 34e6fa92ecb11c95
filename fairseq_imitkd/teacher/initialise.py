"""Initialises a student with some of its teacher's layers and with its embeddings."""

import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from fairseq.models import BaseFairseqModel
from torch import nn

from fairseq_imitkd.errors import UsageError

logger = logging.getLogger(__name__)

FLAG = "--init-from-teacher"
FORM = (
    "'embeddings', 'encoder' and 'decoder' joined by commas, a side optionally with layers of the teacher: "
    "'encoder:0.2.5'"
)


class Copied(NamedTuple):
    """A module of the student and the teacher's module that it takes its weights from."""

    name: str
    student: nn.Module
    teacher: nn.Module


def parse_parts(text: str) -> dict[str, list[int] | None]:
    """Parse ``--init-from-teacher``.

    Args:
        text: ``embeddings``, ``encoder`` and ``decoder``, joined by commas.

    Returns:
        for each part the numbers of the teacher's layers, or None for evenly spaced ones.

    Raises:
        UsageError: the text has another form.
    """
    parts: dict[str, list[int] | None] = {}
    for word in text.split(","):
        matched = re.fullmatch(r"(embeddings|encoder|decoder)(?::(\d+(?:\.\d+)*))?", word.strip())
        if matched is None or (matched[1] == "embeddings" and matched[2]) or matched[1] in parts:
            raise UsageError(f"{FLAG} must be {FORM}, but is '{text}'")
        parts[matched[1]] = [int(number) for number in matched[2].split(".")] if matched[2] else None
    return parts


def spread(student_layers: int, teacher_layers: int) -> list[int]:
    """Return a layer of the teacher for each layer of the student.

    These are the first, the last, and evenly spaced ones between them. See Shleifer and Rush, 2020, arXiv
    2010.13002.
    """
    if student_layers == 1:
        return [0]
    return [round(number * (teacher_layers - 1) / (student_layers - 1)) for number in range(student_layers)]


@torch.no_grad()
def initialise(
    student: BaseFairseqModel, teacher: BaseFairseqModel, parts: dict[str, list[int] | None]
) -> int:
    """Copy parts of a teacher into a student.

    Args:
        student: model to initialise.
        teacher: model over the same dictionaries.
        parts: result of :func:`parse_parts`.

    Returns:
        the number of the student's parameters that were copied.

    Raises:
        UsageError: a part has other shapes or settings, the teacher lacks a layer, or the student shares a
            tensor for which the teacher has several. Nothing is copied then.
    """
    copies: list[Copied] = []
    for part, numbers in parts.items():
        if part == "embeddings":
            copies += _embeddings(student, teacher)
        else:
            copies += _layers(part, student, teacher, numbers=numbers)
        _check_settings(part, student, teacher)
    for copy in copies:
        _check_shapes(copy)
    _check_shared(copies)
    sizes: dict[int, int] = {}
    for copy in copies:
        copy.student.load_state_dict(copy.teacher.state_dict())
        sizes |= {id(parameter): parameter.numel() for parameter in copy.student.parameters()}
    count = sum(sizes.values())
    logger.info(
        "%s of the student's %s parameters were copied from the teacher: %s",
        f"{count:,}",
        f"{sum(parameter.numel() for parameter in student.parameters()):,}",
        ", ".join(copy.name for copy in copies),
    )
    return count


def _embeddings(student: Any, teacher: Any) -> Iterator[Copied]:
    """Yield the embeddings of words, those of positions if they are learned, and the output matrix."""
    for side in ("encoder", "decoder"):
        own, theirs = getattr(student, side), getattr(teacher, side)
        for name in ("embed_tokens", "embed_positions", "layernorm_embedding", "output_projection"):
            module = getattr(own, name, None)
            if module is not None and list(module.parameters()):
                yield Copied(f"{side}'s {name}", module, getattr(theirs, name, None) or nn.Identity())


def _layers(side: str, student: Any, teacher: Any, *, numbers: list[int] | None) -> Iterator[Copied]:
    """Yield the layers of a side and, if the student has one, its last layer norm."""
    own, theirs = (getattr(getattr(model, side), "layers", None) for model in (student, teacher))
    if own is None or theirs is None:
        raise UsageError(
            f"{FLAG} {side} needs a student and a teacher with layers, such as transformers; leave it out"
        )
    numbers = spread(len(own), len(theirs)) if numbers is None else numbers
    if len(numbers) != len(own):
        raise UsageError(
            f"{FLAG} {side}:… must name as many layers as the student has, {len(own)}, but names "
            f"{len(numbers)}"
        )
    for place, number in enumerate(numbers):
        if number >= len(theirs):
            raise UsageError(
                f"{FLAG} {side}:… must name layers of the teacher, in 0..{len(theirs) - 1}, but names "
                f"{number}"
            )
        yield Copied(f"{side} layer {place} (from {number})", own[place], theirs[number])
    last = getattr(getattr(student, side), "layer_norm", None)
    if last is not None:
        theirs_last = getattr(getattr(teacher, side), "layer_norm", None)
        yield Copied(f"{side}'s layer_norm", last, theirs_last or nn.Identity())


def _check_settings(part: str, student: Any, teacher: Any) -> None:
    """Refuse other heads, norms or activations, which change what weights of the same shapes compute."""
    own, theirs = _settings(part, student), _settings(part, teacher)
    for name in own:
        if name in theirs and own[name] != theirs[name]:
            raise UsageError(
                f"{FLAG} {part}: the student's {name} must be the teacher's, {theirs[name]}, but is "
                f"{own[name]}; build the student alike, or leave {part} out"
            )


def _settings(part: str, model: Any) -> dict[str, Any]:
    """Return the settings of a transformer that change the meaning of its weights and not their shapes.

    Returns:
        values by flag, or by name where no flag exists; nothing for other models.
    """
    settings: dict[str, Any] = {}
    if part == "embeddings":
        for name in ("encoder", "decoder"):
            side = getattr(model, name)
            if hasattr(side, "embed_scale"):
                settings["--no-scale-embedding"] = side.embed_scale == 1.0
                settings[f"{name}.embed_positions"] = _kind(side, "embed_positions")
                settings[f"{name}.layernorm_embedding"] = _kind(side, "layernorm_embedding")
        return settings
    side = getattr(model, part)
    layer: Any = side.layers[0] if len(side.layers) else None  # all layers have the same settings
    if hasattr(layer, "normalize_before"):
        settings[f"--{part}-normalize-before"] = layer.normalize_before
        settings[f"{part}.layer_norm"] = _kind(side, "layer_norm")
        if hasattr(layer, "self_attn"):  # fairseq's convolutional layers have no attention heads here
            settings[f"--{part}-attention-heads"] = layer.self_attn.num_heads
            name = _kind(layer, "activation_fn")
            settings["--activation-fn"] = {"<lambda>": "linear", "silu": "swish"}.get(name, name)
    return settings


def _kind(owner: Any, attribute: str) -> str:
    """Return the name of a function, or of a module's type."""
    part = getattr(owner, attribute, None)
    return "none" if part is None else getattr(part, "__name__", type(part).__name__)


def _check_shapes(copy: Copied) -> None:
    """Refuse a module of another type or with other shapes."""
    own, theirs = _shapes(copy.student), _shapes(copy.teacher)
    if type(copy.student) is type(copy.teacher) and own == theirs:
        return
    different = sorted(key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key))
    if different:
        key = different[0]
        what = f"{key} is {_as_words(own.get(key))}, the teacher's {_as_words(theirs.get(key))}"
    else:
        what = f"it is a {type(copy.student).__name__}, the teacher's a {type(copy.teacher).__name__}"
    raise UsageError(
        f"{FLAG}: the student's {copy.name} must be built as the teacher's, but {what}; use the teacher's "
        "widths, or leave this part out"
    )


def _as_words(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else " x ".join(map(str, shape))


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(values.shape) for name, values in module.state_dict().items()}


def _check_shared(copies: Iterable[Copied]) -> None:
    """Refuse several values for one tensor with several names (tied embeddings): the last would win."""
    first: dict[int, tuple[str, torch.Tensor]] = {}
    for copy in copies:
        values = copy.teacher.state_dict()
        for key, parameter in copy.student.named_parameters():
            name, value = first.setdefault(id(parameter), (copy.name, values[key]))
            if not torch.equal(value, values[key]):
                raise UsageError(
                    f"{FLAG}: the student's {name} and {copy.name} are one tensor, but the teacher's differ; "
                    "leave out --share-all-embeddings and --share-decoder-input-output-embed, or this part"
                )
