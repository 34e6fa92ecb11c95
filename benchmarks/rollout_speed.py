"""Compares the speed of rollouts with that of fairseq's ``SequenceGenerator`` on the same batches.

    python benchmarks/rollout_speed.py DATA_BIN --student STUDENT.pt
        [--sentences 2000] [--split train] [--precision fp16] [--pool 4] [--json FILE]

The first sentences of a split, in fairseq's batches of similar length, are decoded greedily by four engines:
fairseq's ``SequenceGenerator`` (beam 1), the generator that ``fairseq-generate`` gets from this task, the
rollout engine as training calls it, and the engine's generic steps, which any student without a fast path
uses. Sentences are sampled by fairseq's ``search.Sampling`` and by both of ours. On a GPU the engine also
decodes with CUDA graphs. A teacher-forced forward pass over the written tokens gives the time that the same
arithmetic takes when no token has to wait for the one before.

First the tokens are compared. The exit status is 1 if any greedy translation differs from fairseq's under the
same maximum lengths; in half precision, rounding may make a few differ. CUDA graphs are then dropped, and
captured again while as many other sentences are decoded without being measured.

Then every engine decodes one batch in each round, in a new random order. With ``--pool N`` it decodes N
batches in each round, one after the other, and the rollout engine also decodes them together, as
``--rollout-pool`` does. A speed is in tokens written per
second, divided by that of the ``SequenceGenerator`` in the same round. The ``SequenceGenerator`` runs twice
per round, so the rows ``(again)`` show the noise. For sampling, this noise includes that every run writes
other tokens.
"""

import argparse
import itertools
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from common import (
    Batch,
    argument_parser,
    autocast,
    check_arguments,
    conditions,
    configured,
    in_precision,
    interleave,
    load_model,
    on_device,
    quartiles,
    table,
    write_json,
)
from fairseq import utils
from fairseq.data import data_utils
from fairseq.models import BaseFairseqModel
from fairseq.sequence_generator import EnsembleModel, SequenceGenerator
from tqdm import tqdm

from fairseq_imitkd.mixing.batch import (
    BatchLayout,
    encoder_inputs,
    first_decoder_inputs,
    join_encoder_inputs,
    split_by_length,
    take,
    with_rollouts,
)
from fairseq_imitkd.rollout import (
    Prompt,
    RandomKey,
    Rollout,
    RolloutPolicy,
    SpecialSymbols,
    decode,
    generator,
    release_graphs,
    sampling_uniforms,
    steps,
)
from fairseq_imitkd.rollout.cuda_graphs import Usage, graph_usage
from fairseq_imitkd.training.distiller import PART_COST

MIN_LENGTH = 1  # fairseq's default: translations are not empty
GREEDY_BASE, SAMPLING_BASE = "SequenceGenerator", "SequenceGenerator, sampling"
OURS, ENGINE, GENERIC = "our generator", "rollout engine", "rollout engine, generic steps"
GRAPHS, GRAPHS_SAMPLING = "rollout engine, CUDA graphs", "rollout engine, CUDA graphs, sampling"
OURS_SAMPLING, ENGINE_SAMPLING = "our generator, sampling", "rollout engine, sampling"
FORWARD = "teacher-forced forward"


@dataclass(frozen=True)
class Round:
    """Batches to decode, and the same sentences with the written targets, in parts of similar length."""

    samples: list[Batch]
    written: list[Batch]


@dataclass
class Check:
    """The result of the comparison over all batches.

    Args:
        sentences: number of sentences.
        differing: ids of the sentences that differ from the ``SequenceGenerator``'s, by engine.
        rows: number of decoder rows computed, by engine.
        tokens: number of tokens that the ``SequenceGenerator`` wrote.
    """

    sentences: int
    differing: dict[str, list[int]]
    rows: dict[str, int]
    tokens: int


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    _, task = configured(args, [])
    student = in_precision(load_model(args.student, task).eval(), args)
    samples = sentences_of(args, task, student, first=0)
    engines = build_engines(args, task, student)
    with autocast(args):
        check, written = compare(engines, samples, task)
    print(report(check, steps.unsupported_reason(student)))

    runs = {
        name: (lambda turn, engine=engine: [engine(sample) for sample in turn.samples])
        for name, engine in engines.items()
    }
    runs |= pools(args, task, student)
    runs[FORWARD] = lambda turn: [forward(student, turn.written)]
    windows = [slice(first, first + args.pool) for first in range(0, len(samples), args.pool)]
    work = [Round(samples[window], list(itertools.chain(*written[window]))) for window in windows]
    pad = task.target_dictionary.pad()
    replayed = None
    with autocast(args):
        if args.device == "cuda":
            before = warm_graphs(engines, sentences_of(args, task, student, first=args.sentences), student)
        seconds, tokens = interleave(
            runs,
            work * args.rounds,
            warmup=0,
            device=args.device,
            keep=lambda results: sum(count(result, pad) for result in results),
        )
        if args.device == "cuda":
            usage = graph_usage(student.decoder)[0]
            replayed = (usage.replayed - before.replayed) / max(usage.blocks - before.blocks, 1)
    speeds = show_speeds(check, seconds, tokens)
    size = statistics.mean(len(sample["id"]) for sample in samples)
    batches = f"{len(samples)} batches of up to {args.max_tokens} tokens, {size:.0f} sentences each"
    together = f", {args.pool} of them in a round" if args.pool > 1 else ""
    print(f"\n{args.rounds} rounds of {batches}{together}; {conditions(args)}")
    if replayed is not None:
        print(f"CUDA graphs replayed {100.0 * replayed:.1f}% of the measured blocks of steps")
    figures = {"seconds": seconds, "tokens": tokens, "speeds": speeds, "replayed": replayed}
    write_json(args, sentences=check.sentences, differing=check.differing, rows=check.rows, **figures)
    sys.exit(1 if args.precision == "fp32" and any(check.differing.values()) else 0)


def arguments() -> argparse.Namespace:
    """Return the checked arguments of the command line."""
    parser = argument_parser(__doc__, "rollout_speed.json", max_tokens=4096, precision=True)
    parser.add_argument("--split", default="train", help="split of the data (default: %(default)s)")
    parser.add_argument(
        "--sentences",
        type=int,
        default=2000,
        help="number of sentences from its start; 0: all (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="measured rounds per batch (default: %(default)s)"
    )
    parser.add_argument(
        "--max-len-a", type=float, default=1.2, help="A of the maximum length, A * source length + B tokens"
    )
    parser.add_argument(
        "--max-len-b", type=int, default=10, help="B of the maximum length, A * source length + B tokens"
    )
    parser.add_argument(
        "--pool",
        type=int,
        default=1,
        metavar="N",
        help="batches of a round; with 2 or more, also decode them together (default: %(default)s)",
    )
    args = parser.parse_args()
    check_arguments(args, rounds=1, sentences=0, pool=1)
    return args


def show_speeds(
    check: Check, seconds: dict[str, list[float]], tokens: dict[str, list[int]]
) -> dict[str, list[float]]:
    """Print each engine's speed as a multiple of fairseq's, and return it for each measurement."""
    paces = {
        name: [time / n for time, n in zip(times, tokens[name], strict=True)]
        for name, times in seconds.items()
    }
    speeds, rows = {}, []
    for name, values in paces.items():
        base = SAMPLING_BASE if "sampling" in name else GREEDY_BASE
        speeds[name] = [other / value for value, other in zip(values, paces[base], strict=True)]
        together = (sum(seconds[base]) / sum(tokens[base])) / (sum(seconds[name]) / sum(tokens[name]))
        per_token = f"{check.rows[name] / check.tokens:.3f}" if name in check.rows else ""
        rows.append([name, *quartiles(speeds[name]), f"{together:.2f}", per_token])
    header = ["decoding", "x SequenceGenerator (median)", "quartiles", "all batches together"]
    print(table([*header, "rows computed per token"], rows))
    return speeds


def warm_graphs(engines: dict[str, Callable[[Batch], Any]], samples: list[Batch], student: Any) -> Usage:
    """Capture graphs on batches that are not measured; return how often graphs were used until then.

    A graph is captured when its sizes are met for the second time.
    """
    release_graphs()
    for name in engines.keys() & {GRAPHS, GRAPHS_SAMPLING}:
        for sample in samples:
            engines[name](sample)
    return graph_usage(student.decoder)[0]


def sentences_of(
    args: argparse.Namespace, task: Any, student: BaseFairseqModel, *, first: int
) -> list[Batch]:
    """Return ``--sentences`` of the split in fairseq's batches, except those too long for the student.

    Args:
        args: arguments of the command line.
        task: the task.
        student: the student.
        first: number of the first sentence; beyond the split's end, sentences are those of its start.
    """
    try:
        task.load_dataset(args.split)
    except FileNotFoundError as error:
        sys.exit(f"--split {args.split}: {error}")
    dataset = task.dataset(args.split)
    with data_utils.numpy_seed(1):  # fairseq shuffles sentences of the same length
        indices = dataset.ordered_indices()
    if args.sentences:
        offset = (indices - first) % len(dataset)
        indices = indices[offset < args.sentences]
    longest = utils.resolve_max_positions(task.max_positions(), student.max_positions(), args.max_tokens)
    indices, left_out = dataset.filter_indices_by_size(indices, longest)
    if left_out:
        print(
            f"{len(left_out)} sentences are left out: they are too long for the student or for "
            f"--max-tokens {args.max_tokens}"
        )
    batches = dataset.batch_by_size(indices, max_tokens=args.max_tokens)
    if math.ceil(len(batches) / args.pool) * args.rounds < 2:
        sys.exit(
            f"--sentences {args.sentences} and --rounds {args.rounds} give fewer than two measurements; "
            "raise one of them"
        )
    samples = [dataset.collater([dataset[int(index)] for index in batch]) for batch in batches]
    return [on_device(sample, args.device) for sample in samples]


def build_engines(
    args: argparse.Namespace, task: Any, student: BaseFairseqModel
) -> dict[str, Callable[[Batch], Any]]:
    """Return all engines by name, each a function of a batch. The generators are built here once."""

    def generator_of(seq_gen_cls: Any, sampling: bool) -> Any:
        lengths = {"max_len_a": args.max_len_a, "max_len_b": args.max_len_b, "min_len": MIN_LENGTH}
        settings = argparse.Namespace(beam=1, sampling=sampling, **lengths)
        return task.build_generator([student], settings, seq_gen_cls=seq_gen_cls)

    def stock(sampling: bool) -> Callable[[Batch], Any]:
        built = generator_of(SequenceGenerator, sampling)
        return lambda sample: built.generate([student], sample)

    def ours(sampling: bool) -> Callable[[Batch], Any]:
        """Return our generator, with the ``SequenceGenerator``'s one maximum length per batch."""
        built = generator_of(None, sampling)

        def with_limit_of_batch(sample: Batch) -> Any:
            width = sample["net_input"]["src_tokens"].size(1)
            built.max_len_a, built.max_len_b = 0, int(args.max_len_a * width + args.max_len_b)
            return built.generate([student], sample)

        return with_limit_of_batch

    def roll_out(policy: RolloutPolicy) -> Callable[[Batch], Rollout]:
        return lambda sample: write(student, [sample], policy, task)

    lengths = {"max_len_a": args.max_len_a, "max_len_b": args.max_len_b}
    greedy, sampling = (RolloutPolicy(name, **lengths, cuda_graphs=False) for name in ("greedy", "sampling"))
    engine = roll_out(greedy)

    def generic(sample: Batch) -> Rollout:
        with without_fast_path():
            return engine(sample)

    with_graphs = {GRAPHS: greedy, GRAPHS_SAMPLING: sampling} if args.device == "cuda" else {}
    on_gpus = {name: roll_out(replace(policy, cuda_graphs=True)) for name, policy in with_graphs.items()}
    return {
        GREEDY_BASE: stock(sampling=False),
        f"{GREEDY_BASE} (again)": stock(sampling=False),
        OURS: ours(sampling=False),
        ENGINE: engine,
        GENERIC: generic,
        SAMPLING_BASE: stock(sampling=True),
        f"{SAMPLING_BASE} (again)": stock(sampling=True),
        OURS_SAMPLING: ours(sampling=True),
        ENGINE_SAMPLING: roll_out(sampling),
        **on_gpus,
    }


def pools(
    args: argparse.Namespace, task: Any, student: BaseFairseqModel
) -> dict[str, Callable[[Round], list[Rollout]]]:
    """Return the engines that decode the batches of a round together, by name."""
    lengths = {"max_len_a": args.max_len_a, "max_len_b": args.max_len_b}
    graphs = (False, True) if args.device == "cuda" else (False,)
    policies = [RolloutPolicy("greedy", **lengths, cuda_graphs=on) for on in graphs]
    return {
        f"{GRAPHS if policy.cuda_graphs else ENGINE}, {args.pool} batches together": (
            lambda turn, policy=policy: [write(student, turn.samples, policy, task)]
        )
        for policy in policies
        if args.pool > 1
    }


def write(student: BaseFairseqModel, samples: Sequence[Batch], policy: RolloutPolicy, task: Any) -> Rollout:
    """Roll out batches together as in training, but with the ``SequenceGenerator``'s one maximum length for
    all sentences.
    """
    parts = [
        encoder_inputs(
            sample,
            torch.arange(len(sample["id"]), device=sample["id"].device),
            task.source_dictionary.pad(),
        )
        for sample in samples
    ]
    net_input, order = (parts[0], None) if len(parts) == 1 else join_encoder_inputs(parts, layout=task.layout)
    first_tokens = torch.cat([first_decoder_inputs(sample) for sample in samples])
    width = torch.full_like(net_input["src_lengths"], net_input["src_tokens"].size(1))
    max_lengths = policy.max_lengths(width, student.max_decoder_positions())
    return decode(
        student,
        Prompt(net_input, first_tokens if order is None else first_tokens[order], max_lengths),
        policy,
        symbols=SpecialSymbols.from_dictionary(task.target_dictionary),
        uniforms=sampling_uniforms([(RandomKey(1, 0), sample["id"]) for sample in samples], order),
        min_length=MIN_LENGTH,
    )


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Make the engine use its generic steps, as for a student that the fast path does not support."""
    with mock.patch.object(steps, "unsupported_reason", return_value="the benchmark asks for them"):
        yield


@torch.no_grad()
def forward(student: BaseFairseqModel, written: list[Batch]) -> list[Batch]:
    """Compute the logits after every prefix of the written targets, part by part."""
    for part in written:
        student(**part["net_input"])
    return written


def in_parts(sample: Batch, rollout: Rollout, layout: BatchLayout) -> list[Batch]:
    """Return a batch with the written targets, divided as in training, so that little padding is computed."""
    rows = torch.arange(len(sample["id"]), device=sample["id"].device)
    whole = with_rollouts(sample, rows, rollout, pad=layout.target.pad)
    if sample["id"].device.type not in PART_COST:
        return [whole]
    parts = split_by_length(whole["target"], layout.target.pad, PART_COST[sample["id"].device.type])
    return [take(whole, part, layout=layout) for part in parts]


def compare(
    engines: dict[str, Callable[[Batch], Any]], samples: list[Batch], task: Any
) -> tuple[Check, list[list[Batch]]]:
    """Compare the tokens of all greedy engines with fairseq's, and count the rows that each computes.

    Returns:
        the result, and each batch with the rollout engine's targets.
    """
    greedy = [name for name in (GREEDY_BASE, OURS, ENGINE, GENERIC, GRAPHS) if name in engines]
    check = Check(0, {name: [] for name in greedy[1:]}, dict.fromkeys((*greedy, FORWARD), 0), 0)
    target, written = task.target_dictionary, []
    for sample in tqdm(samples, unit="batch", desc="comparing", mininterval=2.0):
        texts = {}
        for name in greedy:
            with counting_rows() as counted:
                result = engines[name](sample)
            check.rows[name] += sum(counted)
            texts[name] = sentences(result, target)
            if name == OURS and not counted:
                sys.exit(
                    "the task's generator does not use the rollout engine for this student; "
                    "use another --student"
                )
            if name == ENGINE:
                written.append(in_parts(sample, result, task.layout))
        check.sentences += len(texts[GREEDY_BASE])
        check.tokens += sum(map(len, texts[GREEDY_BASE]))
        check.rows[FORWARD] += sum(part["target"].numel() for part in written[-1])
        for name, differing in check.differing.items():
            same = [one == other for one, other in zip(texts[GREEDY_BASE], texts[name], strict=True)]
            differing += [
                number for number, equal in zip(sample["id"].tolist(), same, strict=True) if not equal
            ]
    return check, written


@contextmanager
def counting_rows() -> Iterator[list[int]]:
    """Collect the decoder rows that a ``SequenceGenerator`` or the rollout engine computes."""
    counted: list[int] = []
    forward_decoder, engine = EnsembleModel.forward_decoder, generator.decode

    def step(self: Any, tokens: torch.Tensor, *others: Any) -> Any:
        counted.append(tokens.size(0))
        return forward_decoder(self, tokens, *others)

    def rolled_out(*args: Any, **kwargs: Any) -> Rollout:
        rollout = engine(*args, **kwargs)
        counted.append(rollout.rows_computed)
        return rollout

    with (
        mock.patch.object(EnsembleModel, "forward_decoder", step),
        mock.patch.object(generator, "decode", rolled_out),
        mock.patch(f"{__name__}.decode", rolled_out),
    ):
        yield counted


def sentences(result: Any, target: Any) -> list[list[int]]:
    """Return each row's tokens with a final EOS; the engine omits it in rows that are cut."""
    if not isinstance(result, Rollout):
        return [hypotheses[0]["tokens"].tolist() for hypotheses in result]
    rows = [row[row.ne(target.pad())].tolist() for row in result.tokens]
    return [row + [target.eos()] * cut for row, cut in zip(rows, result.truncated.tolist(), strict=True)]


def count(result: Any, pad: int) -> int:
    """Return the number of tokens written, counting an EOS for every sentence."""
    if isinstance(result, Rollout):
        return int(result.tokens.ne(pad).sum() + result.truncated.sum())
    if isinstance(result[0], dict):
        return sum(part["ntokens"] for part in result)
    return sum(hypotheses[0]["tokens"].numel() for hypotheses in result)


def report(check: Check, reason: str | None) -> str:
    """Describe the comparison and the engine's steps; ``reason`` says why the fast path is not used."""
    lines = [
        f"steps of the rollout engine: {'the fast path' if reason is None else f'generic, because {reason}'}"
    ]
    for name, differing in check.differing.items():
        where = (
            f": {', '.join(map(str, sorted(differing)[:10]))}{', …' if len(differing) > 10 else ''}"
            if differing
            else ""
        )
        lines.append(
            f"{name}: {len(differing)} of {check.sentences} sentences differ from {GREEDY_BASE}'s{where}"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
