"""``imitkd-evaluate``: compares quality, speed and size of models on one test set."""

import argparse
import shlex
import sys
from pathlib import Path

from fairseq_imitkd.cli.arguments import (
    Parser,
    add_imported_flag,
    add_remove_bpe_flag,
    add_search_flags,
    add_subword_flags,
    positive,
    search_limits,
    text_settings,
)
from fairseq_imitkd.cli.messages import show_warnings
from fairseq_imitkd.engines.base import SearchSettings
from fairseq_imitkd.errors import UsageError, one_line_errors
from fairseq_imitkd.evaluate import models, quality
from fairseq_imitkd.evaluate.evaluation import EvaluationJob, evaluate
from fairseq_imitkd.evaluate.markdown import markdown
from fairseq_imitkd.text.subwords import TOKENIZERS

# Values of flags that are not given.
DEFAULTS = {"sentences": 0, "beam": 5, "speed_sentences": 100, "probe_sentences": 250}
QUICK = {"sentences": 200, "beam": 1, "speed_sentences": 20, "probe_sentences": 100}


@one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the command; its status is 1 if a model failed.

    Args:
        arguments: those of the command line if None.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    show_warnings()
    job = job_of(parser().parse_args(arguments), shlex.join(["imitkd-evaluate", *arguments]))
    results = evaluate(job, lambda results: print(markdown(results)))
    if results.failed:
        sys.exit(1)


def parser() -> Parser:
    """Return the parser; flags have fairseq-generate's names where it has one."""
    made = Parser(
        "imitkd-evaluate",
        "Compare models on one test set: quality, speed, size and, with --teacher, how far students are "
        "from it. Prints Markdown; writes evaluation.json and every model's outputs.",
    )
    _add_models(made)
    _add_data(made)
    search = made.add_argument_group("search: greedy decoding, and a beam search")
    add_search_flags(search, None, "beam size, beside greedy decoding (default: 5; 1: greedy decoding only)")
    _add_text(made)
    _add_scores(made)
    _add_speed(made)
    return made


def _add_models(made: Parser) -> None:
    made.add_argument(
        "--model", action="append", required=True, metavar="NAME=PATH",
        help="a fairseq checkpoint, or a folder that imitkd-export made; once for each model",
    )  # fmt: skip
    made.add_argument(
        "--teacher", metavar="NAME", help="the model that the others are students of; it must be a checkpoint"
    )
    made.add_argument(
        "--baseline",
        metavar="NAME",
        help="the model that the others are compared with (default: the student that was trained without a "
        "teacher, if there is one)",
    )
    made.add_argument(
        "--threads", type=positive, metavar="N", help="number of threads (default: torch's choice)"
    )
    made.add_argument(
        "--allow-globals", metavar="NAMES",
        help="types that checkpoints may hold beside fairseq's own: module.name,… (only for files you trust)",
    )  # fmt: skip


def _add_data(made: Parser) -> None:
    made.add_argument(
        "--data", type=Path, required=True, help="fairseq's data directory that the models were trained on"
    )
    made.add_argument(
        "--out", type=Path, required=True, help="folder to write; a former evaluation there is overwritten"
    )
    made.add_argument("--gen-subset", default="test", help="split of --data to translate")
    made.add_argument(
        "--sentences", type=int, help="number of its sentences, evenly spread (default: 0, all)"
    )
    made.add_argument(
        "--quick",
        action="store_true",
        help="200 sentences, greedy decoding, 20 sentences for speed and 100 for probes, unless other "
        "flags say more",
    )
    for flag, side in (("-s", "source"), ("-t", "target")):
        made.add_argument(
            flag, f"--{side}-lang", help=f"{side} language (default: by the file names in --data)"
        )


def _add_text(made: Parser) -> None:
    text = made.add_argument_group("detokenisation of outputs and references")
    add_subword_flags(text, "raw text")
    add_imported_flag(text)
    text.add_argument(
        "--tokenizer",
        choices=TOKENIZERS,
        help="tokenizer before the subwords (moses needs pip install sacremoses)",
    )
    add_remove_bpe_flag(text, "subword marks to undo, in place of --bpe")


def _add_scores(made: Parser) -> None:
    scores = made.add_argument_group("quality")
    scores.add_argument(
        "--metrics", default="", help="metrics beside BLEU, chrF and TER, joined by commas: rouge, comet"
    )
    scores.add_argument(
        "--references", type=Path, metavar="FILE",
        help="all right translations of each sentence, with tabs between them; BLEU, chrF and TER compare "
        "with all, other metrics with the first (default: the references of --data)",
    )  # fmt: skip
    scores.add_argument(
        "--no-ter", action="store_true", help="leave out TER, which takes hours on thousands of long texts"
    )
    scores.add_argument(
        "--comet-model", type=Path, metavar="FILE",
        help="checkpoint for --metrics comet (needs pip install unbabel-comet)",
    )  # fmt: skip
    scores.add_argument(
        "--bleu-tokenize", choices=quality.TOKENIZERS,
        help="BLEU's tokenizer (default: sacreBLEU's choice for the language: zh, ja-mecab, ko-mecab or 13a)",
    )  # fmt: skip


def _add_speed(made: Parser) -> None:
    speed = made.add_argument_group("speed and probes")
    speed.add_argument(
        "--batch-sizes", default="1,32", metavar="N,…",
        help="batch sizes to time, in sentences; the largest one translates all sentences",
    )  # fmt: skip
    speed.add_argument(
        "--speed-sentences", type=positive, metavar="N",
        help="number of sentences at each smaller batch size (default: 100)",
    )  # fmt: skip
    speed.add_argument(
        "--probe-sentences", type=int, metavar="N",
        help="number of sentences that --teacher is asked about, evenly spread (default: 250; 0: all)",
    )  # fmt: skip


def job_of(args: argparse.Namespace, command: str) -> EvaluationJob:
    """Return the job that the flags describe.

    Raises:
        UsageError: flags do not fit together.
    """
    chosen = {**DEFAULTS, **(QUICK if args.quick else {})}
    chosen.update({name: getattr(args, name) for name in chosen if getattr(args, name) is not None})
    if args.probe_sentences is not None and args.teacher is None:
        raise UsageError(
            f"--probe-sentences {args.probe_sentences} changes nothing without --teacher; name the teacher"
        )
    decoding = SearchSettings(
        beam=chosen["beam"],
        lenpen=args.lenpen,
        **search_limits(args),
        remove_bpe=args.remove_bpe,
    )
    return EvaluationJob(
        command,
        models.parse(args.model),
        args.data,
        args.out,
        decoding,
        text_settings(args, args.tokenizer),
        teacher=args.teacher,
        baseline=args.baseline,
        split=args.gen_subset,
        sentences=chosen["sentences"],
        batch_sizes=_sizes(args.batch_sizes),
        timed=chosen["speed_sentences"],
        probed=chosen["probe_sentences"],
        metrics=_metrics(args.metrics),
        bleu_tokenize=args.bleu_tokenize,
        comet_model=args.comet_model,
        ter=not args.no_ter,
        references=args.references,
        threads=args.threads,
        source_lang=args.source_lang,
        target_lang=args.target_lang,
        allow_globals=args.allow_globals,
    )


def _sizes(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(
            f"--batch-sizes must be whole numbers of 1 or more, joined by commas, but is '{text}'"
        )
    return [int(part) for part in parts]


def _metrics(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in quality.EXTRA:
            raise UsageError(
                f"--metrics must be some of {', '.join(quality.EXTRA)}, but has '{name}'; BLEU, chrF and TER "
                "are always computed"
            )
    return names


if __name__ == "__main__":
    main()
