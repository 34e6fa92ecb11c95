"""Scores of translations and summaries from statistics that add up over sentences, batches and processes.

BLEU, chrF and TER are sacreBLEU's own, ROUGE is rouge-score's F1 with stemming: what they say of a whole corpus is what is
made here of the sums of its parts.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

from sacrebleu.metrics import BLEU, CHRF, TER

from fairseq_imitkd.errors import UsageError

# What stands for an unknown word. No letter of the one is in the other, so that the two match in no metric.
UNKNOWN_IN_HYPOTHESIS, UNKNOWN_IN_REFERENCE = "xzxzx", "kvkvk"

# What users type, and the name under which the score is logged: that of imitkd-evaluate and of the package that computes it.
SCORES = {
    "bleu": "bleu",
    "chrf": "chrf",
    "ter": "ter",
    "rouge-1": "rouge1",
    "rouge-2": "rouge2",
    "rouge-l": "rougeL",
}
LESS_IS_BETTER = ("ter",)
DIGITS, ROUGE_DIGITS = 2, 4  # that are logged, of 0..100 (TER may be more) and of 0..1


@cache
def rouge_scorer(kinds: tuple[str, ...]) -> Any:
    """rouge-score's scorer of ``rouge1``, ``rouge2``, ``rougeL``, …, with stemming. The package takes a second to import."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(kinds), use_stemmer=True)


def rouge_signature() -> str:
    """What a ROUGE score must be given with to be comparable, in the manner of sacreBLEU's signatures."""
    return f"rouge-score|F1|stemmed|version:{version('rouge-score')}"


def check_installed(flag: str, names: Sequence[str]) -> None:
    """Refuse ROUGE where rouge-score is not there.

    Args:
        flag: with its value, to name in the message.
        names: keys of :data:`SCORES`.

    Raises:
        UsageError: naming the flag and what to install.
    """
    kinds = tuple(SCORES[name] for name in names if name.startswith("rouge"))
    try:
        if kinds:
            rouge_scorer(kinds)
    except ImportError as error:
        raise UsageError(f"{flag} needs rouge-score: pip install rouge-score, or leave ROUGE out") from error


class CorpusScores:
    """Several scores of a corpus whose parts come one after another, or to several processes.

    Args:
        names: keys of :data:`SCORES`.
        tokenized: BLEU takes words as they are instead of sacreBLEU's 13a tokens.
    """

    def __init__(self, names: Sequence[str], tokenized: bool = False):
        one = {"references": [[""]]}  # reference a sentence, which a signature tells of
        metrics = {
            "bleu": BLEU(tokenize="none" if tokenized else None, **one),
            "chrf": CHRF(**one),
            "ter": TER(**one),
        }
        self.names = [SCORES[name] for name in names]
        self._metrics: dict[str, Any] = {name: metrics[name] for name in self.names if name in metrics}
        self._rouge = tuple(name for name in self.names if name not in metrics)

    def signatures(self) -> dict[str, str]:
        """What each score must be given with to be comparable, by the name of the score."""
        return {
            name: str(self._metrics[name].get_signature()) if name in self._metrics else rouge_signature()
            for name in self.names
        }

    def statistics(self, hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, list[float]]:
        """What is added up of ``N`` sentences, by the name of the score: of a score always as many numbers.

        Args:
            hypotheses, references: ``N`` lines each, of which there is at least one.
        """
        found: dict[str, list[float]] = {}
        for name, metric in self._metrics.items():
            rows = metric._extract_corpus_statistics(hypotheses, [references])
            found[name] = [float(sum(column)) for column in zip(*rows, strict=True)]
        if self._rouge:
            scorer = rouge_scorer(self._rouge)
            every = [
                scorer.score(reference, text) for text, reference in zip(hypotheses, references, strict=True)
            ]
            found.update(
                {
                    kind: [float(sum(each[kind].fmeasure for each in every)), float(len(every))]
                    for kind in self._rouge
                }
            )
        return {name: found[name] for name in self.names}

    def score(self, name: str, sums: Sequence[float]) -> float:
        """The score of all sentences whose statistics were added up, rounded to as many digits as are logged."""
        if name in self._metrics:
            return round(float(self._metrics[name]._compute_score_from_stats(list(sums)).score), DIGITS)
        total, sentences = sums
        return round(total / sentences, ROUGE_DIGITS)


def flat(statistics: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The numbers one by one under names of their own, as fairseq's processes add them up: ``_chrf_0``, ``_chrf_1``, …"""
    return {
        f"_{name}_{place}": value for name, values in statistics.items() for place, value in enumerate(values)
    }
