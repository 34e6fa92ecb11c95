"""What a rollout leaves as it was, and the clock that times it."""

import time
from typing import Any

import pytest
import torch
from fairseq.modules import MultiheadAttention
from torch import nn

from fairseq_imitkd.rollout import RolloutPolicy
from fairseq_imitkd.rollout.engine import evaluating
from fairseq_imitkd.training.stage_timer import StageClock
from tests.helpers.fairseq_models import build_student, counting_student, make_batch, reversed_pairs, roll_out


def mixed_model() -> nn.Sequential:
    """A training model of which one part is frozen in evaluation mode."""
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
    model.train()
    model[1][0].eval()
    return model


def test_evaluating_restores_each_modules_own_mode() -> None:
    """Not the root's mode for all: a frozen part stays frozen."""
    model = mixed_model()
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
    assert len(set(before)) == 2


def test_evaluating_restores_the_modes_when_an_error_passes() -> None:
    """Running out of memory in a rollout must not leave the student without dropout for the rest of the training."""
    model = mixed_model()
    before = [module.training for module in model.modules()]
    with pytest.raises(torch.OutOfMemoryError), evaluating(model):
        raise torch.OutOfMemoryError
    assert [module.training for module in model.modules()] == before


def beam_sizes(model: nn.Module) -> list[int]:
    """What each attention takes the beam to be."""
    return [module.beam_size for module in model.modules() if isinstance(module, MultiheadAttention)]


@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError])
def test_evaluating_sets_the_beam_aside(error: type[Exception] | None) -> None:
    """Each attention's own comes back, for the generator that set it: also when an error passes."""
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
    """Its tokens go into a batch that is trained on; its parameters keep asking for gradients."""
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
    """fairseq reseeds it once an update: what is dropped must be the same with and without rollouts."""
    model, sample = build_student(**settings), make_batch(reversed_pairs(3, seed=1))
    state = torch.get_rng_state()
    roll_out(model.train(), sample, RolloutPolicy("sampling", max_len_a=0.0, max_len_b=3))
    assert torch.get_rng_state().equal(state)


def test_padding_is_never_written() -> None:
    """A student that thinks padding most probable writes its second choice, greedy or sampled."""
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


def test_clock_adds_up_stages_and_starts_anew() -> None:
    """On the CPU every second is told at once, also of a stage that an error ended."""
    clock = StageClock(torch.device("cpu"))
    with clock.stage("whole"):
        for _ in range(2):
            with clock.stage("part"):
                time.sleep(0.01)
    with pytest.raises(KeyError), clock.stage("failed"):
        raise KeyError
    seconds = clock.read()
    assert set(seconds) == {"whole", "part", "failed"}
    assert 0.02 <= seconds["part"] <= seconds["whole"]
    assert clock.read() == {}


def test_finished_rows_leave_the_batch() -> None:
    """Scripted lengths of 1 to 8 tokens: each step computes little more than the rows that are still being written."""
    model = counting_student()
    sample = make_batch([([length] + [0] * (12 - length), [1]) for length in range(8)] * 4)
    rollout = roll_out(model, sample, RolloutPolicy(max_len_a=0.0, max_len_b=10))
    tokens = int(rollout.tokens.ne(1).sum())
    assert tokens == 4 * sum(range(1, 9))
    assert model.decoder.rows_at_step == [32, 28, 24, 20, 16, 12, 8, 4]
    assert rollout.rows_computed == tokens
