"""The scripts of the recipes: every row is a command that fairseq and the method accept; tables say what the JSON says."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fairseq import options
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from fairseq_imitkd.criterion import DistillationCriterion
from fairseq_imitkd.settings import check

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = sorted(path.parent.name for path in EXAMPLES.glob("*/settings.sh") if (path.parent / "seqkd.sh").exists())
STAGES = {"prepare.sh", "teacher.sh", "student.sh", "seqkd.sh", "distill.sh", "evaluate.sh", "run.sh"}


def trainings(recipe: str, run: Path, **environment: str) -> dict[str, list[str]]:
    """What a recipe would train: name -> arguments of imitkd-train."""
    return run_dry(EXAMPLES / recipe / "run.sh", run, **environment)


def run_dry(script: Path, run: Path, *arguments: str, **environment: str) -> dict[str, list[str]]:
    variables = {**os.environ, "DRY_RUN": "1", "DEVICE": "cpu", "RUN": str(run), **environment}
    done = subprocess.run(["bash", str(script), *arguments], env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line)[1:] for line in done.stdout.splitlines()]
    return {Path(value_of("--save-dir", command)).name: command for command in commands}


def value_of(flag: str, command: list[str]) -> str:
    """The last one counts."""
    return command[len(command) - command[::-1].index(flag)]


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipes_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_all_recipes_have_the_same_stages() -> None:
    assert {"iwslt14_de_en", "wmt16_en_de", "cnn_dm", "multi30k", "tatoeba", "reuters_headlines"} == set(RECIPES)
    for recipe in RECIPES:
        assert {path.name for path in (EXAMPLES / recipe).glob("*.sh")} >= STAGES | {"settings.sh"}, recipe
        assert (EXAMPLES / recipe / "README.md").exists(), recipe
        for script in STAGES:
            assert os.access(EXAMPLES / recipe / script, os.X_OK), f"{recipe}/{script}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_row_is_a_command_that_is_accepted(recipe: str, tmp_path: Path) -> None:
    commands = trainings(recipe, tmp_path)
    for name, command in commands.items():
        parser = options.get_training_parser()
        cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, input_args=command))
        distils = issubclass(CRITERION_REGISTRY[cfg.criterion._name], DistillationCriterion)
        assert distils == ("--teacher-path" in command), name
        if distils:
            assert cfg.task._name == "translation_with_teacher"
            check(cfg.criterion, cfg.criterion._name, CRITERION_REGISTRY[cfg.criterion._name].Config())
        assert cfg.checkpoint.maximize_best_checkpoint_metric, name


@pytest.mark.parametrize("recipe", RECIPES)
def test_headlines_are_trained_twice_and_differ_only_in_the_seed(recipe: str, tmp_path: Path) -> None:
    commands = trainings(recipe, tmp_path)
    doubled = {name: command for name, command in commands.items() if name.endswith("-seed2")}
    assert len(doubled) == 3
    for name, command in doubled.items():
        first = commands[name.removesuffix("-seed2")]
        assert (value_of("--seed", first), value_of("--seed", command)) == ("1", "2")
        differing = {(a, b) for a, b in zip(first, command, strict=True) if a != b}
        assert differing == {("1", "2"), (value_of("--save-dir", first), value_of("--save-dir", command))}


@pytest.mark.parametrize("recipe", RECIPES)
def test_students_learn_from_what_their_row_says(recipe: str, tmp_path: Path) -> None:
    for name, command in trainings(recipe, tmp_path).items():
        expected = "data_seqkd" if name.startswith("seqkd") else "data_seq_inter" if name.startswith("seq_inter") else ""
        assert command[0] == str(tmp_path / expected / "data-bin"), name
        if name != "teacher" and not name.startswith(("scratch", "seqkd_", "seqkd-", "seq_inter")) and name != "seqkd":
            assert name.startswith(value_of("--criterion", command)), name


def test_a_start_is_another_student(tmp_path: Path) -> None:
    [command] = run_dry(EXAMPLES / "multi30k" / "distill.sh", tmp_path, "gkd", START="scratch").values()
    assert value_of("--finetune-from-model", command) == str(tmp_path / "scratch" / "checkpoint_best.pt")
    [without] = run_dry(EXAMPLES / "multi30k" / "distill.sh", tmp_path, "gkd").values()
    assert "--finetune-from-model" not in without


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"DEVICE": "tpu"}, "DEVICE must be cpu or cuda, but is 'tpu'"),
        ({"SEED": "one"}, "SEED must be a number, but is 'one'"),
        ({"STUDENT": "rnn"}, "STUDENT must be transformer or sru, but is 'rnn'"),
    ],
)
def test_wrong_variables_are_refused(environment: dict[str, str], message: str, tmp_path: Path) -> None:
    variables = {**os.environ, "DEVICE": "cpu", "RUN": str(tmp_path / "run"), **environment}
    script = EXAMPLES / "multi30k" / "student.sh"
    done = subprocess.run(["bash", str(script)], env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.strip() == f"student.sh: {message}"


def test_a_smoke_run_and_a_real_one_do_not_share_a_folder(tmp_path: Path) -> None:
    run_dry(EXAMPLES / "multi30k" / "student.sh", tmp_path, SMOKE="1")
    variables = {**os.environ, "DEVICE": "cpu", "RUN": str(tmp_path), "DRY_RUN": "1"}
    script = EXAMPLES / "multi30k" / "student.sh"
    done = subprocess.run(["bash", str(script)], env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "holds a run with SMOKE=1" in done.stderr


def test_the_tables_of_the_readmes_are_those_of_the_results() -> None:
    for path, text in module("tables").readmes().items():
        assert path.read_text() == text, f"{path} is stale: run examples/tables.py"


def test_a_table_shows_every_seed_and_the_readmes_are_filled_between_their_marks(tmp_path: Path) -> None:
    tables = module("tables")
    results = made_results()
    table = tables.recipe_table(results)
    rows = [line for line in table.splitlines() if line.startswith(("| scratch", "| teacher", "| imitkd"))]
    assert [re.split(r" *\| *", row)[1:3] for row in rows] == [
        ["teacher", "1"],
        ["scratch", "1"],
        ["imitkd", "1"],
        ["imitkd", "2"],
    ]
    assert "| 31.00 (30.0 to 32.0) | 0.010 |" in rows[2]
    assert "`imitkd` 32.00" in table  # of 31 and 33
    assert "| +2.00 |" in tables.overview([results])
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    assert tables.filled(readme, "new") == "before\n<!-- results -->\nnew\n<!-- /results -->\nafter\n"
    readme.write_text("no place\n")
    with pytest.raises(SystemExit, match="must have a place for its table"):
        tables.filled(readme, "new")


def made_results() -> dict[str, Any]:
    def model(score: float) -> dict[str, Any]:
        bleu = {"score": score, "low": score - 1, "high": score + 1}
        decoding = {"greedy": {"bleu": bleu, "chrf": {"score": 50.0}}, "beam 5": {"bleu": bleu}}
        return {"parameters": 1000, "decoding": decoding, "speed": {"32": {"sentences_per_second": score}}}

    scores = {"teacher": 40.0, "scratch": 30.0, "imitkd": 31.0, "imitkd-seed2": 33.0}
    training = {"commits": ["abc"], "command": "imitkd-train", "updates": 5, "valid_score": 1.0, "minutes": 2.0}
    return {
        "recipe": "made",
        "trainings": dict.fromkeys(scores, training),
        "chance": {name: {"scratch": 0.01} if name == "imitkd" else {} for name in scores},
        "evaluation": {
            "models": {name: model(score) for name, score in scores.items()},
            "data": {"sentences": 10},
            "machine": {"processor": "p", "cores": 2, "threads": 1},
            "signatures": {"bleu": "s"},
            "commit": "def",
            "versions": {"torch": "2"},
        },
    }


def test_training_facts_come_from_the_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    results = module("results")
    assert results.training(tmp_path, "teacher")["command"] is None  # a downloaded one
    assert results.lines.__doc__
    text = tmp_path / "text"
    text.write_text("one\u2028still one\ntwo\n")
    assert results.lines(text, 2) == ["one\u2028still one", "two"]
    with pytest.raises(SystemExit, match="must have 3 lines"):
        results.lines(text, 3)


def test_chance_is_of_the_same_seed_and_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    results = module("results")
    references = [f"this is sentence number {number} of the test" for number in range(40)]
    worse = [line.replace("number", "word") if number % 3 else line for number, line in enumerate(references)]
    texts = {
        "teacher": references, "scratch": worse, "imitkd": references, "seqkd": worse[::-1], "scratch-seed2": references,
        "imitkd-seed2": references, "scratch_sru": worse, "imitkd_sru": references,
    }  # fmt: skip
    for name, written in {**texts, "references": references}.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(written) + "\n")
    models = {name: {"decoding": {"greedy": {"outputs": f"{name}.txt", "bleu": {}}}} for name in texts}
    evaluation = {"models": models, "files": {"references": "references.txt"}, "data": {"target_lang": "en"}}
    found = results.chance(tmp_path, evaluation)
    assert found["imitkd"]["scratch"] < 0.01
    assert found["imitkd"]["seqkd"] < 0.01
    assert found["imitkd-seed2"] == {"scratch": None}  # they write the same, and there is no seqkd of that seed
    assert found["imitkd_sru"]["scratch"] < 0.01
    assert "seqkd" not in found["imitkd_sru"]
    assert found["teacher"] == {}
    assert found["scratch"].keys() == {"seqkd"}


def test_no_results_are_left_of_a_recipe_that_is_gone() -> None:
    for path in EXAMPLES.glob("*/results.json"):
        found = json.loads(path.read_text())
        if "evaluation" in found:
            assert found["recipe"] == path.parent.name
            assert all(training["commits"] for name, training in found["trainings"].items() if name != "teacher")
