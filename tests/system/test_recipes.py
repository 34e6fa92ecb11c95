"""Every stage of every recipe with tiny models on generated text, from raw text to the table."""

import json
from pathlib import Path

import pytest

from tests.helpers import scripts
from tests.helpers.scripts import EXAMPLES

# One row of each kind; tests/examples/test_recipes.py checks the flags of all other rows.
ROWS = {
    "multi30k": ["scratch", "seqkd", "seqkd_pruned"],
    "tatoeba": ["scratch", "gkd"],
    "cmudict": ["scratch"],
    "made_up_languages": ["scratch"],
    "reuters_headlines": ["scratch", "imitkd"],
    "iwslt14_de_en": ["scratch", "seqkd", "seq_inter"],
    "wmt16_en_de": ["scratch", "imitkd_full"],
    "cnn_dm": ["scratch", "seqkd_imitkd_full"],
}


def run(
    recipe: str,
    folder: Path,
    *rows: str,
    script: str = "run.sh",
    status: int = 0,
    real: bool = False,
    **variables: str,
) -> str:
    """Run a recipe's script with tiny models. Return its output. ``real``: every command is a new Python."""
    environment = scripts.environment(folder, real=real, SMOKE="1", SEEDS="1", **variables)
    done = scripts.call(EXAMPLES / recipe / script, *rows, env=environment)
    assert done.returncode == status, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr


# Their scripts are those of multi30k, but for the data.
ALIKE = ("iwslt14_de_en", "wmt16_en_de", "tatoeba", "reuters_headlines", "cmudict", "made_up_languages")


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["forked", "real"])
@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=[pytest.mark.slow] * (name in ALIKE)) for name in ROWS]
)
def test_every_stage_runs(recipe: str, real: bool, tmp_path: Path) -> None:
    """Commands are forks of a process that has imported the package, or each is a new Python (slow)."""
    output = run(recipe, tmp_path, *ROWS[recipe], real=real)
    results = json.loads((tmp_path / "results.json").read_text())
    models = results["evaluation"]["models"]
    rows = {name.removesuffix("_sru") for name in models}
    assert rows >= {"teacher", *ROWS[recipe]}
    assert "| teacher | 1 |" in output
    for name in models:
        training = results["trainings"][name]
        if real:  # a forked command is not a child of the script that measures its memory
            assert 1e8 < training["peak_bytes"] < 1e10
        assert training["updates"] == (200 if name == "teacher" else 2), name
        assert str(tmp_path) not in training["command"]
        assert training["commits"]
    assert str(tmp_path) not in results["evaluation"]["command"]


@pytest.mark.slow
def test_language_models_that_write_worked_steps(tmp_path: Path) -> None:
    """With small models, every stage runs, and a second call trains nothing."""
    output = run("arithmetic", tmp_path, "scratch", "seqkd", "word_kd", "gkd")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["models"].keys() == {"teacher", "scratch", "seqkd", "word_kd", "gkd"}
    assert "| `gkd` | 1 |" in output
    assert "gkd: already done" in run("arithmetic", tmp_path, "gkd")


@pytest.mark.slow
def test_language_models_that_write_headlines(tmp_path: Path) -> None:
    """With small models, every stage runs; subwords are joined before they are scored."""
    output = run("headlines_lm", tmp_path, "scratch", "seqkd", "gkd")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["models"].keys() == {"teacher", "scratch", "seqkd", "gkd"}
    assert "| `gkd` | 1 |" in output
    assert "▁" not in (tmp_path / "teacher" / "test.txt").read_text().split("H-", 1)[1]


@pytest.mark.slow
def test_one_student_of_several_languages(tmp_path: Path) -> None:
    """With small models, every stage runs, and each pair has its score."""
    output = run("many_languages", tmp_path, "scratch", "seqkd", "imitkd_full")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["models"].keys() == {"teacher", "scratch", "seqkd", "imitkd_full"}
    assert results["models"]["seqkd"]["scores"].keys() == {"de-en", "en-de", "de-xx"}
    assert "| `imitkd_full` | 1 |" in output


def test_a_model_of_hugging_face_becomes_a_student_in_int8(tmp_path: Path) -> None:
    """With random weights and made-up text, every stage runs."""
    output = run("from_huggingface", tmp_path)
    assert "logits differ from those of transformers by at most" in output
    assert "symbols instead of" in output
    manifest = json.loads((tmp_path / "exported" / "imitkd.json").read_text())
    assert (manifest["form"], manifest["quantization"]) == ("ctranslate2", "int8")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["quickstart", "lifelong"])
def test_the_generated_languages(recipe: str, tmp_path: Path) -> None:
    """Every stage runs with few updates. A second call repeats nothing."""
    few = dict.fromkeys(("STUDENT_UPDATES", "MORE_UPDATES", "TASK_UPDATES"), "3")
    # The students refuse a teacher that does not know the references.
    environment = scripts.environment(tmp_path, TEACHER_UPDATES="300", **few)
    before: dict[Path, int] = {}
    for again in (False, True):
        done = scripts.call(EXAMPLES / recipe / "run.sh", env=environment)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        assert ("table: already done" in done.stderr) == again
        shown = recipe == "quickstart" and not again  # as soon as the student is trained
        assert ("scratch test BLEU" in done.stdout) == shown
        trained = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/checkpoint_last.pt")}
        assert trained == (before if again else trained)
        before = trained
    results = json.loads((tmp_path / "results.json").read_text())
    for model in results["models"].values():
        training = results["trainings"][model["folder"]]
        assert training["updates_in_all"] == (300 if model["folder"].startswith("teacher") else 3)
        assert training["command"].startswith("imitkd-train run/data-bin")
        assert str(tmp_path) not in training["command"]
    assert (tmp_path / "table.md").read_text() in done.stdout


@pytest.mark.slow
def test_quality_estimation(tmp_path: Path) -> None:
    """Every stage runs with small models and few pairs."""
    output = run("quality_estimation", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    rows = {f"{row}_{size}" for row in ("scratch", "distilled", "more") for size in ("half", "eighth")}
    assert set(results["models"]) == {"teacher", *rows}
    assert results["pairs"] == 30
    assert "| more_eighth | 1 |" in output
    assert all(str(tmp_path) not in training["command"] for training in results["trainings"].values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "rows"),
    [
        ("de", ("scratch", "seqkd", "imitkd_full", "then_word_kd")),
        ("frame", ("scratch", "matched", "after_word_kd")),
        ("en", ("ctc", "ctc_seqkd", "ctc_kd")),
    ],
)
def test_spoken_commands(target: str, rows: tuple[str, ...], tmp_path: Path) -> None:
    """Every stage runs with few commands, and with tones instead of speech."""
    output = run("speech", tmp_path, *rows, TARGET=target)
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["models"]) == {"teacher", *rows} - {"matched"}
    assert f"| `{rows[-1]}` | 1 |" in output
    assert all(str(tmp_path) not in training["command"] for training in results["trainings"].values())


@pytest.mark.slow
def test_a_teacher_s_data(tmp_path: Path) -> None:
    """Every stage runs with few sentences and updates."""
    output = run("teacher_data", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert {"seqkd", "several", "feedback"} < set(results["models"])
    assert (tmp_path / "table.md").read_text() in output


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

    # A student that can't be loaded costs its own row alone.
    (tmp_path / "scratch" / "exported" / "imitkd.json").write_text("{}")
    assert "not every model was evaluated" in run("multi30k", tmp_path, script="evaluate.sh", status=1)
    assert list(json.loads((tmp_path / "results.json").read_text())["evaluation"]["models"]) == [
        "teacher",
        "scratch",
    ]
