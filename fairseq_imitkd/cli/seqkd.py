"""``imitkd-seqkd``: translate a corpus with the teacher, as a data set to train on."""

import argparse
import shlex
import time
from pathlib import Path
from typing import Any

from fairseq_imitkd.cli.arguments import (
    TEACHER_ALLOW_POOR,
    TEACHER_DATA,
    Parser,
    add_remove_bpe_flag,
    add_search_flags,
    add_subword_flags,
    search_limits,
    text_settings,
)
from fairseq_imitkd.cli.messages import show_warnings
from fairseq_imitkd.data.files import kind_of
from fairseq_imitkd.engines.base import METRICS, SELECTIONS, SearchSettings
from fairseq_imitkd.engines.ctranslate2_convert import QUANTIZATIONS
from fairseq_imitkd.errors import UsageError, one_line_errors
from fairseq_imitkd.seqkd.factory import Result, make
from fairseq_imitkd.seqkd.filters import LANGUAGE, Filters
from fairseq_imitkd.seqkd.job import BACKENDS, Job
from fairseq_imitkd.teacher.config import DTYPES
from fairseq_imitkd.text.counted import counted
from fairseq_imitkd.text.subwords import TextSettings

STUDENT = "student-"  # what the flags of the student's subwords begin with
TARGETS = ("sentencepiece_model", "bpe_codes")  # files that the target may have of its own
MANY = 1_000_000  # more translations than a sentence has


@one_line_errors("; the same command continues where it stopped")
def main(arguments: list[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: its arguments; None takes those of the command line.
    """
    args = parser().parse_args(arguments)
    show_warnings()
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
        help="fairseq's data directory, made with the teacher's dictionaries; with --translations, with the "
        "student's",
    )
    made.add_argument(
        "--out",
        type=Path,
        required=True,
        help="output folder: text/, data-bin/ and manifest.json; text/SPLIT.tsv has the columns: sentence "
        "number from 0, teacher or gold, score, source, target; SPLIT.dropped.tsv has the reason in place of "
        "the score",
    )
    _add_teacher_flags(made.add_argument_group("teacher"))
    _add_source_flags(made.add_argument_group("sentences"))
    _add_translation_flags(made.add_argument_group("translations of others"))
    _add_student_flags(made.add_argument_group("student with other subwords"))
    _add_selection_flags(made.add_argument_group("translations"))
    _add_engine_flags(made.add_argument_group("engine"))
    _add_output_flags(made.add_argument_group("output"))
    _add_filter_flags(made.add_argument_group("filters"))
    _add_work_flags(made.add_argument_group("work"))
    return made


def _add_teacher_flags(group: Any) -> None:
    group.add_argument("--teacher-path", help="teacher's checkpoint, or several joined by ':' (an ensemble)")
    group.add_argument("--teacher-dtype", choices=DTYPES, default="fp32", help="teacher's precision")
    group.add_argument(
        "--teacher-data",
        help=TEACHER_DATA,
    )
    group.add_argument(
        "--teacher-allow-globals",
        help="types that the checkpoint may hold besides fairseq's own: module.name,… (trusted files only)",
    )
    group.add_argument(
        "--teacher-allow-poor",
        action="store_true",
        help=TEACHER_ALLOW_POOR,
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
    add_subword_flags(group, "--source-text (gpt2 also makes text of a split's numbers)")
    group.add_argument(
        "-s", "--source-lang", help="source language (default: read from the names of DATA's files)"
    )
    group.add_argument(
        "-t", "--target-lang", help="target language (default: read from the names of DATA's files)"
    )


def _add_translation_flags(group: Any) -> None:
    group.add_argument(
        "--translations",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="anyone's translations, in place of --teacher-path; those of several files are pooled. TSV: a "
        "source and its translations in each line; JSONL: source, translations, scores, reference",
    )
    group.add_argument(
        "--scores",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="one file for each of --translations: in each line a score for each translation (more is "
        "better), for --select first and --drop-worst",
    )


def _add_student_flags(group: Any) -> None:
    group.add_argument(
        "--student-data",
        type=Path,
        metavar="DIR",
        help="data directory with the dictionaries of a student with other subwords than the teacher's: "
        "data-bin/ is made for it, of the text",
    )
    add_subword_flags(group, "text for the student", prefix=STUDENT)
    for name in TARGETS:
        group.add_argument(
            f"--{STUDENT}target-{name.replace('_', '-')}",
            type=Path,
            help=f"the same for the target (default: that of --{STUDENT}{name.replace('_', '-')})",
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
        help="keep the K best hypotheses of --select first, best or mbr; of equal texts, both last keep one",
    )
    group.add_argument(
        "--metric",
        "--utility",
        choices=METRICS,
        help="similarity to the reference for --select best, to the other hypotheses for --select mbr",
    )
    group.add_argument(
        "--comet-model",
        type=Path,
        metavar="FILE",
        help="checkpoint of a COMET model that reads references, for --metric comet (needs unbabel-comet)",
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
        "--mix-gold",
        type=float,
        default=0.0,
        help="add the references of this share of the translated sentences",
    )


def _add_filter_flags(group: Any) -> None:
    group.add_argument(
        "--max-ratio",
        type=float,
        default=0.0,
        help="drop a pair if one side has more than this many times the tokens of the other (0: no limit)",
    )
    group.add_argument("--dedup", action="store_true", help="drop a pair that occurred before")
    group.add_argument(
        "--drop-copies",
        action="store_true",
        help="drop a translation that is its source, but for case and blanks",
    )
    group.add_argument(
        "--drop-repeats",
        action="store_true",
        help="drop a translation in which a phrase stands three times in a row, unless its source has one",
    )
    group.add_argument(
        LANGUAGE,
        metavar="CODE",
        help="drop a translation that is in another language than this, such as de or en, by the package "
        "py3langid",
    )
    group.add_argument(
        "--drop-worst",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="drop this share of the translations that are left, the worst ones by --reverse-teacher, or by "
        "the scores of --translations",
    )
    group.add_argument(
        "--reverse-teacher",
        metavar="PATH",
        help="checkpoint of a model that translates back, with the same dictionaries, or several joined by "
        "':'; its log-probability of the source per token decides what --drop-worst drops",
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
    _refuse_search(args)
    engine = {"quantization": args.quantization, "min_agreement": args.min_agreement}
    return Job(
        data=args.data,
        teacher_path=args.teacher_path or "",
        out=args.out,
        decoding=_search_settings(args),
        filters=_filters(args),
        comet_model=args.comet_model,
        split=args.gen_subset,
        source_text=args.source_text,
        text=text_settings(args),
        translations=tuple(args.translations),
        scores=tuple(args.scores),
        reverse_teacher=args.reverse_teacher,
        student_data=args.student_data,
        student_text=_student_text(args),
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


def _filters(args: argparse.Namespace) -> Filters:
    return Filters(
        args.max_ratio,
        args.dedup,
        args.mix_gold,
        args.seed,
        drop_copies=args.drop_copies,
        drop_repeats=args.drop_repeats,
        language=args.drop_other_languages,
        drop_worst=args.drop_worst,
    )


def _student_text(args: argparse.Namespace) -> tuple[TextSettings, TextSettings]:
    """Return how text is split into the student's subwords, of the source and of the target."""
    if args.student_bpe is not None and args.student_data is None and not args.translations:
        raise UsageError(f"--{STUDENT}bpe changes nothing without --student-data or --translations; add one")
    source = text_settings(args, prefix=STUDENT)
    target = dict(source.files)
    for name in TARGETS:
        path, flag = getattr(args, f"student_target_{name}"), f"--{STUDENT}target-{name.replace('_', '-')}"
        if path is None:
            continue
        if name not in target:
            raise UsageError(f"{flag} changes nothing without --{STUDENT}{name.replace('_', '-')}; add it")
        if kind_of(path, flag) != "file":
            raise UsageError(f"{flag} '{path}' is not a file; use the file that the subwords were made with")
        target[name] = path
    return source, TextSettings(source.bpe, target)


def _refuse_search(args: argparse.Namespace) -> None:
    """Refuse flags of the teacher and of its search with translations that are already there."""
    if not args.translations:
        return
    made = parser()
    names = [
        *(name for name in vars(args) if name.startswith("teacher_") and name != "teacher_path"),
        *("backend", "quantization", "min_agreement", "nbest", "n", "beam", "lenpen", "unkpen", "min_len"),
        *("max_len_a", "max_len_b", "no_repeat_ngram_size", "diverse_beam_groups", "diverse_beam_strength"),
        *("sampling_topk", "sampling_topp", "temperature", "bpe"),
    ]
    if args.reverse_teacher is not None:  # these are about its checkpoint too
        names = [name for name in names if name not in ("teacher_dtype", "teacher_allow_globals")]
    for name in names:
        if getattr(args, name) != made.get_default(name):
            raise UsageError(
                f"--{name.replace('_', '-')} changes nothing with --translations, which nobody translates "
                f"again; leave it out" + (f" (--{STUDENT}bpe splits the text)" if name == "bpe" else "")
            )


def _refuse_unused(args: argparse.Namespace) -> None:
    """Refuse flags that have no effect."""
    for flag, value in (("--quantization", args.quantization), ("--min-agreement", args.min_agreement)):
        if value is not None and args.backend != "ctranslate2":
            raise UsageError(
                f"{flag} changes nothing with --backend {args.backend}; add --backend ctranslate2"
            )
    of_samples = args.select == "mbr" and args.nbest in (None, 1) and not args.translations
    draws = args.select == "sample" or of_samples
    if args.seed != 1 and not draws and not args.mix_gold:
        raise UsageError(
            f"--seed {args.seed} changes nothing: only --select sample, mbr without --nbest, and --mix-gold "
            "are random; leave it out"
        )
    if args.bpe not in (None, "gpt2") and not (args.source_text or args.student_data or args.translations):
        raise UsageError(
            "--bpe changes nothing without --source-text: a split of DATA consists of subwords already"
        )


def _search_settings(args: argparse.Namespace) -> SearchSettings:
    if args.nbest is not None and args.nbest < 1:
        raise UsageError(f"--nbest must be 1 or more, but is {args.nbest}")
    if args.translations:
        return _selection(args)
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


def _selection(args: argparse.Namespace) -> SearchSettings:
    """Return the settings that choose among translations that are already there, however many."""
    if args.select == "sample":
        raise UsageError("--select must be first, best or mbr with --translations, but is sample")
    return SearchSettings(
        select=args.select,
        keep=args.keep,
        beam=MANY,
        nbest=MANY if args.select in ("best", "mbr") else 1,
        metric=args.metric,
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
    words = {"cut": "cut by the length limit"}
    dropped = ", ".join(
        f"{number:,} {words.get(reason, reason)}" for reason, number in left_out.items() if number
    )
    return "\n".join(
        [
            f"{counted(counts['sentences'], 'sentence')}, {counted(counts['translations'], 'translation')}, "
            f"{counted(counts['gold'], 'reference')}, {counted(counts['written'], 'pair')} written"
            + (f"; dropped: {dropped}" if dropped else ""),
            f"{out}/data-bin: to train on; {out}/text: the same as text; {out}/manifest.json: how they were "
            "made",
            f"{seconds:,.0f} s" if result.fresh else "this was done before: nothing is changed",
            f"Next: imitkd-train {shlex.quote(f'{out}/data-bin')} --criterion label_smoothed_cross_entropy "
            "--arch transformer_imitkd_2_2 …",
        ]
    )


if __name__ == "__main__":
    main()
