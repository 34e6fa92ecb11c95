"""Prepares WMT'16's English and German as for fairseq's published model, before its BPE: ``wmt.py DIR OUT``.

DIR holds the downloads: ``europarl-v7-de-en.tgz``, ``training-parallel-commoncrawl.tgz`` and
``training-parallel-nc-v11.tgz``, and the plain text of the news tests, ``newstest2013.{en,de}`` and
``newstest2014.{en,de}``. The script writes ``OUT/{train,valid,test}.{en,de}``, tokenised by Moses. Training
pairs have 1 to 80 words per side, and one side is at most 9 times as long as the other. A run takes about
half an hour with two processes. Google's wmt16_en_de.sh prepares the text the same way:
https://github.com/tensorflow/nmt/blob/2d72af6fba8fe185e30e11e9519056debffbccd8/nmt/scripts/wmt16_en_de.sh#L60-L125
"""

import argparse
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import corpora

SIDES = ("en", "de")
# Archive -> name of its two files
CORPORA = {
    "europarl-v7-de-en.tgz": "europarl-v7.de-en.{}",
    "training-parallel-commoncrawl.tgz": "commoncrawl.de-en.{}",
    "training-parallel-nc-v11.tgz": "news-commentary-v11.de-en.{}",
}
NEWS = {"valid": "newstest2013", "test": "newstest2014"}
LONGEST, RATIO = 80, 9
CHUNK = 2000

Pair = tuple[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=2, help="number of processes (default: %(default)s)")
    args = parser.parse_args()

    with ProcessPoolExecutor(args.workers) as pool:
        for split, name in NEWS.items():
            with corpora.Pairs(args.out, split, SIDES) as written:
                for chunk in tokenised(news(args.folder, name), pool):
                    for pair in chunk:
                        written.add(*pair)
        with (
            corpora.Pairs(args.out, "train", SIDES) as written,
            tqdm(unit=" pairs", disable=None) as progress,
        ):
            for name, member in CORPORA.items():
                for chunk in tokenised(corpus(args.folder / name, member), pool):
                    progress.update(len(chunk))
                    for pair in chunk:
                        if corpora.clean(*pair, longest=LONGEST, ratio=RATIO):
                            written.add(*pair)


def news(folder: Path, name: str) -> Iterator[Pair]:
    """Yield the pairs of a news test."""
    sides = []
    for path in (folder / f"{name}.{side}" for side in SIDES):
        try:
            sides.append(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))
        except OSError as error:
            corpora.refuse(f"{path} cannot be read ({error.strerror}); get it with sacrebleu --echo")
    if len(sides[0]) != len(sides[1]):
        corpora.refuse(
            f"{folder}/{name}.en and .de must have equally many lines, but have {len(sides[0])} and "
            f"{len(sides[1])}; get both again"
        )
    yield from zip(*sides, strict=True)


def corpus(path: Path, member: str) -> Iterator[Pair]:
    """Yield the pairs of an archive's two files."""
    with ExitStack() as stack:
        sides = []
        try:
            for side in SIDES:
                # One stream per side: a single gzip would have to seek back and forth.
                archive = stack.enter_context(tarfile.open(path, "r|*"))
                name = member.format(side)
                found = next(
                    (archive.extractfile(entry) for entry in archive if Path(entry.name).name == name), None
                )
                if found is None:
                    corpora.refuse(f"{path} must hold {name}, but does not; download it again")
                sides.append(found)
            for english, german in zip(*sides, strict=True):
                yield english.decode(errors="replace"), german.decode(errors="replace")
        except ValueError:  # of zip
            corpora.refuse(
                f"{path}: both {member.format('*')} must have equally many lines, but do not; "
                "download it again"
            )
        except OSError as error:
            corpora.refuse(f"{path} cannot be read ({error.strerror or error}); download it again")
        except (tarfile.TarError, EOFError) as error:
            corpora.refuse(
                f"{path} must be a complete tar archive, but is not ({error}); "
                "delete it and download it again"
            )


def tokenised(pairs: Iterator[Pair], pool: ProcessPoolExecutor) -> Iterator[list[Pair]]:
    """Yield tokenised chunks in order, while other processes work on the next ones."""
    under_way: list[Future[list[Pair]]] = []
    while chunk := list(islice(pairs, CHUNK)):
        under_way.append(pool.submit(tokenise, chunk))
        if len(under_way) > 20:
            yield under_way.pop(0).result()
    for future in under_way:
        yield future.result()


def tokenise(pairs: list[Pair]) -> list[Pair]:
    """Tokenise both sides of some pairs."""
    english, german = (corpora.moses(side) for side in SIDES)
    return [(english(pair[0]), german(pair[1])) for pair in pairs]


if __name__ == "__main__":
    main()
