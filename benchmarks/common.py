"""Shared by the benchmarks: fairseq's trainer around a student, interleaved measurement, tables and JSON."""

import argparse
import itertools
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils, options, tasks, utils
from fairseq.data.iterators import GroupedIterator
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq.models import BaseFairseqModel
from fairseq.trainer import Trainer
from tqdm import tqdm

import fairseq_imitkd
from fairseq_imitkd.__main__ import versions
from fairseq_imitkd.methods import METHODS

Batch = dict[str, Any]
PRECISIONS = ("fp32", "fp16", "bf16", "amp")
RECIPE = Path(__file__).resolve().parent.parent / "examples" / "multi30k" / "run"
STUDENT = RECIPE / "scratch" / "checkpoint_best.pt"
TEACHER = RECIPE / "teacher" / "checkpoint_best.pt"


def argument_parser(
    description: str, json_file: str, *, max_tokens: int, student: bool = True, precision: bool = False
) -> argparse.ArgumentParser:
    """Return a parser with the arguments that all benchmarks have.

    Args:
        description: the benchmark's docstring; its first line becomes the help text.
        json_file: default of ``--json``.
        max_tokens: default of ``--max-tokens``.
        student: whether to add ``--student``.
        precision: whether to add ``--precision``.
    """
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument(
        "data",
        nargs="?",
        type=Path,
        default=RECIPE / "data-bin",
        help="fairseq data folder (default: %(default)s)",
    )
    if student:
        parser.add_argument("--student", type=Path, default=STUDENT, help="default: %(default)s")
    if precision:
        parser.add_argument(
            "--precision",
            choices=PRECISIONS,
            default="fp32",
            help="precision of the student; fp16 and amp need a GPU (default: %(default)s)",
        )
    parser.add_argument(
        "--max-tokens", type=int, default=max_tokens, help="tokens per batch (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument(
        "--json", type=Path, default=Path(json_file), help="file for all figures (default: %(default)s)"
    )
    return parser


def check_arguments(args: argparse.Namespace, **least: int) -> None:
    """Check the arguments before anything slow happens; exit with a one-line message if one is wrong.

    Args:
        args: parsed arguments of :func:`argument_parser`.
        least: smallest allowed value of each further count, by argument name.
    """
    for flag, lowest in {"max_tokens": 1, "threads": 1, **least}.items():
        if getattr(args, flag) < lowest:
            sys.exit(f"--{flag.replace('_', '-')} must be at least {lowest}, but is {getattr(args, flag)}")
    for name, path in (
        ("DATA_BIN", args.data),
        *((f"--{model}", getattr(args, model)) for model in ("student", "teacher") if model in args),
    ):
        if not path.exists():
            sys.exit(
                f"{name} {path} does not exist; name an existing one, or run examples/multi30k/run.sh first"
            )
    if not list(args.data.glob("dict.*.txt")):
        sys.exit(f"DATA_BIN {args.data} holds no dict.*.txt; name a folder that fairseq-preprocess wrote")
    if not args.json.absolute().parent.is_dir():
        sys.exit(f"--json {args.json} is in a folder that does not exist; create it first")
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device is cuda, but torch sees no GPU; use --device cpu")
    if args.device == "cpu" and getattr(args, "precision", "fp32") in ("fp16", "amp"):
        sys.exit(f"--precision {args.precision} needs a GPU, but --device is cpu; use fp32 or bf16")


def configured(args: argparse.Namespace, flags: Sequence[str]) -> tuple[Any, Any]:
    """Return fairseq's configuration of a training run with these flags, and its task."""
    parser = options.get_training_parser()
    command = [
        str(args.data), "--user-dir", str(Path(fairseq_imitkd.__file__).parent),
        "--task", "translation_with_teacher", "--arch", "transformer",
        "--optimizer", "adam", "--lr", "0", "--clip-norm", "1",
        "--max-tokens", str(args.max_tokens), *(["--cpu"] if args.device == "cpu" else []), *flags,
    ]  # fmt: skip
    precision = getattr(args, "precision", "fp32")
    command += [f"--{precision}"] if precision in ("fp16", "amp") else []
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, input_args=command))
    cfg.common.bf16 = precision == "bf16"  # fairseq's own flag would ask for a TPU
    return cfg, tasks.setup_task(cfg.task)


def in_precision(model: BaseFairseqModel, args: argparse.Namespace) -> BaseFairseqModel:
    """Return a model on the device, in the precision in which a training would have it."""
    model = model.to(args.device)
    return {"fp16": model.half, "bf16": model.bfloat16}.get(args.precision, lambda: model)()


def autocast(args: argparse.Namespace) -> AbstractContextManager:
    """Return the context in which ``--amp`` computes."""
    return torch.autocast("cuda") if args.precision == "amp" else nullcontext()


def load_model(path: Path, task: Any) -> BaseFairseqModel:
    """Load a fresh copy of a checkpoint's model, of any architecture."""
    [model], _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)], task=task)
    return model


def build_trainer(args: argparse.Namespace, flags: Sequence[str]) -> Trainer:
    """Build fairseq's trainer around a fresh copy of the student."""
    teacher = ["--teacher-path", str(args.teacher), "--teacher-allow-poor"] if distils(flags) else []
    cfg, task = configured(args, [*teacher, *flags])
    return Trainer(cfg, task, load_model(args.student, task), task.build_criterion(cfg.criterion))


def distils(flags: Sequence[str]) -> bool:
    """Return whether the ``--criterion`` of these flags, the last one, is a method with a teacher."""
    named = [value for flag, value in itertools.pairwise(flags) if flag == "--criterion"]
    return bool(named) and named[-1] in METHODS


def first_batches(trainer: Trainer, count: int) -> list[Batch]:
    """Return the first training batches in fairseq's shuffled order."""
    iterator = trainer.get_train_iterator(epoch=1, load_dataset=True).next_epoch_itr(shuffle=True)
    if len(iterator) < count:
        sys.exit(
            f"{count} batches are needed, but the training data has only {len(iterator)}; "
            "use fewer rounds or a smaller --max-tokens"
        )
    return [next(iterator) for _ in range(count)]


def updates_of(trainer: Trainer, batches_per_update: int = 1) -> Iterator[list[Batch]]:
    """Yield the batches of each update of the first epoch, as fairseq's training asks for them.

    A pool of rollouts looks ahead in the trainer's own iterator, so each trainer needs its own.
    """
    epoch = trainer.get_train_iterator(epoch=1, load_dataset=True).next_epoch_itr(shuffle=True)
    count = len(epoch)
    yield from GroupedIterator(epoch, batches_per_update, skip_remainder_batch=True)
    sys.exit(f"the training data has only {count} batches; use fewer rounds or a smaller --max-tokens")


def on_device(sample: Batch, device: str) -> Batch:
    """Return the batch on the models' device."""
    return utils.move_to_cuda(sample) if device == "cuda" else sample


def update(trainer: Trainer, *batches: Batch) -> dict[str, Any]:
    """Do one complete update (forward, backward, clipping, Adam) on one or several batches.

    Returns:
        what fairseq logs.
    """
    with metrics.aggregate(new_root=True):
        return trainer.train_step(list(batches))


def interleave(
    runs: Mapping[str, Callable[[Any], Any]],
    batches: Sequence[Any],
    *,
    warmup: int,
    device: str,
    keep: Callable[[Any], Any] = lambda result: result,
) -> tuple[dict[str, list[float]], dict[str, list[Any]]]:
    """Measure several functions on the same batches, in a new random order in each round.

    Whatever slows the machine for a while then slows all of them alike.

    Args:
        runs: functions to measure, by name; each takes a batch.
        batches: one batch per round.
        warmup: number of rounds at the start that are not measured.
        device: ``cpu`` or ``cuda``; the clock waits for a GPU to finish.
        keep: function that selects what to keep of a result; its time is not measured.

    Returns:
        the seconds of each function in each measured round, and the kept results.
    """
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    kept: dict[str, list[Any]] = {name: [] for name in names}
    for turn, batch in enumerate(tqdm(batches, unit="round", mininterval=2.0)):
        for name in random.Random(turn).sample(names, len(names)):
            _wait(device)
            begun = time.perf_counter()
            result = runs[name](batch)
            _wait(device)
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - begun)
                kept[name].append(keep(result))
    return seconds, kept


def over(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """Divide each round's value by the base's value of the same round."""
    return [value / other for value, other in zip(values, base, strict=True)]


def quartiles(ratios: Sequence[float]) -> tuple[str, str]:
    """Return the median and the range from the first to the third quartile, formatted for a table."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f}", f"{low:.2f} to {high:.2f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is aligned left, the others right."""
    rule = "|" + "|".join(["---", *["--:"] * (len(header) - 1)]) + "|"
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], rule, *lines[1:]])


def conditions(args: argparse.Namespace) -> str:
    """Return the conditions of a measurement: threads, device, processor, precision."""
    device = torch.cuda.get_device_name(0) if args.device == "cuda" else args.device
    precision = getattr(args, "precision", "fp32")
    return f"{args.threads} threads; {device}; {platform.machine()}; {precision}"


def write_json(args: argparse.Namespace, **figures: Any) -> None:
    """Write the figures to ``--json``, with the settings and versions."""
    settings = {key: str(value) for key, value in vars(args).items()}
    result = {"settings": settings, "versions": versions().splitlines(), **figures}
    args.json.write_text(json.dumps(result, indent=1) + "\n")


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
