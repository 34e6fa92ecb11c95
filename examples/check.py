"""Check parallel text before it is trained on: ``check.py DIR SOURCE TARGET [--max-ratio 3]``.

Reads ``DIR/{train,valid,test}.{SOURCE,TARGET}``. Sides of unequal length, lines without text, carriage returns and bytes that
are no UTF-8 end it with an error; all else is counted: a table in Markdown, and with each file's SHA-256 in
``DIR/check.json``. A pair "in train" is one that training has seen word by word.
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
        help="of characters a side, above which a pair counts; 0: none does",
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
    # What valid and test hold is looked for while train passes by: train may be too large to keep.
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
    """Both files' lines side by side; then their SHA-256 in `digests`."""
    readers = [lines(path, digests) for path in paths]
    number = 0
    while True:
        number += 1
        pair = [next(reader, None) for reader in readers]
        match pair:
            case [None, None]:
                if number == 1:
                    corpora.refuse(f"{paths[0]} has no line: it must have text; make it again")
                return
            case [str(source), str(target)]:
                yield source, target
            case _:
                counts = [
                    number - 1 + (line is not None) + sum(1 for _ in reader)
                    for line, reader in zip(pair, readers, strict=True)
                ]
                corpora.refuse(
                    f"{paths[0]} has {counts[0]} lines and {paths[1]} {counts[1]}: they must be as many; make both again"
                )


def lines(path: Path, digests: dict[str, str]) -> Iterator[str]:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                digest.update(line)
                text = line.removesuffix(b"\n").decode()
                if not text.strip():
                    corpora.refuse(
                        f"{path}, line {number}: must have text, but is empty; leave the pair out on both sides"
                    )
                if "\r" in text:
                    corpora.refuse(
                        f"{path}, line {number}: must not hold a carriage return (fairseq ends a line there); delete it"
                    )
                yield text
    except OSError as error:
        corpora.refuse(f"{path} cannot be read ({error.strerror}): make it first")
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
    """Lines with characters that no text needs."""

    def __init__(self, characters: re.Pattern[str]) -> None:
        self.characters = characters
        self.lines = 0
        self.first: int | None = None

    def add(self, text: str, number: int) -> None:
        if self.characters.search(text):
            self.lines += 1
            self.first = self.first or number


class Held:
    """Lines of valid or test, and which of them train has."""

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
        """Lines of this split, not of train."""
        return {kind: sum(self.kept[kind][text] for text in seen) for kind, seen in self.seen.items()}


def short_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)


def table(found: dict[str, Any]) -> str:
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
        f"words a line, {source} / {target}": both("words_a_line"),
        f"longest line in words, {source} / {target}": both("longest"),
        outliers: plain("ratio_above"),
        "both sides the same": plain("same_on_both_sides"),
        "pair stands there before": plain("repeated"),
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
