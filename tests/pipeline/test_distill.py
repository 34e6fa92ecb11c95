"""``imitkd-distill`` from text and a teacher to an exported student."""

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairseq_imitkd.cli import distill
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.pipeline import estimate
from fairseq_imitkd.pipeline.recipe_file import parse
from fairseq_imitkd.pipeline.runner import key_of_step
from fairseq_imitkd.quick.recipe_words import problem
from tests.helpers import warm_commands
from tests.helpers.digit_corpus import ENVIRONMENT, REPO
from tests.helpers.killable import tree
from tests.pipeline.recipes import TRAINING, recipe

COMMAND = "import sys; sys.argv[0] = 'imitkd-distill'; from fairseq_imitkd.cli.door import main; main()"


@pytest.fixture
def wanted(digits: Any, teacher: Path) -> Callable[..., dict[str, Any]]:
    """A recipe on the digits with the tests' teacher."""
    own = {"checkpoint": str(teacher), "dictionaries": str(digits.dictionaries)}
    return lambda **changes: recipe(digits.text, **{"teacher": own, **changes})


def write(folder: Path, content: dict[str, Any]) -> str:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def listed(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Return the state of each step that ``--dry-run`` prints."""
    distill.main([*words, "--dry-run"])
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("    ")]
    steps = itertools.takewhile(lambda line: " steps to run; at least " not in line, lines)
    return {name: state.partition(",")[0] for name, state in (line.split(": ") for line in steps)}


def test_a_recipe_makes_a_student_a_table_and_a_folder_to_serve(
    wanted: Callable[..., dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A change of a method's flags then runs again what depends on it, and nothing else."""
    monkeypatch.setattr(distill, "PROGRAMS", warm_commands.folder())
    out = tmp_path / "run"
    words = [write(tmp_path, wanted()), "--out", str(out), "--cores", "2"]
    assert set(listed(words, capsys).values()) == {"to run"}
    assert not out.exists()
    distill.main(words)
    printed = capsys.readouterr()
    assert f"Next: imitkd-serve {out}/exported" in printed.out
    assert "parameters: student " in printed.err
    assert "warning: none's student has" in printed.err
    assert "| exported | 1 |" in (out / "table.md").read_text()
    assert "| imitkd_full | 1 |" in (out / "table.md").read_text()
    assert (out / "table.md").read_text() in printed.out
    assert json.loads((out / "exported" / "imitkd.json").read_text())["quantization"] == "int8"
    assert "imitkd_full-seed1" in (out / "report.html").read_text()
    assert (out / "recipe.yaml").read_text().endswith((tmp_path / "small.yaml").read_text())
    assert "train-none-seed1: done after" in printed.err
    assert set(listed(words, capsys).values()) == {"done"}
    assert set(listed([str(out)], capsys).values()) == {"done"}, "the folder of a run is its recipe"
    write(tmp_path, wanted(methods=["none", {"criterion": "imitkd_full", "flags": "--dropout 0.3"}]))
    states = listed(words, capsys)
    rerun = {name for name, state in states.items() if state != "done"}
    assert rerun == {"train-imitkd_full-seed1", "export", "evaluate", "report"}


def test_the_default_flags_can_be_trained_and_exported(
    wanted: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = wanted(training=None, student=None, methods=None, evaluate=None, export=None)
    states = listed([write(tmp_path, content), "--out", str(tmp_path / "run")], capsys)
    assert "train-then_imitkd-seed1" in states
    assert {"export", "evaluate", "report"} <= set(states)


def test_a_teacher_that_does_not_know_the_text_is_refused_before_anything_runs(
    wanted: Callable[..., dict[str, Any]], digits: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless every step that asks it allows it; the targets here stand beside other sources."""
    for split in ("train", "valid", "test"):
        lines = (digits.text / f"{split}.tgt").read_text().splitlines()
        (tmp_path / f"{split}.tgt").write_text("\n".join([*lines[7:], *lines[:7]]) + "\n")
    text = {name: [str(digits.text / f"{name}.src"), str(tmp_path / f"{name}.tgt")] for name in
            ("train", "valid", "test")}  # fmt: skip
    changes = {"text": text, "methods": ["seqkd", "imitkd_full"]}
    words = [write(tmp_path, wanted(**changes)), "--out", str(tmp_path / "run"), "--dry-run"]
    with pytest.raises(UsageError) as error:
        distill.main(words)
    assert "or add --teacher-allow-poor to the recipe's keys seqkd and distillation" in str(error.value)
    assert not (tmp_path / "run").exists()
    poor = "--teacher-allow-poor"
    write(tmp_path, wanted(**changes, distillation=poor))
    with pytest.raises(UsageError, match=r"to the recipe's key seqkd$"):  # the one that lacks it
        distill.main(words)
    others = [{"criterion": "imitkd", "data": "mbr"}]
    made = {"mbr": "--select mbr --metric chrf"}
    write(tmp_path, wanted(**{**changes, "methods": others}, translations=made, seqkd=None))
    with pytest.raises(UsageError, match=r"to the recipe's keys translations\.mbr and distillation$"):
        distill.main(words)
    write(tmp_path, wanted(**changes, distillation=poor, seqkd=poor))
    distill.main(words)
    assert "to run" in capsys.readouterr().out


def test_a_warning_names_the_key_that_it_is_about(
    wanted: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ["none", {"criterion": "imitkd_full", "flags": "--warmup-updates 8"}]
    distill.main([write(tmp_path, wanted(methods=methods)), "--out", str(tmp_path / "run"), "--dry-run"])
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warmup" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: methods[2].flags: --warmup-updates 8 is not below --max-update 8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": {"arch": "transfomer"}}, "student.arch: --arch 'transfomer' does not exist: did you"),
        (
            {"methods": [{"criterion": "gkd", "student": {"arch": "transfomer"}}]},
            "methods[1].student.arch: --arch 'transfomer' does not exist: did you",
        ),
        ({"training": f"{TRAINING} --lrs 3"}, "training: --lrs is not a flag"),
        ({"training": f"{TRAINING} --warmup-updates -1"}, "training: --warmup-updates must be"),
        ({"methods": ["imitkd_ful"]}, "methods[1].criterion: --criterion 'imitkd_ful' does not exist: did"),
        (
            {"methods": ["none", {"criterion": "imitkd", "flags": "--student-share constant:2"}]},
            "methods[2].flags: --student-share 'constant:2': '2' must be a number in 0..1",
        ),
        (
            {"methods": [{"criterion": "imitkd", "flags": "--divergence foo"}]},
            "methods[1].flags: --divergence",
        ),
        (
            {"methods": [{"criterion": "word_kd", "flags": "--log-rollouts 3"}]},
            "methods[1].flags: --log-rollouts",
        ),
        (
            {"methods": ["imitkd-full"]},
            "methods[1].criterion 'imitkd-full' is not a method: did you mean imitkd_full?",
        ),
        (
            {"methods": [{"criterion": "seq_kd"}]},
            "methods[1].criterion 'seq_kd' is not a method: did you mean seqkd",
        ),
        (
            {"methods": ["a b"]},
            "methods[1].criterion must consist of letters, digits, '_' and '.', but is 'a b'",
        ),
        ({"distillation": "--teacher-device cuda:99"}, "distillation: --teacher-device"),
        ({"evaluate": "--beam 0"}, "evaluate: --beam must be 1 or more, but is 0"),
        ({"evaluate": {"flags": "--baseline nobody"}}, "evaluate: --baseline"),
        ({"export": {"flags": "--beam 0"}}, "export: --beam must be 1 or more, but is 0"),
        ({"seqkd": "--beam 0", "methods": ["seqkd"]}, "seqkd: --beam must be 1 or more, but is 0"),
        (
            {"training": TRAINING.replace("--max-update 8", "")},
            "training has no --max-update, so the training of methods[1] would not end; add --max-update N",
        ),
        (
            {
                "translations": {"best": "--beam 0"},
                "methods": [{"criterion": "none", "name": "a", "data": "best"}],
            },
            "translations.best: --beam must be 1 or more, but is 0",
        ),
        (
            {"training": f"{TRAINING} --lr abc", "teacher": {"arch": "transformer", "flags": "--lr 1e-3"}},
            "training: --lr must be",
        ),
        (
            {"methods": ["imitkd"], "training": TRAINING.replace("--max-update 8", "--max-update 0")},
            "training has no --max-update, so the training of methods[1] would not end",
        ),
        ({"seqkd": "--beam 4", "methods": ["imitkd"]}, "seqkd changes nothing: no method has data: seqkd"),
        ({"student": {"arch": "lstm"}}, "export can't work with imitkd_full's student: "),
        (
            {"methods": [{"criterion": "gkd", "flags": "--share-all-embeddings --decoder-embed-dim 16"}]},
            "gkd: the flags do not describe a student: --share-all-embeddings requires",
        ),
        ({"user_dir": "nowhere"}, "user_dir '"),
        ({"evaluate": "--quik"}, "evaluate: --quik is not a flag of this command: did you mean --quick?"),
        ({"export": {"flags": "--beam x"}}, "export: --beam must be a whole number, but is 'x'"),
        (
            {"seqkd": "--select frist", "methods": ["seqkd"]},
            "seqkd: --select 'frist' does not exist: did you",
        ),
    ],
)
def test_a_training_that_can_not_work_is_refused_before_anything_runs(
    changes: dict[str, Any],
    message: str,
    wanted: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["imitkd-distill", "r.yaml", "--out", "run", "--durations=6"])
    with pytest.raises(UsageError) as error:
        distill.main([write(tmp_path, wanted(**changes)), "--out", str(tmp_path / "run")])
    assert message in str(error.value)
    assert str(error.value).startswith(f"{tmp_path}/small.yaml: "), "the message names the recipe"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "RECIPE is not given"),
        (["r.yaml", "--teacher-data", "d"], "--teacher-data changes nothing beside RECIPE 'r.yaml'"),
        (["r.yaml", "--method", "gkd"], "nothing beside RECIPE 'r.yaml'; write it there (key methods)"),
        (["tatoeba", "--method", "gkd"], "recipes/tatoeba.yaml (key methods)"),
        (["--teacher", "t.pt", "--text", "here"], "--text 'here' needs a recipe of --list"),
        (
            ["multi30k", "--text", "nowhere"],
            "--text 'nowhere' is not a folder; name that of the text, which is in",
        ),
        (
            ["multi30k", "--text", "tests"],
            "--text 'tests' has no train.de; name the folder of the text, which",
        ),
        (["multi30k"], "--text is not given, and this folder has no train.de; name the folder of the text"),
        (["quickstart", "--text", "here"], "--text 'here' changes nothing with quickstart"),
        (
            ["--teacher", "t.pt"],
            "--sentencepiece and --train and --valid and --test are not given; add them, or name a recipe",
        ),
        (["smal", "--method", "gkd"], "--method changes nothing beside RECIPE 'smal'"),
        (["--teacher", "t.pt", "--method", "gkd,word_kd"], "in a recipe: methods: [gkd, word_kd]"),
        (["n" * 300], "is neither a file nor a recipe of the package"),
        (["r.yaml", "s.yaml"], "'s.yaml' is one word too many; put flags of Snakemake after --"),
        (["--teacher", "t.pt", "--method", "imitkd", "gkd"], "in a recipe: methods: [imitkd, gkd]"),
        (["--teacher", "t.pt", "--method", "imitkd,gkd"], "in a recipe: methods: [imitkd, gkd]"),
        (["quickstart", "--dry-run", "--", "--lr", "1e-3"], "flags of Snakemake: it does not know --lr"),
        (["quickstart", "--dry-run", "--out", "/proc/x"], "--out '/proc/x' can't be written"),
        (["nowhere.yaml"], "recipe 'nowhere.yaml' can't be read: No such file or directory; check the path"),
    ],
)
def test_a_wrong_command_line_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        distill.main(words)
    assert message in str(error.value)


def test_sigterm_stops_a_run_as_ctrl_c_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(distill.Run, "run", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as end:
        distill.main(["quickstart", "--out", str(tmp_path / "run")])
    assert end.value.code == 143
    assert capsys.readouterr().err.endswith("stopped; the same command continues\n")
    assert signal.getsignal(signal.SIGTERM) == before


def test_steps_that_snakemake_leaves_out_are_not_said_to_be_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distill.Run, "run", lambda *_, **__: None)
    distill.main(["quickstart", "--out", str(tmp_path / "run"), "--rehearse", "--", "-n"])
    printed = capsys.readouterr().out
    assert re.search(r": 0 of \d+ steps are done; Snakemake left the others out\n$", printed)


def test_a_folder_that_may_not_be_written_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(UsageError, match=r"--out '.*/run' can't be written: check the permissions of"):
        distill.main(["quickstart", "--dry-run", "--out", str(tmp_path / "run")])


def test_words_that_are_no_recipe_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small/.steps").mkdir(parents=True)
    Path("small/models").mkdir()
    for name in ("recipe.yaml", "report.html"):
        Path("small", name).touch()
    with pytest.raises(UsageError, match="'small/models' is a folder within a run: did you mean small"):
        distill.main(["small/models"])
    with pytest.raises(UsageError, match=r"'small/report.html' is a page, not a recipe; name the folder of"):
        distill.main(["small/report.html"])


def test_a_folder_of_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps would delete what has the names of their results."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart" / "data-bin").mkdir(parents=True)
    for words in (["quickstart"], ["quickstart", "--out", "quickstart"], ["quickstart", "--dry-run"]):
        with pytest.raises(
            UsageError, match=r"'quickstart' exists and is not a run of imitkd-distill; use a new or empty"
        ):
            distill.main(words)
    assert [path.name for path in (tmp_path / "quickstart").iterdir()] == ["data-bin"]


def test_a_packaged_recipe_is_found_beside_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart" / ".steps").mkdir(parents=True)
    distill.main(["quickstart", "--graph"])
    assert "train-scratch-seed1" in capsys.readouterr().out


def test_a_cluster_has_gpus_that_this_machine_lacks(
    wanted: Callable[..., dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A dry run times the CPU then; a run here is refused, and so is one with too few threads."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    timed_on = []
    monkeypatch.setattr(estimate, "timed", lambda *a, beam: timed_on.append(a[2]) or estimate.Pass(1, 1, 1))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(distill.Run, "run", lambda *_, **__: pytest.fail("it runs"))
    file = write(tmp_path, wanted(device="cuda", threads=2, methods=["none"]))
    out = str(tmp_path / "run")
    distill.main([file, "--out", out, "--dry-run"])
    assert "timed just now on the CPU of this machine, which has no GPU" in capsys.readouterr().out
    assert timed_on == ["cpu", "cpu"]
    with pytest.raises(UsageError, match="processes must be at most 0, the number of visible GPUs, but is 1"):
        distill.main([file, "--out", out, "--cores", "2"])
    with pytest.raises(UsageError, match=r"--cores must be at least 2, the threads of a training \(proc"):
        distill.main([file, "--out", out, "--cores", "1"])
    assert not Path(out).exists()


def test_the_key_of_a_step_s_flags() -> None:
    poor = "--teacher-allow-poor"
    expected = {"seqkd-mono": "seqkd", "best-shard2": "translations.best", "train-a-seed1": "distillation"}
    assert {step: key_of_step(step, poor) for step in expected} == expected
    assert key_of_step("train-teacher", "--lr") == "teacher.flags"
    assert key_of_step("train-a-seed1", "--lr") == "training"
    assert (key_of_step("evaluate"), key_of_step("encode-train")) == ("evaluate", "")


def test_flags_stand_for_a_recipe(tmp_path: Path) -> None:
    given = {split: [f"{split}.de", f"{split}.en"] for split in ("train", "valid", "test")}
    words = [word for split, files in given.items() for word in (f"--{split}", *files)]
    words += ["--teacher", "t.pt", "--sentencepiece", "s.model", "--updates", "50", "--method", "gkd"]
    made = distill.recipe_of(distill.parser().parse_args(words))
    assert made["languages"] == ["de", "en"]
    assert made["text"]["valid"] == [os.path.abspath("valid.de"), os.path.abspath("valid.en")]
    assert made["methods"] == ["gkd"]
    assert made["teacher"] == os.path.abspath("t.pt")
    assert "threads" not in made
    assert distill.recipe_of(distill.parser().parse_args([*words, "--threads", "8"]))["threads"] == 8
    default = distill.recipe_of(distill.parser().parse_args(words[: words.index("--method")]))
    assert default["methods"] == [
        "seqkd",
        {
            "criterion": "imitkd",
            "name": "then_imitkd",
            "start": "seqkd",
            "data": "seqkd",
            "flags": "--student-share constant:1 --lr 0.00021 --warmup-updates 1 "
            "--validate-interval-updates 1 --save-interval-updates 1 --max-update 12",
        },
    ]
    own = distill.recipe_of(distill.parser().parse_args([*words, "--teacher-data", "d"]))["teacher"]
    assert own == {"checkpoint": os.path.abspath("t.pt"), "dictionaries": os.path.abspath("d")}
    hugging = tmp_path / "opus"
    hugging.mkdir()
    (hugging / "config.json").write_text('{"model_type": "marian"}')
    at = words.index("--teacher")
    imported = [*words[:at], "--teacher", str(hugging), *words[at + 4 :], "--out", "out"]
    made_of_it = distill.recipe_of(distill.parser().parse_args(imported))
    assert problem(distill.parser().parse_args(imported)) is None
    assert made_of_it["teacher"] == {"huggingface": str(hugging)}
    assert "sentencepiece" not in made_of_it
    assert parse(made_of_it, tmp_path).teacher.huggingface == hugging
    for flag in ("--sentencepiece", "--teacher-data"):
        wrong = problem(distill.parser().parse_args([*imported, flag, "x"]))
        assert wrong == (
            f"{flag} changes nothing with --teacher '{hugging}', a model of Hugging Face's format, which has "
            "its own; leave it out"
        )
    assert "--max-update 50 " in made["training"]
    assert "--warmup-updates 5 " in made["training"]
    for updates, warmup, interval in ((4000, 400, 400), (30_000, 3000, 2000), (90_000, 4000, 2000)):
        longer = distill.recipe_of(distill.parser().parse_args([*words, "--updates", str(updates)]))
        assert f"--warmup-updates {warmup} " in longer["training"]
        assert f"--max-update {updates} " in longer["training"]
        assert (
            f"--validate-interval-updates {interval} --save-interval-updates {interval} "
            in (longer["training"])
        )
    words += ["--out", "small"]
    packed = [f"{word}.gz" if word.startswith("train.") else word for word in words]
    with pytest.raises(UsageError, match=r"both have the suffix \.gz; unpack them$"):
        distill.main(packed)
    words[words.index("valid.de") : words.index("valid.en") + 1] = ["valid.en", "valid.de"]
    with pytest.raises(
        UsageError, match=r"--valid 'valid\.en valid\.de' must have the suffixes of --train, \.de"
    ):
        distill.main(words)


def test_a_recipe_from_a_pipe_is_read_once(digits: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Its paths start from the folder that one is in. Another pipe continues the run."""
    monkeypatch.chdir(tmp_path)
    for seeds in ([1], [1, 2]):
        reading, writing = os.pipe()
        with open(writing, "w") as file:
            yaml.safe_dump(recipe(digits.text, sentencepiece="spm.model", seeds=seeds), file)
        args = distill.parser().parse_args([f"/dev/fd/{reading}", "--out", "run"])
        wanted, given = distill._read(args)
        os.close(reading)
        assert wanted.subwords is not None
        assert wanted.subwords.model == tmp_path / "spm.model"
        distill.folder.check(distill._out(args), given)
        distill.folder.keep(distill._out(args), given)
        kept = yaml.safe_load(Path("run/recipe.yaml").read_text())
        assert (kept["folder"], kept["seeds"]) == (str(tmp_path), seeds)


def test_a_recipe_without_a_suffix_needs_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").touch()
    Path("quickstart").mkdir()
    parse = distill.parser().parse_args
    for words in (["mine"], ["mine", "--rehearse"], ["/dev/fd/0"]):
        with pytest.raises(UsageError, match=r"has no suffix, so the run's folder would .*; give --out"):
            distill._out(parse(words))
    assert distill._out(parse(["mine", "--out", "x"])) == Path("x")
    assert distill._out(parse(["quickstart"])) == Path("quickstart")


def test_the_folder_that_one_is_in_does_not_matter(
    wanted: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Steps write folders of these names, but into that of the run."""
    for name in ("exported", "evaluation", "seqkd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert listed([write(tmp_path, wanted()), "--out", "run"], capsys)["export"] == "to run"


def test_dictionaries_are_where_the_checkpoint_says(
    teacher: Path, digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If they are not beside it, as for imitkd-train."""
    copy = tmp_path / "teacher.pt"
    copy.write_bytes(teacher.read_bytes())
    given = {split: [f"{split}.src", f"{split}.tgt"] for split in ("train", "valid", "test")}
    words = [word for split, files in given.items() for word in (f"--{split}", *files)]
    args = distill.parser().parse_args([*words, "--teacher", str(copy), "--sentencepiece", "s.model"])
    made = distill.recipe_of(args)["teacher"]
    assert made["checkpoint"] == str(copy)
    assert Path(made["dictionaries"], "dict.src.txt").is_file()


def test_a_dry_run_prints_what_a_shell_takes(
    wanted: Callable[..., dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its lines, pasted up to the first command that computes, make what the steps make."""
    monkeypatch.setattr(estimate, "timed", lambda *_, beam: estimate.Pass(1, 1, 1))
    content, out = wanted(methods=["none"]), tmp_path / "a run"
    distill.main([write(tmp_path, content), "--out", str(out), "--dry-run"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    assert any(line.startswith("    fairseq-preprocess") and "--destdir data-bin" in line for line in lines)
    text = "\n".join(itertools.takewhile(lambda line: "fairseq-preprocess" not in line, lines))
    assert subprocess.run(["sh", "-ec", text], cwd=tmp_path).returncode == 0
    for split, files in content["text"].items():
        assert (out / "text" / f"{split}.src").read_text() == Path(files[0]).read_text()
    assert ".part" not in "".join(lines)


def test_commands_that_are_missing_are_named(
    wanted: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "PROGRAMS", tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(UsageError, match=r"fairseq-preprocess is neither in .* nor on PATH; install fairseq"):
        distill.main([write(tmp_path, wanted()), "--out", str(tmp_path / "run")])


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words],
        cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def results(out: Path) -> dict[str, bytes | None]:
    """Return what a run has made, without what holds times: logs, speeds, the report."""
    kept: dict[str, bytes | None] = {}
    for part in ("text", "data-bin", "seqkd/data-bin", "models"):
        for name, content in tree(out / part).items():
            if Path(name).suffix in (".src", ".tgt", ".bin", ".idx", ".txt"):
                kept[f"{part}/{name}"] = content
    lines = (out / "table.md").read_bytes().splitlines()
    kept["table.md"] = b"\n".join(line.removesuffix(b"|").rpartition(b"|")[0] for line in lines)
    return kept


def weights(out: Path) -> dict[str, Any]:
    import torch

    found = {}
    for path in sorted(out.glob("models/*/checkpoint_last.pt")):
        state = torch.load(path, weights_only=True)["model"]
        found.update({f"{path.parent.name}.{name}": value for name, value in state.items()})
    return found


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_results(
    wanted: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """The command alone is killed; its steps then end by themselves."""
    import torch

    content = wanted(
        methods=["none", {"criterion": "imitkd_full", "name": "two", "data": "seqkd", "start": "none"}],
        seqkd="--beam 1",
    )
    file = write(tmp_path, content)
    whole = start([file, "--out", "whole", "--cores", "2"], tmp_path)
    began = time.monotonic()
    output, _ = whole.communicate()
    assert whole.returncode == 0, output[-2000:]
    seconds = time.monotonic() - began
    moments, kills = random.Random(3), 0
    while True:
        run = start([file, "--out", "killed", "--cores", "2"], tmp_path)
        try:
            output, _ = run.communicate(timeout=None if kills >= 8 else moments.uniform(0.1, 0.4) * seconds)
            assert run.returncode == 0, output[-2000:]
            break
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
            run.communicate()
            kills += 1
    assert kills >= 2
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_training_over_two_processes(wanted: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """torchrun starts two gloo processes. They learn what one process learns that takes two batches for each
    update. If the command is killed, both end, and the next call continues.
    """
    import torch

    methods = ["none", {"criterion": "imitkd_full", "flags": "--teacher-allow-poor"}]
    training = f"{TRAINING} --dropout 0 --max-update 12"
    content = wanted(methods=methods, evaluate=False, export=False, training=training)
    for name, changes in (
        ("one", {"training": f"{training} --update-freq 2"}),
        ("two", {"processes": 2}),
        ("killed", {"processes": 2}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        file = write(folder, {**content, **changes})
        run = start([file, "--out", "run", "--cores", "2"], folder)
        if name == "killed":
            metrics = folder / "run" / "models" / "none-seed1" / "checkpoint_last.pt"
            while run.poll() is None and not metrics.exists():
                time.sleep(0.05)
            run.kill()
            run.communicate()
            run = start([file, "--out", "run", "--cores", "2"], folder)
        output, _ = run.communicate(timeout=900)
        assert run.returncode == 0, output[-2000:]
    log = (tmp_path / "two" / "run" / "logs" / "train-none-seed1.log").read_text()
    assert "torch.distributed.run --standalone --nproc-per-node 2" in log
    one, two, killed = (weights(tmp_path / name / "run") for name in ("one", "two", "killed"))
    for key in two:
        assert torch.equal(two[key], killed[key]), key
        # The order of sums differs. Other batches would differ by an update of Adam, 5e-3.
        torch.testing.assert_close(one[key], two[key], rtol=0.0, atol=1e-3)


@pytest.mark.slow
def test_shards_and_source_text(wanted: Callable[..., dict[str, Any]], digits: Any, tmp_path: Path) -> None:
    """Two shards write what one job writes; the teacher's translations of further text are learnt too."""
    lines = (digits.text / "train.src").read_text().splitlines()
    (tmp_path / "more.src").write_text("".join(f"{line} {line.split()[0]}\n" for line in lines[:40]))
    text = {**wanted()["text"], "mono": str(tmp_path / "more.src")}
    methods = ["seqkd", {"criterion": "imitkd_full", "mono": 0.5, "flags": "--teacher-allow-poor"}]
    content = wanted(text=text, methods=methods, evaluate=False, export=False)
    found = []
    for shards in (1, 2):
        folder = tmp_path / str(shards)
        folder.mkdir()
        seqkd = {"flags": "--beam 1 --teacher-allow-poor", "shards": shards}
        run = start([write(folder, {**content, "seqkd": seqkd}), "--out", "run", "--cores", "2"], folder)
        output, _ = run.communicate(timeout=900)
        assert run.returncode == 0, output[-2000:]
        found.append({name: tree(folder / "run" / name / "data-bin") for name in ("seqkd", "seqkd-mono")})
    assert found[0] == found[1]
    assert (tmp_path / "2" / "run" / "logs" / "seqkd-mono-shard2.log").exists()


@pytest.mark.slow
def test_a_method_of_ones_own_is_a_row(wanted: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """The method of docs/your-own-method.md, in a package outside."""
    page = (REPO / "docs" / "your-own-method.md").read_text(encoding="utf-8")
    package = tmp_path / "brier_kd"
    package.mkdir()
    (package / "__init__.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    content = wanted(user_dir="brier_kd", methods=["none", "brier_kdd"], export=False)
    refused = start([write(tmp_path, content), "--dry-run"], tmp_path)
    assert "'brier_kdd' does not exist: did you mean brier_kd?" in refused.communicate(timeout=300)[0]
    methods = ["none", {"criterion": "brier_kd", "flags": "--brier-power 3 --teacher-allow-poor"}]
    run = start([write(tmp_path, {**content, "methods": methods}), "--out", "run", "--cores", "2"], tmp_path)
    output, _ = run.communicate(timeout=900)
    assert run.returncode == 0, output[-2000:]
    assert "| brier_kd | 1 |" in (tmp_path / "run" / "table.md").read_text()


@pytest.mark.slow
def test_a_cluster_runs_the_steps(wanted: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """A profile of Snakemake names the command that submits a job: here one that notes it, and runs it."""
    submit = tmp_path / "sbatch"
    submit.write_text('#!/bin/sh\necho "$@" >> jobs\n"$@" > /dev/null 2>&1 &\necho $!\n')
    submit.chmod(0o755)
    profile = tmp_path / "profile"
    profile.mkdir()
    (profile / "config.yaml").write_text(
        f"executor: cluster-generic\ncluster-generic-submit-cmd: {submit}\njobs: 2\nlatency-wait: 20\n"
    )
    file = write(tmp_path, wanted(methods=["none"], evaluate=False, export=False))
    run = start([file, "--out", "run", "--profile", str(profile)], tmp_path)
    output, _ = run.communicate(timeout=600)
    assert run.returncode == 0, output[-2000:]
    assert "run: 5 steps are done" in output
    assert len((tmp_path / "run" / "jobs").read_text().splitlines()) == 5
