"""What the rows of evidence.py are compared by: word errors with several right answers, BLEU, or ROUGE-L.

BLEU is that against the test set's references, or against every right translation of its sentences.
"""

import base64
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import error_rates
import numpy as np

Test = dict[str, Any]  # the "test" of a row's JSON
Chance = tuple[float, tuple[float, float], float]  # a difference, its 95% interval, and p
RESAMPLES, SEED = 2_000, 12345


class Measure(Protocol):
    """A score of a recipe's models.

    Attributes:
        title, unit: name of the score, and ``%`` if it is a share in per cent.
        second: name of another score that stands beside it in the table.
        brought: the words for "a better score".
        less_is_better: whether the score is an error.
        bootstrap: what is resampled how often.
    """

    title: str
    unit: str
    second: str
    brought: str
    less_is_better: bool
    bootstrap: str

    def validation(self, found: dict[str, float]) -> float:
        """Return the score of a validation."""

    def test(self, run: Path, name: str) -> Test:
        """Return what is recorded of a decoded test set."""

    def scores(self, test: Test) -> tuple[float, float]:
        """Return the score and the second score of a test set."""

    def count(self, test: Test) -> str:
        """Return what the test set has, in words."""

    def chance(self, ones: Sequence[Test], others: Sequence[Test]) -> Chance:
        """Compare two rows, with a test for each seed, by a paired bootstrap. Return a two-sided p."""


class WordErrors:
    """Word and phoneme error rates of words that have several right answers."""

    title, unit, second, brought = "word errors", "%", "phoneme errors, %", "fewer word errors"
    less_is_better = True
    bootstrap = "the words, the same ones in every seed (10,000 resamples)"

    def validation(self, found: dict[str, float]) -> float:
        """See :class:`Measure`."""
        return 100 - found["exact"]

    def test(self, run: Path, name: str) -> Test:
        """See :class:`Measure`. Which words are right is packed into hexadecimal digits."""
        right = _right(run)
        found = error_rates.errors(_hypotheses(run, name), right)
        return {
            "word_errors": found.words,
            "phoneme_errors": found.phonemes,
            "words": len(right),
            "right": error_rates.packed(found.right),
        }

    def scores(self, test: Test) -> tuple[float, float]:
        """See :class:`Measure`."""
        return test["word_errors"], test["phoneme_errors"]

    def count(self, test: Test) -> str:
        """See :class:`Measure`."""
        return f"{test['words']:,} words"

    def chance(self, ones: Sequence[Test], others: Sequence[Test]) -> Chance:
        """See :class:`Measure`."""
        found = (
            np.stack([error_rates.unpacked(each["right"], each["words"]) for each in tests])
            for tests in (others, ones)  # fewer right words are more errors
        )
        return error_rates.chance(*found)


@dataclass(frozen=True)
class TextScore:
    """A score of raw text against one reference, and chrF.

    Args:
        title: its name in tables.
        flag: its name in ``--eval-metrics``.
        key: its name in ``metrics.jsonl``.
        scale: what one unit of its statistics is worth in the table: 100 for ROUGE, which is in 0..1.
    """

    title: str
    flag: str
    key: str
    scale: float = 1.0
    unit, second = "", "chrF"
    less_is_better = False
    bootstrap = f"the sentences, the same ones in every seed ({RESAMPLES:,} resamples)"

    @property
    def brought(self) -> str:
        """See :class:`Measure`."""
        return f"higher {self.title}"

    def validation(self, found: dict[str, float]) -> float:
        """See :class:`Measure`."""
        return self.scale * found[self.key]

    def test(self, run: Path, name: str) -> Test:
        """See :class:`Measure`. The statistics of each sentence, which add up to the score's, are packed."""
        hypotheses, references = _hypotheses(run, name), _lines(run / "raw" / f"test.{_target(run)}")
        scores = _corpus_scores(self.flag, "chrf")
        each = np.array(
            [
                scores.statistics([hypothesis], [reference])[self.key]
                for hypothesis, reference in zip(hypotheses, references, strict=True)
            ]
        )
        chrf = scores.score("chrf", scores.statistics(hypotheses, references)["chrf"])
        return {
            self.key: self._score(scores, each.sum(axis=0)),
            "chrf": chrf,
            "sentences": len(references),
            "signatures": scores.signatures(),
            "statistics": packed(each),
        }

    def _score(self, scores: Any, sums: np.ndarray) -> float:
        return self.scale * scores.score(self.key, [float(each) for each in sums])

    def scores(self, test: Test) -> tuple[float, float]:
        """See :class:`Measure`."""
        return test[self.key], test["chrf"]

    def count(self, test: Test) -> str:
        """See :class:`Measure`."""
        return f"{test['sentences']:,} sentences"

    def chance(self, ones: Sequence[Test], others: Sequence[Test]) -> Chance:
        """See :class:`Measure`. A resample has the same sentences in every seed and in both rows."""
        scores, sentences = _corpus_scores(self.flag), ones[0]["sentences"]
        shares = np.full(sentences, 1 / sentences)
        drawn = np.random.default_rng(SEED).multinomial(sentences, shares, RESAMPLES).astype(float)

        def of(tests: Sequence[Test], counts: np.ndarray) -> np.ndarray:
            """Return the mean score over the seeds for each row of counts."""
            sums = [counts @ unpacked(each["statistics"], sentences) for each in tests]
            return np.mean([[self._score(scores, row) for row in each] for each in sums], axis=0)

        whole = np.ones((1, sentences))
        difference = float(of(ones, whole)[0] - of(others, whole)[0])
        differences = of(ones, drawn) - of(others, drawn)
        low, high = np.percentile(differences, [2.5, 97.5])
        tail = min((differences <= 0).sum(), (differences >= 0).sum())
        p = min(1.0, 2 * (int(tail) + 1) / (RESAMPLES + 1))
        return difference, (float(low), float(high)), p


@dataclass(frozen=True)
class EveryBleu(TextScore):
    """BLEU of words against every right translation of a sentence, and the share of right translations.

    A validation compares with one of the right translations.
    """

    second = "right, %"

    def test(self, run: Path, name: str) -> Test:
        """See :class:`Measure`. The statistics are packed as those of :class:`TextScore`."""
        from sacrebleu.metrics import BLEU

        hypotheses, right = _hypotheses(run, name), _right(run)
        columns = [list(column) for column in zip_longest(*right)]
        whole = BLEU(tokenize="none")
        score = whole.corpus_score(hypotheses, columns).score
        of_sentence = BLEU(tokenize="none", effective_order=True)  # the order changes no statistics
        found = [of_sentence.sentence_score(one, every) for one, every in zip(hypotheses, right, strict=True)]
        each = np.array([[one.sys_len, one.ref_len, *one.counts, *one.totals] for one in found], float)
        correct = [one in every for one, every in zip(hypotheses, right, strict=True)]
        return {
            self.key: score,
            "right": 100 * sum(correct) / len(correct),
            "sentences": len(right),
            "signatures": {self.key: str(whole.get_signature())},
            "statistics": packed(each),
        }

    def scores(self, test: Test) -> tuple[float, float]:
        """See :class:`Measure`."""
        return test[self.key], test["right"]


MEASURES: dict[str, Measure] = {
    "word_errors": WordErrors(),
    "bleu": TextScore("BLEU", "bleu", "bleu"),
    "every-bleu": EveryBleu("BLEU", "bleu", "bleu"),
    "rouge-l": TextScore("ROUGE-L", "rouge-l", "rougeL", scale=100.0),
}


def of_record(record: dict[str, Any]) -> Measure:
    """Return the measure of a row. Rows of early versions have none; they are of word errors."""
    return MEASURES[record.get("measure", "word_errors")]


def titled(measure: Measure) -> str:
    """Return a score's title with its unit."""
    return f"{measure.title}, {measure.unit}" if measure.unit else measure.title


def best_of(measure: Measure) -> Callable[..., Any]:
    """Return the function that finds the best of several scores."""
    return min if measure.less_is_better else max


def packed(statistics: np.ndarray) -> str:
    """Return statistics ``(sentences, K)`` as compressed text; fractions keep four digits."""
    whole = np.rint(statistics * 10_000).astype("<u4")
    return base64.b64encode(zlib.compress(whole.T.tobytes(), 9)).decode()


def unpacked(text: str, sentences: int) -> np.ndarray:
    """Return statistics ``(sentences, K)`` that :func:`packed` packed."""
    whole = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u4")
    return whole.reshape(-1, sentences).T / 10_000


def _corpus_scores(*names: str) -> Any:
    """Return the scores of a corpus. Importing the package is slow and sets up logging, so it comes late."""
    from fairseq_imitkd.text.scores import CorpusScores

    return CorpusScores(names)


def _hypotheses(run: Path, name: str) -> list[str]:
    from quickstart.scoring import read_hypotheses

    return read_hypotheses(run / name / "test.txt")


def _right(run: Path) -> list[list[str]]:
    """Return all right answers of each item of the test set."""
    return [line.split("\t") for line in _lines(run / "raw" / "test.all")]


def _target(run: Path) -> str:
    """Return the language of a run's references. The data of a language model names none; the text does."""
    from fairseq_imitkd.data.directory import languages_of_files

    if (run / "data-bin" / "dict.txt").exists():
        return "tgt"
    return languages_of_files(run / "data-bin")[1]


def _lines(path: Path) -> list[str]:
    """Return a file's lines; ``splitlines`` would also split at other characters than line feeds."""
    return path.read_text("utf-8").removesuffix("\n").split("\n")
