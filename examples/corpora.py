"""What the recipes' data scripts share: text in one line, splits without leaks, files that are there only once whole."""

import functools
import hashlib
import os
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

SPLITS = ("train", "valid", "test")
LONGEST_WORD = 1000
NOT_A_LETTER_OR_DIGIT = re.compile(r"[\W_]+")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")


def refuse(message: str) -> NoReturn:
    """End the script with one line that names the file, what is wrong with it and the way out."""
    sys.exit(f"{Path(sys.argv[0]).name}: {message}")


def digest(text: str) -> str:
    """What text is ordered and chosen by where its own order means something."""
    return hashlib.sha256(text.encode()).hexdigest()


def one_line(text: str) -> str:
    """Without line breaks and doubled blanks."""
    return " ".join(text.split())


def cleared(text: str) -> str:
    """One line, with blanks for control characters and without invisible ones."""
    return one_line(CONTROL.sub(" ", INVISIBLE.sub("", text)))


def comparable(text: str) -> str:
    """What two texts share that differ only in case, punctuation and width."""
    return one_line(NOT_A_LETTER_OR_DIGIT.sub(" ", unicodedata.normalize("NFKC", text).casefold()))


def linked(keys: Iterable[Sequence[Hashable]]) -> list[list[int]]:
    """Groups of items by number: two are in one group if they share a key, or through others that do."""
    parents: dict[Hashable, Hashable] = {}

    def root(key: Hashable) -> Hashable:
        while parents.setdefault(key, key) != key:
            parents[key] = key = parents[parents[key]]
        return key

    firsts = []
    for first, *others in keys:
        firsts.append(first)
        for other in others:
            parents[root(first)] = root(other)
    groups = defaultdict(list)
    for number, first in enumerate(firsts):
        groups[root(first)].append(number)
    return list(groups.values())


def deal(
    groups: Iterable[list[int]], largest: int, order: Callable[[list[int]], str], sizes: dict[str, int]
) -> dict[str, list[int]]:
    """Whole groups to each split of `sizes` until it has that many items, in `order`; what is left, and groups over
    `largest`, are ``train``.
    """
    groups = list(groups)
    dealt: dict[str, list[int]] = {
        "train": [item for group in groups if len(group) > largest for item in group]
    }
    rest = iter(sorted((group for group in groups if len(group) <= largest), key=order))
    for split, size in sizes.items():
        dealt[split] = []
        while len(dealt[split]) < size:
            group = next(rest, None)
            if group is None:
                refuse(
                    f"{split} is to have {size} pairs, but only {len(dealt[split])} are left: get the whole data"
                )
            dealt[split] += group
    dealt["train"] += [item for group in rest for item in group]
    return dealt


@functools.cache
def moses(language: str) -> Callable[[str], str]:
    """Moses's tokenizer.perl, with its ``&apos;`` and the like, by sacremoses."""
    try:
        from sacremoses import MosesTokenizer
    except ImportError:
        refuse("sacremoses is missing: pip install 'fairseq-imitkd[recipes]'")
    tokenizer = MosesTokenizer(lang=language)

    def tokenize(text: str) -> str:
        tokens = tokenizer.tokenize(text)
        # The one difference of the two: tokenizer.perl always cuts the full stop off the last word, abbreviation or not.
        if tokens and tokens[-1].endswith(".") and tokens[-1].strip("."):
            tokens[-1:] = [tokens[-1].removesuffix("."), "."]
        return " ".join(tokens)

    return tokenize


def clean(source: str, target: str, longest: int, ratio: float) -> bool:
    """Whether Moses's clean-corpus-n.perl keeps a pair: 1 to `longest` words a side, one not `ratio` times as long."""
    counts = len(source.split()), len(target.split())
    words = [*source.split(), *target.split()]
    return (
        min(counts) > 0
        and max(counts) <= longest
        and max(counts) <= ratio * min(counts)
        and all(len(word) <= LONGEST_WORD for word in words)
    )


class Pairs:
    """Writes ``OUT/SPLIT.{SOURCE,TARGET}``: UTF-8, a pair a line. The files are there only once all of it is."""

    def __init__(self, out: Path, split: str, sides: tuple[str, str]) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.paths = [out / f"{split}.{side}" for side in sides]
        self.parts = [path.with_name(path.name + ".part") for path in self.paths]
        self.files = [part.open("w", encoding="utf-8", newline="\n") for part in self.parts]
        self.count = 0

    def add(self, *pair: str) -> None:
        for text, path in zip(pair, self.paths, strict=True):
            if not text.strip() or "\n" in text or "\r" in text:
                refuse(
                    f"{path}, line {self.count + 1}: must be a line of text, but is {text[:80]!r}: mend it in the raw text"
                )
        for text, file in zip(pair, self.files, strict=True):
            file.write(text + "\n")
        self.count += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self.files:
            file.close()
        for part, path in zip(self.parts, self.paths, strict=True):
            if kind is None:
                os.replace(part, path)
            else:
                part.unlink()
        if kind is None:
            print(f"{self.paths[0]}, {self.paths[1].name}: {self.count} pairs")
