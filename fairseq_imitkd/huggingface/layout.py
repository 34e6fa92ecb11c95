"""How a model's sentences begin and end: its language tags, and the first input of its decoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fairseq_imitkd.errors import UsageError, as_usage_error
from fairseq_imitkd.huggingface.config import ModelConfig
from fairseq_imitkd.huggingface.tags import is_tag, tag_of
from fairseq_imitkd.huggingface.tokens import Tokenizer
from fairseq_imitkd.text.imported import DESCRIPTION, SIDES


@dataclass(frozen=True)
class Layout:
    """How sentences are made, in the model's ids.

    Args:
        start: id of the decoder's first input.
        source_before: ids before each source.
        source_ends: ids after each source: EOS, or EOS and a tag.
        target_before: ids that each target begins with.
        notes: what the user should know.
    """

    start: int
    source_before: tuple[int, ...]
    source_ends: tuple[int, ...]
    target_before: tuple[int, ...]
    notes: tuple[str, ...] = ()


def languages_of(
    config: ModelConfig, tokenizer: Tokenizer | None, given: tuple[str | None, str | None]
) -> tuple[str, str]:
    """Return the languages of the pair, which name the dictionaries.

    Args:
        config: the model's configuration.
        tokenizer: its tokenizer, if it has one.
        given: ``--source-lang`` and ``--target-lang``.

    Raises:
        UsageError: a language is missing, or can't name a file.
    """
    pair = []
    for side, language, found in zip(SIDES, given, config.languages or (None, None), strict=True):
        name = language or found or (None if config.family.tags else side)
        if name is None:
            raise UsageError(
                f"--{side}-lang is not given, and {config.family.title} needs it; name one of its languages"
                + _examples(tokenizer)
            )
        if name.split() != [name] or "/" in name or "." in name or not name.isprintable() or len(name) > 40:
            raise UsageError(f"--{side}-lang {name!r:.40} must be a short word without '/' and '.'")
        pair.append(name)
    if pair[0] == pair[1]:
        raise UsageError(f"--source-lang and --target-lang must be two names, but both are {pair[0]!r:.40}")
    return pair[0], pair[1]


def layout_of(
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    pair: tuple[str, str],
    *,
    described: Mapping[str, Any] | None = None,
) -> Layout:
    """Return how sentences of a language pair are made.

    Args:
        config: the model's configuration.
        tokenizer: its tokenizer, if it has one.
        pair: source and target language.
        described: what an export has written about the text of a student; None for other models.

    Raises:
        UsageError: the model needs tags, and has none for a language.
    """
    begins = config.start
    if begins is None:
        begins = config.pad if config.family.starts == "pad" else config.eos
    plain = Layout(begins, (), (config.eos,), ())
    if described is not None and tokenizer is not None:
        with as_usage_error(f"{DESCRIPTION} of the model can't be used", "export the student again"):
            return _exported(plain, tokenizer, described["text"])
    if config.family.tags:
        return _tagged(plain, config, tokenizer, pair=pair)
    if config.kind == "bart" and config.bos is not None:
        return Layout(begins, (config.bos,), plain.source_ends, (config.bos,))
    if config.kind == "marian" and tokenizer is not None:
        return _marked(plain, tokenizer, pair[1])
    return plain


def _exported(plain: Layout, tokenizer: Tokenizer, text: Mapping[str, Any]) -> Layout:
    """Return how an exported student's sentences are made."""
    source, target = (
        {symbol: number for number, symbol in tokens.items()}
        for tokens in (tokenizer.source, tokenizer.target)
    )
    before, after = (tuple(source[symbol] for symbol in text["source"][part]) for part in ("before", "after"))
    first = tuple(target[symbol] for symbol in text["target"]["before"])
    return Layout(plain.start, before, (*after, *plain.source_ends), first)


def _tagged(
    plain: Layout, config: ModelConfig, tokenizer: Tokenizer | None, *, pair: tuple[str, str]
) -> Layout:
    """Add the tags of M2M-100, NLLB and mBART."""
    if tokenizer is None:
        note = "without tokenizer files, language tags are not known; your text must hold them, as id:N"
        return Layout(plain.start, (), plain.source_ends, (), (note,))
    tags = []
    for side, language, tokens in zip(SIDES, pair, (tokenizer.source, tokenizer.target), strict=True):
        tag = tag_of(language, tokens)
        if tag is None:
            raise UsageError(
                f"--{side}-lang {language!r:.40} has no tag in this model; use one of its languages"
                + _examples(tokenizer)
            )
        tags.append(tag)
    source, target = tags
    if config.kind == "mbart" and config.start != config.eos:
        # mBART: the source ends with EOS and its tag, and the decoder begins with the target's.
        return Layout(target, (), (config.eos, source), ())
    return Layout(plain.start, (source,), plain.source_ends, (target,))


def _marked(plain: Layout, tokenizer: Tokenizer, target: str) -> Layout:
    """Add the tag of the target language that Marian's models of several languages need."""
    tags = {token: number for number, token in tokenizer.source.items() if _is_mark(token)}
    number = tags.get(f">>{target}<<")
    if number is not None:
        return Layout(plain.start, (number,), plain.source_ends, ())
    if not tags:
        return plain
    note = (
        f"the model has tags of target languages, but none for --target-lang {target}; if it needs one, use "
        f"one of {', '.join(tag.strip('<>') for tag in sorted(tags)[:5])}"
    )
    return Layout(plain.start, (), plain.source_ends, (), (note,))


def _is_mark(token: str) -> bool:
    return len(token) > 4 and token.startswith(">>") and token.endswith("<<")


def _examples(tokenizer: Tokenizer | None) -> str:
    """Return some language tags of a model, for a message."""
    tokens = tokenizer.source.values() if tokenizer else ()
    found = sorted(token for token in tokens if is_tag(token))
    return f", such as {', '.join(found[:3])}" if found else ""
