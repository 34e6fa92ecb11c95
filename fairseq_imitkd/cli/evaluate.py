"""``imitkd-evaluate``: an honest account of quality, speed and size of models side by side on one test set."""

import argparse
import logging
import shlex
import sys
from pathlib import Path

from fairseq_imitkd.cli.arguments import Parser, add_search_flags, add_subword_flags, positive, text_settings
from fairseq_imitkd.engines.base import Decoding
from fairseq_imitkd.errors import UsageError, interruptible
from fairseq_imitkd.evaluate import models, quality
from fairseq_imitkd.evaluate.evaluation import Job, evaluate
from fairseq_imitkd.evaluate.markdown import markdown
from fairseq_imitkd.text.subwords import TOKENIZERS

QUICK = {"sentences": 200, "beam": 1, "speed_sentences": 20, "probe_sentences": 100}


@interruptible()
def main(arguments: list[str] | None = None) -> None:
    """The command; ``arguments`` are those of the command line unless given. Its status is 1 where a model failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, force=True)
    told = job(parser().parse_args(arguments), shlex.join(["imitkd-evaluate", *arguments]))
    results = evaluate(told, lambda results: print(markdown(results)))
    if results["failed"]:
        sys.exit(1)


def parser() -> Parser:
    """Every flag; the names are fairseq-generate's where it has one."""
    made = Parser(
        "imitkd-evaluate",
        "Compare models on one test set: quality, speed, size and, with --teacher, what students have learnt of it. "
        "Prints Markdown; writes evaluation.json and every model's outputs.",
    )
    made.add_argument(
        "--model", action="append", required=True, metavar="NAME=PATH",
        help="a fairseq checkpoint, or a folder that imitkd-export made; as often as there are models",
    )  # fmt: skip
    made.add_argument(
        "--data", type=Path, required=True, help="fairseq's data directory that all were trained on"
    )
    made.add_argument(
        "--out", type=Path, required=True, help="folder to write; a former evaluation there is overwritten"
    )
    made.add_argument(
        "--teacher", metavar="NAME", help="the model, a checkpoint, that the others are students of"
    )
    made.add_argument(
        "--baseline", metavar="NAME", help="the model that others are compared with (default: --teacher's)"
    )
    made.add_argument("--gen-subset", default="test", help="split of --data")
    made.add_argument(
        "--sentences", type=int, help="how many of its sentences, evenly spread (default: 0, all)"
    )
    made.add_argument(
        "--quick", action="store_true",
        help="200 sentences, greedy decoding, 20 sentences for speed and 100 for probes, unless other flags say more",
    )  # fmt: skip
    made.add_argument(
        "-s", "--source-lang", help="language translated from (default: as the files of --data are named)"
    )
    made.add_argument(
        "-t", "--target-lang", help="language translated into (default: as the files of --data are named)"
    )
    made.add_argument(
        "--threads", type=positive, metavar="N", help="to compute with (default: torch's own choice)"
    )
    made.add_argument(
        "--allow-globals", metavar="NAMES",
        help="types that checkpoints may hold beside fairseq's own: module.name,… (files you trust)",
    )  # fmt: skip

    search = made.add_argument_group("how they translate, greedily and by a beam")
    add_search_flags(search, None, "beam size, beside greedy decoding (default: 5; 1: greedy alone)")

    text = made.add_argument_group("how symbols are made text")
    add_subword_flags(text, "raw text")
    text.add_argument(
        "--tokenizer", choices=TOKENIZERS, help="before the subwords (moses needs pip install sacremoses)"
    )
    text.add_argument(
        "--remove-bpe",
        metavar="MARK",
        help="instead of --bpe, subword marks to undo: '@@ ', sentencepiece, …",
    )

    scores = made.add_argument_group("quality: BLEU, chrF and TER, and")
    scores.add_argument("--metrics", default="", help="more, joined by commas: rouge, comet")
    scores.add_argument(
        "--no-ter", action="store_true", help="leave TER out, which takes hours on thousands of long texts"
    )
    scores.add_argument(
        "--comet-model",
        type=Path,
        metavar="FILE",
        help="of --metrics comet (needs pip install unbabel-comet)",
    )
    scores.add_argument(
        "--bleu-tokenize", choices=quality.TOKENIZERS,
        help="how BLEU makes words of text (default: sacreBLEU's choice for the language: zh, ja-mecab, ko-mecab or 13a)",
    )  # fmt: skip

    speed = made.add_argument_group("speed and probes")
    speed.add_argument(
        "--batch-sizes",
        default="1,32",
        metavar="N,…",
        help="sentences of a batch; all are translated at the largest",
    )
    speed.add_argument(
        "--speed-sentences",
        type=positive,
        metavar="N",
        help="that the smaller batch sizes are timed on (default: 100)",
    )
    speed.add_argument(
        "--probe-sentences",
        type=int,
        metavar="N",
        help="that --teacher is asked about, evenly spread (default: 250; 0: all)",
    )
    return made


def job(args: argparse.Namespace, command: str) -> Job:
    """What the flags ask for.

    Raises:
        UsageError: they do not fit together.
    """
    chosen = {"sentences": 0, "beam": 5, "speed_sentences": 100, "probe_sentences": 250}
    chosen.update(QUICK if args.quick else {})
    chosen.update({name: getattr(args, name) for name in chosen if getattr(args, name) is not None})
    if args.probe_sentences is not None and args.teacher is None:
        raise UsageError(
            f"--probe-sentences {args.probe_sentences} changes nothing without --teacher: name the teacher"
        )
    decoding = Decoding(
        beam=chosen["beam"], lenpen=args.lenpen, max_len_a=args.max_len_a, max_len_b=args.max_len_b, min_len=args.min_len,
        no_repeat_ngram_size=args.no_repeat_ngram_size, remove_bpe=args.remove_bpe,
    )  # fmt: skip
    return Job(
        command, models.parse(args.model), args.data, args.out, decoding, text_settings(args, args.tokenizer),
        teacher=args.teacher, baseline=args.baseline, split=args.gen_subset, sentences=chosen["sentences"],
        batch_sizes=_sizes(args.batch_sizes), timed=chosen["speed_sentences"], probed=chosen["probe_sentences"],
        metrics=_metrics(args.metrics), bleu_tokenize=args.bleu_tokenize, comet_model=args.comet_model,
        ter=not args.no_ter, threads=args.threads, source_lang=args.source_lang, target_lang=args.target_lang,
        allow_globals=args.allow_globals,
    )  # fmt: skip


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
                f"--metrics must be some of {', '.join(quality.EXTRA)}, but has '{name}': BLEU, chrF and TER are always there"
            )
    return names


if __name__ == "__main__":
    main()
