"""How fast students translate beside their teacher: in fairseq, and exported; and what that costs in BLEU.

    python benchmarks/deployed_speed.py DATA_BIN --teacher TEACHER.pt --student NAME=STUDENT.pt … [--batch-sizes 1,32]

Sentences of the test set, a batch at a time by falling length, are translated by the teacher (fairseq's ``SequenceGenerator``,
by beam search and greedily), and greedily by each student: by the ``SequenceGenerator``, by the rollout engine, which is what
``imitkd-generate --beam 1`` decodes with, and exported, in float32 and int8. Each round takes one batch and lets everything
translate it once, in an order drawn anew; a speed is the teacher's time for the same sentences over another's in the same
round, and the teacher runs twice, so that the row ``(again)`` shows what noise alone does. BLEU is that of these sentences.
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
from fairseq_imitkd.data.directory.corpus import Languages, of_split
from fairseq_imitkd.teacher.teacher.loading import load_student
from tqdm import tqdm

from fairseq_imitkd.engines.base import Decoding
from fairseq_imitkd.engines.exported import FORMS, ModelEngine, form_of, open_engine, why_none
from fairseq_imitkd.errors import UsageError

GREEDY = Decoding(beam=1)
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
        help="as often as there are students",
    )
    parser.add_argument("--beam", type=int, default=5, help="the teacher's (default: %(default)s)")
    parser.add_argument("--batch-sizes", default="1,32", help="sentences of a batch (default: %(default)s)")
    parser.add_argument(
        "--sentences", type=int, default=320, help="of the test set, evenly spread (default: %(default)s)"
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
        bleu = scores(args, engines, languages, sources, references, max(sizes))
        for size in sizes:
            batches = [sources[start : start + size] for start in range(0, len(sources), size)]
            seconds, _ = interleave(engines, batches, 1 if len(batches) > 1 else 0, "cpu", keep=len)
            figures[f"batch {size}"] = seconds
            report(args, seconds, bleu, size)
    write_json(args, seconds=figures, bleu=bleu)


def sample(args: argparse.Namespace, languages: Languages) -> tuple[list[torch.Tensor], list[str]]:
    """Sentences by falling length, and their references' text."""
    corpus = of_split(languages, "test")
    assert corpus.references is not None
    step = max(1, len(corpus) // args.sentences)
    numbers = sorted(
        range(0, len(corpus), step)[: args.sentences], key=lambda number: -corpus.lengths[number]
    )
    texts = [
        languages.target_dictionary.string(corpus.references[number], args.remove_bpe) for number in numbers
    ]
    return [corpus.sources[number].long() for number in numbers], texts


def build(args: argparse.Namespace, languages: Languages, folder: Path) -> dict[str, Engine]:
    """Everything that translates, by name, the teacher first."""
    teacher, _ = load_student(str(args.teacher), languages)
    base = stock(teacher, languages, args.beam)
    name = f"teacher, fairseq, beam {args.beam}"
    engines = {name: base, f"{name} (again)": base, "teacher, fairseq, greedy": stock(teacher, languages, 1)}
    for given in args.students:
        name, _, path = given.partition("=")
        student, _ = load_student(path, languages)
        engines[f"{name}, fairseq, greedy"] = stock(student, languages, 1)
        engines[f"{name}, imitkd-generate, greedy"] = through(ModelEngine(student, languages, GREEDY))
        form = form_of(student)
        if form is None:
            raise UsageError(f"--student {given} can't be exported: {why_none(student)}")
        for quantization in ("float32", "int8"):
            place = folder / f"{name}-{quantization}"
            FORMS[form].convert(
                student, languages.source_dictionary, languages.target_dictionary, place, quantization
            )
            engine = open_engine(form, place, languages, GREEDY, student.max_positions())
            engines[f"{name}, {form}, {quantization}"] = through(engine)
    return engines


def stock(model: Any, languages: Languages, beam: int) -> Engine:
    """fairseq's own generator."""
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
    sources: Batch,
    references: Sequence[str],
    size: int,
) -> dict[str, float]:
    """BLEU of everything that translates."""
    found = {}
    for name, engine in engines.items():
        batches = [sources[start : start + size] for start in range(0, len(sources), size)]
        outputs = [tokens for batch in tqdm(batches, desc=name, leave=False) for tokens in engine(batch)]
        texts = [languages.target_dictionary.string(tokens, args.remove_bpe) for tokens in outputs]
        found[name] = sacrebleu.corpus_bleu(texts, [list(references)]).score
    return found


def report(
    args: argparse.Namespace, seconds: dict[str, list[float]], bleu: dict[str, float], size: int
) -> None:
    base = next(iter(seconds.values()))
    rows = []
    for name, times in seconds.items():
        faster = [one / other for one, other in zip(base, times, strict=True)]
        rows.append([name, f"{sum(base) / sum(times):.2f}", quartiles(faster)[1], f"{bleu[name]:.2f}"])
    print("\n" + table([f"batches of {size}", "x the teacher", "quartiles of batches", "BLEU"], rows))
    print(f"\n{len(base)} rounds; {args.sentences} sentences; {conditions(args)}", flush=True)


if __name__ == "__main__":
    main()
