"""Compares the time of a teacher's logits with that of its bare forward pass on the same batches.

    python benchmarks/teacher_scoring.py DATA_BIN --teacher TEACHER.pt [--json FILE]

Each round uses one of fairseq's training batches. The bare forward pass is fairseq's, without gradients. It
runs twice per round, so the row ``(again)`` shows the noise. The teacher computes its logits as in an update:
all at once, or from hidden states in chunks of as many positions as ``--loss-chunk 0`` takes. With
``--teacher-encoder-cache`` the encoder output of a known batch is cached. The exit status is 1 if the cached
logits are not bitwise the same as the others.
"""

import itertools
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import (
    TEACHER,
    Batch,
    argument_parser,
    check_arguments,
    conditions,
    configured,
    interleave,
    load_model,
    on_device,
    over,
    quartiles,
    table,
    write_json,
)
from fairseq.models import BaseFairseqModel
from torch import Tensor

from fairseq_imitkd.models.logits import chunk_size
from fairseq_imitkd.teacher.encoder_cache import EncoderCache
from fairseq_imitkd.teacher.teacher import Teacher

BASE, WHOLE, CACHED = "bare forward", "logits", "logits, encoder outputs cached"


def main() -> None:
    parser = argument_parser(__doc__, "teacher_scoring.json", max_tokens=2048, student=False)
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
    _, task = configured(args, ["--teacher-path", str(args.teacher)])
    task.load_dataset("train")
    iterator = task.get_batch_iterator(task.dataset("train"), max_tokens=args.max_tokens, seed=1)
    first = itertools.islice(iterator.next_epoch_itr(), args.warmup + args.rounds)
    batches = [on_device(batch, args.device) for batch in first]
    bare = load_model(args.teacher, task).eval()
    plain, caching = (build_teacher(args, task, cache) for cache in (False, True))
    if args.device == "cuda":
        bare.cuda()

    runs: dict[str, Callable[[Batch], Any]] = {
        BASE: lambda batch: forward(bare, batch),
        f"{BASE} (again)": lambda batch: forward(bare, batch),
        WHOLE: lambda batch: scores(plain, batch),
        "logits, in chunks": lambda batch: in_chunks(plain, batch),
        CACHED: lambda batch: scores(caching, batch),
    }
    for batch in batches:
        caching.encode(batch)
    differing = sum(not scores(caching, batch).equal(scores(plain, batch)) for batch in batches)
    print(f"{CACHED}: {differing} of {len(batches)} batches differ from those without a cache\n")
    seconds, _ = interleave(runs, batches, warmup=args.warmup, device=args.device, keep=lambda result: None)
    ratios = {name: over(times, seconds[BASE]) for name, times in seconds.items()}
    rows = [[name, *quartiles(ratios[name]), f"{statistics.median(seconds[name]):.3f}"] for name in runs]
    print(table(["teacher", "x bare forward (median)", "quartiles", "seconds (median)"], rows))
    print(f"\n{args.rounds} rounds of up to {args.max_tokens} tokens; {conditions(args)}")
    write_json(args, seconds=seconds, ratios=ratios, differing=differing)
    sys.exit(1 if differing else 0)


def build_teacher(args: Any, task: Any, cache: bool) -> Teacher:
    """Load a teacher on the device, as a training does."""
    made = Teacher([load_model(args.teacher, task)], cache=EncoderCache(2**33) if cache else None)
    made.place(torch.device(args.device), torch.float32)
    return made


@torch.no_grad()
def forward(model: BaseFairseqModel, batch: Batch) -> Tensor:
    """Run fairseq's forward pass on a batch; return the logits ``(B, T, V)``."""
    return model(**batch["net_input"])[0]


def scores(teacher: Teacher, batch: Batch) -> Tensor:
    """Return all logits at once, ``(B * T, V)``."""
    return teacher.score(batch, teacher.encode(batch)).logits(slice(None))


def in_chunks(teacher: Teacher, batch: Batch) -> None:
    """Compute the same logits in chunks of the size that an update uses."""
    symbols = teacher.models[0].decoder.output_projection.weight.size(0)
    positions, found = batch["target"].numel(), teacher.score(batch, teacher.encode(batch), materialise=False)
    step = chunk_size(positions, symbols, batch["target"].device) or positions
    for start in range(0, positions, step):
        found.logits(slice(start, start + step))


if __name__ == "__main__":
    main()
