"""What a checkpoint may hold is counted before it is used; real files are far from the bounds."""

import codecs
import collections
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.models import BaseFairseqModel
from omegaconf import OmegaConf
from torch import nn

from fairseq_imitkd.checkpoints.bounds import (
    ELEMENTS,
    TooLarge,
    check_content,
    check_expression,
    check_settings,
)
from fairseq_imitkd.checkpoints.budget import Budget, OverBudget
from fairseq_imitkd.checkpoints.safe_load import find_damage
from tests.helpers.fairseq_models import STUDENTS, build_student, checkpoint_state
from tests.helpers.hostile_files import Code
from tests.helpers.teacher_checkpoints import refusal, saved, state_with


@pytest.mark.parametrize(
    "text",
    [
        "[(512, 3)] * 4 + [(1024, -1)]", "(0.9, 0.98)", "[3, 7, 15, 31]", "True", "10", "-1", "+1.5",
        "3 * [1, 2]", "[[1, 2]] * 10", "[]", "[1] * -5", f"[0] * {ELEMENTS}", "1.2.3", "2020-01-01", "",
    ],
)  # fmt: skip
def test_expressions_of_architectures_pass(text: str) -> None:
    """So do texts that are not Python."""
    check_expression(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"[0] * {ELEMENTS + 1}", "it stands for 10,0.. elements"),
        ("[[0] * 200] * 200", "elements"),
        ("1000 * (1000 * [1])", "elements"),
        ("+".join(["[1] * 5000"] * 3), "elements"),
        ("[1, [0] * 99999]", "elements"),
        ("99999 * 99999 * 99999 * 99999", "a number beyond 63 bits"),
        ("[9223372036854775808]", "a number beyond 63 bits"),
        ("(1)(2)", "it is not a list of numbers"),
        ("[1][0]", "it is not a list of numbers"),
    ],
)
def test_expressions_that_stand_for_much_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_expression(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": {"layers": 2**63}}, r"its setting model\.layers is a whole number of 64 bits"),
        ({"model": Namespace(dropout=float("nan"))}, r"its setting model\.dropout is not a number"),
        ({"task": {"data": "x" * 100_001}}, r"its setting task\.data is too long \(100,001 characters\)"),
        ({"task": {f"a{n}": "x" * 99_000 for n in range(11)}}, "is too long"),
        ({"lr": [0.1] * 501}, "its setting lr is a list of 501 values"),
        ({f"a{n}": n for n in range(10_001)}, "it has more than 10,000 settings"),
        ({"model": {"encoder_layers": -1}}, r"its setting model\.encoder_layers is -1"),
        (OmegaConf.create({"model": {"decoder_attention_heads": -2}}), "decoder_attention_heads is -2"),
    ],
    ids=lambda value: f"{value}"[:40],
)
def test_settings_that_cost_or_can_not_be_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(TooLarge, match=message):
        check_settings(settings)


def test_settings_of_trainings_pass(cfg: Any) -> None:
    """A list of 9,900 pairs of languages, an infinite score and a switch of -1 too."""
    check_settings(OmegaConf.to_container(cfg))
    pairs = [f"{one}-{other}" for one in range(100) for other in range(99)]
    check_settings({"task": {"lang_pairs": pairs}, "best": float("inf"), "mha_heads_to_keep": -1})


def laughs(levels: int) -> list[Any]:
    """Return a list that holds 2**levels lists, in as many objects as levels."""
    laugh: list[Any] = []
    for _ in range(levels):
        laugh = [laugh, laugh]
    return laugh


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (laughs(60), "more values than it has bytes"),
        ({"a": 2**300}, "a whole number of 301 bits"),
        ([torch.zeros(1).expand(1000, 1000)], r"a tensor of shape \[1000, 1000\] in 4 bytes"),
        ([torch.zeros(100_000)], "its tensors need 400,000 bytes, but it has 5,000"),
        ([torch.zeros(2, device="meta")], "on meta"),
        ([torch.zeros(2, 2).to_sparse()], "sparse"),
    ],
    ids=["laughs", "bits", "expanded", "large", "meta", "sparse"],
)
def test_content_that_no_file_of_its_size_holds_is_refused(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_content(content, 5000)


def test_deep_content_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    with pytest.raises(TooLarge, match="more than 100 levels"):
        check_content(deep, 5000)


def test_content_that_is_shared_passes() -> None:
    """Names of one tensor, and lists that are held twice."""
    shared = torch.zeros(1000)
    check_content({"a": shared, "b": shared, "c": shared[:10], "d": laughs(10)}, 5000)


@pytest.mark.parametrize("name", STUDENTS)
def test_models_are_within_the_budget_of_their_weights(name: str) -> None:
    """With much to spare: a tenth of the tensors, and an eighth of the numbers, would do."""
    budget = Budget(build_student(name).state_dict().values())
    numbers, tensors = budget.numbers, budget.tensors
    with budget:
        build_student(name)
    assert numbers - budget.numbers < 2**20
    assert 0 < tensors - budget.tensors < 1000


@pytest.mark.parametrize(
    "build",
    [
        lambda: torch.empty(10**6, 10**6),
        lambda: torch.arange(10**12),
        lambda: nn.Linear(10**6, 10**6),
        lambda: nn.Embedding(10**9, 10**4),
        lambda: torch.arange(10**5)[:, None] * torch.arange(10**5)[None],
        lambda: torch.ones(10**4).repeat(10**6),
        lambda: [nn.Linear(2, 2) for _ in range(10**7)],
        lambda: nn.LSTM(2, 2, num_layers=10**7),
    ],
    ids=["empty", "arange", "linear", "embedding", "product", "repeat", "layers", "recurrent"],
)
def test_what_is_over_budget_is_not_made(build: Callable[[], Any]) -> None:
    """Each of these would need terabytes, or hours."""
    message = "its settings describe a larger model than its weights, 1 tensors of 4 numbers"
    with pytest.raises(OverBudget, match=message), Budget([torch.zeros(4)]):
        build()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("encoder_layers", 10**7, "describe a larger model"),
        ("max_source_positions", 10**12, "describe a larger model"),
        ("adaptive_softmax_cutoff", "[0]*1000000000", "can't be read: it stands for 1,000,000,000 elements"),
        ("adaptive_softmax_cutoff", "1<<80000000000", "holds an expression"),
        ("adaptive_softmax_cutoff", "x*9999999999", "holds an expression"),
        ("pretrained_path", "${oc.env:HOME}", "refers to another value"),
    ],
)
def test_settings_are_bounded_where_teachers_are_read(
    folder: Path, cfg: Any, model: BaseFairseqModel, name: str, value: Any, message: str
) -> None:
    path = saved(folder, state_with(model, cfg, "model", **{name: value}))
    assert message in refusal(path)


@pytest.mark.parametrize(
    "bomb",
    [
        Code(bytearray, 10**10),
        Code(codecs.encode, b"x", "hex"),
        Code(codecs.encode, "x", "utf-32"),
        Code(set, Code(torch.Tensor, 10**6)),
        Code(list, Code(torch.UntypedStorage, 10**6)),
        Code(list, torch.zeros(10)),
        Code(collections.Counter, torch.zeros(10)),
        Code(torch.Size, Code(torch.UntypedStorage, 10**6)),
        Code(torch.Tensor, 10**6),
        Code(torch.FloatTensor, 10**6),
    ],
)
def test_functions_that_fill_the_memory_are_not_called(
    folder: Path, cfg: Any, model: BaseFairseqModel, bomb: Code
) -> None:
    """torch's safe loader would call them. What bytes need of them is allowed."""
    path = saved(folder, checkpoint_state(model, cfg, note=bomb))
    assert "is damaged or not a checkpoint" in refusal(path)
    for harmless in (b"\x00\xff", bytearray(b"\x00\xff")):
        assert find_damage(saved(folder, checkpoint_state(model, cfg, note=harmless))) is None
