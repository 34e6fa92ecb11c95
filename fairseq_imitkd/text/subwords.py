"""Converts raw text to symbols and back, by fairseq's tokenisers and subwords, or an imported model's."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fairseq.data import Dictionary, encoders

from fairseq_imitkd.errors import UsageError, as_usage_error
from fairseq_imitkd.text.imported import SIDES, encoder_of, splits_long_words_slowly
from fairseq_imitkd.text.pieces import RememberedWords, check_merges, open_pieces, text_of_numbers

# The kinds of subwords that fairseq has, with its settings that name their files.
SUBWORDS = {
    "sentencepiece": ("sentencepiece_model",),
    "fastbpe": ("bpe_codes",),
    "subword_nmt": ("bpe_codes",),
    "gpt2": ("gpt2_encoder_json", "gpt2_vocab_bpe"),
}
IMPORTED = "imported"  # the kind of an imported model, whose files are those of imitkd-import
TOKENIZERS = ("moses",)


@dataclass(frozen=True)
class TextSettings:
    """How text is converted to symbols.

    Args:
        bpe: kind of subwords, one of :data:`SUBWORDS` or :data:`IMPORTED`; None takes words as symbols.
        files: files of the subwords, by fairseq's setting, or by their name in an import.
        tokenizer: one of :data:`TOKENIZERS`, applied before the subwords; None leaves the text unchanged.
    """

    bpe: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    tokenizer: str | None = None

    def check_mark(self, remove_bpe: str | None) -> None:
        """Refuse a subword mark to remove, ``--remove-bpe``, beside subwords that text is joined from.

        Raises:
            UsageError: both are given.
        """
        if remove_bpe is not None and self.bpe is not None:
            flag = "--subwords" if self.bpe == IMPORTED else "--bpe"
            raise UsageError(f"--remove-bpe and {flag} both undo subwords; use one of them")

    @property
    def splits_long_words_slowly(self) -> bool:
        """Whether the time to split a word grows with the square of its length, as merges need it."""
        if self.bpe == IMPORTED:
            return splits_long_words_slowly(self.files)
        return self.bpe not in (None, "sentencepiece")


class Text:
    """Converts raw text to symbols with spaces between them, and back.

    Args:
        settings: tokeniser and subwords.
        source: source language, for the tokeniser.
        target: target language, for the tokeniser.
        dictionaries: of source and target; only an imported model's subwords need them.

    Raises:
        UsageError: a package or a file is missing, or a file is not of its kind.
    """

    def __init__(
        self,
        settings: TextSettings,
        source: str = "en",
        target: str = "en",
        *,
        dictionaries: tuple[Dictionary, Dictionary] | None = None,
    ):
        self.settings, self._pair = settings, (source, target)
        self.bpe: Any = None
        self.tokenizer: Any = None
        if settings.bpe == IMPORTED:
            assert dictionaries is not None
            self._sides = [
                encoder_of(settings.files, side, dictionary, tags=False)
                for side, dictionary in zip(SIDES, dictionaries, strict=True)
            ]
        elif settings.bpe is not None:
            bpe_settings = _bpe_settings(settings)
            with as_usage_error(f"--bpe {settings.bpe} can't be used"):
                self.bpe = encoders.build_bpe(bpe_settings)
            library: Any = getattr(self.bpe, "bpe", None)
            if hasattr(library, "cache"):
                library.cache = RememberedWords()
        if settings.tokenizer is not None:
            self.tokenizer = _tokenizer(settings.tokenizer, source, target)

    def encode(self, line: str) -> str:
        """Return the symbols of a source sentence."""
        if self.settings.bpe == IMPORTED:
            source = self._sides[0]
            # A text may name its language if the model has several and does not add the tag itself.
            return " ".join(source.plain(line) if source.before else source.symbols(line))
        words = line if self.tokenizer is None else self.tokenizer.encode(line)
        return words if self.bpe is None else self.bpe.encode(words)

    def decode(self, symbols: str) -> str:
        """Return the text of a target sentence."""
        if self.settings.bpe == IMPORTED:
            return self._sides[1].decode(symbols)
        words = self.words(symbols)
        return words if self.tokenizer is None else self.tokenizer.decode(words)

    def decode_source(self, symbols: str) -> str:
        """Return the text of a source sentence."""
        if self.settings.bpe == IMPORTED:
            return self._sides[0].decode(symbols)
        words = self.words(symbols)
        return words if self._source_tokenizer is None else self._source_tokenizer.decode(words)

    def words(self, symbols: str) -> str:
        """Return the words of a source or target sentence: its tokens before they were split into subwords.

        An imported model's words are the source's text.
        """
        if self.settings.bpe == IMPORTED:
            return self._sides[0].decode(symbols)
        if self.bpe is None:
            return symbols
        if self.settings.bpe == "gpt2":
            # fairseq's decoder of numbers takes no other symbol.
            return text_of_numbers(symbols.split(), self.bpe.bpe.decode)
        return str(self.bpe.decode(symbols))

    @cached_property
    def _source_tokenizer(self) -> Any:
        """What undoes the tokens of a source: a detokeniser depends on the language that it writes."""
        name = self.settings.tokenizer
        return None if name is None else _tokenizer(name, *self._pair[::-1])


def _tokenizer(name: str, source: str, target: str) -> Any:
    moses = {"moses_no_dash_splits": False, "moses_no_escape": False}
    languages = {"source_lang": source, "target_lang": target}
    with as_usage_error(f"--tokenizer {name} can't be used"):
        return encoders.build_tokenizer(Namespace(tokenizer=name, **moses, **languages))


def _bpe_settings(settings: TextSettings) -> Namespace:
    if "bpe_codes" in settings.files:
        check_merges(str(settings.bpe), settings.files["bpe_codes"])
    if "sentencepiece_model" in settings.files:
        open_pieces(settings.files["sentencepiece_model"])
    return Namespace(bpe=settings.bpe, **{name: str(path) for name, path in settings.files.items()})
