"""``imitkd-export``: a trained student as a small, fast model that translates raw text."""

import logging
import sys
import time
from pathlib import Path
from typing import Any

from fairseq_imitkd.cli.arguments import Parser, add_search_flags, add_subword_flags, text_settings
from fairseq_imitkd.engines.base import Decoding
from fairseq_imitkd.errors import interruptible
from fairseq_imitkd.export.architecture import Verdict, judge
from fairseq_imitkd.export.exporter import QUANTIZATIONS, Job, export
from fairseq_imitkd.text.subwords import TOKENIZERS

FORMS = {"ctranslate2": "CTranslate2", "onnx": "ONNX"}


@interruptible()
def main(arguments: list[str] | None = None) -> None:
    """The command; ``arguments`` are those of the command line unless given."""
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, force=True)
    if arguments[:1] == ["--check"]:
        verdict = judge(arguments[1:])
        print(told(verdict))
        sys.exit(0 if verdict.form else 1)
    args = parser().parse_args(arguments)
    began = time.monotonic()
    decoding = Decoding(
        beam=args.beam, lenpen=args.lenpen, max_len_a=args.max_len_a, max_len_b=args.max_len_b, min_len=args.min_len,
        no_repeat_ngram_size=args.no_repeat_ngram_size,
    )  # fmt: skip
    job = Job(
        args.checkpoint, args.data, args.out, args.quantization, text_settings(args, args.tokenizer), decoding,
        split=args.gen_subset, sentences=args.sentences, max_bleu_loss=args.max_bleu_loss, source_lang=args.source_lang,
        target_lang=args.target_lang, allow_globals=args.allow_globals,
    )  # fmt: skip
    print(report(export(job), job, time.monotonic() - began))


def parser() -> Parser:
    """Every flag; the names are fairseq-generate's where it has one."""
    made = Parser(
        "imitkd-export",
        "Export a trained student: a transformer to CTranslate2, an SRU or GRU to ONNX. "
        "Before training, imitkd-export --check FLAGS… says whether what fairseq-train FLAGS… would train can be exported.",
    )
    made.add_argument("checkpoint", metavar="CHECKPOINT", help="file of the student")
    made.add_argument(
        "--data", type=Path, required=True, help="fairseq's data directory that it was trained on"
    )
    made.add_argument("--out", type=Path, required=True, help="folder to make")
    made.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        default="int8",
        help="of its weights; an SRU or GRU has float32 and int8",
    )
    made.add_argument(
        "-s", "--source-lang", help="language translated from (default: as the files of --data are named)"
    )
    made.add_argument(
        "-t", "--target-lang", help="language translated into (default: as the files of --data are named)"
    )
    made.add_argument(
        "--allow-globals", metavar="NAMES",
        help="types that CHECKPOINT may hold beside fairseq's own: module.name,… (files you trust)",
    )  # fmt: skip

    text = made.add_argument_group("how raw text is made symbols")
    add_subword_flags(text, "raw text")
    text.add_argument(
        "--tokenizer", choices=TOKENIZERS, help="before the subwords (moses needs pip install sacremoses)"
    )

    add_search_flags(made.add_argument_group("how it is to translate"), 1)

    checks = made.add_argument_group("what it is checked on, by greedy decoding")
    checks.add_argument("--gen-subset", default="valid", help="split of --data")
    checks.add_argument(
        "--sentences", type=int, default=500, help="how many of its sentences, evenly spread (0: all)"
    )
    checks.add_argument(
        "--max-bleu-loss", type=float, default=0.5,
        help="the most BLEU that --quantization may cost; beyond, float16 is tried where there is such, and then float32",
    )  # fmt: skip
    return made


def told(verdict: Verdict) -> str:
    """What ``--check`` found, for the console."""
    if verdict.form is not None:
        return f"a student of these flags can be exported, to {FORMS[verdict.form]}"
    remedy = ""
    if verdict.in_the_way:
        which = (
            "one of them"
            if len(verdict.in_the_way) > 1 and verdict.each
            else "it"
            if len(verdict.in_the_way) == 1
            else "them"
        )
        remedy = f"; in the way: {', '.join(verdict.in_the_way)}; leave {which} out"
    return f"a student of these flags can't be exported: {verdict.reason}{remedy}"


def report(manifest: dict[str, Any], job: Job, seconds: float) -> str:
    """What was made, for the console."""
    checks, quantization = manifest["checks"], manifest["quantization"]
    bleu, greedy = checks["bleu"], checks["greedy"]
    size = sum(path.stat().st_size for path in job.out.rglob("*") if path.is_file())
    lines = [
        f"{job.out}: {FORMS[manifest['form']]}, {quantization}, {size / 1e6:.2f} MB, {manifest['student']['parameters']:,} "
        f"parameters; {seconds:,.0f} s",
        f"in float32 on {checks['sentences']} sentences of {checks['split']}: log-probabilities within "
        f"{checks['largest_lprob_difference']:.2g} of fairseq's, {greedy['identical']} greedy translations identical"
        + (", the others part at ties" if greedy["identical"] < greedy["sentences"] else ""),
        f"BLEU there: {bleu['float32']:.2f} in float32"
        + (f", {bleu[quantization]:.2f} in {quantization}" if quantization != "float32" else "")
        + f" ({bleu['signature']})",
    ]
    if quantization != job.quantization:
        lines.append(
            f"not {job.quantization}, whose BLEU is {bleu[job.quantization]:.2f}: more than --max-bleu-loss "
            f"{job.max_bleu_loss:g} below; it is {quantization} instead"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
