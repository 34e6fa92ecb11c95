"""``fairseq-generate`` on the rollout engine has fairseq's tokens and scores; fairseq decodes the rest."""

import copy
import gc
import weakref
from argparse import Namespace
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from fairseq.sequence_generator import EnsembleModel, SequenceGenerator, SequenceGeneratorWithAlignment

from fairseq_imitkd.rollout import RolloutGenerator, beam
from fairseq_imitkd.rollout.beam import BeamModels
from fairseq_imitkd.rollout.fast_transformer import TransformerSteps, unsupported_reason
from fairseq_imitkd.rollout.generator import NoRepeats
from tests.helpers.fairseq_models import (
    STUDENTS,
    build_student,
    letters,
    make_batch,
    reversed_pairs,
    tiny_task,
    trained_student,
)

LIMITS = {"max_len_a": 0.0, "max_len_b": 6}


def generator(model, **flags: Any) -> SequenceGenerator:
    """The generator that the task builds for ``fairseq-generate`` with these flags."""
    return tiny_task().build_generator([model], Namespace(**{"beam": 1, **LIMITS, **flags}))


def stock(model, **flags: Any) -> SequenceGenerator:
    """The generator that fairseq's task builds, except that it also blocks n-grams on the CPU."""
    made = tiny_task().build_generator(
        [model], Namespace(**{"beam": 1, **LIMITS, **flags}), seq_gen_cls=SequenceGenerator
    )
    if made.repeat_ngram_blocker is not None:
        made.repeat_ngram_blocker = NoRepeats(flags["no_repeat_ngram_size"])
    return made


def assert_same(found: list[list[dict]], expected: list[list[dict]]) -> None:
    """Compare tokens exactly and scores to rounding, in the same order."""
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert [hypothesis["tokens"].tolist() for hypothesis in mine] == [
            h["tokens"].tolist() for h in theirs
        ]
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one["score"], other["score"], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(
                one["positional_scores"], other["positional_scores"], rtol=1e-4, atol=1e-4
            )
            assert one.keys() == other.keys()


def one_by_one(model, sample: dict[str, Any], **flags: Any) -> list[list[dict]]:
    """Return what fairseq writes for the sentences of a batch if no neighbour lends them its length limit."""
    theirs, inputs = stock(model, **flags), sample["net_input"]
    sources = [row[row.ne(letters().pad())] for row in inputs["src_tokens"]]
    return [
        theirs.generate(
            [model],
            {"net_input": {"src_tokens": source[None], "src_lengths": torch.tensor([source.numel()])}},
        )[0]
        for source in sources
    ]


FLAGS = [
    {},
    {"min_len": 0},
    {"lenpen": 0.5},
    {"lenpen": -1},
    {"unnormalized": True},
    {"max_len_b": 2},
    {"max_len_a": 1.0, "max_len_b": 0},  # the model would write more
]


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_greedy_tokens_and_scores_equal_fairseqs(name: str, flags: dict[str, Any]) -> None:
    """Also for truncated sentences, and for every normalisation of the scores."""
    model, sample = trained_student(name), make_batch(reversed_pairs(12, seed=31))
    ours = generator(model, **flags)
    assert type(ours) is RolloutGenerator
    assert ours.rollout_policy is not None
    assert_same(ours.generate([model], sample), one_by_one(model, sample, **flags))


BEAMS = [
    {},
    {"beam": 2},
    {"beam": 19},
    {"min_len": 3},
    {"lenpen": 0.5},
    {"unkpen": 2.0},
    {"temperature": 1.7},
    {"no_repeat_ngram_size": 2, "max_len_b": 12},
    {"max_len_b": 2},
    {"max_len_a": 0.5, "max_len_b": 1},
    {"diverse_beam_groups": 2, "beam": 4},
    {"diversity_rate": 0.5},
]


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("flags", BEAMS, ids=str)
def test_beams_equal_fairseqs(name: str, flags: dict[str, Any]) -> None:
    """All n best hypotheses of every search, while sentences end and beams are reordered."""
    model, sample = trained_student(name), make_batch(reversed_pairs(12, seed=31))
    flags = {"beam": 5, **flags}
    ours = generator(model, **flags)
    assert (type(ours.model) is BeamModels) == (unsupported_reason(model) is None)
    assert type(stock(model, **flags).model) is EnsembleModel
    assert_same(ours.generate([model], sample), one_by_one(model, sample, **flags))


def test_beams_of_an_ensemble_equal_fairseqs() -> None:
    models, sample = (
        [trained_student("transformer"), build_student(seed=3).eval()],
        make_batch(reversed_pairs(12, seed=31)),
    )
    flags = Namespace(beam=4, **LIMITS)
    ours = tiny_task().build_generator(models, flags)
    assert type(ours.model) is BeamModels
    theirs = tiny_task().build_generator(models, flags, seq_gen_cls=SequenceGenerator)
    assert_same(ours.generate(models, sample), theirs.generate(models, sample))


def test_beams_after_a_prefix_equal_fairseqs() -> None:
    model, sample = trained_student("transformer"), make_batch(reversed_pairs(12, seed=31))
    prefix = sample["target"][:, :2]
    ours = generator(model, beam=3).generate([model], sample, prefix_tokens=prefix)
    assert_same(ours, stock(model, beam=3).generate([model], sample, prefix_tokens=prefix))


def test_one_generator_decodes_batch_after_batch() -> None:
    """Caches and beams of a batch must not affect the next."""
    model = trained_student("transformer")
    ours, theirs = generator(model, beam=3), stock(model, beam=3)
    for size, seed in ((12, 31), (3, 32), (20, 33)):
        sample = make_batch(reversed_pairs(size, seed=seed))
        assert_same(ours.generate([model], sample), theirs.generate([model], sample))


@pytest.mark.parametrize("fails", [False, True])
def test_memory_of_a_batch_is_freed(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """Training needs the memory of a validation's caches, also if the validation failed."""
    model, sample = trained_student("transformer"), make_batch(reversed_pairs(12, seed=31))
    made: list[weakref.ref] = []

    class Noted(TransformerSteps):
        def __init__(self, *args: Any, **settings: Any):
            super().__init__(*args, **settings)
            made.append(weakref.ref(self))

        def keep(self, rows: torch.Tensor) -> None:
            super().keep(rows)
            if fails and self.filled == 2:
                raise MemoryError

    monkeypatch.setattr(beam, "TransformerSteps", Noted)
    ours = generator(model, beam=3)
    with pytest.raises(MemoryError) if fails else nullcontext():
        ours.generate([model], sample)
    gc.collect()
    assert [steps() for steps in made] == [None]
    assert ours.model.encoded == []


def test_empty_translations_are_forbidden_as_in_fairseq() -> None:
    """A student that would end at once writes one word with ``--min-len 1``, the default, and none with 0."""
    model, sample = build_student().eval(), make_batch(reversed_pairs(4, seed=32))
    model.decoder.output_projection.bias = torch.nn.Parameter(torch.zeros(20))
    model.decoder.output_projection.bias.data[letters().eos()] = 50.0
    for flags, length in (({}, 2), ({"min_len": 0}, 1)):
        found = generator(model, **flags).generate([model], sample)
        assert {len(hypothesis["tokens"]) for [hypothesis] in found} == {length}
        assert_same(found, stock(model, **flags).generate([model], sample))


def test_first_token_is_the_requested_one() -> None:
    """Multilingual tasks pass their language tag as ``bos_token``."""
    model, sample, tag = (
        trained_student("transformer"),
        make_batch(reversed_pairs(12, seed=33)),
        letters().index("c"),
    )
    found = generator(model).generate([model], sample, bos_token=tag)
    assert_same(found, stock(model).generate([model], sample, bos_token=tag))
    assert [h["tokens"].tolist() for [h] in found] != [
        h["tokens"].tolist() for [h] in generator(model).generate([model], sample)
    ]


SAMPLINGS = [
    {},
    {"sampling_topk": 3, "temperature": 3.0},
    {"sampling_topp": 0.8, "temperature": 3.0},
    {"temperature": 1.7},
]


@pytest.mark.parametrize("flags", SAMPLINGS, ids=str)
def test_samples_follow_fairseqs_distribution(flags: dict[str, Any]) -> None:
    """Chi-square of the first tokens against fairseq's, 3,000 draws each; 45 is above the 0.999 quantile.

    No minimum length is set, because fairseq's top-p counts a forbidden EOS and ours does not.
    """
    model = trained_student("transformer")
    sample = make_batch([([1, 2, 3], [1])] * 300)
    counts = []
    for build in (generator, stock):
        torch.manual_seed(5)
        settings = {**flags, "sampling": True, "beam": 10, "max_len_b": 1, "min_len": 0}
        made = build(model, **settings).generate([model], sample)
        assert all(len(hypotheses) == 10 for hypotheses in made)
        firsts = torch.tensor([int(h["tokens"][0]) for hypotheses in made for h in hypotheses])
        counts.append(torch.bincount(firsts, minlength=len(letters())).double())
    ours, theirs = counts
    seen = (ours + theirs) > 0
    assert seen.sum() >= 2
    assert float((((ours - theirs) ** 2) / (ours + theirs))[seen].sum()) < 45


@pytest.mark.parametrize("flags", SAMPLINGS, ids=str)
def test_samples_have_fairseqs_scores(flags: dict[str, Any]) -> None:
    """Scores are log-probabilities at the temperature over the whole vocabulary; the best sample is first."""
    model, sample = trained_student("transformer"), make_batch(reversed_pairs(5, seed=34))
    torch.manual_seed(6)
    made = generator(model, sampling=True, beam=4, **flags).generate([model], sample)
    written = set()
    for row, hypotheses in enumerate(made):
        scores = [float(hypothesis["score"]) for hypothesis in hypotheses]
        assert scores == sorted(scores, reverse=True)
        source = sample["net_input"]["src_tokens"][row]
        source = source[source.ne(letters().pad())].unsqueeze(0)
        for hypothesis in hypotheses:
            tokens = hypothesis["tokens"]
            written.add(tuple(tokens.tolist()))
            prefix = torch.cat([torch.tensor([letters().eos()]), tokens[:-1]]).unsqueeze(0)
            with torch.no_grad():
                logits = model(source, torch.tensor([source.size(1)]), prefix)[0][0] / flags.get(
                    "temperature", 1.0
                )
            expected = logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
            torch.testing.assert_close(hypothesis["positional_scores"], expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(hypothesis["score"], expected.mean(), rtol=1e-4, atol=1e-4)
    assert len(written) > 5


def test_samples_follow_the_seed() -> None:
    """As in fairseq, torch's seed determines the samples, and each batch has its own."""
    model, sample = trained_student("transformer"), make_batch(reversed_pairs(8, seed=35))

    def samples(seed: int, batches: int) -> list[list[int]]:
        torch.manual_seed(seed)
        for _ in range(batches):
            made = generator(model, sampling=True).generate([model], sample)
        return [hypothesis["tokens"].tolist() for [hypothesis] in made]

    assert samples(1, 1) == samples(1, 1)
    assert samples(1, 1) != samples(2, 1)
    assert samples(1, 1) != samples(1, 2)


@pytest.mark.parametrize(
    "flags",
    [
        {"beam": 2},
        {"temperature": 0.5},
        {"unkpen": 1.0},
        {"no_repeat_ngram_size": 2},
        {"min_len": 2},
        {"match_source_len": True},
        {"sampling": True, "sampling_topp": 0.8},
        {"diverse_beam_groups": 1},
    ],
    ids=str,
)
def test_unsupported_settings_are_left_to_fairseq(flags: dict[str, Any]) -> None:
    """fairseq's search gives the same hypotheses."""
    model, sample = trained_student("transformer"), make_batch(reversed_pairs(6, seed=36))
    ours = generator(model, **flags)
    assert ours.rollout_policy is None
    found = []
    for one in (ours, stock(model, **flags)):
        torch.manual_seed(7)
        found.append(one.generate([model], sample))
    assert_same(*found)


@pytest.mark.parametrize(
    "extra", [{"tokens_to_suppress": ("c",)}, {"lm_model": trained_student("lstm")}], ids=["tokens", "lm"]
)
def test_settings_without_a_flag_are_left_to_fairseq(extra: dict[str, Any]) -> None:
    """Suppressed tokens and a language model can only be set by code."""
    task, model = tiny_task(), trained_student("transformer")
    assert task.build_generator([model], Namespace(beam=1, **LIMITS)).rollout_policy is not None
    assert (
        task.build_generator([model], Namespace(beam=1, **LIMITS), extra_gen_cls_kwargs=extra).rollout_policy
        is None
    )


def test_custom_probabilities_are_left_to_fairseq() -> None:
    """If a model overrides how logits become probabilities, fairseq computes the scores."""

    class Sharper(type(trained_student("transformer"))):
        def get_normalized_probs(self, net_output, log_probs, sample=None):
            return super().get_normalized_probs((2.0 * net_output[0],), log_probs, sample)

    model, sample = copy.deepcopy(trained_student("transformer")), make_batch(reversed_pairs(6, seed=38))
    model.__class__ = Sharper
    assert generator(model).rollout_policy is None
    assert_same(generator(model).generate([model], sample), stock(model).generate([model], sample))


def test_settings_can_change_later() -> None:
    """The base class too reads its attributes when it generates."""
    model, sample = trained_student("transformer"), make_batch(reversed_pairs(6, seed=39))
    ours, theirs = generator(model), stock(model)
    ours.temperature = theirs.temperature = 2.0
    assert_same(ours.generate([model], sample), theirs.generate([model], sample))


def test_models_may_come_as_an_ensemble() -> None:
    """Some of fairseq's scripts pass an ``EnsembleModel``."""
    model, sample = trained_student("transformer"), make_batch(reversed_pairs(6, seed=40))
    ours = RolloutGenerator(EnsembleModel([model]), letters(), beam_size=1, max_len_a=0, max_len_b=6)
    assert ours.rollout_policy is not None
    assert_same(ours.generate([model], sample), stock(model).generate([model], sample))


def test_greedy_decoding_does_not_touch_torchs_generator() -> None:
    """A validation must not change the training after it."""
    model, sample = trained_student("transformer"), make_batch(reversed_pairs(6, seed=41))
    state = torch.get_rng_state()
    generator(model).generate([model], sample)
    assert torch.get_rng_state().equal(state)


def test_prefixes_and_ensembles_are_left_to_fairseq() -> None:
    """``--prefix-size``, and several models."""
    model, other = trained_student("transformer"), trained_student("transformer-pre-norm")
    sample = make_batch(reversed_pairs(6, seed=37))
    prefix = sample["target"][:, :1]
    found = generator(model).generate([model], sample, prefix_tokens=prefix)
    assert [int(h["tokens"][0]) for [h] in found] == prefix.squeeze(-1).tolist()
    assert_same(found, stock(model).generate([model], sample, prefix_tokens=prefix))
    args = Namespace(beam=1, **LIMITS)
    both = tiny_task().build_generator([model, other], args)
    expected = tiny_task().build_generator([model, other], args, seq_gen_cls=SequenceGenerator)
    assert both.rollout_policy is None
    assert_same(both.generate([model, other], sample), expected.generate([model, other], sample))


def test_alignments_are_left_to_fairseq() -> None:
    """``--print-alignment`` needs attention weights, which the engine does not compute."""
    made = generator(trained_student("transformer"), print_alignment="hard")
    assert type(made) is SequenceGeneratorWithAlignment
