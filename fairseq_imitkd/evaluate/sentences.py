"""The test set: sentences to translate and their references, as tokens and as text."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from torch import Tensor

from fairseq_imitkd.data.corpus import Corpus, Languages, check_sentences, read_split
from fairseq_imitkd.data.files import not_text
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.evaluate.models import EvaluatedModel
from fairseq_imitkd.models.tagged import check_without_tags, tags_of
from fairseq_imitkd.text.scored import ScoredText
from fairseq_imitkd.text.subwords import TextSettings

logger = logging.getLogger(__name__)


class Detokenizer:
    """The text of both languages.

    Args:
        languages: the dictionaries.
        settings: subwords and tokenisation to undo.
        remove_bpe: subword marks to undo first, by fairseq's names; None leaves them.

    Attributes:
        source, target: the text of each language's tokens.
    """

    def __init__(self, languages: Languages, settings: TextSettings, remove_bpe: str | None = None):
        text = languages.text(settings)
        self.source = ScoredText(languages.source_dictionary, remove_bpe, text.decode_source)
        self.target = ScoredText(languages.target_dictionary, remove_bpe, text.decode)


@dataclass(frozen=True)
class Sentences:
    """``N`` sentences, in the order of the data.

    Args:
        sources, references: ``(S,)`` and ``(T,)`` int64 tokens each, with an EOS.
        source_texts, reference_texts: the same as text, as scores read it.
        unknown: number of the references' words that the dictionary lacks; 0 if a file has the references.
        right: all right translations of each sentence; None if there is only the reference.
    """

    sources: Sequence[Tensor]
    references: Sequence[Tensor]
    source_texts: Sequence[str]
    reference_texts: Sequence[str]
    unknown: int = 0
    right: Sequence[Sequence[str]] | None = None

    def __len__(self) -> int:
        return len(self.sources)

    def reference_columns(self, numbers: Sequence[int] | None = None) -> list[list[str | None]]:
        """Return the references of some sentences, as :func:`reference_columns` does.

        Args:
            numbers: numbers of the sentences; None is all.
        """
        every = [[text] for text in self.reference_texts] if self.right is None else self.right
        return reference_columns(
            [every[number] for number in (range(len(self)) if numbers is None else numbers)]
        )

    def length(self, number: int) -> int:
        """Return the number of a source's tokens, without the EOS."""
        return self.sources[number].numel() - 1

    def translatable(self) -> list[int]:
        """Return the numbers of the sentences that are not empty."""
        return [number for number in range(len(self)) if self.length(number) > 0]

    def batches(self, numbers: Sequence[int], size: int) -> list[list[int]]:
        """Split sentences into batches of a size, the longest first."""
        order = sorted(numbers, key=lambda number: -self.length(number))
        return [order[start : start + size] for start in range(0, len(order), size)]


def reference_columns(right: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """Return references as sacreBLEU takes them: the first of each sentence, the second of each, and so on.

    Args:
        right: the right translations of each sentence. One with fewer than another has None in its places.
    """
    return [list(column) for column in zip_longest(*right)]


def _check_tags(
    models: Mapping[str, EvaluatedModel],
    languages: Languages,
    sources: Sequence[Tensor],
    *,
    references: Sequence[Tensor],
) -> None:
    """Refuse sentences that hold the language tags which a model adds itself."""
    for model in models.values():
        tags = None if model.fairseq is None else tags_of(model.fairseq)
        if tags is not None:
            check_without_tags(tags, languages, sources=sources, targets=references)


def read(
    languages: Languages,
    split: str,
    *,
    count: int,
    models: Mapping[str, EvaluatedModel],
    detokenizer: Detokenizer,
    right: Path | None = None,
) -> Sentences:
    """Read a split, without the sentences that are too long for a model.

    Args:
        languages: dictionaries and folder of the data directory.
        split: name of the split.
        count: number of sentences to choose, evenly spread; 0 is all.
        models: models that will read them.
        detokenizer: what makes text of them.
        right: file with all right translations of each sentence of the split; None takes its references.

    Raises:
        UsageError: the split is missing, empty, damaged, without references, or of another dictionary; or the
            file does not fit it.
    """
    corpus = read_split(languages, split)
    if corpus.references is None:
        raise UsageError(
            f"--gen-subset {split} has no target side to compare translations with; use another split"
        )
    corpus.warn_of_other_subwords(languages, split)
    every = None if right is None else _right_translations(right, len(corpus))
    numbers = _fitting(corpus, models)
    if count and count < numbers.size:
        numbers = numbers[spread(numbers.size, count)]
    ids = numbers.tolist()
    sources, references = (
        [side[number].long() for number in ids] for side in (corpus.sources, corpus.references)
    )
    check_sentences(ids, sources, languages.source_dictionary, language=languages.source)
    check_sentences(ids, references, languages.target_dictionary, language=languages.target)
    _check_tags(models, languages, sources, references=references)
    if not any(source.numel() > 1 for source in sources):
        raise UsageError(f"--gen-subset {split} has no sentence with words; use another split")
    texts, unknown = detokenizer.target.references(references), detokenizer.target.unknown(references)
    if every is not None:
        every = [every[number] for number in ids]
        texts = [some[0] for some in every]
        unknown = 0  # the file has every word
    if any("▁" in text or "@@ " in text for text in texts):
        logger.warning(
            "the references consist of subwords, so scores mean nothing; add --bpe with its files, or "
            "--remove-bpe"
        )
    return Sentences(sources, references, detokenizer.source.sources(sources), texts, unknown, every)


def _fitting(corpus: Corpus, models: Mapping[str, EvaluatedModel]) -> np.ndarray:
    """Return the numbers of the sentences that all models can read."""
    assert corpus.references is not None
    numbers = np.arange(len(corpus))
    # Validation leaves out both kinds, and one model has one score.
    for place, side, lengths in (
        (0, "source", corpus.lengths),
        (1, "reference", np.asarray(corpus.references.sizes)),
    ):
        longest = min(model.longest[place] for model in models.values())
        fitting = numbers[lengths[numbers] <= longest]
        if fitting.size < numbers.size:
            reader = next(name for name, model in models.items() if model.longest[place] == longest)
            logger.warning(
                "%d of %d sentences are left out for all models: their %s is longer than the %d tokens of %s",
                *(numbers.size - fitting.size, len(corpus), side, longest, reader),
            )
        numbers = fitting
    return numbers


def _right_translations(path: Path, count: int) -> list[list[str]]:
    """Return the right translations in the lines of a file, with tabs between them."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise not_text(f"--references '{path}'", path) from error
    except OSError as error:
        raise UsageError(
            f"--references '{path}' can't be read: {error.strerror}; check the path and its permissions"
        ) from error
    if len(lines) != count:
        raise UsageError(
            f"--references '{path}' must have a line for each of the {count:,} sentences of --gen-subset, "
            f"but has {len(lines):,}"
        )
    # A carriage return ends no line of the file, nor of those that an evaluation writes.
    rows = (line.rstrip("\r").replace("\r", " ").split("\t") for line in lines)
    every = ([text for text in row if text.strip()] for row in rows)
    return [texts or [""] for texts in every]  # a table fills its rows with empty cells


def spread(among: int, count: int) -> np.ndarray:
    """Return ``count`` whole numbers from 0 to ``among - 1``, evenly spread."""
    return np.linspace(0, among - 1, count).round().astype(int)
