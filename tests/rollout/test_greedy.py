"""Greedy rollouts are what fairseq's own ``SequenceGenerator`` writes at beam 1, token for token."""

import copy

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator

from fairseq_imitkd.rollout import RolloutPolicy, steps
from tests.helpers.fairseq_models import (
    LETTERS,
    STUDENTS,
    build_student,
    letters,
    make_batch,
    reversed_pairs,
    roll_out,
    trained_student,
    written,
)

CAP = 10
GREEDY = RolloutPolicy("greedy", max_len_a=0.0, max_len_b=CAP)


def generated(model, sample, **settings: int) -> list[list[int]]:
    """fairseq's translations, EOS included; it forces one at the cap."""
    generator = SequenceGenerator([model], letters(), beam_size=1, max_len_a=0, max_len_b=CAP, min_len=0)
    with torch.no_grad():
        return [
            hypotheses[0]["tokens"].tolist() for hypotheses in generator.generate([model], sample, **settings)
        ]


def with_forced_end(rollout) -> list[list[int]]:
    """Our rollouts with the EOS that fairseq forces where the cap cuts."""
    eos = letters().eos()
    return [
        [*row, eos] if cut else row
        for row, cut in zip(written(rollout), rollout.truncated.tolist(), strict=True)
    ]


def uncached(model, sample, row: int) -> tuple[list[int], bool]:
    """One sentence alone, its whole prefix decoded anew for each token: ``(tokens, cut by the cap)``."""
    pad, eos = letters().pad(), letters().eos()
    source = sample["net_input"]["src_tokens"][row]
    source = source[source.ne(pad)].unsqueeze(0)
    prefix = [eos]
    with torch.no_grad():
        for _ in range(CAP + 1):
            logits = model(source, torch.tensor([source.size(1)]), torch.tensor([prefix]))[0][0, -1]
            logits[pad] = -torch.inf
            prefix.append(int(logits.argmax()))
            if prefix[-1] == eos:
                return prefix[1:], False
    return prefix[1 : CAP + 1], True


@pytest.mark.parametrize("name", STUDENTS)
def test_trained_student_writes_what_the_sequence_generator_writes(name: str) -> None:
    """For batches of any size, among them sentences that end at very different steps."""
    model = trained_student(name)
    lengths = set()
    for size, seed in ((1, 5), (2, 6), (7, 7), (40, 8)):
        sample = make_batch(reversed_pairs(size, seed))
        rollout = roll_out(model, sample, GREEDY)
        assert with_forced_end(rollout) == generated(model, sample)
        lengths |= {len(row) for row in written(rollout)}
    assert len(lengths) >= 4, "the toy is too easy to tell engines apart"


@pytest.mark.parametrize(
    "name", [name for name in STUDENTS if name != "bart"]
)  # untrained, BART soon ends by itself
def test_untrained_student_is_cut_at_the_cap(name: str) -> None:
    """The rows that fairseq ends by force are marked and hold no EOS; the others end in their own."""
    model = build_student(name, seed=3).eval()
    sample = make_batch(reversed_pairs(12, seed=9))
    rollout = roll_out(model, sample, GREEDY)
    assert with_forced_end(rollout) == generated(model, sample)
    assert rollout.truncated.any()
    for row, cut in zip(written(rollout), rollout.truncated.tolist(), strict=True):
        assert (letters().eos() not in row) if cut else (row.index(letters().eos()) == len(row) - 1)
        assert len(row) == CAP if cut else len(row) <= CAP + 1


@pytest.mark.parametrize("name", STUDENTS)
def test_caches_change_nothing(name: str) -> None:
    """A batch decoded with caches equals each sentence alone decoded without: no row sees another's state."""
    model = trained_student(name)
    sample = make_batch(reversed_pairs(12, seed=10))
    rollout = roll_out(model, sample, GREEDY)
    expected = [uncached(model, sample, row) for row in range(12)]
    assert list(zip(written(rollout), rollout.truncated.tolist(), strict=True)) == expected


@pytest.mark.parametrize("name", ["transformer", "lstm", "fconv"])
def test_decoding_begins_with_the_language_tag(name: str) -> None:
    """What a batch gives as the first decoder input, in place of EOS, as fairseq's generator does with ``bos_token``."""
    model, sample = trained_student(name), make_batch(reversed_pairs(40, seed=13))
    with_eos = written(roll_out(model, sample, GREEDY))
    told_apart = 0
    for tag in map(letters().index, LETTERS):
        sample["net_input"]["prev_output_tokens"][:, 0] = tag
        rollout = roll_out(model, sample, GREEDY)
        assert with_forced_end(rollout) == generated(model, sample, bos_token=tag)
        told_apart += written(rollout) != with_eos
    assert told_apart > 0, "no tag changes what the toy writes"


@pytest.mark.parametrize("name", ["transformer", "lstm-bidirectional", "fconv"])
def test_neighbours_and_order_change_nothing(name: str) -> None:
    """A sentence's rollout is the same beside longer and shorter neighbours, and in another order."""
    model = trained_student(name)
    pairs = reversed_pairs(16, seed=11)
    rollouts = []
    for order in (range(16), range(15, -1, -1), range(0, 16, 2), range(5)):
        sample = make_batch([pairs[number] for number in order], ids=order)
        rollouts.append(
            dict(zip(sample["id"].tolist(), written(roll_out(model, sample, GREEDY)), strict=True))
        )
    for other in rollouts[1:]:
        assert other == {number: rollouts[0][number] for number in other}


@pytest.mark.parametrize("name", ["bart", "transformer"])
@pytest.mark.parametrize("size", [1, 5, 40])
@pytest.mark.parametrize("fast", [True, False])
def test_generators_beam_changes_nothing(
    name: str, size: int, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--eval-bleu`` builds a generator over the student, which leaves its beam in BART's attention: rollouts have none.

    The generator finds it again: what it writes at its beam is the same after a rollout as before.
    """
    if not fast:  # only fairseq's own steps read the beam
        monkeypatch.setattr(steps, "why_not", lambda _: "asked for")
    model = copy.deepcopy(trained_student(name))
    sample = make_batch(reversed_pairs(size, seed=14))
    expected = roll_out(model, sample, GREEDY)
    generator = SequenceGenerator([model], letters(), beam_size=5, max_len_a=0, max_len_b=CAP)

    def beams() -> list[list[list[int]]]:
        return [[beam["tokens"].tolist() for beam in beams] for beams in generator.generate([model], sample)]

    before = beams()
    rollout = roll_out(model, sample, GREEDY)
    assert rollout.tokens.equal(expected.tokens)
    assert rollout.truncated.equal(expected.truncated)
    assert beams() == before
    if name == "bart":
        assert any(getattr(module, "beam_size", 1) == 5 for module in model.decoder.modules())


def test_dropout_is_off_and_the_training_mode_comes_back() -> None:
    """A student in training mode writes what it writes in evaluation mode, and goes on in training mode."""
    model = trained_student("transformer")
    sample = make_batch(reversed_pairs(16, seed=12))
    expected = written(roll_out(model, sample, GREEDY))
    model.train()
    try:
        assert written(roll_out(model, sample, GREEDY)) == expected
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
