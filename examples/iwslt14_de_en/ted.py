"""IWSLT'14's German and English talks as fairseq's prepare-iwslt14.sh has them before its BPE: ``ted.py de-en.tgz OUT``.

Writes ``OUT/{train,valid,test}.{de,en}``, tokenised as by Moses and lower-case. Training pairs have 1 to 175 words a side,
one side at most 1.5 times as long as the other; every 23rd of them is valid's. test is dev2010, dev2012 and tst2010 to
tst2012. Takes a few minutes.
"""

import argparse
import re
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import corpora

SIDES = ("de", "en")
LONGEST, RATIO = 175, 1.5
VALID_EVERY = 23
TESTS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
NO_SENTENCE = ("<url>", "<talkid>", "<keywords>")
TAGS = re.compile(r"</?(?:title|description)>")
SEGMENT = re.compile(r'<seg id="[0-9]*">\s*|\s*</seg>\s*')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()

    files = read(args.archive)
    tokenizers = [corpora.moses(side) for side in SIDES]
    with corpora.Pairs(args.out, "train", SIDES) as train, corpora.Pairs(args.out, "valid", SIDES) as valid:
        tagged = parallel(files, "train.tags.de-en.{}", sentences)
        usable = (pair for pair in tokenised(tagged, tokenizers) if corpora.clean(*pair, LONGEST, RATIO))
        for number, pair in enumerate(usable, 1):
            (train if number % VALID_EVERY else valid).add(*(text.lower() for text in pair))
    with corpora.Pairs(args.out, "test", SIDES) as test:
        for name in TESTS:
            for pair in tokenised(parallel(files, f"IWSLT14.{name}.de-en.{{}}.xml", segments), tokenizers):
                test.add(*(text.lower() for text in pair))


def read(path: Path) -> dict[str, str]:
    """The archive's texts by file name."""
    try:
        with tarfile.open(path) as archive:
            files = {
                Path(member.name).name: archive.extractfile(member) for member in archive if member.isfile()
            }
            return {
                name: file.read().decode()
                for name, file in files.items()
                if file and name.startswith(("train.", "IWSLT14."))
            }
    except OSError as error:
        corpora.refuse(f"{path} cannot be read ({error.strerror or error}): download it, or name another")
    except (tarfile.TarError, EOFError) as error:
        corpora.refuse(
            f"{path} must be a whole tar archive, but is not ({error}): delete it and download it again"
        )


def parallel(
    files: dict[str, str], name: str, lines: Callable[[str], Iterator[str]]
) -> list[tuple[str, str]]:
    """Pairs of lines of both sides' files, as `lines` takes them out."""
    names = [name.format(side) for side in SIDES]
    for side in names:
        if side not in files:
            corpora.refuse(
                f"the archive must hold {side}, but does not: download de-en.tgz of IWSLT'14 again"
            )
    german, english = (list(lines(files[side])) for side in names)
    if len(german) != len(english):
        corpora.refuse(
            f"{names[0]} has {len(german)} sentences, {names[1]} {len(english)}: they must be as many; download them again"
        )
    return list(zip(german, english, strict=True))


def sentences(text: str) -> Iterator[str]:
    """The training file's: title, description, and what is said, line by line."""
    for line in text.removesuffix("\n").split("\n"):
        if not any(tag in line for tag in NO_SENTENCE):
            yield TAGS.sub("", line)


def segments(text: str) -> Iterator[str]:
    """An XML file's; entities are left as they are, as fairseq leaves them."""
    for line in text.split("\n"):
        if "<seg id" in line:
            yield SEGMENT.sub("", line).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def tokenised(
    pairs: list[tuple[str, str]], tokenizers: list[Callable[[str], str]]
) -> Iterator[tuple[str, str]]:
    german, english = tokenizers
    for pair in tqdm(pairs, unit=" pairs", disable=None if len(pairs) >= 10_000 else True):
        yield german(pair[0]), english(pair[1])


if __name__ == "__main__":
    main()
