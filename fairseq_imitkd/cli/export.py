"""``imitkd-export``: turn a trained student into a small, fast model that translates raw text."""

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from fairseq_imitkd.cli import export_huggingface
from fairseq_imitkd.cli.arguments import (
    Parser,
    add_imported_flag,
    add_remove_bpe_flag,
    add_search_flags,
    add_subword_flags,
    search_limits,
    text_settings,
)
from fairseq_imitkd.cli.messages import show_warnings
from fairseq_imitkd.engines.base import SearchSettings
from fairseq_imitkd.errors import one_line_errors
from fairseq_imitkd.export import huggingface
from fairseq_imitkd.export.architecture import Verdict, judge
from fairseq_imitkd.export.exporter import AUTO, FALLBACKS, QUANTIZATIONS, ExportJob, export, refusal
from fairseq_imitkd.text.counted import counted
from fairseq_imitkd.text.scores import SCORES, TITLES
from fairseq_imitkd.text.subwords import TOKENIZERS

ENGINES = {"ctranslate2": "CTranslate2", "onnx": "ONNX"}
FELL_BACK = 3  # exit status if another quantisation than the one asked for was written


@one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the command; ``arguments`` default to those of the command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    show_warnings()
    if arguments[:1] == ["--check"]:
        verdict = judge(arguments[1:])
        print(verdict_line(verdict))
        sys.exit(0 if verdict.engine else 1)
    start = time.monotonic()
    made = parser()
    args = made.parse_args(arguments)
    export_huggingface.check_flags(args, made)
    if args.format == export_huggingface.FORMAT:
        exchange = export_huggingface.job_of(args)
        print(export_huggingface.report(huggingface.export_huggingface(exchange), exchange))
        return
    job = job_of(args)
    manifest = export(job)
    print(report(manifest, job, time.monotonic() - start))
    print(f"Next: {shlex.join(['imitkd-serve', str(job.out)])}", flush=True)
    if manifest["quantization"] != job.quantization:
        print(fallback_line(manifest), file=sys.stderr)
        sys.exit(FELL_BACK)


def parser() -> Parser:
    """Return the parser; flags that fairseq-generate has too bear its names."""
    made = Parser(
        "imitkd-export",
        "Export a trained student: a transformer to CTranslate2 or to Hugging Face's format, an SRU or GRU "
        "to ONNX. Before training, "
        "imitkd-export --check FLAGS… tells whether the student that fairseq-train FLAGS… would train can be "
        "exported.",
    )
    made.add_argument("checkpoint", metavar="CHECKPOINT", help="the student's checkpoint")
    made.add_argument(
        "--data", type=Path, required=True, help="fairseq's data directory that the student was trained on"
    )
    made.add_argument("--out", type=Path, required=True, help="folder to create")
    made.add_argument(
        "--format",
        choices=(AUTO, export_huggingface.FORMAT),
        default=AUTO,
        help="auto is what imitkd-serve serves: CTranslate2 or ONNX. huggingface is a folder that "
        "transformers reads, in float32: AutoModelForSeq2SeqLM and AutoTokenizer",
    )
    made.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        default="int8",
        help="type of the stored weights; an SRU or GRU can have float32 and int8",
    )
    for flags, which in ((("-s", "--source-lang"), "source"), (("-t", "--target-lang"), "target")):
        made.add_argument(*flags, help=f"{which} language (default: inferred from the files of --data)")
    made.add_argument(
        "--allow-globals",
        metavar="NAMES",
        help="types that CHECKPOINT may hold besides fairseq's own: module.name,… (for files that you trust)",
    )
    text = made.add_argument_group("raw text")
    add_subword_flags(text, "raw text")
    add_imported_flag(text)
    text.add_argument(
        "--tokenizer",
        choices=TOKENIZERS,
        help="tokeniser that runs before the subwords (moses needs pip install sacremoses)",
    )
    add_remove_bpe_flag(text, "subword marks to undo in translations, in place of --bpe")
    export_huggingface.add_flags(made.add_argument_group("--format huggingface"))
    add_search_flags(made.add_argument_group("search of the exported student"), 1)
    _add_check_flags(made.add_argument_group("checks of the export, by greedy decoding"))
    return made


def _add_check_flags(group: Any) -> None:
    group.add_argument("--gen-subset", default="valid", help="split of --data to check on")
    group.add_argument(
        "--sentences", type=int, default=500, help="number of its sentences, evenly spaced (0: all)"
    )
    group.add_argument(
        "--metric",
        choices=(AUTO, *SCORES),
        default=AUTO,
        help="score of its translations that --quantization may not lower; auto is the score that the "
        "student's validation asked for, else BLEU",
    )
    group.add_argument(
        "--max-loss",
        type=float,
        default=0.5,
        help="maximum loss of --metric by --quantization, in points of 0 to 100. A larger loss that a paired "
        "bootstrap does not explain by chance is refused: another type, which is fast on --device, is "
        f"written instead, and the exit status is {FELL_BACK}",
    )
    group.add_argument(
        "--device",
        choices=tuple(FALLBACKS),
        default="cpu",
        help="device that the exported student will run on: --quantization is judged there",
    )
    group.add_argument(
        "--strict",
        action="store_true",
        help="write nothing if --quantization is refused, and exit with status 1",
    )


def job_of(args: argparse.Namespace) -> ExportJob:
    """Return the job that the flags ask for.

    Raises:
        UsageError: a value is out of range, or flags don't fit together.
    """
    search = SearchSettings(
        beam=args.beam,
        lenpen=args.lenpen,
        **search_limits(args),
    )
    return ExportJob(
        checkpoint=args.checkpoint,
        data=args.data,
        out=args.out,
        quantization=args.quantization,
        text=text_settings(args, args.tokenizer),
        remove_bpe=args.remove_bpe,
        search=search,
        split=args.gen_subset,
        sentences=args.sentences,
        metric=args.metric,
        max_loss=args.max_loss,
        device=args.device,
        strict=args.strict,
        source_lang=args.source_lang,
        target_lang=args.target_lang,
        allow_globals=args.allow_globals,
    )


def verdict_line(verdict: Verdict) -> str:
    """Return the line that ``--check`` prints."""
    if verdict.engine is not None:
        return f"a student with these flags can be exported to {ENGINES[verdict.engine]}"
    line = f"a student with these flags can't be exported: {verdict.reason}"
    flags = verdict.blocking_flags
    if not flags:
        return line
    which = "it" if len(flags) == 1 else "one of them" if verdict.any_one_suffices else "them"
    return f"{line}; blocked by {', '.join(flags)}; leave {which} out"


def report(manifest: dict[str, Any], job: ExportJob, seconds: float) -> str:
    """Return what the command prints about an export that took some seconds."""
    checks, quantization = manifest["checks"], manifest["quantization"]
    greedy, metric = checks["greedy"], TITLES.get(SCORES[checks["metric"]], checks["metric"])
    size = sum(path.stat().st_size for path in job.out.rglob("*") if path.is_file())
    lines = [
        f"{job.out}: {ENGINES[manifest['form']]}, {quantization}, {size / 1e6:.2f} MB, "
        f"{manifest['student']['parameters']:,} parameters; {seconds:,.0f} s",
        f"in float32 on {counted(checks['sentences'], 'sentence')} of {checks['split']}: log-probabilities "
        f"within {checks['largest_lprob_difference']:.2g} of fairseq's, {greedy['identical']} greedy "
        "translations identical"
        + (", the others differ at ties" if greedy["identical"] < greedy["sentences"] else ""),
        f"{metric} on them: {checks['float32']:.2f} in float32 ({checks['signature']})",
    ]
    lines += [
        f"in {name}: {found['score']:.2f} {metric}, {_lost(found, job.max_loss)}"
        for name, found in checks["quantized"].items()
    ]
    computed = checks["quantized"].get(quantization, {}).get("computed_in")
    if computed is not None and computed not in (quantization, f"{quantization}_float32"):
        lines.append(
            f"this {checks['device']} computes {quantization} in {computed}, so it is not faster there"
        )
    return "\n".join(lines)


def _lost(found: dict[str, Any], max_loss: float) -> str:
    """Return in words what a quantisation loses, and what follows from it."""
    loss, low, high = (round(found[name], 2) + 0.0 for name in ("loss", "low", "high"))  # not -0.00
    line = f"a loss of {loss:.2f} (95% interval {low:.2f} to {high:.2f})"
    if found["refused"]:
        return f"{line}: refused"
    return f"{line}, which may be chance: more --sentences can tell" if found["loss"] > max_loss else line


def fallback_line(manifest: dict[str, Any]) -> str:
    """Return the line that says what was asked for, why it was refused, and what was written instead."""
    asked, checks = manifest["asked"], manifest["checks"]
    return (
        f"warning: --quantization {refusal(asked, checks['metric'], checks['quantized'])}, more than "
        f"--max-loss {checks['max_loss']:g}; wrote {manifest['quantization']} instead"
    )


if __name__ == "__main__":
    main()
