"""Compares the time of an update with that of a plain cross-entropy update on the same batches.

    python benchmarks/update_cost.py DATA_BIN --student STUDENT.pt --teacher TEACHER.pt [--json FILE]

In each round every variant does one complete update on one batch (forward, backward, clipping, Adam), in a
new random order. A ratio is a variant's time divided by that of the cross-entropy update of the same round.
Cross-entropy runs twice per round, so the row ``cross_entropy (again)`` shows the noise. The learning rate is
0: an update does its work but leaves the weights alone, so every round measures the same student. Use a
*trained* student, because an untrained one does not end its sentences and decodes to the maximum length.

Two columns show the work beside the time, as fairseq's log does: ``padding``, the target positions computed
per token that is learnt from, and ``rollout_work``, the decoder rows computed per token written.
"""

import functools
import statistics
from pathlib import Path
from typing import Any

import torch
from common import (
    TEACHER,
    argument_parser,
    build_trainer,
    check_arguments,
    conditions,
    first_batches,
    interleave,
    over,
    quartiles,
    table,
    update,
    write_json,
)

BASE = "cross_entropy"
VARIANTS: dict[str, list[str]] = {
    BASE: ["--criterion", "cross_entropy"],
    "cross_entropy (again)": ["--criterion", "cross_entropy"],
    "word_kd": ["--criterion", "word_kd"],
    "imitkd, share 0": ["--criterion", "imitkd", "--student-share", "constant:0"],
    "imitkd, share 0.5": ["--criterion", "imitkd", "--student-share", "constant:0.5"],
    "imitkd, share 1": ["--criterion", "imitkd", "--student-share", "constant:1"],
}
ON_GPUS = {"imitkd, share 1, no CUDA graphs": [*VARIANTS["imitkd, share 1"], "--rollout-cuda-graphs", "off"]}


def main() -> None:
    parser = argument_parser(__doc__, "update_cost.json", max_tokens=2048)
    parser.add_argument("--teacher", type=Path, default=TEACHER, help="default: %(default)s")
    parser.add_argument(
        "--rounds", type=int, default=20, help="measured rounds, one batch each (default: %(default)s)"
    )
    parser.add_argument(
        "--warmup", type=int, default=2, help="unmeasured rounds at the start (default: %(default)s)"
    )
    args = parser.parse_args()
    check_arguments(args, rounds=2, warmup=0)

    torch.set_num_threads(args.threads)
    variants = VARIANTS | (ON_GPUS if args.device == "cuda" else {})
    trainers = {name: build_trainer(args, flags) for name, flags in variants.items()}
    batches = first_batches(trainers[BASE], args.warmup + args.rounds)
    updates = {name: functools.partial(update, trainer) for name, trainer in trainers.items()}
    # A CUDA graph is captured when a size is met for the second time. That is not part of an update's work.
    for name in variants if args.device == "cuda" else ():
        for batch in batches * 2:
            updates[name](batch)
    seconds, logged = interleave(updates, batches, warmup=args.warmup, device=args.device)
    ratios = {name: over(times, seconds[BASE]) for name, times in seconds.items()}
    work = {
        name: {key: mean_of(key, logs) for key in ("padding", "rollout_work")}
        for name, logs in logged.items()
    }

    header = [
        "update",
        "x cross-entropy (median)",
        "quartiles",
        "seconds (median)",
        "padding",
        "rollout_work",
    ]
    rows = [
        [
            name,
            *quartiles(ratios[name]),
            f"{statistics.median(seconds[name]):.3f}",
            *map(shown, work[name].values()),
        ]
        for name in variants
    ]
    print(table(header, rows))
    print(f"\n{args.rounds} rounds of up to {args.max_tokens} tokens; {conditions(args)}")
    write_json(args, seconds=seconds, ratios=ratios, work=work)


def mean_of(key: str, logs: list[dict[str, Any]]) -> float | None:
    """Return the mean of a logged figure over the rounds; None if the update does not log it."""
    values = [float(log[key]) for log in logs if key in log]
    return statistics.mean(values) if values else None


def shown(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.2f}"


if __name__ == "__main__":
    main()
