"""``imitkd-cache``: save the teacher's answers on a data set's references, for ``--teacher-cache``."""

import argparse
import shlex
from typing import Any

import torch

from fairseq_imitkd.cli.arguments import TEACHER_ALLOW_POOR, TEACHER_DATA, Parser, positive
from fairseq_imitkd.cli.messages import show_warnings
from fairseq_imitkd.errors import UsageError, one_line_errors
from fairseq_imitkd.teacher.cache.format import DTYPES
from fairseq_imitkd.teacher.cache.writer import CacheRequest, write_cache
from fairseq_imitkd.teacher.teacher import DTYPES as TEACHER_DTYPES
from fairseq_imitkd.text.counted import counted

DEFAULTS = CacheRequest("", "", "", "")


@one_line_errors("; the same command continues where it stopped")
def main(arguments: list[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: its arguments; None takes those of the command line.
    """
    args = parser().parse_args(arguments)
    show_warnings()
    wanted = request(args)
    manifest = write_cache(wanted)
    size = manifest["tokens"] * manifest["bytes_a_token"]
    present = counted(manifest["sentences"] - manifest["absent"], "sentence")
    print(
        f"{wanted.out} is complete: {wanted.keep} of {present}, {manifest['tokens']:,} tokens of "
        f"{manifest['bytes_a_token']} bytes ({size / 1e6:,.1f} MB); left out as too long for the teacher: "
        f"{manifest['absent']:,}"
    )
    topk = ["--teacher-topk", str(manifest["topk"])] if manifest["topk"] else []
    words = ["imitkd-train", wanted.data, "--teacher-cache", wanted.out, "--criterion", "word_kd", *topk]
    words += _same_data(wanted)
    print(f"Next: {shlex.join(words)} --arch transformer_imitkd_2_2 …")


def _same_data(wanted: CacheRequest) -> list[str]:
    """Return the flags with which a training reads the sentences of a cache."""
    given = {
        "--source-lang": wanted.source_lang,
        "--target-lang": wanted.target_lang,
        "--train-subset": None if wanted.gen_subset == DEFAULTS.gen_subset else wanted.gen_subset,
    }
    words = [word for flag, value in given.items() if value is not None for word in (flag, value)]
    if wanted.truncate_source:
        words += ["--truncate-source", "--max-source-positions", str(wanted.max_source_positions)]
    return words


def request(args: argparse.Namespace) -> CacheRequest:
    """Return the request that the flags describe.

    Raises:
        UsageError: the flags do not fit together.
    """
    given = vars(args).copy()
    cpu = given.pop("cpu")
    if given["max_source_positions"] is None:
        del given["max_source_positions"]
    elif not args.truncate_source:
        raise UsageError(
            f"--max-source-positions {args.max_source_positions} changes nothing without --truncate-source; "
            "add it, or leave this out"
        )
    return CacheRequest(**given, device="cuda" if torch.cuda.is_available() and not cpu else "cpu")


def parser() -> Parser:
    """Return the parser; flags have the names that they have in fairseq and in training."""
    made = Parser(
        "imitkd-cache",
        "Ask the teacher about every sentence of a split once, so that imitkd-train --teacher-cache needs no "
        "teacher. Run the same command again to resume.",
    )
    _add_data_flags(made)
    _add_teacher_flags(made)
    return made


def _add_data_flags(parser: Any) -> None:
    parser.add_argument("data", metavar="DATA_BIN", help="fairseq's data directory")
    parser.add_argument("--out", required=True, help="folder of the cache, new or empty")
    parser.add_argument(
        "--keep",
        required=True,
        help="topk:K keeps the K most probable symbols at each prefix, and the probability of all others "
        "together; hidden keeps the decoder's hidden states, which give every score (one teacher only)",
    )
    parser.add_argument("--gen-subset", default=DEFAULTS.gen_subset, help="split of DATA_BIN")
    parser.add_argument(
        "--dtype", choices=[*DTYPES], default=DEFAULTS.dtype, help="precision of the numbers in the cache"
    )
    parser.add_argument(
        "--max-tokens",
        type=positive,
        default=DEFAULTS.max_tokens,
        help="most tokens in a batch, padding included",
    )
    parser.add_argument(
        "--cpu", action="store_true", help="run the teacher on the CPU even if there is a GPU"
    )
    parser.add_argument(
        "-s", "--source-lang", help="source language (default: read from the names of the data files)"
    )
    parser.add_argument(
        "-t", "--target-lang", help="target language (default: read from the names of the data files)"
    )
    parser.add_argument(
        "--truncate-source", action="store_true", help="cut long sources, as training on the cache will"
    )
    parser.add_argument(
        "--max-source-positions",
        type=positive,
        help="most tokens of a source that --truncate-source cuts, EOS included (default: "
        f"{DEFAULTS.max_source_positions})",
    )


def _add_teacher_flags(parser: Any) -> None:
    parser.add_argument(
        "--teacher-path",
        required=True,
        help="teacher's checkpoint, or several joined by ':', whose probabilities are averaged",
    )
    parser.add_argument(
        "--teacher-dtype",
        choices=[*TEACHER_DTYPES],
        default=DEFAULTS.teacher_dtype,
        help="teacher's precision",
    )
    parser.add_argument(
        "--teacher-weights",
        help="weights of several teachers in their average, joined by ':' (default: equal weights)",
    )
    parser.add_argument(
        "--teacher-data",
        help=TEACHER_DATA,
    )
    parser.add_argument(
        "--teacher-allow-globals",
        help="types that the checkpoint may hold besides fairseq's own: module.name,… (trusted files only)",
    )
    parser.add_argument(
        "--teacher-allow-poor",
        action="store_true",
        help=TEACHER_ALLOW_POOR,
    )
