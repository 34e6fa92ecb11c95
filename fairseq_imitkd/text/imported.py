"""Text of an imported model: turns it into the model's symbols, with or without its tags, and back."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from fairseq.data import Dictionary

from fairseq_imitkd.errors import UsageError, as_usage_error, in_one_line
from fairseq_imitkd.text.pieces import RememberedWords, check_merges, open_pieces, text_of_numbers

DESCRIPTION = "huggingface.json"  # what imports and exports write about the text of a model
SUBWORD_FILES = ("source.spm", "target.spm", "tokenizer.json", "encoder.json", "vocab.bpe", "bpe.codes")
SIDES = ("source", "target")
_NAMED = re.compile(r">>[^<>]+<<")  # a language of a Marian model of several
_UNKNOWN = "\ue000"  # in place of an unknown symbol, while pieces are joined
_LARGEST = 2**28  # bytes of a description
_AGAIN = "import the model again, or export the student again"
_TRIED = 1000  # symbols of the dictionary that are joined when subwords are opened

Files = Mapping[str, Path]  # files of an import by their name, those of SUBWORD_FILES and DESCRIPTION


class Splitter(NamedTuple):
    """Splits text into subwords, and joins them.

    Args:
        split: turns a line of text into subwords.
        join: turns subwords into text. Other words stay as they are.
    """

    split: Callable[[str], list[str]]
    join: Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class Encoder:
    """Turns text of one side into symbols, and symbols into text.

    Args:
        splitter: splits a line of text into subwords, and joins them.
        before, after: symbols around each sentence.
        renamed: symbols of the dictionary by the subword that they stand for, which it can't hold.
        dictionary: the dictionary of the side.
        tags: whether to write ``before`` and ``after``.
    """

    splitter: Splitter
    before: tuple[str, ...]
    after: tuple[str, ...]
    renamed: Mapping[str, str]
    dictionary: Dictionary
    tags: bool = True

    def symbols(self, line: str) -> list[str]:
        """Return the symbols of a sentence, without EOS, which fairseq adds.

        Raises:
            UsageError: the text names a language where the model's own tag is left out.
        """
        before = self.before if self.tags else ()
        named = _NAMED.match(line)
        if named and named[0] in self.dictionary:  # the text names the target language itself
            if self.before and not self.tags:
                raise UsageError(
                    f"the text begins with {named[0]}, but the model adds {self.before[0]}; use --tags"
                )
            before, line = (named[0],), line[named.end() :]
        return [*before, *self.plain(line), *(self.after if self.tags else ())]

    def plain(self, line: str) -> list[str]:
        """Return the symbols of a sentence in which nothing is a tag."""
        pieces = [self.renamed.get(piece, piece) for piece in self.splitter.split(line)]
        return [piece if piece in self.dictionary else self.dictionary.unk_word for piece in pieces]

    def encode(self, line: str) -> str:
        """Return the symbols of a sentence with spaces between them."""
        return " ".join(self.symbols(line))

    def decode(self, symbols: str) -> str:
        """Return the text of symbols with spaces between them. Tags are not text."""
        return self.splitter.join(
            [self._names.get(symbol, symbol) for symbol in symbols.split() if symbol not in self._around]
        )

    @cached_property
    def _names(self) -> dict[str, str]:
        return {symbol: name for name, symbol in self.renamed.items()}

    @cached_property
    def _around(self) -> set[str]:
        return {*self.before, *self.after}


def encoder_of(files: Files, side: str, dictionary: Dictionary, *, tags: bool = True) -> Encoder:
    """Return what turns text of an imported model into symbols and back.

    Args:
        files: the import's :data:`DESCRIPTION` and files of its subwords.
        side: one of :data:`SIDES`.
        dictionary: the dictionary of the side.
        tags: whether sentences get the model's tags.

    Raises:
        UsageError: the description is damaged, the import has no subwords, or a file or package is missing.
    """
    description = read_description(files)
    with as_usage_error(f"'{files[DESCRIPTION]}' can't be used", _AGAIN):
        part = description["text"][side]
        kind, language = description["subwords"], str(part["language"])
        before, after, renamed = part["before"], part["after"], dict(part["renamed"])
        if not isinstance(before, list) or not isinstance(after, list):
            raise TypeError("its tags are not lists")
        if not all(isinstance(each, str) for each in (*before, *after, *renamed, *renamed.values())):
            raise TypeError("its symbols are not text")
    if kind is None:
        raise UsageError(
            f"'{files[DESCRIPTION].parent}' has no subwords, because the model's folder had no tokenizer "
            "files; add them there, and import it again"
        )
    with as_usage_error(f"the subwords of '{files[DESCRIPTION].parent}' can't be used", _AGAIN):
        if kind not in KINDS:
            raise ValueError(f"their kind is {kind!r:.40}")
        splitter = KINDS[kind](files, side, language)
        encoder = Encoder(splitter, tuple(before), tuple(after), renamed, dictionary, tags)
        with _panics():  # a damaged file may show only when it is used
            first = dictionary.symbols[dictionary.nspecial :][:_TRIED]
            encoder.decode(" ".join([*encoder.plain("a b"), *first]))
        return encoder


@contextmanager
def _panics() -> Iterator[None]:
    """Turn a panic of tokenizers' Rust code into an ``Exception``, which it is not by itself."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(in_one_line(error, 80)) from error


def read_description(files: Files) -> dict[str, Any]:
    """Return what an import knows about a model's text.

    Raises:
        UsageError: the file does not hold a JSON object.
    """
    path, content = files[DESCRIPTION], None
    with as_usage_error(f"'{path}' can't be used", _AGAIN):
        if path.stat().st_size <= _LARGEST:
            content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise UsageError(f"'{path}' must hold a JSON object; {_AGAIN}")
    return content


def splits_long_words_slowly(files: Files) -> bool:
    """Return whether the time to split a word grows with the square of its length."""
    return read_description(files).get("subwords") in ("gpt2", "moses")


def _sentencepiece(files: Files, side: str, _: str) -> Splitter:
    model = open_pieces(files[f"{side}.spm"], "subwords", _AGAIN)

    unknown = model.id_to_piece(model.unk_id())

    def join(pieces: Sequence[str]) -> str:
        # Its own text of an unknown symbol is another one. Pieces that the model lacks stay as they are.
        known = [_UNKNOWN if piece == unknown else piece for piece in pieces]
        # A model of both sides has one dictionary, so a piece may be of the other side's SentencePiece model.
        return str(model.decode(known)).replace("\u2581", " ").replace(_UNKNOWN, unknown).strip()

    return Splitter(lambda line: list(model.encode(line, out_type=str)), join)


def _tokenizers(files: Files, *_: str) -> Splitter:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UsageError(
            "this model's tokenizer.json needs tokenizers: pip install 'fairseq-imitkd[huggingface]'"
        ) from error
    with _panics():
        model = Tokenizer.from_file(str(files["tokenizer.json"]))
    model.no_truncation()  # the file keeps both from the last call of the model's user
    model.no_padding()
    model.encode_special_tokens = True  # symbols such as </s> in text are text
    decoder = model.decoder
    return Splitter(
        lambda line: list(model.encode(line, add_special_tokens=False).tokens),
        lambda pieces: (" ".join(pieces) if decoder is None else str(decoder.decode(list(pieces)))).strip(),
    )


def _gpt2(files: Files, *_: str) -> Splitter:
    from fairseq.data.encoders.gpt2_bpe_utils import get_encoder

    model: Any = get_encoder(str(files["encoder.json"]), str(files["vocab.bpe"]))
    model.cache = RememberedWords()

    def split(line: str) -> list[str]:
        symbols = []
        for word in model.re.findall(model.pat, line):
            spelled = "".join(model.byte_encoder[byte] for byte in word.encode("utf-8"))
            symbols += [str(model.encoder.get(piece, "<unk>")) for piece in model.bpe(spelled).split(" ")]
        return symbols

    return Splitter(split, lambda symbols: text_of_numbers(symbols, model.decode))


def _moses(files: Files, _: str, language: str) -> Splitter:
    try:
        from sacremoses import MosesDetokenizer, MosesPunctNormalizer, MosesTokenizer
        from subword_nmt.apply_bpe import BPE
    except ImportError as error:
        raise UsageError(
            f"this model's subwords need {error.name}: pip install 'fairseq-imitkd[huggingface]'"
        ) from error
    normalizer = MosesPunctNormalizer(
        language, pre_replace_unicode_punct=True, post_remove_control_chars=True
    )
    tokenizer, detokenizer = MosesTokenizer(language), MosesDetokenizer(language)
    check_merges("subword_nmt", files["bpe.codes"], "subwords")
    with open(files["bpe.codes"], encoding="utf-8") as codes:
        model = BPE(codes)
    model.cache = RememberedWords()

    def split(line: str) -> list[str]:
        words = tokenizer.tokenize(normalizer.normalize(line), aggressive_dash_splits=True, escape=True)
        return list(model.segment_tokens(words))

    def join(pieces: Sequence[str]) -> str:
        words = " ".join([*pieces, ""]).replace("@@ ", "").split()
        return str(detokenizer.detokenize(words))

    return Splitter(split, join)


# How text is split, by name. Each gets the import's files, the side and its language.
KINDS: dict[str, Callable[[Files, str, str], Splitter]] = {
    "sentencepiece": _sentencepiece,
    "tokenizers": _tokenizers,
    "gpt2": _gpt2,
    "moses": _moses,
}
