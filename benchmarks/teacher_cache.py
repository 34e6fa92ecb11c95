"""Measures caches of the teacher's answers: their bytes per token, and an update's time with and without one.

    python benchmarks/teacher_cache.py DATA_BIN --student STUDENT.pt --teacher TEACHER.pt
        [--caches FOLDER] [--json FILE]

The script first writes a cache of the training data for each kind; this takes a few passes of the teacher.
With ``--caches`` the caches are kept, and a second call reuses them. Then, as in ``update_cost.py``, every
variant does one complete update on the same batch in each round, in a new random order, at a learning rate of
0. A ratio is a variant's time divided by that of ``word_kd`` with the live teacher in the same round. The
latter runs twice, so the row ``live (again)`` shows the noise. The live teacher is also measured with only
its 8 or 64 most probable tokens, as in the caches of that size.
"""

import argparse
import functools
import statistics
import tempfile
from pathlib import Path

import torch
from common import (
    TEACHER,
    argument_parser,
    check_arguments,
    conditions,
    configured,
    first_batches,
    interleave,
    load_model,
    over,
    quartiles,
    table,
    update,
    write_json,
)
from fairseq.trainer import Trainer

from fairseq_imitkd.teacher.cache.writer import CacheRequest, write_cache

# name -> --keep, --dtype
CACHES = {"topk:8": ("topk:8", "fp16"), "topk:64": ("topk:64", "fp16")} | {
    f"hidden, {dtype}": ("hidden", dtype) for dtype in ("fp16", "fp32")
}
BASE = "live"


def best(count: int) -> list[str]:
    return ["--teacher-topk", str(count), "--teacher-tail", "bucket"]


# name -> cache (None: the live teacher), flags
VARIANTS: dict[str, tuple[str | None, list[str]]] = {
    BASE: (None, []),
    "live (again)": (None, []),
    "hidden, fp16": ("hidden, fp16", []),
    "hidden, fp32": ("hidden, fp32", []),
    "live, best 8": (None, best(8)),
    "topk:8": ("topk:8", best(8)),
    "live, best 64": (None, best(64)),
    "topk:64": ("topk:64", best(64)),
}


def main() -> None:
    parser = argument_parser(__doc__, "teacher_cache.json", max_tokens=2048)
    parser.add_argument("--teacher", type=Path, default=TEACHER, help="default: %(default)s")
    parser.add_argument(
        "--caches", type=Path, help="folder to keep the caches in (default: they are deleted)"
    )
    parser.add_argument(
        "--rounds", type=int, default=20, help="measured rounds, one batch each (default: %(default)s)"
    )
    parser.add_argument(
        "--warmup", type=int, default=2, help="unmeasured rounds at the start (default: %(default)s)"
    )
    args = parser.parse_args()
    check_arguments(args, rounds=2, warmup=0)

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        measure(args, args.caches or Path(temporary))


def measure(args: argparse.Namespace, folder: Path) -> None:
    manifests = {name: cache(args, folder, *CACHES[name]) for name in CACHES}
    print(
        table(
            ["cache", "bytes per token", "MB for this data"],
            [size(name, manifest) for name, manifest in manifests.items()],
        )
    )

    trainers = {name: trainer(args, folder, cached, flags) for name, (cached, flags) in VARIANTS.items()}
    batches = first_batches(trainers[BASE], args.warmup + args.rounds)
    updates = {name: functools.partial(update, own) for name, own in trainers.items()}
    seconds, _ = interleave(updates, batches, warmup=args.warmup, device=args.device)
    ratios = {name: over(times, seconds[BASE]) for name, times in seconds.items()}

    rows = [[name, *quartiles(ratios[name]), f"{statistics.median(seconds[name]):.3f}"] for name in VARIANTS]
    print("\n" + table(["word_kd update", "x live (median)", "quartiles", "seconds (median)"], rows))
    print(f"\n{args.rounds} rounds of up to {args.max_tokens} tokens; {conditions(args)}")
    write_json(args, caches=manifests, seconds=seconds, ratios=ratios)


def place_of(folder: Path, keep: str, dtype: str) -> Path:
    return folder / f"{keep.replace(':', '')}-{dtype}"


def cache(args: argparse.Namespace, folder: Path, keep: str, dtype: str) -> dict:
    """Return a cache's manifest; write the cache if it does not exist."""
    out = place_of(folder, keep, dtype)
    return write_cache(
        CacheRequest(str(args.data), str(args.teacher), str(out), keep, dtype=dtype, device=args.device)
    )


def size(name: str, manifest: dict) -> list[str]:
    """Return a row of the table of sizes. A cache of hidden states also holds the output projection once."""
    columns = manifest["width"] + ("bias" in manifest["projection"])  # 0 without hidden states
    once = 4 * manifest["symbols"] * columns
    everything = manifest["tokens"] * manifest["bytes_a_token"] + once
    return [name, str(manifest["bytes_a_token"]), f"{everything / 2**20:,.1f}"]


def trainer(args: argparse.Namespace, folder: Path, cached: str | None, flags: list[str]) -> Trainer:
    """Build fairseq's trainer around a fresh copy of the student, with the live teacher or a cache."""
    source = ["--teacher-path", str(args.teacher)]
    if cached is not None:
        source = ["--teacher-cache", str(place_of(folder, *CACHES[cached]))]
    cfg, task = configured(args, ["--criterion", "word_kd", *source, *flags])
    return Trainer(cfg, task, load_model(args.student, task), task.build_criterion(cfg.criterion))


if __name__ == "__main__":
    main()
