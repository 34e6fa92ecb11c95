"""Compares the time of an update with that of a plain cross-entropy update on the same batches.

    python benchmarks/update_cost.py DATA_BIN --student STUDENT.pt --teacher TEACHER.pt
        [--precision fp16] [--pool 4] [--json FILE]

In each round every variant does complete updates on the same batches (forward, backward, clipping, Adam), in
a new random order. A ratio is a variant's time divided by that of the cross-entropy updates of the same
round. Cross-entropy runs twice per round, so the row ``cross_entropy (again)`` shows the noise. The learning
rate is 0: an update does its work but leaves the weights alone, so every round measures the same student. Use
a *trained* student, because an untrained one does not end its sentences and decodes to the maximum length.

A round has one batch, or with ``--pool N`` N batches: N updates of one batch each, one update of N batches
(compared with cross-entropy of N batches), or N updates whose rollouts are decoded together. Before the
measured rounds come unmeasured ones, on other batches.

The last columns show the work beside the time, as fairseq's log does: ``padding``, the target positions
computed per token that is learnt from, and ``rollout_work``, the decoder rows computed per token written. On
a GPU, they also show the share of decoding steps that CUDA graphs replayed, and the number of graphs.
"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import (
    TEACHER,
    argument_parser,
    build_trainer,
    check_arguments,
    conditions,
    interleave,
    over,
    quartiles,
    table,
    update,
    updates_of,
    write_json,
)
from fairseq.trainer import Trainer

from fairseq_imitkd.rollout.cuda_graphs import Usage, graph_usage

BASE = "cross_entropy"
Log = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """A way to train.

    Args:
        flags: flags of ``imitkd-train``.
        base: the variant that it is compared with.
        batches: number of batches in an update; None takes all those of a round.
    """

    flags: tuple[str, ...]
    base: str = BASE
    batches: int | None = 1


def imitkd(share: str, *flags: str) -> tuple[str, ...]:
    """Return the flags of imitation at a constant share."""
    return ("--criterion", "imitkd", "--student-share", f"constant:{share}", *flags)


CROSS_ENTROPY = ("--criterion", "cross_entropy")
VARIANTS = {
    BASE: Variant(CROSS_ENTROPY),
    f"{BASE} (again)": Variant(CROSS_ENTROPY),
    "word_kd": Variant(("--criterion", "word_kd")),
    "imitkd, share 0": Variant(imitkd("0")),
    "imitkd, share 0.5": Variant(imitkd("0.5")),
    "imitkd, share 1": Variant(imitkd("1")),
}
ON_GPUS = {"imitkd, share 1, no CUDA graphs": Variant(imitkd("1", "--rollout-cuda-graphs", "off"))}


def pooled(batches: int) -> dict[str, Variant]:
    """Return the variants that decode several batches together."""
    large = f"{BASE}, {batches} batches an update"
    return {
        large: Variant(CROSS_ENTROPY, base=large, batches=None),
        f"imitkd, share 1, {batches} batches an update, pooled": Variant(
            imitkd("1", "--rollout-pool"), base=large, batches=None
        ),
        f"imitkd, share 1, pool of {batches} updates": Variant(
            imitkd("1", "--rollout-pool-updates", str(batches))
        ),
    }


@dataclass
class Run:
    """A trainer and the batches that it has not seen yet.

    Args:
        trainer: fairseq's trainer.
        updates: the batches of each further update.
        before: how often graphs were used before the measured rounds.
    """

    trainer: Trainer
    updates: Iterator[list[Any]]
    per_round: int
    before: Usage = field(default_factory=Usage)

    def round(self, _: int) -> list[Log]:
        """Do the updates of a round; return what they log."""
        return [update(self.trainer, *next(self.updates)) for _ in range(self.per_round)]

    @property
    def usage(self) -> Usage:
        """How often the student's graphs were used."""
        return graph_usage(self.trainer.get_model().decoder)[0]


def main() -> None:
    parser = argument_parser(__doc__, "update_cost.json", max_tokens=2048, precision=True)
    parser.add_argument("--teacher", type=Path, default=TEACHER, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=20, help="measured rounds (default: %(default)s)")
    parser.add_argument(
        "--warmup",
        type=int,
        help="unmeasured rounds at the start (default: 2; on a GPU 8, so that graphs are captured)",
    )
    parser.add_argument(
        "--pool",
        type=int,
        default=1,
        metavar="N",
        help="batches of a round; with 2 or more, also measure pooled rollouts (default: %(default)s)",
    )
    args = parser.parse_args()
    on_gpu = args.device == "cuda"
    args.warmup = args.warmup if args.warmup is not None else 8 if on_gpu else 2
    check_arguments(args, rounds=2, warmup=0, pool=1)

    torch.set_num_threads(args.threads)
    variants = VARIANTS | (ON_GPUS if on_gpu else {}) | (pooled(args.pool) if args.pool > 1 else {})
    runs = {name: begin(args, variant) for name, variant in variants.items()}
    rounds = {name: run.round for name, run in runs.items()}
    interleave(rounds, range(args.warmup), warmup=args.warmup, device=args.device)
    for run in runs.values():
        run.before = run.usage
    seconds, logged = interleave(rounds, range(args.rounds), warmup=0, device=args.device)
    ratios = {name: over(times, seconds[variants[name].base]) for name, times in seconds.items()}
    work = {name: work_of([log for logs in logged[name] for log in logs], runs[name]) for name in variants}

    columns = ("padding", "rollout_work", *(("replayed", "graphs") if on_gpu else ()))
    header = ["update", "x cross-entropy (median)", "quartiles", "seconds a batch (median)", *columns]
    rows = [
        [
            name,
            *quartiles(ratios[name]),
            f"{statistics.median(seconds[name]) / args.pool:.4f}",
            *(shown(work[name].get(column)) for column in columns),
        ]
        for name in variants
    ]
    print(table(header, rows))
    batches = f"{args.pool} batches of " if args.pool > 1 else ""
    print(f"\n{args.rounds} rounds of {batches}up to {args.max_tokens} tokens; {conditions(args)}")
    write_json(args, seconds=seconds, ratios=ratios, work=work)


def begin(args: Any, variant: Variant) -> Run:
    """Build the trainer of a variant."""
    trainer, batches = build_trainer(args, variant.flags), variant.batches or args.pool
    return Run(trainer, updates_of(trainer, batches), per_round=args.pool // batches)


def work_of(logs: list[Log], run: Run) -> dict[str, float]:
    """Return the means of the logged figures that the updates have, and the use of graphs."""
    work = {
        key: statistics.mean(float(log[key]) for log in logs if key in log)
        for key in ("padding", "rollout_work")
        if any(key in log for log in logs)
    }
    blocks = run.usage.blocks - run.before.blocks
    if blocks:
        work["replayed"] = (run.usage.replayed - run.before.replayed) / blocks
        work["graphs"] = run.usage.captures
    return work


def shown(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.2f}" if isinstance(figure, float) else str(figure)


if __name__ == "__main__":
    main()
