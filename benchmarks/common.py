"""What the benchmarks share: fairseq's own trainer around a student, interleaved measurement, tables and JSON."""

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils, options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq.models import BaseFairseqModel
from fairseq.trainer import Trainer
from tqdm import tqdm

import fairseq_imitkd
from fairseq_imitkd.__main__ import versions

Batch = dict[str, Any]
RECIPE = Path(__file__).resolve().parent.parent / "examples" / "multi30k" / "run"
STUDENT = RECIPE / "scratch" / "checkpoint_best.pt"
TEACHER = RECIPE / "teacher" / "checkpoint_best.pt"


def argument_parser(
    description: str, json_file: str, max_tokens: int, student: bool = True
) -> argparse.ArgumentParser:
    """The arguments of every benchmark; each adds its own. One of the teacher alone has no ``--student``."""
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
    parser.add_argument(
        "--max-tokens", type=int, default=max_tokens, help="tokens a batch (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument(
        "--json", type=Path, default=Path(json_file), help="all figures (default: %(default)s)"
    )
    return parser


def check_arguments(args: argparse.Namespace, **least: int) -> None:
    """End with one line where a file is missing or a count is out of range, before anything slow happens.

    Args:
        args: of :func:`argument_parser`.
        least: the least that other counts may be, by name.
    """
    for flag, lowest in {"max_tokens": 1, "threads": 1, **least}.items():
        if getattr(args, flag) < lowest:
            sys.exit(f"--{flag.replace('_', '-')} must be at least {lowest}, but is {getattr(args, flag)}")
    for name, path in (
        ("DATA_BIN", args.data),
        *((f"--{model}", getattr(args, model)) for model in ("student", "teacher") if model in args),
    ):
        if not path.exists():
            sys.exit(f"{name} {path} does not exist: give one, or run examples/multi30k/run.sh first")
    if not list(args.data.glob("dict.*.txt")):
        sys.exit(f"DATA_BIN {args.data} holds no dict.*.txt: give a folder that fairseq-preprocess wrote")
    if not args.json.absolute().parent.is_dir():
        sys.exit(f"--json {args.json} is in no folder that exists: create it first")
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device is cuda, but torch sees no GPU: use --device cpu")


def configured(args: argparse.Namespace, flags: Sequence[str]) -> tuple[Any, Any]:
    """fairseq's configuration of a training run with these flags, and its task."""
    parser = options.get_training_parser()
    command = [
        str(args.data), "--user-dir", str(Path(fairseq_imitkd.__file__).parent), "--task", "translation_with_teacher",
        "--arch", "transformer", "--optimizer", "adam", "--lr", "0", "--clip-norm", "1",
        "--max-tokens", str(args.max_tokens), *(["--cpu"] if args.device == "cpu" else []), *flags,
    ]  # fmt: skip
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, input_args=command))
    return cfg, tasks.setup_task(cfg.task)


def load_model(path: Path, task: Any) -> BaseFairseqModel:
    """A fresh copy of a checkpoint's model, of whatever architecture it is."""
    [model], _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)], task=task)
    return model


def build_trainer(args: argparse.Namespace, flags: Sequence[str]) -> Trainer:
    """fairseq's own trainer around a fresh copy of the student."""
    cfg, task = configured(args, ["--teacher-path", str(args.teacher), *flags])
    return Trainer(cfg, task, load_model(args.student, task), task.build_criterion(cfg.criterion))


def first_batches(trainer: Trainer, count: int) -> list[Batch]:
    """The first training batches in fairseq's own shuffled order."""
    iterator = trainer.get_train_iterator(epoch=1, load_dataset=True).next_epoch_itr(shuffle=True)
    if len(iterator) < count:
        sys.exit(
            f"{count} batches are wanted, but the training data holds {len(iterator)}: ask for fewer, or smaller ones"
        )
    return [next(iterator) for _ in range(count)]


def on_device(sample: Batch, device: str) -> Batch:
    """The same batch where the models are."""
    return utils.move_to_cuda(sample) if device == "cuda" else sample


def update(trainer: Trainer, batch: Batch) -> dict[str, Any]:
    """One whole update on a batch (forward, backward, clipping, Adam); what fairseq logs of it."""
    with metrics.aggregate(new_root=True):
        return trainer.train_step([batch])


def interleave(
    runs: Mapping[str, Callable[[Any], Any]],
    batches: Sequence[Any],
    warmup: int,
    device: str,
    keep: Callable[[Any], Any] = lambda result: result,
) -> tuple[dict[str, list[float]], dict[str, list[Any]]]:
    """Let every run do each batch, in an order drawn anew, so that what slows the machine for a while slows all of them.

    Args:
        runs: what to measure, by name; each takes a batch.
        batches: one a round.
        warmup: rounds at the start that are not measured.
        device: ``cuda`` is waited for.
        keep: what to keep of what a run returns; not measured.

    Returns:
        for each run its seconds, and what was kept, in each measured round.
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
    """Each round's value over the base's of the same round."""
    return [value / other for value, other in zip(values, base, strict=True)]


def quartiles(ratios: Sequence[float]) -> tuple[str, str]:
    """The median, and the range from the first to the third quartile, as a table shows them."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f}", f"{low:.2f} to {high:.2f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, the first column to the left and the others to the right."""
    rule = "|" + "|".join(["---", *["--:"] * (len(header) - 1)]) + "|"
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], rule, *lines[1:]])


def conditions(args: argparse.Namespace) -> str:
    """What a figure was measured under."""
    return f"{args.threads} threads; {args.device}; {platform.machine()}"


def write_json(args: argparse.Namespace, **figures: Any) -> None:
    """Everything that was measured, with the settings and versions that it came from."""
    settings = {key: str(value) for key, value in vars(args).items()}
    result = {"settings": settings, "versions": versions().splitlines(), **figures}
    args.json.write_text(json.dumps(result, indent=1) + "\n")


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
