"""Accepted drafts, against programs that run speculative decoding."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.evaluate import drafts
from fairseq_imitkd.evaluate.probes import Prober
from tests.evaluate.test_probes import CAP, GREEDY, REFERENCES, SOURCES, continued, lprobs
from tests.helpers.evaluations import EOS
from tests.helpers.fairseq_models import trained_student, write_dictionaries

Distribution = list[float]
Model = Callable[[list[int]], Distribution]  # the distribution after a prefix


def best(distribution: Distribution) -> int:
    """The most probable symbol."""
    return distribution.index(max(distribution))


def speculative(
    student: Model, teacher: Model, length: int, draw: random.Random | None
) -> tuple[list[int], int, int, int]:
    """Decode speculatively (Leviathan et al. 2023, algorithm 1), greedily without ``draw``.

    Returns the output, the teacher's passes, and the drafted tokens that it looked at and that it accepted.
    """
    output: list[int] = []
    passes = looked = accepted = 0
    while not output or output[-1] != EOS:
        draft: list[int] = []
        while len(draft) < length and (not draft or draft[-1] != EOS):
            q = student(output + draft)
            draft.append(draw.choices(range(len(q)), q)[0] if draw else best(q))
        passes += 1
        for token in draft:
            p, q = teacher(output), student(output)
            looked += 1
            if draw.random() < p[token] / q[token] if draw else token == best(p):
                accepted += 1
                output.append(token)
                continue
            left = [max(0.0, p_v - q_v) for p_v, q_v in zip(p, q, strict=True)]
            output.append(draw.choices(range(len(p)), left)[0] if draw else best(p))
            break
        else:
            if output[-1] != EOS:
                p = teacher(output)
                output.append(draw.choices(range(len(p)), p)[0] if draw else best(p))
    return output, passes, looked, accepted


def table(seed: int, sharpness: float) -> Model:
    """A model whose next token depends on the last one; symbol ``EOS`` ends the output."""
    logits = sharpness * torch.randn(5, 5, generator=torch.Generator().manual_seed(seed))
    logits[:, EOS] -= 1.0
    rows = logits.softmax(-1).tolist()
    return lambda prefix: rows[prefix[-1] if prefix else EOS]


@pytest.mark.parametrize("length", [2, 16])
def test_passes_and_acceptance_of_speculative_sampling(length: int) -> None:
    """Expected values given the outputs are the means of many runs, whose outputs are the teacher's."""
    student, teacher = table(1, 1.0), table(2, 1.5)
    draw, runs = random.Random(3), 1500
    found = [speculative(student, teacher, length, draw) for _ in range(runs)]
    passes = sum(each[1] for each in found) / runs
    looked, accepted = sum(each[2] for each in found), sum(each[3] for each in found)
    acceptances, mean_length = [], sum(len(each[0]) for each in found) / runs
    expected = plain_length = 0.0
    for output, *_ in found:
        own, theirs = (
            torch.tensor([model(output[:place]) for place in range(len(output))]).log()
            for model in (student, teacher)
        )
        acceptances += drafts.sampling_acceptance(own, theirs).tolist()
        given = drafts.acceptance_of_outputs(own, theirs, torch.tensor(output))
        expected += drafts.teacher_calls(given.tolist(), length) / runs
    for _ in range(runs):
        output = []
        while not output or output[-1] != EOS:
            output.append(draw.choices(range(5), teacher(output))[0])
        plain_length += len(output) / runs
    assert mean_length == pytest.approx(plain_length, rel=0.08), "the output is the teacher's"
    assert expected == pytest.approx(passes, rel=0.03)
    assert passes < 0.9 * mean_length
    if length == 16:  # then a draft is looked at after nearly every prefix
        assert sum(acceptances) / len(acceptances) == pytest.approx(accepted / looked, rel=0.04)


@pytest.fixture(scope="module")
def two() -> tuple[torch.nn.Module, torch.nn.Module]:
    """A student and a teacher that have begun to learn."""
    return trained_student("gru").double(), trained_student("transformer").double()


@torch.no_grad()
def test_greedy_drafts_of_real_models(two, tmp_path: Path) -> None:
    """The teacher's passes and the accepted tokens are those of a program that decodes speculatively."""
    student, teacher = two
    prober = Prober(
        teacher,
        Languages.of(write_dictionaries(tmp_path), "src", "tgt"),
        decoding=GREEDY,
        sources=SOURCES,
        references=REFERENCES,
        size=4,
    )
    outputs = [continued(teacher, source, []) for source in SOURCES]
    found = prober.accepted(student, [torch.tensor(output) for output in outputs])["greedy"]
    compared = 0
    for source, output, acceptance in zip(SOURCES, outputs, found.outputs, strict=True):

        def model(kind: torch.nn.Module, source: torch.Tensor = source) -> Model:
            return lambda prefix: lprobs(kind, source, prefix).exp().tolist()

        if len(output) > CAP:  # the program below knows no limit
            continue
        for length in (1, 2, 5):
            again, passes, looked, accepted = speculative(model(student), model(teacher), length, None)
            assert again == output
            assert drafts.teacher_calls(acceptance.tolist(), length) == passes
            assert accepted <= looked
        everywhere = [best(model(student)(output[:place])) == token for place, token in enumerate(output)]
        assert acceptance.tolist() == everywhere
        compared += 1
    assert compared > 3
    assert 0 < found.acceptance.sum() < found.acceptance.numel()


def test_a_teacher_accepts_itself(two, tmp_path: Path) -> None:
    """All drafts, whatever the sampling; the samples are drawn once, and do not move torch's generator."""
    teacher = two[1]
    prober = Prober(
        teacher,
        Languages.of(write_dictionaries(tmp_path), "src", "tgt"),
        decoding=GREEDY,
        sources=SOURCES,
        references=REFERENCES,
        size=4,
    )
    before = torch.get_rng_state()
    found = prober.accepted(teacher, REFERENCES)
    assert torch.get_rng_state().equal(before)
    assert found["greedy"].acceptance.mean() == 1.0
    assert found["sampling"].acceptance.tolist() == pytest.approx(
        [1.0] * found["sampling"].acceptance.numel()
    )
    again = prober.accepted(teacher, REFERENCES)["sampling"]
    assert [each.tolist() for each in again.outputs] == [each.tolist() for each in found["sampling"].outputs]
    assert len({len(output) for output in found["sampling"].outputs}) > 1


def test_the_formula_of_the_speed_up() -> None:
    """Tokens of a pass and speed-up by their closed forms, and the length of the greatest speed-up."""
    for a, g, c in ((0.8, 5, 0.1), (0.5, 1, 0.02), (0.0, 3, 0.3)):
        tokens = (1 - a ** (g + 1)) / (1 - a)
        assert drafts.expected_tokens(a, g) == pytest.approx(tokens)
        assert drafts.expected_speedup(a, g, c) == pytest.approx(tokens / (g * c + 1))
    assert drafts.expected_tokens(1.0, 4) == 5.0
    accepted = torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    found = drafts.results(accepted, [accepted[:2], accepted[2:]], 0.1)
    speeds = {length: drafts.expected_speedup(0.75, length, 0.1) for length in drafts.LENGTHS}
    assert found.length == max(speeds, key=lambda length: speeds[length]) == 5
    assert found.speedup == pytest.approx(speeds[5])
    assert (found.tokens, found.acceptance, found.cost) == (4, 0.75, 0.1)
    assert found.tokens_per_call == 4 / 3  # one pass for the first output, two for the second
