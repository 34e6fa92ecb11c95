"""Reads a model's tokenizer files: its symbols by id, and the files that split text into them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq_imitkd.errors import UsageError, as_usage_error
from fairseq_imitkd.huggingface import tags
from fairseq_imitkd.huggingface.config import ModelConfig
from fairseq_imitkd.huggingface.folder import ModelFolder
from fairseq_imitkd.text.imported import DESCRIPTION
from fairseq_imitkd.text.pieces import open_pieces

Tokens = dict[int, str]
_SPARE = 1000  # rows that a model may have beyond its tokenizer's symbols, made for speed or by hand
UNKNOWN = "<unk>"


@dataclass(frozen=True)
class Tokenizer:
    """The symbols of a model, and its subwords.

    Args:
        source, target: symbols of both sides by id, as fairseq's text holds them.
        kind: how text is split, a key of :data:`~fairseq_imitkd.text.imported.KINDS`; None if
            files are missing that this needs.
        files: the files of the subwords by their new name, or the text that they hold.
    """

    source: Tokens
    target: Tokens
    kind: str | None = None
    files: Mapping[str, Path | str] = field(default_factory=dict)

    def unknown(self, side: str) -> int | None:
        """Return the id of the unknown symbol of a side; None if it has none."""
        tokens = self.source if side == "source" else self.target
        return next((number for number, token in tokens.items() if token == UNKNOWN), None)


def read_tokenizer(folder: ModelFolder, config: ModelConfig) -> Tokenizer | None:
    """Read the tokenizer files of a folder; None if it has none.

    Raises:
        UsageError: a file is damaged, or the tokenizer belongs to another model.
    """
    # An exported student has any model with any tokenizer.
    own = folder.json(DESCRIPTION) and (folder.json("tokenizer_config.json") or {}).get("tokenizer_class")
    found = _BY_CLASS.get(str(own), _READERS[config.kind])(folder, config)
    if found is None:
        return None
    for tokens, side in ((found.source, config.encoder), (found.target, config.decoder)):
        _check(tokens, side.vocabulary, config=config, folder=folder)
    return found


def _check(tokens: Tokens, size: int, *, config: ModelConfig, folder: ModelFolder) -> None:
    """Refuse a tokenizer of another model. fairseq too leaves out a mask beyond the model's symbols."""
    for number in [number for number in tokens if number >= size]:
        if tokens[number] != "<mask>":
            raise UsageError(
                f"{folder.name} has the tokenizer of another model: it has the symbol "
                f"{tokens[number]!r:.40} as number {number:,}, but the model has {size:,} symbols"
            )
        del tokens[number]
    settings = folder.json("tokenizer_config.json") or {}
    for number, name in ((config.eos, "eos_token"), (config.pad, "pad_token")):
        expected = (_text(settings.get(name)) or "", "</s>" if name == "eos_token" else "<pad>")
        if tokens.get(number) not in expected or len(tokens) + _SPARE < size:
            raise UsageError(
                f"{folder.name} has the tokenizer of another model: it has {len(tokens):,} symbols, and "
                f"{tokens.get(number)!r:.40} as number {number:,}; the model has {size:,}, and {name} there"
            )


def _marian(folder: ModelFolder, config: ModelConfig) -> Tokenizer | None:
    joined = _by_id(folder, "vocab.json")
    if joined is None:
        return None
    target = _by_id(folder, "target_vocab.json") or dict(joined)
    return _with_models(Tokenizer(joined, target), folder, ("source.spm", "target.spm"))


def _m2m(folder: ModelFolder, config: ModelConfig) -> Tokenizer | None:
    vocabulary = _by_id(folder, "vocab.json")
    if vocabulary is None or folder.file("tokenizer.json"):  # NLLB
        return _unigram(folder, config, [])
    settings = folder.json("tokenizer_config.json") or {}
    codes = tags.M2M.get(str(settings.get("language_codes", "m2m100")), [])
    size, rows = len(vocabulary), config.encoder.vocabulary
    vocabulary |= {size + index: tag for index, tag in enumerate(codes) if size + index < rows}
    return _with_models(Tokenizer(vocabulary, dict(vocabulary)), folder, ("sentencepiece.bpe.model",) * 2)


def _mbart(folder: ModelFolder, config: ModelConfig) -> Tokenizer | None:
    settings = folder.json("tokenizer_config.json") or {}
    is_large = "50" in str(settings.get("tokenizer_class")) or config.start == config.eos
    return _unigram(folder, config, tags.MBART50 if is_large else tags.MBART)


def _unigram(folder: ModelFolder, config: ModelConfig, known_tags: list[str]) -> Tokenizer | None:
    """Read the symbols of mBART or NLLB: those of SentencePiece one further, then tags, then the mask."""
    name = "sentencepiece.bpe.model"
    tokens = _fast(folder)
    path = folder.file(name)
    if tokens is None and path is not None:
        pieces = _pieces(path)[3:]
        tokens = dict(
            enumerate(["<s>", "<pad>", "</s>", UNKNOWN, *pieces, *(known_tags or _listed(folder)), "<mask>"])
        )
    if tokens is None:
        return None
    return _with_models(Tokenizer(tokens, dict(tokens)), folder, (name, name))


def _pegasus(folder: ModelFolder, config: ModelConfig) -> Tokenizer | None:
    tokens, path = _fast(folder), folder.file("spiece.model")
    if tokens is None and path is not None:
        offset = config.family.unknown - 2  # SentencePiece's number 2 is the unknown symbol
        tokens = {0: "<pad>", 1: "</s>", 2: "<mask_1>", 3: "<mask_2>"}
        tokens |= {number: f"<unk_{number - 2}>" for number in range(4, config.family.unknown)}
        tokens |= {number + offset: piece for number, piece in enumerate(_pieces(path)) if number > 1}
    if tokens is None:
        return None
    return _with_models(Tokenizer(tokens, dict(tokens)), folder, ("spiece.model", "spiece.model"))


def _bart(folder: ModelFolder, config: ModelConfig) -> Tokenizer | None:
    """Read GPT-2's subwords. As in fairseq, a symbol is the number of a subword."""
    vocabulary, merges = folder.json("vocab.json"), folder.file("merges.txt")
    text: Path | str | None = merges
    if vocabulary is None or merges is None:
        model = (folder.json("tokenizer.json") or {}).get("model")
        if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
            return None
        vocabulary = model.get("vocab")
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", [])]
        text = "\n".join(["#version: 0.2", *pairs, ""])
    tokens = _inverted(vocabulary, folder, "vocab.json")
    special = {"<s>", "<pad>", "</s>", UNKNOWN, "<mask>"}
    numbers = {number: token if token in special else str(number) for number, token in tokens.items()}
    encoder = json.dumps({token: number for number, token in tokens.items()})
    return Tokenizer(numbers, dict(numbers), "gpt2", {"encoder.json": encoder, "vocab.bpe": text or ""})


def _fsmt(folder: ModelFolder, config: ModelConfig) -> Tokenizer | None:
    """Read words that Moses and fastBPE have split. As in fairseq, ``@@`` marks what continues."""
    sides = [_by_id(folder, f"vocab-{side}.json") for side in ("src", "tgt")]
    if sides[0] is None or sides[1] is None:
        return None
    source, target = (
        {number: _joined_mark(token) for number, token in side.items()} for side in sides if side
    )
    merges = folder.file("merges.txt")
    if merges is None:
        return Tokenizer(source, target)
    with as_usage_error(f"'{merges}' can't be read", "copy it again", catch=(OSError, UnicodeDecodeError)):
        lines = [line.strip("\r ").split(" ")[:2] for line in merges.read_text("utf-8").split("\n")]
    codes = [
        "#version: 0.2",
        *(" ".join(pair) for pair in lines if len(pair) == 2 and pair[0] != "#version:"),
        "",
    ]
    return Tokenizer(source, target, "moses", {"bpe.codes": "\n".join(codes)})


def _joined_mark(token: str) -> str:
    """Return a symbol with fairseq's mark: ``word</w>`` is ``word``, and ``wor`` is ``wor@@``."""
    if token in ("<s>", "<pad>", "</s>", UNKNOWN):
        return token
    return token.removesuffix("</w>") if token.endswith("</w>") else f"{token}@@"


def unmarked(symbol: str) -> str:
    """Return the subword of one of fairseq's symbols with ``@@``: ``word</w>``, or ``wor`` of ``wor@@``."""
    if symbol in ("<s>", "<pad>", "</s>", UNKNOWN):
        return symbol
    return symbol.removesuffix("@@") if symbol.endswith("@@") and symbol != "@@" else f"{symbol}</w>"


_READERS: dict[str, Callable[[ModelFolder, ModelConfig], Tokenizer | None]] = {
    "marian": _marian,
    "m2m_100": _m2m,
    "mbart": _mbart,
    "bart": _bart,
    "fsmt": _fsmt,
    "pegasus": _pegasus,
}


def _exported(folder: ModelFolder, config: ModelConfig) -> Tokenizer | None:
    """Read the ``tokenizer.json`` of an exported student, with one dictionary."""
    tokens = _fast(folder)
    return None if tokens is None else _with_models(Tokenizer(tokens, dict(tokens)), folder, ("", ""))


# Readers of exported students, by the name of the tokenizer's class.
_BY_CLASS = {"MarianTokenizer": _marian, "FSMTTokenizer": _fsmt, "PreTrainedTokenizerFast": _exported}


def _with_models(found: Tokenizer, folder: ModelFolder, names: tuple[str, str]) -> Tokenizer:
    """Add the SentencePiece models of both sides; without them, a ``tokenizer.json`` splits text."""
    paths = [folder.file(name) if name else None for name in names]
    source, target = paths
    if source is not None and target is not None:
        for path in {source, target}:
            _pieces(path)
        return Tokenizer(
            found.source, found.target, "sentencepiece", {"source.spm": source, "target.spm": target}
        )
    fast = folder.file("tokenizer.json")
    if fast is None:
        return found
    return Tokenizer(found.source, found.target, "tokenizers", {"tokenizer.json": fast})


def _pieces(path: Path) -> list[str]:
    """Return the pieces of a SentencePiece model."""
    model = open_pieces(path, "subwords", "copy it again")
    return [model.id_to_piece(number) for number in range(model.get_piece_size())]


def _fast(folder: ModelFolder) -> Tokens | None:
    """Return the symbols of a ``tokenizer.json``; None if there is none."""
    content = folder.json("tokenizer.json")
    if content is None:
        return None
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # pairs of a symbol and its score
        symbols = [pair[0] if isinstance(pair, list) and pair else None for pair in vocabulary]
        tokens = {number: symbol for number, symbol in enumerate(symbols) if isinstance(symbol, str)}
    else:
        tokens = _inverted(vocabulary, folder, "tokenizer.json")
    for added in content.get("added_tokens") or []:
        if isinstance(added, dict) and type(added.get("id")) is int and isinstance(added.get("content"), str):
            tokens[added["id"]] = added["content"]
    return tokens


def _listed(folder: ModelFolder) -> list[str]:
    """Return the tags that the files list without ids, in their order."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        content = folder.json(name) or {}
        listed = content.get("additional_special_tokens") or content.get("extra_special_tokens")
        if isinstance(listed, list) and listed:
            return [text for text in map(_text, listed) if text and text not in ("<s>", "</s>", "<mask>")]
    return []


def _text(token: Any) -> str | None:
    """Return the text of a token, which may be an object with further settings."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _by_id(folder: ModelFolder, name: str) -> Tokens | None:
    content = folder.json(name)
    return None if content is None else _inverted(content, folder, name)


def _inverted(vocabulary: Any, folder: ModelFolder, name: str) -> Tokens:
    """Return symbols by id, of ids by symbol."""
    items = vocabulary.items() if isinstance(vocabulary, dict) else [("", None)]
    tokens = {number: symbol for symbol, number in items if type(number) is int and number >= 0}
    if not tokens or len(tokens) != len(items):
        raise UsageError(f"'{folder.path / name}' must hold a number for each symbol; copy it again")
    return tokens
