"""Extracts news and their headlines from Reuters-21578: ``headlines.py DIR OUT``.

DIR holds ``reut2-000.sgm`` to ``reut2-021.sgm``. The script writes ``OUT/{train,valid,test}.{src,tgt}``, one
body and its headline per line. It drops headlines of fewer than 3 words, bodies of fewer than 20, and
repetitions. News with the same headline or the same first 12 words are in one split, regardless of case,
punctuation and width. Groups of more than five are in train; a SHA-256 chooses the split of the others.
"""

import argparse
import html
import re
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import corpora

FILES = [f"reut2-{number:03}.sgm" for number in range(22)]
SIZES = {"valid": 1000, "test": 1000}
LARGEST = 5
HEADLINE_WORDS, BODY_WORDS, LEAD_WORDS = 3, 20, 12
DOCUMENT = re.compile(r'<REUTERS[^>]*NEWID="(\d+)"[^>]*>(.*?)</REUTERS>', re.DOTALL)
HEADLINE = re.compile(r"<TITLE>(.*?)</TITLE>", re.DOTALL)
BODY = re.compile(r"<BODY>(.*?)</BODY>", re.DOTALL)
REFERENCE = re.compile(r"&#(\d+);")
CLOSING = re.compile(r"\s*REUTERS?$", re.IGNORECASE)


class News(NamedTuple):
    number: int
    headline: str
    body: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()

    news = usable([item for name in FILES for item in read(args.folder / name)])
    for split, numbers in splits(news).items():
        chosen = sorted(
            (news[number] for number in numbers), key=lambda item: corpora.digest(str(item.number))
        )
        with corpora.Pairs(args.out, split, ("src", "tgt")) as written:
            for item in chosen:
                written.add(item.body, item.headline)


def read(path: Path) -> list[News]:
    """Return a file's news that have a headline and a body."""
    try:
        documents = DOCUMENT.findall(path.read_text(encoding="latin-1"))
    except OSError as error:
        corpora.refuse(
            f"{path} cannot be read ({error.strerror}); the folder must hold reut2-000.sgm to reut2-021.sgm"
        )
    if not documents:
        corpora.refuse(
            f"{path} must be a file of Reuters-21578, Distribution 1.0, but holds no <REUTERS …> document"
        )
    found = []
    for number, document in documents:
        headline, body = HEADLINE.search(document), BODY.search(document)
        if headline and body:
            found.append(News(int(number), clean(headline[1]), CLOSING.sub("", clean(body[1]))))
    return found


def clean(text: str) -> str:
    """Return a text in one line, with references resolved and control characters as blanks."""
    # html.unescape drops control characters, so numeric references are resolved first.
    decoded = REFERENCE.sub(lambda reference: chr(int(reference[1])), text)
    return corpora.one_line(corpora.CONTROL.sub(" ", html.unescape(decoded)))


def usable(news: list[News]) -> list[News]:
    """Return the news with enough words, each of them once."""
    first: dict[tuple[str, str], News] = {}
    for item in news:
        if len(item.headline.split()) >= HEADLINE_WORDS and len(item.body.split()) >= BODY_WORDS:
            first.setdefault((item.headline, item.body), item)
    return list(first.values())


def splits(news: list[News], sizes: dict[str, int] = SIZES) -> dict[str, list[int]]:
    """Return each split's news as indices of ``news``."""

    def lead(body: str) -> str:
        return " ".join(corpora.comparable(body).split()[:LEAD_WORDS])

    keys = ((("headline", corpora.comparable(item.headline)), ("lead", lead(item.body))) for item in news)
    return corpora.deal(
        corpora.linked(keys),
        largest=LARGEST,
        order=lambda group: corpora.digest(str(min(news[place].number for place in group))),
        sizes=sizes,
    )


if __name__ == "__main__":
    main()
