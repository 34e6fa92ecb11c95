"""``imitkd-prune``: count a checkpoint's parameters that are not zero, prune it, or store it compactly."""

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq_imitkd.checkpoints.compact import is_compact, packed_state, read
from fairseq_imitkd.cli.arguments import Parser
from fairseq_imitkd.data.files import atomic_files, remedy_to_write
from fairseq_imitkd.errors import UsageError, in_one_line, one_line_errors
from fairseq_imitkd.models.pruning import SCOPES, Weight, check_sparsity, prune, weights_of_checkpoint

# Buffers that fairseq's models keep besides their parameters.
_BUFFER = re.compile(r"(.*\.)?(version|_float_tensor|running_mean|running_var|num_batches_tracked)")


@one_line_errors()
def main() -> None:
    """Run the command."""
    args = parser().parse_args()
    _check(args)
    if args.out is not None and args.sparsity is None and not args.sparse:
        _check_unpacks(args)
    state = read(args.checkpoint, args.allow_globals)
    weights, others = weights_of_checkpoint(state["model"])
    if not weights:
        raise UsageError(f"CHECKPOINT '{args.checkpoint}' holds no weight matrix; use a model's checkpoint")
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


def parser() -> Parser:
    """Return the parser."""
    made = Parser(
        "imitkd-prune",
        "Without --out: count a checkpoint's parameters. With --out: prune it, store it compactly, or undo "
        "that.",
    )
    made.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="checkpoint of fairseq, or a file that --sparse has made"
    )
    made.add_argument(
        "--sparsity", type=float, help="set this share of the weights to zero, the smallest ones"
    )
    made.add_argument(
        "--scope", choices=SCOPES, help="compare all weights (global, the default) or those of each matrix"
    )
    made.add_argument("--out", metavar="FILE", help="new checkpoint, without the optimizer's state")
    made.add_argument(
        "--sparse",
        action="store_true",
        help="store only weights that are not zero; fairseq can't read this file",
    )
    made.add_argument(
        "--allow-globals",
        metavar="NAMES",
        help="types that CHECKPOINT may hold besides fairseq's own: module.name,… (trusted files only)",
    )
    return made


def _check(args: argparse.Namespace) -> None:
    if args.sparsity is not None:
        check_sparsity("--sparsity", args.sparsity)
    elif args.scope is not None:
        raise UsageError(
            f"--scope {args.scope} changes nothing without --sparsity; add the share of weights to set to "
            "zero"
        )
    if args.out is None:
        for flag, given in (
            (f"--sparsity {args.sparsity}", args.sparsity is not None),
            ("--sparse", args.sparse),
        ):
            if given:
                raise UsageError(f"{flag} needs --out; add the path of the new checkpoint")
    elif os.path.lexists(args.out):
        raise UsageError(f"--out '{args.out}' exists already; use another name, or delete it first")
    elif not os.path.basename(args.out):
        raise UsageError(f"--out '{args.out}' is not the name of a file; use the name of the new checkpoint")
    elif not os.path.isdir(Path(args.out).parent):  # Path.is_dir raises where it may not look
        raise UsageError(f"--out '{args.out}' can't be written: its folder is missing; make it first")


def _check_unpacks(args: argparse.Namespace) -> None:
    """Refuse to copy a checkpoint that is neither pruned nor compact."""
    if not is_compact(args.checkpoint, args.allow_globals):
        raise UsageError(
            f"--out '{args.out}' would hold the same weights as CHECKPOINT, because nothing is pruned: add "
            "--sparsity, or --sparse to store it compactly"
        )


def _pruned(weights: Mapping[str, Weight], sparsity: float, scope: str) -> dict[str, Weight]:
    masks = prune(weights, sparsity, scope=scope)
    if all(int(mask.sum()) == int(weights[name].zeros().sum()) for name, mask in masks.items()):
        raise UsageError(
            f"--sparsity {sparsity} changes nothing: as many weights are zero already; use a larger share"
        )
    return {
        name: Weight(item.values.masked_fill(masks[name], 0.0), item.padding)
        for name, item in weights.items()
    }


def report(model: Mapping[str, Tensor], weights: Mapping[str, Weight], others: Mapping[str, str]) -> str:
    """Return the number of a model's parameters, and the share of zeros in each matrix.

    Shared weights are counted once.

    Args:
        model: tensors by name.
        weights, others: results of :func:`~fairseq_imitkd.models.pruning.weights_of_checkpoint`.
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
        f"prunable weights: {count:,}, {sum(zeros.values()):,} of them zero "
        f"({sum(zeros.values()) / count:.2%})"
    )
    lines.append(f"parameters: {total:,}, {nonzero:,} of them not zero ({nonzero / total:.2%})")
    return "\n".join(lines)


def write(state: dict[str, Any], path: str) -> None:
    """Write a checkpoint atomically.

    Raises:
        UsageError: the file can't be written.
    """
    try:
        with atomic_files(Path(path)) as [file]:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"--out '{path}' can't be written ({_reason(error)}); "
            f"{remedy_to_write(_cause(error), 'another file')}"
        ) from error


def _reason(error: BaseException) -> str:
    cause = _cause(error)
    return cause.strerror if isinstance(cause, OSError) and cause.strerror else in_one_line(error)


def _cause(error: BaseException) -> BaseException:
    """Return the system's error, which torch hides behind one of its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause
        cause = cause.__context__
    return error
