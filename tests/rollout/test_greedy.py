"""Greedy rollouts equal those of fairseq's ``SequenceGenerator`` with beam 1, token for token."""

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
    """fairseq's translations with their EOS, which fairseq forces at the maximum length."""
    generator = SequenceGenerator([model], letters(), beam_size=1, max_len_a=0, max_len_b=CAP, min_len=0)
    with torch.no_grad():
        return [
            hypotheses[0]["tokens"].tolist() for hypotheses in generator.generate([model], sample, **settings)
        ]


def with_forced_end(rollout) -> list[list[int]]:
    """Our rollouts, with the EOS that fairseq forces in truncated rows."""
    eos = letters().eos()
    return [
        [*row, eos] if cut else row
        for row, cut in zip(written(rollout), rollout.truncated.tolist(), strict=True)
    ]


def uncached(model, sample, row: int) -> tuple[list[int], bool]:
    """Decode one sentence alone, its whole prefix again for each token: ``(tokens, truncated)``."""
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
    """Batches of several sizes, with sentences that end at very different steps."""
    model = trained_student(name)
    lengths = set()
    for size, seed in ((1, 5), (2, 6), (7, 7), (40, 8)):
        sample = make_batch(reversed_pairs(size, seed))
        rollout = roll_out(model, sample, GREEDY)
        assert with_forced_end(rollout) == generated(model, sample)
        lengths |= {len(row) for row in written(rollout)}
    assert len(lengths) >= 4, "the sentences are too similar to compare engines"


@pytest.mark.parametrize(
    "name", [name for name in STUDENTS if name != "bart"]
)  # an untrained BART soon ends its sentences
def test_untrained_student_is_truncated_at_the_maximum_length(name: str) -> None:
    """Rows in which fairseq forces an EOS are truncated and hold no EOS; the others end in their own EOS."""
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
    """A batch decoded with caches equals its sentences decoded alone without: rows are independent."""
    model = trained_student(name)
    sample = make_batch(reversed_pairs(12, seed=10))
    rollout = roll_out(model, sample, GREEDY)
    expected = [uncached(model, sample, row) for row in range(12)]
    assert list(zip(written(rollout), rollout.truncated.tolist(), strict=True)) == expected


@pytest.mark.parametrize("name", ["transformer", "lstm", "fconv"])
def test_decoding_begins_with_the_language_tag(name: str) -> None:
    """The batch's first decoder input replaces EOS, as ``bos_token`` does in fairseq's generator."""
    model, sample = trained_student(name), make_batch(reversed_pairs(40, seed=13))
    with_eos = written(roll_out(model, sample, GREEDY))
    differing = 0
    for tag in map(letters().index, LETTERS):
        sample["net_input"]["prev_output_tokens"][:, 0] = tag
        rollout = roll_out(model, sample, GREEDY)
        assert with_forced_end(rollout) == generated(model, sample, bos_token=tag)
        differing += written(rollout) != with_eos
    assert differing > 0, "no tag changes what the student writes"


@pytest.mark.parametrize("name", ["transformer", "lstm-bidirectional", "fconv"])
def test_neighbours_and_order_change_nothing(name: str) -> None:
    """A sentence's rollout does not depend on its neighbours' lengths and order."""
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
def test_beam_of_a_generator_changes_nothing(
    name: str, size: int, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generator of ``--eval-bleu`` leaves its beam size in BART's attention; rollouts ignore it.

    The generator finds it again: its beams after a rollout are those before it.
    """
    if not fast:  # only fairseq's steps read the beam size
        monkeypatch.setattr(steps, "unsupported_reason", lambda _: "the test asks for it")
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


def test_dropout_is_off_and_the_training_mode_is_restored() -> None:
    """A student in training mode writes the same as in evaluation mode, and stays in training mode."""
    model = trained_student("transformer")
    sample = make_batch(reversed_pairs(16, seed=12))
    expected = written(roll_out(model, sample, GREEDY))
    model.train()
    try:
        assert written(roll_out(model, sample, GREEDY)) == expected
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
