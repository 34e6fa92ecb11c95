"""What an update costs beside a plain cross-entropy update: ratios of interleaved pairs, in one process, on the same batches.

    python benchmarks/update_cost.py DATA_BIN --student STUDENT.pt --teacher TEACHER.pt [--json FILE]

Each round takes one batch and lets every variant do one whole update on it (forward, backward, clipping, Adam), in an
order drawn anew; a variant's ratio is its time over the cross-entropy update's of the same round. Cross-entropy runs
twice a round, so the row ``cross_entropy (again)`` shows what the machine's noise alone does. The learning rate is 0:
the work of an update without moving the weights, so that every round measures the same student. Use a *trained*
student: one that never ends a sentence decodes to the length cap.
"""

import argparse
import json
import platform
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils, options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq.trainer import Trainer
from tqdm import tqdm

import fairseq_imitkd
from fairseq_imitkd.__main__ import versions

BASE = "cross_entropy"
VARIANTS: dict[str, list[str]] = {
    BASE: ["--criterion", "cross_entropy"],
    "cross_entropy (again)": ["--criterion", "cross_entropy"],
    "word_kd": ["--criterion", "word_kd"],
    "imitkd, share 0": ["--criterion", "imitkd", "--student-share", "constant:0"],
    "imitkd, share 0.5": ["--criterion", "imitkd", "--student-share", "constant:0.5"],
    "imitkd, share 1": ["--criterion", "imitkd", "--student-share", "constant:1"],
}
RECIPE = Path(__file__).resolve().parent.parent / "examples" / "multi30k" / "run"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "data", nargs="?", type=Path, default=RECIPE / "data-bin", help="fairseq data folder (default: %(default)s)"
    )
    parser.add_argument("--student", type=Path, default=RECIPE / "scratch" / "checkpoint_best.pt", help="default: %(default)s")
    parser.add_argument("--teacher", type=Path, default=RECIPE / "teacher" / "checkpoint_best.pt", help="default: %(default)s")
    parser.add_argument("--max-tokens", type=int, default=2048, help="tokens a batch")
    parser.add_argument("--rounds", type=int, default=20, help="measured rounds, one batch each")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before, not measured")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, default=Path("update_cost.json"), help="all times (default: %(default)s)")
    args = parser.parse_args()
    if args.rounds < 2:
        sys.exit(f"--rounds must be at least 2, but is {args.rounds}")
    for name, path in (("DATA_BIN", args.data), ("--student", args.student), ("--teacher", args.teacher)):
        if not path.exists():
            sys.exit(f"{name} {path} does not exist: give one, or run examples/multi30k/run.sh first")

    torch.set_num_threads(args.threads)
    trainers = {name: build_trainer(args, flags) for name, flags in VARIANTS.items()}
    batches = first_batches(trainers[BASE], args.warmup + args.rounds)
    seconds = measure(trainers, batches, args.warmup, args.device)
    ratios = {name: [t / base for t, base in zip(times, seconds[BASE], strict=True)] for name, times in seconds.items()}

    print(table(seconds, ratios))
    conditions = f"{args.threads} threads; {args.device}; {platform.machine()}"
    print(f"\n{args.rounds} rounds of up to {args.max_tokens} tokens; {conditions}")
    settings = {key: str(value) for key, value in vars(args).items()}
    result = {"settings": settings, "versions": versions().splitlines(), "seconds": seconds, "ratios": ratios}
    args.json.write_text(json.dumps(result, indent=1) + "\n")


def build_trainer(args: argparse.Namespace, flags: list[str]) -> Trainer:
    """fairseq's own trainer around a fresh copy of the student."""
    parser = options.get_training_parser()
    command = [
        str(args.data), "--user-dir", str(Path(fairseq_imitkd.__file__).parent), "--task", "translation_with_teacher",
        "--teacher-path", str(args.teacher), "--arch", "transformer", "--optimizer", "adam", "--lr", "0", "--clip-norm", "1",
        "--max-tokens", str(args.max_tokens), *(["--cpu"] if args.device == "cpu" else []), *flags,
    ]  # fmt: skip
    cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, input_args=command))
    task = tasks.setup_task(cfg.task)
    [student], _, _ = checkpoint_utils.load_model_ensemble_and_task([str(args.student)], task=task)
    return Trainer(cfg, task, student, task.build_criterion(cfg.criterion))


def first_batches(trainer: Trainer, count: int) -> list[dict[str, Any]]:
    """The first training batches in fairseq's own shuffled order."""
    iterator = trainer.get_train_iterator(epoch=1, load_dataset=True).next_epoch_itr(shuffle=True)
    return [next(iterator) for _ in range(count)]


def measure(trainers: dict[str, Trainer], batches: list[dict[str, Any]], warmup: int, device: str) -> dict[str, list[float]]:
    """Seconds of each variant's update in each measured round."""
    names = list(trainers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn, batch in enumerate(tqdm(batches, unit="round", mininterval=2.0)):
        for name in random.Random(turn).sample(names, len(names)):
            with metrics.aggregate(new_root=True):
                _wait(device)
                begun = time.perf_counter()
                trainers[name].train_step([batch])
                _wait(device)
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def table(seconds: dict[str, list[float]], ratios: dict[str, list[float]]) -> str:
    """Markdown: the median ratio with its quartiles, and the median time for orientation."""
    rows = ["| update | x cross-entropy (median) | quartiles | seconds (median) |", "|---|--:|--:|--:|"]
    for name, values in ratios.items():
        low, middle, high = statistics.quantiles(values, n=4)
        rows.append(f"| {name} | {middle:.2f} | {low:.2f} to {high:.2f} | {statistics.median(seconds[name]):.3f} |")
    return "\n".join(rows)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
