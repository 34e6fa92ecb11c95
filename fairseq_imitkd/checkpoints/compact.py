"""Checkpoints that hold only what is not zero, as ``imitkd-prune --sparse`` writes them, and their way back."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq_imitkd.checkpoints.safe_load import read_checkpoint
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.models.pruning import is_prunable

SPARSE = "imitkd_sparse"  # marks a compact file, with the number of its format
FORMAT = 1
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_DTYPES = {
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
}  # that torch can do on a CPU all that is done here
_DTYPES |= {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}


def read(path: str, allow_globals: str | None = None) -> dict[str, Any]:
    """A checkpoint without its optimizer's state, by torch's safe loader; a compact one, whole again.

    Raises:
        UsageError: the file can't be read, holds anything unsafe, or is damaged.
    """
    state = read_checkpoint(path, allow_globals, ("CHECKPOINT", "--allow-globals"))
    form = state.pop(SPARSE, FORMAT)
    if isinstance(form, int) and form != FORMAT:
        raise UsageError(
            f"CHECKPOINT '{path}' is of the compact format {form}, not {FORMAT}: use the release that wrote it"
        )
    try:
        if not isinstance(form, int):
            raise ValueError(f"the number of its compact format is a {type(form).__name__}")
        state["model"] = _whole(state["model"])
    except (ValueError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        detail = " ".join(str(error).split())[:300]
        raise UsageError(
            f"CHECKPOINT '{path}' holds a model that is damaged: {detail}; use another copy"
        ) from error
    return state


def _whole(model: Mapping[Any, Any]) -> dict[str, Tensor]:
    """What a file holds as its model, shared tensors once."""
    made: dict[int, Tensor] = {}
    for name, item in model.items():
        if not (isinstance(name, str) and name.isprintable()):  # they are printed
            raise ValueError(f"{name!r:.60} is no parameter's name")
        if id(item) not in made:
            made[id(item)] = unpacked(item)
    return {name: made[id(item)] for name, item in model.items()}


def _plain(value: Any) -> Tensor:
    """It itself, if it is a tensor such as models have: one that can be counted, and no larger than its file."""
    if not isinstance(value, Tensor):
        raise ValueError(f"a {type(value).__name__} in place of a tensor")
    strange = value.is_nested or value.is_neg() or value.layout != torch.strided or value.device.type != "cpu"
    if strange or value.dtype not in _DTYPES:
        raise ValueError(
            f"a tensor of {value.dtype} and {value.layout} on {value.device}, which no fairseq model has"
        )
    if value.nbytes > value.untyped_storage().nbytes():
        raise ValueError(f"a tensor of shape {list(value.shape)} in {value.untyped_storage().nbytes()} bytes")
    return value


def packed_state(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint with its matrices packed, shared ones once."""
    small = {id(value): packed(value) for value in state["model"].values()}
    return {
        **state,
        "model": {name: small[id(value)] for name, value in state["model"].items()},
        SPARSE: FORMAT,
    }


def packed(values: Tensor) -> Tensor | dict[str, Any]:
    """Which values of a matrix are not zero, a bit each, and those values; the tensor itself where that is not less.

    What is not zero is told by bits, so that a negative zero comes back as one.
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
    """The tensor that :func:`packed` was given, bit for bit.

    Raises:
        ValueError: it is no tensor such as models have, or the parts do not fit together.
    """
    if not isinstance(item, dict):
        return _plain(item)
    if missing := [part for part in ("shape", "nonzero", "values") if part not in item]:
        raise ValueError(f"a matrix without its {' and '.join(missing)}")
    shape, bits, values = item["shape"], _plain(item["nonzero"]), _plain(item["values"])
    count = int(np.prod(shape, dtype=object))
    nonzero = torch.from_numpy(np.unpackbits(bits.numpy())).bool()
    if not count <= nonzero.numel() < count + 8 or int(nonzero.sum()) != values.numel():
        raise ValueError(
            f"a matrix of shape {shape} with {bits.numel()} bytes of mask and {values.numel()} values"
        )
    whole = values.new_zeros(count)
    whole[nonzero[:count]] = values
    return whole.view(shape)
