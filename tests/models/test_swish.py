"""fairseq's activation ``swish`` works: as a function, in a model, and as a choice of the command line."""

from pathlib import Path

import torch
from fairseq import utils

from tests.helpers.fairseq_models import (
    build_student,
    make_batch,
    reversed_pairs,
    training_args,
    training_config,
)


def test_it_is_a_function() -> None:
    """Others are what they were."""
    values = torch.linspace(-4, 4, 9)
    torch.testing.assert_close(utils.get_activation_fn("swish")(values), values * torch.sigmoid(values))
    assert utils.get_activation_fn(activation="relu") is torch.nn.functional.relu


def test_a_model_runs_and_learns() -> None:
    """All of its weights get a gradient."""
    model = build_student("transformer", activation_fn="swish")
    logits = model(**make_batch(reversed_pairs(3, seed=1))["net_input"])[0]
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_it_is_a_choice_of_the_command_line() -> None:
    """In fairseq's parser, and in the configuration that it becomes."""
    assert training_args(Path("data"), "--activation-fn", "swish").activation_fn == "swish"
    assert training_config(Path("data"), "--activation-fn", "swish").model.activation_fn == "swish"
