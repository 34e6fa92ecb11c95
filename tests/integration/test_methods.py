"""Every method in a whole training: fairseq's own loop, data and checkpoints."""

import pytest

from fairseq_imitkd.methods import METHODS
from tests import inside

UPDATES = 60


@pytest.mark.parametrize("name", METHODS)
def test_it_trains(name: str, digits, teacher, tmp_path) -> None:
    """By its own defaults, from nothing: the references' likelihood rises though most methods never read them."""
    training = inside.train(
        digits.data, tmp_path, "--task", "translation_with_teacher", "--teacher-path", teacher, "--criterion", name,
        "--max-update", UPDATES, "--validate-interval-updates", 10,
    )  # fmt: skip
    losses = [figures["nll_loss"] for figures in training.figures["valid"]]
    assert losses[-1] < 0.9 * losses[0]
