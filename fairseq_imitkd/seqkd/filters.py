"""Which pairs of a source and a translation are kept, why the others are dropped, and their counts."""

import hashlib
import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fairseq_imitkd.data.corpus import Corpus
from fairseq_imitkd.errors import UsageError, percent
from fairseq_imitkd.rollout import RandomKey
from fairseq_imitkd.rollout.keyed_random import MIXING_GOLD
from fairseq_imitkd.seqkd.translator import TranslatedBatch
from fairseq_imitkd.text.language import is_other_language
from fairseq_imitkd.text.repetition import repeats

LANGUAGE = "--drop-other-languages"
REASONS = ("cut", "empty", "ratio", "copy", "repeats", "language", "duplicate", "worst")


@dataclass(frozen=True)
class Filters:
    """Which pairs are dropped, and which references are added.

    Args:
        max_ratio: most tokens of the longer side per token of the shorter side; 0 means unlimited.
        dedup: whether to drop a pair that occurred before.
        mix_gold: share of the translated sentences whose reference is added to their translations.
        seed: seed of the choice of these sentences.
        drop_copies: whether to drop a target that is its source, but for case and blanks.
        drop_repeats: whether to drop a target in which a phrase stands three times in a row, if that is not
            so in its source.
        language: ISO 639-1 code of the targets' language. A target in another one is dropped; None drops
            none.
        drop_worst: share of the translations that no other filter drops, those of lowest quality, to drop.

    Raises:
        UsageError: a value is out of range.
    """

    max_ratio: float = 0.0
    dedup: bool = False
    mix_gold: float = 0.0
    seed: int = 1
    drop_copies: bool = False
    drop_repeats: bool = False
    language: str | None = None
    drop_worst: float = 0.0

    def __post_init__(self) -> None:
        if self.max_ratio != 0.0 and not 1.0 <= self.max_ratio < math.inf:
            raise UsageError(f"--max-ratio must be 1 or more, or 0 for no limit, but is {self.max_ratio}")
        if not 0.0 <= self.mix_gold <= 1.0:
            raise UsageError(f"--mix-gold must be in 0..1, but is {self.mix_gold}{percent(self.mix_gold)}")
        if self.language is not None:
            is_other_language(self.language, LANGUAGE)  # whether that can be known
        if not 0.0 <= self.drop_worst < 1.0:
            meant = percent(self.drop_worst)
            raise UsageError(f"--drop-worst must be 0 or more and below 1, but is {self.drop_worst}{meant}")


@dataclass(frozen=True)
class Pair:
    """A source and one of its targets.

    Args:
        sentence: number of the source in the corpus.
        origin: who wrote the target, ``teacher`` or ``gold``.
        score: score of a translation; None for a reference, and for a translation without a score.
        target: ``(T,)`` int64, EOS included.
        cut: whether the length limit ended the target.
        quality: what ``drop_worst`` compares; NaN if nothing judges the pair.
    """

    sentence: int
    origin: str
    score: float | None
    target: Tensor
    cut: bool = False
    quality: float = math.nan


@dataclass
class Counts:
    """What became of every sentence, for the manifest.

    Args:
        sentences: sentences in the corpus.
        too_long: sources that are too long for the teacher.
        empty_sources: sources without words.
        translations: translations, before any is dropped.
        dropped: dropped pairs by reason.
        gold: references that were added, before any is dropped.
        written: pairs in the data set.
    """

    sentences: int = 0
    too_long: int = 0
    empty_sources: int = 0
    translations: int = 0
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    gold: int = 0
    written: int = 0

    def check(self, translated_sentences: int, translations: int) -> None:
        """Check that no sentence is lost or doubled.

        Args:
            translated_sentences: sentences that have translations.
            translations: number of their translations.

        Raises:
            RuntimeError: a sentence is unaccounted for, which is a defect of this program.
        """
        expected = self.sentences - self.too_long - self.empty_sources
        if translated_sentences != expected:
            raise RuntimeError(
                f"{expected} sentences must have translations, but {translated_sentences} have some"
            )
        if self.translations != translations:
            raise RuntimeError(
                f"{translations} translations were expected, but {self.translations} are there"
            )
        if self.written != self.translations + self.gold - sum(self.dropped.values()):
            raise RuntimeError(f"the counts do not add up: {self}")


@dataclass(frozen=True)
class Sides:
    """The text of both sides, which filters compare.

    Args:
        source: turns the number of a sentence into text; the numbers never decrease.
        target: turns a target's ``(T,)`` symbols into text.
    """

    source: Callable[[int], str]
    target: Callable[[Tensor], str]


class PairFilter:
    """Judges all pairs of a corpus: what is kept, and why the rest is dropped.

    Args:
        corpus: the sentences.
        batches: their translations.
        filters: which pairs to drop, and which references to add.
        sides: opens the text of both sides, for one pass over the corpus.
        qualities: per batch, ``(H,)`` float32, what ``drop_worst`` compares; more is better, and a NaN is
            never the worst. None is all NaN.
    """

    def __init__(
        self,
        corpus: Corpus,
        batches: Sequence[TranslatedBatch],
        filters: Filters,
        *,
        sides: Callable[[], Sides],
        qualities: Sequence[np.ndarray] | None = None,
    ):
        self.corpus, self.batches, self.filters = corpus, batches, filters
        self.sides, self.qualities = sides, qualities

    def judged(self, counts: Counts) -> Iterator[tuple[Pair, str | None]]:
        """Yield every pair and the reason to drop it, or None, in the order of the corpus.

        A reference comes after the translations of its sentence.

        Args:
            counts: counts of dropped and kept pairs, which are updated.
        """
        worst = self._worst()
        for pair, reason in self._judged():
            if pair.origin == "gold":
                counts.gold += 1
            elif not reason and len(worst) and worst[counts.translations]:
                reason = "worst"
            counts.translations += pair.origin != "gold"
            if reason:
                counts.dropped[reason] += 1
            else:
                counts.written += 1
            yield pair, reason

    def _worst(self) -> np.ndarray:
        """Return whether ``drop_worst`` drops each translation, in the order of the corpus, ``(H,)`` bool.

        Of equal ones, the first ones are dropped. Without ``drop_worst`` the result is empty.
        """
        if not self.filters.drop_worst:
            return np.empty(0, dtype=bool)
        compared = array("d")  # NaN: this translation is not compared
        for pair, reason in self._judged():
            if pair.origin != "gold":
                compared.append(math.nan if reason else pair.quality)
        qualities = np.frombuffer(compared)
        numbers = np.flatnonzero(~np.isnan(qualities))
        order = numbers[np.argsort(qualities[numbers], kind="stable")]
        worst = np.zeros(len(qualities), dtype=bool)
        worst[order[: int(self.filters.drop_worst * len(order))]] = True
        return worst

    def _judged(self) -> Iterator[tuple[Pair, str | None]]:
        """Yield every pair and the reason to drop it, other than that it is among the worst."""
        draws = RandomKey(self.filters.seed, 0, MIXING_GOLD).uniforms(torch.arange(len(self.corpus)))
        is_gold = draws.lt(self.filters.mix_gold).numpy()
        reason = _DropReason(self.corpus, self.filters, self.sides())
        for sentence, translations in self._by_sentence():
            for pair in translations:
                yield pair, reason(pair)
            if is_gold[sentence]:
                assert self.corpus.references is not None
                gold = Pair(sentence, "gold", None, self.corpus.references[sentence].long())
                yield gold, reason(gold)

    def _by_sentence(self) -> Iterator[tuple[int, Iterator[Pair]]]:
        """Yield each translated sentence's number and translations, in the order of the corpus."""
        place = np.full((len(self.corpus), 2), -1, dtype=np.int64)  # batch of a sentence, and its row there
        starts = []  # per batch: the first hypothesis of each row, and the first token of each hypothesis
        for number, batch in enumerate(self.batches):
            place[batch.ids] = np.stack([np.full_like(batch.ids, number), np.arange(batch.ids.size)], axis=1)
            starts.append([np.concatenate([[0], sizes.cumsum()]) for sizes in (batch.counts, batch.lengths)])
        for sentence in range(len(self.corpus)):
            number, row = place[sentence].tolist()
            if number >= 0:
                hypotheses = range(starts[number][0][row], starts[number][0][row + 1])
                first = starts[number][1]
                yield sentence, self._translations(sentence, number, hypotheses=hypotheses, first_token=first)

    def _translations(
        self, sentence: int, number: int, *, hypotheses: range, first_token: np.ndarray
    ) -> Iterator[Pair]:
        batch = self.batches[number]
        for which in hypotheses:
            tokens = batch.tokens[first_token[which] : first_token[which + 1]].astype(np.int64)
            score = float(batch.scores[which])
            yield Pair(
                sentence,
                "teacher",
                None if math.isnan(score) else score,
                torch.from_numpy(tokens),
                bool(batch.cut[which]),
                math.nan if self.qualities is None else float(self.qualities[number][which]),
            )


class _DropReason:
    """Returns the reason to drop a pair, or None. It remembers the pairs that it has seen.

    Args:
        corpus: the sentences.
        filters: which pairs to drop.
        sides: the text of both sides.
    """

    def __init__(self, corpus: Corpus, filters: Filters, sides: Sides):
        self.corpus, self.filters, self.sides = corpus, filters, sides
        self._is_other = is_other_language(filters.language, LANGUAGE) if filters.language else None
        self._seen: set[bytes] = set()

    def __call__(self, pair: Pair) -> str | None:
        if pair.cut:
            return "cut"
        words, source_words = pair.target.numel() - 1, int(self.corpus.lengths[pair.sentence]) - 1
        # A short target may consist of subword marks only.
        if words == 0 or (words <= 2 and not self.sides.target(pair.target).strip()):
            return "empty"
        longer, shorter = max(words, source_words), min(words, source_words)
        if self.filters.max_ratio and longer > self.filters.max_ratio * shorter:
            return "ratio"
        if self.filters.drop_copies or self.filters.drop_repeats:
            source, target = self.sides.source(pair.sentence), self.sides.target(pair.target)
            if self.filters.drop_copies and _plain(source) == _plain(target):
                return "copy"
            if self.filters.drop_repeats and repeats(target) and not repeats(source):
                return "repeats"
        if self._is_other is not None and self._is_other(self.sides.target(pair.target)):
            return "language"
        if self.filters.dedup and self._is_duplicate(pair):
            return "duplicate"
        return None

    def _is_duplicate(self, pair: Pair) -> bool:
        source = self.corpus.sources[pair.sentence].numpy().astype(np.int64).tobytes()
        both = source + b"\xff" * 8 + pair.target.numpy().tobytes()
        digest = hashlib.blake2b(both, digest_size=16).digest()
        is_known = digest in self._seen
        self._seen.add(digest)
        return is_known


def _plain(text: str) -> str:
    """Return a text without differences of case and blanks."""
    return " ".join(text.casefold().split())
