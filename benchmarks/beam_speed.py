"""How fast a corpus is translated by beam search: what imitkd-seqkd decodes with, beside fairseq's own generator.

    python benchmarks/beam_speed.py DATA_BIN --teacher TEACHER.pt [--beam 5] [--sentences 2000] [--commands ROUNDS]

The first sentences of the training data, in ``imitkd-seqkd``'s own batches, are translated by fairseq's ``SequenceGenerator``,
which is what ``fairseq-generate`` calls, and by both backends of ``imitkd-seqkd``: fairseq's, and CTranslate2's in float32 and
int8. First the hypotheses are compared: the fairseq backend's must be the ``SequenceGenerator``'s on every sentence, or the
exit status is 1. Then each round takes one batch and lets everything translate it once, in an order drawn anew; a speed is the
``SequenceGenerator``'s time over another's in the same round, and it runs twice, so that the row ``(again)`` shows what noise
alone does.

With ``--commands`` whole commands are run so many times, one after another, on these sentences: ``fairseq-generate`` and
``imitkd-seqkd`` by each backend, start and end included.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import (
    TEACHER,
    argument_parser,
    check_arguments,
    conditions,
    configured,
    interleave,
    load_model,
    quartiles,
    table,
    write_json,
)
from fairseq.data import data_utils
from fairseq.sequence_generator import SequenceGenerator
from fairseq_imitkd.data.directory.corpus import Corpus, Languages, of_split, whole_dataset
from fairseq_imitkd.teacher.teacher.loading import load_teacher
from sacrebleu.metrics import CHRF
from tqdm import tqdm

import fairseq_imitkd
from fairseq_imitkd.engines import ctranslate2_convert
from fairseq_imitkd.engines.base import Decoding, FairseqBackend, Hypothesis
from fairseq_imitkd.engines.ctranslate2 import CTranslateBackend
from fairseq_imitkd.seqkd.dataset import Filters
from fairseq_imitkd.seqkd.factory import Job, plan

BASE, OURS = "SequenceGenerator", "fairseq backend"
QUANTIZATIONS = ("float32", "int8")
SPLIT = "test"  # what the first sentences are called, of a folder of their own
Batch = tuple[list[int], list[torch.Tensor]]


def main() -> None:
    parser = argument_parser(__doc__, "beam_speed.json", max_tokens=4096, student=False)
    parser.add_argument("--teacher", type=Path, default=TEACHER, help="default: %(default)s")
    parser.add_argument(
        "--sentences", type=int, default=2000, help="how many of the training data (default: %(default)s)"
    )
    parser.add_argument("--beam", type=int, default=5, help="default: %(default)s")
    parser.add_argument(
        "--rounds", type=int, default=2, help="measured rounds for each batch (default: %(default)s)"
    )
    parser.add_argument(
        "--commands", type=int, default=0, metavar="ROUNDS", help="runs of whole commands (default: none)"
    )
    args = parser.parse_args()
    check_arguments(args, rounds=1, sentences=1, beam=1, commands=0)

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        languages = Languages.of(args.data, None, None)
        corpus = first_sentences(args, languages)
        engines, batches = build_engines(args, languages, corpus, folder)
        found, differing = compare(engines, batches, languages)
        print(table(["best hypotheses", "the SequenceGenerator's", "chrF against it"], found))
        speeds = measure(args, engines, batches)
        commands = run_commands(args, languages, corpus, folder) if args.commands else {}
    write_json(args, hypotheses=found, speeds=speeds, commands=commands)
    sys.exit(1 if differing else 0)


def first_sentences(args: argparse.Namespace, languages: Languages) -> Corpus:
    whole = of_split(languages, "train")
    if len(whole) < args.sentences:
        sys.exit(
            f"--sentences must be at most {len(whole)}, all of the training data, but is {args.sentences}"
        )
    return Corpus(Head(whole.sources, args.sentences), None)


class Head:
    """The first sentences of a data set."""

    def __init__(self, dataset: Any, count: int):
        self.dataset, self.sizes = dataset, dataset.sizes[:count]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.dataset[number]


def build_engines(
    args: argparse.Namespace, languages: Languages, corpus: Corpus, folder: Path
) -> tuple[dict[str, Callable[[Batch], list[Hypothesis]]], list[Batch]]:
    """Everything that translates, by name, each the best of every sentence of a batch; and the batches."""
    decoding, device = Decoding(beam=args.beam), torch.device(args.device)
    teacher = load_teacher(str(args.teacher), languages, "fp32", None, None)
    longest = teacher.max_positions
    backends: dict[str, Any] = {}
    for quantization in QUANTIZATIONS:
        model = folder / quantization
        ctranslate2_convert.convert(
            teacher.models[0], languages.source_dictionary, languages.target_dictionary, model, quantization
        )
        name = f"CTranslate2, {quantization}"
        backends[name] = CTranslateBackend(model, languages, decoding, longest[1], device, quantization)
    teacher.place(device, torch.float32)
    backends = {OURS: FairseqBackend(teacher.writer, languages, decoding, longest[1]), **backends}

    _, task = configured(args, [])
    stock_model = load_model(args.teacher, task).eval().to(device)
    settings = argparse.Namespace(
        beam=args.beam, max_len_a=decoding.max_len_a, max_len_b=decoding.max_len_b, min_len=1
    )
    generator = task.build_generator([stock_model], settings, seq_gen_cls=SequenceGenerator)
    pad, eos = languages.source_dictionary.pad(), languages.source_dictionary.eos()

    def stock(batch: Batch) -> list[Hypothesis]:
        tokens = data_utils.collate_tokens(batch[1], pad, eos, left_pad=True).to(device)
        lengths = torch.tensor([source.numel() for source in batch[1]], device=device)
        made = generator.generate(
            [stock_model], {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}
        )
        return [Hypothesis(some[0]["tokens"].cpu(), float(some[0]["score"]), False) for some in made]

    def through(backend: Any) -> Callable[[Batch], list[Hypothesis]]:
        return lambda batch: [some[0] for some in backend.translate(*batch, 1)]

    job = Job(args.data, str(args.teacher), folder / "out", decoding, Filters(), max_tokens=args.max_tokens)
    batches = [
        (numbers.tolist(), [corpus.sources[number].long() for number in numbers])
        for numbers in plan(corpus, job, longest[0])
    ]
    return {
        BASE: stock,
        f"{BASE} (again)": stock,
        **{name: through(each) for name, each in backends.items()},
    }, batches


def compare(
    engines: dict[str, Callable[[Batch], list[Hypothesis]]], batches: Sequence[Batch], languages: Languages
) -> tuple[list[list[str]], bool]:
    """How many of each engine's best hypotheses are the base's; and whether those differ that must not."""
    outputs: dict[str, list[list[int]]] = {}
    for name, engine in engines.items():
        if "again" not in name:
            translated = [engine(batch) for batch in tqdm(batches, unit="batch", desc=name, mininterval=2.0)]
            outputs[name] = [hypothesis.tokens.tolist() for some in translated for hypothesis in some]
    texts = {
        name: [languages.target_dictionary.string(torch.tensor(tokens)) for tokens in some]
        for name, some in outputs.items()
    }
    rows = []
    for name, some in outputs.items():
        same = sum(one == other for one, other in zip(some, outputs[BASE], strict=True))
        rows.append(
            [
                name,
                f"{same:,} of {len(some):,}",
                f"{CHRF().corpus_score(texts[name], [texts[BASE]]).score:.1f}",
            ]
        )
    return rows[1:], outputs[OURS] != outputs[BASE]


def measure(
    args: argparse.Namespace,
    engines: dict[str, Callable[[Batch], list[Hypothesis]]],
    batches: Sequence[Batch],
) -> dict[str, list[float]]:
    """Print how many times as fast as the base each engine is."""
    seconds, _ = interleave(engines, list(batches) * args.rounds, 0, args.device, keep=len)
    speeds = {
        name: [base / own for base, own in zip(seconds[BASE], times, strict=True)]
        for name, times in seconds.items()
    }
    rows = [
        [name, *quartiles(speeds[name]), f"{sum(seconds[BASE]) / sum(times):.2f}"]
        for name, times in seconds.items()
    ]
    print("\n" + table(["beam search", f"x {BASE} (median)", "quartiles", "all batches together"], rows))
    batch = f"{len(batches)} batches of up to {args.max_tokens} source tokens"
    print(f"\nbeam {args.beam}; {args.rounds} rounds of {batch}; {conditions(args)}")
    return speeds


def run_commands(
    args: argparse.Namespace, languages: Languages, corpus: Corpus, folder: Path
) -> dict[str, list[float]]:
    """Print how many times as fast as ``fairseq-generate`` whole runs of ``imitkd-seqkd`` are."""
    data = folder / "data"
    data.mkdir()
    for language, dictionary in (
        (languages.source, languages.source_dictionary),
        (languages.target, languages.target_dictionary),
    ):
        shutil.copy(languages.folder / f"dict.{language}.txt", data)
        with whole_dataset(data / f"{SPLIT}.{languages.pairs[0]}.{language}", len(dictionary)) as builder:
            for number in range(len(corpus)):
                builder.add_item(corpus.sources[number].int())
    common = ["--beam", str(args.beam), "--max-tokens", str(args.max_tokens), "--gen-subset", SPLIT]
    common += ["--cpu"] if args.device == "cpu" else []
    bin_folder, out = Path(sys.executable).parent, folder / "made"
    ours = [bin_folder / "imitkd-seqkd", data, "--teacher-path", args.teacher, "--out", out, *common]
    by_ctranslate2 = [[*ours, "--backend", "ctranslate2", "--quantization", name] for name in QUANTIZATIONS]
    # The plugin lets fairseq read checkpoints with this torch; a checkpoint of task translation keeps fairseq's generator.
    stock = [bin_folder / "fairseq-generate", data, "--path", args.teacher, *common]
    stock += ["--user-dir", Path(fairseq_imitkd.__file__).parent, "--task", "translation"]
    commands = (stock, ours, *by_ctranslate2, [*ours, "--workers", "2"])
    known = {str(part) for part in (data, args.teacher, out, *common)}
    runs = {" ".join(_shown(command, known)): command for command in commands}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in tqdm(range(args.commands), unit="round", desc="commands"):
        for name, command in runs.items():
            shutil.rmtree(out, ignore_errors=True)
            begun = time.perf_counter()
            done = subprocess.run(
                [str(part) for part in command], capture_output=True, text=True, check=False
            )
            if done.returncode:
                sys.exit(f"{name} failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
            seconds[name].append(time.perf_counter() - begun)
    base = seconds[next(iter(runs))]
    rows = []
    for name, times in seconds.items():
        faster = statistics.median(one / other for one, other in zip(base, times, strict=True))
        rows.append([f"`{name}`", f"{faster:.2f}", f"{statistics.median(times):.0f}"])
    print("\n" + table(["command", "x fairseq-generate (median)", "seconds (median)"], rows))
    return seconds


def _shown(command: Sequence[Any], known: set[str]) -> list[str]:
    """A command's name and the flags in which it differs from the others."""
    name, *flags = map(str, command)
    alike = (
        *known,
        "--teacher-path",
        "--path",
        "--out",
        "--user-dir",
        str(Path(fairseq_imitkd.__file__).parent),
    )
    return [Path(name).name, *(flag for flag in flags if flag not in alike)]


if __name__ == "__main__":
    main()
