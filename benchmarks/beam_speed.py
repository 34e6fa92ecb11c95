"""Compares the speed of ``imitkd-seqkd``'s beam search with that of fairseq's generator.

    python benchmarks/beam_speed.py DATA_BIN --teacher TEACHER.pt
        [--beam 5] [--sentences 2000] [--commands N]

The first sentences of the training data, in the batches of ``imitkd-seqkd``, are translated by fairseq's
``SequenceGenerator`` (which ``fairseq-generate`` calls) and by both backends of ``imitkd-seqkd``: fairseq,
and CTranslate2 in float32 and int8. First the hypotheses are compared. The exit status is 1 if the fairseq
backend's differ from the ``SequenceGenerator``'s on any sentence. Then every engine translates one batch in
each round, in a new random order. A speed is the ``SequenceGenerator``'s time divided by the engine's time in
the same round. The ``SequenceGenerator`` runs twice, so the row ``(again)`` shows the noise.

With ``--commands N`` complete commands run N times on these sentences, start-up included:
``fairseq-generate``, and ``imitkd-seqkd`` with each backend.
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
from sacrebleu.metrics import CHRF
from tqdm import tqdm

import fairseq_imitkd
from fairseq_imitkd.data.corpus import Corpus, Languages, dataset_builder, read_split
from fairseq_imitkd.engines import ctranslate2_convert
from fairseq_imitkd.engines.base import Hypothesis, SearchSettings
from fairseq_imitkd.engines.ctranslate2 import CTranslate2Engine
from fairseq_imitkd.engines.fairseq import FairseqEngine
from fairseq_imitkd.seqkd.filters import Filters
from fairseq_imitkd.seqkd.job import Job
from fairseq_imitkd.seqkd.work import plan
from fairseq_imitkd.teacher.loading import load_teacher
from fairseq_imitkd.teacher.source import TeacherSource
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.text.scored import ScoredText

BASE, OURS = "SequenceGenerator", "fairseq backend"
QUANTIZATIONS = ("float32", "int8")
SPLIT = "test"  # name of the split that holds the first sentences, in a folder for the commands
Batch = tuple[list[int], list[torch.Tensor]]
Translate = Callable[[Batch], list[Hypothesis]]


def main() -> None:
    parser = argument_parser(__doc__, "beam_speed.json", max_tokens=4096, student=False)
    parser.add_argument("--teacher", type=Path, default=TEACHER, help="default: %(default)s")
    parser.add_argument(
        "--sentences", type=int, default=2000, help="number of training sentences (default: %(default)s)"
    )
    parser.add_argument("--beam", type=int, default=5, help="beam size (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=2, help="measured rounds per batch (default: %(default)s)"
    )
    parser.add_argument(
        "--commands", type=int, default=0, metavar="N", help="runs of complete commands (default: none)"
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
    """Return the first training sentences."""
    whole = read_split(languages, "train")
    if len(whole) < args.sentences:
        sys.exit(
            f"--sentences must be at most {len(whole)}, the size of the training data, "
            f"but is {args.sentences}"
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
) -> tuple[dict[str, Translate], list[Batch]]:
    """Return all engines by name, each a function from a batch to its best hypotheses, and the batches."""
    decoding = SearchSettings(beam=args.beam)
    teacher = load_teacher(TeacherSource(str(args.teacher), dtype="fp32"), languages)
    job = Job(args.data, str(args.teacher), folder / "out", decoding, Filters(), max_tokens=args.max_tokens)
    batches = [
        (numbers.tolist(), [corpus.sources[number].long() for number in numbers])
        for numbers in plan(corpus, job, teacher.max_positions[0])
    ]
    stock = stock_engine(args, languages, decoding)
    ours = our_engines(args, languages, decoding, teacher=teacher, folder=folder)
    return {BASE: stock, f"{BASE} (again)": stock, **ours}, batches


def our_engines(
    args: argparse.Namespace,
    languages: Languages,
    decoding: SearchSettings,
    *,
    teacher: Teacher,
    folder: Path,
) -> dict[str, Translate]:
    """Return both backends of ``imitkd-seqkd``; CTranslate2's models are written to the folder."""
    device, longest = torch.device(args.device), teacher.max_positions[1]
    backends: dict[str, Any] = {}
    for quantization in QUANTIZATIONS:
        model = folder / quantization
        ctranslate2_convert.convert(teacher.models[0], languages, model, quantization=quantization)
        backends[f"CTranslate2, {quantization}"] = CTranslate2Engine(
            model, languages, decoding, longest_target=longest, device=device, compute_type=quantization
        )
    teacher.place(device, torch.float32)
    backends = {OURS: FairseqEngine(teacher.writer, languages, decoding, longest_target=longest), **backends}

    def through(backend: Any) -> Translate:
        return lambda batch: [some[0] for some in backend.translate(*batch, 1)]

    return {name: through(backend) for name, backend in backends.items()}


def stock_engine(args: argparse.Namespace, languages: Languages, decoding: SearchSettings) -> Translate:
    """Return fairseq's ``SequenceGenerator`` with the teacher."""
    _, task = configured(args, [])
    model = load_model(args.teacher, task).eval().to(args.device)
    settings = argparse.Namespace(
        beam=args.beam, max_len_a=decoding.max_len_a, max_len_b=decoding.max_len_b, min_len=1
    )
    generator = task.build_generator([model], settings, seq_gen_cls=SequenceGenerator)
    pad, eos = languages.source_dictionary.pad(), languages.source_dictionary.eos()

    def translate(batch: Batch) -> list[Hypothesis]:
        tokens = data_utils.collate_tokens(batch[1], pad, eos, left_pad=True).to(args.device)
        lengths = torch.tensor([source.numel() for source in batch[1]], device=args.device)
        found = generator.generate([model], {"net_input": {"src_tokens": tokens, "src_lengths": lengths}})
        return [Hypothesis(some[0]["tokens"].cpu(), float(some[0]["score"]), False) for some in found]

    return translate


def compare(
    engines: dict[str, Translate], batches: Sequence[Batch], languages: Languages
) -> tuple[list[list[str]], bool]:
    """Compare the best hypotheses.

    Returns:
        a row for each engine with the number of hypotheses that are the base's, and whether the fairseq
        backend's differ, which must not happen.
    """
    outputs: dict[str, list[list[int]]] = {}
    for name, engine in engines.items():
        if "again" not in name:
            translated = [engine(batch) for batch in tqdm(batches, unit="batch", desc=name, mininterval=2.0)]
            outputs[name] = [hypothesis.tokens.tolist() for some in translated for hypothesis in some]
    text = ScoredText(languages.target_dictionary)
    texts = {name: text.hypotheses(map(torch.tensor, some)) for name, some in outputs.items()}
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
    engines: dict[str, Translate],
    batches: Sequence[Batch],
) -> dict[str, list[float]]:
    """Print the speed of each engine as a multiple of the base's."""
    seconds, _ = interleave(engines, list(batches) * args.rounds, warmup=0, device=args.device, keep=len)
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
    """Print the speed of complete runs of ``imitkd-seqkd`` as a multiple of ``fairseq-generate``'s."""
    commands, known = written_commands(args, write_corpus(languages, corpus, folder), folder / "made")
    runs = {" ".join(_shown(command, known)): command for command in commands}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in tqdm(range(args.commands), unit="round", desc="commands"):
        for name, command in runs.items():
            shutil.rmtree(folder / "made", ignore_errors=True)
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


def write_corpus(languages: Languages, corpus: Corpus, folder: Path) -> Path:
    """Write the sentences as a data directory of fairseq and return it."""
    data = folder / "data"
    data.mkdir()
    for language, dictionary in (
        (languages.source, languages.source_dictionary),
        (languages.target, languages.target_dictionary),
    ):
        shutil.copy(languages.folder / f"dict.{language}.txt", data)
        with dataset_builder(data / f"{SPLIT}.{languages.pairs[0]}.{language}", len(dictionary)) as builder:
            for number in range(len(corpus)):
                builder.add_item(corpus.sources[number].int())
    return data


def written_commands(
    args: argparse.Namespace, data: Path, out: Path
) -> tuple[tuple[list[Any], ...], set[str]]:
    """Return the commands to measure, fairseq-generate first, and the words that they share."""
    common = ["--beam", str(args.beam), "--max-tokens", str(args.max_tokens), "--gen-subset", SPLIT]
    common += ["--cpu"] if args.device == "cpu" else []
    bin_folder = Path(sys.executable).parent
    ours = [bin_folder / "imitkd-seqkd", data, "--teacher-path", args.teacher, "--out", out, *common]
    by_ctranslate2 = [[*ours, "--backend", "ctranslate2", "--quantization", name] for name in QUANTIZATIONS]
    # With the plugin, fairseq can read checkpoints with this torch. The task translation keeps fairseq's
    # generator.
    stock = [bin_folder / "fairseq-generate", data, "--path", args.teacher, *common]
    stock += ["--user-dir", Path(fairseq_imitkd.__file__).parent, "--task", "translation"]
    commands = (stock, ours, *by_ctranslate2, [*ours, "--workers", "2"])
    return commands, {str(part) for part in (data, args.teacher, out, *common)}


def _shown(command: Sequence[Any], known: set[str]) -> list[str]:
    """Return a command's name and the flags that distinguish it from the others."""
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
