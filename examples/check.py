"""Checks parallel text before training: ``check.py DIR SOURCE TARGET [--max-ratio 3]``.

The script reads ``DIR/{train,valid,test}.{SOURCE,TARGET}``. It fails on sides of unequal length, lines
without text, carriage returns and bytes that are not UTF-8. It counts everything else, prints a Markdown
table, and writes the counts and each file's SHA-256 to ``DIR/check.json``. A pair is "in train" if the
training data holds exactly the same pair.
"""

import argparse
import hashlib
import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import corpora
import numpy as np
from tqdm import tqdm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument(
        "--max-ratio",
        type=float,
        default=3.0,
        help="ratio of characters above which a pair is counted as an outlier; 0: count none",
    )
    args = parser.parse_args()

    sides = (args.source, args.target)
    found = check(args.folder, sides, args.max_ratio)
    path = args.folder / "check.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(part, path)
    print(table(found))


def check(folder: Path, sides: tuple[str, str], max_ratio: float) -> dict[str, Any]:
    """Check and count the three splits; see the module docstring."""
    # Only valid and test are kept in memory, because train may be too large.
    held = {split: Held() for split in corpora.SPLITS[1:]}
    files: dict[str, str] = {}
    splits = {}
    for split in reversed(corpora.SPLITS):
        count = Split(sides, max_ratio)
        read = pairs([folder / f"{split}.{side}" for side in sides], files)
        for pair in tqdm(read, desc=split, unit=" pairs", disable=None):
            count.add(*pair)
            if split == "train":
                for others in held.values():
                    others.see(*pair)
            else:
                held[split].keep(*pair)
        splits[split] = count.found()
    for split, others in held.items():
        splits[split]["in_train"] = others.seen_lines()
    splits = {split: splits[split] for split in corpora.SPLITS}
    return {
        "source": sides[0],
        "target": sides[1],
        "max_ratio": max_ratio,
        "splits": splits,
        "sha256": dict(sorted(files.items())),
    }


def pairs(paths: list[Path], digests: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the lines of both files in pairs, then add the files' SHA-256 to ``digests``."""
    readers = [lines(path, digests) for path in paths]
    number = 0
    while True:
        number += 1
        pair = [next(reader, None) for reader in readers]
        match pair:
            case [None, None]:
                if number == 1:
                    corpora.refuse(f"{paths[0]} must have text, but is empty; make it again")
                return
            case [str(source), str(target)]:
                yield source, target
            case _:
                counts = [
                    number - 1 + (line is not None) + sum(1 for _ in reader)
                    for line, reader in zip(pair, readers, strict=True)
                ]
                corpora.refuse(
                    f"{paths[0]} and {paths[1]} must have equally many lines, but have {counts[0]} and "
                    f"{counts[1]}; make both again"
                )


def lines(path: Path, digests: dict[str, str]) -> Iterator[str]:
    """Yield the checked lines of a file, then add its SHA-256 to ``digests``."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                digest.update(line)
                text = line.removesuffix(b"\n").decode()
                if not text.strip():
                    corpora.refuse(
                        f"{path}, line {number}: must have text, but is empty; drop the pair on both sides"
                    )
                if "\r" in text:
                    corpora.refuse(
                        f"{path}, line {number}: must not hold a carriage return, because fairseq ends a "
                        "line there; delete it"
                    )
                yield text
    except OSError as error:
        corpora.refuse(f"{path} cannot be read ({error.strerror}); make it first")
    except UnicodeDecodeError as error:
        corpora.refuse(f"{path}, line {number}: must be UTF-8, but is not ({error.reason}); convert it")
    digests[path.name] = digest.hexdigest()


class Split:
    """Counts of one split."""

    def __init__(self, sides: tuple[str, str], max_ratio: float) -> None:
        self.max_ratio = max_ratio
        self.counts = Counter(pairs=0, same_on_both_sides=0, ratio_above=0)
        self.sides = {side: Side() for side in sides}
        self.hashes = array("q")

    def add(self, *pair: str) -> None:
        self.counts["pairs"] += 1
        for side, text in zip(self.sides.values(), pair, strict=True):
            side.add(text, self.counts["pairs"])
        lengths = sorted(map(len, pair))
        self.counts["same_on_both_sides"] += pair[0] == pair[1]
        self.counts["ratio_above"] += 0 < self.max_ratio < lengths[1] / lengths[0]
        self.hashes.append(short_hash("\n".join(pair)))

    def found(self) -> dict[str, Any]:
        repeated = len(self.hashes) - len(np.unique(np.frombuffer(self.hashes, dtype=np.int64)))
        return {
            **self.counts,
            "repeated": repeated,
            "sides": {side: counts.found() for side, counts in self.sides.items()},
        }


class Side:
    """Counts of one side of a split."""

    def __init__(self) -> None:
        self.lines = self.words = self.longest = 0
        self.unwanted = {"control": Unwanted(corpora.CONTROL), "invisible": Unwanted(corpora.INVISIBLE)}

    def add(self, text: str, number: int) -> None:
        words = len(text.split())
        self.lines += 1
        self.words += words
        self.longest = max(self.longest, words)
        if not text.isprintable():
            for unwanted in self.unwanted.values():
                unwanted.add(text, number)

    def found(self) -> dict[str, Any]:
        unwanted = {
            kind: {"lines": found.lines, "first": found.first} for kind, found in self.unwanted.items()
        }
        return {"words_a_line": round(self.words / self.lines, 1), "longest": self.longest, **unwanted}


class Unwanted:
    """Counts lines with unwanted characters."""

    def __init__(self, characters: re.Pattern[str]) -> None:
        self.characters = characters
        self.lines = 0
        self.first: int | None = None

    def add(self, text: str, number: int) -> None:
        if self.characters.search(text):
            self.lines += 1
            self.first = self.first or number


class Held:
    """The lines of valid or test, and which of them are in train."""

    def __init__(self) -> None:
        self.kept: dict[str, Counter[object]] = {"source": Counter(), "target": Counter(), "pair": Counter()}
        self.seen: dict[str, set[object]] = {kind: set() for kind in self.kept}

    def keep(self, *pair: str) -> None:
        for counts, text in zip(self.kept.values(), (*pair, pair), strict=True):
            counts[text] += 1

    def see(self, *pair: str) -> None:
        for kind, text in zip(self.kept, (*pair, pair), strict=True):
            if text in self.kept[kind]:
                self.seen[kind].add(text)

    def seen_lines(self) -> dict[str, int]:
        """Return how many lines of this split are in train."""
        return {kind: sum(self.kept[kind][text] for text in seen) for kind, seen in self.seen.items()}


def short_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)


def table(found: dict[str, Any]) -> str:
    """Return the counts as a Markdown table."""
    source, target, splits = found["source"], found["target"], found["splits"]

    def both(kind: str) -> list[str]:
        return [
            " / ".join(f"{side[kind]:,}" for side in split["sides"].values()) for split in splits.values()
        ]

    def unwanted(kind: str) -> list[str]:
        counts = [[side[kind] for side in split["sides"].values()] for split in splits.values()]
        return [
            " / ".join(f"{c['lines']:,}" + f" (line {c['first']})" * bool(c["lines"]) for c in sides)
            for sides in counts
        ]

    def in_train(kind: str) -> list[str]:
        return [f"{split['in_train'][kind]:,}" if "in_train" in split else "" for split in splits.values()]

    def plain(kind: str) -> list[str]:
        return [f"{split[kind]:,}" for split in splits.values()]

    outliers = f"one side over {found['max_ratio']:g} times the other, in characters"
    rows = {
        "pairs": plain("pairs"),
        f"words per line, {source} / {target}": both("words_a_line"),
        f"longest line in words, {source} / {target}": both("longest"),
        outliers: plain("ratio_above"),
        "both sides the same": plain("same_on_both_sides"),
        "repeated pairs": plain("repeated"),
        f"{source} is in train": in_train("source"),
        f"{target} is in train": in_train("target"),
        "pair is in train": in_train("pair"),
        f"lines with control characters, {source} / {target}": unwanted("control"),
        f"lines with invisible characters, {source} / {target}": unwanted("invisible"),
    }
    if not found["max_ratio"]:
        del rows[outliers]
    head = ["| | " + " | ".join(splits) + " |", "| --- |" + " ---: |" * len(splits)]
    return "\n".join([*head, *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items())])


if __name__ == "__main__":
    main()
