"""Recognises the subwords of a dictionary, so that their marks are removed before text is scored or shown."""

import logging

from fairseq.data import Dictionary, data_utils

from fairseq_imitkd.errors import UsageError

logger = logging.getLogger(__name__)

AUTO, NONE = "auto", "none"
# Marks that only subwords have: fairseq's name, what a symbol holds, and how it is called.
_KINDS = (
    ("sentencepiece", "▁", "SentencePiece (▁)"),
    ("@@ ", "@@", "subword-nmt or fastBPE (@@)"),
)
# What shows other kinds of mark, which are removed on request only.
_ON_REQUEST = {"wordpiece": "_", "letter": "|", "silence": "<SIL>", "_EOW": "_EOW"}
_ALIASES = {"subword_nmt": "@@ ", "@@": "@@ "}
_LEAST = 0.01  # share of the symbols that must hold a mark
_GPT2 = 0.9  # share of symbols that are numbers or hold Ġ


def is_known(mark: str | None) -> bool:
    """Return whether a flag may have this value: a mark that fairseq can remove, ``auto`` or ``none``."""
    try:
        data_utils.post_process("", None if mark == AUTO else mark)
    except NotImplementedError:
        return False
    return True


def subword_mark(dictionary: Dictionary, value: str | None, flag: str) -> str | None:
    """Return the subword mark to remove from a dictionary's text, by fairseq's name; None removes nothing.

    Args:
        dictionary: names the symbols.
        value: the flag's value; None and ``auto`` recognise the subwords, ``none`` removes nothing.
        flag: the flag, for messages.

    Raises:
        UsageError: no symbol has the mark that is asked for.
    """
    found = recognised(dictionary)
    if value == NONE:
        return None
    if value is None or value == AUTO:
        if found is None and _is_gpt2(dictionary):
            logger.warning(
                "the dictionary looks like GPT-2's subwords, which %s can't join: text is scored as it is; "
                "imitkd-evaluate and export take --bpe gpt2",
                flag,
            )
        return found
    asked = _ALIASES.get(value, value)
    sign = {mark: sign for mark, sign, _ in _KINDS}.get(asked) or _ON_REQUEST.get(asked)
    if sign is not None and not any(sign in symbol for symbol in dictionary.symbols):
        instead = f"its subwords are those of {flag} '{found}'" if found else "its symbols are whole words"
        raise UsageError(
            f"{flag} '{value}' finds nothing to remove, because no symbol of the dictionary has {sign}: "
            f"{instead}; leave the flag out"
        )
    return asked


def name_of(mark: str) -> str:
    """Return what messages call the subwords of a mark, which is given by fairseq's name."""
    return next((words for name, _, words in _KINDS if name == mark), mark)


def recognised(dictionary: Dictionary) -> str | None:
    """Return the name of the mark that a dictionary's subwords have; None if it has none that is known."""
    symbols = dictionary.symbols[dictionary.nspecial :]
    for mark, sign, _ in _KINDS:
        has = str.endswith if mark == "@@ " else str.__contains__
        if sum(has(symbol, sign) for symbol in symbols) > _LEAST * len(symbols):
            return mark
    return None


def _is_gpt2(dictionary: Dictionary) -> bool:
    symbols = dictionary.symbols[dictionary.nspecial :]
    if len(symbols) < 1000:  # numbers may be words
        return False
    numbers = sum(symbol.isdecimal() for symbol in symbols)
    return numbers > _GPT2 * len(symbols) or sum("Ġ" in symbol for symbol in symbols) > _LEAST * len(symbols)
