"""Teachers' checkpoints: untrusted files, read by torch's safe loader and never evaluated."""

import importlib
import json
import os
import pickle
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import Container, OmegaConf

from fairseq_imitkd.errors import UsageError

TEACHER_FLAGS = ("--teacher-path", "--teacher-allow-globals")


def parse_weights(text: str | None, paths: str | None) -> list[float] | None:
    """``--teacher-weights``: positive numbers joined by ``:``, one for each teacher, made to add up to 1.

    Raises:
        UsageError: the text does not parse, or the count is another than that of ``--teacher-path``.
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
            f"--teacher-weights must be {count} positive numbers joined by ':', one for each teacher of --teacher-path, "
            f"but is '{text}'"
        )
    return [weight / sum(weights) for weight in weights]


def check_files(paths: str | None, flag: str = TEACHER_FLAGS[0]) -> None:
    """Refuse missing or unreadable checkpoints before anything slow happens.

    Raises:
        UsageError: no path was given, or one is no readable file.
    """
    if not paths:
        raise UsageError(f"{flag} is not given: name the teacher's checkpoint, or several joined by ':' (an ensemble)")
    for path in paths.split(os.pathsep):
        if not Path(path).is_file():
            raise UsageError(f"{flag} '{path}' is no file: give the path of a fairseq checkpoint (.pt)")
        if not os.access(path, os.R_OK):
            raise UsageError(f"{flag} '{path}' can't be read: check the file's permissions")


def read_checkpoint(path: str, allow_globals: str | None, flags: tuple[str, str] = TEACHER_FLAGS) -> dict[str, Any]:
    """The checkpoint's configuration and weights, by torch's safe loader. The optimizer's state is never kept.

    Args:
        path: of the file.
        allow_globals: types that it may hold beside fairseq's own, ``module.name,…``.
        flags: what a message calls the two.

    Raises:
        UsageError: it is no checkpoint, or holds types that are not allowed.
    """
    flag, allow_flag = flags
    check_files(path, flag)
    try:
        with torch.serialization.safe_globals(_named_globals(allow_globals, allow_flag)):
            # Memory-mapped: the optimizer's state, twice the model's size, is then not even read.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        blocked = re.findall(r"GLOBAL ([\w.]+) whose module \S+ is blocked", str(error))
        if blocked:
            raise UsageError(
                f"{flag} '{path}' holds {', '.join(blocked)}, which torch's safe loader never allows: don't use it"
            ) from error
        unsafe = _unsafe_globals(path, allow_globals, allow_flag) or re.findall(r"GLOBAL (\S+) was not an allowed", str(error))
        unsafe = [name for name in unsafe if re.fullmatch(r"[\w.]+", name)]  # the file's author wrote these names
        if not unsafe:
            raise UsageError(f"{flag} '{path}' is no checkpoint that torch can read: {_first_line(error)}") from error
        raise UsageError(
            f"{flag} '{path}' needs {', '.join(unsafe)}, which torch's safe loader does not allow; if you trust "
            f"the file and these names, add {allow_flag} {','.join(unsafe)}"
        ) from error
    except UsageError:
        raise
    except Exception as error:  # whatever a foreign file makes the unpickler raise
        raise UsageError(f"{flag} '{path}' is no checkpoint that torch can read: {_first_line(error)}") from error
    if not isinstance(state, dict) or "model" not in state or not (state.get("cfg") or state.get("args")):
        raise UsageError(f"{flag} '{path}' is no fairseq checkpoint: it lacks 'model' and 'cfg' (or 'args')")
    for key in ("last_optimizer_state", "optimizer"):
        state.pop(key, None)
    return state


def _named_globals(names: str | None, flag: str) -> list[Any]:
    found = []
    for name in filter(None, (names or "").split(",")):
        module, _, attribute = name.strip().rpartition(".")
        try:
            found.append(getattr(importlib.import_module(module), attribute))
        except (ImportError, AttributeError, ValueError) as error:
            raise UsageError(f"{flag} '{name}' must be an importable module.name: {error}") from error
    return found


def _unsafe_globals(path: str, allow_globals: str | None, flag: str) -> list[str]:
    try:
        with torch.serialization.safe_globals(_named_globals(allow_globals, flag)):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        return []


def _is_zip(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _first_line(error: Exception) -> str:
    """What went wrong, without torch's advice to load the file unsafely."""
    reason = str(error).rsplit("WeightsUnpickler error:", 1)[-1]
    return reason.strip().split("\n")[0] or type(error).__name__


@contextmanager
def reported(path: str, flag: str = TEACHER_FLAGS[0]) -> Iterator[None]:
    """Whatever goes wrong inside becomes one line that names the checkpoint: fairseq raises anything on a strange one."""
    try:
        yield
    except (UsageError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{flag} '{path}' can't be used: {detail[:300]}") from error


def configuration(state: dict[str, Any]) -> Any:
    """The configuration that the teacher was trained with, old checkpoints upgraded as fairseq does."""
    state = dict(state)
    if not state.get("optimizer_history"):  # very old, or slimmed by its owner
        state.pop("best_loss", None)
        state["optimizer_history"] = [{"optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}]
    state.setdefault("extra_state", {"epoch": 1})
    if state.get("cfg") is not None:
        state["cfg"] = OmegaConf.create(state["cfg"], flags={"allow_objects": True})
    state = checkpoint_utils._upgrade_state_dict(state)
    cfg = convert_namespace_to_omegaconf(state["args"]) if state.get("args") is not None else state["cfg"]
    if cfg.get("task") is None or cfg.get("model") is None:
        raise ValueError("it does not say which task and model it holds")
    return cfg


# fairseq evaluates some of a model's settings as Python ("[(512, 3)] * 4", "True"). A checkpoint is untrusted, so a text
# may be a plain word or path, numbers in brackets, or JSON; nothing that could call. Names of files are never evaluated.
_PLAIN_TEXT = re.compile(r"(?:(?!\*\*)[^()\[\]{}'\"`\\;])*")
_NUMBERS = re.compile(r"(?:True|False|None|[\d\s.,()\[\]+-]|(?<!\*)\*(?!\*))*")


def refuse_expressions(cfg: Any) -> None:
    """Refuse a configuration in which fairseq would run code of the checkpoint's author."""
    for part in ("task", "model"):
        for name, value in _settings(cfg[part]):
            if value is None or isinstance(value, bool | int | float) or name.endswith(("dir", "path", "file", "data")):
                continue
            if not isinstance(value, str):  # Python evaluates bytes as it does text
                raise ValueError(f"its setting {part}.{name} holds {type(value).__name__}, which is no plain value")
            if not (_PLAIN_TEXT.fullmatch(value) or _NUMBERS.fullmatch(value) or _is_json(value)):
                raise ValueError(f"its setting {part}.{name} holds an expression, which fairseq would run: {value[:60]!r}")


def _settings(node: Any) -> Iterator[tuple[str, Any]]:
    """Every setting of a configuration, nested ones too, without resolving any reference."""
    if isinstance(node, Namespace):
        node = vars(node)
    if isinstance(node, Container):
        node = OmegaConf.to_container(node, resolve=False)
    for name, value in node.items() if isinstance(node, Mapping) else enumerate(node):
        if isinstance(value, Namespace | Mapping | Container | list | tuple):
            yield from _settings(value)
        else:
            yield str(name), value


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def check_dictionary(name: str, theirs: Dictionary, own: Dictionary) -> None:
    """Compare symbol by symbol: equal sizes with shifted symbols would train on nonsense."""
    difference = first_difference(theirs.symbols, own.symbols)
    if difference is not None:
        index, theirs_symbol, own_symbol = difference
        raise UsageError(
            f"the teacher's dictionary {name} differs from the student's at index {index}: teacher '{theirs_symbol}', "
            f"student '{own_symbol}'; binarise the student's data with the teacher's dictionaries "
            "(fairseq-preprocess --srcdict --tgtdict)"
        )


def first_difference(teacher_symbols: Sequence[str], student_symbols: Sequence[str]) -> tuple[int, str, str] | None:
    """Where two dictionaries part: ``(index, teacher's symbol, student's symbol)``, or None when they are equal.

    A dictionary that ends early counts as holding ``(nothing)`` there.
    """
    nothing = "(nothing)"
    for index in range(max(len(teacher_symbols), len(student_symbols))):
        theirs = teacher_symbols[index] if index < len(teacher_symbols) else nothing
        own = student_symbols[index] if index < len(student_symbols) else nothing
        if theirs != own:
            return index, theirs, own
    return None
