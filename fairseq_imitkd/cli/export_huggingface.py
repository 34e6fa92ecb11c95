"""``imitkd-export --format huggingface``: its flags, and what it prints."""

import argparse
import sys
from pathlib import Path
from typing import Any

from fairseq_imitkd.cli.arguments import search_limits, text_settings
from fairseq_imitkd.engines.base import SearchSettings
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.evaluate import schema
from fairseq_imitkd.export.huggingface import Exported, HuggingFaceJob, card_checks
from fairseq_imitkd.text.scores import TITLES

FORMAT = "huggingface"
_OWN = ("teacher", "scores")  # flags of this format alone
_FOREIGN = (  # flags of the others
    "quantization", "remove_bpe", "metric", "max_loss", "device", "strict", "max_len_a", "max_len_b",
)  # fmt: skip


def add_flags(group: Any) -> None:
    """Add the flags of this format to a group of the parser."""
    group.add_argument(
        "--teacher", metavar="NAME", help="the teacher's name in the model card (default: its file's)"
    )
    group.add_argument(
        "--scores",
        metavar="MODEL=FILE",
        help="scores for the model card: those of a model in an evaluation.json of imitkd-evaluate",
    )


def check_flags(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse flags that change nothing.

    Args:
        args: the parsed flags.
        parser: the parser, which knows the defaults.

    Raises:
        UsageError: naming the flag.
    """
    is_own = args.format == FORMAT
    for name in _FOREIGN if is_own else _OWN:
        if getattr(args, name) != parser.get_default(name):
            flag = "--" + name.replace("_", "-")
            remedy = "leave it out" if is_own else f"add --format {FORMAT}"
            raise UsageError(f"{flag} changes nothing with --format {args.format}; {remedy}")


def job_of(args: argparse.Namespace) -> HuggingFaceJob:
    """Return the job that the flags ask for.

    Raises:
        UsageError: a value is out of range, or flags don't fit together.
    """
    # Each side's positions limit a translation here, not --max-len-a and --max-len-b.
    limits = {**search_limits(args), "max_len_a": 0.0, "max_len_b": sys.maxsize}
    if args.sentences < 0:
        raise UsageError(f"--sentences must be 0 (all) or more, but is {args.sentences}")
    return HuggingFaceJob(
        checkpoint=args.checkpoint,
        data=args.data,
        out=args.out,
        text=text_settings(args, args.tokenizer),
        search=SearchSettings(beam=args.beam, lenpen=args.lenpen, **limits),
        split=args.gen_subset,
        sentences=args.sentences,
        scores=_scores(args.scores) if args.scores is not None else (),
        teacher=args.teacher,
        source_lang=args.source_lang,
        target_lang=args.target_lang,
        allow_globals=args.allow_globals,
    )


def _scores(flag: str) -> list[tuple[str, str]]:
    """Return names and values of a model's scores."""
    name, _, path = flag.rpartition("=")
    if not name:
        raise UsageError(f"--scores must be MODEL=FILE, but is {flag!r:.60}; name a model of evaluation.json")
    file = Path(path) / schema.FILE if Path(path).is_dir() else Path(path)
    results = schema.read(file, "--scores")
    if name not in results.models:
        raise UsageError(
            f"--scores names the model {name!r:.40}, but '{file}' has {', '.join(results.models) or 'none'}"
        )
    rows = [
        (f"{TITLES.get(metric, metric)}, {search}", _value(found))
        for search, searched in results.models[name].searches.items()
        for metric, found in searched.scores.items()
    ]
    data = results.data
    rows.append(("on", f"{data.sentences or '?'} sentences of {data.split or 'a test set'}"))
    return rows + [
        (f"signature of {TITLES.get(metric, metric)}", text) for metric, text in results.signatures.items()
    ]


def _value(found: schema.QualityScore) -> str:
    interval = "" if found.low is None or found.high is None else f" ({found.low:.2f} to {found.high:.2f})"
    return f"{found.score:.2f}{interval}"


def report(done: Exported, job: HuggingFaceJob) -> str:
    """Return what the command prints about an export."""
    size = sum(path.stat().st_size for path in job.out.iterdir())
    return "\n".join(
        [
            f"{job.out}: {done.model} with {done.tokenizer}, {done.parameters:,} parameters, "
            f"{size / 1e6:.2f} MB",
            *card_checks(done.compared, job.split),
            *(f"note: {note}" for note in done.notes),
        ]
    )
