"""A student that learns from the teacher alone learns the task."""

import pytest

from tests.helpers import in_process


@pytest.fixture(scope="module")
def teacher_score(digits, teacher, tmp_path_factory) -> float:
    return in_process.exact_matches(
        in_process.generate(digits.data, teacher, tmp_path_factory.mktemp("decoded")), digits.references()
    )


def test_the_teacher_can_do_the_task(teacher_score):
    """The tests below need a teacher that writes more than nine in ten sentences without a mistake."""
    assert teacher_score > 0.9


@pytest.mark.parametrize(
    "criterion",
    [
        "imitkd_full",
        pytest.param("imitkd", marks=pytest.mark.slow),
        pytest.param("word_kd", marks=pytest.mark.slow),
    ],
)
def test_a_student_learns_the_task(criterion, digits, teacher, teacher_score, tmp_path):
    """From random weights and by the method's loss alone, it gets far above chance."""
    in_process.train(
        digits.data, tmp_path, "--task", "translation_with_teacher", "--teacher-path", teacher, "--criterion",
        criterion, "--max-update", 350, "--max-tokens", 1200, "--lr", "1e-2", "--warmup-updates", 100,
        "--seed", 7, "--disable-validation", "--save-interval", 1000,
    )  # fmt: skip
    found = in_process.generate(digits.data, tmp_path / "checkpoint_last.pt", tmp_path, "--beam", 1)
    assert in_process.exact_matches(found, digits.references()) > 0.6 * teacher_score
