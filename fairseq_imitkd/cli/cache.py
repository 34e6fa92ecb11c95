"""``imitkd-cache``: the teacher's answers on a data set's own targets, for training with ``--teacher-cache``."""

import argparse
import logging

import torch

from fairseq_imitkd.teacher import DTYPES as TEACHER_DTYPES
from fairseq_imitkd.teacher_cache import CacheRequest, write_cache
from fairseq_imitkd.teacher_cache.files import DTYPES


def main() -> None:
    """The command line."""
    logging.basicConfig(format="%(asctime)s | %(levelname)s | %(name)s | %(message)s", level=logging.INFO)
    args = vars(argument_parser().parse_args())
    cpu = args.pop("cpu")
    manifest = write_cache(CacheRequest(**args, device="cuda" if torch.cuda.is_available() and not cpu else "cpu"))
    size = manifest["tokens"] * manifest["bytes_a_token"]
    print(
        f"{args['out']} is complete: {args['keep']} of {manifest['sentences'] - manifest['absent']:,} sentences, "
        f"{manifest['tokens']:,} tokens of {manifest['bytes_a_token']} bytes ({size / 2**20:,.1f} MB); "
        f"{manifest['absent']:,} sentences are too long for the teacher and absent"
    )


def argument_parser() -> argparse.ArgumentParser:
    """Its flags, which have the names that fairseq and training with a teacher give them."""
    parser = argparse.ArgumentParser(
        prog="imitkd-cache",
        description="Ask the teacher about every sentence of a split, once: imitkd-train --teacher-cache then needs none. "
        "A command that was stopped goes on where it was when it is given again.",
    )
    defaults = CacheRequest("", "", "", "")
    parser.add_argument("data", metavar="DATA_BIN", help="folder that fairseq-preprocess wrote")
    parser.add_argument("--teacher-path", required=True, help="checkpoint, or several joined by ':' to be averaged")
    parser.add_argument("--out", required=True, help="folder of the cache, new or empty")
    parser.add_argument(
        "--keep",
        required=True,
        help="topk:K, the K most probable symbols of each prefix and the others' sum; or hidden, the decoder's hidden states, "
        "from which every score can be made again (of one teacher)",
    )
    parser.add_argument("--gen-subset", default=defaults.gen_subset, help="the split (default: %(default)s)")
    parser.add_argument("--dtype", choices=[*DTYPES], default=defaults.dtype, help="of its numbers (default: %(default)s)")
    parser.add_argument(
        "--max-tokens", type=_positive, default=defaults.max_tokens, help="of a batch, padding included (default: %(default)s)"
    )
    parser.add_argument("--cpu", action="store_true", help="run the teacher on the CPU though there is a GPU")
    parser.add_argument("-s", "--source-lang", help="default: as the data's files are named")
    parser.add_argument("-t", "--target-lang", help="default: as the data's files are named")
    parser.add_argument("--truncate-source", action="store_true", help="cut long sources, as training on the cache will")
    parser.add_argument(
        "--max-source-positions", type=_positive, default=defaults.max_source_positions, help="where (default: %(default)s)"
    )
    parser.add_argument(
        "--teacher-dtype",
        choices=[*TEACHER_DTYPES],
        default=defaults.teacher_dtype,
        help="its precision (default: %(default)s)",
    )
    parser.add_argument("--teacher-weights", help="of several teachers in their average, joined by ':' (default: all alike)")
    parser.add_argument("--teacher-data", help="folder with the dictionaries that the teacher was trained with")
    parser.add_argument("--teacher-allow-globals", help="types that its file may hold beside fairseq's own: module.name,…")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, but is {text}")
    return number
