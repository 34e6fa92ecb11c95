"""A teacher whose linear layers are kept in eight bits."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from fairseq_imitkd.teacher.int8 import RowwiseInt8, megabytes, quantise
from fairseq_imitkd.teacher.teacher import Teacher
from tests.helpers.fairseq_models import build_student, make_batch, reversed_pairs, teacher_logits


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """Return a matrix rounded by the definition, in float64."""
    rows = []
    for row in weight.double():
        step = max(abs(number) for number in row.tolist()) / 127
        rows.append([round(number / step) * step for number in row.tolist()] if step else [0.0] * len(row))
    return torch.tensor(rows, dtype=torch.float64)


def test_numbers_are_the_nearest() -> None:
    """Each row has its own step, its largest number is kept, and a row of zeros stays one."""
    weight = (
        torch.randn(5, 33, generator=torch.Generator().manual_seed(1)) * torch.tensor([[1e-6, 1, 40, 0, 3]]).T
    )
    scheme = RowwiseInt8(torch.float32)
    numbers, scales = scheme.right_inverse(weight)
    assert numbers.dtype == torch.int8
    found = scheme(numbers, scales)
    torch.testing.assert_close(found.double(), rounded(weight), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.abs().amax(1), weight.abs().amax(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("student", [torch.float32, torch.float16, torch.bfloat16])
def test_logits_are_those_of_the_rounded_model(student: torch.dtype) -> None:
    """Bit for bit. The logits' matrix and the embeddings are not rounded."""
    model = build_student(seed=2)
    reference = copy.deepcopy(model)
    for name, module in reference.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith("output_projection"):
            module.weight.data = rounded(module.weight.data).float()
    sample = make_batch(reversed_pairs(6, seed=3))
    teachers = Teacher([model], dtype="int8"), Teacher([reference])
    for teacher in teachers:
        teacher.place(torch.device("cpu"), student)
    found, expected = (teacher_logits(teacher, sample) for teacher in teachers)
    assert found.dtype == student
    torch.testing.assert_close(found, expected, rtol=1e-5 if student == torch.float32 else 1e-2, atol=1e-5)
    assert (found - teacher_logits(_placed(build_student(seed=2), student), sample)).abs().max() > 0


def _placed(model: nn.Module, dtype: torch.dtype) -> Teacher:
    teacher = Teacher([model])
    teacher.place(torch.device("cpu"), dtype)
    return teacher


def test_a_later_placement_keeps_the_scales() -> None:
    """In half precision they would lose digits, or underflow."""
    teacher = Teacher([build_student(seed=2)], dtype="int8")
    sample = make_batch(reversed_pairs(6, seed=3))
    teacher.place(torch.device("cpu"), torch.float32)
    expected = teacher_logits(teacher, sample)
    teacher._students_device = torch.device("meta")  # as if the student had been elsewhere
    teacher.place(torch.device("cpu"), torch.float16)
    assert teacher_logits(teacher, sample).equal(expected)


def test_memory() -> None:
    """A linear layer's weights take a quarter of the bytes, and four more a row."""
    model = build_student(seed=2)
    before = megabytes(model)
    linear = [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith("output_projection")
    ]
    saved = sum(3 * weight.numel() - 4 * len(weight) for weight in linear) / 1e6
    Teacher([model], dtype="int8").place(torch.device("cpu"), torch.float32)
    assert megabytes(model) == pytest.approx(before - saved, abs=1e-6)
    assert len(linear) > 10


def test_what_computes_logits_is_not_rounded() -> None:
    """By the names of translation models, recurrent language models, adaptive softmax and classifiers."""
    parts = {
        "layers": nn.ModuleDict({"fc1": nn.Linear(4, 4), "out_proj": nn.Linear(4, 4)}),
        "output_projection": nn.Linear(4, 4),
        "fc_out": nn.Linear(4, 4),
        "adaptive_softmax": nn.ModuleDict({"head": nn.Linear(4, 4)}),
        "classification_heads": nn.ModuleDict({"sentiment": nn.ModuleDict({"out_proj": nn.Linear(4, 4)})}),
    }
    model = nn.ModuleDict({"decoder": nn.ModuleDict(parts)}).requires_grad_(False)
    quantise(model, torch.float32)
    rounded_ones = {name for name, module in model.named_modules() if is_parametrized(module, "weight")}
    assert rounded_ones == {"decoder.layers.fc1", "decoder.layers.out_proj"}
