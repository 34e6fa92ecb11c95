"""Translations made a data set: chosen, filtered, counted, and written as text and as fairseq's data directory."""

import hashlib
import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fairseq_imitkd.data.corpus import Corpus, Languages, lines, whole_dataset
from fairseq_imitkd.data.files import sha256
from fairseq_imitkd.engines.base import Translated
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.rollout import RandomKey

GOLD = 7  # the stream of random numbers that draws the references to keep
_SEPARATORS = re.compile(
    "[\r\v\f\x1c-\x1e\x85\u2028\u2029]"
)  # beside a line feed, where some tools end a line


@dataclass(frozen=True)
class Filters:
    """Which pairs are left out, and which references are added.

    Args:
        max_ratio: of the longer side's tokens to the shorter's; 0 lets all pass.
        dedup: leave out a pair that was there before.
        mix_gold: share of the translated sentences whose reference is written too, beside the translation.
        seed: which ones.

    Raises:
        UsageError: a value is out of range.
    """

    max_ratio: float = 0.0
    dedup: bool = False
    mix_gold: float = 0.0
    seed: int = 1

    def __post_init__(self) -> None:
        if self.max_ratio != 0.0 and not 1.0 <= self.max_ratio < math.inf:
            raise UsageError(f"--max-ratio must be 1 or more, or 0 to let all pass, but is {self.max_ratio}")
        if not 0.0 <= self.mix_gold <= 1.0:
            raise UsageError(f"--mix-gold must be in 0..1, but is {self.mix_gold}")


@dataclass(frozen=True)
class Pair:
    """A line of the output.

    Args:
        sentence: its number in the corpus.
        origin: ``teacher`` or ``gold``.
        score: of a translation.
        target: ``(T,)`` int64 with its EOS.
    """

    sentence: int
    origin: str
    score: float | None
    target: Tensor


@dataclass
class Counts:
    """What became of every sentence, for the manifest. References that were drawn are ``gold``, dropped or not."""

    sentences: int = 0
    too_long: int = 0
    empty_sources: int = 0
    translations: int = 0
    dropped: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("cut", "empty", "ratio", "duplicate"), 0)
    )
    gold: int = 0
    written: int = 0

    def check(self, translated_sentences: int, of_each: int) -> None:
        """Nothing may be lost or doubled.

        Raises:
            RuntimeError: a sentence is unaccounted for. This is a defect of ours, never the user's mistake.
        """
        expected = (self.sentences - self.too_long - self.empty_sources) * of_each
        if self.translations != expected or translated_sentences * of_each != expected:
            raise RuntimeError(f"{expected} translations were expected, but {self.translations} are there")
        if self.written != self.translations + self.gold - sum(self.dropped.values()):
            raise RuntimeError(f"the counts do not add up: {self}")


def pairs(
    corpus: Corpus,
    found: Sequence[Translated],
    filters: Filters,
    counts: Counts,
    text: Callable[[Tensor], str],
) -> Iterator[Pair]:
    """All pairs in the corpus' order, a sentence's translations before its reference; what is left out is counted.

    ``text`` makes a target words.
    """
    place = np.full((len(corpus), 2), -1, dtype=np.int64)  # (batch, row in it)
    starts = []
    for number, batch in enumerate(found):
        place[batch.ids] = np.stack([np.full_like(batch.ids, number), np.arange(batch.ids.size)], axis=1)
        hypothesis = np.concatenate([[0], batch.counts.cumsum()])
        starts.append((hypothesis, np.concatenate([[0], batch.lengths.cumsum()])))
    draws = RandomKey(filters.seed, 0, GOLD).uniforms(torch.arange(len(corpus)))
    is_gold = draws.lt(filters.mix_gold).tolist()
    seen: set[bytes] = set()
    for sentence, (number, row) in enumerate(place.tolist()):
        if number < 0:
            continue
        batch, (first_of_row, first_token) = found[number], starts[number]
        its = []
        for h in range(first_of_row[row], first_of_row[row + 1]):
            counts.translations += 1
            tokens = torch.from_numpy(batch.tokens[first_token[h] : first_token[h + 1]].astype(np.int64))
            its.append((Pair(sentence, "teacher", float(batch.scores[h]), tokens), bool(batch.cut[h])))
        if is_gold[sentence]:
            assert corpus.references is not None
            counts.gold += 1
            its.append((Pair(sentence, "gold", None, corpus.references[sentence].long()), False))
        for pair, cut in its:
            reason = _why_not(pair, cut, corpus, filters, seen, text)
            if reason:
                counts.dropped[reason] += 1
            else:
                counts.written += 1
                yield pair


def _why_not(
    pair: Pair, cut: bool, corpus: Corpus, filters: Filters, seen: set[bytes], text: Callable[[Tensor], str]
) -> str | None:
    """What a pair is left out for."""
    if cut:
        return "cut"
    words, source_words = pair.target.numel() - 1, int(corpus.lengths[pair.sentence]) - 1
    if words == 0 or (words <= 2 and not text(pair.target).strip()):  # subwords may be marks alone
        return "empty"
    if filters.max_ratio and max(words, source_words) > filters.max_ratio * min(words, source_words):
        return "ratio"
    if filters.dedup:
        source = corpus.sources[pair.sentence].numpy().astype(np.int64).tobytes()
        digest = hashlib.blake2b(
            source + b"\xff" * 8 + pair.target.numpy().tobytes(), digest_size=16
        ).digest()
        if digest in seen:
            return "duplicate"
        seen.add(digest)
    return None


def write(
    folder: Path,
    languages: Languages,
    corpus: Corpus,
    split: str,
    written: Iterator[Pair],
    remove_bpe: str | None,
    total: int,
) -> None:
    """Text and a data directory, in ``folder/text`` and ``folder/data-bin``.

    ``text`` holds ``SPLIT.SOURCE`` and ``SPLIT.TARGET``, line by line, and ``SPLIT.tsv``: the sentence's number from 0,
    whose the target is, its score, source and target. Sources that were given as text are that text, with blanks for what
    some tools take for a line's end. ``data-bin`` holds
    the same sentences binarised, the dictionaries, and the other splits of the data directory that they came from.
    """
    text, data = folder / "text", folder / "data-bin"
    text.mkdir(parents=True)
    data.mkdir()
    source_dictionary, target_dictionary = languages.source_dictionary, languages.target_dictionary
    prefix = data / f"{split}.{languages.source}-{languages.target}"
    sides = (languages.source, languages.target)
    with (
        open(text / f"{split}.{languages.source}", "w", encoding="utf-8", newline="\n") as source_text,
        open(text / f"{split}.{languages.target}", "w", encoding="utf-8", newline="\n") as target_text,
        open(text / f"{split}.tsv", "w", encoding="utf-8", newline="\n") as table,
        whole_dataset(Path(f"{prefix}.{languages.source}"), len(source_dictionary)) as source_bin,
        whole_dataset(Path(f"{prefix}.{languages.target}"), len(target_dictionary)) as target_bin,
    ):
        given = enumerate(lines(corpus.text)) if corpus.text else None
        at, source = -1, ""
        for pair in tqdm(written, total=total, desc="write", unit=" pairs", mininterval=1.0):
            ids = corpus.sources[pair.sentence].long()
            target = _SEPARATORS.sub(" ", target_dictionary.string(pair.target, remove_bpe))
            if given is None:
                source = source_dictionary.string(ids, remove_bpe)
            while given is not None and at < pair.sentence:
                at, source = next(given)
            source = _SEPARATORS.sub(" ", source)
            score = "" if pair.score is None else f"{pair.score:.4f}"
            print(source, file=source_text)
            print(target, file=target_text)
            print(pair.sentence, pair.origin, score, source.replace("\t", " "), target, sep="\t", file=table)
            source_bin.add_item(ids)
            target_bin.add_item(pair.target)
    for language in sides:
        shutil.copy(languages.folder / f"dict.{language}.txt", data)
    for path in sorted(languages.folder.iterdir()):
        for pair_name in languages.pairs:
            # Under one name for both directions: fairseq takes the languages from any file's.
            found = re.fullmatch(
                rf"((?:valid|test)\d*)\.{re.escape(pair_name)}(\..+\.(?:bin|idx))", path.name
            )
            if found and not (copy := data / f"{found[1]}.{languages.pairs[0]}{found[2]}").exists():
                shutil.copy(path, copy)


def summary(counts: Counts, folder: Path) -> dict[str, Any]:
    """What the manifest says of the finished data set: counts, and each file's bytes and SHA-256."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "counts": asdict(counts),
        "files": {
            str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in files
        },
    }
