"""Checkpoints: untrusted files, read by torch's safe loader and never evaluated, by fairseq's own commands neither."""

import functools
import importlib
import json
import os
import pickle
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.file_io import PathManager
from omegaconf import Container, OmegaConf

from fairseq_imitkd.data.files import kind_of
from fairseq_imitkd.errors import UsageError

TEACHER_FLAGS = ("--teacher-path", "--teacher-allow-globals")
UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # torch's own way to say that files are trusted


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


def check_files(paths: str | None, flag: str = TEACHER_FLAGS[0], of: str = "teacher") -> None:
    """Refuse missing or unreadable checkpoints before anything slow happens.

    Args:
        paths: joined by ``:``.
        flag: what a message calls them.
        of: whose they are.

    Raises:
        UsageError: no path was given, or one is no readable file.
    """
    if not paths:
        raise UsageError(
            f"{flag} is not given: name the {of}'s checkpoint, or several joined by ':' (an ensemble)"
        )
    for path in paths.split(os.pathsep):
        if kind_of(path, flag) != "file":
            raise UsageError(f"{flag} '{path}' is no file: give the path of a fairseq checkpoint (.pt)")
        if not os.access(path, os.R_OK):
            raise UsageError(f"{flag} '{path}' can't be read: check the file's permissions")


def read_checkpoint(
    path: str, allow_globals: str | None, flags: tuple[str, str | None] = TEACHER_FLAGS
) -> dict[str, Any]:
    """The checkpoint's configuration and weights, by torch's safe loader. The optimizer's state is never kept.

    Args:
        path: of the file.
        allow_globals: types that it may hold beside fairseq's own, ``module.name,…``.
        flags: what a message calls the two; a second of None: no flag allows other types.

    Raises:
        UsageError: it is no checkpoint, or holds types that are not allowed.
    """
    flag, _ = flags
    state = _read(path, allow_globals, flags)
    if not isinstance(state, dict) or "model" not in state or not (_has(state, "cfg") or _has(state, "args")):
        raise UsageError(f"{flag} '{path}' is no fairseq checkpoint: it lacks 'model' and 'cfg' (or 'args')")
    _check_settings(state, path, flag)
    for key in ("last_optimizer_state", "optimizer"):
        state.pop(key, None)
    return state


def _check_settings(state: Mapping[str, Any], path: str, flag: str) -> None:
    for key in ("cfg", "args"):
        if state.get(key) is not None and not isinstance(state[key], Mapping | Container | Namespace):
            raise UsageError(
                f"{flag} '{path}' is no fairseq checkpoint: its '{key}' must be settings, but is a {type(state[key]).__name__}"
            )


def _has(state: Mapping[str, Any], key: str) -> bool:
    """Whether a checkpoint holds something there. What a foreign file holds may have no truth value."""
    value = state.get(key)
    return value is not None and not (isinstance(value, Mapping | Container) and not value)


def _read(path: str, allow_globals: str | None, flags: tuple[str, str | None]) -> Any:
    """Whatever torch's safe loader finds in a file; a second flag of None: none allows other types."""
    flag, allow_flag = flags
    check_files(path, flag)
    if not os.path.getsize(path):
        raise UsageError(f"{flag} '{path}' is empty: copy it again")
    try:
        with torch.serialization.safe_globals(_named_globals(allow_globals, allow_flag)):
            # Memory-mapped: the optimizer's state, twice the model's size, is then not even read.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        blocked = re.findall(r"GLOBAL ([\w.]+) whose module \S+ is blocked", str(error))
        if blocked:
            raise UsageError(
                f"{flag} '{path}' holds {', '.join(blocked)}, which torch's safe loader never allows: don't use it"
            ) from error
        unsafe = _unsafe_globals(path, allow_globals, allow_flag) or re.findall(
            r"GLOBAL (\S+) was not an allowed", str(error)
        )
        unsafe = [
            name for name in unsafe if re.fullmatch(r"[\w.]+", name)
        ]  # the file's author wrote these names
        if not unsafe:
            raise UsageError(_damaged(path, flag, error)) from error
        remedy = f"add {allow_flag} {','.join(unsafe)}" if allow_flag else f"set {UNSAFE}=1"
        raise UsageError(
            f"{flag} '{path}' needs {', '.join(unsafe)}, which torch's safe loader does not allow; if you trust "
            f"the file and these names, {remedy}"
        ) from error
    except UsageError:
        raise
    except Exception as error:  # whatever a foreign file makes the unpickler raise
        raise UsageError(_damaged(path, flag, error)) from error


def _named_globals(names: str | None, flag: str | None) -> list[Any]:
    found = []
    for name in filter(None, (names or "").split(",")):
        module, _, attribute = name.strip().rpartition(".")
        try:
            found.append(getattr(importlib.import_module(module), attribute))
        except (ImportError, AttributeError, ValueError) as error:
            raise UsageError(f"{flag} '{name}' must be an importable module.name: {error}") from error
    return found


def _unsafe_globals(path: str, allow_globals: str | None, flag: str | None) -> list[str]:
    try:
        with torch.serialization.safe_globals(_named_globals(allow_globals, flag)):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        return []


def _is_zip(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _damaged(path: str, flag: str, error: Exception) -> str:
    """What to say of a file, without torch's advice to load it unsafely, or how its zip library puts it."""
    reason = re.split(r"[.:;\n]", str(error).removeprefix("PytorchStreamReader "))[0].strip()[:80]
    # Of anything but a zip file the unpickler tells no more than the code of a letter.
    told = f" ({reason})" if reason and _is_zip(path) else ""
    return f"{flag} '{path}' is damaged or no checkpoint{told}: copy it again, or give another"


@contextmanager
def reported(path: str, flag: str = TEACHER_FLAGS[0]) -> Iterator[None]:
    """Whatever goes wrong inside becomes one line that names the checkpoint: fairseq raises anything on a strange one."""
    try:
        yield
    except (UsageError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        detail = f"it lacks {detail}" if isinstance(error, KeyError) else detail
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
_FILES = (
    "dir",
    "path",
    "file",
    "data",
    "finetune_from_model",
    "teacher_cache",
)  # endings of settings that name some
_NUMBERS = re.compile(r"(?:True|False|None|[\d\s.,()\[\]+-]|(?<!\*)\*(?!\*))*")


def refuse_expressions(cfg: Any, parts: Sequence[str] = ("task", "model")) -> None:
    """Refuse a configuration in which fairseq would run code of the checkpoint's author.

    Args:
        cfg: of a checkpoint.
        parts: of it that are used.
    """
    for part in parts:
        for name, value in _settings(cfg[part]):
            if value is None or isinstance(value, bool | int | float) or name.endswith(_FILES):
                continue
            if not isinstance(value, str):  # Python evaluates bytes as it does text
                raise ValueError(
                    f"its setting {part}.{name} holds {type(value).__name__}, which is no plain value"
                )
            if not (_PLAIN_TEXT.fullmatch(value) or _NUMBERS.fullmatch(value) or _is_json(value)):
                raise ValueError(
                    f"its setting {part}.{name} holds an expression, which fairseq would run: {value[:60]!r}"
                )


def all_are_trusted() -> bool:
    """Whether torch was told, in its own words, that no file holds anything harmful."""
    return os.environ.get(UNSAFE, "0").lower() in ("1", "y", "yes", "true")


def guard_fairseq() -> None:
    """Let fairseq's own commands build no model of a checkpoint that would run code. Process-wide.

    ``fairseq-generate`` and all others read checkpoints by one function. Whoever tells torch that files are trusted is not
    kept from anything: such a file may hold any code.
    """
    load = checkpoint_utils.load_checkpoint_to_cpu

    @functools.wraps(load)
    def guarded(path: str, arg_overrides: Any = None, load_on_all_ranks: bool | None = None) -> Any:
        local = str(PathManager.get_local_path(path))
        if not all_are_trusted():
            # Only a trainer says which ranks load: it fills the model that the command line describes, and builds none.
            _refuse_unsafe(local, builds=load_on_all_ranks is None)
        with reported(local, "checkpoint"):
            return load(path, arg_overrides, bool(load_on_all_ranks))

    checkpoint_utils.load_checkpoint_to_cpu = guarded


def _refuse_unsafe(path: str, builds: bool) -> None:
    """Before fairseq reads a checkpoint, and its user's changes come over what is in it."""
    state = _read(path, None, ("checkpoint", None))
    if not isinstance(state, dict) or "model" not in state:
        raise UsageError(f"checkpoint '{path}' is no fairseq checkpoint: it lacks 'model'")
    _check_settings(state, path, "checkpoint")
    if not builds or (state.get("cfg") is None and state.get("args") is None):
        return
    with reported(path, "checkpoint"):
        cfg = configuration(state)
        try:
            refuse_expressions(
                cfg, [part for part in ("task", "model", "criterion") if cfg.get(part) is not None]
            )
        except ValueError as error:
            raise ValueError(f"{error}; if you trust the file, set {UNSAFE}=1") from error


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


def first_difference(
    teacher_symbols: Sequence[str], student_symbols: Sequence[str]
) -> tuple[int, str, str] | None:
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
