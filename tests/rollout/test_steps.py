"""The decoding steps of single models and of ensembles."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fairseq_imitkd.rollout import Ensemble
from fairseq_imitkd.rollout.steps import EnsembleSteps, begin_decoding
from tests.helpers.fairseq_models import build_student, letters, make_batch, reversed_pairs

LONGEST = 4


def encoder_arguments() -> dict[str, Any]:
    """Return the encoder's arguments for three sentences."""
    given = make_batch(reversed_pairs(3, seed=3))["net_input"]
    return {name: value for name, value in given.items() if name != "prev_output_tokens"}


def first_tokens(rows: int) -> Tensor:
    """Return prefixes that hold only the EOS at which decoding begins, ``(R, 1)``."""
    return torch.full((rows, 1), letters().eos())


@pytest.mark.parametrize("name", ["transformer", "lstm"])
@torch.no_grad()
def test_rows_of_a_sentence_are_adjacent(name: str) -> None:
    """Each row has the logits of its sentence."""
    model, given = build_student(name).eval(), encoder_arguments()
    single = begin_decoding(model, given, longest=LONGEST).logits(first_tokens(3))
    for samples in (1, 2, 4):
        found = begin_decoding(model, given, longest=LONGEST, samples=samples)
        torch.testing.assert_close(
            found.logits(first_tokens(3 * samples)), single.repeat_interleave(samples, dim=0)
        )


@torch.no_grad()
def test_ensemble_averages_probabilities() -> None:
    """An ensemble of one model has nothing to average, so its steps are those of the model."""
    models, given = [build_student(seed=seed).eval() for seed in (1, 2)], encoder_arguments()
    one = begin_decoding(Ensemble(models[:1], torch.zeros(1)), given, longest=LONGEST)
    assert not isinstance(one, EnsembleSteps)
    both = begin_decoding(Ensemble(models, torch.tensor([0.5, 0.5]).log()), given, longest=LONGEST)
    assert isinstance(both, EnsembleSteps)
    assert both.rows_computed == 0
    alone = [begin_decoding(model, given, longest=LONGEST).logits(first_tokens(3)) for model in models]
    expected = sum(logits.softmax(-1) for logits in alone) / 2
    torch.testing.assert_close(both.logits(first_tokens(3)).exp(), expected)
    assert both.rows_computed == 3


@torch.no_grad()
def test_ensemble_has_several_rows_per_sentence() -> None:
    """This holds for an ensemble of one model and for a larger one."""
    models, given = [build_student(seed=seed).eval() for seed in (1, 2)], encoder_arguments()
    for members in (models[:1], models):
        writer = Ensemble(members, torch.full((len(members),), 1.0 / len(members)).log())
        single = begin_decoding(writer, given, longest=LONGEST).logits(first_tokens(3))
        double = begin_decoding(writer, given, longest=LONGEST, samples=2).logits(first_tokens(6))
        torch.testing.assert_close(double, single.repeat_interleave(2, dim=0))


class CountedSteps:
    """Steps that compute a fixed number of rows each time."""

    def __init__(self, rows: int):
        self.rows, self.rows_computed = rows, 0

    def logits(self, tokens: Tensor) -> Tensor:
        self.rows_computed += self.rows
        return torch.zeros(tokens.size(0), 4)

    def keep(self, rows: Tensor) -> None:
        raise NotImplementedError


def test_ensemble_counts_the_rows_of_its_first_member() -> None:
    """Another member may compute more rows, because its steps round their number up."""
    both = EnsembleSteps([CountedSteps(3), CountedSteps(8)], torch.tensor([0.5, 0.5]).log())
    for _ in range(2):
        both.logits(first_tokens(3))
    assert both.rows_computed == 6
