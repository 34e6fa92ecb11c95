"""Prepares IWSLT'14's German and English talks: ``ted.py de-en.tgz OUT``.

The result is that of fairseq's prepare-iwslt14.sh before its BPE:
https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/examples/translation/prepare-iwslt14.sh#L49-L98

The script writes ``OUT/{train,valid,test}.{de,en}``, tokenised by Moses and lower-case. Training pairs have 1
to 175 words per side, and one side is at most 1.5 times as long as the other. Every 23rd of them goes to
valid. test is dev2010, dev2012 and tst2010 to tst2012. A run takes a few minutes.
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
        usable = (
            pair
            for pair in tokenised(tagged, tokenizers)
            if corpora.clean(*pair, longest=LONGEST, ratio=RATIO)
        )
        for number, pair in enumerate(usable, 1):
            (train if number % VALID_EVERY else valid).add(*(text.lower() for text in pair))
    with corpora.Pairs(args.out, "test", SIDES) as test:
        for name in TESTS:
            for pair in tokenised(parallel(files, f"IWSLT14.{name}.de-en.{{}}.xml", segments), tokenizers):
                test.add(*(text.lower() for text in pair))


def read(path: Path) -> dict[str, str]:
    """Return the archive's texts by file name."""
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
        corpora.refuse(f"{path} cannot be read ({error.strerror or error}); download it, or use another")
    except (tarfile.TarError, EOFError) as error:
        corpora.refuse(
            f"{path} must be a complete tar archive, but is not ({error}); delete it and download it again"
        )


def parallel(
    files: dict[str, str], name: str, lines: Callable[[str], Iterator[str]]
) -> list[tuple[str, str]]:
    """Return the pairs of lines that ``lines`` extracts from both sides' files."""
    names = [name.format(side) for side in SIDES]
    for side in names:
        if side not in files:
            corpora.refuse(
                f"the archive must hold {side}, but does not; download de-en.tgz of IWSLT'14 again"
            )
    german, english = (list(lines(files[side])) for side in names)
    if len(german) != len(english):
        corpora.refuse(
            f"{names[0]} and {names[1]} must have equally many sentences, but have {len(german)} and "
            f"{len(english)}; download them again"
        )
    return list(zip(german, english, strict=True))


def sentences(text: str) -> Iterator[str]:
    """Yield the lines of a training file: title, description and what is said."""
    for line in text.removesuffix("\n").split("\n"):
        if not any(tag in line for tag in NO_SENTENCE):
            yield TAGS.sub("", line)


def segments(text: str) -> Iterator[str]:
    """Yield the segments of an XML file. Entities stay as they are:

    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/examples/translation/prepare-iwslt14.sh#L76-L79
    """
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
