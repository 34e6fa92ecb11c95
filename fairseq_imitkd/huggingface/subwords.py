"""Turns text into the symbols of an imported model, with or without its tags."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq.data import Dictionary

from fairseq_imitkd.data.dictionaries import load_dictionary
from fairseq_imitkd.data.files import kind_of
from fairseq_imitkd.errors import UsageError, as_usage_error
from fairseq_imitkd.huggingface.folder import read_json
from fairseq_imitkd.huggingface.tokens import DESCRIPTION
from fairseq_imitkd.text.subwords import open_pieces

_NAMED = re.compile(r">>[^<>]+<<")  # a language of a Marian model of several
SUBWORD_FILES = ("source.spm", "target.spm", "tokenizer.json", "encoder.json", "vocab.bpe", "bpe.codes")


@dataclass(frozen=True)
class Encoder:
    """Turns text of one side into symbols.

    Args:
        split: splits a line of text into symbols.
        before, after: symbols around each sentence.
        renamed: symbols of the dictionary that stand for others, which a dictionary can't hold.
        dictionary: the dictionary of the side.
        tags: whether to write ``before`` and ``after``.
    """

    split: Callable[[str], list[str]]
    before: tuple[str, ...]
    after: tuple[str, ...]
    renamed: dict[str, str]
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
        pieces = [self.renamed.get(piece, piece) for piece in self.split(line)]
        known = [piece if piece in self.dictionary else self.dictionary.unk_word for piece in pieces]
        return [*before, *known, *(self.after if self.tags else ())]

    def encode(self, line: str) -> str:
        """Return the symbols of a sentence with spaces between them."""
        return " ".join(self.symbols(line))


def open_encoder(folder: Path, side: str, *, tags: bool = True) -> Encoder:
    """Open the subwords of an imported model.

    Args:
        folder: what ``imitkd-import`` has written.
        side: ``source`` or ``target``.
        tags: whether sentences get the model's tags.

    Raises:
        UsageError: the folder is another one, or it has no subwords.
    """
    path = folder / DESCRIPTION
    if kind_of(folder, "FOLDER") != "folder":
        raise UsageError(f"'{folder}' is not a folder; use a folder that imitkd-import has written")
    if not path.is_file():
        raise UsageError(f"'{folder}' has no {DESCRIPTION}; use a folder that imitkd-import has written")
    description = read_json(path)
    with as_usage_error(f"'{path}' can't be used", "import the model again"):
        part = description["text"][side]
        kind, language = description["subwords"], part["language"]
        before, after, renamed = tuple(part["before"]), tuple(part["after"]), dict(part["renamed"])
    if kind is None:
        raise UsageError(
            f"'{folder}' has no subwords, because the model's folder had no tokenizer files; add them "
            "there, and import it again"
        )
    dictionary = load_dictionary(folder / f"dict.{language}.txt")
    with as_usage_error(f"the subwords of '{folder}' can't be used", "import the model again"):
        return Encoder(KINDS[kind](folder, side, language), before, after, renamed, dictionary, tags)


def _sentencepiece(folder: Path, side: str, _: str) -> Callable[[str], list[str]]:
    model = open_pieces(folder / f"{side}.spm", "subwords", "import the model again")
    return lambda line: list(model.encode(line, out_type=str))


def _tokenizers(folder: Path, *_: str) -> Callable[[str], list[str]]:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UsageError(
            "this model's tokenizer.json needs tokenizers: pip install 'fairseq-imitkd[huggingface]'"
        ) from error
    model = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model.encode_special_tokens = True  # symbols such as </s> in text are text
    return lambda line: list(model.encode(line, add_special_tokens=False).tokens)


def _gpt2(folder: Path, *_: str) -> Callable[[str], list[str]]:
    from fairseq.data.encoders.gpt2_bpe_utils import get_encoder

    model: Any = get_encoder(str(folder / "encoder.json"), str(folder / "vocab.bpe"))

    def split(line: str) -> list[str]:
        symbols = []
        for word in model.re.findall(model.pat, line):
            spelled = "".join(model.byte_encoder[byte] for byte in word.encode("utf-8"))
            symbols += [str(model.encoder.get(piece, "<unk>")) for piece in model.bpe(spelled).split(" ")]
        return symbols

    return split


def _moses(folder: Path, _: str, language: str) -> Callable[[str], list[str]]:
    try:
        from sacremoses import MosesPunctNormalizer, MosesTokenizer
        from subword_nmt.apply_bpe import BPE
    except ImportError as error:
        raise UsageError(
            f"this model's subwords need {error.name}: pip install 'fairseq-imitkd[huggingface]'"
        ) from error
    normalizer = MosesPunctNormalizer(
        language, pre_replace_unicode_punct=True, post_remove_control_chars=True
    )
    tokenizer = MosesTokenizer(language)
    with open(folder / "bpe.codes", encoding="utf-8") as codes:
        model = BPE(codes)

    def split(line: str) -> list[str]:
        words = tokenizer.tokenize(normalizer.normalize(line), aggressive_dash_splits=True, escape=True)
        return list(model.segment_tokens(words))

    return split


# How text is split, by name. Each gets the folder, the side and its language.
KINDS: dict[str, Callable[[Path, str, str], Callable[[str], list[str]]]] = {
    "sentencepiece": _sentencepiece,
    "tokenizers": _tokenizers,
    "gpt2": _gpt2,
    "moses": _moses,
}


def write_description(folder: Path, content: Any) -> None:
    """Write what an import knows."""
    (folder / DESCRIPTION).write_text(
        json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
