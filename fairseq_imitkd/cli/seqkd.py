"""``imitkd-seqkd``: translate a corpus with the teacher, as a data set to train on."""

import argparse
import logging
import time
from pathlib import Path
from typing import Any

from fairseq_imitkd.cli.arguments import (
    Parser,
    add_remove_bpe_flag,
    add_search_flags,
    add_subword_flags,
    search_limits,
    text_settings,
)
from fairseq_imitkd.engines.base import SELECTIONS, SearchSettings
from fairseq_imitkd.engines.ctranslate2_convert import QUANTIZATIONS
from fairseq_imitkd.errors import UsageError, one_line_errors
from fairseq_imitkd.seqkd.dataset import Filters
from fairseq_imitkd.seqkd.factory import Result, make
from fairseq_imitkd.seqkd.job import BACKENDS, Job
from fairseq_imitkd.teacher.config import DTYPES
from fairseq_imitkd.text.counted import counted
from fairseq_imitkd.text.rewards import REWARDS


@one_line_errors("; the same command continues where it stopped")
def main(arguments: list[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: its arguments; None takes those of the command line.
    """
    args = parser().parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, force=True)
    began = time.monotonic()
    result = make(job(args))
    print(report(result, args.out, time.monotonic() - began))


def parser() -> Parser:
    """Return the parser; flags have fairseq-generate's names where it has such a flag."""
    made = Parser(
        "imitkd-seqkd",
        "Translate a corpus with the teacher (SeqKD, Seq-Inter). Run the same command again to resume.",
    )
    made.add_argument(
        "data",
        type=Path,
        metavar="DATA",
        help="fairseq's data directory, made with the teacher's dictionaries",
    )
    made.add_argument(
        "--out",
        type=Path,
        required=True,
        help="output folder: text/, data-bin/ and manifest.json; text/SPLIT.tsv has the columns: sentence "
        "number from 0, teacher or gold, score, source, target",
    )
    _add_teacher_flags(made.add_argument_group("teacher"))
    _add_source_flags(made.add_argument_group("sentences"))
    _add_selection_flags(made.add_argument_group("translations"))
    _add_engine_flags(made.add_argument_group("engine"))
    _add_output_flags(made.add_argument_group("output"))
    _add_work_flags(made.add_argument_group("work"))
    return made


def _add_teacher_flags(group: Any) -> None:
    group.add_argument(
        "--teacher-path", required=True, help="teacher's checkpoint, or several joined by ':' (an ensemble)"
    )
    group.add_argument("--teacher-dtype", choices=DTYPES, default="fp32", help="teacher's precision")
    group.add_argument(
        "--teacher-data",
        help="folder with the dictionaries that the teacher was trained with; needed if they are not beside "
        "its checkpoint",
    )
    group.add_argument(
        "--teacher-allow-globals",
        help="types that the checkpoint may hold besides fairseq's own: module.name,… (trusted files only)",
    )
    group.add_argument(
        "--teacher-allow-poor",
        action="store_true",
        help="go on although the teacher predicts the first references worse than the frequencies of their "
        "symbols, or as well from other sources",
    )


def _add_source_flags(group: Any) -> None:
    group.add_argument(
        "--gen-subset",
        default="train",
        help="split of DATA to translate; with --source-text, name of the split that is made",
    )
    group.add_argument(
        "--source-text",
        type=Path,
        help="translate this text file, one sentence per line, instead of a split (forward translation)",
    )
    add_subword_flags(group, "--source-text")
    group.add_argument(
        "-s", "--source-lang", help="source language (default: read from the names of DATA's files)"
    )
    group.add_argument(
        "-t", "--target-lang", help="target language (default: read from the names of DATA's files)"
    )


def _add_selection_flags(group: Any) -> None:
    group.add_argument(
        "--select",
        choices=SELECTIONS,
        default="first",
        help="first: keep the best hypothesis of the beam (SeqKD); best: keep the one of the n best that is "
        "most similar to the reference (Seq-Inter); mbr: keep the one of --n samples, or of --nbest, that is "
        "most similar to all of them (minimum Bayes risk, without references); sample: draw from the "
        "teacher's distribution",
    )
    group.add_argument(
        "--keep",
        type=int,
        default=1,
        metavar="K",
        help="keep the K best different hypotheses of --select first, best or mbr",
    )
    group.add_argument(
        "--metric",
        "--utility",
        choices=list(REWARDS),
        help="similarity to the reference for --select best, to the other hypotheses for --select mbr",
    )
    group.add_argument(
        "--nbest",
        type=int,
        help="number of hypotheses of the beam that --select best (default: 35) or mbr chooses from",
    )
    group.add_argument(
        "--n",
        "--candidates",
        type=int,
        help="samples per sentence, for --select sample and mbr (default: 1 and 32)",
    )
    _add_search_flags(group)


def _add_search_flags(group: Any) -> None:
    group.add_argument(
        "--diverse-beam-groups",
        type=int,
        default=0,
        metavar="G",
        help="divide the beam into G groups that avoid each other's tokens (0: one beam)",
    )
    group.add_argument(
        "--diverse-beam-strength",
        type=float,
        default=0.5,
        metavar="X",
        help="how much the groups of the beam avoid each other's tokens",
    )
    add_search_flags(group, None, "beam size (default: 5, or --nbest if that is larger)")
    group.add_argument("--unkpen", type=float, default=0.0, help="penalty on unknown words")
    group.add_argument(
        "--sampling-topk", type=int, default=0, help="sample from the K most probable tokens (0: all)"
    )
    group.add_argument(
        "--sampling-topp",
        type=float,
        default=1.0,
        help="sample from the fewest tokens that together have this probability (1: all)",
    )
    group.add_argument("--temperature", type=float, default=1.0, help="divide logits by this when sampling")
    group.add_argument("--seed", type=int, default=1, help="random seed of samples and of --mix-gold")


def _add_engine_flags(group: Any) -> None:
    group.add_argument(
        "--backend",
        choices=BACKENDS,
        default="fairseq",
        help="engine that translates; ctranslate2 is faster on a CPU and supports transformers only",
    )
    group.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        help="type that --backend ctranslate2 computes in (default: float32)",
    )
    group.add_argument(
        "--min-agreement",
        type=float,
        help="least chrF of the first 100 outputs of --backend ctranslate2, with fairseq's outputs as "
        "references (default: 90)",
    )


def _add_output_flags(group: Any) -> None:
    add_remove_bpe_flag(group, "subword mark to remove in text/ and for --metric")
    group.add_argument(
        "--max-ratio",
        type=float,
        default=0.0,
        help="drop a pair if one side has more than this many times the tokens of the other (0: no limit)",
    )
    group.add_argument("--dedup", action="store_true", help="drop a pair that occurred before")
    group.add_argument(
        "--mix-gold",
        type=float,
        default=0.0,
        help="add the references of this share of the translated sentences",
    )


def _add_work_flags(group: Any) -> None:
    group.add_argument(
        "--max-tokens", type=int, default=4096, help="most source tokens in a batch (0: no limit)"
    )
    group.add_argument("--batch-size", type=int, default=0, help="most sentences in a batch (0: no limit)")
    group.add_argument("--workers", type=int, default=1, help="number of processes on this machine")
    group.add_argument(
        "--num-shards",
        type=int,
        default=1,
        help="number of machines that share --out; when all have ended, run the command once without it",
    )
    group.add_argument("--shard-id", type=int, help="number of this machine, from 0")
    group.add_argument("--cpu", action="store_true", help="translate on the CPU even if there is a GPU")


def job(args: argparse.Namespace) -> Job:
    """Return the job that the flags describe.

    Raises:
        UsageError: the flags do not fit together.
    """
    _refuse_unused(args)
    engine = {"quantization": args.quantization, "min_agreement": args.min_agreement}
    return Job(
        data=args.data,
        teacher_path=args.teacher_path,
        out=args.out,
        decoding=_search_settings(args),
        filters=Filters(args.max_ratio, args.dedup, args.mix_gold, args.seed),
        split=args.gen_subset,
        source_text=args.source_text,
        text=text_settings(args),
        source_lang=args.source_lang,
        target_lang=args.target_lang,
        teacher_dtype=args.teacher_dtype,
        teacher_data=args.teacher_data,
        teacher_allow_globals=args.teacher_allow_globals,
        teacher_allow_poor=args.teacher_allow_poor,
        backend=args.backend,
        max_tokens=args.max_tokens,
        batch_size=args.batch_size,
        workers=args.workers,
        num_shards=args.num_shards,
        shard_id=args.shard_id,
        cpu=args.cpu,
        **{name: value for name, value in engine.items() if value is not None},
    )


def _refuse_unused(args: argparse.Namespace) -> None:
    """Refuse flags that have no effect."""
    for flag, value in (("--quantization", args.quantization), ("--min-agreement", args.min_agreement)):
        if value is not None and args.backend != "ctranslate2":
            raise UsageError(
                f"{flag} changes nothing with --backend {args.backend}; add --backend ctranslate2"
            )
    draws = args.select == "sample" or (args.select == "mbr" and args.nbest is None)
    if args.seed != 1 and not draws and not args.mix_gold:
        raise UsageError(
            f"--seed {args.seed} changes nothing: only --select sample, mbr without --nbest, and --mix-gold "
            "are random; leave it out"
        )
    if args.bpe is not None and args.source_text is None:
        raise UsageError(
            "--bpe changes nothing without --source-text: a split of DATA consists of subwords already"
        )


def _search_settings(args: argparse.Namespace) -> SearchSettings:
    if args.nbest is not None and args.nbest < 1:
        raise UsageError(f"--nbest must be 1 or more, but is {args.nbest}")
    nbest = args.nbest or (35 if args.select == "best" else 1)
    samples = 32 if args.select == "mbr" and nbest == 1 else 1
    return SearchSettings(
        select=args.select,
        keep=args.keep,
        beam=args.beam if args.beam is not None else max(5, nbest),
        nbest=nbest,
        metric=args.metric,
        samples=samples if args.n is None else args.n,
        diverse_beam_groups=args.diverse_beam_groups,
        diverse_beam_strength=args.diverse_beam_strength,
        lenpen=args.lenpen,
        unkpen=args.unkpen,
        sampling_topk=args.sampling_topk,
        sampling_topp=args.sampling_topp,
        temperature=args.temperature,
        **search_limits(args),
        remove_bpe=args.remove_bpe,
        seed=args.seed,
    )


def report(result: Result, out: Path, seconds: float) -> str:
    """Return what the command prints at its end.

    Args:
        result: the outcome of the run.
        out: the output folder.
        seconds: how long the run took.
    """
    if result.manifest is None:
        return (
            f"{result.done:,} of {result.batches:,} batches are translated, {seconds:,.0f} s. When all "
            "machines have ended, run the same command without --num-shards and --shard-id; "
            f"it writes {out}/data-bin."
        )
    counts = result.manifest["counts"]
    left_out = {**counts["dropped"], "too long": counts["too_long"], "empty source": counts["empty_sources"]}
    dropped = ", ".join(f"{number:,} {reason}" for reason, number in left_out.items() if number)
    return "\n".join(
        [
            f"{counted(counts['sentences'], 'sentence')}, {counted(counts['translations'], 'translation')}, "
            f"{counted(counts['gold'], 'reference')}, {counted(counts['written'], 'pair')} written"
            + (f"; dropped: {dropped}" if dropped else ""),
            f"{out}/data-bin: to train on; {out}/text: the same as text; {out}/manifest.json: how they were "
            "made",
            f"{seconds:,.0f} s" if result.fresh else "this was done before: nothing is changed",
        ]
    )


if __name__ == "__main__":
    main()
