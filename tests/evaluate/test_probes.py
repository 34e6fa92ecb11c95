"""What a teacher is asked about a student, against the definitions: one sentence and one prefix at a time, in
float64.
"""

from pathlib import Path

import pytest
import torch

from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.engines.base import SearchSettings
from fairseq_imitkd.evaluate import probes, schema
from fairseq_imitkd.evaluate.probes import POSITIONS, Prober, mean_distance
from tests.helpers.evaluations import EOS, tokens
from tests.helpers.fairseq_models import (
    LETTERS,
    build_student,
    reversed_pairs,
    trained_student,
    write_dictionaries,
)

CAP = 12
GREEDY = SearchSettings(beam=1, max_len_b=CAP)
PAIRS = sorted(reversed_pairs(9, 5), key=lambda pair: -len(pair[0]))
SOURCES, REFERENCES = ([tokens(*(4 + letter for letter in pair[side])) for pair in PAIRS] for side in (0, 1))


def lprobs(model, source: torch.Tensor, prefix: list[int]) -> torch.Tensor:
    """``(V,)`` after a prefix, of the whole model at once."""
    previous = torch.tensor([[EOS, *prefix]])
    logits = model(source.unsqueeze(0), torch.tensor([source.numel()]), previous)[0][0, -1]
    return logits.double().log_softmax(dim=-1)


def continued(model, source: torch.Tensor, prefix: list[int]) -> list[int]:
    """Greedily, with at most ``CAP`` tokens before the EOS and at least one."""
    written = list(prefix)
    while len(written) < CAP:
        scores = lprobs(model, source, written)
        scores[1] = -torch.inf
        if not written:
            scores[EOS] = -torch.inf
        best = int(scores.argmax())
        if best == EOS:
            break
        written.append(best)
    return [*written, EOS]


@pytest.fixture(scope="module")
def two():
    """A student and a teacher that have begun to learn, each in its own way."""
    return trained_student("gru").double(), trained_student("transformer").double()


@pytest.fixture
def prober(two, tmp_path: Path) -> Prober:
    return Prober(
        two[1],
        Languages.of(write_dictionaries(tmp_path), "src", "tgt"),
        decoding=GREEDY,
        sources=SOURCES,
        references=REFERENCES,
        size=4,
    )


@torch.no_grad()
def test_agreement_and_divergence_are_those_of_the_definition(two, prober: Prober) -> None:
    """At every prefix of every target, the one before its EOS among them, each token counting once."""
    student, teacher = two
    for targets in (REFERENCES, [tokens(4, 5, 6)] * len(SOURCES)):
        same, divergences, nlls, groups = [], [], [], []
        for source, target in zip(SOURCES, targets, strict=True):
            for place in range(target.numel()):
                own, theirs = (lprobs(model, source, target.tolist()[:place]) for model in (student, teacher))
                same.append(int(own.argmax()) == int(theirs.argmax()))
                divergences.append(float((theirs.exp() * (theirs - own)).sum()))
                nlls.append(-float(theirs[target[place]]))
                groups.append(
                    next(
                        n
                        for n, (first, last) in enumerate(POSITIONS)
                        if first <= place + 1 <= (last or place + 1)
                    )
                )
        sums = prober.distance(student, targets)
        for group, found in [*enumerate(sums), (None, sums.sum(dim=0))]:
            mine = [place for place, each in enumerate(groups) if group in (each, None)]
            expected = [
                len(mine),
                sum(same[place] for place in mine),
                sum(divergences[place] for place in mine),
                sum(nlls[place] for place in mine),
            ]
            # fairseq's probabilities are of single precision, whatever the model's.
            assert found.tolist() == pytest.approx(expected, rel=1e-5)
        assert 0 < sum(same) < len(same)
        whole = mean_distance(sums.sum(dim=0))
        assert (whole.tokens, whole.agreement, whole.kl, whole.nll) == pytest.approx(
            (len(same), *(sum(values) / len(same) for values in (same, divergences, nlls))), rel=1e-5
        )


@torch.no_grad()
def test_the_second_half_is_by_another(two, prober: Prober) -> None:
    """Of the first one's own translations the first half, rounded up, is kept; batches of ragged prefixes
    change nothing.
    """
    student, teacher = two
    alone = {author: [continued(author, source, []) for source in SOURCES] for author in (student, teacher)}
    changed = 0
    for author, other in ((student, teacher), (teacher, student)):
        begun = [torch.tensor(written) for written in alone[author]]
        found = [written.tolist() for written in prober.completed(other, begun)]
        halves = [written[: (len(written) - 1 + 1) // 2] for written in alone[author]]
        expected = [continued(other, source, half) for source, half in zip(SOURCES, halves, strict=True)]
        assert found == expected
        changed += sum(one != two for one, two in zip(found, alone[author], strict=True))
        assert all(written[: len(half)] == half for written, half in zip(found, halves, strict=True))
    assert changed > 0
    assert len({len(written) for written in alone[student]}) > 2


def test_large_vocabularies_have_small_batches(two, prober: Prober, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of as many logits as there is room for, or of one sentence; the figures stay."""
    student = two[0]
    every = [student, REFERENCES]
    distance, accepted = prober.distance(*every), prober.accepted(*every)["sampling"]
    assert [part.stop - part.start for part in prober._parts(REFERENCES)] == [4, 4, 1]
    longest = max(map(len, REFERENCES))
    monkeypatch.setattr(probes, "LOGITS", 2 * longest * len(prober.languages.target_dictionary))
    sizes = {part.stop - part.start for part in prober._parts(REFERENCES)}
    assert 2 in sizes
    assert max(sizes) < 4
    for few in (probes.LOGITS, 1):
        monkeypatch.setattr(probes, "LOGITS", few)
        torch.testing.assert_close(prober.distance(*every), distance)
        again = prober.accepted(*every)["sampling"]
        torch.testing.assert_close(again.acceptance, accepted.acceptance)
        torch.testing.assert_close(again.outputs, accepted.outputs)


@torch.no_grad()
def test_a_teacher_beside_itself(two, prober: Prober) -> None:
    """Agrees with itself, diverges from nothing, and completes what it began."""
    teacher = two[1]
    own = [torch.tensor(continued(teacher, source, [])) for source in SOURCES]
    whole = mean_distance(prober.distance(teacher, REFERENCES).sum(dim=0))
    assert (whole.agreement, whole.kl) == (1.0, 0.0)
    assert [each.tolist() for each in prober.completed(teacher, own)] == [each.tolist() for each in own]


def test_all_figures_are_of_their_prefixes(two, prober: Prober, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gold is of the references, own of the student's outputs; the exposure's first is who begins."""
    student, teacher = two
    own, teachers = [tokens(4)] * 3, [tokens(5)] * 3
    full, few, nearly = (
        [[50.0, 50.0, 100.0, 150.0], [200.0, 100.0, 100.0, 50.0]],
        [49.0, 1.0, 1.0, 1.0],
        [50.0, 1.0, 1.0, 1.0],
    )
    gold = torch.tensor([*full, few, nearly, [0.0] * 4])  # too few on one side or the other
    after_own = torch.tensor([[50.0, 25.0, 100.0, 75.0], full[1], nearly, few, [0.0] * 4])
    monkeypatch.setattr(
        prober, "distance", lambda model, targets: gold if targets is REFERENCES else after_own
    )
    monkeypatch.setattr(prober, "completed", lambda author, begun: (author is teacher, begun is own))
    found = schema.plain(prober.probe(student, own=own, teachers=teachers, bleu=lambda made: made))
    assert tuple(
        found[f"{what}_{prefix}"] for prefix in ("gold", "own") for what in ("agreement", "kl", "nll")
    ) == pytest.approx(tuple(each / 349 for each in (152, 202, 202, 127, 202, 127)))
    first = {"tokens": 50, "kl": 2.0}
    second = {"tokens": 200, "agreement": 0.5, "kl": 0.5, "nll": 0.25}
    assert found["by_position"] == [
        {
            "from": 1,
            "to": 5,
            "gold": {**first, "agreement": 1.0, "nll": 3.0},
            "own": {**first, "agreement": 0.5, "nll": 1.5},
        },
        {"from": 6, "to": 10, "gold": second, "own": second},
    ]
    assert found["exposure"] == {
        "student": own,
        "student_then_teacher": (True, True),
        "teacher_then_student": (False, False),
        "teacher": teachers,
    }


def test_probabilities_that_are_no_numbers_are_said_so(prober: Prober) -> None:
    """A figure that is none would make the file unreadable."""
    broken = build_student("transformer").eval()
    with torch.no_grad():
        broken.decoder.embed_tokens.weight[4:] = float("nan")
    assert len(LETTERS) == 16
    with pytest.raises(ValueError, match="not a number"):
        prober.distance(broken, REFERENCES)
