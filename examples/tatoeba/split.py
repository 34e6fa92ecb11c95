"""Splits Tatoeba's German and English pairs of manythings.org's list: ``split.py deu-eng.zip OUT``.

The script writes ``OUT/{train,valid,test}.{de,en}``. Two pairs are linked if their English or their German
sides are the same apart from case, punctuation and width. All linked pairs are in one split, so no sentence
of valid or test is in train, on either side. Groups of more than ten pairs are in train. A SHA-256 chooses
the split of the others, so the same list always gives the same files. 3,000 pairs are held out of all splits.
"""

import argparse
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import corpora

SIZES = {"valid": 3000, "test": 3000, "apart": 3000}
LARGEST = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("zip", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()

    pairs = read(args.zip)
    for split, numbers in splits(pairs).items():
        if split == "apart":
            continue
        chosen = sorted(
            (pairs[number] for number in numbers), key=lambda pair: corpora.digest("\t".join(pair))
        )
        with corpora.Pairs(args.out, split, ("de", "en")) as written:
            for english, german in chosen:
                written.add(german, english)


def read(path: Path) -> list[tuple[str, str]]:
    """Return the pairs of the archive's list, whose lines are "ENGLISH TAB GERMAN"."""
    try:
        with zipfile.ZipFile(path) as archive:
            text = archive.read("deu.txt").decode()
    except OSError as error:
        corpora.refuse(f"{path} cannot be read ({error.strerror}); download it, or use another")
    except (zipfile.BadZipFile, KeyError):
        corpora.refuse(f"{path} must be a zip archive that holds deu.txt, but is not; download it again")
    pairs = []
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        columns = [corpora.one_line(column) for column in line.split("\t")[:2]]
        if len(columns) < 2 or not all(columns):
            corpora.refuse(
                f"{path}, deu.txt, line {number}: must be ENGLISH TAB GERMAN, but is {line[:80]!r}"
            )
        pairs.append((columns[0], columns[1]))
    return pairs


def splits(pairs: list[tuple[str, str]], sizes: dict[str, int] = SIZES) -> dict[str, list[int]]:
    """Return each split's pairs as indices of ``pairs``; ``apart`` are those held out of all splits."""
    keys = (
        (("en", corpora.comparable(english)), ("de", corpora.comparable(german))) for english, german in pairs
    )
    return corpora.deal(
        corpora.linked(keys),
        largest=LARGEST,
        order=lambda group: corpora.digest("\t".join(min(pairs[number] for number in group))),
        sizes=sizes,
    )


if __name__ == "__main__":
    main()
