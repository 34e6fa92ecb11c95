"""Scores of translations and summaries from statistics that add up over sentences, batches and processes.

BLEU, chrF and TER are sacreBLEU's. ROUGE is rouge-score's F1 with stemming. ``exact`` is the share of
sentences that equal their reference, in per cent. The score of the summed
statistics is the score that the package gives the whole corpus.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

from sacrebleu.metrics import BLEU, CHRF, TER

from fairseq_imitkd.errors import UsageError

# The name of a score on the command line, and its name in logs and in imitkd-evaluate.
SCORES = {
    "bleu": "bleu",
    "chrf": "chrf",
    "ter": "ter",
    "rouge-1": "rouge1",
    "rouge-2": "rouge2",
    "rouge-l": "rougeL",
    "exact": "exact",
}
TITLES = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "ter": "TER",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
}
LESS_IS_BETTER = ("ter",)
DIGITS, ROUGE_DIGITS = 2, 4  # decimals in logs; ROUGE is in 0..1, the others are in per cent


@cache
def rouge_scorer(kinds: tuple[str, ...]) -> Any:
    """Return rouge-score's scorer with stemming. The package takes a second to import.

    Args:
        kinds: names such as ``rouge1``, ``rouge2`` and ``rougeL``.
    """
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(kinds), use_stemmer=True)


def rouge_signature() -> str:
    """Return the settings with which ROUGE scores are comparable, in the form of sacreBLEU's signatures."""
    return f"rouge-score|F1|stemmed|version:{version('rouge-score')}"


def check_installed(flag: str, names: Sequence[str]) -> None:
    """Refuse ROUGE if rouge-score is not installed.

    Args:
        flag: flag and value, for the message.
        names: keys of :data:`SCORES`.

    Raises:
        UsageError: rouge-score is needed and not installed.
    """
    kinds = tuple(SCORES[name] for name in names if name.startswith("rouge"))
    try:
        if kinds:
            rouge_scorer(kinds)
    except ImportError as error:
        raise UsageError(f"{flag} needs rouge-score; pip install rouge-score, or leave ROUGE out") from error


class CorpusScores:
    """Scores of a corpus whose parts arrive one after another, or in several processes.

    Args:
        names: keys of :data:`SCORES`.
        tokenized: let BLEU split text at spaces instead of into sacreBLEU's 13a tokens.
    """

    def __init__(self, names: Sequence[str], tokenized: bool = False):
        one_reference = {"references": [[""]]}  # signatures name the number of references
        metrics = {
            "bleu": BLEU(tokenize="none" if tokenized else None, **one_reference),
            "chrf": CHRF(**one_reference),
            "ter": TER(**one_reference),
        }
        self.names = [SCORES[name] for name in names]
        self._metrics: dict[str, Any] = {name: metrics[name] for name in self.names if name in metrics}
        self._rouge = tuple(name for name in self.names if name.startswith("rouge"))

    def signatures(self) -> dict[str, str]:
        """Return the settings with which each score is comparable, by the score's logged name."""
        own = {name: str(metric.get_signature()) for name, metric in self._metrics.items()}
        own |= {"exact": "case:mixed"} | dict.fromkeys(self._rouge, rouge_signature() if self._rouge else "")
        return {name: own[name] for name in self.names}

    def statistics(self, hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
        """Return the summed statistics of ``N`` sentences, by the score's logged name.

        The number of values depends on the score alone.

        Args:
            hypotheses: ``N`` lines; at least one.
            references: ``N`` lines.
        """
        found: dict[str, list[float]] = {}
        for name, metric in self._metrics.items():
            rows = metric._extract_corpus_statistics(hypotheses, [references])
            found[name] = [float(sum(column)) for column in zip(*rows, strict=True)]
        if self._rouge:
            scorer = rouge_scorer(self._rouge)
            pairs = zip(hypotheses, references, strict=True)
            scores = [scorer.score(reference, hypothesis) for hypothesis, reference in pairs]
            for kind in self._rouge:
                found[kind] = [float(sum(score[kind].fmeasure for score in scores)), float(len(scores))]
        if "exact" in self.names:
            equal = sum(one == other for one, other in zip(hypotheses, references, strict=True))
            found["exact"] = [float(equal), float(len(references))]
        return {name: found[name] for name in self.names}

    def score(self, name: str, sums: Sequence[float]) -> float:
        """Return the score of all sentences whose statistics were added up, rounded for the log.

        Args:
            name: logged name of the score.
            sums: sums of its statistics.
        """
        if name in self._metrics:
            return round(float(self._metrics[name]._compute_score_from_stats(list(sums)).score), DIGITS)
        total, sentences = sums
        if name == "exact":
            return round(100 * total / sentences, DIGITS)
        return round(total / sentences, ROUGE_DIGITS)


def named_values(statistics: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return each value under its own name (``_chrf_0``, …), since fairseq sums single numbers."""
    return {
        f"_{name}_{place}": value for name, values in statistics.items() for place, value in enumerate(values)
    }
