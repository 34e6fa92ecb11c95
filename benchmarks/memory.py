"""Compares the peak memory of an update with that of a cross-entropy update, and shows whether it grows.

    python benchmarks/memory.py DATA_BIN --student STUDENT.pt --teacher TEACHER.pt [--json FILE]
    python benchmarks/memory.py DATA_BIN --student STUDENT.pt --teacher TEACHER.pt --growth 1000

Every variant does the same few updates (same batches, learning rate 0) in a fresh process. The memory that
the process holds before it loads a model is subtracted. A distilling update needs the teacher, so its peak is
divided by the peak of cross-entropy *plus the bytes of the teacher's weights*. A ratio above 1 is spent on
rollouts, the teacher's logits and the divergence. Each round uses other batches. Cross-entropy runs twice per
round, so the row ``cross_entropy (again)`` shows the noise. The first update of a process, on a batch of its
own, is not measured.

On the CPU the figure is the process's resident memory in Linux's ``/proc/self/status``. Its peak can be reset
once everything is loaded, and unlike ``ru_maxrss`` it is never inherited from the parent process. On a GPU
the figure is the memory that torch has allocated. The C library returns freed blocks at once
(``MALLOC_MMAP_THRESHOLD_``). Otherwise heap fragmentation makes the same updates differ by a sixth between
processes.

``--growth N`` does N imitkd updates in one process, on the same batches over and over. It compares the memory
held after the last update with that after the hundredth.
"""

import argparse
import json
import os
import subprocess
import sys
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from common import (
    TEACHER,
    argument_parser,
    build_trainer,
    check_arguments,
    conditions,
    configured,
    load_model,
    over,
    quartiles,
    table,
    update,
    updates_of,
    write_json,
)
from tqdm import tqdm

BASE, AGAIN = "cross_entropy", "cross_entropy (again)"
VARIANTS: dict[str, list[str]] = {
    BASE: ["--criterion", "cross_entropy"],
    AGAIN: ["--criterion", "cross_entropy"],
    "word_kd": ["--criterion", "word_kd"],
    "imitkd, share 1": ["--criterion", "imitkd", "--student-share", "constant:1"],
    "imitkd_full, share 1": ["--criterion", "imitkd_full", "--student-share", "constant:1"],
}
ON_GPUS = {
    "imitkd, share 1, no CUDA graphs": [*VARIANTS["imitkd, share 1"], "--rollout-cuda-graphs", "off"],
    "imitkd, share 1, pool of 4 updates": [*VARIANTS["imitkd, share 1"], "--rollout-pool-updates", "4"],
}
TARGET = 1.25
GROWING = "imitkd, share 1"
SETTLED = 100  # updates after which memory should not grow
CYCLE = 20  # batches; memory is read once a cycle, always after the same batch
MEGABYTE = 2**20
PROCESS = Path("/proc/self")


def main() -> None:
    parser = argument_parser(__doc__, "memory.json", max_tokens=2048, precision=True)
    parser.add_argument("--teacher", type=Path, default=TEACHER, help="default: %(default)s")
    parser.add_argument(
        "--rounds", type=int, default=3, help="fresh processes for each variant (default: %(default)s)"
    )
    parser.add_argument(
        "--updates", type=int, default=8, help="updates in each process (default: %(default)s)"
    )
    parser.add_argument(
        "--growth",
        type=int,
        default=0,
        metavar="N",
        help="instead, measure memory over N updates in one process",
    )
    # The arguments of a fresh process: its variant and its first batch
    parser.add_argument("--only", choices=list(VARIANTS | ON_GPUS), help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    check_arguments(args, rounds=2, updates=1, growth=0)
    if args.growth and args.growth < 2 * SETTLED:
        sys.exit(f"--growth must be at least {2 * SETTLED} updates, but is {args.growth}")
    if args.device == "cpu" and not (PROCESS / "clear_refs").exists():
        sys.exit(
            "memory on the CPU is read from Linux's /proc, which this system lacks; "
            "use Linux or --device cuda"
        )

    torch.set_num_threads(args.threads)
    if args.only:
        print(json.dumps(memory_over_updates(args) if args.growth else peak_of_updates(args)))
    elif args.growth:
        grow(args)
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    """Measure the peak of every variant and print the table."""
    variants = VARIANTS | (ON_GPUS if args.device == "cuda" else {})
    _, task = configured(args, [])
    teacher = sum(
        weight.numel() * weight.element_size() for weight in load_model(args.teacher, task).parameters()
    )
    peaks: dict[str, list[float]] = {name: [] for name in variants}
    turns = [(number, name) for number in range(args.rounds) for name in variants]
    for number, name in tqdm(turns, unit="process"):
        peaks[name].append(in_fresh_process("--only", name, "--first", str(number * (args.updates + 1))))

    needed = {
        name: [peak + (0 if name in (BASE, AGAIN) else teacher) for peak in peaks[BASE]] for name in variants
    }
    ratios = {name: over(peaks[name], needed[name]) for name in variants}
    against = {
        name: "cross-entropy" if name in (BASE, AGAIN) else "cross-entropy + teacher" for name in variants
    }
    rows = [
        [name, f"{max(peaks[name]) / MEGABYTE:.0f}", against[name], *quartiles(ratios[name])]
        for name in variants
    ]
    print(table(["update", "highest peak, MB", "over", "ratio (median)", "quartiles"], rows))
    print(f"\nteacher's weights: {teacher / MEGABYTE:.0f} MB; target: a median of at most {TARGET}")
    print(
        f"{args.rounds} rounds of {args.updates} updates of up to {args.max_tokens} tokens; "
        f"{conditions(args)}"
    )
    write_json(args, peaks=peaks, teacher=teacher, ratios=ratios, target=TARGET)


def in_fresh_process(*arguments: str, show: bool = False) -> Any:
    """Run this script again with further arguments, in a fresh process.

    Args:
        arguments: arguments to add.
        show: whether to show the progress of the process.

    Returns:
        the JSON of its last line.
    """
    done = subprocess.run(
        [sys.executable, *sys.argv, *arguments],
        stdout=subprocess.PIPE,
        stderr=None if show else subprocess.PIPE,
        text=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    if done.returncode != 0:
        reason = (done.stderr or "see above").strip().splitlines()[-1]
        sys.exit(f"{' '.join(arguments)} failed: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_of_updates(args: argparse.Namespace) -> int:
    """Return the peak memory of the updates in bytes, beyond that held before a model was loaded."""
    configured(args, [])  # imports fairseq's plugins
    before = held(args.device)
    trainer = build_trainer(args, (VARIANTS | ON_GPUS)[args.only])
    updates = islice(updates_of(trainer), args.first, None)
    update(trainer, *next(updates))  # the first update allocates Adam's state
    forget_peak(args.device)
    for batches in islice(updates, args.updates):
        update(trainer, *batches)
    return peak(args.device) - before


def grow(args: argparse.Namespace) -> None:
    """Print by how much the memory of many updates exceeds that of the first hundred."""
    readings = in_fresh_process("--only", GROWING, show=True)
    updates = sorted(map(int, readings))
    begun, ended = (readings[str(number)] for number in (SETTLED, updates[-1]))
    rows = []
    for figure in ("held", "peak"):
        sizes = [f"{size / MEGABYTE:.1f}" for size in (begun[figure], ended[figure])]
        change = f"{(ended[figure] - begun[figure]) / MEGABYTE:+.1f}"
        rows.append([figure, *sizes, change, f"{ended[figure] / begun[figure]:.3f}"])
    print(
        table(
            ["memory, MB", f"after update {SETTLED}", f"after update {updates[-1]}", "growth", "ratio"], rows
        )
    )
    print(
        f"\n{GROWING}; the same {CYCLE} batches of up to {args.max_tokens} tokens over and over; "
        f"{conditions(args)}"
    )
    write_json(args, readings=readings)


def memory_over_updates(args: argparse.Namespace) -> dict[int, dict[str, int]]:
    """Return the bytes held, and the peak so far, after every cycle of batches."""
    trainer = build_trainer(args, VARIANTS[args.only])
    batches = [batch for [batch] in islice(updates_of(trainer), CYCLE)]
    readings = {}
    turns = tqdm(islice(cycle(batches), args.growth), total=args.growth, unit="update", mininterval=2.0)
    for number, batch in enumerate(turns, start=1):
        update(trainer, batch)
        if number % CYCLE == 0:
            readings[number] = {"held": held(args.device), "peak": peak(args.device)}
    return readings


def held(device: str) -> int:
    """Return the bytes held now."""
    return torch.cuda.memory_allocated() if device == "cuda" else _status("VmRSS")


def peak(device: str) -> int:
    """Return the most bytes held at once since :func:`forget_peak`."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def forget_peak(device: str) -> None:
    """Reset the peak."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        (PROCESS / "clear_refs").write_text("5")  # see proc(5)


def _status(name: str) -> int:
    lines = (PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
