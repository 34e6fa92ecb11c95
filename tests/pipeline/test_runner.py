"""A run of a plan: which steps are done, and how Snakemake is started."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.pipeline import runner
from fairseq_imitkd.pipeline.plan import STATE, Command, Plan, Step
from fairseq_imitkd.pipeline.recipe_file import parse
from fairseq_imitkd.pipeline.runner import DONE, Engine, Run
from tests.pipeline.recipes import recipe
from tests.pipeline.test_plan import DIGESTS, HERE


def made_of(steps: Sequence[Step]) -> Plan:
    """Return a plan of some steps."""
    made = Plan(parse(recipe(HERE, methods=["none"]), HERE), DIGESTS)
    made.steps[:] = steps
    return made


def done(run: Run) -> set[str]:
    return {name for name, status in run.statuses().items() if status.state == DONE}


def finish(run: Run) -> None:
    """Make the results of all steps, and note that they are done."""
    (run.out / STATE / "done").mkdir(parents=True)
    for step in run.plan.steps:
        for result in step.results:
            (run.out / result).parent.mkdir(parents=True, exist_ok=True)
            (run.out / result).touch()
        (run.out / STATE / "done" / f"{step.name}.{step.key}").touch()


@pytest.mark.parametrize(
    ("removed", "undone"),
    [
        ("models/none-seed1", {"train-none-seed1", "evaluate", "report"}),
        ("evaluation.md", {"evaluate", "report"}),
        ("report.html", {"report"}),
    ],
)
def test_a_step_without_its_results_is_not_done(removed: str, undone: set[str], tmp_path: Path) -> None:
    """Nor are those that need it, and its training has nothing to continue."""
    run = Run(Plan(parse(recipe(HERE), HERE), DIGESTS), tmp_path)
    finish(run)
    begun = tmp_path / STATE / "begun" / "train-none-seed1"
    begun.parent.mkdir()
    begun.write_text(run.plan.step("train-none-seed1").key)
    every = {step.name for step in run.plan.steps}
    assert done(run) == every
    (tmp_path / removed).unlink()
    assert done(run) == every - undone
    assert run.continues(run.plan.step("train-none-seed1")) == (removed != "models/none-seed1")
    run._forget()
    assert {path.name.partition(".")[0] for path in (tmp_path / STATE / "done").iterdir()} == every - undone


def test_a_run_that_another_one_keeps_out_begins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even its recipe is kept."""
    monkeypatch.setattr(runner, "PATIENCE", 0.0)
    run = Run(made_of([]), tmp_path)
    (tmp_path / STATE).mkdir()
    with run._held(), pytest.raises(UsageError, match="is in use by another imitkd-distill; wait for its"):
        run.run(Engine(cores=1), Path(), begin=lambda: pytest.fail("it begins"))


def test_a_file_named_as_a_module_of_python_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snakemake's process starts in the user's folder."""
    (tmp_path / "queue.py").write_text("raise SystemExit('my own queue')")
    monkeypatch.chdir(tmp_path)
    runner.check_flags_of_snakemake(["--keep-going"])

    def step(name: str, *needs: str) -> Step:
        return Step(name, (Command(("sh", "-c", f"echo 1 >> {name}")),), (name,), needs, key="k")

    run = Run(made_of([step("one"), step("two", "one")]), Path("out"))
    began: list[Any] = []
    run.run(
        Engine(cores=1, flags=("--until", "one")), Path(sys.executable).parent, begin=lambda: began.append(1)
    )
    assert done(run) == {"one"}
    assert began == [1]
