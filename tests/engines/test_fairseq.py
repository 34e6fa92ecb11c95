"""The fairseq engine: beam search, sampling, the length limit, and scores."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from fairseq_imitkd.engines.base import SearchSettings
from fairseq_imitkd.engines.fairseq import FairseqEngine
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.teacher.teacher import Teacher
from tests.helpers.engines import EOS, LANGUAGES, PAD, fairseq_engine, sentences, teacher
from tests.helpers.fairseq_models import (
    counting_student,
    letters,
    trained_student,
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beam": 0}, "--beam must be 1 or more, but is 0"),
        ({"beam": -1}, "--beam must be 1 or more, but is -1"),
        ({"select": "all"}, "--select must be one of first, best, mbr, sample, but is all"),
        (
            {"select": "best", "beam": 3, "nbest": 4, "metric": "chrf"},
            "--nbest must be in 1..3, the --beam, but is 4",
        ),
        ({"select": "best", "nbest": 0, "metric": "chrf"}, "--nbest must be in 1..5, the --beam, but is 0"),
        (
            {"select": "best", "metric": "ter"},
            "--metric must be one of sentence-bleu, chrf, rouge-l, comet, but is ter",
        ),
        ({"select": "best"}, "--select best needs a --metric: one of sentence-bleu, chrf, rouge-l, comet"),
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
            "--remove-bpe must be a subword mark that fairseq knows, like '@@ ', but is ##",
        ),
        ({"nbest": 2}, "--nbest changes nothing with --select first; add --select best"),
        ({"metric": "chrf"}, "--metric changes nothing with --select first; add --select best"),
        ({"samples": 2}, "--n changes nothing with --select first; add --select sample"),
        ({"sampling_topk": 5}, "--sampling-topk changes nothing with --select first; add --select sample"),
        ({"sampling_topp": 0.5}, "--sampling-topp changes nothing with --select first; add --select sample"),
        (
            {"select": "best", "metric": "chrf", "temperature": 0.5},
            "--temperature changes nothing with --select best; add --select sample",
        ),
        (
            {"select": "sample", "metric": "chrf"},
            "--metric changes nothing with --select sample; add --select best",
        ),
        ({"select": "sample", "beam": 3}, "--beam changes nothing with --select sample; leave it out"),
        ({"select": "sample", "lenpen": 0.5}, "--lenpen changes nothing with --select sample; leave it out"),
        ({"select": "sample", "unkpen": 0.5}, "--unkpen changes nothing with --select sample; leave it out"),
        (
            {"select": "sample", "no_repeat_ngram_size": 2},
            "--no-repeat-ngram-size changes nothing with --select sample; leave it out",
        ),
    ],
)
def test_refusals(settings: dict[str, Any], message: str) -> None:
    """One line names the flag, its value and what it must be."""
    with pytest.raises(UsageError) as error:
        SearchSettings(**settings)
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
    """The same hypotheses as fairseq's own generator, scores to rounding.

    fairseq gets one sentence at a time: in a batch it takes the length limit of the longest source.
    """
    decoding = SearchSettings(**settings)
    sources = sentences(12)
    found = fairseq_engine(decoding, teacher(*others)).translate(range(12), sources, decoding.beam)
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
    for own, source in zip(found, sources, strict=True):
        net_input = {"src_tokens": source[None], "src_lengths": torch.tensor([len(source)])}
        [theirs] = stock.generate(None, {"net_input": net_input})
        assert [each.tokens.tolist() for each in own] == [each["tokens"].tolist() for each in theirs]
        assert [each.score for each in own] == pytest.approx(
            [float(each["score"]) for each in theirs], abs=1e-4
        )


@pytest.mark.parametrize("size", [2, 3])
def test_no_ngram_comes_twice(size: int) -> None:
    """No repetition is left, though a bonus on unknown words makes many."""

    def repeats(tokens: list[int]) -> bool:
        grams = [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]
        return len(set(grams)) < len(grams)

    found = {}
    for given in (0, size):
        decoding = SearchSettings(unkpen=-5.0, max_len_b=15, no_repeat_ngram_size=given)
        every = fairseq_engine(decoding).translate(range(12), sentences(12), 5)
        found[given] = [[each.tokens.tolist() for each in some] for some in every]
    assert any(repeats(tokens) for some in found[0] for tokens in some)
    assert not any(repeats(tokens) for some in found[size] for tokens in some)


def samples(ids: Sequence[int], sources: Sequence[Tensor], **settings: Any) -> dict[int, list[list[int]]]:
    """Return every sentence's samples by its number."""
    decoding = SearchSettings("sample", **settings)
    found = fairseq_engine(decoding).translate(ids, sources, 1)
    return {number: [each.tokens.tolist() for each in some] for number, some in zip(ids, found, strict=True)}


def test_samples_belong_to_their_sentences() -> None:
    """The same again, in any batch and order, however many are drawn; another seed, sentence or place gives
    others.
    """
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
    """The teacher's, at the last place of prefixes ``(R, t)``, without what is never written; by the model
    itself.
    """
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
    """First tokens, and second ones after each first. The bound is Hoeffding's: by chance one of 10^12 runs
    exceeds it.
    """
    source, count = torch.tensor([5, 9, 12, 7, EOS]), 5000
    decoding = SearchSettings("sample", samples=4, temperature=temperature, max_len_b=8)
    found = fairseq_engine(decoding).translate(range(count), [source] * count, 1)
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
    """--sampling-topk holds at every step."""
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
    """The teacher's log-probabilities of the written tokens, EOS included."""
    source = torch.tensor([5, 9, 12, 7, 6, 15, EOS])
    decoding = SearchSettings("sample", samples=30, max_len_b=5)
    [found] = fairseq_engine(decoding).translate([3], [source], 1)
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


@pytest.mark.parametrize(("select", "at_the_limit"), [("first", True), ("sample", False)])
def test_cut(select: str, at_the_limit: bool) -> None:
    """The length limit marks what it ends; fairseq forces an EOS there, so it marks all that reach it."""
    sources = [torch.tensor([4 + count, 4, EOS]) for count in (6, 4, 3, 1)]
    other = {"temperature": 0.01} if select == "sample" else {"beam": 1}
    engine = fairseq_engine(
        SearchSettings(select, max_len_b=3, **other), Teacher([counting_student()], dtype="fp32")
    )
    found = [hypothesis for [hypothesis] in engine.translate([10, 11, 12, 13], sources, 1)]
    assert [each.cut for each in found] == [True, True, at_the_limit, False]
    assert [each.tokens.tolist() for each in found] == [[5, 5, 5, EOS]] * 3 + [[5, EOS]]


def test_the_limit_grows_with_the_source() -> None:
    """Each sentence has the limit of its own source, whatever the search and its neighbours."""
    sources = [torch.tensor([4 + 9, *[4] * (length - 1), EOS]) for length in (7, 3)]
    for settings in ({"select": "sample", "temperature": 0.01}, {"beam": 1}):
        search = SearchSettings(max_len_a=1.0, max_len_b=1, **settings)
        engine = fairseq_engine(search, Teacher([counting_student()], dtype="fp32"))
        found = engine.translate([0, 1], sources, 1)
        assert [hypothesis.tokens.numel() for [hypothesis] in found] == [1 + 8 + 1, 1 + 4 + 1]


def test_scores_of_an_ensemble_are_of_its_average() -> None:
    """The models' probabilities are averaged, not their logarithms."""
    sources, targets = sentences(6), sentences(6, seed=2)
    own = fairseq_engine(SearchSettings(), teacher(5)).score(sources, targets)
    single = [
        FairseqEngine.of_model(model, LANGUAGES, SearchSettings()).score(sources, targets)
        for model in teacher(5).models
    ]
    for found, first, second in zip(own, *single, strict=True):
        assert found == pytest.approx(((first.exp() + second.exp()) / 2).log(), abs=1e-5)
