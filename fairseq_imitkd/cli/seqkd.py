"""``imitkd-seqkd``: a teacher's translations of a corpus, as a data set to train on."""

import argparse
import logging
import time
from pathlib import Path

from fairseq_imitkd.cli.arguments import Parser, add_search_flags, add_subword_flags, text_settings
from fairseq_imitkd.engines.base import SELECTIONS, Decoding
from fairseq_imitkd.engines.ctranslate2_convert import QUANTIZATIONS
from fairseq_imitkd.errors import UsageError, interruptible
from fairseq_imitkd.method.config import DTYPES
from fairseq_imitkd.seqkd.dataset import Filters
from fairseq_imitkd.seqkd.factory import BACKENDS, Job, Result, make
from fairseq_imitkd.text.rewards import REWARDS


@interruptible("; the same command goes on where this one was")
def main(arguments: list[str] | None = None) -> None:
    """The command; ``arguments`` are those of the command line unless given."""
    args = parser().parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, force=True)
    began = time.monotonic()
    result = make(job(args))
    print(report(result, args.out, time.monotonic() - began))


def parser() -> Parser:
    """Every flag; the names are fairseq-generate's where it has one."""
    made = Parser(
        "imitkd-seqkd", "Translate a corpus with the teacher (SeqKD, Seq-Inter). Run again, it goes on."
    )
    made.add_argument(
        "data",
        type=Path,
        metavar="DATA",
        help="fairseq's data directory, whose dictionaries are the teacher's",
    )
    made.add_argument(
        "--out", type=Path, required=True,
        help="folder to make: text/, data-bin/ and manifest.json; text/SPLIT.tsv has the columns: sentence number from 0, "
        "teacher or gold, score, source, target",
    )  # fmt: skip

    teacher = made.add_argument_group("teacher")
    teacher.add_argument(
        "--teacher-path", required=True, help="its checkpoint, or several joined by ':' (an ensemble)"
    )
    teacher.add_argument("--teacher-dtype", choices=DTYPES, default="fp32", help="its precision")
    teacher.add_argument(
        "--teacher-data", help="folder with the dictionaries that it was trained with, if not beside it"
    )
    teacher.add_argument(
        "--teacher-allow-globals",
        help="types that its checkpoint may hold beside fairseq's own: module.name,…",
    )

    source = made.add_argument_group("what is translated")
    source.add_argument(
        "--gen-subset", default="train", help="split of DATA; with --source-text, what to call the new one"
    )
    source.add_argument(
        "--source-text",
        type=Path,
        help="raw sentences, a line each, instead of a split (forward translation)",
    )
    add_subword_flags(source, "--source-text")
    source.add_argument(
        "-s", "--source-lang", help="language translated from (default: as DATA's files are named)"
    )
    source.add_argument(
        "-t", "--target-lang", help="language translated into (default: as DATA's files are named)"
    )

    search = made.add_argument_group("which translation")
    search.add_argument(
        "--select", choices=SELECTIONS, default="first",
        help="first: the beam's best (SeqKD); best: of the n best the one most like the reference (Seq-Inter); sample: drawn",
    )  # fmt: skip
    search.add_argument("--metric", choices=list(REWARDS), help="likeness to the reference, of --select best")
    search.add_argument("--nbest", type=int, help="of --select best: how many to choose from (default: 35)")
    search.add_argument("--n", type=int, default=1, help="of --select sample: samples of each sentence")
    add_search_flags(search, None, "beam size (default: 5, or as many as --nbest)")
    search.add_argument("--unkpen", type=float, default=0.0, help="penalty on unknown words")
    search.add_argument(
        "--sampling-topk", type=int, default=0, help="sample among so many most probable tokens (0: all)"
    )
    search.add_argument(
        "--sampling-topp",
        type=float,
        default=1.0,
        help="sample among the fewest that hold so much probability",
    )
    search.add_argument(
        "--temperature", type=float, default=1.0, help="of samples: below 1 favours probable tokens"
    )
    search.add_argument("--seed", type=int, default=1, help="random seed of samples and of --mix-gold")

    engine = made.add_argument_group("what translates")
    engine.add_argument(
        "--backend",
        choices=BACKENDS,
        default="fairseq",
        help="ctranslate2: faster on a CPU, for transformers",
    )
    engine.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        help="what --backend ctranslate2 computes in (default: float32)",
    )
    engine.add_argument(
        "--min-agreement", type=float,
        help="the least chrF of the first 100 outputs of --backend ctranslate2 with fairseq's as references (default: 90)",
    )  # fmt: skip

    output = made.add_argument_group("what is written")
    output.add_argument(
        "--remove-bpe", help="subword marks to undo in text/ and for --metric: '@@ ', sentencepiece, …"
    )
    output.add_argument(
        "--max-ratio",
        type=float,
        default=0.0,
        help="leave out a pair with a side so many times longer (0: none)",
    )
    output.add_argument("--dedup", action="store_true", help="leave out a pair that was there before")
    output.add_argument(
        "--mix-gold", type=float, default=0.0, help="write the references of this share of sentences too"
    )

    work = made.add_argument_group("how it is shared out")
    work.add_argument("--max-tokens", type=int, default=4096, help="source tokens of a batch (0: no bound)")
    work.add_argument("--batch-size", type=int, default=0, help="sentences of a batch (0: no bound)")
    work.add_argument("--workers", type=int, default=1, help="processes on this machine")
    work.add_argument(
        "--num-shards", type=int, default=1, help="machines that share --out; at the end run once without it"
    )
    work.add_argument("--shard-id", type=int, help="which of them this is, from 0")
    work.add_argument("--cpu", action="store_true", help="translate on the CPU though there is a GPU")
    return made


def job(args: argparse.Namespace) -> Job:
    """What the flags ask for.

    Raises:
        UsageError: they do not fit together.
    """
    nbest = args.nbest or (35 if args.select == "best" else 1)
    if args.nbest is not None and args.nbest < 1:
        raise UsageError(f"--nbest must be 1 or more, but is {args.nbest}")
    beam = args.beam if args.beam is not None else max(5, nbest)
    decoding = Decoding(
        args.select, beam, nbest, args.metric, args.n, args.lenpen, args.unkpen, args.min_len, args.no_repeat_ngram_size,
        args.sampling_topk, args.sampling_topp, args.temperature, args.max_len_a, args.max_len_b, args.remove_bpe, args.seed,
    )  # fmt: skip
    engine = {"quantization": args.quantization, "min_agreement": args.min_agreement}
    engine = {name: value for name, value in engine.items() if value is not None}
    if engine and args.backend != "ctranslate2":
        flag = next(iter(engine)).replace("_", "-")
        raise UsageError(
            f"--{flag} changes nothing under --backend {args.backend}: add --backend ctranslate2"
        )
    if args.seed != 1 and args.select != "sample" and not args.mix_gold:
        raise UsageError(
            f"--seed {args.seed} changes nothing: only --select sample and --mix-gold draw; leave it out"
        )
    if args.bpe is not None and args.source_text is None:
        raise UsageError(
            "--bpe changes nothing without --source-text: a split of DATA is made of subwords already"
        )
    return Job(
        args.data, args.teacher_path, args.out, decoding, Filters(args.max_ratio, args.dedup, args.mix_gold, args.seed),
        split=args.gen_subset, source_text=args.source_text, text=text_settings(args), source_lang=args.source_lang,
        target_lang=args.target_lang, teacher_dtype=args.teacher_dtype, teacher_data=args.teacher_data,
        teacher_allow_globals=args.teacher_allow_globals, max_tokens=args.max_tokens, batch_size=args.batch_size,
        workers=args.workers, num_shards=args.num_shards, shard_id=args.shard_id, cpu=args.cpu,
        backend=args.backend, **engine,
    )  # fmt: skip


def report(result: Result, out: Path, seconds: float) -> str:
    """What was done, for the console."""
    if result.manifest is None:
        return (
            f"{result.done:,} of {result.batches:,} batches are translated, {seconds:,.0f} s. When all machines have ended, "
            f"run the same command without --num-shards and --shard-id: it writes {out}/data-bin."
        )
    counts = result.manifest["counts"]
    left_out = {**counts["dropped"], "too long": counts["too_long"], "empty source": counts["empty_sources"]}
    dropped = ", ".join(f"{number:,} {reason}" for reason, number in left_out.items() if number)
    return "\n".join(
        [
            f"{counts['sentences']:,} sentences, {counts['translations']:,} translations, {counts['gold']:,} references, "
            f"{counts['written']:,} pairs written" + (f"; left out: {dropped}" if dropped else ""),
            f"{out}/data-bin: to train on; {out}/text: the same to read; {out}/manifest.json: how they were made",
            f"{seconds:,.0f} s" if result.fresh else "this was done before: nothing is changed",
        ]
    )


if __name__ == "__main__":
    main()
