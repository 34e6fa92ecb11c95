"""LayerDrop draws random numbers in training mode alone, wherever a training decodes or scores."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.data import LanguagePairDataset, ListDataset
from fairseq.modules import LayerDropModuleList
from fairseq.sequence_generator import SequenceGenerator
from torch import nn

from fairseq_imitkd.checkpoints.kinds import check_model
from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.models.layer_drop import layers_of
from fairseq_imitkd.rollout import RolloutPolicy
from fairseq_imitkd.rollout.fast_transformer import unsupported_reason
from fairseq_imitkd.teacher.likelihood import likelihoods
from fairseq_imitkd.teacher.teacher import Teacher
from tests.helpers import in_process
from tests.helpers.fairseq_models import (
    build_student,
    letters,
    make_batch,
    reversed_pairs,
    roll_out,
    teacher_logits,
    tiny_task,
)
from tests.helpers.teacher_checkpoints import with_layer_drop

DROPPED = {"encoder_layers": 3, "decoder_layers": 3, "encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5}
LIMITS = {"max_len_a": 0.0, "max_len_b": 4}
BATCH = make_batch(reversed_pairs(4, seed=1))


def dropping() -> Any:
    """Return an untrained model with LayerDrop on both sides, in training mode."""
    return build_student(**DROPPED).train()


def in_fairseqs_steps(model: Any) -> None:
    """Decode with a model that the fast path does not take."""
    model.decoder.layers[0].fc1.register_forward_hook(lambda *_: None)
    assert unsupported_reason(model) is not None
    roll_out(model, BATCH, RolloutPolicy(**LIMITS))


def generated(model: Any, kind: Any = None, **flags: Any) -> None:
    tiny_task().build_generator([model], Namespace(**LIMITS, **flags), kind).generate([model], BATCH)


def first_references(model: Any) -> None:
    side = ListDataset([torch.tensor([5, 6, 7, 8, 2])] * 4, [5] * 4)
    dataset = LanguagePairDataset(side, side.sizes, letters(), side, side.sizes, letters())
    assert likelihoods(Teacher([model]), dataset, pad=1, symbols=len(letters()))


PLACES: dict[str, Callable[[Any], Any]] = {
    "a rollout": lambda model: roll_out(model, BATCH, RolloutPolicy(**LIMITS)),
    "a rollout in fairseq's steps": in_fairseqs_steps,
    "a teacher's logits": lambda model: teacher_logits(Teacher([model]), BATCH),
    "a teacher's encoder": lambda model: Teacher([model]).encode(BATCH),
    "agreement": lambda model: (teacher := Teacher([model])).agreement(
        BATCH, teacher.encode(BATCH), pad=1, chunk=0
    ),
    "the first references": first_references,
    "the kind of a checkpoint's model": lambda model: check_model(
        model, LanguagePair("src", "tgt", letters(), letters())
    ),
    "validation": lambda model: model.eval()(**BATCH["net_input"]),
    "greedy search": lambda model: generated(model, beam=1),
    "beam search": lambda model: generated(model, beam=2),
    "fairseq's search": lambda model: generated(model, SequenceGenerator, beam=2),
}


@pytest.mark.parametrize("place", PLACES)
def test_evaluation_draws_nothing(place: str) -> None:
    """The state of torch's generator stays, though the model has LayerDrop in encoder and decoder."""
    model = dropping()
    state = torch.get_rng_state()
    PLACES[place](model)
    assert torch.get_rng_state().equal(state)


def test_training_drops_the_layers_that_fairseq_drops() -> None:
    """The numbers are those of fairseq: one for each layer, and a layer stays if its number is above p."""
    layers = LayerDropModuleList(0.5, [nn.Identity() for _ in range(8)])
    for seed in range(5):
        torch.manual_seed(seed)
        found = list(layers)
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        numbers = torch.empty(8).uniform_()
        kept = numbers > 0.5
        assert found == [layer for layer, stays in zip(layers.children(), kept, strict=True) if stays]
        assert torch.get_rng_state().equal(state)
    assert list(layers.eval()) == list(layers.children())


def test_all_layers_are_listed_in_training_mode() -> None:
    model = dropping()
    state = torch.get_rng_state()
    assert layers_of(model.decoder) == [model.decoder.layers[number] for number in range(3)]
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize(
    "flags",
    [
        ("--criterion", "imitkd_full", "--student-share", "0.5"),
        ("--criterion", "f_distill_kl", "--teacher-samples"),
        ("--criterion", "gkd", "--student-share", "1", "--rollout-policy", "speculative"),
    ],
    ids=["rollouts", "teacher samples", "speculative"],
)
def test_teachers_layer_drop_changes_no_bit(flags: tuple, digits, teacher, tmp_path: Path) -> None:
    """A teacher drops no layer, so a student learns the same from a teacher that was trained with LayerDrop.

    The student drops its own layers, and has dropout.
    """
    own = ("--encoder-layerdrop", 0.5, "--decoder-layerdrop", 0.5, "--dropout", 0.3)
    paths = with_layer_drop(teacher, tmp_path / "teacher.pt"), teacher
    found = [
        in_process.train(
            digits.data, tmp_path / str(number), "--task", "translation_with_teacher", "--teacher-path", path,
            "--teacher-data", digits.data, "--disable-validation", "--no-save", "--max-update", 3,
            *flags, *own,
        ).weights()
        for number, path in enumerate(paths)
    ]  # fmt: skip
    assert all(value.equal(found[1][name]) for name, value in found[0].items())
