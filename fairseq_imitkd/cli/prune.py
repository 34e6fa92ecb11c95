"""``imitkd-prune``: how many of a checkpoint's parameters are not zero; a pruned checkpoint; a compact file of one."""

import argparse
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq_imitkd.checkpoints.compact import packed_state, read
from fairseq_imitkd.cli.arguments import Parser
from fairseq_imitkd.data.files import partial
from fairseq_imitkd.errors import UsageError, interruptible
from fairseq_imitkd.models.pruning import SCOPES, Weight, check_sparsity, prune, weights_of_checkpoint

# What fairseq's models keep beside their parameters.
_BUFFER = re.compile(r"(.*\.)?(version|_float_tensor)")


@interruptible()
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


def _parser() -> Parser:
    parser = Parser(
        "imitkd-prune",
        "Without --out: count a checkpoint's parameters. With it: prune them, store them compactly, or undo that.",
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="file of fairseq, or what --sparse has made of one"
    )
    parser.add_argument(
        "--sparsity", type=float, help="make this share of the weights zero, the smallest ones"
    )
    parser.add_argument(
        "--scope", choices=SCOPES, help="the smallest of all weights (global, the default) or of each matrix"
    )
    parser.add_argument("--out", metavar="FILE", help="the new checkpoint, without the optimizer's state")
    parser.add_argument(
        "--sparse", action="store_true", help="store only what is not zero; fairseq can't read that file"
    )
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
        for flag, given in (
            (f"--sparsity {args.sparsity}", args.sparsity is not None),
            ("--sparse", args.sparse),
        ):
            if given:
                raise UsageError(f"{flag} needs --out: say where the new checkpoint shall be")
    elif os.path.lexists(args.out):
        raise UsageError(f"--out '{args.out}' is there already: give another name, or delete it first")
    elif not os.path.basename(args.out):
        raise UsageError(f"--out '{args.out}' names no file: give the name of the new checkpoint")
    elif not os.path.isdir(Path(args.out).parent):  # Path.is_dir raises where it may not look
        raise UsageError(f"--out '{args.out}' can't be written: its folder is not there; make it first")


def _pruned(weights: Mapping[str, Weight], sparsity: float, scope: str) -> dict[str, Weight]:
    masks = prune(weights, sparsity, scope)
    if all(int(mask.sum()) == int(weights[name].zeros().sum()) for name, mask in masks.items()):
        raise UsageError(
            f"--sparsity {sparsity} changes nothing: as many weights are zero already; give a larger share"
        )
    return {
        name: Weight(item.values.masked_fill(masks[name], 0.0), item.padding)
        for name, item in weights.items()
    }


def report(model: Mapping[str, Tensor], weights: Mapping[str, Weight], others: Mapping[str, str]) -> str:
    """What a model holds, shared weights counted once, and the share of zeros in each matrix.

    Args:
        model: its tensors by name.
        weights, others: of :func:`~fairseq_imitkd.models.pruning.weights_of_checkpoint`.
    """
    parameters = [
        value for name, value in model.items() if name not in others and not _BUFFER.fullmatch(name)
    ]
    total, nonzero = (
        sum(value.numel() for value in parameters),
        sum(int(value.count_nonzero()) for value in parameters),
    )
    zeros = {name: int(weight.zeros().sum()) for name, weight in weights.items()}
    count, width = sum(weight.count for weight in weights.values()), max(map(len, weights))
    shapes = {name: "x".join(map(str, weight.values.shape)) for name, weight in weights.items()}
    lines = [
        f"{name:<{width}}  {shapes[name]:>12}  {zeros[name] / weights[name].count:7.2%} zero"
        for name in weights
    ]
    lines.append(
        f"prunable weights: {count:,}, {sum(zeros.values()):,} of them zero ({sum(zeros.values()) / count:.2%})"
    )
    lines.append(f"parameters: {total:,}, {nonzero:,} of them not zero ({nonzero / total:.2%})")
    return "\n".join(lines)


def write(state: dict[str, Any], path: str) -> None:
    """All of the file or nothing of it.

    Raises:
        UsageError: it can't be written.
    """
    begun = partial(Path(path))
    try:
        with open(begun, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        begun.replace(path)
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"--out '{path}' can't be written ({_reason(error)}): make room, or give another file"
        ) from error
    finally:
        with suppress(OSError):  # where it could not be made, it may be impossible to look for it too
            begun.unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    """The system's, which torch hides behind an error of its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__context__
    return " ".join(str(error).split())[:300]
