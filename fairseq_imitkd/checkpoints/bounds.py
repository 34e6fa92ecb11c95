"""Bounds of a checkpoint from a stranger: its settings, numbers and tensors are counted before they are used.

A few bytes can stand for much: 60 lists that hold each other twice, a tensor of one number that is repeated
10**12 times, a setting ``[0]*1000000000``. Nothing here evaluates, copies or prints a value of the file.
"""

import ast
import math
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from omegaconf.base import Container, Node
from torch import Tensor

DEPTH = 100  # levels of lists and dictionaries within each other
SETTINGS = 10_000  # fairseq's own have 500; a list of 100 languages in pairs has 9,900
NUMBERS = 500  # in one list of settings: hydra parses a list of learning rates for seconds
CHARACTERS, ALL_CHARACTERS = 100_000, 1_000_000  # of one setting, and of all
ELEMENTS = 10_000  # of a list that a setting's expression stands for
_SLACK = 10_000  # values that a file of any size may hold: they can be named more than once
_BITS, _SETTING_BITS = 256, 63  # of whole numbers; a random generator's state has 128
_COUNTS = re.compile(r"((en|de)coder_\w*(layers|heads|dim|size)|max_(source|target)_positions)")


class TooLarge(ValueError):
    """A value of a checkpoint that is too large, too deep or too long, or is not finite."""


def check_content(content: Any, size: int) -> None:
    """Refuse what a file of this size can't have been written for.

    Args:
        content: what the file holds.
        size: the size of the file in bytes.

    Raises:
        TooLarge: it has more values than bytes, too deep ones, or numbers beyond 256 bits.
        ValueError: a tensor is sparse, or larger than its data.
    """
    storages: dict[int, int] = {}
    count, level = 0, [content]
    for _ in range(DEPTH):
        following: list[Any] = []
        for value in level:
            if isinstance(value, Tensor):
                check_tensor(value)
                storage = value.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
            elif isinstance(value, int):
                if value.bit_length() > _BITS:
                    raise TooLarge(f"it holds a whole number of {value.bit_length():,} bits")
            elif not isinstance(value, str | float | bytes):
                following += _inner(value).values()
            if count + len(following) > size + _SLACK:
                raise TooLarge(f"it stands for more values than it has bytes ({size:,})")
        count, level = count + len(following), following
        if not level:
            break
    else:
        raise TooLarge(f"it has more than {DEPTH} levels of values within each other")
    if sum(storages.values()) > size:
        raise TooLarge(f"its tensors need {sum(storages.values()):,} bytes, but it has {size:,}")


def check_model(model: Any) -> None:
    """Refuse what is not tensors by name, where fairseq reads a model.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(model, Mapping) or not model:
        raise ValueError(f"its 'model' must be weights by name, but is a {type(model).__name__}")
    for name, weight in model.items():
        if not (isinstance(name, str) and name.isprintable()):  # names are printed
            raise ValueError(f"{name!r:.60} is not a parameter's name")
        if not isinstance(weight, Tensor):
            raise ValueError(f"its {name[:80]} is a {type(weight).__name__}, but must be a tensor")


def check_tensor(value: Tensor) -> None:
    """Refuse a tensor that is not plain and dense, in memory, and as large as its data.

    Raises:
        ValueError: it is something else.
    """
    is_dense = value.layout == torch.strided and not value.is_nested and not value.is_neg()
    if not is_dense or value.device.type != "cpu" or value.is_quantized:
        raise ValueError(
            f"a tensor of {value.dtype} and {value.layout} on {value.device}, which a fairseq model does not "
            "have"
        )
    if value.nbytes > value.untyped_storage().nbytes():
        raise ValueError(f"a tensor of shape {list(value.shape)} in {value.untyped_storage().nbytes()} bytes")


def check_settings(settings: Any) -> None:
    """Refuse settings that would take long to read, or that settings never hold.

    Args:
        settings: the ``cfg`` or ``args`` of a checkpoint.

    Raises:
        TooLarge: naming the setting.
    """
    characters = 0
    for path, value in _named_values(settings):
        named = f"its setting {'.'.join(path)[:80]}"
        if isinstance(value, str | bytes | bytearray):
            characters += len(value)
            if len(value) > CHARACTERS or characters > ALL_CHARACTERS:
                raise TooLarge(f"{named} is too long ({len(value):,} characters)")
        elif isinstance(value, int) and value.bit_length() > _SETTING_BITS:
            raise TooLarge(f"{named} is a whole number of {value.bit_length():,} bits")
        elif isinstance(value, float) and math.isnan(value):
            raise TooLarge(f"{named} is not a number")
        elif isinstance(value, list | tuple) and len(value) > NUMBERS and not isinstance(value[0], str):
            raise TooLarge(f"{named} is a list of {len(value):,} values")
        elif isinstance(value, int) and value < 0 and path and _COUNTS.fullmatch(path[-1]):
            raise TooLarge(f"{named} is {value}")


def _named_values(settings: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the names and value of every setting, lists and dictionaries too.

    A value that is held twice is yielded twice.

    Raises:
        TooLarge: it has too many settings, or too many levels.
    """
    count = 0
    waiting: list[tuple[tuple[str, ...], Any]] = [((), settings)]
    while waiting:
        path, value = waiting.pop()
        while isinstance(value, Node):
            value = vars(value).get("_content" if isinstance(value, Container) else "_val")
        yield path, value
        inner = _inner(value)
        count += len(inner)
        if count > SETTINGS:
            raise TooLarge(f"it has more than {SETTINGS:,} settings")
        if inner and len(path) >= DEPTH:
            raise TooLarge(f"it has more than {DEPTH} levels of settings within each other")
        waiting += [
            ((*path, name[:80] if isinstance(name, str) else "…"), each) for name, each in inner.items()
        ]


def _inner(value: Any) -> Mapping[Any, Any]:
    """Return what a value holds, by name or number."""
    if isinstance(value, Node):
        value = vars(value).get("_content") if isinstance(value, Container) else vars(value).get("_val")
        return _inner(value) if isinstance(value, dict | list) else {0: value}
    if isinstance(value, Namespace):
        return vars(value)
    if isinstance(value, Mapping):
        return value
    return dict(enumerate(value)) if isinstance(value, list | tuple | set) else {}


def check_expression(text: str) -> None:
    """Refuse a text of numbers and brackets that stands for a large value. It is not evaluated.

    Args:
        text: a text that holds no names. One that Python can't parse stands for nothing and passes.

    Raises:
        TooLarge: it stands for more than 10,000 elements, or for a number beyond 63 bits.
        ValueError: it is another kind of expression.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError:
        return
    except (ValueError, MemoryError, RecursionError) as error:
        raise TooLarge("it is nested too deeply") from error
    _size_and_value(tree.body)


def _size_and_value(node: ast.expr) -> tuple[int, Any]:
    """Return how many elements an expression stands for, and its value if it is a number."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | None):
        return 1, _bounded(node.value)
    if isinstance(node, ast.List | ast.Tuple):
        return _counted(max(1, sum(_size_and_value(each)[0] for each in node.elts))), None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        return _size_and_value(node.operand)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult):
        (left, one), (right, other) = _size_and_value(node.left), _size_and_value(node.right)
        times = isinstance(node.op, ast.Mult)
        if one is not None and other is not None:
            return 1, _bounded(one * other if times else abs(one) + abs(other))
        number = one if one is not None else other
        if times and isinstance(number, int):
            return _counted(max(left, right) * max(1, number)), None
        return _counted(left + right), None
    raise ValueError("it is not a list of numbers")


def _counted(elements: int) -> int:
    if elements > ELEMENTS:
        raise TooLarge(f"it stands for {elements:,} elements")
    return elements


def _bounded(number: Any) -> Any:
    if isinstance(number, int) and number.bit_length() > _SETTING_BITS:
        raise TooLarge("it stands for a number beyond 63 bits")
    return number
