"""``imitkd-cache``: the teacher's answers on a data set's own targets, for training with ``--teacher-cache``."""

import argparse
import logging

import torch

from fairseq_imitkd.cli.arguments import Parser, positive
from fairseq_imitkd.errors import UsageError, interruptible
from fairseq_imitkd.teacher.cache.format import DTYPES
from fairseq_imitkd.teacher.cache.writer import CacheRequest, write_cache
from fairseq_imitkd.teacher.teacher import DTYPES as TEACHER_DTYPES


@interruptible("; the same command goes on where this one was")
def main(arguments: list[str] | None = None) -> None:
    """The command; ``arguments`` are those of the command line unless given."""
    args = argument_parser().parse_args(arguments)
    logging.basicConfig(format="%(asctime)s | %(levelname)s | %(name)s | %(message)s", level=logging.INFO)
    asked = request(args)
    manifest = write_cache(asked)
    size = manifest["tokens"] * manifest["bytes_a_token"]
    print(
        f"{asked.out} is complete: {asked.keep} of {manifest['sentences'] - manifest['absent']:,} sentences, "
        f"{manifest['tokens']:,} tokens of {manifest['bytes_a_token']} bytes ({size / 2**20:,.1f} MB); "
        f"{manifest['absent']:,} sentences are too long for the teacher and absent"
    )


def request(args: argparse.Namespace) -> CacheRequest:
    """What the flags ask for.

    Raises:
        UsageError: they do not fit together.
    """
    given = vars(args).copy()
    cpu = given.pop("cpu")
    if given["max_source_positions"] is None:
        del given["max_source_positions"]
    elif not args.truncate_source:
        raise UsageError(
            f"--max-source-positions {args.max_source_positions} changes nothing without --truncate-source: add it, "
            "or leave this out"
        )
    return CacheRequest(**given, device="cuda" if torch.cuda.is_available() and not cpu else "cpu")


def argument_parser() -> Parser:
    """Its flags, which have the names that fairseq and training with a teacher give them."""
    parser = Parser(
        "imitkd-cache",
        "Ask the teacher about every sentence of a split, once: imitkd-train --teacher-cache then needs none. "
        "A command that was stopped goes on where it was when it is given again.",
    )
    defaults = CacheRequest("", "", "", "")
    parser.add_argument("data", metavar="DATA_BIN", help="folder that fairseq-preprocess wrote")
    parser.add_argument(
        "--teacher-path", required=True, help="checkpoint, or several joined by ':' to be averaged"
    )
    parser.add_argument("--out", required=True, help="folder of the cache, new or empty")
    parser.add_argument(
        "--keep",
        required=True,
        help="topk:K, the K most probable symbols of each prefix and the others' sum; or hidden, the decoder's hidden states, "
        "from which every score can be made again (of one teacher)",
    )
    parser.add_argument("--gen-subset", default=defaults.gen_subset, help="the split")
    parser.add_argument(
        "--dtype", choices=[*DTYPES], default=defaults.dtype, help="precision of the numbers in the cache"
    )
    parser.add_argument(
        "--max-tokens", type=positive, default=defaults.max_tokens, help="tokens of a batch, padding included"
    )
    parser.add_argument("--cpu", action="store_true", help="run the teacher on the CPU though there is a GPU")
    parser.add_argument(
        "-s", "--source-lang", help="language translated from (default: as the data's files are named)"
    )
    parser.add_argument(
        "-t", "--target-lang", help="language translated into (default: as the data's files are named)"
    )
    parser.add_argument(
        "--truncate-source", action="store_true", help="cut long sources, as training on the cache will"
    )
    parser.add_argument(
        "--max-source-positions",
        type=positive,
        help="most tokens that --truncate-source leaves of a source, its end-of-sentence symbol included "
        f"(default: {defaults.max_source_positions})",
    )
    parser.add_argument(
        "--teacher-dtype",
        choices=[*TEACHER_DTYPES],
        default=defaults.teacher_dtype,
        help="precision that the teacher computes in",
    )
    parser.add_argument(
        "--teacher-weights",
        help="weights of several teachers in their average, joined by ':' (default: all alike)",
    )
    parser.add_argument(
        "--teacher-data", help="folder with the dictionaries that the teacher was trained with"
    )
    parser.add_argument(
        "--teacher-allow-globals",
        help="types that the teacher's file may hold beside fairseq's own: module.name,…",
    )
    return parser
