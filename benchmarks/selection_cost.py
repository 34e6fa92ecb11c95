"""Measures what better data cost: minimum Bayes risk and a reverse teacher, in multiples of plain decoding.

    python benchmarks/selection_cost.py DATA_BIN --teacher TEACHER.pt [--reverse-teacher REVERSE.pt]
        [--sentences 1000] [--candidates 32] [--beam 5]

The first sentences of the training data are translated as ``imitkd-seqkd`` does it, in batches. Each round
takes one batch, and does all of this with it, in a new random order: beam search; samples; for each utility,
the choice among the same samples as ``--select mbr`` makes it. With a reverse teacher, it also scores the
translations of the beam as ``--reverse-teacher`` does. A cost is a time divided by that of the beam, or of
the samples, in the same round. The beam runs twice, so the row ``(again)`` shows the noise.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from beam_speed import first_sentences
from common import (
    TEACHER,
    argument_parser,
    check_arguments,
    conditions,
    interleave,
    over,
    quartiles,
    table,
    write_json,
)

from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.engines.base import Hypothesis, SearchSettings
from fairseq_imitkd.engines.fairseq import FairseqEngine
from fairseq_imitkd.seqkd.filters import Filters
from fairseq_imitkd.seqkd.job import Job
from fairseq_imitkd.seqkd.reverse import open_reverse, score_batch
from fairseq_imitkd.seqkd.translator import Translator
from fairseq_imitkd.seqkd.work import Work
from fairseq_imitkd.teacher.loading import load_teacher
from fairseq_imitkd.teacher.source import TeacherSource
from fairseq_imitkd.text.marks import subword_mark

UTILITIES = ("chrf", "sentence-bleu")


def main() -> None:
    parser = argument_parser(__doc__, "selection_cost.json", max_tokens=512, student=False)
    parser.add_argument("--teacher", type=Path, default=TEACHER, help="default: %(default)s")
    parser.add_argument(
        "--reverse-teacher", type=Path, help="a teacher of the other direction (default: none)"
    )
    parser.add_argument(
        "--sentences", type=int, default=1000, help="number of training sentences (default: %(default)s)"
    )
    parser.add_argument(
        "--candidates", type=int, default=32, help="samples per sentence (default: %(default)s)"
    )
    parser.add_argument("--beam", type=int, default=5, help="beam size (default: %(default)s)")
    args = parser.parse_args()
    check_arguments(args, sentences=1, candidates=2, beam=1)
    if args.reverse_teacher is not None and not args.reverse_teacher.exists():
        sys.exit(f"--reverse-teacher {args.reverse_teacher} does not exist; name an existing one")
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        work = open_work(args, Path(folder) / "out")
        runs = open_runs(args, work)
        batches = [work.read(numbers) for numbers in work.batches]
        seconds, _ = interleave(runs, batches, warmup=1, device=args.device, keep=lambda result: None)
    if not seconds["beam"]:
        sys.exit("one batch is not enough to measure; use more --sentences or a smaller --max-tokens")
    rows = [
        [name, *quartiles(over(times, seconds["beam"])), *quartiles(over(times, seconds["samples"]))]
        for name, times in seconds.items()
    ]
    print(table(["", "of the beam's time", "", "of the samples' time", ""], rows))
    print(f"\n{args.sentences} sentences, {args.candidates} candidates, beam {args.beam}; {conditions(args)}")
    write_json(args, seconds=seconds)


def open_work(args: argparse.Namespace, out: Path) -> Work:
    """Return the sentences and their batches."""
    languages = Languages.of(args.data, None, None)
    job = Job(
        args.data,
        str(args.teacher),
        out,
        SearchSettings(remove_bpe=subword_mark(languages.target_dictionary, None, "--remove-bpe")),
        Filters(drop_worst=0.05 if args.reverse_teacher else 0.0),
        reverse_teacher=str(args.reverse_teacher) if args.reverse_teacher else None,
        max_tokens=args.max_tokens,
        cpu=args.device == "cpu",
    )
    return Work(job, languages, first_sentences(args, languages), (1024, 1024))


@dataclass(frozen=True)
class Known:
    """Hypotheses that are there already, by the numbers of a batch's sentences."""

    hypotheses: dict[tuple[int, ...], list[list[Hypothesis]]]
    settings: SearchSettings

    def translate(self, ids: Sequence[int], sources: Sequence[Any], nbest: int) -> list[list[Hypothesis]]:
        return self.hypotheses[tuple(ids)]


def open_runs(args: argparse.Namespace, work: Work) -> dict[str, Callable[[Any], Any]]:
    """Return all that is measured by name, each a function of a batch."""
    teacher = load_teacher(TeacherSource(str(args.teacher), dtype="fp32"), work.languages)
    teacher.place(work.job.device_of(0), torch.float32)

    def translator(**settings: Any) -> Translator:
        search = replace(work.job.decoding, **settings)
        engine = FairseqEngine(
            teacher.writer, work.languages, search, longest_target=teacher.max_positions[1]
        )
        return Translator(engine, work.languages.target_dictionary)

    many, beam = args.candidates, translator(beam=args.beam)
    samples = translator(select="sample", samples=many)
    known_samples = {
        tuple(ids): samples.engine.translate(ids, sources, many)
        for ids, sources, _ in map(work.read, work.batches)
    }
    translators = {"beam": beam, "beam (again)": beam, "samples": samples}
    for name in UTILITIES:
        chooser = translator(select="mbr", samples=many, metric=name)
        chooser.engine = Known(known_samples, chooser.settings)
        translators[f"mbr by {name}"] = chooser
    runs: dict[str, Callable[[Any], Any]] = {
        name: lambda batch, used=used: used.translate(*batch) for name, used in translators.items()
    }
    if args.reverse_teacher is not None:
        engine, limits = open_reverse(work)
        known = {tuple(ids): beam.translate(ids, *rest) for ids, *rest in map(work.read, work.batches)}
        runs["score back"] = lambda batch: score_batch(work, known[tuple(batch[0])], engine, limits=limits)
    return runs


if __name__ == "__main__":
    main()
