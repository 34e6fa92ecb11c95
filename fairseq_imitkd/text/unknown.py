"""Warns of text that is not in a model's subwords, and refuses text that is mostly unknown symbols: its
translations are nonsense.
"""

import logging
from collections.abc import Iterable
from itertools import islice

import torch
from fairseq.data import Dictionary
from torch import Tensor

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.text.marks import recognised

logger = logging.getLogger(__name__)
MOST = 0.01  # share of unknown symbols that is not worth a warning
MOST_USABLE = 0.5  # share above which text is refused where it is read or written as a whole
FIRST = 1000  # sentences that are looked at
BINARISE = "encode the text with the model's subwords before fairseq-preprocess"
_FLAGS = {
    "sentencepiece": "--bpe sentencepiece --sentencepiece-model FILE",
    "@@ ": "--bpe subword_nmt --bpe-codes FILE",
}


def warn_of_unknown(
    sentences: Iterable[Tensor],
    dictionary: Dictionary,
    *,
    what: str,
    language: str | None,
    remedy: str = BINARISE,
) -> None:
    """Warn if more than :data:`MOST` of the symbols of the first sentences are unknown.

    Args:
        sentences: ``(S,)`` symbols each.
        dictionary: the dictionary that they are of.
        what: what the message calls them.
        language: language of the dictionary; None if it is the only one.
        remedy: what to do.
    """
    first = [sentence.flatten() for sentence in islice(sentences, FIRST)]
    symbols = torch.cat(first) if first else torch.zeros(0)
    warn_of_share(
        int(symbols.eq(dictionary.unk()).sum()), symbols.numel(), what, language=language, remedy=remedy
    )


def warn_of_share(unknown: int, symbols: int, what: str, *, language: str | None, remedy: str) -> None:
    """Warn if more than :data:`MOST` of some symbols are unknown. The arguments are those of
    :func:`warn_of_unknown`.
    """
    if unknown > MOST * symbols:
        logger.warning("%s", _share(unknown, symbols, what, language=language, remedy=remedy))


def check_share(unknown: int, symbols: int, what: str, *, language: str | None, remedy: str) -> None:
    """Warn as :func:`warn_of_share` does, but refuse text if most of its symbols are unknown.

    Raises:
        UsageError: more than :data:`MOST_USABLE` of them are.
    """
    if unknown > MOST_USABLE * symbols:
        raise UsageError(_share(unknown, symbols, what, language=language, remedy=remedy))
    warn_of_share(unknown, symbols, what, language=language, remedy=remedy)


def _share(unknown: int, symbols: int, what: str, *, language: str | None, remedy: str) -> str:
    end = f".{language}" if language else ""
    return f"{unknown / symbols:.1%} of the symbols of {what} are unknown to dict{end}.txt: {remedy}"


def remedy_of_text(dictionary: Dictionary, *, is_encoded: bool) -> str:
    """Return what to do about text that is typed, or read from a file, for a model of these subwords.

    Args:
        dictionary: the model's dictionary.
        is_encoded: whether ``--bpe`` encodes it already.
    """
    if is_encoded:
        return "give --bpe and the file that the model's data was made with"
    flags = _FLAGS.get(recognised(dictionary) or "")
    return f"add {flags}, or encode the text before" if flags else "encode the text as the model's data was"
