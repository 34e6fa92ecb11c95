"""The sizes of a recipe's models, before anything is trained."""

from pathlib import Path
from typing import Any

import pytest

from fairseq_imitkd.cli import distill
from fairseq_imitkd.pipeline import inputs
from fairseq_imitkd.pipeline.models import Sizes, sizes, teacher_of
from fairseq_imitkd.pipeline.plan import Plan
from fairseq_imitkd.pipeline.recipe_file import parse
from tests.pipeline.recipes import recipe


@pytest.mark.parametrize(
    ("students", "line", "warns"),
    [
        (
            {"a": 500, "b": 500},
            "parameters: student 500, teacher 2,000 (the student has 25% of them",
            False,
        ),
        (
            {"a": 500, "b": 2500},
            "parameters: largest student (b) 2,500, teacher 2,000 (the stu",
            True,
        ),
        ({"a": 2000}, "parameters: student 2,000, teacher 2,000 (the student has 100% of them)", True),
    ],
)
def test_a_student_that_is_not_smaller_is_told(students: dict[str, int], line: str, warns: bool) -> None:
    made = Sizes(students, 2000, is_exact=True)
    assert str(made).startswith(line)
    assert (made.warning is not None) == warns
    if made.warning:
        assert f"{max(students, key=lambda name: students[name])}'s student has" in made.warning
        assert "choose a smaller arch or smaller dimensions" in made.warning
        assert len(made.warning) < 200


def test_a_teacher_that_is_not_imported_is_not_counted() -> None:
    made = Sizes({"a": 500}, None, is_exact=False)
    assert (str(made), made.warning) == (
        "parameters are not counted: the teacher is not imported yet",
        None,
    )


def test_models_are_counted_over_the_teachers_dictionary(digits: Any, teacher: Path) -> None:
    """A student of the teacher's own architecture has as many parameters; weights are not needed for that."""
    own = {"checkpoint": str(teacher), "dictionaries": str(digits.dictionaries)}
    wanted = parse(recipe(digits.text, teacher=own, methods=["imitkd_full"]), Path())
    students = distill.check(Plan(wanted, inputs.look(wanted).digests))
    made = sizes(wanted, students)
    model = teacher_of(wanted)
    assert made.teacher == sum(each.numel() for each in model.parameters())
    assert made.is_exact
    assert students["imitkd_full"].decoder.embed_tokens.num_embeddings == (
        model.decoder.embed_tokens.num_embeddings
    )
