"""Measures one decoding step of random students: milliseconds, kernels, capture and memory, on a GPU.

    python benchmarks/decoding_step.py [--archs …] [--rows 64 256 1024] [--precisions …] [--policies …]
        [--seconds 60] [--json FILE]

A rollout is made to have a fixed number of steps, so weights need no training. Each combination of
architecture, rows, precision, policy and CUDA graphs on or off is decoded until its graphs are captured, and
then a few times more. On a GPU, torch's profiler counts the kernels of a step. Last, graphs of many sizes are
captured, to see how much memory the driver takes for each.

Combinations come in an order in which the first ones are worth most. After ``--seconds`` no further one
begins. Without a GPU there are no graphs, and kernels are not counted.
"""

import argparse
import itertools
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import PRECISIONS, in_precision, table, write_json
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY, BaseFairseqModel
from memory import MEGABYTE

from fairseq_imitkd.rollout import (
    Prompt,
    RandomKey,
    RolloutPolicy,
    SpecialSymbols,
    decode,
    release_graphs,
    sampling_uniforms,
)
from fairseq_imitkd.rollout.cuda_graphs import graph_usage

POLICIES = {
    "greedy": RolloutPolicy(),
    "sampling": RolloutPolicy("sampling"),
    "top-k": RolloutPolicy("sampling", topk=20),
    "top-p": RolloutPolicy("sampling", topp=0.9),
}
SOURCES = 28  # source positions of a sentence
REPEATS = 3
TINY = {
    **dict.fromkeys(("encoder_embed_dim", "decoder_embed_dim"), 16),
    **dict.fromkeys(("encoder_ffn_embed_dim", "decoder_ffn_embed_dim"), 32),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 1),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
}


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    arch: str
    rows: int
    precision: str
    policy: str
    cuda_graphs: bool


@dataclass
class Bench:
    """A student with random weights.

    Args:
        args: arguments of the command line.
        dictionary: its dictionary, for source and target.
        model: the student, on the device.
        precision: its precision.
    """

    args: Namespace
    dictionary: Dictionary
    model: BaseFairseqModel
    precision: str

    def decode(self, policy: RolloutPolicy, rows: int, *, sources: int, steps: int) -> None:
        """Decode a batch in a number of steps that does not depend on the weights."""
        device = self.args.device
        tokens = torch.randint(10, len(self.dictionary), (rows, sources), device=device)
        net_input = {"src_tokens": tokens, "src_lengths": torch.full((rows,), sources, device=device)}
        first = torch.full((rows,), self.dictionary.eos(), device=device)
        ids = torch.arange(rows, device=device)
        with self._precision():
            decode(
                self.model,
                Prompt(net_input, first, torch.full((rows,), steps, device=device), longest=steps),
                policy,
                symbols=SpecialSymbols.from_dictionary(self.dictionary),
                uniforms=sampling_uniforms([(RandomKey(seed=1, update=0), ids)]),
                min_length=steps,
            )
        if device == "cuda":
            torch.cuda.synchronize()

    def timed(self, policy: RolloutPolicy, rows: int) -> float:
        """Return the seconds of a rollout."""
        begun = time.perf_counter()
        self.decode(policy, rows, sources=SOURCES, steps=self.args.steps)
        return time.perf_counter() - begun

    def _precision(self) -> AbstractContextManager:
        return torch.autocast("cuda") if self.precision == "amp" else nullcontext()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    begun = time.monotonic()
    measured: list[dict[str, Any]] = []
    left_out = 0
    bench: Bench | None = None
    for setting in settings(args):
        if time.monotonic() - begun > args.seconds:
            left_out += 1
            continue
        if bench is None or (bench.args.arch, bench.precision) != (setting.arch, setting.precision):
            release_graphs()
            bench = build(args, setting)
        measured.append({**vars(setting), **measure(bench, setting)})
        print_progress(measured[-1])
    memory = graphs_memory(bench) if args.device == "cuda" and bench is not None else {}
    keys = ("arch", "rows", "precision", "policy", "cuda_graphs", "milliseconds", "kernels", "capture")
    header = ["student", "rows", "precision", "policy", "CUDA graphs", "ms a step", "kernels", "capture, s"]
    print(table(header, [[shown(row[key]) for key in keys] for row in measured]))
    print(f"\n{args.steps + 1} steps; {args.device}; {left_out} combinations were left out for lack of time")
    if memory:
        print(f"{memory['graphs']} graphs: {memory['driver'] / MEGABYTE:.0f} MB beside their buffers")
    write_json(args, measured=measured, graphs_memory=memory)


def arguments() -> Namespace:
    """Return the checked arguments of the command line."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--archs", nargs="+", default=["transformer_iwslt_de_en", "transformer_vaswani_wmt_en_de_big"]
    )
    parser.add_argument("--rows", nargs="+", type=int, default=[256, 64, 1024])
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, default=["fp16", "amp", "bf16", "fp32"]
    )
    parser.add_argument(
        "--policies", nargs="+", choices=list(POLICIES), default=["greedy", "sampling", "top-p"]
    )
    parser.add_argument("--steps", type=int, default=47, help="tokens before the EOS (default: %(default)s)")
    parser.add_argument("--symbols", type=int, default=10000, help="V (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3600.0, help="then no further combination begins")
    parser.add_argument("--tiny", action="store_true", help="students of one layer, to try the script")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--device", choices=["cpu", "cuda"], default=device)
    parser.add_argument("--json", type=Path, default=Path("decoding_step.json"), help="file for all figures")
    args = parser.parse_args()
    unknown = [arch for arch in args.archs if arch not in ARCH_CONFIG_REGISTRY]
    if unknown:
        sys.exit(f"--archs {unknown[0]} is not an architecture of fairseq; use transformer_iwslt_de_en")
    if args.device == "cpu" and {"fp16", "amp"} & set(args.precisions):
        sys.exit("--precisions fp16 and amp need a GPU, but --device is cpu; use fp32 or bf16")
    return args


def settings(args: Namespace) -> Iterator[Setting]:
    """Yield what is measured, greedy first, the graphs of all rows before those of other policies."""
    graphs = (True, False) if args.device == "cuda" else (False,)
    for arch, precision in itertools.product(args.archs, args.precisions):
        for policy, rows, on in itertools.product(args.policies, args.rows, graphs):
            yield Setting(arch, rows, precision, policy, on)


def build(args: Namespace, setting: Setting) -> Bench:
    """Build a student with random weights."""
    torch.manual_seed(1)
    dictionary = Dictionary()
    for number in range(args.symbols - len(dictionary)):
        dictionary.add_symbol(f"w{number}")
    settings = Namespace(share_all_embeddings=True, **(TINY if args.tiny else {}))
    ARCH_CONFIG_REGISTRY[setting.arch](settings)
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    model = ARCH_MODEL_REGISTRY[setting.arch].build_model(settings, task).eval()
    given = Namespace(**{**vars(args), "arch": setting.arch, "precision": setting.precision})
    return Bench(given, dictionary, in_precision(model, given), setting.precision)


def measure(bench: Bench, setting: Setting) -> dict[str, float | None]:
    """Return milliseconds and kernels of a step, and the seconds that the capture took."""
    policy = replace(POLICIES[setting.policy], cuda_graphs=setting.cuda_graphs)
    _, second = (bench.timed(policy, setting.rows) for _ in range(2))  # graphs are captured in the second
    seconds = [bench.timed(policy, setting.rows) for _ in range(REPEATS)]
    steps = bench.args.steps + 1
    return {
        "milliseconds": 1000.0 * statistics.median(seconds) / steps,
        "kernels": kernels(bench, policy, setting.rows) / steps if bench.args.device == "cuda" else None,
        "capture": max(second - statistics.median(seconds), 0.0) if setting.cuda_graphs else None,
    }


def kernels(bench: Bench, policy: RolloutPolicy, rows: int) -> int:
    """Return how many kernels the GPU runs in a rollout."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        bench.decode(policy, rows, sources=SOURCES, steps=bench.args.steps)
    return sum(event.count for event in profiler.key_averages() if event.device_time_total > 0)


def graphs_memory(bench: Bench) -> dict[str, int]:
    """Return the bytes that the driver and the captures take for graphs of many sizes."""
    release_graphs()
    torch.cuda.empty_cache()
    sizes = list(itertools.product((32, 64, 128, 256, 512), (28, 60, 120), (20, 50)))
    policy = RolloutPolicy()
    bench.decode(policy, max(sizes)[0], sources=120, steps=50)  # the largest buffers
    torch.cuda.empty_cache()
    before = torch.cuda.mem_get_info()[0]
    for rows, sources, steps in sizes * 2:
        bench.decode(policy, rows, sources=sources, steps=steps)
    torch.cuda.empty_cache()
    usage, _ = graph_usage(bench.model.decoder)
    return {"graphs": usage.captures, "driver": before - torch.cuda.mem_get_info()[0]}


def shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def print_progress(row: dict[str, Any]) -> None:
    """Tell on standard error what was measured, for a run that is stopped."""
    print(" ".join(shown(value) for value in row.values()), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
