"""Decoding a corpus: beam search as fairseq's, the translation most like the reference, samples, and the length cap."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from fairseq.sequence_generator import SequenceGenerator
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor

from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.engines.base import Decoding, FairseqBackend, Hypothesis, Translated, Translator
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.teacher.teacher import Teacher
from tests.helpers.fairseq_models import (
    build_student,
    counting_student,
    letters,
    reversed_pairs,
    trained_student,
)

PAD, EOS, UNK = 1, 2, 3
LANGUAGES = Languages("src", "tgt", letters(), letters(), Path("unused"))


def sentences(count: int, seed: int = 1, longest: int = 6) -> list[Tensor]:
    """Sources, the longest first."""
    sources = [
        torch.tensor([4 + letter for letter in source] + [EOS])
        for source, _ in reversed_pairs(count, seed, longest)
    ]
    return sorted(sources, key=len, reverse=True)


def teacher(*seeds: int) -> Teacher:
    """One that has learnt a little, or an ensemble of it and others."""
    return Teacher(
        [trained_student("transformer"), *(build_student("transformer", seed) for seed in seeds)], "fp32"
    )


def backend(decoding: Decoding, speaker: Teacher | None = None) -> FairseqBackend:
    speaker = speaker or teacher()
    speaker.place(torch.device("cpu"), torch.float32)
    return FairseqBackend(speaker.writer, LANGUAGES, decoding, speaker.max_positions[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beam": 0}, "--beam must be 1 or more, but is 0"),
        ({"beam": -1}, "--beam must be 1 or more, but is -1"),
        ({"select": "all"}, "--select must be one of first, best, sample, but is all"),
        (
            {"select": "best", "beam": 3, "nbest": 4, "metric": "chrf"},
            "--nbest must be in 1..3, the --beam, but is 4",
        ),
        ({"select": "best", "nbest": 0, "metric": "chrf"}, "--nbest must be in 1..5, the --beam, but is 0"),
        (
            {"select": "best", "metric": "ter"},
            "--metric must be one of sentence-bleu, chrf, rouge-l, but is ter",
        ),
        ({"select": "best"}, "--select best needs a --metric: one of sentence-bleu, chrf, rouge-l"),
        ({"select": "sample", "samples": 0}, "--n must be 1 or more, but is 0"),
        ({"lenpen": math.nan}, "--lenpen must be a number, but is nan"),
        ({"lenpen": math.inf}, "--lenpen must be a number, but is inf"),
        ({"unkpen": math.nan}, "--unkpen must be a number, but is nan"),
        ({"min_len": -1}, "--min-len must be in 0..200, the --max-len-b, but is -1"),
        ({"min_len": 11, "max_len_b": 10}, "--min-len must be in 0..10, the --max-len-b, but is 11"),
        ({"no_repeat_ngram_size": -1}, "--no-repeat-ngram-size must be 0 (off) or 2 or more, but is -1"),
        ({"no_repeat_ngram_size": 1}, "--no-repeat-ngram-size must be 0 (off) or 2 or more, but is 1"),
        (
            {"select": "sample", "sampling_topk": -1},
            "--sampling-topk must be 0 (all tokens) or more, but is -1",
        ),
        (
            {"select": "sample", "sampling_topp": 0.0},
            "--sampling-topp must be above 0 and at most 1 (all tokens), but is 0.0",
        ),
        (
            {"select": "sample", "sampling_topp": math.nan},
            "--sampling-topp must be above 0 and at most 1 (all tokens), but is nan",
        ),
        ({"select": "sample", "temperature": 0.0}, "--temperature must be above 0, but is 0.0"),
        ({"select": "sample", "temperature": math.nan}, "--temperature must be above 0, but is nan"),
        ({"select": "sample", "temperature": math.inf}, "--temperature must be above 0, but is inf"),
        ({"max_len_a": -0.5}, "--max-len-a must be 0 or more, but is -0.5"),
        ({"max_len_a": math.nan}, "--max-len-a must be 0 or more, but is nan"),
        ({"max_len_a": math.inf}, "--max-len-a must be 0 or more, but is inf"),
        ({"max_len_b": 0}, "--max-len-b must be 1 or more, but is 0"),
        (
            {"remove_bpe": "##"},
            "--remove-bpe must be a mark of subwords that fairseq knows, like '@@ ', but is ##",
        ),
        ({"nbest": 2}, "--nbest changes nothing under --select first: add --select best"),
        ({"metric": "chrf"}, "--metric changes nothing under --select first: add --select best"),
        ({"samples": 2}, "--n changes nothing under --select first: add --select sample"),
        ({"sampling_topk": 5}, "--sampling-topk changes nothing under --select first: add --select sample"),
        ({"sampling_topp": 0.5}, "--sampling-topp changes nothing under --select first: add --select sample"),
        (
            {"select": "best", "metric": "chrf", "temperature": 0.5},
            "--temperature changes nothing under --select best: add --select sample",
        ),
        (
            {"select": "sample", "metric": "chrf"},
            "--metric changes nothing under --select sample: add --select best",
        ),
        ({"select": "sample", "beam": 3}, "--beam changes nothing under --select sample: leave it out"),
        ({"select": "sample", "lenpen": 0.5}, "--lenpen changes nothing under --select sample: leave it out"),
        ({"select": "sample", "unkpen": 0.5}, "--unkpen changes nothing under --select sample: leave it out"),
        (
            {"select": "sample", "no_repeat_ngram_size": 2},
            "--no-repeat-ngram-size changes nothing under --select sample: leave it out",
        ),
    ],
)
def test_refusals(settings: dict[str, Any], message: str) -> None:
    """The flag, its value, what it must be: one line."""
    with pytest.raises(UsageError) as error:
        Decoding(**settings)
    assert str(error.value) == message


@pytest.mark.parametrize("others", [(), (5, 6)], ids=["one", "ensemble"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beam": 1},
        {"beam": 3, "lenpen": 0.3, "min_len": 3},
        {"beam": 4, "max_len_a": 0.5, "max_len_b": 2},
        {"unkpen": -5.0},
    ],
    ids=str,
)
def test_beam_search_is_fairseqs(settings: dict[str, Any], others: tuple[int, ...]) -> None:
    """The same hypotheses as its stock generator over the same batch, scores to rounding."""
    decoding = Decoding(**settings)
    sources = sentences(12)
    found = backend(decoding, teacher(*others)).translate(range(12), sources, decoding.beam)
    stock = SequenceGenerator(
        teacher(*others).models,
        letters(),
        beam_size=decoding.beam,
        max_len_a=decoding.max_len_a,
        max_len_b=decoding.max_len_b,
        min_len=decoding.min_len,
        len_penalty=decoding.lenpen,
        unk_penalty=decoding.unkpen,
    )
    tokens = torch.full((12, len(sources[0])), PAD)
    for row, source in zip(tokens, sources, strict=True):
        row[-len(source) :] = source
    net_input = {"src_tokens": tokens, "src_lengths": torch.tensor([len(source) for source in sources])}
    expected = stock.generate(None, {"net_input": net_input})
    for own, theirs in zip(found, expected, strict=True):
        assert [each.tokens.tolist() for each in own] == [each["tokens"].tolist() for each in theirs]
        assert [each.score for each in own] == pytest.approx(
            [float(each["score"]) for each in theirs], abs=1e-4
        )


@pytest.mark.parametrize("size", [2, 3])
def test_no_ngram_comes_twice(size: int) -> None:
    """Of those that did, none is left; what has no repetition stays. A bonus on unknown words makes many repetitions."""

    def repeats(tokens: list[int]) -> bool:
        grams = [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
        return len(set(grams)) < len(grams)

    found = {}
    for given in (0, size):
        decoding = Decoding(unkpen=-5.0, max_len_b=15, no_repeat_ngram_size=given)
        every = backend(decoding).translate(range(12), sentences(12), 5)
        found[given] = [[each.tokens.tolist() for each in some] for some in every]
    assert any(repeats(tokens) for some in found[0] for tokens in some)
    assert not any(repeats(tokens) for some in found[size] for tokens in some)


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
    decoding = Decoding("best", beam=8, nbest=6, metric=metric)
    sources = sentences(16)
    references = [torch.cat([source[:-1].flip(0), source[-1:]]) for source in sources]
    own = backend(decoding)
    kept = Translator(own, decoding, LANGUAGES).translate(range(16), sources, references)
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


class Scripted:
    """Says what it was told."""

    def __init__(self, *hypotheses: Hypothesis):
        self.hypotheses = list(hypotheses)

    def translate(self, ids: Sequence[int], sources: Sequence[Tensor], nbest: int) -> list[list[Hypothesis]]:
        return [self.hypotheses[:nbest] for _ in ids]


def hypothesis(*tokens: int, score: float = -1.0, cut: bool = False) -> Hypothesis:
    return Hypothesis(torch.tensor([*tokens, EOS]), score, cut)


def chosen(
    decoding: Decoding, reference: Sequence[int], *hypotheses: Hypothesis, languages: Languages = LANGUAGES
) -> list[int]:
    source, target = torch.tensor([4, EOS]), torch.tensor([*reference, EOS])
    return (
        Translator(Scripted(*hypotheses), decoding, languages)
        .translate([0], [source], [target])
        .tokens.tolist()
    )


def test_best_chooses_among_nbest_only() -> None:
    """Though the beam is wider."""
    hypotheses = [hypothesis(9, 9), hypothesis(4, 9), hypothesis(4, 5)]
    settings = {"select": "best", "beam": 5, "metric": "chrf"}
    assert chosen(Decoding(nbest=3, **settings), [4, 5], *hypotheses) == [4, 5, EOS]
    assert chosen(Decoding(nbest=2, **settings), [4, 5], *hypotheses) == [4, 9, EOS]


def test_unknown_words_match_nothing() -> None:
    """Nor each other."""
    decoding = Decoding("best", nbest=2, metric="chrf")
    assert chosen(decoding, [UNK, 5], hypothesis(UNK, 9), hypothesis(9, 5)) == [9, 5, EOS]


def test_subwords_are_joined_for_the_metric() -> None:
    """``a@@ b`` is the word ``ab`` then, and ``a`` is not like it."""
    dictionary = letters(["a@@", "b", "ab", "a"])
    languages = Languages("src", "tgt", dictionary, dictionary, Path("unused"))
    hypotheses = [hypothesis(7), hypothesis(6)]
    for marks, expected in (("@@ ", 6), (None, 7)):
        decoding = Decoding("best", nbest=2, metric="rouge-l", remove_bpe=marks)
        # Without the marks undone, rouge's own tokens of "a@@ b" are "a" and "b".
        assert chosen(decoding, [4, 5], *hypotheses, languages=languages) == [expected, EOS]


def samples(ids: Sequence[int], sources: Sequence[Tensor], **settings: Any) -> dict[int, list[list[int]]]:
    """Every sentence's samples by its number."""
    decoding = Decoding("sample", **settings)
    found = backend(decoding).translate(ids, sources, 1)
    return {number: [each.tokens.tolist() for each in some] for number, some in zip(ids, found, strict=True)}


def test_samples_belong_to_their_sentences() -> None:
    """The same again, in any batch and order, however many are drawn; another seed, sentence or place gives others."""
    sources = sentences(20)
    ids = list(range(100, 120))
    settings = {"samples": 3, "max_len_a": 1.0, "max_len_b": 3}
    together = samples(ids, sources, **settings)
    assert samples(ids, sources, **settings) == together
    alone: dict[int, list[list[int]]] = {}
    for number, source in zip(ids, sources, strict=True):
        alone |= samples([number], [source], **settings)
    assert alone == together
    shuffled = [(number, source) for number, source in zip(ids, sources, strict=True) if number % 3 == 0][
        ::-1
    ]
    mixed = samples(*zip(*sorted(shuffled, key=lambda pair: -len(pair[1])), strict=True), **settings)
    assert mixed == {number: together[number] for number in mixed}
    one = samples(ids, sources, **{**settings, "samples": 1})
    assert one == {number: some[:1] for number, some in together.items()}
    assert samples(ids, sources, seed=2, **settings) != together
    same = samples([1, 2, 3, 4], [sources[0]] * 4, samples=4)
    assert len({tuple(tokens) for some in same.values() for tokens in some}) > 4


def probabilities(prefixes: Tensor, source: Tensor, temperature: float = 1.0) -> Tensor:
    """The teacher's, at the last place of prefixes ``(R, t)``, without what is never written; by the model itself."""
    model = trained_student("transformer")
    rows = prefixes.size(0)
    with torch.no_grad():
        logits = model(source.expand(rows, -1), torch.tensor([source.numel()] * rows), prefixes)[0][:, -1]
    logits[:, PAD] = -math.inf
    if prefixes.size(1) == 1:
        logits[:, EOS] = -math.inf  # --min-len is 1
    return (logits / temperature).softmax(dim=-1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_samples_follow_the_teachers_distribution(temperature: float) -> None:
    """First tokens, and second ones after each first. The bound is Hoeffding's: by chance one of 10^12 runs exceeds it."""
    source, count = torch.tensor([5, 9, 12, 7, EOS]), 5000
    decoding = Decoding("sample", samples=4, temperature=temperature, max_len_b=8)
    found = backend(decoding).translate(range(count), [source] * count, 1)
    rows = [each.tokens.tolist() for some in found for each in some]
    groups: dict[tuple[int, ...], list[int]] = {(EOS,): [row[0] for row in rows]}
    for row in rows:
        groups.setdefault((EOS, row[0]), []).append(row[1])
    checked = 0
    for prefix, drawn in groups.items():
        if len(drawn) < 1000:
            continue
        expected = probabilities(torch.tensor([prefix]), source, temperature)[0]
        shares = torch.bincount(torch.tensor(drawn), minlength=len(letters())) / len(drawn)
        bound = math.sqrt(math.log(2e12 * len(letters())) / (2 * len(drawn)))
        assert float((shares - expected).abs().max()) < bound
        assert float(expected.max()) < 1.0 - 2 * bound, "something was left to chance"
        checked += 1
    assert checked >= 3


def test_most_probable_tokens_only() -> None:
    """--sampling-topk, step by step."""
    sources = sentences(30)
    for number, [tokens] in samples(range(30), sources, sampling_topk=2, max_len_b=8).items():
        for place, token in enumerate(tokens[:-1]):
            best = (
                probabilities(torch.tensor([[EOS, *tokens[:place]]]), sources[number])[0]
                .topk(2)
                .indices.tolist()
            )
            assert token in best
    assert samples(range(30), sources, sampling_topk=1) != samples(range(30), sources)


def test_scores_of_samples_are_mean_log_probabilities() -> None:
    """As the teacher gives them to the tokens written, the EOS included."""
    source = torch.tensor([5, 9, 12, 7, 6, 15, EOS])
    decoding = Decoding("sample", samples=30, max_len_b=5)
    [found] = backend(decoding).translate([3], [source], 1)
    for each in found:
        inputs = torch.cat([torch.tensor([EOS]), each.tokens[:-1]]).unsqueeze(0)
        with torch.no_grad():
            logits = trained_student("transformer")(
                source.unsqueeze(0), torch.tensor([source.numel()]), inputs
            )[0]
        lprobs = logits.log_softmax(dim=-1)[0].gather(-1, each.tokens.unsqueeze(-1))
        assert each.score == pytest.approx(float(lprobs.mean()), abs=1e-4)
        assert each.tokens[-1] == EOS
    assert {each.cut for each in found} == {False, True}, "both kinds were looked at"


@pytest.mark.parametrize(("select", "at_the_cap"), [("first", True), ("sample", False)])
def test_cut(select: str, at_the_cap: bool) -> None:
    """Where the cap ended a translation it is marked. fairseq forces an EOS at the cap, so that there one can't tell."""
    sources = [torch.tensor([4 + count, 4, EOS]) for count in (6, 4, 3, 1)]
    decoding = Decoding(select, max_len_b=3, **({"temperature": 0.01} if select == "sample" else {"beam": 1}))
    own = backend(decoding, Teacher([counting_student()], "fp32"))
    kept = Translator(own, decoding, LANGUAGES).translate([10, 11, 12, 13], sources, None)
    assert kept.lengths.tolist() == [4, 4, 4, 2]
    assert kept.cut.tolist() == [1, 1, at_the_cap, 0]
    assert kept.tokens.tolist() == [5, 5, 5, EOS, 5, 5, 5, EOS, 5, 5, 5, EOS, 5, EOS]


def test_cap_grows_with_the_source() -> None:
    """For samples by the sentence's own length; for a beam by its batch's longest, as in fairseq-generate."""
    sources = [torch.tensor([4 + 9, *[4] * (length - 1), EOS]) for length in (7, 3)]
    for settings, expected in (
        ({"select": "sample", "temperature": 0.01}, [1 + 8 + 1, 1 + 4 + 1]),
        ({"beam": 1}, [1 + 8 + 1, 1 + 8 + 1]),
    ):
        decoding = Decoding(max_len_a=1.0, max_len_b=1, **settings)
        kept = Translator(
            backend(decoding, Teacher([counting_student()], "fp32")), decoding, LANGUAGES
        ).translate([0, 1], sources, None)
        assert kept.lengths.tolist() == expected


def test_what_is_kept_of_a_batch() -> None:
    """Every array, hypotheses one sentence after another."""
    decoding = Decoding("sample", samples=2)
    some = [hypothesis(4, 5, score=-0.5), hypothesis(6, score=-0.25, cut=True)]
    kept = Translator(Scripted(*some), decoding, LANGUAGES)
    # A beam's --nbest is nothing to samples, so that the script is asked for both here.
    kept.backend.translate = lambda ids, sources, nbest: [some, some[::-1]]  # type: ignore[method-assign]
    found = kept.translate([30, 20], [torch.tensor([4, EOS])] * 2, None)
    assert isinstance(found, Translated)
    assert found.ids.tolist() == [30, 20]
    assert found.counts.tolist() == [2, 2]
    assert found.lengths.tolist() == [3, 2, 2, 3]
    assert found.scores.tolist() == [-0.5, -0.25, -0.25, -0.5]
    assert found.cut.tolist() == [0, 1, 1, 0]
    assert found.tokens.tolist() == [4, 5, EOS, 6, EOS, 6, EOS, 4, 5, EOS]


class Failing:
    """Raises."""

    def __init__(self, error: Exception):
        self.error = error

    def translate(self, ids: Sequence[int], sources: Sequence[Tensor], nbest: int) -> list[list[Hypothesis]]:
        raise self.error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "lower --max-tokens, --batch-size or --beam"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "too large for the memory",
        ),
        (AssertionError("200 < 200"), "the teacher's scores are no numbers"),
    ],
)
def test_failures_of_the_search(error: Exception, message: str) -> None:
    """Memory and numbers, in one line; anything else is a defect and keeps its traceback."""
    with pytest.raises(UsageError, match=message):
        Translator(Failing(error), Decoding(), LANGUAGES).translate([0], [torch.tensor([EOS])], None)
    with pytest.raises(RuntimeError, match="another"):
        Translator(Failing(RuntimeError("another")), Decoding(), LANGUAGES).translate(
            [0], [torch.tensor([EOS])], None
        )


@pytest.mark.parametrize("select", ["first", "sample"])
def test_broken_teacher_is_refused(select: str) -> None:
    """Weights that are no numbers, as a half-precision overflow leaves them."""
    model = build_student("transformer")
    for parameter in model.parameters():
        parameter.data.fill_(math.nan)
    decoding = Decoding(select, max_len_b=5)
    own = backend(decoding, Teacher([model], "fp32"))
    with pytest.raises(UsageError, match=r"scores are no numbers: .*--teacher-dtype fp32"):
        Translator(own, decoding, LANGUAGES).translate(range(4), sentences(4), None)
