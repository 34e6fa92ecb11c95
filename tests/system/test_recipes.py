"""Every stage of every recipe, with tiny models on made-up text: from raw text to the table."""

import json
import os
import subprocess
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
# One row of each kind that a recipe has; tests/examples/test_recipes.py reads the flags of all others.
ROWS = {
    "multi30k": ["scratch", "seqkd", "seqkd_pruned"],
    "tatoeba": ["scratch", "gkd"],
    "reuters_headlines": ["scratch", "imitkd"],
    "iwslt14_de_en": ["scratch", "seqkd", "seq_inter"],
    "wmt16_en_de": ["scratch", "imitkd_full"],
    "cnn_dm": ["scratch", "seqkd_imitkd_full"],
}


def run(recipe: str, folder: Path, *rows: str, script: str = "run.sh", status: int = 0) -> str:
    environment = {
        **os.environ, "SMOKE": "1", "SEEDS": "1", "DEVICE": "cpu", "OMP_NUM_THREADS": "1", "RUN": str(folder)
    }  # fmt: skip
    command = ["bash", str(EXAMPLES / recipe / script), *rows]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == status, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr


@pytest.mark.parametrize("recipe", ROWS)
def test_every_stage_runs(recipe: str, tmp_path: Path) -> None:
    output = run(recipe, tmp_path, *ROWS[recipe])
    results = json.loads((tmp_path / "results.json").read_text())
    models = results["evaluation"]["models"]
    rows = {name.removesuffix("_sru") for name in models}
    assert rows >= {"teacher", *ROWS[recipe]}
    assert "| teacher | 1 |" in output
    for name in models:
        training = results["trainings"][name]
        assert 1e8 < training["peak_bytes"] < 1e10
        assert training["updates"] == (200 if name == "teacher" else 2), name
        assert str(tmp_path) not in training["command"]
        assert training["commits"]
    assert str(tmp_path) not in results["evaluation"]["command"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["quickstart", "lifelong"])
def test_the_made_up_languages(recipe: str, tmp_path: Path) -> None:
    """Every stage with few updates; a second call does nothing anew."""
    few = dict.fromkeys(("TEACHER_UPDATES", "STUDENT_UPDATES", "MORE_UPDATES", "TASK_UPDATES"), "3")
    environment = {**os.environ, **few, "DEVICE": "cpu", "RUN": str(tmp_path)}
    script = str(EXAMPLES / recipe / "run.sh")
    before: dict[Path, int] = {}
    for again in (False, True):
        done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        assert ("table: done before" in done.stderr) == again
        trained = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/checkpoint_last.pt")}
        assert trained == (before if again else trained)
        before = trained
    results = json.loads((tmp_path / "results.json").read_text())
    for model in results["models"].values():
        training = results["trainings"][model["folder"]]
        assert training["updates_in_all"] == 3
        assert training["command"].startswith("imitkd-train run/data-bin")
        assert str(tmp_path) not in training["command"]
    assert (tmp_path / "table.md").read_text() in done.stdout


def test_an_exported_student_is_evaluated_beside_the_others(tmp_path: Path) -> None:
    run("multi30k", tmp_path, "scratch")
    run("multi30k", tmp_path, "scratch", script="export.sh")
    run("multi30k", tmp_path, script="evaluate.sh")
    results = json.loads((tmp_path / "results.json").read_text())
    models = results["evaluation"]["models"]
    assert list(models) == ["teacher", "scratch", "scratch_exported"]
    assert models["scratch_exported"]["quantization"] == "int8"
    assert results["trainings"]["scratch_exported"]["commits"] == []
    assert "scratch" in results["chance"]["scratch_exported"]

    # One that can't be loaded costs its own row.
    (tmp_path / "scratch" / "exported" / "imitkd.json").write_text("{}")
    assert "not every model was evaluated" in run("multi30k", tmp_path, script="evaluate.sh", status=1)
    assert list(json.loads((tmp_path / "results.json").read_text())["evaluation"]["models"]) == [
        "teacher",
        "scratch",
    ]
