"""How fast rollouts are written beside fairseq's own SequenceGenerator: ratios of interleaved pairs, on the same batches.

    python benchmarks/rollout_speed.py DATA_BIN --student STUDENT.pt [--sentences 2000] [--split train] [--json FILE]

The first sentences of a split, in fairseq's own batches of like length, are decoded greedily by fairseq's
``SequenceGenerator`` (beam 1), by the generator that ``fairseq-generate`` gets from this task, by the rollout engine as
training calls it, and by the engine's generic steps, which every student without a fast path takes; they are sampled by
fairseq's ``search.Sampling`` and by both of ours. On a GPU the engine decodes them by CUDA graphs as well. A teacher-forced
forward pass over the very tokens that were written is the least that the same arithmetic costs when nothing has to wait for
the token before.

First the tokens are compared: all greedy ones must be fairseq's, on every sentence, under the same caps, or the exit
status is 1. Then each round takes one batch and lets everything decode it once, in an order drawn anew. A speed is in
tokens written per second, over that of the ``SequenceGenerator`` in the same round; it runs twice a round, so the rows
``(again)`` show what noise alone does (of sampling, also that every run writes something else).
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from common import (
    Batch,
    argument_parser,
    check_arguments,
    conditions,
    configured,
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
from fairseq_imitkd.mixing.mixer.batch import (
    encoder_inputs,
    first_decoder_inputs,
    parts_by_length,
    take,
    with_rollouts,
)
from tqdm import tqdm

from fairseq_imitkd.rollout import (
    RandomKey,
    Rollout,
    RolloutPolicy,
    decode,
    generator,
    sampling_uniforms,
    steps,
)
from fairseq_imitkd.tasks.translation import PART_COST

MIN_LENGTH = 1  # fairseq's default: no empty translation
GREEDY_BASE, SAMPLING_BASE = "SequenceGenerator", "SequenceGenerator, sampling"
OURS, ENGINE, GENERIC = "our generator", "rollout engine", "rollout engine, generic steps"
GRAPHS, GRAPHS_SAMPLING = "rollout engine, CUDA graphs", "rollout engine, CUDA graphs, sampling"
OURS_SAMPLING, ENGINE_SAMPLING = "our generator, sampling", "rollout engine, sampling"
FORWARD = "teacher-forced forward"


@dataclass(frozen=True)
class Round:
    """A batch to decode, and the same sentences with what was written as their targets, in parts of like length."""

    sample: Batch
    written: list[Batch]


@dataclass
class Check:
    """What the comparison found, over all batches."""

    sentences: int
    differing: dict[str, list[int]]  # ids of sentences that came out otherwise than the SequenceGenerator's
    rows: dict[str, int]  # decoder rows computed
    tokens: int  # written by the SequenceGenerator


def main() -> None:
    parser = argument_parser(__doc__, "rollout_speed.json", max_tokens=4096)
    parser.add_argument("--split", default="train", help="of the data folder (default: %(default)s)")
    parser.add_argument(
        "--sentences", type=int, default=2000, help="how many, from its start; 0: all (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="measured rounds for each batch (default: %(default)s)"
    )
    parser.add_argument(
        "--max-len-a", type=float, default=1.2, help="at most A * source length + B tokens: A"
    )
    parser.add_argument("--max-len-b", type=int, default=10, help="at most A * source length + B tokens: B")
    args = parser.parse_args()
    check_arguments(args, rounds=1, sentences=0)

    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    _, task = configured(args, [])
    student = load_model(args.student, task).eval()
    if args.device == "cuda":
        student.cuda()
    samples = first_sentences(args, task, student)
    engines = build_engines(args, task, student)

    check, written = compare(engines, samples, task)
    print(report(check, steps.why_not(student)))

    for name in engines.keys() & {
        GRAPHS,
        GRAPHS_SAMPLING,
    }:  # the second time that a size is met it is captured
        for sample in samples * 2:
            engines[name](sample)
    work = [Round(sample, target) for sample, target in zip(samples, written, strict=True)]
    runs = {name: (lambda turn, engine=engine: engine(turn.sample)) for name, engine in engines.items()}
    runs[FORWARD] = lambda turn: forward(student, turn.written)
    pad = task.target_dictionary.pad()
    seconds, tokens = interleave(
        runs, work * args.rounds, 0, args.device, keep=lambda result: count(result, pad)
    )
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
    header = [
        "decoding",
        "x SequenceGenerator (median)",
        "quartiles",
        "all batches together",
        "rows computed a token",
    ]
    print(table(header, rows))
    size = statistics.mean(len(sample["id"]) for sample in samples)
    batches = f"{len(samples)} batches of up to {args.max_tokens} tokens, {size:.0f} sentences each"
    print(f"\n{args.rounds} rounds of {batches}; {conditions(args)}")
    figures = {"seconds": seconds, "tokens": tokens, "speeds": speeds}
    write_json(args, sentences=check.sentences, differing=check.differing, rows=check.rows, **figures)
    sys.exit(1 if any(check.differing.values()) else 0)


def first_sentences(args: argparse.Namespace, task: Any, student: BaseFairseqModel) -> list[Batch]:
    """The first sentences of the split in fairseq's own batches, none left out but those too long for the student."""
    try:
        task.load_dataset(args.split)
    except FileNotFoundError as error:
        sys.exit(f"--split {args.split}: {error}")
    dataset = task.dataset(args.split)
    with data_utils.numpy_seed(1):  # fairseq shuffles sentences of the same length
        indices = dataset.ordered_indices()
    indices = indices[indices < args.sentences] if args.sentences else indices
    longest = utils.resolve_max_positions(task.max_positions(), student.max_positions(), args.max_tokens)
    indices, left_out = dataset.filter_indices_by_size(indices, longest)
    if left_out:
        print(
            f"{len(left_out)} sentences left out: longer than the student or --max-tokens {args.max_tokens} allows"
        )
    batches = dataset.batch_by_size(indices, max_tokens=args.max_tokens)
    if len(batches) * args.rounds < 2:
        sys.exit(
            f"--sentences {args.sentences} and --rounds {args.rounds} leave fewer than two measurements: raise one"
        )
    samples = [dataset.collater([dataset[int(index)] for index in batch]) for batch in batches]
    return [on_device(sample, args.device) for sample in samples]


def build_engines(
    args: argparse.Namespace, task: Any, student: BaseFairseqModel
) -> dict[str, Callable[[Batch], Any]]:
    """Everything that decodes, by name; each takes a batch. The generators are built here, once."""

    def generate(seq_gen_cls: Any, sampling: bool) -> Callable[[Batch], Any]:
        lengths = {"max_len_a": args.max_len_a, "max_len_b": args.max_len_b, "min_len": MIN_LENGTH}
        settings = argparse.Namespace(beam=1, sampling=sampling, **lengths)
        built = task.build_generator([student], settings, seq_gen_cls=seq_gen_cls)
        return lambda sample: built.generate([student], sample)

    def roll_out(policy: RolloutPolicy, cuda_graphs: bool = False) -> Callable[[Batch], Rollout]:
        return lambda sample: write(
            student, sample, policy, task.source_dictionary, task.target_dictionary, cuda_graphs
        )

    lengths = {"max_len_a": args.max_len_a, "max_len_b": args.max_len_b}
    greedy, sampling = RolloutPolicy("greedy", **lengths), RolloutPolicy("sampling", **lengths)
    engine = roll_out(greedy)

    def generic(sample: Batch) -> Rollout:
        with without_fast_path():
            return engine(sample)

    on_gpus = (
        {GRAPHS: roll_out(greedy, True), GRAPHS_SAMPLING: roll_out(sampling, True)}
        if args.device == "cuda"
        else {}
    )
    return {
        GREEDY_BASE: generate(SequenceGenerator, sampling=False),
        f"{GREEDY_BASE} (again)": generate(SequenceGenerator, sampling=False),
        OURS: generate(None, sampling=False),
        ENGINE: engine,
        GENERIC: generic,
        SAMPLING_BASE: generate(SequenceGenerator, sampling=True),
        f"{SAMPLING_BASE} (again)": generate(SequenceGenerator, sampling=True),
        OURS_SAMPLING: generate(None, sampling=True),
        ENGINE_SAMPLING: roll_out(sampling),
        **on_gpus,
    }


def write(
    student: BaseFairseqModel,
    sample: Batch,
    policy: RolloutPolicy,
    source: Any,
    target: Any,
    cuda_graphs: bool,
) -> Rollout:
    """Roll a whole batch out as training does, but under ``SequenceGenerator``'s limits: one cap for all its sentences."""
    net_input = encoder_inputs(
        sample, torch.arange(len(sample["id"]), device=sample["id"].device), source.pad()
    )
    width = torch.full_like(net_input["src_lengths"], net_input["src_tokens"].size(1))
    return decode(
        student,
        net_input,
        first_decoder_inputs(sample),
        policy.max_lengths(width, student.max_decoder_positions()),
        policy,
        pad=target.pad(),
        eos=target.eos(),
        uniforms=sampling_uniforms([(RandomKey(seed=1, update=0), sample["id"])]),
        min_length=MIN_LENGTH,
        cuda_graphs=cuda_graphs,
    )


@contextmanager
def without_fast_path() -> Iterator[None]:
    """The engine finds an objection to every student inside, and so takes the steps that any decoder can take."""
    with mock.patch.object(steps, "why_not", return_value="the benchmark says so"):
        yield


@torch.no_grad()
def forward(student: BaseFairseqModel, written: list[Batch]) -> list[Batch]:
    """Logits after every prefix of what was written, all of a part at once."""
    for part in written:
        student(**part["net_input"])
    return written


def in_parts(sample: Batch, rollout: Rollout, source_pad: int, target_pad: int) -> list[Batch]:
    """A batch with what was written in it, divided as training divides it, so that hardly any padding is computed."""
    rows = torch.arange(len(sample["id"]), device=sample["id"].device)
    whole = with_rollouts(sample, rows, rollout, target_pad)
    if sample["id"].device.type not in PART_COST:
        return [whole]
    parts = parts_by_length(whole["target"], target_pad, PART_COST[sample["id"].device.type])
    return [take(whole, part, source_pad, target_pad) for part in parts]


def compare(
    engines: dict[str, Callable[[Batch], Any]], samples: list[Batch], task: Any
) -> tuple[Check, list[list[Batch]]]:
    """Whether everything greedy writes fairseq's tokens, the work it does for them, and each batch with them in it."""
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
                    "the task's generator does not use the rollout engine for this student: there is nothing to measure"
                )
            if name == ENGINE:
                written.append(in_parts(sample, result, task.source_dictionary.pad(), target.pad()))
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
    """Note the decoder rows that a ``SequenceGenerator`` or the rollout engine computes inside."""
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
    """Each row's tokens, EOS last; the engine leaves it out where the cap cut, fairseq puts it there."""
    if not isinstance(result, Rollout):
        return [hypotheses[0]["tokens"].tolist() for hypotheses in result]
    rows = [row[row.ne(target.pad())].tolist() for row in result.tokens]
    return [row + [target.eos()] * cut for row, cut in zip(rows, result.truncated.tolist(), strict=True)]


def count(result: Any, pad: int) -> int:
    """Tokens written, with an EOS for every sentence."""
    if isinstance(result, Rollout):
        return int(result.tokens.ne(pad).sum() + result.truncated.sum())
    if isinstance(result[0], dict):
        return sum(part["ntokens"] for part in result)
    return sum(hypotheses[0]["tokens"].numel() for hypotheses in result)


def report(check: Check, objection: str | None) -> str:
    """The comparison in words, and which steps the engine takes."""
    lines = [
        f"steps of the rollout engine: {'the fast path' if objection is None else f'generic, since {objection}'}"
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
