"""Extracts CNN/DailyMail, version 3.0.0 (not anonymised), from its Parquet files: ``stories.py DIR OUT``.

DIR holds ``{train,validation,test}-*-of-*.parquet`` with columns ``article`` and ``highlights``. The script
writes ``OUT/{train,valid,test}.{source,target}``, one article and its joined highlights per line. Articles
are cut after 400 words. Summaries are cut after 100 words in train only, because evaluation compares with
complete summaries. Pairs without text on one side are dropped. A run takes a few minutes.
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
            print(f"{split}: dropped {left_out} pairs without article or highlights")


def find(folder: Path, name: str) -> list[Path]:
    """Return all files of a split, in order."""
    found = {path.name.removeprefix(name): path for path in folder.glob(f"{name}-*-of-*.parquet")}
    numbers = sorted(match.groups() for match in map(PIECE.fullmatch, found) if match)
    if not numbers or [int(number) for number, _ in numbers] != list(range(int(numbers[0][1]))):
        corpora.refuse(
            f"{folder} must hold all {name}-*-of-*.parquet, "
            f"but has {sorted(path.name for path in found.values())}; add the missing ones"
        )
    return [found[f"-{number}-of-{count}.parquet"] for number, count in numbers]


def stories(paths: list[Path]) -> Iterator[tuple[str, str]]:
    """Yield the articles and highlights of some files."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        corpora.refuse("pyarrow is not installed; run pip install 'fairseq-imitkd[recipes]'")
    for path in paths:
        try:
            with parquet.ParquetFile(path) as file:
                missing = set(COLUMNS) - set(file.schema_arrow.names)
                if missing:
                    corpora.refuse(
                        f"{path} must have the columns {COLUMNS}, but lacks {sorted(missing)}; "
                        "download it again"
                    )
                for batch in file.iter_batches(batch_size=1000, columns=COLUMNS):
                    for row in batch.to_pylist():
                        yield row["article"] or "", row["highlights"] or ""
        except ArrowException as error:
            reason = str(error).splitlines()[0]
            corpora.refuse(
                f"{path} must be a complete Parquet file, but is not ({reason}); "
                "delete it and download it again"
            )


def shortened(text: str, words: int | None) -> str:
    """Return a text in one line of at most ``words`` words; None keeps all."""
    return " ".join(corpora.cleared(text).split()[:words])


if __name__ == "__main__":
    main()
