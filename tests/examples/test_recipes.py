"""Tests of the recipes' scripts: fairseq and the method accept every row, and tables match their JSON."""

import argparse
import functools
import gzip
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from fairseq import options
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from fairseq_imitkd.criterion import DistillationCriterion
from fairseq_imitkd.method.checks import check
from fairseq_imitkd.methods import METHODS
from fairseq_imitkd.pipeline import packaged
from fairseq_imitkd.pipeline.plan import Plan
from fairseq_imitkd.pipeline.recipe import TEACHER
from fairseq_imitkd.pipeline.recipe_file import read
from tests.helpers import scripts, warm_commands
from tests.helpers.scripts import EXAMPLES

RECIPES = sorted(
    path.parent.name for path in EXAMPLES.glob("*/settings.sh") if (path.parent / "seqkd.sh").exists()
)
STAGES = {"prepare.sh", "teacher.sh", "student.sh", "seqkd.sh", "distill.sh", "evaluate.sh", "run.sh"}


@dataclass(frozen=True)
class DryRun:
    """The trainings of a recipe.

    Args:
        run: the recipe's ``RUN``.
        commands: arguments of ``imitkd-train`` by the training's name.
    """

    run: Path
    commands: dict[str, list[str]]


@pytest.fixture(scope="module")
def dry_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], DryRun]:
    """A function from a recipe's name to its dry run, which is made once."""

    @functools.cache
    def dry_run(recipe: str) -> DryRun:
        run = tmp_path_factory.mktemp(recipe)
        return DryRun(run, run_dry(EXAMPLES / recipe / "run.sh", run))

    return dry_run


def run_dry(script: Path, run: Path, *arguments: str, **environment: str) -> dict[str, list[str]]:
    done = call(script, run, *arguments, **{"DRY_RUN": "1", **environment})
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line)[1:] for line in done.stdout.splitlines()]
    return {Path(value_of("--save-dir", command)).name: command for command in commands}


def call(script: Path, run: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**scripts.environment(run), **environment}
    command = ["bash", str(script), *arguments]
    return subprocess.run(command, env=variables, cwd=run.parent, capture_output=True, text=True, timeout=60)


def common(
    run: Path, commands: str, recipe: str = "multi30k", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run bash commands after common.sh, as a recipe's script does."""
    variables = {**scripts.environment(run), **environment}
    script = f'source "{EXAMPLES}/common.sh"\n{commands}'
    command = ["bash", "-c", script, str(EXAMPLES / recipe / "probe.sh")]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)


def value_of(flag: str, command: list[str]) -> str:
    """Return a flag's last value."""
    return command[len(command) - command[::-1].index(flag)]


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipes_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_all_recipes_have_the_same_stages() -> None:
    assert {"iwslt14_de_en", "wmt16_en_de", "cnn_dm", "multi30k", "tatoeba", "reuters_headlines"} <= set(
        RECIPES
    )
    for recipe in RECIPES:
        assert {path.name for path in (EXAMPLES / recipe).glob("*.sh")} >= STAGES | {"settings.sh"}, recipe
        assert (EXAMPLES / recipe / "README.md").exists(), recipe
        for script in STAGES:
            assert os.access(EXAMPLES / recipe / script, os.X_OK), f"{recipe}/{script}"


def test_scripts_name_files_that_exist() -> None:
    """``$REPO/…`` in a script, of a recipe that only a slow test runs too."""
    for script in sorted(EXAMPLES.rglob("*.sh")):
        for path in re.findall(r"\$REPO/([\w./-]+\.\w+)", script.read_text(encoding="utf-8")):
            assert (EXAMPLES.parent / path).exists(), f"{script}: {path}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_row_is_a_command_that_is_accepted(recipe: str, dry_runs: Callable[[str], DryRun]) -> None:
    for name, command in dry_runs(recipe).commands.items():
        if not name.endswith("-seed2"):  # the next test shows that only the seed differs
            accept(name, command)


def parsed(command: list[str]) -> argparse.Namespace:
    """Return the arguments as fairseq parses them, with imitkd-train's default for the task."""
    words = ["--task", "translation_with_teacher", *command]
    return options.parse_args_and_arch(options.get_training_parser(), input_args=words)


def accept(name: str, command: list[str]) -> None:
    """Refuse a training's flags as fairseq and the method do."""
    args = parsed(command)
    criterion = CRITERION_REGISTRY[args.criterion]
    distils = issubclass(criterion, DistillationCriterion)
    assert distils == ("--teacher-path" in command), name
    if distils:
        check(criterion.Config.from_namespace(args), args.criterion, criterion.Config())
    assert args.maximize_best_checkpoint_metric, name


SAME = tuple(RECIPES)
ELSEWHERE = (
    "--save-dir",
    "--teacher-path",
    "--teacher-data",
    "--source-lang",
    "--target-lang",
    "--log-format",
)


def settings(command: list[str]) -> dict[str, str]:
    """Return the last value of each flag that decides what is trained."""
    found: dict[str, str] = {}
    for place, word in enumerate(command):
        if word.startswith("--"):
            following = command[place + 1] if place + 1 < len(command) else "--"
            found[word] = "" if following.startswith("--") else following
    start = found.get("--finetune-from-model")
    if start is not None:
        found["--finetune-from-model"] = Path(start).parent.name.partition("-seed")[0].partition("_sru")[0]
    return {flag: value for flag, value in found.items() if flag not in (*ELSEWHERE, "--cpu")}


@pytest.mark.parametrize("recipe", SAME)
def test_the_packaged_recipe_trains_the_same(recipe: str, dry_runs: Callable[[str], DryRun]) -> None:
    """``imitkd-distill multi30k`` has the trainings of ``examples/multi30k``."""
    wanted = read(packaged.path_of(recipe), Path("/text"))
    plan = Plan(wanted, {})
    scripts_own = dry_runs(recipe).commands
    names = {name: f"train-{name}" for name in (TEACHER,) if wanted.teacher.flags}
    students = [(method.name, f"train-{name}") for name, method, _ in plan.students()]
    names |= {name: step for name, step in students if not name.startswith("then_")}
    by_row = {name.removesuffix("_sru"): command for name, command in scripts_own.items()}
    by_row = {name: command for name, command in by_row.items() if not name.endswith("-seed2")}
    assert set(by_row) - set(names) <= {TEACHER}  # wmt16_en_de's is published
    for row, step in names.items():
        [command] = plan.step(step).commands
        assert settings(list(command.words)) == settings(by_row[row]), row
        assert ("seqkd" in command.words[1]) == ("seqkd" in by_row[row][0]), row


def test_rows_beside_those_of_the_recipe(tmp_path: Path) -> None:
    """They have the loss of the row that they go on from, and the flags of their method."""
    made_up, iwslt = EXAMPLES / "made_up_languages", EXAMPLES / "iwslt14_de_en"
    found = run_dry(made_up / "student.sh", tmp_path, START="scratch", AS="more")
    for row in ("seq_inter", "seqkd_pruned"):
        found |= run_dry(made_up / "seqkd.sh", tmp_path, row)
    assert {value_of("--criterion", command) for command in found.values()} == {"cross_entropy"}
    assert not any("--label-smoothing" in command for command in found.values())
    [command] = run_dry(iwslt / "distill.sh", tmp_path, "seqkd_gkd", UPDATES="9").values()
    assert "--finetune-from-model" not in command
    assert value_of("--max-update", command) == "9"
    [command] = run_dry(iwslt / "seqkd.sh", tmp_path, "seq_inter", UPDATES="9").values()
    assert value_of("--max-update", command) == "9"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": None}, "the scripts need the key methods"),
        ({"seeds": [1, 2]}, "the scripts do not follow the key seeds"),
        ({"languages": "zh-Hans-en"}, "the scripts need languages such as de-en"),
        ({"sentencepiece": {"model": "x"}}, "sentencepiece must be {vocabulary: N}"),
        ({"teacher": "t.pt"}, "the scripts need teacher with arch and flags"),
        ({"seqkd": {"flags": "--beam 4", "shards": 2}}, "the scripts need the key seqkd as a text"),
        ({"evaluate": False}, "the scripts need evaluate with baseline and flags"),
        ({"methods": [{"criterion": "imitkd", "data": "seqkd"}]}, "no row imitkd of criterion imitkd on"),
        ({"methods": [{"criterion": "imitkd", "name": "mine"}]}, "have no row mine of criterion imitkd"),
        ({"methods": [{"criterion": "none", "name": "x", "data": "best"}]}, "no row x of criterion none"),
    ],
)
def test_the_scripts_refuse_a_recipe_that_they_would_train_otherwise(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    recipe = yaml.safe_load(packaged.path_of("tatoeba").read_text(encoding="utf-8")) | changes
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, str(EXAMPLES / "recipe_settings.py"), str(tmp_path / "mine.yaml"), "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("plan", EXAMPLES.glob("*/evidence.toml"), ids=lambda plan: plan.parent.name)
def test_every_row_of_a_plan_is_a_command_that_is_accepted(plan: Path, tmp_path: Path) -> None:
    known = tomllib.loads((EXAMPLES / "cmudict" / "evidence.toml").read_text())["rows"]
    for name, row in tomllib.loads(plan.read_text())["rows"].items():
        if plan.parent.name != "cmudict" and row == known.get(name) and name not in ("teacher", "seqkd"):
            continue  # another case of this test has run the same script
        script, *arguments = row["script"].split()
        rates = row.get("rates", [])
        assert len(set(rates)) == len(rates)
        rate = ["--lr", rates[0]] if rates else []
        environment = {"AS": name, "START": row.get("start", ""), "TEACHER": row.get("teacher", "")}
        environment |= {"STUDENT": row["student"]} if "student" in row else {}
        [(found, command)] = run_dry(plan.parent / script, tmp_path, *arguments, *rate, **environment).items()
        assert found == name
        accept(name, command)
        if "start" in row:
            start = tmp_path / row["start"] / "checkpoint_best.pt"
            assert value_of("--finetune-from-model", command) == str(start)
            assert command[0] == str(tmp_path / "data_seqkd" / "data-bin")
        if "--teacher-path" in command:
            teacher = tmp_path / row.get("teacher", "teacher") / "checkpoint_best.pt"
            assert value_of("--teacher-path", command) == str(teacher)


@pytest.mark.parametrize("recipe", RECIPES)
def test_headlines_are_trained_twice_and_differ_only_in_the_seed(
    recipe: str, dry_runs: Callable[[str], DryRun]
) -> None:
    commands = dry_runs(recipe).commands
    doubled = {name: command for name, command in commands.items() if name.endswith("-seed2")}
    assert len(doubled) == 3
    for name, command in doubled.items():
        first = commands[name.removesuffix("-seed2")]
        assert (value_of("--seed", first), value_of("--seed", command)) == ("1", "2")
        differing = {(a, b) for a, b in zip(first, command, strict=True) if a != b}
        assert differing == {("1", "2"), (value_of("--save-dir", first), value_of("--save-dir", command))}


@pytest.mark.parametrize("recipe", RECIPES)
def test_students_learn_from_what_their_row_says(recipe: str, dry_runs: Callable[[str], DryRun]) -> None:
    made = dry_runs(recipe)
    for name, command in made.commands.items():
        expected = (
            "data_seqkd"
            if name.startswith("seqkd")
            else "data_seq_inter"
            if name.startswith("seq_inter")
            else ""
        )
        assert command[0] == str(made.run / expected / "data-bin"), name
        if (
            name != "teacher"
            and not name.startswith(("scratch", "seqkd_", "seqkd-", "seq_inter"))
            and name != "seqkd"
        ):
            assert name.startswith(value_of("--criterion", command)), name


def test_a_start_is_another_student(tmp_path: Path) -> None:
    [command] = run_dry(EXAMPLES / "multi30k" / "distill.sh", tmp_path, "gkd", START="scratch").values()
    assert value_of("--finetune-from-model", command) == str(tmp_path / "scratch" / "checkpoint_best.pt")
    [without] = run_dry(EXAMPLES / "multi30k" / "distill.sh", tmp_path, "gkd").values()
    assert "--finetune-from-model" not in without
    for start in ("scratch", "scratch_sru"):
        environment = {"STUDENT": "sru", "SEED": "2", "START": f"{start}-seed2"}
        [command] = run_dry(EXAMPLES / "multi30k" / "distill.sh", tmp_path, "gkd", **environment).values()
        assert value_of("--finetune-from-model", command) == str(
            tmp_path / "scratch_sru-seed2" / "checkpoint_best.pt"
        )


def test_a_student_with_a_name_of_its_own(tmp_path: Path) -> None:
    """AS names a student; the seed is still a part of its name, and START and flags are the caller's."""
    environment = {"AS": "then", "SEED": "2", "START": "seqkd-seed2"}
    script = EXAMPLES / "cmudict" / "distill.sh"
    [(name, command)] = run_dry(script, tmp_path, "seqkd_imitkd", "--lr", "7", **environment).items()
    assert name == "then-seed2"
    assert command[0] == str(tmp_path / "data_seqkd" / "data-bin")
    assert (value_of("--criterion", command), value_of("--lr", command)) == ("imitkd", "7")
    assert value_of("--teacher-path", command) == str(tmp_path / "teacher" / "checkpoint_best.pt")
    start = tmp_path / "seqkd-seed2" / "checkpoint_best.pt"
    assert value_of("--finetune-from-model", command) == str(start)


def test_rows_without_a_second_seed_have_the_first_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "checkpoint_best.pt").touch()  # the table needs the first seed
    asked = run_dry(EXAMPLES / "tatoeba" / "run.sh", tmp_path, SEEDS="2 3")
    assert {"gkd-seed2", "scratch-seed2", "scratch-seed3"} <= asked.keys()
    assert "gkd-seed3" not in asked


@pytest.mark.parametrize("recipe", ["tatoeba", "iwslt14_de_en"])
def test_f_distill_has_the_teacher_s_samples(recipe: str, tmp_path: Path) -> None:
    for method, has in (
        ("f_distill", True),
        ("f_distill_kl", True),
        ("f_distill_rkl", False),
        ("f_distill_tvd", True),
    ):
        [command] = run_dry(EXAMPLES / recipe / "distill.sh", tmp_path, method).values()
        assert ("--teacher-samples" in command) == has


def test_a_published_teacher_is_not_trained(dry_runs: Callable[[str], DryRun]) -> None:
    assert "teacher" not in dry_runs("wmt16_en_de").commands


@pytest.mark.parametrize(
    ("script", "environment", "message"),
    [
        ("multi30k/student.sh", {"DEVICE": "tpu"}, "DEVICE must be cpu or cuda, but is 'tpu'"),
        ("multi30k/student.sh", {"SEED": "one"}, "SEED must be a number, but is 'one'"),
        ("multi30k/student.sh", {"STUDENT": "rnn"}, "STUDENT must be transformer or sru, but is 'rnn'"),
        ("tatoeba/student.sh", {"STUDENT": "sru"}, "STUDENT must be transformer or wide, but is 'sru'"),
        ("multi30k/student.sh", {"UPDATES": "abc"}, "UPDATES must be a whole number above 0, but is 'abc'"),
        # fairseq would train forever
        (
            "multi30k/student.sh",
            {"TEACHER_UPDATES": "0"},
            "TEACHER_UPDATES must be a whole number above 0, but is '0'",
        ),
        (
            "sst2/teacher.sh",
            {"SMOKE": "1"},
            "SMOKE is not used by this recipe, but is '1'; leave it out",
        ),
        (
            "quickstart/run.sh",
            {"DRY_RUN": "1"},
            "DRY_RUN is not used by this recipe, but is '1'; leave it out",
        ),
        (
            "multi30k/student.sh",
            {"START": "scratch"},
            "START must name a model in {run} whose training has ended, but is 'scratch'",
        ),
        (
            "sst2/teacher.sh",
            {"TEACHER_PRECISION": "bf16"},
            "TEACHER_PRECISION must be fp32 in this recipe, but is 'bf16'",
        ),
        ("multi30k/run.sh", {"SEEDS": "1 b"}, "SEEDS must be numbers, but has 'b'"),
        (
            "multi30k/run.sh",
            {"SEED": "2"},
            "run.sh takes SEEDS instead of SEED, but SEED is '2'; use SEEDS=\"1 2\"",
        ),
    ],
)
def test_wrong_variables_are_refused(
    script: str, environment: dict[str, str], message: str, tmp_path: Path
) -> None:
    done = call(EXAMPLES / script, tmp_path / "run", **environment)
    assert done.returncode == 1
    assert done.stderr.strip() == f"{Path(script).name}: {message.format(run=tmp_path / 'run')}"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["scratch", "nonsense"],
            "a row must be scratch, .* but is 'nonsense'; METHOD is one of annealing_kd, ",
        ),
        (["scratch", "seqkd_nonsense"], "but is 'seqkd_nonsense'"),
        (["gkd"], r"the rows must include scratch with seed 1, .* but are 'gkd' with SEEDS '1 2'"),
    ],
)
def test_wrong_rows_are_refused_before_anything_is_trained(
    rows: list[str], message: str, tmp_path: Path
) -> None:
    done = call(EXAMPLES / "multi30k" / "run.sh", tmp_path / "run", *rows, DRY_RUN="1")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(f"run.sh: .*{message}.*", done.stderr.strip())


def test_a_relative_folder_with_a_blank_in_its_name(tmp_path: Path) -> None:
    done = call(EXAMPLES / "multi30k" / "student.sh", tmp_path / "my run", RUN="my run", DRY_RUN="1")
    assert value_of("--save-dir", shlex.split(done.stdout)) == str(tmp_path.resolve() / "my run" / "scratch")


def test_precision_of_the_teacher(tmp_path: Path) -> None:
    """The precision is the teacher's. Models without a teacher are trained as before."""
    run = EXAMPLES / "multi30k" / "run.sh"
    plain, half = (
        call(run, tmp_path, DRY_RUN="1", **given).stdout.splitlines()
        for given in ({}, {"TEACHER_PRECISION": "bf16"})
    )
    added = {}
    for before, after in zip(plain, half, strict=True):
        words = shlex.split(after)
        added[Path(value_of("--save-dir", words)).name] = [
            word for word in words if word not in shlex.split(before)
        ]
    asked = ["--teacher-dtype", "bf16"]
    nothing = {"scratch", "seqkd"}
    assert added == {"teacher": ["--bf16"]} | {
        name: [] if name.split("-")[0] in nothing else asked for name in added if name != "teacher"
    }
    assert (
        call(run, tmp_path, TEACHER_PRECISION="int8")
        .stderr.strip()
        .endswith("must be fp32, fp16 or bf16, but is 'int8'")
    )


@pytest.mark.parametrize("method", METHODS)
def test_only_methods_that_write_have_a_longest_rollout(method: str, tmp_path: Path) -> None:
    writes = METHODS[method]().student_share != "constant:0"
    samples = ["--teacher-samples"] * (method in ("f_distill", "f_distill_kl", "f_distill_tvd"))
    flags = common(tmp_path, f'objective_of {method} 30 --fp16; echo "${{OBJECTIVE[@]}}"').stdout.split()
    longest = ["--rollout-max-len-a", "0", "--rollout-max-len-b", "30"] if writes or samples else []
    assert flags == ["--criterion", method, "--fp16", *samples, *longest]


def test_a_training_with_other_flags_is_reported(tmp_path: Path) -> None:
    script = EXAMPLES / "multi30k" / "student.sh"
    command = call(script, tmp_path, DRY_RUN="1").stdout
    for folder in (".done", "scratch"):
        (tmp_path / folder).mkdir()
    (tmp_path / ".done" / "scratch").touch()
    (tmp_path / "scratch" / "commands").write_text(f"abc\told\nabc\t{command}")
    for same in ({}, {"DEVICE": "cuda"}):
        assert call(script, tmp_path, **same).stderr.strip() == "== scratch: already done"
    other = call(script, tmp_path, UPDATES="7")
    assert other.returncode == 0
    assert "scratch: already done with other flags, so it is not trained again" in other.stderr
    refused = call(script, tmp_path, UPDATES="7", OTHER_FLAGS="refuse")
    assert refused.returncode == 1
    said = "student.sh: scratch was trained with other flags; to use the new flags delete"
    assert said in refused.stderr
    (tmp_path / ".done" / "scratch").unlink()
    (tmp_path / "scratch" / "checkpoint_last.pt").touch()  # a training that was stopped
    assert said in call(script, tmp_path, UPDATES="7", OTHER_FLAGS="refuse").stderr
    assert call(script, tmp_path, OTHER_FLAGS="ask").stderr.strip().endswith("or empty, but is 'ask'")


def test_a_small_model_with_other_flags_is_reported(tmp_path: Path) -> None:
    """``fit`` of the made-up languages behaves like ``train`` of the other recipes."""

    def fit(flags: str, dry_run: str = "") -> subprocess.CompletedProcess[str]:
        models = f"DATA=data DRY_RUN={dry_run}; source {EXAMPLES}/quickstart/models.sh"
        return common(tmp_path, f"{models}; stage scratch fit scratch 10 {flags}")

    command = fit("--lr 1", dry_run="1")
    assert "--total-num-update" in command.stdout
    for folder in (".done", "scratch"):
        (tmp_path / folder).mkdir()
    (tmp_path / ".done" / "scratch").touch()
    (tmp_path / "scratch" / "commands").write_text(f"abc\t{command.stdout}")
    assert fit("--lr 1").stderr.strip() == "== scratch: already done"
    assert "scratch: already done with other flags, so it is not trained again" in fit("--lr 2").stderr


def test_checkpoints_that_a_kill_left_half_copied(tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()

    def checkpoint(name: str, age: int, whole: bool = True) -> None:
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("data", name)
        if not whole:
            (folder / name).write_bytes((folder / name).read_bytes()[:-30])
        os.utime(folder / name, (1000 - age, 1000 - age))

    def data() -> bytes:
        return zipfile.ZipFile(folder / "checkpoint_last.pt").read("data")

    assert common(tmp_path, "resumable nothing").returncode == 0
    checkpoint("checkpoint_1_250.pt", 250)
    checkpoint("checkpoint_2_500.pt", 0)
    checkpoint("checkpoint_best.pt", 0, whole=False)
    checkpoint("checkpoint_last.pt", 250)
    assert common(tmp_path, "resumable scratch").returncode == 0
    assert data() == b"checkpoint_last.pt"  # the one that fairseq would load
    assert not (folder / "checkpoint_best.pt").exists()
    checkpoint("checkpoint_last.pt", 0, whole=False)
    assert common(tmp_path, "resumable scratch").returncode == 0
    assert data() == b"checkpoint_2_500.pt"


def test_an_unfinished_training_is_not_used_as_a_teacher(tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "checkpoint_best.pt").touch()
    assert (
        common(tmp_path, "trained teacher").stdout.strip() == f"{tmp_path}/teacher/checkpoint_best.pt"
    )  # from elsewhere
    (tmp_path / "teacher" / "commands").touch()
    done = call(EXAMPLES / "multi30k" / "distill.sh", tmp_path, "gkd")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("of a finished training does not exist; train teacher first")
    done = call(EXAMPLES / "multi30k" / "distill.sh", tmp_path, "gkd", START="teacher")
    assert "START must name a model" in done.stderr
    assert not (tmp_path / "gkd").exists()
    (tmp_path / ".done").mkdir()
    (tmp_path / ".done" / "teacher").touch()
    assert common(tmp_path, "trained teacher").returncode == 0


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({}, r"RAW_DIR must hold test2016\.de\.gz or test2016\.de, but '.*' does not"),
        (
            {"test2016.de.gz": gzip.compress(b"Ein Satz.\n" * 99)[:-9]},
            r".*/test2016\.de\.gz is not a complete gzip file; delete it",
        ),
        (
            {"test2016.de": b"Ein Satz.\n"},
            r".*/test2016\.de is not the text that .* or accept it with ANY_TEXT=1",
        ),
        (
            {"test2016.de.gz": gzip.compress(b"Ein Satz.\n")},
            r".*/test2016\.de\.gz is not the text that this recipe",
        ),
    ],
)
def test_other_text_is_refused(held: dict[str, bytes], message: str, tmp_path: Path) -> None:
    given = tmp_path / "given"
    (tmp_path / "run" / "raw").mkdir(parents=True)
    given.mkdir()
    for name, content in held.items():
        (given / name).write_bytes(content)
    commands = f"from_raw_dir <<<'test.de {'0' * 64} test2016.de'"
    done = common(tmp_path / "run", commands, RAW_DIR=str(given))
    assert done.returncode == 1
    assert re.match(f"probe.sh: {message}", done.stderr.strip().splitlines()[-1])
    if "test2016.de" in held:
        assert common(tmp_path / "run", commands, RAW_DIR=str(given), ANY_TEXT="1").returncode == 0
        assert (tmp_path / "run" / "raw" / "test.de").read_bytes() == held["test2016.de"]


def test_a_file_is_downloaded_once(tmp_path: Path) -> None:
    (tmp_path / "origin").write_text("text\n")
    commands = f"download file://{tmp_path}/origin {tmp_path}/run/text"
    assert common(tmp_path / "run", f"{commands} {'0' * 64}").returncode == 1
    assert not (tmp_path / "run" / "text").exists()  # another text is fetched again
    assert common(tmp_path / "run", commands).returncode == 0
    (tmp_path / "origin").unlink()
    assert common(tmp_path / "run", commands).returncode == 0
    assert (tmp_path / "run" / "text").read_text() == "text\n"


@pytest.mark.parametrize(
    ("recipe", "training", "rows"),
    [
        (
            "iwslt14_de_en",
            {
                "--batch-size": "128",
                "--lr": "1.4e-3",
                "--warmup-updates": "5000",
                "--clip-norm": "5",
                "--max-update": "80000",
            },
            {
                row: ("exponential:0.005", 5 * ("full" not in row), 4, 125)
                for row in ("imitkd", "imitkd_full", "seqkd_imitkd")
            },
        ),
        (
            "wmt16_en_de",
            {
                "--batch-size": "512",
                "--lr": "8e-4",
                "--warmup-updates": "4000",
                "--clip-norm": "2",
                "--max-epoch": "15",
            },
            {
                "imitkd": ("exponential:0.005", 0, 1, 100),
                "imitkd_full": ("exponential:0.005", 0, 1, 100),
                "seqkd_imitkd": ("exponential:0.5", 0, 1, 100),
                "seqkd_imitkd_full": ("exponential:0.5", 0, 1, 100),
            },
        ),
        (
            "cnn_dm",
            {
                "--batch-size": "32",
                "--lr": "2.2e-3",
                "--warmup-updates": "2000",
                "--clip-norm": "5",
                "--max-update": "200000",
            },
            dict.fromkeys(
                ("imitkd", "imitkd_full", "seqkd_imitkd", "seqkd_imitkd_full"), ("exponential:0.1", 0, 4, 99)
            ),
        ),
    ],
)
def test_the_paper_s_settings(
    recipe: str, training: dict[str, str], rows: dict[str, tuple[str, int, int, int]], tmp_path: Path
) -> None:
    """The values are those of the authors' configurations:

    https://github.com/asappresearch/imitkd/tree/8b9fadded0e9eed7e16bf6ce6c3235f3ad5132e8/configs
    """
    commands = run_dry(EXAMPLES / recipe / "run.sh", tmp_path, "scratch", *rows, SEEDS="1")
    smoothing = "0.1" if recipe == "cnn_dm" else "0"
    assert value_of("--label-smoothing", commands["scratch_sru"]) == smoothing
    for row, (share, topk, pooled, longest) in rows.items():
        command = commands[f"{row}_sru"]
        assert {flag: value_of(flag, command) for flag in training} == training
        assert (value_of("--dropout", command), value_of("--adam-betas", command)) == ("0.1", "(0.9, 0.999)")
        cfg = convert_namespace_to_omegaconf(parsed(command))
        found = cfg.criterion
        assert (found.student_share, found.rollout_topk, found.rollout_pool_updates) == (
            share,
            topk,
            pooled,
        ), row
        assert (found.rollout_max_len_a, found.rollout_max_len_b) == (0, longest), row
        assert found.rollout_policy == ("sampling" if topk else "greedy"), row
        if recipe == "cnn_dm":
            assert cfg.model.projection_size == 256


def test_a_vocabulary_that_is_too_large_for_the_text(tmp_path: Path) -> None:
    folder = tmp_path / "a, b"
    folder.mkdir()
    (folder / "text").write_text("".join(f"ein satz {number}\n" for number in range(50)))

    def train(size: int) -> subprocess.CompletedProcess[str]:
        command = [
            str(warm_commands.folder() / "python"),
            str(EXAMPLES / "subwords.py"),
            "train",
            str(folder / "spm"),
            str(size),
            str(folder / "text"),
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert train(25).returncode == 0
    assert (folder / "spm.model").exists()
    done = train(4000)
    assert done.returncode == 1
    assert re.match(
        r"subwords\.py: .* must allow a VOCABULARY of 4000, but do not .*", done.stderr.splitlines()[-1]
    )


def test_a_smoke_run_and_a_real_one_do_not_share_a_folder(tmp_path: Path) -> None:
    run_dry(EXAMPLES / "multi30k" / "student.sh", tmp_path, SMOKE="1")
    done = call(EXAMPLES / "multi30k" / "student.sh", tmp_path, DRY_RUN="1")
    assert done.returncode == 1
    assert "holds a run with SMOKE=1" in done.stderr


def test_the_tables_of_the_readmes_match_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))  # as for a script that is run
    documents = module("tables").documents({})
    assert {path.name for path in documents} >= {"README.md", "evaluation.md"}
    for path, text in documents.items():
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
        ["imitkd_full", "1"],
        ["imitkd_full_exported", "1"],
    ]
    assert "| 31.00 (30.0 to 32.0) | 0.010 |" in rows[2]
    assert "`imitkd` 32.00" in table  # of 31 and 33
    overview = tables.overview([results])
    assert (
        "| imitkd | 1,000 | BLEU | 31.00 (30.0 to 32.0); 33.00 (32.0 to 34.0) | +1.00 (p 0.010) |" in overview
    )  # scratch has seed 1
    assert "| teacher | 1,000 | BLEU | 40.00 (39.0 to 41.0) | +10.00 |" in overview
    short = tables.headlines([results, {**made_results(), "recipe": "other"}])
    assert "[made](examples/made/README.md), BLEU | [other]" in short
    assert "| `imitkd` | 31.00; 33.00 | 31.00; 33.00 |" in short
    assert "_exported" not in short
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results -->\nold\n<!-- /results -->\n<!-- two -->\n<!-- /two -->\n")
    expected = "before\n<!-- results -->\nnew\n<!-- /results -->\n<!-- two -->\nalso\n<!-- /two -->\n"
    assert tables.filled(readme, {"results": "new", "two": "also"}) == expected
    with pytest.raises(SystemExit, match="must have a place for its table: <!-- other -->"):
        tables.filled(readme, {"other": "new"})


def test_the_journey_has_the_figures_of_its_models() -> None:
    """The teacher and the exported student have their figures; a stage without a model has none."""
    lines = module("tables").journey(made_results()).splitlines()
    assert lines[2] == "| `examples/made/prepare.sh` | checked text, subwords, binary data |  |  |  |  |"
    assert lines[3] == "| `examples/made/teacher.sh` | the teacher | 1,000 | 2 min | 4.0 | 40.00 |"
    assert lines[5].endswith("in int8 | 1,000 |  | 4.0 | 32.50 |")


def test_a_run_becomes_the_recipe_s_only_when_it_can(tmp_path: Path) -> None:
    """A run that was not evaluated, is not ours, or was a smoke run is refused in one line."""
    tables = module("tables")
    with pytest.raises(SystemExit, match="does not exist"):
        tables.published_by(tmp_path)
    for text in ("{", "[]", "{}", '{"recipe": "quickstart"}', '{"recipe": "tatoeba", "trainings": {}}'):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(SystemExit, match=r"is not what a recipe's evaluation writes"):
            tables.published_by(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(made_results()))
    with pytest.raises(SystemExit, match=r"names the recipe made, but .*README\.md does not exist"):
        tables.published_by(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({**made_results(), "recipe": "tatoeba"}))
    assert tables.published_by(tmp_path) == (
        EXAMPLES / "tatoeba" / "results.json",
        {**made_results(), "recipe": "tatoeba"},
    )
    (tmp_path / ".smoke").touch()
    with pytest.raises(SystemExit, match="SMOKE=1"):
        tables.published_by(tmp_path)


def test_publishing_fills_every_document_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All documents are written; if a place for a table is missing, none is."""
    tables = module("tables")
    place = "<!-- results -->\n<!-- /results -->\n"
    for path in ("README.md", "examples/README.md", "examples/multi30k/README.md", "run/results.json"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(place)
    results = {**made_results(), "recipe": "multi30k"}
    del results["evaluation"]["models"]["imitkd_full_exported"]
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    monkeypatch.setattr(tables, "EXAMPLES", tmp_path / "examples")
    monkeypatch.setattr(tables, "printed", lambda results: "printed\n")
    monkeypatch.setattr(sys, "argv", ["tables.py", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match="<!-- journey -->"):
        tables.main()
    assert not (tmp_path / "examples" / "multi30k" / "results.json").exists()
    (tmp_path / "README.md").write_text(f"{place}<!-- journey -->\n<!-- /journey -->\n")
    for status in (False, False):
        with pytest.raises(SystemExit) as ended:
            tables.main()
        assert ended.value.code == status
    assert json.loads((tmp_path / "examples" / "multi30k" / "results.json").read_text()) == results
    assert (tmp_path / "examples" / "multi30k" / "evaluation.md").read_text() == "printed\n"
    readme = (tmp_path / "README.md").read_text()
    assert "| `scratch` | 30.00 |" in readme
    assert "teacher.sh" in readme
    assert "export.sh" not in readme
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    (tmp_path / "README.md").write_text(readme.replace("30.00", "31.00"))
    with pytest.raises(SystemExit) as ended:
        tables.main()
    assert ended.value.code is True


def test_a_run_beside_the_recipe_s_own_has_a_place_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It appears only in the recipe's README. Other documents still show the recipe's own results."""
    tables = module("tables")
    own, other = made_results(), made_results()
    other["evaluation"]["models"]["scratch"]["decoding"]["greedy"]["bleu"]["score"] = 29.0
    place = "<!-- {0} -->\n<!-- /{0} -->\n"
    held = {
        "README.md": place.format("results"),
        "examples/README.md": place.format("results"),
        "examples/made/README.md": place.format("results") + place.format("results-gkd"),
        "examples/made/results.json": json.dumps(own),
        "run/results.json": json.dumps(other),
    }
    for path, text in held.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.setattr(tables, "EXAMPLES", tmp_path / "examples")
    monkeypatch.setattr(tables, "printed", lambda results: f"{results['evaluation']['models']['scratch']}\n")
    for wrong in (
        ["--beside", "gkd"],
        [str(tmp_path / "run"), "--beside", "../gkd"],
        [str(tmp_path / "run"), "--beside", ""],
    ):
        monkeypatch.setattr(sys, "argv", ["tables.py", *wrong])
        with pytest.raises(SystemExit, match="2"):
            tables.main()
    monkeypatch.setattr(sys, "argv", ["tables.py", str(tmp_path / "run"), "--beside", "gkd"])
    with pytest.raises(SystemExit, match="False"):
        tables.main()
    recipe = tmp_path / "examples" / "made"
    assert json.loads((recipe / "results.json").read_text()) == own
    assert json.loads((recipe / "results-gkd.json").read_text()) == other
    assert "29.0" in (recipe / "evaluation-gkd.md").read_text()
    first, second = (recipe / "README.md").read_text().split("<!-- /results -->")
    assert "| scratch | 1 | 1,000 | 4.0 | 30.00" in first
    assert "| scratch | 1 | 1,000 | 4.0 | 29.00" in second
    assert "[results-gkd.json](results-gkd.json)" in second
    for path in ("README.md", "examples/README.md"):
        assert (tmp_path / path).read_text().count("scratch") == 1 + path.startswith("examples")
        assert "29.00" not in (tmp_path / path).read_text()


def test_seeds_are_sorted() -> None:
    assert module("tables").by_row(["b-seed2", "a", "b", "b-seed10"]) == {
        "b": ["b", "b-seed2", "b-seed10"],
        "a": ["a"],
    }


@pytest.mark.parametrize(
    ("change", "same"),
    [(["--lr", "1"], True), (["--cpu"], True), (["--lr", "2"], False), (["--fp16"], False)],
)
def test_a_training_s_flags_are_compared_whatever_their_order(change: list[str], same: bool) -> None:
    flags = module("flags").flags
    before = "imitkd-train run/data-bin --lr 1 --adam-betas '(0.9, 0.98)' --dropout 0.1"
    now = shlex.join(
        [
            "imitkd-train",
            "run/data-bin",
            "--dropout",
            "0.1",
            "--adam-betas",
            "(0.9, 0.98)",
            "--lr",
            "3",
            "--lr",
            "1",
        ]
    )
    assert (flags(before) == flags(f"{now} {shlex.join(change)}")) == same


def made_results() -> dict[str, Any]:
    def model(score: float) -> dict[str, Any]:
        bleu = {"score": score, "low": score - 1, "high": score + 1}
        decoding = {"greedy": {"bleu": bleu, "chrf": {"score": 50.0}}, "beam 5": {"bleu": bleu}}
        return {
            "parameters": 1000,
            "bytes": 9_000_000,
            "weight_bytes": 4_000_000,
            "decoding": decoding,
            "speed": {"32": {"sentences_per_second": score}},
        }

    scores = {"teacher": 40.0, "scratch": 30.0, "imitkd": 31.0, "imitkd-seed2": 33.0}
    scores |= {"imitkd_full": 32.0, "imitkd_full_exported": 32.5}
    training = {
        "commits": ["abc"],
        "command": "imitkd-train",
        "updates": 5,
        "valid_score": 1.0,
        "minutes": 2.0,
    }
    trainings = {
        name: {**training, "minutes": None} if name.endswith("_exported") else training for name in scores
    }
    return {
        "recipe": "made",
        "trainings": trainings,
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
    assert results.came_to_be(tmp_path, "teacher")["command"] is None  # a downloaded teacher
    text = tmp_path / "text"
    text.write_text("one\u2028still one\ntwo\n")
    assert results.lines(text, 2) == ["one\u2028still one", "two"]
    with pytest.raises(SystemExit, match="must have 3 lines"):
        results.lines(text, 3)


def test_the_needs_of_a_training_are_those_of_all_calls(tmp_path: Path) -> None:
    def call(code: str) -> tuple[int, int]:
        command = [
            sys.executable,
            str(EXAMPLES / "needs.py"),
            str(tmp_path),
            sys.executable,
            "-c",
            code,
        ]
        status = subprocess.run(command, check=False).returncode
        return status, int((tmp_path / "peak").read_text())

    (tmp_path / "peak").write_text("")  # as after a kill while writing
    status, held = call("held = b'1' * 200_000_000; raise SystemExit(3)")
    assert status == 3
    assert 200_000_000 < held < 300_000_000
    first = float((tmp_path / "cpu").read_text())
    # it held less memory, computed for at least 0.3 s, and was killed
    killed = (
        "import os, signal, time\nwhile time.process_time() < 0.3: pass\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    assert call(killed) == (137, held)
    assert float((tmp_path / "cpu").read_text()) >= first + 0.3
    tables = module("tables")
    results = made_results()
    assert "| GB |" not in tables.recipe_table(results)
    results["trainings"]["teacher"] = {**results["trainings"]["teacher"], "peak_bytes": held}
    table = tables.recipe_table(results)
    assert "| minutes | GB |" in table
    assert "| 5 | 2 | 0.2 |" in table
    assert "| 5 | 2 |  |" in table


def test_an_evaluation_stays_in_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The repository does not change until tables.py publishes the evaluation."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    evaluation = made_results()["evaluation"]
    (tmp_path / "evaluation").mkdir()
    for name, model in evaluation["models"].items():
        model["decoding"]["greedy"]["outputs"] = f"{name}.txt"
        (tmp_path / "evaluation" / f"{name}.txt").write_text("one\ntwo\n")
    (tmp_path / "evaluation" / "references.txt").write_text("one\ntwo\n")
    evaluation |= {"files": {"references": "references.txt"}, "data": {"sentences": 2, "target_lang": "en"}}
    (tmp_path / "evaluation" / "evaluation.json").write_text(json.dumps(evaluation))
    published = EXAMPLES / "tatoeba" / "results.json"
    before = published.read_bytes()
    monkeypatch.setattr(sys, "argv", ["results.py", str(tmp_path), "--recipe", "tatoeba"])
    module("results").main()
    assert published.read_bytes() == before
    found = json.loads((tmp_path / "results.json").read_text())
    assert (found["recipe"], found["evaluation"]) == ("tatoeba", evaluation)
    assert found["trainings"]["scratch"]["commits"] == []


def test_p_values_compare_the_same_seed_and_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    results = module("results")
    references = [f"this is sentence number {number} of the test" for number in range(40)]
    worse = [line.replace("number", "word") if number % 3 else line for number, line in enumerate(references)]
    texts = {
        "teacher": references, "scratch": worse, "imitkd": references, "seqkd": worse[::-1],
        "scratch-seed2": references, "imitkd-seed2": references,
        "scratch_sru": worse, "imitkd_sru": references,
    }  # fmt: skip
    for name, written in {**texts, "references": references}.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(written) + "\n")
    models = {name: {"decoding": {"greedy": {"outputs": f"{name}.txt", "bleu": {}}}} for name in texts}
    evaluation = {"models": models, "files": {"references": "references.txt"}, "data": {"target_lang": "en"}}
    found = results.chance(tmp_path, evaluation)
    assert found["imitkd"]["scratch"] < 0.01
    assert found["imitkd"]["seqkd"] < 0.01
    # Both write the same text, and seqkd has no second seed.
    assert found["imitkd-seed2"] == {"scratch": None}
    assert found["imitkd_sru"]["scratch"] < 0.01
    assert "seqkd" not in found["imitkd_sru"]
    assert found["teacher"] == {}
    assert found["scratch"].keys() == {"seqkd"}


def test_results_belong_to_their_recipe() -> None:
    for path in EXAMPLES.glob("*/results.json"):
        found = json.loads(path.read_text())
        assert found["recipe"] == path.parent.name
        trained = [
            name for name in found["trainings"] if name != "teacher" and not name.endswith("_exported")
        ]
        assert all(
            found["trainings"][name]["commits"] and found["trainings"][name]["command"] for name in trained
        )
