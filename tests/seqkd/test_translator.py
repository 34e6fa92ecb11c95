"""Which hypotheses of a batch are kept, how they are recorded, and how far two engines agree."""

import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from fairseq.data import Dictionary
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor

from fairseq_imitkd.checkpoints.comet import CometSimilarity
from fairseq_imitkd.engines.base import Hypothesis, SearchSettings
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.seqkd.translator import TranslatedBatch, Translator, agreement
from fairseq_imitkd.teacher.teacher import Teacher
from tests.helpers import comet_models
from tests.helpers.engines import EOS, UNK, fairseq_engine, sentences
from tests.helpers.fairseq_models import build_student, letters


def per_metric(name: str, hypothesis: str, reference: str) -> float:
    """The library's own function, not through the package."""
    if name == "sentence-bleu":
        return sacrebleu.sentence_bleu(hypothesis, [reference], use_effective_order=True).score
    if name == "chrf":
        return sacrebleu.sentence_chrf(hypothesis, [reference]).score
    return RougeScorer(["rougeL"], use_stemmer=True).score(reference, hypothesis)["rougeL"].fmeasure


@pytest.mark.parametrize("metric", ["sentence-bleu", "chrf", "rouge-l"])
def test_best_is_the_most_like_the_reference(metric: str) -> None:
    """Of the n best by the library's own score; of equals the more probable. It is not just the first."""
    settings = SearchSettings("best", beam=8, nbest=6, metric=metric)
    sources = sentences(16)
    references = [torch.cat([source[:-1].flip(0), source[-1:]]) for source in sources]
    own = fairseq_engine(settings)
    kept = Translator(own, letters()).translate(range(16), sources, references)
    assert kept.counts.tolist() == [1] * 16
    starts = itertools.accumulate(kept.lengths.tolist(), initial=0)
    places = []
    for start, length, score, every, reference in zip(
        starts, kept.lengths, kept.scores, own.translate(range(16), sources, 6), references, strict=False
    ):
        assert len(every) == 6
        scores = [
            per_metric(metric, letters().string(each.tokens), letters().string(reference)) for each in every
        ]
        best = scores.index(max(scores))
        assert kept.tokens[start : start + length].tolist() == every[best].tokens.tolist()
        assert score == pytest.approx(every[best].score)
        places.append(best)
    assert max(places) > 0, "otherwise the first would do"


@pytest.mark.parametrize("metric", ["sentence-bleu", "chrf", "rouge-l"])
@pytest.mark.parametrize("of", [{"samples": 12}, {"beam": 8, "nbest": 8}])
def test_minimum_bayes_risk_is_the_most_like_all_others(metric: str, of: dict[str, int]) -> None:
    """By the library's own score of every pair. Of equal texts one is kept, the more probable first."""
    settings = SearchSettings("mbr", metric=metric, keep=3, **of)
    sources = sentences(10)
    own = fairseq_engine(settings)
    translator = Translator(own, letters())
    kept = translator.translate(range(10), sources, None)
    texts = translator.text.hypotheses(kept.token_tensors())
    changes, at = 0, 0
    for every, number in zip(own.translate(range(10), sources, 8), kept.counts.tolist(), strict=True):
        found = translator.text.hypotheses(each.tokens for each in every)
        utility = {
            text: sum(per_metric(metric, text, other) for other in found) / len(found) for text in found
        }
        assert number == min(3, len(utility))
        best = sorted(utility.values(), reverse=True)[:number]
        mine = texts[at : at + number]
        assert len(set(mine)) == number
        assert [utility[text] for text in mine] == pytest.approx(best)
        changes += mine[0] != found[0]
        at += number
    assert changes > 0, "otherwise the first would do"


@pytest.mark.parametrize("select", ["mbr", "best"])
def test_comet_reads_the_source_too(select: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its score of each pair decides, by its definition."""
    monkeypatch.setitem(sys.modules, "comet", comet_models.package(comet_models.Model(), []))
    torch.save({}, tmp_path / "model.ckpt")
    settings = SearchSettings(select, metric="comet", beam=8, nbest=8)
    own, sources = fairseq_engine(settings), sentences(10)
    references = [torch.cat([source[:-1].flip(0), source[-1:]]) for source in sources]
    comet = CometSimilarity(tmp_path / "model.ckpt", torch.device("cpu"))
    translator = Translator(own, letters(), sources=letters(), comet=comet)
    kept = translator.translate(range(10), sources, references)
    texts, changes = translator.text.hypotheses(kept.token_tensors()), 0
    every = zip(sources, references, own.translate(range(10), sources, 8), texts, strict=True)
    for source, reference, hypotheses, text in every:
        found = translator.text.hypotheses(each.tokens for each in hypotheses)
        compared = found if select == "mbr" else [letters().string(reference)]
        scores = {
            each: sum(comet_models.score(letters().string(source), each, other) for other in compared)
            for each in found
        }
        assert scores[text] == pytest.approx(max(scores.values()))
        changes += text != found[0]
    assert changes > 0, "otherwise the first would do"


def test_several_of_the_beam() -> None:
    settings = SearchSettings("first", beam=4, keep=3)
    kept = Translator(fairseq_engine(settings), letters()).translate(range(5), sentences(5), None)
    every = fairseq_engine(SearchSettings("first", beam=4)).translate(range(5), sentences(5), 4)
    assert kept.counts.tolist() == [3] * 5
    assert kept.scores.tolist() == pytest.approx([each.score for some in every for each in some[:3]])


def test_groups_of_a_diverse_beam_avoid_each_others_tokens() -> None:
    """As fairseq's own search does; with no strength the groups are equal."""
    sources, ids = sentences(12), range(12)

    def different_first_tokens(**settings: Any) -> int:
        found = fairseq_engine(SearchSettings("first", beam=4, **settings)).translate(ids, sources, 4)
        return sum(len({int(each.tokens[0]) for each in some}) for some in found)

    assert different_first_tokens(diverse_beam_groups=4, diverse_beam_strength=50.0) == 4 * 12
    assert different_first_tokens(diverse_beam_groups=4, diverse_beam_strength=0.0) == 12


class Scripted:
    """An engine that returns the hypotheses that it was given."""

    def __init__(self, settings: SearchSettings, *hypotheses: Hypothesis):
        self.settings, self.hypotheses = settings, list(hypotheses)

    def translate(self, ids: Sequence[int], sources: Sequence[Tensor], nbest: int) -> list[list[Hypothesis]]:
        return [self.hypotheses[:nbest] for _ in ids]


def hypothesis(*tokens: int, score: float = -1.0, cut: bool = False) -> Hypothesis:
    return Hypothesis(torch.tensor([*tokens, EOS]), score, cut)


def chosen(
    settings: SearchSettings,
    reference: Sequence[int],
    *hypotheses: Hypothesis,
    dictionary: Dictionary | None = None,
) -> list[int]:
    source, target = torch.tensor([4, EOS]), torch.tensor([*reference, EOS])
    translator = Translator(Scripted(settings, *hypotheses), dictionary or letters())
    return translator.translate([0], [source], [target]).tokens.tolist()


def test_best_chooses_among_nbest_only() -> None:
    """Though the beam is wider."""
    hypotheses = [hypothesis(9, 9), hypothesis(4, 9), hypothesis(4, 5)]
    best = {"select": "best", "beam": 5, "metric": "chrf"}
    assert chosen(SearchSettings(nbest=3, **best), [4, 5], *hypotheses) == [4, 5, EOS]
    assert chosen(SearchSettings(nbest=2, **best), [4, 5], *hypotheses) == [4, 9, EOS]


def test_unknown_words_match_nothing() -> None:
    """Nor each other."""
    settings = SearchSettings("best", nbest=2, metric="chrf")
    assert chosen(settings, [UNK, 5], hypothesis(UNK, 9), hypothesis(9, 5)) == [9, 5, EOS]


def test_subwords_are_joined_for_the_metric() -> None:
    """``a@@ b`` is the word ``ab`` then, and ``a`` is not like it."""
    dictionary = letters(["a@@", "b", "ab", "a"])
    hypotheses = [hypothesis(7), hypothesis(6)]
    for marks, expected in (("@@ ", 6), (None, 7)):
        settings = SearchSettings("best", nbest=2, metric="rouge-l", remove_bpe=marks)
        # Without the marks undone, rouge's own tokens of "a@@ b" are "a" and "b".
        assert chosen(settings, [4, 5], *hypotheses, dictionary=dictionary) == [expected, EOS]


def test_what_is_kept_of_a_batch() -> None:
    """Every array, hypotheses one sentence after another."""
    settings = SearchSettings("sample", samples=2)
    some = [hypothesis(4, 5, score=-0.5), hypothesis(6, score=-0.25, cut=True)]
    kept = Translator(Scripted(settings), letters())
    # --nbest is for beam search only, so the engine returns all samples.
    kept.engine.translate = lambda ids, sources, nbest: [some, some[::-1]]  # type: ignore[method-assign]
    found = kept.translate([30, 20], [torch.tensor([4, EOS])] * 2, None)
    assert isinstance(found, TranslatedBatch)
    assert found.ids.tolist() == [30, 20]
    assert found.counts.tolist() == [2, 2]
    assert found.lengths.tolist() == [3, 2, 2, 3]
    assert found.scores.tolist() == [-0.5, -0.25, -0.25, -0.5]
    assert found.cut.tolist() == [0, 1, 1, 0]
    assert found.tokens.tolist() == [4, 5, EOS, 6, EOS, 6, EOS, 4, 5, EOS]


class Failing:
    """An engine that raises an error."""

    def __init__(self, error: Exception):
        self.error, self.settings = error, SearchSettings()

    def translate(self, ids: Sequence[int], sources: Sequence[Tensor], nbest: int) -> list[list[Hypothesis]]:
        raise self.error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "lower --max-tokens, --batch-size or --beam"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "does not fit in memory",
        ),
        (AssertionError("200 < 200"), "the teacher's scores are not finite"),
    ],
)
def test_failures_of_the_search(error: Exception, message: str) -> None:
    """Memory and numbers, in one line; anything else is a defect and keeps its traceback."""
    with pytest.raises(UsageError, match=message):
        Translator(Failing(error), letters()).translate([0], [torch.tensor([EOS])], None)
    with pytest.raises(RuntimeError, match="another"):
        Translator(Failing(RuntimeError("another")), letters()).translate([0], [torch.tensor([EOS])], None)


@pytest.mark.parametrize("select", ["first", "sample"])
def test_broken_teacher_is_refused(select: str) -> None:
    """Its weights are NaN, as after an overflow in half precision."""
    model = build_student("transformer")
    for parameter in model.parameters():
        parameter.data.fill_(math.nan)
    settings = SearchSettings(select, max_len_b=5)
    own = fairseq_engine(settings, Teacher([model], dtype="fp32"))
    with pytest.raises(UsageError, match=r"scores are not finite: .*--teacher-dtype fp32"):
        Translator(own, letters()).translate(range(4), sentences(4), None)


class ById:
    """An engine that returns the translation that it was given for each sentence."""

    def __init__(self, outputs: dict[int, list[int]]):
        self.outputs, self.asked = outputs, []
        self.settings = SearchSettings()

    def translate(self, ids: Any, sources: Any, nbest: int) -> list[list[Hypothesis]]:
        self.asked += ids
        return [[Hypothesis(torch.tensor([*self.outputs[number], EOS]), -1.0, False)] for number in ids]


def test_agreement() -> None:
    """How many translations are the same, and chrF of ours against theirs."""
    theirs, ours = (
        Translator(
            ById({n: [4, 5, 6, 7] if n % 2 or same else [8, 9, 10, 11] for n in range(9)}),
            letters(),
        )
        for same in (True, False)
    )
    source = torch.tensor([4, EOS])
    batches = [([0, 1, 2, 3, 4], [source] * 5, None), ([8, 5], [source] * 2, None)]
    found = agreement(ours, theirs, batches)
    assert ours.engine.asked == theirs.engine.asked == [0, 1, 2, 3, 4, 8, 5]
    assert (found["sentences"], found["identical"]) == (7, 3)
    assert 20 < found["chrf"] < 70
    assert agreement(theirs, theirs, batches) == {"sentences": 7, "identical": 7, "chrf": 100.0}


def test_agreement_is_of_each_sentences_first_translation() -> None:
    """Engines may keep different numbers of translations, because of equal texts one is kept."""

    class Several(ById):
        def translate(self, ids: Any, sources: Any, nbest: int) -> list[list[Hypothesis]]:
            found = super().translate(ids, sources, nbest)
            return [[*each, *each][: self.kept] for each in found]

    outputs = {0: [4, 5], 1: [6, 7, 8]}
    ours, theirs = Several(outputs), Several(outputs)
    ours.kept, theirs.kept = 1, 2
    batches = [([0, 1], [torch.tensor([4, EOS])] * 2, None)]
    found = agreement(Translator(ours, letters()), Translator(theirs, letters()), batches)
    assert found == {"sentences": 2, "identical": 2, "chrf": 100.0}
