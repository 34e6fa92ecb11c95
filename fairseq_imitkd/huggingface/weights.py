"""Reads a model's weights, which are untrusted files, from safetensors or with torch's safe loader."""

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from fairseq_imitkd.checkpoints.safe_load import read_untrusted
from fairseq_imitkd.errors import UsageError, as_usage_error
from fairseq_imitkd.huggingface.folder import ModelFolder

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
# Files of other frameworks and of parts of models.
_FOREIGN = {
    "tf_model.h5": "weights of TensorFlow",
    "flax_model.msgpack": "weights of Flax",
    "adapter_model.safetensors": "an adapter of another model; merge it first (merge_and_unload of peft)",
    "adapter_model.bin": "an adapter of another model; merge it first (merge_and_unload of peft)",
}


def read_weights(folder: ModelFolder) -> dict[str, Tensor]:
    """Return a model's weights by name, in float32.

    Args:
        folder: the model's folder.

    Raises:
        UsageError: no file holds weights, a file or a part is missing, damaged or unsafe, or the weights are
            quantised.
    """
    weights: dict[str, Any] = {}
    for path in weight_files(folder):
        part = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
        if both := sorted(part.keys() & weights.keys()):
            raise UsageError(f"'{path}' holds {both[0]:.80}, as another part does; copy the model again")
        weights |= part
    for name in (SAFE, PICKLED):
        if folder.file(name):
            break
        if index := _index(folder, name):
            for missing in sorted(index.keys() - weights.keys()):
                raise UsageError(
                    f"{folder.name} lacks the weight {missing:.80} of its index; copy the model again"
                )
            break
    return {name: _float32(name, value, folder) for name, value in weights.items()}


def weight_files(folder: ModelFolder) -> list[Path]:
    """Return the files that hold a model's weights.

    Raises:
        UsageError: there are none, or one is missing.
    """
    for name in (SAFE, PICKLED):
        path = folder.file(name)
        if path is not None:
            return [path]
        index = _index(folder, name)
        if index:
            return _parts(folder, sorted(set(index.values())), name)
    for name, what in _FOREIGN.items():
        if folder.file(name):
            raise UsageError(f"{folder.name} holds {what}, but must hold {SAFE} or {PICKLED}")
    raise UsageError(
        f"{folder.name} has no weights: it must hold {SAFE} or {PICKLED}; download the whole model"
    )


def _index(folder: ModelFolder, name: str) -> dict[str, str]:
    """Return the file of each weight of a model in several files; empty if it has no such index."""
    content = folder.json(f"{name}.index.json")
    if content is None:
        return {}
    index = content.get("weight_map")
    if not (isinstance(index, dict) and index and all(isinstance(part, str) for part in index.values())):
        raise UsageError(f"'{folder.path / name}.index.json' must hold a weight_map; copy it again")
    return index


def _parts(folder: ModelFolder, names: list[str], index: str) -> list[Path]:
    found = []
    for name in names:
        if PurePath(name).name != name or PurePath(name).suffix not in (".safetensors", ".bin"):
            raise UsageError(
                f"'{folder.path / index}.index.json' names {name!r:.60}, which is not a part of a model"
            )
        path = folder.file(name)
        if path is None:
            raise UsageError(f"{folder.name} lacks the part {name:.80} of {len(names)}; download it again")
        found.append(path)
    return found


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file  # not needed by training

    with as_usage_error(f"'{path}' is damaged or not a file of safetensors", "copy it again"):
        return load_file(path)


def _read_pickled(path: Path) -> dict[str, Any]:
    content = read_untrusted(str(path), None, ("MODEL_DIR", None))
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise UsageError(f"'{path}' must hold weights by name; use a file that transformers has saved")
    return dict(content)


def _float32(name: str, value: Any, folder: ModelFolder) -> Tensor:
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
        raise UsageError(
            f"{folder.name} holds a {type(value).__name__} as {name:.80}, but must hold a plain tensor"
        )
    if value.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise UsageError(
            f"{folder.name} holds {name:.80} in {str(value.dtype).removeprefix('torch.')}, so it is "
            "quantised; import the model in float32 or float16"
        )
    return value.detach().float()
