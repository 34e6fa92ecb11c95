"""The test set: sentences to translate, their references, and both as text."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fairseq_imitkd.data.corpus import Languages, check_sentences, of_split
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.evaluate.models import Model
from fairseq_imitkd.text.subwords import Text, TextSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Detokenizer:
    """Text of symbols, a line each sentence.

    Args:
        languages: the dictionaries.
        settings: whose subwords and tokenisation are undone.
        remove_bpe: subword marks to undo first, as fairseq names them; None leaves them.
    """

    languages: Languages
    settings: TextSettings
    remove_bpe: str | None = None

    def targets(self, sentences: Iterable[Tensor], reference: bool = False) -> list[str]:
        """Of ``(T,)`` tokens each; an unknown word of a ``reference`` is written so that no translation matches it."""
        text = Text(self.settings, self.languages.source, self.languages.target)
        return [
            _line(
                text.decode(
                    self.languages.target_dictionary.string(
                        tokens.tolist(), self.remove_bpe, escape_unk=reference
                    )
                )
            )
            for tokens in sentences
        ]

    def sources(self, sentences: Iterable[Tensor]) -> list[str]:
        """Of ``(S,)`` tokens each."""
        text = Text(self.settings, self.languages.target, self.languages.source)
        dictionary = self.languages.source_dictionary
        return [
            _line(text.decode(dictionary.string(tokens.tolist(), self.remove_bpe))) for tokens in sentences
        ]


def _line(text: str) -> str:
    """What the tools that read a file a line each take for one sentence."""
    return re.sub(r"[\r\n]+", " ", text).strip()


@dataclass(frozen=True)
class Sentences:
    """``N`` sentences, in the order of the data.

    Args:
        sources, references: ``(S,)`` and ``(T,)`` int64 each, with an EOS.
        source_texts, reference_texts: the same as text.
    """

    sources: Sequence[Tensor]
    references: Sequence[Tensor]
    source_texts: Sequence[str]
    reference_texts: Sequence[str]

    def __len__(self) -> int:
        return len(self.sources)

    def length(self, number: int) -> int:
        """Tokens of a source, without the EOS."""
        return self.sources[number].numel() - 1

    def translatable(self) -> list[int]:
        """Numbers of the sentences that are not empty. The translation of nothing is nothing, whoever is asked."""
        return [number for number in range(len(self)) if self.length(number) > 0]

    def batches(self, numbers: Sequence[int], size: int) -> list[list[int]]:
        """So many sentences at a time, by falling length."""
        order = sorted(numbers, key=lambda number: -self.length(number))
        return [order[start : start + size] for start in range(0, len(order), size)]


def read(
    languages: Languages, split: str, count: int, models: Mapping[str, Model], detokenizer: Detokenizer
) -> Sentences:
    """A split, without the sentences that a model can't read.

    Args:
        languages: the data directory's.
        split: its name.
        count: how many sentences, evenly spread; 0 is all.
        models: that are to read them.
        detokenizer: what makes text of them.

    Raises:
        UsageError: it is not there, empty, damaged, without references, or of another dictionary.
    """
    corpus = of_split(languages, split)
    if corpus.references is None:
        raise UsageError(
            f"--gen-subset {split} has no target side, to which translations are compared: give another split"
        )
    longest = min(model.longest[0] for model in models.values())
    numbers = np.flatnonzero(corpus.lengths <= longest)
    if numbers.size < len(corpus):
        reader = next(name for name, model in models.items() if model.longest[0] == longest)
        logger.warning(
            "%d of %d sentences are left out, for all models: they are longer than the %d tokens that %s can read",
            *(len(corpus) - numbers.size, len(corpus), longest, reader),
        )
    if count and count < numbers.size:
        numbers = numbers[spread(numbers.size, count)]
    ids = numbers.tolist()
    sources, references = (
        [side[number].long() for number in ids] for side in (corpus.sources, corpus.references)
    )
    check_sentences(ids, sources, languages.source_dictionary, languages.source)
    check_sentences(ids, references, languages.target_dictionary, languages.target)
    if not any(source.numel() > 1 for source in sources):
        raise UsageError(f"--gen-subset {split} holds no sentence that can be translated: give another split")
    texts = detokenizer.targets(references, reference=True)
    if any("▁" in text or "@@ " in text for text in texts):
        logger.warning(
            "the references are of subwords, of which scores mean nothing: give --bpe with its files, or --remove-bpe"
        )
    return Sentences(sources, references, detokenizer.sources(sources), texts)


def spread(among: int, count: int) -> np.ndarray:
    """``count`` numbers below ``among``, evenly spread."""
    return np.linspace(0, among - 1, count).round().astype(int)
