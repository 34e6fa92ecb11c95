"""Counts what costs time on a GPU: launches, kernels, casts, graphs and waits. It needs no GPU.

    python benchmarks/gpu_counts.py            # a table; exit status 1 if a count is above its limit
    python benchmarks/gpu_counts.py --write    # also writes the table into docs/performance.md

Updates run on the emulated device of the tests, with a student of 6+6 layers whose sentences are all
rollouts.
An operation of ATen counts as one kernel, and so does the fused norm. Graphs are counted by a simulation of
decoding on made-up batches of sentences with 2 to 175 tokens, 25 on average.
"""

import argparse
import contextlib
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import utils
from fairseq.data import data_utils

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from common import table  # noqa: E402

from fairseq_imitkd.rollout import (  # noqa: E402
    Prompt,
    RandomKey,
    RolloutPolicy,
    SpecialSymbols,
    decode,
    sampling_uniforms,
)
from fairseq_imitkd.rollout.cuda_graphs import graphs_of, rounded  # noqa: E402
from fairseq_imitkd.rollout.graphed_decoding import STEPS_PER_GRAPH  # noqa: E402
from tests.helpers import digit_corpus, in_process  # noqa: E402
from tests.helpers.emulated_cuda import emulated_cuda, launches_a_kernel  # noqa: E402
from tests.helpers.fairseq_models import build_student, letters, make_batch, reversed_pairs  # noqa: E402

PAGE, MARK = REPO / "docs" / "performance.md", "gpu-counts"
LAYERS = 6
POLICIES = {
    "greedy": RolloutPolicy(),
    "top-k sampling": RolloutPolicy("sampling", topk=5, temperature=1.2),
    "top-p sampling": RolloutPolicy("sampling", topp=0.9, temperature=1.2),
}
LAUNCHES = {"greedy": "88", "top-k sampling": "256", "top-p sampling": "284"}  # formerly


@dataclass(frozen=True)
class Count:
    """A figure, its limit, and what it was when a graph held the layers of one step alone."""

    what: str
    now: float
    limit: float
    before: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.name}")
    args = parser.parse_args()
    counts = [*launches(), *kernels(), *graphs(), *waits()]
    rows = [[count.what, count.before, f"{count.now:g}", f"{count.limit:g}"] for count in counts]
    text = table(["count", "before", "now", "limit"], rows)
    print(text)
    if args.write:
        page = PAGE.read_text()
        start, end = f"<!-- {MARK} -->\n", f"<!-- /{MARK} -->"
        head, rest = page.split(start)
        PAGE.write_text(f"{head}{start}{text}\n{rest[rest.index(end) :]}")
    above = [count.what for count in counts if count.now > count.limit]
    if above:
        sys.exit(f"above the limit: {'; '.join(above)}")


def roll_out(model: Any, policy: RolloutPolicy, *, steps: int, dtype: torch.dtype | None = None) -> None:
    """Decode one batch with a number of steps that does not depend on the weights."""
    batch, dictionary = utils.move_to_cuda(make_batch(reversed_pairs(5, seed=1, longest=6))), letters()
    inputs = {name: batch["net_input"][name] for name in ("src_tokens", "src_lengths")}
    lengths = torch.full_like(inputs["src_lengths"], steps)
    prompt = Prompt(inputs, batch["net_input"]["prev_output_tokens"][:, 0], lengths, longest=steps)
    uniforms = sampling_uniforms([(RandomKey(seed=1, update=0), batch["id"])])
    precision = torch.autocast("cuda", dtype=dtype) if dtype else contextlib.nullcontext()
    with precision:
        decode(
            model,
            prompt,
            policy,
            symbols=SpecialSymbols.from_dictionary(dictionary),
            uniforms=uniforms if policy.samples else None,
            min_length=steps,
        )


def launches() -> Iterator[Count]:
    """Count what Python launches for as many steps as a graph has."""
    for name, policy in POLICIES.items():
        with emulated_cuda() as device:
            model = build_student("transformer", decoder_layers=LAYERS).cuda()
            seen = []
            for steps in (12, 28) * 3:
                before = device.launches
                roll_out(model, policy, steps=steps)
                seen.append(device.launches - before)
        each = (seen[-1] - seen[-2]) / (16 / STEPS_PER_GRAPH)
        yield Count(f"launches for {STEPS_PER_GRAPH} steps, {name}", each, 1, LAUNCHES[name])


def kernels() -> Iterator[Count]:
    """Count the kernels of a layer in a replayed step, and the casts of weights with ``--amp``."""
    for dtype, before in ((None, "25"), (torch.float16, "44")):
        found = {}
        for layers in (2, LAYERS):
            with emulated_cuda():
                model = build_student("transformer", decoder_layers=layers).cuda()
                for _ in range(2):
                    roll_out(model, POLICIES["greedy"], steps=6, dtype=dtype)
                with torch.autocast("cuda", dtype=dtype) if dtype else contextlib.nullcontext():
                    [graph] = graphs_of(model.decoder).captured.values()
            calls = [func for func, *_ in graph.operations]
            found[layers] = Counter(str(func) for func in calls if launches_a_kernel(func))
        more = found[LAYERS] - found[2]
        steps = STEPS_PER_GRAPH * (LAYERS - 2)
        name = "--amp" if dtype else "float32"
        yield Count(f"kernels of a layer in a step, {name}", more.total() / steps, 13, before)
        if dtype:
            casts = sum(count for call, count in more.items() if "_to_copy" in call)
            yield Count("casts of weights of a layer in a step, --amp", casts / steps, 0, "17")


def graphs() -> Iterator[Count]:
    """Count the graphs of an epoch, and the share of its steps that they replay."""
    for tokens in (4096, 8192):
        met: set[tuple[int, ...]] = set()
        steps = replayed = 0
        for sources, targets in epoch(tokens):
            width = max(sources)
            longest = int(1.2 * width) + 10
            sizes = [rounded(len(sources)), rounded(width), rounded(longest + STEPS_PER_GRAPH)]
            for step in range(0, longest + 1, STEPS_PER_GRAPH):
                replayed += STEPS_PER_GRAPH * (tuple(sizes) in met)
                steps += STEPS_PER_GRAPH
                met.add(tuple(sizes))
                if step == 0:
                    continue
                unfinished = sum(target >= step + STEPS_PER_GRAPH for target in targets)
                if unfinished == 0:
                    break
                sizes[0] = min(sizes[0], rounded(unfinished))
        yield Count(f"graphs in an epoch of {tokens:,} tokens a batch", len(met), 45)
        what = f"percent of the first epoch's steps without a graph, {tokens:,} tokens"
        yield Count(what, round(100 * (1 - replayed / steps), 2), 2)


def epoch(tokens: int) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """Yield the source and target lengths of batches that are sorted by length, in random order."""
    generator = random.Random(1)
    sources = np.array([min(175, max(2, round(generator.lognormvariate(3.0, 0.65)))) for _ in range(160_000)])
    targets = np.array([max(1, round(length * generator.uniform(0.8, 1.2))) for length in sources])
    order = np.lexsort((targets, sources))
    batches = list(
        data_utils.batch_by_size(
            order, num_tokens_fn=lambda index: max(sources[index], targets[index]), max_tokens=tokens,
            required_batch_size_multiple=8,
        )
    )  # fmt: skip
    generator.shuffle(batches)
    for batch in batches:
        yield sources[batch].tolist(), targets[batch].tolist()


def waits() -> Iterator[Count]:
    """Count how often the host waits for the device in an update with rollouts of 16 steps."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split, sentences in (("train", 60), ("valid", 8), ("test", 8)):
            digit_corpus.write_text(folder, split, sentences, 1)
        digit_corpus.binarise(folder, folder / "data")
        layers = ("--encoder-layers", LAYERS, "--decoder-layers", LAYERS)
        common = ("--disable-validation", "--max-tokens", 120, "--dropout", 0, *layers)
        in_process.train(
            folder / "data", folder / "teacher", *common, "--task", "translation", "--criterion",
            "cross_entropy", "--max-update", 60,
        )  # fmt: skip
        task = ("--task", "translation_with_teacher", "--no-save", "--max-update", 4)
        rollouts = (
            "--teacher-path", folder / "teacher" / "checkpoint_last.pt", "--student-share", "constant:1",
            "--rollout-max-len-a", 0, "--rollout-max-len-b", 15,
        )  # fmt: skip
        for what, flags, limit, before in (
            ("cross_entropy", ("--criterion", "cross_entropy"), 11, "11"),
            ("imitkd, 16 steps", ("--criterion", "imitkd", *rollouts), 16, "41"),
        ):
            yield Count(
                f"waits of an update, {what}", waits_of(folder, *common, *task, *flags), limit, before
            )


def waits_of(folder: Path, *flags: object) -> int:
    """Return the waits of the last update."""
    last = []
    kept = in_process.SETTINGS
    in_process.SETTINGS = tuple(flag for flag in kept if flag != "--cpu")
    try:
        with emulated_cuda() as device:

            def around(_: Any, update: Any, __: Any) -> Any:
                device.waits.clear()
                result = update()
                last[:] = device.waits
                return result

            in_process.train(folder / "data", folder / "run", *flags, around_step=around)
    finally:
        in_process.SETTINGS = kept
    return len(last)


if __name__ == "__main__":
    main()
