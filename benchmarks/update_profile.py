"""Shows where an update waits for the GPU, and which kernels it runs.

    python benchmarks/update_profile.py DATA_BIN --student STUDENT.pt --teacher TEACHER.pt
        [--precision fp16] [--json FILE]

For cross-entropy, ``word_kd`` and ``imitkd`` (CUDA graphs on and off) it does some updates, then one update
in which CUDA reports every operation that makes Python wait, with the line that asked for it, and then one
update under torch's profiler. Without a GPU there are no waits, and the profiler shows the CPU's operations.
"""

import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import (
    TEACHER,
    argument_parser,
    build_trainer,
    check_arguments,
    conditions,
    table,
    update,
    updates_of,
    write_json,
)
from update_cost import BASE, ON_GPUS, VARIANTS, Variant

SHOWN = ("fairseq_imitkd/", "fairseq/")  # a wait is named by the innermost line of these packages
NAMES = (BASE, "word_kd", "imitkd, share 1")
MOST = 12  # kernels of the table


def main() -> None:
    parser = argument_parser(__doc__, "update_profile.json", max_tokens=4096, precision=True)
    parser.add_argument("--teacher", type=Path, default=TEACHER, help="default: %(default)s")
    parser.add_argument("--warmup", type=int, default=12, help="updates before (default: %(default)s)")
    args = parser.parse_args()
    check_arguments(args, warmup=1)
    torch.set_num_threads(args.threads)
    variants = {name: VARIANTS[name] for name in NAMES} | (ON_GPUS if args.device == "cuda" else {})
    figures: dict[str, Any] = {}
    rows = []
    for name, variant in variants.items():
        waits, kernels = measure(args, variant)
        figures[name] = {"waits": waits, "kernels": kernels}
        microseconds = sum(each["microseconds"] for each in kernels)
        count = sum(each["count"] for each in kernels)
        rows.append([name, str(sum(waits.values())), str(count), f"{microseconds / 1000.0:.2f}"])
    print(table(["update", "waits", "kernels", "their milliseconds"], rows))
    for name, figure in figures.items():
        print(f"\n{name}: waits")
        for where, count in figure["waits"].items():
            print(f"  {count:3d} {where}")
        print(f"{name}: kernels that take longest")
        for each in figure["kernels"][:MOST]:
            print(f"  {each['count']:5d} {each['microseconds'] / 1000.0:8.2f} ms  {each['name'][:90]}")
    print(f"\nafter {args.warmup} updates of up to {args.max_tokens} tokens; {conditions(args)}")
    write_json(args, updates=figures)


def measure(args: Any, variant: Variant) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Return the waits of one update, and the kernels of the next one."""
    trainer = build_trainer(args, variant.flags)
    batches = updates_of(trainer)
    for _ in range(args.warmup):
        update(trainer, *next(batches))
    first, second = next(batches), next(batches)
    waits = waits_of(lambda: update(trainer, *first), args.device)
    return waits, kernels_of(lambda: update(trainer, *second), args.device)


def waits_of(compute: Callable[[], Any], device: str) -> dict[str, int]:
    """Return how often Python waited for the GPU, by the line that asked for it, most frequent first."""
    found: Counter[str] = Counter()
    if device != "cuda":
        compute()
        return dict(found)

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            found[_place(traceback.extract_stack()[:-1])] += 1

    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            compute()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return dict(found.most_common())


def _place(stack: traceback.StackSummary) -> str:
    """Return the innermost line of fairseq or of this package, and the one that called it."""
    own = [frame for frame in stack if any(name in frame.filename for name in SHOWN)]
    names = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in own[-2:]]
    return " > ".join(names) or "elsewhere"


def kernels_of(compute: Callable[[], Any], device: str) -> list[dict[str, Any]]:
    """Return name, number and microseconds of the kernels, those that take longest first."""
    kind = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kind.CUDA if device == "cuda" else kind.CPU]) as profiler:
        compute()
        if device == "cuda":
            torch.cuda.synchronize()
    events = [
        {
            "name": event.key,
            "count": event.count,
            "microseconds": event.self_device_time_total if device == "cuda" else event.self_cpu_time_total,
        }
        for event in profiler.key_averages()
    ]
    ran = [event for event in events if event["microseconds"] > 0]
    return sorted(ran, key=lambda event: -event["microseconds"])


if __name__ == "__main__":
    main()
