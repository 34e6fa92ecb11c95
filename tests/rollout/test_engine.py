"""What a rollout must not change, and the timer of its stages."""

import time
from typing import Any

import pytest
import torch
from fairseq.modules import MultiheadAttention
from torch import nn

from fairseq_imitkd.rollout import Rollout, RolloutPolicy
from fairseq_imitkd.rollout.engine import evaluating
from fairseq_imitkd.training.stage_timer import StageTimer
from tests.helpers.fairseq_models import (
    build_student,
    counting_student,
    letters,
    make_batch,
    reversed_pairs,
    roll_out,
    written,
)


def mixed_model() -> nn.Sequential:
    """A model in training mode, with one part frozen in evaluation mode."""
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
    model.train()
    model[1][0].eval()
    return model


def test_evaluating_restores_each_modules_own_mode() -> None:
    """Modules do not all get the root's mode: a frozen part stays frozen."""
    model = mixed_model()
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
    assert len(set(before)) == 2


def test_evaluating_restores_the_modes_after_an_error() -> None:
    """A rollout that runs out of memory must not leave the student without dropout."""
    model = mixed_model()
    before = [module.training for module in model.modules()]
    with pytest.raises(torch.OutOfMemoryError), evaluating(model):
        raise torch.OutOfMemoryError
    assert [module.training for module in model.modules()] == before


def beam_sizes(model: nn.Module) -> list[int]:
    """The beam size that is set in each attention."""
    return [module.beam_size for module in model.modules() if isinstance(module, MultiheadAttention)]


@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError])
def test_evaluating_restores_the_beam_sizes(error: type[Exception] | None) -> None:
    """The generator that set them finds them again, also after an error."""
    model = build_student()
    attentions = [module for module in model.modules() if isinstance(module, MultiheadAttention)]
    for number, attention in enumerate(attentions):
        attention.set_beam_size(number + 3)
    before = beam_sizes(model)
    assert len(set(before)) == 3
    try:
        with evaluating(model):
            assert set(beam_sizes(model)) == {1}
            if error:
                raise error
    except torch.OutOfMemoryError:
        assert error
    assert beam_sizes(model) == before


def test_rollout_leaves_no_gradient_and_no_inference_tensor() -> None:
    """Its tokens become part of a training batch, and its parameters still require gradients."""
    model = build_student()
    rollout = roll_out(
        model, make_batch(reversed_pairs(3, seed=1)), RolloutPolicy(max_len_a=0.0, max_len_b=3)
    )
    assert not rollout.tokens.is_inference()
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    "settings", [{}, {"decoder_layers": 3, "decoder_layerdrop": 0.5}], ids=["dropout", "LayerDrop"]
)
def test_rollout_does_not_touch_torchs_generator(settings: dict[str, Any]) -> None:
    """fairseq seeds it once per update, so dropout must be the same with and without rollouts."""
    model, sample = build_student(**settings), make_batch(reversed_pairs(3, seed=1))
    state = torch.get_rng_state()
    roll_out(model.train(), sample, RolloutPolicy("sampling", max_len_a=0.0, max_len_b=3))
    assert torch.get_rng_state().equal(state)


def test_padding_is_never_written() -> None:
    """If padding is most probable, the student writes its second choice, greedy or sampled."""
    model = build_student().eval()
    model.decoder.output_projection.weight.data.zero_()
    model.decoder.output_projection.bias = nn.Parameter(torch.zeros(20))
    model.decoder.output_projection.bias.data[1] = 50.0
    sample = make_batch(reversed_pairs(6, seed=1))
    for name in ("greedy", "sampling"):
        rollout = roll_out(model, sample, RolloutPolicy(name, max_len_a=0.0, max_len_b=4))
        lengths = rollout.tokens.ne(1).sum(-1)
        assert all(row[:length].ne(1).all() for row, length in zip(rollout.tokens, lengths, strict=True))
        assert (lengths > 0).all()


def test_timer_sums_stages_and_starts_again() -> None:
    """On a CPU, the times are available at once, including those of a stage that an error ended."""
    timer, cpu = StageTimer(), torch.device("cpu")
    with timer.stage("whole", cpu):
        for _ in range(2):
            with timer.stage("part", cpu):
                time.sleep(0.01)
    with pytest.raises(KeyError), timer.stage("failed", cpu):
        raise KeyError
    seconds = timer.read("whole", "part", "failed", "never")
    assert 0.02 <= seconds["part"] <= seconds["whole"]
    assert seconds["failed"] > 0.0
    assert seconds["never"] == 0.0
    assert timer.read("part") == {"part": 0.0}


def test_finished_rows_leave_the_batch() -> None:
    """With scripted lengths of 1 to 8 tokens, each step computes hardly more than the unfinished rows."""
    model = counting_student()
    sample = make_batch([([length] + [0] * (12 - length), [1]) for length in range(8)] * 4)
    rollout = roll_out(model, sample, RolloutPolicy(max_len_a=0.0, max_len_b=10))
    tokens = int(rollout.tokens.ne(1).sum())
    assert tokens == 4 * sum(range(1, 9))
    assert model.decoder.rows_at_step == [32, 28, 24, 20, 16, 12, 8, 4]
    assert rollout.rows_computed == tokens


def test_truncated_row_that_stays_in_the_batch_remains_truncated() -> None:
    """One finished row of twelve is too few to drop, so it stays. Its text ends at its own maximum length."""
    sources = [[9] * 9] * 11 + [[9]]
    sample = make_batch([(source, [0]) for source in sources])
    rollout = roll_out(counting_student(), sample, RolloutPolicy(max_len_a=0.5, max_len_b=0))
    assert rollout.truncated.tolist() == [True] * 12
    letter_b = letters().nspecial + 1
    assert written(rollout) == [[letter_b] * 5] * 11 + [[letter_b]]


def test_part_of_a_rollout() -> None:
    """It has the rows in the given order, no empty column, and the given cost."""
    pad = letters().pad()
    tokens = torch.tensor([[4, 5, 6, 2], [7, 2, pad, pad], [8, 9, 2, pad]])
    rollout = Rollout(tokens, torch.tensor([True, False, True]), 12)
    part = rollout.part(torch.tensor([2, 1]), pad, 5)
    assert part.tokens.tolist() == [[8, 9, 2], [7, 2, pad]]
    assert part.truncated.tolist() == [True, False]
    assert part.rows_computed == 5
    assert part.lprobs is None
