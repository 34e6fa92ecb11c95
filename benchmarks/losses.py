"""Compares the memory and time of a loss over the vocabulary computed in chunks and computed whole.

    python benchmarks/losses.py [--threads 1] [--divergences forward-kl jsd …] [--json FILE]

Both ways start from the hidden states of student and teacher, ``(N, D)``, and their output matrices,
``(V, D)``. Both end with the student's gradients. The loss is half the reference's negative log-likelihood
and half the divergence. Memory is the peak of a fresh process beyond these tensors and their gradients. Time
covers the forward and the backward pass. Each round runs both ways, and the whole way a second time, in a new
random order; a ratio compares two times of one round.
"""

import argparse
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from common import interleave, over, quartiles, table, write_json
from memory import MEGABYTE, forget_peak, held, peak
from torch import Tensor
from tqdm import tqdm

from fairseq_imitkd.losses import chunked
from fairseq_imitkd.losses.chunked import TokenValues, chunked_loss, tensor_cores
from fairseq_imitkd.losses.divergences import DIVERGENCES
from fairseq_imitkd.models.logits import ProjectedLogits, TokenLogits, chunk_size, full_precision

SETTINGS = {
    "jsd_weight": 0.1,
    "skew": 0.1,
    "annealing": 0.5,
    "logit_margin": 0.0,
    "rank_topk": 5,
    "entropy_threshold": 0.8,
}
WIDTH = 512
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
WARMUP = 2  # rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--divergences",
        nargs="+",
        choices=list(DIVERGENCES),
        default=list(DIVERGENCES),
        metavar="NAME",
        help="divergences to measure (default: all)",
    )
    parser.add_argument(
        "--positions", type=int, default=8192, help="N of the memory measurement (default: %(default)s)"
    )
    parser.add_argument(
        "--symbols", type=int, default=32000, help="V of the memory measurement (default: %(default)s)"
    )
    parser.add_argument(
        "--timed-positions", type=int, default=2048, help="N of the time measurement (default: %(default)s)"
    )
    parser.add_argument(
        "--timed-symbols", type=int, default=10000, help="V of the time measurement (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=12,
        help="rounds of the time measurement, the first two unmeasured (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=list(DTYPES),
        default="float32",
        help="dtype of hidden states and output matrices (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument(
        "--json", type=Path, default=Path("losses.json"), help="file for all figures (default: %(default)s)"
    )
    parser.add_argument("--peak-of", nargs=2, help=argparse.SUPPRESS)  # in a fresh process
    args = parser.parse_args()
    if args.rounds < WARMUP + 2:
        sys.exit(f"--rounds must be at least {WARMUP + 2}, but is {args.rounds}")
    torch.set_num_threads(args.threads)
    if args.peak_of:
        print(json.dumps(measured_peak(args, *args.peak_of)))
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    peaks: dict[str, dict[str, int]] = {name: {} for name in args.divergences}
    for name, way in tqdm(
        [(name, way) for name in args.divergences for way in ("whole", "chunks")], unit="process"
    ):
        peaks[name][way] = in_fresh_process(name, way)
    ratios, again, without = {}, {}, {}
    for name in args.divergences:
        given = (name, *tensors(args.timed_positions, args.timed_symbols, args=args))
        ways = {
            "chunks": lambda given: chunks(*given),
            "whole": lambda given: whole(*given),
            "whole again": lambda given: whole(*given),
        }
        if args.device == "cuda" and args.dtype != "float32":
            ways["chunks without TF32"] = lambda given: without_tf32(*given)
        seconds, _ = interleave(ways, [given] * args.rounds, warmup=WARMUP, device=args.device)
        ratios[name] = over(seconds["chunks"], seconds["whole"])
        again[name] = over(seconds["whole again"], seconds["whole"])
        if "chunks without TF32" in ways:
            without[name] = over(seconds["chunks without TF32"], seconds["whole"])
    header = ["divergence", "whole, MB", "chunks, MB", "time, chunks / whole", "quartiles", "whole / whole"]
    rows = []
    for name in args.divergences:
        megabytes = [f"{peaks[name][way] / MEGABYTE:,.0f}" for way in ("whole", "chunks")]
        rows.append([name, *megabytes, *quartiles(ratios[name]), quartiles(again[name])[0]])
        if without:
            rows[-1].append(quartiles(without[name])[0])
    print(table([*header, *(["chunks without TF32 / whole"] if without else [])], rows))
    print(
        f"\nmemory at N = {args.positions:,}, V = {args.symbols:,}; time at N = {args.timed_positions:,}, "
        f"V = {args.timed_symbols:,}; D = {WIDTH}, {args.dtype}; {args.threads} threads; {args.device}"
    )
    write_json(args, peaks=peaks, ratios=ratios, again=again, without_tf32=without)


def in_fresh_process(name: str, way: str) -> int:
    command = [sys.executable, *sys.argv, "--peak-of", name, way]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{name}, {way}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def measured_peak(args: argparse.Namespace, name: str, way: str) -> int:
    """Return the peak memory of one loss in bytes, beyond its inputs and their gradients."""
    small = tensors(64, args.symbols, args=args)
    (chunks if way == "chunks" else whole)(name, *small)  # torch allocates its own buffers here
    student, teacher, gold = tensors(args.positions, args.symbols, args=args)
    for tensor in (student.features, student.weight):
        tensor.grad = torch.ones_like(tensor)
    forget_peak(args.device)
    before = held(args.device)
    (chunks if way == "chunks" else whole)(name, student, teacher, gold)
    return peak(args.device) - before


def tensors(
    positions: int, symbols: int, *, args: argparse.Namespace
) -> tuple[ProjectedLogits, ProjectedLogits, Tensor]:
    """Return random student and teacher logits of the same shape, and references."""
    torch.manual_seed(1)
    made = [
        (torch.randn(rows, WIDTH, device=args.device) * scale).to(DTYPES[args.dtype])
        for rows, scale in ((positions, 1.0), (symbols, 0.05)) * 2
    ]
    student = ProjectedLogits(made[0].requires_grad_(True), made[1].requires_grad_(True))
    gold = torch.randint(symbols, (positions,), device=args.device)
    return student, ProjectedLogits(made[2], made[3]), gold


def chunks(name: str, student: ProjectedLogits, teacher: TokenLogits, gold: Tensor) -> None:
    size = chunk_size(gold.numel(), student.weight.size(0), gold.device) or chunk_size(
        2**30, student.weight.size(0), gold.device
    )
    loss, _ = chunked_loss(student, lambda logits, at: token_loss(name, logits, teacher, gold, at), size)
    loss.backward()


def without_tf32(name: str, *given: Any) -> None:
    """Compute chunks with float32 products on the units for float32."""
    with mock.patch.object(chunked, "tensor_cores", side_effect=lambda _: tensor_cores(False)):
        chunks(name, *given)


def whole(name: str, student: ProjectedLogits, teacher: TokenLogits, gold: Tensor) -> None:
    everything = slice(None)
    logits = full_precision(student.logits(everything))
    losses, _ = token_loss(name, logits, teacher, gold, everything)
    losses.sum().backward()


def token_loss(
    name: str, logits: Tensor, teacher: TokenLogits, gold: Tensor, at: slice
) -> tuple[Tensor, TokenValues]:
    divergence, target = DIVERGENCES[name], gold[at]
    given: dict[str, Any] = {
        **SETTINGS,
        "target": target,
        "is_rollout": target % 2 == 0,
        "is_hard": target % 2 == 0,
        "mixture_weight": torch.full_like(target, 0.5, dtype=torch.float32),
    }
    asked = {key: value for key, value in given.items() if key in inspect.signature(divergence).parameters}
    distance = divergence(logits, full_precision(teacher.logits(at)), **asked)
    losses = 0.5 * F.cross_entropy(logits, target, reduction="none") + 0.5 * distance
    return losses, {}


if __name__ == "__main__":
    main()
