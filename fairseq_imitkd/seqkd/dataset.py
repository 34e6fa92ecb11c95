"""The data set made of translations: which pairs it holds, their counts, and the files."""

import hashlib
import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq_imitkd.data.bars import Bar
from fairseq_imitkd.data.corpus import Corpus, Languages, dataset_builder, read_lines
from fairseq_imitkd.data.files import sha256
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.rollout import RandomKey
from fairseq_imitkd.rollout.keyed_random import MIXING_GOLD
from fairseq_imitkd.seqkd.translator import TranslatedBatch

# Some tools end a line at these characters too.
_SEPARATORS = re.compile("[\r\v\f\x1c-\x1e\x85\u2028\u2029]")


@dataclass(frozen=True)
class Filters:
    """Which pairs are dropped, and which references are added.

    Args:
        max_ratio: most tokens of the longer side per token of the shorter side; 0 means unlimited.
        dedup: whether to drop a pair that occurred before.
        mix_gold: share of the translated sentences whose reference is added to their translations.
        seed: seed of the choice of these sentences.

    Raises:
        UsageError: a value is out of range.
    """

    max_ratio: float = 0.0
    dedup: bool = False
    mix_gold: float = 0.0
    seed: int = 1

    def __post_init__(self) -> None:
        if self.max_ratio != 0.0 and not 1.0 <= self.max_ratio < math.inf:
            raise UsageError(f"--max-ratio must be 1 or more, or 0 for no limit, but is {self.max_ratio}")
        if not 0.0 <= self.mix_gold <= 1.0:
            raise UsageError(f"--mix-gold must be in 0..1, but is {self.mix_gold}")


@dataclass(frozen=True)
class Pair:
    """A source and one of its targets.

    Args:
        sentence: number of the source in the corpus.
        origin: who wrote the target, ``teacher`` or ``gold``.
        score: score of a translation; None for a reference.
        target: ``(T,)`` int64, EOS included.
        cut: whether the length limit ended the target.
    """

    sentence: int
    origin: str
    score: float | None
    target: Tensor
    cut: bool = False


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
    dropped: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("cut", "empty", "ratio", "duplicate"), 0)
    )
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


def pairs(
    corpus: Corpus,
    batches: Sequence[TranslatedBatch],
    filters: Filters,
    *,
    counts: Counts,
    text: Callable[[Tensor], str],
) -> Iterator[Pair]:
    """Yield the pairs that are kept, in the order of the corpus; a reference comes after the translations.

    Args:
        corpus: the sentences.
        batches: their translations.
        filters: which pairs to drop, and which references to add.
        counts: counts of dropped and kept pairs, which are updated.
        text: turns a target into text.
    """
    draws = RandomKey(filters.seed, 0, MIXING_GOLD).uniforms(torch.arange(len(corpus)))
    is_gold = draws.lt(filters.mix_gold).tolist()
    drop_reason = _DropReason(corpus, filters, text)
    for sentence, translations in _by_sentence(len(corpus), batches):
        found = list(translations)
        counts.translations += len(found)
        if is_gold[sentence]:
            assert corpus.references is not None
            counts.gold += 1
            found.append(Pair(sentence, "gold", None, corpus.references[sentence].long()))
        for pair in found:
            reason = drop_reason(pair)
            if reason:
                counts.dropped[reason] += 1
            else:
                counts.written += 1
                yield pair


def _by_sentence(sentences: int, batches: Sequence[TranslatedBatch]) -> Iterator[tuple[int, Iterator[Pair]]]:
    """Yield each translated sentence's number and translations, in the order of the corpus."""
    place = np.full((sentences, 2), -1, dtype=np.int64)  # batch of each sentence, and its row there
    starts = []  # per batch: the first hypothesis of each row, and the first token of each hypothesis
    for number, batch in enumerate(batches):
        place[batch.ids] = np.stack([np.full_like(batch.ids, number), np.arange(batch.ids.size)], axis=1)
        starts.append([np.concatenate([[0], sizes.cumsum()]) for sizes in (batch.counts, batch.lengths)])
    for sentence, (number, row) in enumerate(place.tolist()):
        if number >= 0:
            hypotheses = range(starts[number][0][row], starts[number][0][row + 1])
            yield (
                sentence,
                _translations(sentence, batches[number], hypotheses, first_token=starts[number][1]),
            )


def _translations(
    sentence: int, batch: TranslatedBatch, hypotheses: range, *, first_token: np.ndarray
) -> Iterator[Pair]:
    for number in hypotheses:
        tokens = batch.tokens[first_token[number] : first_token[number + 1]].astype(np.int64)
        yield Pair(
            sentence,
            "teacher",
            float(batch.scores[number]),
            torch.from_numpy(tokens),
            bool(batch.cut[number]),
        )


class _DropReason:
    """Returns the reason to drop a pair, or None. It remembers the pairs that it has seen.

    Args:
        corpus: the sentences.
        filters: which pairs to drop.
        text: turns a target into text.
    """

    def __init__(self, corpus: Corpus, filters: Filters, text: Callable[[Tensor], str]):
        self.corpus, self.filters, self.text = corpus, filters, text
        self._seen: set[bytes] = set()

    def __call__(self, pair: Pair) -> str | None:
        if pair.cut:
            return "cut"
        words, source_words = pair.target.numel() - 1, int(self.corpus.lengths[pair.sentence]) - 1
        # A short target may consist of subword marks only.
        if words == 0 or (words <= 2 and not self.text(pair.target).strip()):
            return "empty"
        longer, shorter = max(words, source_words), min(words, source_words)
        if self.filters.max_ratio and longer > self.filters.max_ratio * shorter:
            return "ratio"
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


def write(
    folder: Path,
    corpus: Corpus,
    kept: Iterator[Pair],
    *,
    languages: Languages,
    split: str,
    remove_bpe: str | None,
    total: int,
) -> None:
    """Write pairs as text into ``folder/text`` and as a data directory into ``folder/data-bin``.

    ``text`` holds ``SPLIT.SOURCE`` and ``SPLIT.TARGET``, line by line, and ``SPLIT.tsv`` with the columns
    sentence number from 0, origin, score, source and target. Sources that were given as text are that text;
    characters that some tools take for the end of a line become blanks. ``data-bin`` holds the same sentences
    binarised, the dictionaries, and the other splits of the data directory.

    Args:
        folder: where the two folders are made.
        corpus: the sources.
        kept: the pairs.
        languages: the languages and dictionaries of the data.
        split: name of the split.
        remove_bpe: subword mark to remove from text, by fairseq's name.
        total: number of pairs at most, for the progress bar.
    """
    text, data = folder / "text", folder / "data-bin"
    text.mkdir(parents=True)
    data.mkdir()
    prefix = data / f"{split}.{languages.source}-{languages.target}"
    with ExitStack() as opened:
        source_text, target_text, table = (
            opened.enter_context(open(text / f"{split}.{end}", "w", encoding="utf-8", newline="\n"))
            for end in (languages.source, languages.target, "tsv")
        )
        source_bin, target_bin = (
            opened.enter_context(dataset_builder(Path(f"{prefix}.{language}"), len(dictionary)))
            for language, dictionary in (
                (languages.source, languages.source_dictionary),
                (languages.target, languages.target_dictionary),
            )
        )
        sources = _source_texts(corpus, languages, remove_bpe)
        for pair in Bar(kept, total=total, desc="write", unit=" pairs"):
            source = _SEPARATORS.sub(" ", sources(pair.sentence))
            target = languages.target_dictionary.string(pair.target, remove_bpe)
            target = _SEPARATORS.sub(" ", target)
            score = "" if pair.score is None else f"{pair.score:.4f}"
            print(source, file=source_text)
            print(target, file=target_text)
            print(pair.sentence, pair.origin, score, source.replace("\t", " "), target, sep="\t", file=table)
            source_bin.add_item(corpus.sources[pair.sentence].long())
            target_bin.add_item(pair.target)
    _copy_rest(languages, data)


def _source_texts(corpus: Corpus, languages: Languages, remove_bpe: str | None) -> Callable[[int], str]:
    """Return a function from sentence numbers, which must not decrease, to the text of the sources."""
    if corpus.text is None:
        dictionary = languages.source_dictionary
        return lambda sentence: dictionary.string(corpus.sources[sentence].long(), remove_bpe)
    given, at, line = enumerate(read_lines(corpus.text)), -1, ""

    def read_on(sentence: int) -> str:
        nonlocal at, line
        while at < sentence:
            at, line = next(given)
        return line

    return read_on


def _copy_rest(languages: Languages, data: Path) -> None:
    """Copy the dictionaries and the validation and test splits of the data directory."""
    for language in (languages.source, languages.target):
        shutil.copy(languages.folder / f"dict.{language}.txt", data)
    for path in sorted(languages.folder.iterdir()):
        for pair in languages.pairs:
            found = re.fullmatch(rf"((?:valid|test)\d*)\.{re.escape(pair)}(\..+\.(?:bin|idx))", path.name)
            if found:
                # fairseq takes the languages from any file's name, so all files are named by one direction:
                # https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/data/data_utils.py#L28-L35
                copy = data / f"{found[1]}.{languages.pairs[0]}{found[2]}"
                if not copy.exists():
                    shutil.copy(path, copy)


def summary(counts: Counts, folder: Path) -> dict[str, Any]:
    """Return what the manifest says about a data set: counts, and each file's size in bytes and SHA-256."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "counts": asdict(counts),
        "files": {
            str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in files
        },
    }
