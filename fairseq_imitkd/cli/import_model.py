"""``imitkd-import``: make a fairseq checkpoint of a model of Hugging Face's format."""

from pathlib import Path

from fairseq_imitkd.cli import trim
from fairseq_imitkd.cli.arguments import Parser
from fairseq_imitkd.cli.messages import show_warnings
from fairseq_imitkd.errors import one_line_errors, stoppable
from fairseq_imitkd.huggingface.import_trimmed import import_trimmed
from fairseq_imitkd.huggingface.importer import CHECKPOINT, Imported, ImportJob, import_model
from fairseq_imitkd.huggingface.trim import Trimmed


@one_line_errors()
@stoppable()
def main(arguments: list[str] | None = None) -> None:
    """Run the command; ``arguments`` default to those of the command line."""
    show_warnings()
    args = parser().parse_args(arguments)
    job = ImportJob(args.model, args.out, args.source_lang, args.target_lang, skip_check=args.skip_check)
    if args.trim_to is None:
        print(report(import_model(job), job))
        return
    made, trimmed = import_trimmed(job, args.trim_to)
    print(report(made, job, trimmed))


def parser() -> Parser:
    """Return the parser."""
    made = Parser(
        "imitkd-import",
        "Make a fairseq checkpoint with dictionaries and subwords of a Hugging Face model: Marian (OPUS-MT), "
        "M2M-100, NLLB, mBART, BART, Pegasus or FSMT. Nothing is downloaded, and no code of the model runs. "
        "If transformers is installed, the logits of both models are compared.",
    )
    made.add_argument(
        "model",
        metavar="MODEL_DIR",
        type=Path,
        help="folder with the model's config.json, weights and tokenizer",
    )
    made.add_argument("--out", type=Path, required=True, help="folder to create")
    for flags, which in ((("-s", "--source-lang"), "source"), (("-t", "--target-lang"), "target")):
        made.add_argument(
            *flags,
            help=f"{which} language, which names its dictionary and its tag: de, deu_Latn, de_DE, … "
            f"(default: that of config.json, or '{which}' if the model needs no tag)",
        )
    made.add_argument(
        "--trim-to",
        nargs="+",
        metavar="PREFIX",
        help="trim the vocabulary to that of raw text, as imitkd-trim does: PREFIX.LANG holds sentences",
    )
    made.add_argument(
        "--skip-check", action="store_true", help="don't compare the logits with those of transformers"
    )
    return made


def report(done: Imported, job: ImportJob, trimmed: Trimmed | None = None) -> str:
    """Return what the command prints about an import, and about its trimming."""
    size = sum(path.stat().st_size for path in job.out.iterdir())
    parameters, symbols = done.parameters, done.symbols
    if trimmed is not None:
        parameters, symbols = trimmed.parameters[1], (trimmed.sides[0].after, trimmed.sides[1].after)
    lines = [
        f"{job.out / CHECKPOINT}: {parameters:,} parameters, {symbols[0]:,} source and "
        f"{symbols[1]:,} target symbols; {size / 1e6:,.1f} MB"
    ]
    if done.verdict is not None:
        lines.append(
            f"logits differ from those of transformers by at most {done.verdict.difference:.2g} "
            f"({done.verdict.logits:,} logits of a padded batch, the greatest {done.verdict.largest:.3g})"
        )
    if done.verdict is not None and done.verdict.ids is not None:
        same, count = done.verdict.ids
        first = f"; the first that differs: {done.verdict.first}" if done.verdict.first else ""
        lines.append(f"ids of {same} of {count} sentences equal those of its tokenizer{first}")
    lines += [trim.report(trimmed)] if trimmed is not None else []
    lines += [f"note: {note}" for note in done.notes]
    if done.subwords is not None:
        lines.append(
            f"Next: imitkd-encode {job.out} --side source < TEXT > SUBWORDS, then fairseq-preprocess"
        )
    else:
        lines.append("note: without tokenizer files, text can't be encoded; symbol number N is called id:N")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
