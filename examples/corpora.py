"""Shared by the recipes' data scripts: text cleaning, splits without leaks, and atomically written files."""

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
    """Exit with a one-line message, which names the file, the error and the remedy."""
    sys.exit(f"{Path(sys.argv[0]).name}: {message}")


def digest(text: str) -> str:
    """Return the SHA-256 of a text. It orders and selects texts independently of their order in a file."""
    return hashlib.sha256(text.encode()).hexdigest()


def one_line(text: str) -> str:
    """Return the text without line breaks and repeated blanks."""
    return " ".join(text.split())


def cleared(text: str) -> str:
    """Return the text in one line, with control characters as blanks and without invisible characters."""
    return one_line(CONTROL.sub(" ", INVISIBLE.sub("", text)))


def comparable(text: str) -> str:
    """Return a form that is equal for texts that differ only in case, punctuation and width."""
    return one_line(NOT_A_LETTER_OR_DIGIT.sub(" ", unicodedata.normalize("NFKC", text).casefold()))


def linked(keys: Iterable[Sequence[Hashable]]) -> list[list[int]]:
    """Group items by their keys: items that share a key, directly or through others, are in one group."""
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
    groups: Iterable[list[int]], *, largest: int, order: Callable[[list[int]], str], sizes: dict[str, int]
) -> dict[str, list[int]]:
    """Deal whole groups of items to splits.

    Args:
        groups: groups of item numbers.
        largest: size above which a group belongs to ``train``.
        order: sort key of a group.
        sizes: number of items of each split; a split gets groups until it has at least that many.

    Returns:
        the items of each split, and of ``train``, which gets the rest.
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
                    f"{split} must have {size} pairs, but only {len(dealt[split])} are left; "
                    "use the complete data"
                )
            dealt[split] += group
    dealt["train"] += [item for group in rest for item in group]
    return dealt


@functools.cache
def moses(language: str) -> Callable[[str], str]:
    """Return a function that tokenises like Moses's tokenizer.perl, with its escapes such as ``&apos;``."""
    try:
        from sacremoses import MosesTokenizer
    except ImportError:
        refuse("sacremoses is not installed; run pip install 'fairseq-imitkd[recipes]'")
    tokenizer = MosesTokenizer(lang=language)

    def tokenize(text: str) -> str:
        tokens = tokenizer.tokenize(text)
        # The two differ in one point: tokenizer.perl separates the last word's full stop even in an
        # abbreviation.
        if tokens and tokens[-1].endswith(".") and tokens[-1].strip("."):
            tokens[-1:] = [tokens[-1].removesuffix("."), "."]
        return " ".join(tokens)

    return tokenize


def clean(source: str, target: str, *, longest: int, ratio: float) -> bool:
    """Return whether Moses's clean-corpus-n.perl keeps a pair:

    https://github.com/moses-smt/mosesdecoder/blob/1f82a438377e03b71697f195494a9ae4f618fe63/scripts/training/clean-corpus-n.perl

    Args:
        source, target: the sides, tokenised.
        longest: most words per side; a side has at least one.
        ratio: most times that one side may be as long as the other.
    """
    counts = len(source.split()), len(target.split())
    words = [*source.split(), *target.split()]
    return (
        min(counts) > 0
        and max(counts) <= longest
        and max(counts) <= ratio * min(counts)
        and all(len(word) <= LONGEST_WORD for word in words)
    )


class Pairs:
    """Writes ``OUT/SPLIT.{SOURCE,TARGET}``, UTF-8, one pair per line. The files appear when complete."""

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
                    f"{path}, line {self.count + 1}: must be a line of text, but is {text[:80]!r}; "
                    "correct the raw text"
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
