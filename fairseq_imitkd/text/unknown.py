"""Warns of text that is not in a model's subwords, and refuses text that is mostly unknown symbols: its
translations are nonsense.

Text that another subword model has split shows in two ways. Symbols are unknown; or two neighbours are
together one symbol of the dictionary, which its own model would have written.
"""

import logging
from collections.abc import Iterable, Sequence
from itertools import islice, pairwise

import torch
from fairseq.data import Dictionary
from torch import Tensor

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.text.marks import recognised

logger = logging.getLogger(__name__)
MOST = 0.01  # share of unknown symbols that is not worth a warning
MOST_USABLE = 0.5  # share above which text is refused where it is read or written as a whole
FIRST = 1000  # sentences that are looked at
# Share of symbols that form one symbol together with the next one. Of text that one model had split into all
# symbols of its dictionary, it was 0. Of two models with one dictionary, or with --vocabulary-threshold, it
# was up to 5.8%. Other subwords had 5% to 30%, or many unknown symbols. BPE-dropout of 0.1 had 13.5%.
MOST_SPLIT, FEWEST = 0.08, 200
BINARISE = "encode the text with the model's subwords before fairseq-preprocess"
_FLAGS = {
    "sentencepiece": "--bpe sentencepiece --sentencepiece-model FILE",
    "@@ ": "--bpe subword_nmt --bpe-codes FILE",
}


def warn_of_other_subwords(
    sentences: Iterable[Tensor],
    dictionary: Dictionary,
    *,
    what: str,
    language: str | None,
    remedy: str = BINARISE,
    split_remedy: str = "",
) -> None:
    """Warn if more than :data:`MOST` of the symbols of the first sentences are unknown, or if more than
    :data:`MOST_SPLIT` are parts of symbols.

    Args:
        sentences: ``(S,)`` symbols each.
        dictionary: the dictionary that they are of.
        what: what the message calls them.
        language: language of the dictionary; None if it is the only one.
        remedy: what to do.
        split_remedy: what to do about text that another model has split, if it is something else.
    """
    first = [sentence.flatten() for sentence in islice(sentences, FIRST)]
    symbols = torch.cat(first) if first else torch.zeros(0)
    warn_of_share(
        int(symbols.eq(dictionary.unk()).sum()), symbols.numel(), what, language=language, remedy=remedy
    )
    parts = _parts(first, dictionary) if symbols.numel() >= FEWEST else 0
    if parts > MOST_SPLIT * symbols.numel():
        logger.warning(
            "%.1f%% of the symbols of %s form a symbol of %s together with the next one, so another subword "
            "model may have split it (or BPE-dropout): %s",
            100 * parts / symbols.numel(),
            what,
            _file_of(language),
            split_remedy or remedy,
        )


def _parts(sentences: Sequence[Tensor], dictionary: Dictionary) -> int:
    """Return how many symbols make one of the dictionary's together with the next symbol of their word."""
    mark = recognised(dictionary)
    if mark is None:
        return 0
    known, count = dictionary.indices, 0
    for sentence in sentences:
        for pair in pairwise(sentence.tolist()):
            if min(pair) < dictionary.nspecial:  # unknown, or the end
                continue
            one, other = (dictionary[index] for index in pair)
            if mark == "@@ ":
                count += one.endswith("@@") and one[:-2] + other in known
            else:
                count += not other.startswith("▁") and one + other in known
    return count


def warn_of_share(unknown: int, symbols: int, what: str, *, language: str | None, remedy: str) -> None:
    """Warn if more than :data:`MOST` of some symbols are unknown. The arguments are those of
    :func:`warn_of_other_subwords`.
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
    return f"{unknown / symbols:.1%} of the symbols of {what} are unknown to {_file_of(language)}: {remedy}"


def _file_of(language: str | None) -> str:
    return f"dict.{language}.txt" if language else "dict.txt"


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
