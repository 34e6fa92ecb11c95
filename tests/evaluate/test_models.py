"""Which of the models the others are compared with by default."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fairseq_imitkd.evaluate.models import EvaluatedModel, _is_taught, without_teacher


def model(size: int, taught: bool | None) -> EvaluatedModel:
    rest: Any = None
    return EvaluatedModel(
        Path("x"), "fairseq", None, arch=None, parameters=size, longest=(9, 9), engine=rest, taught=taught
    )


TEACHER, SCRATCH, OTHER = model(100, False), model(10, False), model(12, False)
IMITKD, EXPORTED = model(10, True), model(10, None)


@pytest.mark.parametrize(
    ("models", "teacher", "expected"),
    [
        ({"t": TEACHER, "a": SCRATCH, "b": IMITKD}, "t", "a"),
        ({"t": TEACHER, "o": OTHER, "a": SCRATCH, "b": IMITKD}, "t", "a"),
        ({"t": TEACHER, "a": SCRATCH, "b": IMITKD}, None, "a"),
        ({"t": TEACHER, "a": SCRATCH, "b": EXPORTED}, None, "a"),
        ({"t": TEACHER, "a": SCRATCH}, "t", "a"),
        ({"t": TEACHER, "a": SCRATCH}, None, None),
        ({"t": TEACHER, "b": IMITKD}, "t", None),
        ({"t": TEACHER, "b": IMITKD}, None, None),
    ],
)
def test_the_baseline_is_the_student_without_a_teacher(models, teacher, expected) -> None:
    assert without_teacher(models, teacher) == expected


def test_who_was_trained_with_a_teacher(tmp_path: Path) -> None:
    """By its method, by a teacher's weights, or by a teacher's translations."""

    def taught(criterion: str, **task: str) -> bool | None:
        return _is_taught(
            SimpleNamespace(criterion=SimpleNamespace(_name=criterion), task=SimpleNamespace(**task))
        )

    own = {"data": str(tmp_path / "data-bin")}
    assert taught("cross_entropy", **own) is False
    assert taught("imitkd_full", **own) is True
    assert taught("one_of_another_package", **own) is None
    assert taught("cross_entropy", init_from_teacher="encoder", **own) is True
    for name in ("job.json", "manifest.json"):
        (tmp_path / name).write_text("{}")
    assert taught("cross_entropy", **own) is True
    assert _is_taught(SimpleNamespace()) is None
