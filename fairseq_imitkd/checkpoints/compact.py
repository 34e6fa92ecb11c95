"""Compact checkpoints of ``imitkd-prune --sparse``, which store only a matrix's non-zero values."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq_imitkd.checkpoints.bounds import check_tensor
from fairseq_imitkd.checkpoints.safe_load import read_checkpoint
from fairseq_imitkd.errors import UsageError, as_usage_error
from fairseq_imitkd.models.pruning import is_prunable

SPARSE = "imitkd_sparse"  # key that marks a compact checkpoint; its value is the number of the format
FORMAT = 1
_FLAGS = ("CHECKPOINT", "--allow-globals")
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# Types for which torch has every operation of this module on a CPU.
_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_DTYPES |= {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def is_compact(path: str, allow_globals: str | None = None) -> bool:
    """Return whether a checkpoint is compact. The arguments and errors are those of :func:`read`."""
    return SPARSE in read_checkpoint(path, allow_globals, _FLAGS)


def read(path: str, allow_globals: str | None = None) -> dict[str, Any]:
    """Read a checkpoint without its optimizer's state. A compact one is unpacked.

    Args:
        path: checkpoint file.
        allow_globals: types that the file may hold beside fairseq's own, ``module.name,…``.

    Raises:
        UsageError: the file can't be read, holds types that are not allowed, or is damaged.
    """
    state = read_checkpoint(path, allow_globals, _FLAGS)
    form = state.pop(SPARSE, FORMAT)
    if isinstance(form, int) and form != FORMAT:
        raise UsageError(
            f"CHECKPOINT '{path}' is of the compact format {form}, not {FORMAT}; use the release that wrote "
            "it"
        )
    errors = (ValueError, TypeError, AttributeError, OverflowError, RuntimeError)
    with as_usage_error(
        f"CHECKPOINT '{path}' holds a model that is damaged", "use another copy", catch=errors
    ):
        if not isinstance(form, int):
            raise ValueError(f"the number of its compact format is a {type(form).__name__}")
        state["model"] = _unpacked_model(state["model"])
    return state


def packed_state(state: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint with its matrices packed. A matrix with several names is packed once."""
    small = {id(value): packed(value) for value in state["model"].values()}
    return {
        **state,
        "model": {name: small[id(value)] for name, value in state["model"].items()},
        SPARSE: FORMAT,
    }


def packed(values: Tensor) -> Tensor | dict[str, Any]:
    """Pack a matrix: a mask with one bit for each value, and the values that are not zero.

    A value counts as zero if all its bits are zero, so a negative zero is kept.

    Returns:
        the packed matrix, or ``values`` itself if packing does not make it smaller.
    """
    if not (values.is_floating_point() and is_prunable(values.shape)):
        return values
    flat = values.contiguous().flatten()
    nonzero = flat.view(_BITS[flat.element_size()]) != 0
    mask, kept = torch.from_numpy(np.packbits(nonzero.numpy())), flat[nonzero]
    if mask.nbytes + kept.nbytes >= values.nbytes:
        return values
    return {"shape": list(values.shape), "nonzero": mask, "values": kept}


def unpacked(item: Tensor | dict[str, Any]) -> Tensor:
    """Return the tensor that :func:`packed` was given, bit for bit.

    Raises:
        ValueError: ``item`` is not a plain tensor, or its parts do not fit together.
    """
    if not isinstance(item, dict):
        return _checked_tensor(item)
    if missing := [part for part in ("shape", "nonzero", "values") if part not in item]:
        raise ValueError(f"a matrix without its {' and '.join(missing)}")
    shape, bits, values = item["shape"], _checked_tensor(item["nonzero"]), _checked_tensor(item["values"])
    count = int(np.prod(shape, dtype=object))
    nonzero = torch.from_numpy(np.unpackbits(bits.numpy())).bool()
    if not count <= nonzero.numel() < count + 8 or int(nonzero.sum()) != values.numel():
        raise ValueError(
            f"a matrix of shape {shape} with {bits.numel()} bytes of mask and {values.numel()} values"
        )
    matrix = values.new_zeros(count)
    matrix[nonzero[:count]] = values
    return matrix.view(shape)


def _unpacked_model(model: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return a file's model with its matrices unpacked. A matrix with several names is unpacked once."""
    unpacked_items: dict[int, Tensor] = {}
    for name, item in model.items():
        if not (isinstance(name, str) and name.isprintable()):  # names are printed
            raise ValueError(f"{name!r:.60} is not a parameter's name")
        if id(item) not in unpacked_items:
            unpacked_items[id(item)] = unpacked(item)
    return {name: unpacked_items[id(item)] for name, item in model.items()}


def _checked_tensor(value: Any) -> Tensor:
    """Return ``value`` if it is a plain dense CPU tensor that fits its storage.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"a {type(value).__name__} in place of a tensor")
    check_tensor(value)
    if value.dtype not in _DTYPES:
        raise ValueError(f"a tensor of {value.dtype}, which a fairseq model does not have")
    return value
