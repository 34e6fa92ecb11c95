"""Trains a SentencePiece model, and encodes text with one.

    python sentencepieces.py train MODEL SIZE TEXT… [--lines N]    one BPE for the text of all files
    python sentencepieces.py encode MODEL < TEXT                   prints one line of pieces for each line

The pipeline runs this file as a program: it imports sentencepiece alone, so it starts in a moment.
"""

import io
import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece

LINES = 10_000  # lines that are encoded at once
FEW_PIECES = 100  # beside single characters, of a model of few lines
SPECIAL = 3  # symbols that are not text: unknown, beginning, end
SAMPLED = 5_000_000  # lines that a model is trained on
# Bytes of a line: SentencePiece's own limit, above which it leaves lines out, and that of its BPE.
SHORT, LONGEST = 4192, 65_535


def main(words: list[str]) -> None:
    """Run the command line."""
    match words:
        case ["train", model, size, *texts, "--lines", lines] if texts:
            beginning = [line for text in texts for line in first_lines(text, int(lines))]
            few = min(int(size), few_symbols(beginning))
            _, most = measured(len(line.encode()) for line in beginning)
            write(Path(model), few, most, sentence_iterator=iter(beginning))
        case ["train", model, size, *texts] if texts:
            train(Path(model), int(size), texts)
        case ["encode", model]:
            encode(model)
        case _:
            sys.exit(__doc__)


def train(model: Path, size: int, texts: list[str]) -> None:
    """Train a BPE of ``size`` symbols. The same text makes the same file.

    Of more than :data:`SAMPLED` lines, as many are read, evenly spread: all of them would fill the memory.
    """
    count, most = measured(itertools.chain.from_iterable(map(sizes_of, texts)))
    if count <= SAMPLED:
        write(model, size, most, input=texts)
    else:
        write(model, size, most, sentence_iterator=spread(texts, count))


def measured(sizes: Iterable[int]) -> tuple[int, int]:
    """Return the number of lines, and the bytes of the longest one that can be read.

    Args:
        sizes: bytes of each line.
    """
    count = most = 0
    for size in sizes:
        count += 1
        most = max(most, size if size <= LONGEST else 0)
    if not most:
        sys.exit(
            f"error: sentencepiece.vocabulary needs lines of at most {LONGEST:,} bytes, but all lines of the "
            "text are longer; write one sentence in a line"
        )
    return count, most


def write(model: Path, size: int, most: int, **text: Any) -> None:
    """Train a BPE of ``size`` symbols on files or lines of up to ``most`` bytes, and write it."""
    made = io.BytesIO()
    if most > SHORT:  # the file would hold the default if it were given
        text["max_sentence_length"] = most
    try:
        sentencepiece.SentencePieceTrainer.train(
            **text,
            model_writer=made,
            vocab_size=size,
            model_type="bpe",
            character_coverage=1.0,
            num_threads=1,
            minloglevel=1,
        )
    except RuntimeError as error:
        sys.exit(
            f"error: sentencepiece.vocabulary is {size}, but the text does not allow it ({error}); lower it"
        )
    model.write_bytes(made.getvalue())


def spread(texts: list[str], count: int) -> Iterator[str]:
    """Yield :data:`SAMPLED` lines of ``count``, evenly spread over some files."""
    number = 0
    for text in texts:
        with open(text, encoding="utf-8", newline="\n") as file:
            for line in file:
                if number * SAMPLED // count != (number - 1) * SAMPLED // count:
                    yield line.rstrip("\r\n")
                number += 1


def few_symbols(lines: list[str]) -> int:
    """Return a number of symbols that any BPE of these lines can have: each word can be one."""
    words = set().union(*map(str.split, lines))
    return SPECIAL + len(set().union(" ", *words)) + min(FEW_PIECES, len(words))


def first_lines(text: str, count: int) -> list[str]:
    """Return the first lines of a file."""
    with open(text, encoding="utf-8", newline="\n") as file:
        return [line.rstrip("\r\n") for line in itertools.islice(file, count)]


def sizes_of(text: str) -> Iterator[int]:
    """Yield the bytes of each line of a file."""
    with open(text, "rb") as file:
        yield from (len(line.rstrip(b"\n")) for line in file)


def encode(model: str) -> None:
    """Encode the lines of standard input."""
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=model)
    except (RuntimeError, OSError):  # in the words of text/subwords.py, which imports more than this program
        sys.exit(
            f"error: sentencepiece '{model}' is not a model of SentencePiece; use the .model file that the "
            "data was split with"
        )
    lines = (line.rstrip("\r\n") for line in io.TextIOWrapper(sys.stdin.buffer, "utf-8", newline="\n"))
    out = io.TextIOWrapper(sys.stdout.buffer, "utf-8", newline="\n")
    while some := list(itertools.islice(lines, LINES)):
        out.writelines(f"{' '.join(pieces)}\n" for pieces in processor.encode(some, out_type=str))
    out.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
