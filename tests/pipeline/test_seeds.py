"""The table of methods over seeds."""

import json
from pathlib import Path

import numpy as np
import pytest

from fairseq_imitkd.pipeline.plan import Plan
from fairseq_imitkd.pipeline.recipe_file import parse
from fairseq_imitkd.pipeline.seeds import compared, mean, rows, warning
from fairseq_imitkd.text.bootstrap import Bootstrap
from tests.helpers import report_files
from tests.pipeline.recipes import recipe


def system(score: float, shift: float = 0.0) -> Bootstrap:
    """A system whose resampled scores lie around its score, as those of the same test sentences do."""
    noise = np.random.default_rng(1).normal(size=1000)
    return Bootstrap(score, score + noise + shift * np.random.default_rng(2).normal(size=1000))


def test_a_mean_is_resampled_with_its_seeds() -> None:
    both = mean([system(30.0), system(34.0)])
    assert both.score == 32.0
    assert both.resampled == pytest.approx((system(30.0).resampled + system(34.0).resampled) / 2)


def test_rows_compare_means_with_the_baseline() -> None:
    """The difference of two systems that vary with the same sentences is surer than either score."""
    systems = {
        "teacher": [],
        "none": [system(30.0), system(32.0)],
        "gkd": [system(33.0, 0.1), system(35.0, 0.1)],
    }
    lines = rows(systems, "none", {})
    assert len(lines) == 4, "what was not evaluated has no row"
    none, gkd = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:])
    assert none[:2] == ["none", "2"]
    assert none[3:] == ["30.00 to 32.00", "", "", "", ""]
    assert gkd[3] == "33.00 to 35.00"
    assert gkd[4].startswith("+3.00 (+2.8")
    assert gkd[5] == "0.001"


def test_students_stand_beside_their_teacher() -> None:
    """Also where no method is a baseline. A difference that is rounded to zero has no sign."""
    systems = {"teacher": [system(36.0)], "imitkd": [system(31.0)], "exported": [system(30.999)]}
    speeds = {"teacher": [10.0], "imitkd": [20.0, 30.0], "exported": [80.0]}
    lines = rows(systems, "imitkd", speeds)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [each[-2:] for each in cells] == [["", ""], ["-5.00", "2.5"], ["-5.00", "8.0"]]
    assert cells[2][4] == "0.00 (0.00 to 0.00)"


def test_the_share_of_right_translations_has_a_column() -> None:
    """If a recipe has all of them; it is the mean of the seeds."""
    systems = {"teacher": [system(36.0)], "imitkd": [system(30.0), system(31.0)]}
    lines = rows(systems, "imitkd", {}, right={"teacher": [0.75], "imitkd": [0.25, 0.5]})
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [each[3] for each in (cells[0], *cells[2:])] == ["right", "75.0%", "37.5%"]
    assert {len(each) for each in cells} == {9}
    assert "right" not in rows(systems, "imitkd", {})[0]


def test_the_models_of_a_run(tmp_path: Path) -> None:
    """A translation is right if it is one of its sentence's; names that were not evaluated have no row."""
    folder = report_files.evaluation(tmp_path / "evaluation", 2)
    models = json.loads((folder / "evaluation.json").read_text())["models"]
    report_files.change(folder, models={"teacher": models["m0"], "none-seed1": models["m1"]})
    references = (folder / "references.txt").read_text().splitlines()
    wrong = (folder / "m1.greedy.txt").read_text().splitlines()
    # Every student's translation of the first half is right.
    right = [
        f"{one}\t{own}" if line < 10 else one
        for line, (one, own) in enumerate(zip(references, wrong, strict=True))
    ]
    (folder / "right.tsv").write_text("".join(f"{line}\n" for line in right))
    text = {split: [f"{split}.src", f"{split}.tgt"] for split in ("train", "valid", "test")}
    share = sum(own in line.split("\t") for own, line in zip(wrong, right, strict=True)) / len(right)
    assert 0.5 <= share < 1.0
    for more, shown in (({"references": "all.tsv"}, ["right", "100.0%", f"{share:.1%}"]), ({}, None)):
        made = compared(Plan(parse(recipe(tmp_path, text={**text, **more}), tmp_path), {}), tmp_path)
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in made.table.splitlines()]
        assert [each[0] for each in cells[2:]] == ["teacher", "none"]
        assert shown in (None, [each[3] for each in (cells[0], *cells[2:])])
        assert ("right" in cells[0]) == (shown is not None)


def test_a_student_that_is_no_use_is_told() -> None:
    """It has less than a tenth of its teacher's BLEU."""
    systems = {"teacher": [system(36.0)], "imitkd": [system(3.0)], "gkd": [system(4.0)]}
    assert (warning(systems) or "").startswith("imitkd: less than a tenth of the teacher's BLEU; train")
    assert warning({**systems, "imitkd": [system(3.7)]}) is None
    assert warning({"imitkd": [system(0.0)]}) is None
