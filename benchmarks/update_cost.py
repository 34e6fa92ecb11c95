"""What an update costs beside a plain cross-entropy update: ratios of interleaved pairs, in one process, on the same batches.

    python benchmarks/update_cost.py DATA_BIN --student STUDENT.pt --teacher TEACHER.pt [--json FILE]

Each round takes one batch and lets every variant do one whole update on it (forward, backward, clipping, Adam), in an
order drawn anew; a variant's ratio is its time over the cross-entropy update's of the same round. Cross-entropy runs
twice a round, so the row ``cross_entropy (again)`` shows what the machine's noise alone does. The learning rate is 0:
the work of an update without moving the weights, so that every round measures the same student. Use a *trained*
student: one that never ends a sentence decodes to the length cap.

Two columns tell the work beside the time, as fairseq's log does: ``padding``, target positions computed for each token
that is learnt from, and ``rollout_work``, decoder rows computed for each token written.
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
ON_GPUS = {"imitkd, share 1, CUDA graphs": [*VARIANTS["imitkd, share 1"], "--rollout-cuda-graphs"]}


def main() -> None:
    parser = argument_parser(__doc__, "update_cost.json", max_tokens=2048)
    parser.add_argument("--teacher", type=Path, default=TEACHER, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=20, help="measured rounds, one batch each")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before, not measured")
    args = parser.parse_args()
    check_arguments(args, rounds=2, warmup=0)

    torch.set_num_threads(args.threads)
    variants = VARIANTS | (ON_GPUS if args.device == "cuda" else {})
    trainers = {name: build_trainer(args, flags) for name, flags in variants.items()}
    batches = first_batches(trainers[BASE], args.warmup + args.rounds)
    updates = {name: functools.partial(update, trainer) for name, trainer in trainers.items()}
    for name in (
        variants.keys() & ON_GPUS.keys()
    ):  # the second time that a size is met it is captured: that is no update's work
        for batch in batches * 2:
            updates[name](batch)
    seconds, logged = interleave(updates, batches, args.warmup, args.device)
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
    """A logged figure's mean over the rounds; None where an update logs no such figure."""
    values = [float(log[key]) for log in logs if key in log]
    return statistics.mean(values) if values else None


def shown(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.2f}"


if __name__ == "__main__":
    main()
