"""Compares the speed and BLEU of students, in fairseq and exported, with those of their teacher.

    python benchmarks/deployed_speed.py DATA_BIN --teacher TEACHER.pt --student NAME=STUDENT.pt …
        [--batch-sizes 1,32]

The sentences are from the test set, in batches by decreasing length. The teacher translates them with
fairseq's ``SequenceGenerator``, by beam search and greedily. Each student translates them greedily: with the
``SequenceGenerator``, with the rollout engine (as ``imitkd-generate --beam 1`` does), and exported in float32
and int8. In each round every model translates one batch, in a new random order. A speed is the teacher's time
divided by the model's time in the same round. The teacher runs twice, so the row ``(again)`` shows the noise.
BLEU is computed on the same sentences.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sacrebleu
import torch
from common import (
    TEACHER,
    argument_parser,
    check_arguments,
    conditions,
    interleave,
    quartiles,
    table,
    write_json,
)
from fairseq.data import data_utils
from fairseq.sequence_generator import SequenceGenerator
from tqdm import tqdm

from fairseq_imitkd.checkpoints.translation import load_student
from fairseq_imitkd.data.corpus import Languages, read_split
from fairseq_imitkd.engines.base import SearchSettings
from fairseq_imitkd.engines.fairseq import FairseqEngine
from fairseq_imitkd.engines.registry import CONVERTERS, engine_for, open_engine, unsupported_reason
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.text.scored import ScoredText

GREEDY = SearchSettings(beam=1)
Batch = list[torch.Tensor]
Engine = Callable[[Batch], list[torch.Tensor]]


def main() -> None:
    parser = argument_parser(__doc__, "deployed_speed.json", max_tokens=4096, student=False)
    parser.add_argument("--teacher", type=Path, default=TEACHER, help="default: %(default)s")
    parser.add_argument(
        "--student",
        dest="students",
        action="append",
        required=True,
        metavar="NAME=FILE",
        help="a student's name and checkpoint; may be repeated",
    )
    parser.add_argument("--beam", type=int, default=5, help="beam size of the teacher (default: %(default)s)")
    parser.add_argument(
        "--batch-sizes",
        default="1,32",
        help="batch sizes in sentences, joined by commas (default: %(default)s)",
    )
    parser.add_argument(
        "--sentences",
        type=int,
        default=320,
        help="number of test sentences, evenly spread (default: %(default)s)",
    )
    parser.add_argument("--remove-bpe", default="sentencepiece", help="default: %(default)s")
    args = parser.parse_args()
    check_arguments(args, sentences=1, beam=1)
    sizes = [int(size) for size in args.batch_sizes.split(",")]

    torch.set_num_threads(args.threads)
    languages = Languages.of(args.data, None, None)
    sources, references = sample(args, languages)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        engines = build(args, languages, Path(temporary))
        bleu = scores(args, engines, languages, sources=sources, references=references, size=max(sizes))
        for size in sizes:
            batches = [sources[start : start + size] for start in range(0, len(sources), size)]
            seconds, _ = interleave(engines, batches, warmup=int(len(batches) > 1), device="cpu", keep=len)
            figures[f"batch {size}"] = seconds
            report(args, seconds, bleu=bleu, size=size)
    write_json(args, seconds=figures, bleu=bleu)


def sample(args: argparse.Namespace, languages: Languages) -> tuple[list[torch.Tensor], list[str]]:
    """Return sources by decreasing length, and the text of their references."""
    corpus = read_split(languages, "test")
    assert corpus.references is not None
    step = max(1, len(corpus) // args.sentences)
    numbers = sorted(
        range(0, len(corpus), step)[: args.sentences], key=lambda number: -corpus.lengths[number]
    )
    text = ScoredText(languages.target_dictionary, args.remove_bpe)
    texts = text.references(corpus.references[number] for number in numbers)
    return [corpus.sources[number].long() for number in numbers], texts


def build(args: argparse.Namespace, languages: Languages, folder: Path) -> dict[str, Engine]:
    """Return all translators by name, the teacher first."""
    teacher = load_student(str(args.teacher), languages).model
    base = stock(teacher, languages, args.beam)
    name = f"teacher, fairseq, beam {args.beam}"
    engines = {name: base, f"{name} (again)": base, "teacher, fairseq, greedy": stock(teacher, languages, 1)}
    for given in args.students:
        name, _, path = given.partition("=")
        student = load_student(path, languages).model
        engines[f"{name}, fairseq, greedy"] = stock(student, languages, 1)
        engines[f"{name}, imitkd-generate, greedy"] = through(
            FairseqEngine.of_model(student, languages, GREEDY)
        )
        form = engine_for(student)
        if form is None:
            raise UsageError(f"--student {given} can't be exported: {unsupported_reason(student)}")
        for quantization in ("float32", "int8"):
            place = folder / f"{name}-{quantization}"
            CONVERTERS[form].convert(student, languages, place, quantization=quantization)
            engine = open_engine(form, place, languages, settings=GREEDY, longest=student.max_positions())
            engines[f"{name}, {form}, {quantization}"] = through(engine)
    return engines


def stock(model: Any, languages: Languages, beam: int) -> Engine:
    """Return a translator by fairseq's ``SequenceGenerator``."""
    generator = SequenceGenerator([model], languages.target_dictionary, beam_size=beam)
    pad, eos = languages.source_dictionary.pad(), languages.source_dictionary.eos()

    def translate(batch: Batch) -> list[torch.Tensor]:
        tokens = data_utils.collate_tokens(batch, pad, eos, left_pad=True)
        lengths = torch.tensor([source.numel() for source in batch])
        found = generator.generate([model], {"net_input": {"src_tokens": tokens, "src_lengths": lengths}})
        return [some[0]["tokens"] for some in found]

    return translate


def through(engine: Any) -> Engine:
    return lambda batch: [some[0].tokens for some in engine.translate(range(len(batch)), batch, 1)]


def scores(
    args: argparse.Namespace,
    engines: dict[str, Engine],
    languages: Languages,
    *,
    sources: Batch,
    references: Sequence[str],
    size: int,
) -> dict[str, float]:
    """Return the BLEU of each translator."""
    found = {}
    for name, engine in engines.items():
        batches = [sources[start : start + size] for start in range(0, len(sources), size)]
        outputs = [tokens for batch in tqdm(batches, desc=name, leave=False) for tokens in engine(batch)]
        texts = ScoredText(languages.target_dictionary, args.remove_bpe).hypotheses(outputs)
        found[name] = sacrebleu.corpus_bleu(texts, [list(references)]).score
    return found


def report(
    args: argparse.Namespace, seconds: dict[str, list[float]], *, bleu: dict[str, float], size: int
) -> None:
    """Print the speeds at one batch size."""
    base = next(iter(seconds.values()))
    rows = []
    for name, times in seconds.items():
        faster = [one / other for one, other in zip(base, times, strict=True)]
        rows.append([name, f"{sum(base) / sum(times):.2f}", quartiles(faster)[1], f"{bleu[name]:.2f}"])
    print("\n" + table([f"batches of {size}", "x the teacher", "quartiles of batches", "BLEU"], rows))
    print(f"\n{len(base)} rounds; {args.sentences} sentences; {conditions(args)}", flush=True)


if __name__ == "__main__":
    main()
