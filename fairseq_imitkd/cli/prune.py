"""``imitkd-prune``: how many of a checkpoint's parameters are not zero; a pruned checkpoint; a compact file of one."""

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq_imitkd.checkpoints import read_checkpoint
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.pruning import SCOPES, Weight, check_sparsity, is_prunable, prune, weights_of_checkpoint

SPARSE = "imitkd_sparse"  # marks a compact file, with the number of its format
FORMAT = 1
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# What fairseq's models keep beside their parameters.
_BUFFER = re.compile(r"(.*\.)?(version|_float_tensor)")


def main() -> None:
    """The command line."""
    args = _parser().parse_args()
    _check(args)
    state = read(args.checkpoint, args.allow_globals)
    weights, others = weights_of_checkpoint(state["model"])
    if not weights:
        raise UsageError(f"CHECKPOINT '{args.checkpoint}' holds no weight matrix: give that of a model")
    if args.sparsity is not None:
        weights = _pruned(weights, args.sparsity, args.scope or SCOPES[0])
    written = args.checkpoint
    if args.out is not None:
        for name in [*weights, *others]:
            state["model"][name] = weights[others.get(name, name)].values
        write(packed_state(state) if args.sparse else state, args.out)
        written = args.out
    print(report(state["model"], weights, others))
    print(f"{written}: {os.path.getsize(written) / 1e6:.2f} MB")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="imitkd-prune",
        description="Without --out: count a checkpoint's parameters. With it: prune them, store them compactly, or undo that.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="of fairseq, or what --sparse has made of one")
    parser.add_argument("--sparsity", type=float, help="make this share of the weights zero, the smallest ones")
    parser.add_argument("--scope", choices=SCOPES, help="the smallest of all weights (global, the default) or of each matrix")
    parser.add_argument("--out", metavar="FILE", help="the new checkpoint, without the optimizer's state")
    parser.add_argument("--sparse", action="store_true", help="store only what is not zero; fairseq can't read that file")
    parser.add_argument(
        "--allow-globals",
        metavar="NAMES",
        help="types that CHECKPOINT may hold beside fairseq's own: module.name,… (files you trust)",
    )
    return parser


def _check(args: argparse.Namespace) -> None:
    if args.sparsity is not None:
        check_sparsity("--sparsity", args.sparsity)
    elif args.scope is not None:
        raise UsageError(
            f"--scope {args.scope} changes nothing without --sparsity: say what share of the weights shall be zero"
        )
    if args.out is None:
        for flag, given in ((f"--sparsity {args.sparsity}", args.sparsity is not None), ("--sparse", args.sparse)):
            if given:
                raise UsageError(f"{flag} needs --out: say where the new checkpoint shall be")
    elif os.path.lexists(args.out):
        raise UsageError(f"--out '{args.out}' is there already: give another name, or delete it first")
    elif not Path(args.out).parent.is_dir():
        raise UsageError(f"--out '{args.out}' can't be written: its folder is not there; make it first")


def _pruned(weights: Mapping[str, Weight], sparsity: float, scope: str) -> dict[str, Weight]:
    masks = prune(weights, sparsity, scope)
    if all(int(mask.sum()) == int(weights[name].zeros().sum()) for name, mask in masks.items()):
        raise UsageError(f"--sparsity {sparsity} changes nothing: as many weights are zero already; give a larger share")
    return {name: Weight(item.values.masked_fill(masks[name], 0.0), item.padding) for name, item in weights.items()}


def report(model: Mapping[str, Tensor], weights: Mapping[str, Weight], others: Mapping[str, str]) -> str:
    """What a model holds, shared weights counted once, and the share of zeros in each matrix.

    Args:
        model: its tensors by name.
        weights, others: of :func:`~fairseq_imitkd.pruning.weights_of_checkpoint`.
    """
    parameters = [value for name, value in model.items() if name not in others and not _BUFFER.fullmatch(name)]
    total, nonzero = sum(value.numel() for value in parameters), sum(int(value.count_nonzero()) for value in parameters)
    zeros = {name: int(weight.zeros().sum()) for name, weight in weights.items()}
    count, width = sum(weight.count for weight in weights.values()), max(map(len, weights))
    shapes = {name: "x".join(map(str, weight.values.shape)) for name, weight in weights.items()}
    lines = [f"{name:<{width}}  {shapes[name]:>12}  {zeros[name] / weights[name].count:7.2%} zero" for name in weights]
    lines.append(f"prunable weights: {count:,}, {sum(zeros.values()):,} of them zero ({sum(zeros.values()) / count:.2%})")
    lines.append(f"parameters: {total:,}, {nonzero:,} of them not zero ({nonzero / total:.2%})")
    return "\n".join(lines)


def read(path: str, allow_globals: str | None = None) -> dict[str, Any]:
    """A checkpoint without its optimizer's state, by torch's safe loader; a compact one, whole again.

    Raises:
        UsageError: the file can't be read, holds anything unsafe, or is damaged.
    """
    state = read_checkpoint(path, allow_globals, ("CHECKPOINT", "--allow-globals"))
    form = state.pop(SPARSE, None)
    if form not in (None, FORMAT):
        raise UsageError(f"CHECKPOINT '{path}' is of the compact format {form}, not {FORMAT}: use the release that wrote it")
    try:
        whole = {id(item): unpacked(item) for item in state["model"].values()}
        state["model"] = {name: whole[id(item)] for name, item in state["model"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UsageError(f"CHECKPOINT '{path}' holds a model that is damaged: {error}") from error
    return state


def write(state: dict[str, Any], path: str) -> None:
    """All of the file or nothing of it."""
    part = f"{path}.{os.getpid()}.part"
    try:
        torch.save(state, part)
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)


def packed_state(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint with its matrices packed, shared ones once."""
    small = {id(value): packed(value) for value in state["model"].values()}
    return {**state, "model": {name: small[id(value)] for name, value in state["model"].items()}, SPARSE: FORMAT}


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
        ValueError: the parts do not fit together.
    """
    if isinstance(item, Tensor):
        return item
    shape, bits, values = item["shape"], item["nonzero"], item["values"]
    count = int(np.prod(shape, dtype=object))
    nonzero = torch.from_numpy(np.unpackbits(bits.numpy())).bool()
    if not count <= nonzero.numel() < count + 8 or int(nonzero.sum()) != values.numel():
        raise ValueError(f"a matrix of shape {shape} with {bits.numel()} bytes of mask and {values.numel()} values")
    whole = values.new_zeros(count)
    whole[nonzero[:count]] = values
    return whole.view(shape)
