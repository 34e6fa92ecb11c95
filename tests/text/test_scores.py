"""Scores of summed statistics are the scores that sacreBLEU and rouge-score give all sentences at once."""

import random
import sys
from importlib.metadata import version

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.text.rewards import chrf, rouge_l
from fairseq_imitkd.text.scored import UNKNOWN_IN_HYPOTHESIS, UNKNOWN_IN_REFERENCE
from fairseq_imitkd.text.scores import (
    SCORES,
    CorpusScores,
    check_installed,
    named_values,
    rouge_signature,
)

WORDS = [
    "the", "a", "dog", "dogs", "runs", "running", "over", "fields,", "quickly", "and", "then,", "it",
    "sleeps.", "Häuser", "3.5", "well-known", "(again)",
]  # fmt: skip


def corpus(seed: int, count: int = 40) -> tuple[list[str], list[str]]:
    """References and altered copies of them; one copy is empty, one is unchanged."""
    draw = random.Random(seed)
    references = [" ".join(draw.choices(WORDS, k=draw.randint(1, 14))) for _ in range(count)]
    hypotheses = [
        " ".join(
            draw.choice([word, word, draw.choice(WORDS), "", word + " " + word]) for word in line.split()
        ).strip()
        for line in references
    ]
    hypotheses[0], hypotheses[1] = "", references[1]
    return hypotheses, references


def whole(name: str, hypotheses: list[str], references: list[str]) -> float:
    """The score that the package gives the corpus."""
    if name in ("bleu", "chrf", "ter"):
        return getattr(sacrebleu, f"corpus_{name}")(hypotheses, [references]).score
    if name == "exact":
        return 100 * sum(map(str.__eq__, hypotheses, references)) / len(references)
    scorer = RougeScorer([name], use_stemmer=True)
    pairs = zip(references, hypotheses, strict=True)
    return sum(scorer.score(*pair)[name].fmeasure for pair in pairs) / len(references)


@pytest.mark.parametrize("parts", [1, 3, 40])
@pytest.mark.parametrize("name", SCORES)
def test_sums_of_parts_are_the_corpus(name: str, parts: int) -> None:
    """Exactly, for every division of the sentences, and with other scores or alone."""
    hypotheses, references = corpus(parts)
    logged = SCORES[name]
    for names in ([name], list(SCORES)):
        scores = CorpusScores(names)
        found = [scores.statistics(hypotheses[n::parts], references[n::parts])[logged] for n in range(parts)]
        sums = [sum(column) for column in zip(*found, strict=True)]
        expected = round(whole(logged, hypotheses, references), 4 if name.startswith("rouge") else 2)
        assert scores.score(logged, sums) == expected
        assert 0 < expected < (1 if name.startswith("rouge") else 100)


def test_statistics_have_one_shape() -> None:
    """Processes add them up by position, so names, counts and order do not depend on the sentences."""
    scores = CorpusScores(["rouge-l", "chrf", "bleu"])
    found = [scores.statistics(*pair) for pair in (([""], [""]), (["a b c d e"], ["a"]), corpus(5))]
    shapes = [[(name, len(values)) for name, values in each.items()] for each in found]
    assert shapes == [[("rougeL", 2), ("chrf", 18), ("bleu", 10)]] * 3
    assert list(named_values(found[0]))[:3] == ["_rougeL_0", "_rougeL_1", "_chrf_0"]
    assert all(type(value) is float for each in found for value in named_values(each).values())


def test_empty_hypotheses_cause_no_error() -> None:
    """An untrained student may write nothing at all."""
    scores = CorpusScores(list(SCORES))
    found = {
        name: scores.score(name, sums) for name, sums in scores.statistics(["", ""], ["a b", "c"]).items()
    }
    rouge = dict.fromkeys(("rouge1", "rouge2", "rougeL"), 0.0)
    assert found == {"bleu": 0.0, "chrf": 0.0, "ter": 100.0, "exact": 0.0, **rouge}


def test_tokenized_bleu() -> None:
    """Words are split at spaces, here other ones than 13a's."""
    hypotheses, references = corpus(7)
    scores = CorpusScores(["bleu"], tokenized=True)
    found = scores.score("bleu", scores.statistics(hypotheses, references)["bleu"])
    assert found == round(sacrebleu.corpus_bleu(hypotheses, [references], tokenize="none").score, 2)
    assert found != round(whole("bleu", hypotheses, references), 2)
    assert "tok:none" in scores.signatures()["bleu"]


def test_signatures_are_the_packages_own() -> None:
    """sacreBLEU's signatures after scoring; one of the same form for ROUGE."""
    found = CorpusScores(list(SCORES)).signatures()
    assert found.keys() == set(SCORES.values())
    for name, kind in (("bleu", "BLEU"), ("chrf", "CHRF"), ("ter", "TER")):
        metric = getattr(sacrebleu, kind)()
        metric.corpus_score(["a"], [["a"]])
        assert found[name] == str(metric.get_signature())
    assert found["rougeL"] == rouge_signature() == f"rouge-score|F1|stemmed|version:{version('rouge-score')}"


def test_unknown_words_match_in_no_metric() -> None:
    """Neither as words nor by characters."""
    assert chrf(UNKNOWN_IN_HYPOTHESIS, UNKNOWN_IN_REFERENCE) == 0.0
    assert rouge_l(UNKNOWN_IN_HYPOTHESIS, UNKNOWN_IN_REFERENCE) == 0.0


def test_rouge_score_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says what to install; the other scores do not need it."""
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    kinds = ["rouge-2", "chrf", "rouge-1"]  # in a combination that no other test has cached
    check_installed("--eval-metrics chrf", ["chrf", "bleu", "ter"])
    with pytest.raises(UsageError) as caught:
        check_installed("--eval-metrics " + ",".join(kinds), kinds)
    assert str(caught.value) == (
        "--eval-metrics rouge-2,chrf,rouge-1 needs rouge-score; pip install rouge-score, or leave ROUGE out"
    )
