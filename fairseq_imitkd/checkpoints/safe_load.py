"""Reads checkpoints, which are untrusted files, with torch's safe loader."""

import collections
import functools
import glob
import importlib
import os
import pickle
import re
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import Container

from fairseq_imitkd.checkpoints.bounds import check_content, check_settings
from fairseq_imitkd.data.files import EXPORTED, checkpoint_in, hub_download, kind_of
from fairseq_imitkd.errors import UsageError, as_usage_error
from fairseq_imitkd.quick.model_folder import is_huggingface

TEACHER_FLAGS = ("--teacher-path", "--teacher-allow-globals")
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch's format before 1.6 begins
TRUST = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # torch's environment variable for trusted files


def read_checkpoint(
    path: str, allow_globals: str | None, flags: tuple[str, str | None] = TEACHER_FLAGS
) -> dict[str, Any]:
    """Read a checkpoint's configuration and weights. The optimizer's state is dropped.

    Args:
        path: checkpoint file.
        allow_globals: types that the file may hold beside fairseq's own, ``module.name,…``.
        flags: flags for messages: of the file, and of the types; None if no flag allows types.

    Raises:
        UsageError: the file can't be read, is not a checkpoint, or holds types that are not allowed.
    """
    flag, _ = flags
    state = read_untrusted(path, allow_globals, flags)
    if isinstance(state, dict) and "model" not in state:
        _refuse_foreign(path, flag)
    if not isinstance(state, dict) or "model" not in state or not (_has(state, "cfg") or _has(state, "args")):
        raise UsageError(
            f"{flag} '{path}' is not a fairseq checkpoint: it lacks 'model' and 'cfg' (or 'args'); use "
            "another file"
        )
    check_configuration_type(state, path, flag)
    for key in ("last_optimizer_state", "optimizer"):
        state.pop(key, None)
    return state


def read_untrusted(path: str, allow_globals: str | None, flags: tuple[str, str | None]) -> Any:
    """Return the content of a file, whatever it is. The arguments are those of :func:`read_checkpoint`.

    Raises:
        UsageError: the file can't be read, is not a file of torch's, or holds types that are not allowed.
    """
    flag, allow_flag = flags
    check_readable(path, flag)
    if not os.path.getsize(path):
        raise UsageError(f"{flag} '{path}' is empty; copy it again")
    allowed = _named_globals(allow_globals, allow_flag)
    stat = os.stat(path)
    damage = _known_damage(path, (stat.st_ino, stat.st_size, stat.st_mtime_ns)) if _is_zip(path) else None
    if damage is not None:
        raise UsageError(_damaged(path, flag, ValueError(damage)))
    try:
        with torch.serialization.safe_globals(allowed), _small_constants():
            # A memory-mapped file is read only where it is used, so never the optimizer's state, twice the
            # model's size.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        raise UsageError(_explained(path, error, allowed=allowed, flags=flags)) from error
    except Exception as error:  # the unpickler raises anything on a foreign file
        raise UsageError(_damaged(path, flag, error)) from error
    with as_usage_error(f"{flag} '{path}' can't be used", "use another file"):
        for key in ("cfg", "args") if isinstance(content, dict) else ():
            check_settings(content.get(key))
        check_content(content, stat.st_size)
    return content


def find_damage(path: str | Path) -> str | None:
    """Return why a checkpoint can't be whole; None if all of its bytes are those that were written.

    The file is read once: torch stores a check sum of each part of it. torch's own loader does not compare
    them. Nor does torch compress a part, which could stand for more than fits into memory.
    """
    begins = b""
    try:
        with open(path, "rb") as file:
            begins = file.read(len(_LEGACY))
        if begins == _LEGACY:
            return None
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                return "it is compressed"
            if sum(part.file_size for part in parts) > os.path.getsize(path):
                return "its parts overlap"
            broken = archive.testzip()
    except OSError as error:
        return error.strerror or "it can't be read"
    except Exception:  # a damaged directory of the archive can raise anything
        return "it is empty" if not begins else "a part of it is missing"
    return None if broken is None else f"the check sum of its part {broken[:60]!r} is wrong"


@functools.lru_cache(maxsize=64)
def _known_damage(path: str, version: tuple[int, int, int]) -> str | None:
    """Return :func:`find_damage` of a version of a file: commands read a checkpoint several times."""
    return find_damage(path)


class _Globals(dict[str, Any]):
    """What a pickle may name. It may call only what is among the :meth:`values`."""

    def __init__(self, named: Mapping[str, Any]):
        super().__init__({name: _BOUNDED.get(name, value) for name, value in named.items()})
        self._called = [value for value in super().values() if not _is_only_named(value)]

    def values(self) -> Any:
        """Return what may be called."""
        return self._called

    def itself(self) -> "_Globals":
        """Return this: torch asks a function for it."""
        return self


def _is_only_named(value: Any) -> bool:
    """Return whether checkpoints name a type and never call it.

    A call can fill the memory: ``Tensor(10**10)`` stands for that many numbers, ``list`` of it for as many
    tensors.
    """
    return value in (list, torch.Tensor, *torch._tensor_classes, *torch._storage_classes)


@contextmanager
def _small_constants() -> Iterator[None]:
    """Let torch's safe loader call only what a checkpoint needs of functions that can fill the memory.

    torch lets pickles call ``bytearray(10**10)``, and ``encode(…, "hex")``, which doubles bytes:
    https://github.com/pytorch/pytorch/blob/v2.6.0/torch/_weights_only_unpickler.py#L149-L160
    """
    loader = torch._weights_only_unpickler
    names = ("_get_allowed_globals", "_get_user_allowed_globals")
    stock = {name: getattr(loader, name) for name in names}
    try:
        for name, function in stock.items():
            setattr(loader, name, _Globals(function()).itself)
        yield
    finally:
        for name, function in stock.items():
            setattr(loader, name, function)


def _items_of(kind: Any) -> Any:
    """Return a function that makes a container of items that the pickle itself holds."""

    def made(*arguments: Any) -> Any:
        if not all(isinstance(each, list | tuple | dict) for each in arguments):
            raise pickle.UnpicklingError(f"a {kind.__name__} of something that is not a list")
        return kind(*arguments)

    return made


def _bytes_of(*arguments: Any) -> bytearray:
    if arguments and not isinstance(arguments[0], str | bytes | list | tuple):
        raise pickle.UnpicklingError("a number of bytes in place of bytes")
    return bytearray(*arguments)


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in the encoding {str(encoding)[:20]!r}")
    return text.encode("latin1")


_BOUNDED: dict[str, Any] = {
    "builtins.bytearray": _bytes_of,
    "_codecs.encode": _encoded,
    "builtins.set": _items_of(set),
    "collections.Counter": _items_of(collections.Counter),
    "torch.Size": _items_of(torch.Size),
}


def check_readable(path: str, flag: str) -> None:
    """Refuse a checkpoint that is missing or unreadable.

    Args:
        path: checkpoint file.
        flag: flag that names it, for messages.

    Raises:
        UsageError: the path is not a file, or the file can't be read.
    """
    _refuse_exported(path, flag)
    if kind_of(path, flag) == "folder" or path.endswith(".safetensors"):
        _refuse_foreign(path, flag)
    found = checkpoint_in(path)
    if found is not None:
        raise UsageError(f"{flag} '{path}' is the folder of a training; use its checkpoint '{found}'")
    within = sorted(glob.glob(f"{glob.escape(path)}/models/*/checkpoint_best.pt"))
    if within:
        raise UsageError(
            f"{flag} '{path}' is a run of imitkd-distill; use a checkpoint such as '{within[0]}'"
        )
    if download := hub_download(path):
        raise UsageError(
            f"{flag} '{path}' is not a file; if it is a model of the hub: {download}, then imitkd-import "
            f"{Path(path).name}"
        )
    if kind_of(path, flag) != "file":
        raise UsageError(f"{flag} '{path}' is not a file; use the path of a fairseq checkpoint (.pt)")
    if not os.access(path, os.R_OK):
        raise UsageError(f"{flag} '{path}' can't be read; check the file's permissions")


def _refuse_exported(path: str, flag: str) -> None:
    """Refuse a student that imitkd-export has made: its folder, or a file in it.

    Raises:
        UsageError: its manifest is there.
    """
    for folder in (path, os.path.dirname(path), os.path.dirname(os.path.dirname(path))):
        if folder and os.path.isfile(os.path.join(folder, EXPORTED)) and not path.endswith(".pt"):
            raise UsageError(
                f"{flag} '{path}' is an exported student, which can't be used here; use the checkpoint that "
                "it was made of"
            )


def _refuse_foreign(path: str, flag: str) -> None:
    """Refuse a model of Hugging Face's format: its folder, or a file with weights.

    Raises:
        UsageError: a ``config.json`` with a type of model is there, or the file ends with ``.safetensors``.
    """
    folder = path if kind_of(path, flag) == "folder" else os.path.dirname(path) or "."
    if path.endswith(".safetensors") or is_huggingface(folder):
        remedy = f"make a checkpoint of it: imitkd-import '{folder}' --out NEW"
        if flag == "teacher":  # a recipe's key
            remedy = f"write 'teacher: {{huggingface: {folder}}}'"
        raise UsageError(f"{flag} '{path}' is a model of Hugging Face's format; {remedy}")


def check_configuration_type(state: Mapping[str, Any], path: str, flag: str) -> None:
    """Refuse a checkpoint whose configuration is something else.

    Raises:
        UsageError: the checkpoint's ``cfg`` or ``args`` does not hold settings.
    """
    for key in ("cfg", "args"):
        if state.get(key) is not None and not isinstance(state[key], Mapping | Container | Namespace):
            raise UsageError(
                f"{flag} '{path}' is not a fairseq checkpoint: its '{key}' must be settings, but is a "
                f"{type(state[key]).__name__}; use another file"
            )


@contextmanager
def reported(path: str, flag: str = TEACHER_FLAGS[0]) -> Iterator[None]:
    """Turn any error of the enclosed code into one line that names the checkpoint.

    fairseq raises anything on a strange checkpoint.

    Raises:
        UsageError: the enclosed code raised an exception.
    """
    with as_usage_error(f"{flag} '{path}' can't be used"):
        yield


def _has(state: Mapping[str, Any], key: str) -> bool:
    """Return whether a checkpoint holds a non-empty value there.

    A foreign value may have no truth value, so types decide.
    """
    value = state.get(key)
    return value is not None and not (isinstance(value, Mapping | Container) and not value)


def _named_globals(names: str | None, flag: str | None) -> list[Any]:
    found = []
    for name in filter(None, (names or "").split(",")):
        module, _, attribute = name.strip().rpartition(".")
        try:
            found.append(getattr(importlib.import_module(module), attribute))
        except (ImportError, AttributeError, ValueError) as error:
            raise UsageError(f"{flag} '{name}' must be an importable module.name: {error}") from error
    return found


def _explained(
    path: str, error: pickle.UnpicklingError, *, allowed: list[Any], flags: tuple[str, str | None]
) -> str:
    """Return why the safe loader refused a file, without torch's advice to load it unsafely."""
    flag, allow_flag = flags
    blocked = re.findall(r"GLOBAL ([\w.]+) whose module \S+ is blocked", str(error))
    if blocked:
        blocked_names = ", ".join(blocked)
        return f"{flag} '{path}' holds {blocked_names}, which torch's safe loader never allows; don't use it"
    unsafe = _unsafe_globals(path, allowed) or re.findall(r"GLOBAL (\S+) was not an allowed", str(error))
    unsafe = [name for name in unsafe if re.fullmatch(r"[\w.]+", name)]  # the file's author chose these names
    if not unsafe:
        return _damaged(path, flag, error)
    remedy = f"add {allow_flag} {','.join(unsafe)}" if allow_flag else f"set {TRUST}=1"
    return (
        f"{flag} '{path}' needs {', '.join(unsafe)}, which torch's safe loader does not allow; if you trust "
        f"the file and these names, {remedy}"
    )


def _unsafe_globals(path: str, allowed: list[Any]) -> list[str]:
    try:
        with torch.serialization.safe_globals(allowed):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        return []


def _damaged(path: str, flag: str, error: Exception) -> str:
    """Return a message for a file that the loader can't read, without torch's advice to load it unsafely."""
    reason = re.split(r"[.:;\n]", str(error).removeprefix("PytorchStreamReader "))[0].strip()[:80]
    # For files of other formats the unpickler's message is only the code of a byte.
    detail = f" ({reason})" if reason and _is_zip(path) else ""
    return f"{flag} '{path}' is damaged or not a checkpoint{detail}; copy it again, or use another"


def _is_zip(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"
