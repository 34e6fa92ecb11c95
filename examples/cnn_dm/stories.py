"""CNN/DailyMail, version 3.0.0 (not anonymised), out of its Parquet files: ``stories.py DIR OUT``.

DIR holds ``{train,validation,test}-*-of-*.parquet`` with columns ``article`` and ``highlights``. Writes
``OUT/{train,valid,test}.{source,target}``: an article and its highlights, one after the other, a line. Articles end after 400
words and, in train alone, summaries after 100: what a model writes is compared with all of a summary. Pairs without text on a
side are left out. Takes a few minutes.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import corpora

NAMES = {"train": "train", "valid": "validation", "test": "test"}
PIECE = re.compile(r"-(\d+)-of-(\d+)\.parquet")
COLUMNS = ["article", "highlights"]
ARTICLE_WORDS, SUMMARY_WORDS = 400, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()

    pieces = {split: find(args.folder, name) for split, name in NAMES.items()}
    for split, paths in pieces.items():
        left_out = 0
        with corpora.Pairs(args.out, split, ("source", "target")) as written:
            for article, highlights in tqdm(stories(paths), desc=split, unit=" stories", disable=None):
                source = shortened(article, ARTICLE_WORDS)
                target = shortened(highlights, SUMMARY_WORDS if split == "train" else None)
                if source and target:
                    written.add(source, target)
                else:
                    left_out += 1
        if left_out:
            print(f"{split}: left out {left_out} without article or highlights")


def find(folder: Path, name: str) -> list[Path]:
    """All pieces of a split, in order."""
    found = {path.name.removeprefix(name): path for path in folder.glob(f"{name}-*-of-*.parquet")}
    numbers = sorted(match.groups() for match in map(PIECE.fullmatch, found) if match)
    if not numbers or [int(number) for number, _ in numbers] != list(range(int(numbers[0][1]))):
        corpora.refuse(
            f"{folder} must hold every {name}-*-of-*.parquet, but has {sorted(path.name for path in found.values())}"
        )
    return [found[f"-{number}-of-{count}.parquet"] for number, count in numbers]


def stories(paths: list[Path]) -> Iterator[tuple[str, str]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        corpora.refuse("pyarrow is missing: pip install 'fairseq-imitkd[recipes]'")
    for path in paths:
        try:
            with parquet.ParquetFile(path) as file:
                missing = set(COLUMNS) - set(file.schema_arrow.names)
                if missing:
                    corpora.refuse(
                        f"{path} must have the columns {COLUMNS}, but has not {sorted(missing)}: download it again"
                    )
                for batch in file.iter_batches(batch_size=1000, columns=COLUMNS):
                    for row in batch.to_pylist():
                        yield row["article"] or "", row["highlights"] or ""
        except ArrowException as error:
            reason = str(error).splitlines()[0]
            corpora.refuse(
                f"{path} must be a whole Parquet file, but is not ({reason}): delete it and download it again"
            )


def shortened(text: str, words: int | None) -> str:
    """One line of at most so many words; None: all."""
    return " ".join(corpora.cleared(text).split()[:words])


if __name__ == "__main__":
    main()
