"""Writes the tokenizer of an exported model: files that ``AutoTokenizer`` reads. Ids are fairseq's indices.

SentencePiece models become a ``MarianTokenizer``, Moses' words with merges an ``FSMTTokenizer``, and all
others a ``tokenizer.json``.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq_imitkd.errors import UsageError, as_usage_error
from fairseq_imitkd.huggingface.folder import read_json
from fairseq_imitkd.huggingface.tokens import unmarked
from fairseq_imitkd.huggingface.vocabulary import EOS, SPECIAL, UNK

Symbols = tuple[str, ...]
CLASSES = {"sentencepiece": "MarianTokenizer", "moses": "FSMTTokenizer"}
_FAST = "PreTrainedTokenizerFast"
MERGES = "bpe.codes"


@dataclass(frozen=True)
class Subwords:
    """How a student's text becomes symbols.

    Args:
        kind: how text is split: ``sentencepiece``, ``moses`` (words of Moses, then merges), ``merges`` (words
            between spaces, then merges), ``gpt2``, ``tokenizers`` (a ``tokenizer.json``) or ``words``.
        files: files of the subwords, by their name in a folder of ``imitkd-import``.
        before, after: symbols around each source.
        target_before: symbols that each target begins with.
        renamed: symbols of source and target dictionary by the subword that they stand for, if it has
            another name.
    """

    kind: str
    files: Mapping[str, Path] = field(default_factory=dict)
    before: Symbols = ()
    after: Symbols = ()
    target_before: Symbols = ()
    renamed: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {})

    @property
    def tokenizer(self) -> str:
        """Name of the tokenizer's class in ``transformers``."""
        return CLASSES.get(self.kind, _FAST)

    @property
    def needs_one_dictionary(self) -> bool:
        """Whether both sides must have one dictionary."""
        return self.kind not in CLASSES

    @property
    def tags_are_text(self) -> bool:
        """Whether text must hold the symbols of :attr:`before` and :attr:`after` itself."""
        return self.kind in CLASSES

    @property
    def tags(self) -> Symbols:
        """Symbols around sentences that are not special in fairseq."""
        around = (*self.before, *self.after, *self.target_before)
        return tuple(dict.fromkeys(symbol for symbol in around if symbol not in SPECIAL))

    def with_tags(self, line: str) -> str:
        """Return a source as ``AutoTokenizer`` needs it."""
        if not self.tags_are_text:
            return line
        return "".join((*(f"{symbol} " for symbol in self.before), line, *self.after))


def write_tokenizer(
    folder: Path,
    subwords: Subwords,
    dictionaries: tuple[Symbols, Symbols],
    *,
    pair: tuple[str, str],
    longest: int,
) -> None:
    """Write the tokenizer's files.

    Args:
        folder: where to write them.
        subwords: how text is split.
        dictionaries: symbols of source and target.
        pair: source and target language.
        longest: most tokens of a sentence.

    Raises:
        UsageError: a file of the subwords can't be read.
    """
    settings = {
        "tokenizer_class": subwords.tokenizer,
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,
        "source_lang": pair[0],
        "target_lang": pair[1],
    }
    if subwords.tags:
        settings["extra_special_tokens"] = list(subwords.tags)
    if subwords.kind == "sentencepiece":
        settings |= _write_marian(folder, subwords, dictionaries)
    elif subwords.kind == "moses":
        settings |= {"langs": list(pair), "sep_token": "</s>", "do_lower_case": False}
        _write_fsmt(folder, subwords, dictionaries)
    else:
        _write(folder, "tokenizer.json", _fast(subwords, dictionaries[0]))
    _write(folder, "tokenizer_config.json", settings)


def _write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_marian(folder: Path, subwords: Subwords, dictionaries: tuple[Symbols, Symbols]) -> dict[str, Any]:
    for name in ("source.spm", "target.spm"):
        shutil.copyfile(subwords.files[name], folder / name)
    vocabularies = [
        _numbered(symbols, renamed) for symbols, renamed in zip(dictionaries, subwords.renamed, strict=True)
    ]
    _write(folder, "vocab.json", vocabularies[0])
    if vocabularies[0] == vocabularies[1]:
        return {"separate_vocabs": False}
    _write(folder, "target_vocab.json", vocabularies[1])
    return {"separate_vocabs": True, "target_vocab_file": "target_vocab.json"}


def _numbered(symbols: Iterable[str], renamed: Mapping[str, str]) -> dict[str, int]:
    """Return the index of each symbol, by the subword's own name."""
    symbols = tuple(symbols)
    taken = set(symbols)
    names = {symbol: name for name, symbol in renamed.items() if name not in taken}
    return {names.get(symbol, symbol): index for index, symbol in enumerate(symbols)}


def _write_fsmt(folder: Path, subwords: Subwords, dictionaries: tuple[Symbols, Symbols]) -> None:
    for name, symbols in zip(("vocab-src.json", "vocab-tgt.json"), dictionaries, strict=True):
        _write(folder, name, {unmarked(symbol): index for index, symbol in enumerate(symbols)})
    merges = [" ".join(pair) + "\n" for pair in _merges(subwords.files[MERGES])]
    (folder / "merges.txt").write_text("".join(merges), encoding="utf-8")


def _merges(path: Path) -> list[tuple[str, str]]:
    """Return the pairs that a file of merges lists; a version and counts are left out."""
    with as_usage_error(f"'{path}' can't be read", "copy it again", catch=(OSError, UnicodeDecodeError)):
        lines = [line.strip("\r ").split(" ") for line in path.read_text(encoding="utf-8").split("\n")]
    return [(line[0], line[1]) for line in lines if len(line) > 1 and line[0] != "#version:"]


def _fast(subwords: Subwords, symbols: Symbols) -> dict[str, Any]:
    """Return the content of a ``tokenizer.json``."""
    index = {symbol: number for number, symbol in enumerate(symbols)}
    split = {"words": _words, "merges": _word_merges, "gpt2": _gpt2, "tokenizers": _given}[subwords.kind]
    around = {symbol: index[symbol] for symbol in (*subwords.before, *subwords.after, SPECIAL[EOS])}
    special = {symbol: index[symbol] for symbol in (*SPECIAL, *subwords.tags)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    text = [{"Sequence": {"id": "A", "type_id": 0}}]
    before, after = (
        [{"SpecialToken": {"id": symbol, "type_id": 0}} for symbol in part]
        for part in (subwords.before, (*subwords.after, SPECIAL[EOS]))
    )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": symbol, **flags}
            for symbol, number in sorted(special.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        **split(subwords, index),
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [*before, *text, *after],
            "pair": [*before, *text, {"Sequence": {"id": "B", "type_id": 0}}, *after],
            "special_tokens": {
                symbol: {"id": symbol, "ids": [number], "tokens": [symbol]}
                for symbol, number in around.items()
            },
        },
    }


def _words(subwords: Subwords, index: Mapping[str, int]) -> dict[str, Any]:
    return {
        "model": {"type": "WordLevel", "vocab": dict(index), "unk_token": SPECIAL[UNK]},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "decoder": None,
    }


def _word_merges(subwords: Subwords, index: Mapping[str, int]) -> dict[str, Any]:
    merges = _merges(subwords.files[MERGES])
    vocabulary = {unmarked(symbol): number for symbol, number in index.items()}
    return {
        "model": {**_bpe(vocabulary, merges), "end_of_word_suffix": "</w>"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "decoder": {"type": "BPEDecoder", "suffix": "</w>"},
    }


def _gpt2(subwords: Subwords, index: Mapping[str, int]) -> dict[str, Any]:
    numbers = read_json(subwords.files["encoder.json"])
    tokens = {str(number): token for token, number in numbers.items()}
    vocabulary = {tokens.get(symbol, symbol): number for symbol, number in index.items()}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "model": _bpe(vocabulary, _merges(subwords.files["vocab.bpe"])),
        "pre_tokenizer": level,
        "decoder": level,
    }


def _bpe(vocabulary: Mapping[str, int], merges: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return a model of merges between subwords that the student has.

    Raises:
        UsageError: the student has a subword that is merged from one that it lacks.
    """
    known = [pair for pair in merges if "".join(pair) in vocabulary]
    lost = [pair for pair in known if not vocabulary.keys() >= {*pair}]
    if lost:
        raise UsageError(
            f"--format huggingface can't express the student's subwords: its dictionary lacks parts of "
            f"{len(lost):,} of them, such as {''.join(lost[0])!r:.40}; leave --format out"
        )
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": SPECIAL[UNK],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": dict(vocabulary),
        "merges": [list(pair) for pair in known],
    }


def _given(subwords: Subwords, index: Mapping[str, int]) -> dict[str, Any]:
    """Return what splits text in a ``tokenizer.json``, with the student's ids."""
    path = subwords.files["tokenizer.json"]
    content = read_json(path)
    renamed = subwords.renamed[0]
    with as_usage_error(f"'{path}' can't be used", "import the model again", catch=(KeyError, TypeError)):
        model = dict(content["model"])
        found = model["vocab"]
        if isinstance(found, list):  # a subword's number is its place
            scores = {renamed.get(token, token): score for token, score in found}
            lowest = min(scores.values())
            model["vocab"] = [[symbol, scores.get(symbol, lowest)] for symbol in index]
            model["unk_id"] = UNK
        else:
            tokens = {renamed.get(token, token): token for token in found}
            vocabulary = {tokens.get(symbol, symbol): number for symbol, number in index.items()}
            pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges", [])]
            model |= {
                name: _bpe(vocabulary, [(a, b) for a, b in pairs])[name] for name in ("vocab", "merges")
            }
    return {name: content.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")} | {"model": model}
