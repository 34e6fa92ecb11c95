"""Converts raw text to a model's symbols and back with fairseq's tokenisers and subwords."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from fairseq.data import encoders
from sentencepiece import SentencePieceProcessor

from fairseq_imitkd.errors import UsageError, as_usage_error

# The kinds of subwords, with fairseq's settings that name their files.
SUBWORDS = {
    "sentencepiece": ("sentencepiece_model",),
    "fastbpe": ("bpe_codes",),
    "subword_nmt": ("bpe_codes",),
    "gpt2": ("gpt2_encoder_json", "gpt2_vocab_bpe"),
}
TOKENIZERS = ("moses",)
MOST_WORDS, LONGEST_WORD = 50_000, 100  # words that are remembered, and characters of such a word


@dataclass(frozen=True)
class TextSettings:
    """How text is converted to symbols.

    Args:
        bpe: kind of subwords, one of :data:`SUBWORDS`; None takes words as symbols.
        files: files of the subwords, by fairseq's setting.
        tokenizer: one of :data:`TOKENIZERS`, applied before the subwords; None leaves the text unchanged.
    """

    bpe: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    tokenizer: str | None = None


class Text:
    """Converts raw text to symbols with spaces between them, and back.

    Args:
        settings: tokeniser and subwords.
        source: source language, for the tokeniser.
        target: target language, for the tokeniser.

    Raises:
        UsageError: a package or a file is missing, or a file is not of its kind.
    """

    def __init__(self, settings: TextSettings, source: str = "en", target: str = "en"):
        self.bpe: Any = None
        self._is_gpt2 = settings.bpe == "gpt2"
        self.tokenizer: Any = None
        if settings.bpe is not None:
            bpe_settings = _bpe_settings(settings)
            with as_usage_error(f"--bpe {settings.bpe} can't be used"):
                self.bpe = encoders.build_bpe(bpe_settings)
            # subword_nmt and GPT-2's code remember each word that they have ever split.
            library: Any = getattr(self.bpe, "bpe", None)
            if hasattr(library, "cache"):
                library.cache = _RememberedWords()
        if settings.tokenizer is not None:
            moses = {"moses_no_dash_splits": False, "moses_no_escape": False}
            languages = {"source_lang": source, "target_lang": target}
            with as_usage_error(f"--tokenizer {settings.tokenizer} can't be used"):
                self.tokenizer = encoders.build_tokenizer(
                    Namespace(tokenizer=settings.tokenizer, **moses, **languages)
                )

    def encode(self, line: str) -> str:
        """Return the symbols of a source sentence."""
        words = line if self.tokenizer is None else self.tokenizer.encode(line)
        return words if self.bpe is None else self.bpe.encode(words)

    def decode(self, symbols: str) -> str:
        """Return the text of a target sentence."""
        words = symbols
        if self.bpe is not None:
            words = self._decode_numbers(symbols) if self._is_gpt2 else self.bpe.decode(symbols)
        return words if self.tokenizer is None else self.tokenizer.decode(words)

    def _decode_numbers(self, symbols: str) -> str:
        """Return the text of GPT-2's numbers. Other symbols, such as an unknown word, stay as they are."""
        runs = groupby(symbols.split(), key=str.isdecimal)
        return "".join(
            self.bpe.decode(" ".join(run)) if are_numbers else "".join(run) for are_numbers, run in runs
        )


class _RememberedWords(dict[str, Any]):
    """The subwords of words, within bounds: it is emptied when it is full, and never holds a long word."""

    def __setitem__(self, word: str, subwords: Any) -> None:
        if len(self) >= MOST_WORDS:
            self.clear()
        if len(word) <= LONGEST_WORD:
            super().__setitem__(word, subwords)


def _bpe_settings(settings: TextSettings) -> Namespace:
    if "bpe_codes" in settings.files:
        check_merges(str(settings.bpe), settings.files["bpe_codes"])
    if "sentencepiece_model" in settings.files:
        open_pieces(settings.files["sentencepiece_model"])
    return Namespace(bpe=settings.bpe, **{name: str(path) for name, path in settings.files.items()})


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


def check_merges(bpe: str, path: Path) -> None:
    """Refuse a file that does not list merges, on which the packages of subwords would end the process.

    Args:
        bpe: kind of subwords, ``fastbpe`` or ``subword_nmt``.
        path: the file of ``--bpe-codes``.

    Raises:
        UsageError: naming the line.
    """
    name, remedy = f"--bpe-codes '{path}'", "use the file that the subwords were made with"
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
