"""What all kinds of subwords share: their files, remembered words, and GPT-2's numbers."""

from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from fairseq_imitkd.errors import UsageError, as_usage_error

MOST_WORDS, LONGEST_WORD = 50_000, 100  # words that are remembered, and characters of such a word


class RememberedWords(dict[str, Any]):
    """The subwords of words, within bounds: it is emptied when it is full, and never holds a long word.

    It takes the place of the memory of subword_nmt and GPT-2's code, which keep each word that they have ever
    split.
    """

    def __setitem__(self, word: str, subwords: Any) -> None:
        if len(self) >= MOST_WORDS:
            self.clear()
        if len(word) <= LONGEST_WORD:
            super().__setitem__(word, subwords)


def text_of_numbers(symbols: Iterable[str], decode: Callable[[list[int]], str]) -> str:
    """Return the text of GPT-2's numbers. Other symbols, such as an unknown word, stay as they are.

    Args:
        symbols: numbers and others.
        decode: turns numbers into text.
    """
    runs = groupby(symbols, key=str.isdecimal)
    return "".join(
        decode([int(each) for each in run]) if are_numbers else "".join(run) for are_numbers, run in runs
    )


def open_pieces(
    path: str | Path,
    name: str = "--sentencepiece-model",
    remedy: str = "use the .model file that the data was split with",
) -> SentencePieceProcessor:
    """Load a model of SentencePiece. Its own errors show where in its C++ code they were raised.

    Args:
        path: the file.
        name: the flag or key that names it.
        remedy: what to do if it is not such a model.

    Raises:
        UsageError: the file is not such a model; it is the list of its symbols, for example.
    """
    try:
        return SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise UsageError(f"{name} '{path}' is not a model of SentencePiece; {remedy}") from error


def check_merges(bpe: str, path: Path, flag: str = "--bpe-codes") -> None:
    """Refuse a file that does not list merges, on which the packages of subwords would end the process.

    Args:
        bpe: kind of subwords, ``fastbpe`` or ``subword_nmt``.
        path: the file.
        flag: what names it.

    Raises:
        UsageError: naming the line.
    """
    name, remedy = f"{flag} '{path}'", "use the file that the subwords were made with"
    counts = (2,) if bpe == "subword_nmt" else (2, 3)  # fastBPE writes how often it merged, too
    number = 0
    with (
        as_usage_error(f"{name} can't be read", remedy, catch=(OSError, UnicodeDecodeError)),
        open(path, encoding="utf-8") as file,
    ):
        for number, line in enumerate(file, 1):
            # Only a blank parts the two: others, such as no-break spaces, may be symbols.
            if len(line.strip("\r\n ").split(" ")) not in counts and not (
                number == 1 and line.startswith("#version")
            ):
                raise UsageError(
                    f"{name} must hold two subwords to merge in each line, but line {number} does not; "
                    f"{remedy}"
                )
    if not number:
        raise UsageError(f"{name} is empty; {remedy}")
