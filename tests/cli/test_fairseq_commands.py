"""The console commands: fairseq's own, with the plugin and its task unless the user typed others."""

import re
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fairseq import options, utils

import fairseq_imitkd
from fairseq_imitkd.cli import fairseq_commands
from fairseq_imitkd.errors import UsageError
from tests.helpers.fairseq_models import write_dictionaries

PLUGIN = str(Path(fairseq_imitkd.__file__).parent)


@pytest.mark.parametrize("name", ["train", "generate", "interactive"])
@pytest.mark.parametrize(
    ("typed", "added"),
    [
        (["data"], ["--user-dir", PLUGIN, "--task", "translation_with_teacher"]),
        (["data", "--task", "translation"], ["--user-dir", PLUGIN]),
        (["data", "--task=translation", f"--user-dir={PLUGIN}"], []),
    ],
    ids=["neither", "task", "both"],
)
def test_missing_flags_are_added(
    name: str, typed: list[str], added: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding too goes through our task, whose greedy and sampled decoding is the rollouts' engine."""
    called = []
    module = SimpleNamespace(cli_main=lambda: called.append(sys.argv[1:]), main=None)
    monkeypatch.setattr(
        fairseq_commands.importlib, "import_module", lambda module_name: called.append(module_name) or module
    )
    monkeypatch.setattr(sys, "argv", ["command", *typed])
    monkeypatch.setattr(fairseq_commands.logging.root, "handlers", [])
    getattr(fairseq_commands, name)()
    search = [] if name == "train" else ["--max-len-a", "1.2", "--max-len-b", "10"]
    score = ["--scoring", "sacrebleu"] if name == "generate" else []
    assert called == [f"fairseq_cli.{name}", [*typed, *added, *search, *score]]


@pytest.mark.parametrize(
    ("typed", "added"),
    [
        (["--eval-bleu"], ["--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric"]),
        (["--eval-metrics", "ter,bleu"], ["--best-checkpoint-metric", "ter"]),
        (
            ["--eval-metrics=rouge-l"],
            ["--best-checkpoint-metric", "rougeL", "--maximize-best-checkpoint-metric"],
        ),
        (["--eval-bleu", "--best-checkpoint-metric", "loss"], []),
        (["--eval-bleu", "--best-checkpoint-metric=bleu"], ["--maximize-best-checkpoint-metric"]),
        (
            ["--eval-bleu", "--maximize-best-checkpoint-metric"],
            ["--best-checkpoint-metric", "bleu"],
        ),
        (["--eval-bleu", "--disable-validation"], []),
        ([], []),
    ],
    ids=str,
)
def test_the_score_that_is_asked_for_chooses_the_best_checkpoint(typed: list[str], added: list[str]) -> None:
    assert fairseq_commands._best_by_score(typed) == added


def test_next_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the checkpoint that there is, one teacher, and a split that there is."""
    folder = write_dictionaries(tmp_path / "data")
    args = Namespace(
        save_dir=str(tmp_path), checkpoint_suffix="", task="translation_with_teacher", data=str(folder),
        source_lang=None, target_lang="tgt", teacher_path="a.pt:b.pt", valid_subset="valid,other",
    )  # fmt: skip
    assert fairseq_commands.next_command(args) is None
    (tmp_path / "checkpoint_last.pt").touch()
    common = f"imitkd-evaluate --model=student={tmp_path}/checkpoint_last.pt --data {folder} -t tgt"
    assert fairseq_commands.next_command(args) == f"{common} --gen-subset valid --out {tmp_path}/evaluation"
    (folder / "test.src-tgt.src.idx").touch()
    assert fairseq_commands.next_command(args) == f"{common} --out {tmp_path}/evaluation"
    args.teacher_path = str(tmp_path / "checkpoint_last.pt")
    assert f"--model=teacher={args.teacher_path}" in str(fairseq_commands.next_command(args))
    args.task = "sentence_prediction_with_teacher"
    assert fairseq_commands.next_command(args) is None
    args.distributed_rank = 1
    assert not fairseq_commands.is_first_process(args)
    monkeypatch.setenv("RANK", "0")
    assert fairseq_commands.is_first_process(args)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory of fairseq's, though without a sentence."""
    folder = write_dictionaries(tmp_path / "data")
    for split in ("train", "valid", "test"):
        for end in ("idx", "bin"):
            (folder / f"{split}.src-tgt.src.{end}").touch()
    return folder


@pytest.mark.parametrize(
    ("typed", "xla", "tpu"), [([], None, False), (["--tpu"], "torch_xla", True), ([], "torch_xla", True)]
)
def test_bf16_is_a_tpu_s_only_where_there_may_be_one(
    typed: list[str], xla: str | None, tpu: bool, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = []

    def command() -> None:
        parser = options.get_training_parser(default_task="translation")
        flags = [
            str(data),
            "--arch",
            "transformer",
            "--criterion",
            "cross_entropy",
            "--batch-size",
            "1",
            "--optimizer",
            "adam",
            "--bf16",
            *typed,
        ]
        parsed.append(options.parse_args_and_arch(parser, flags))

    monkeypatch.setattr(
        fairseq_commands.importlib, "import_module", lambda name: SimpleNamespace(cli_main=command, main=None)
    )
    monkeypatch.setattr(sys, "argv", ["imitkd-train", "data", *typed])
    monkeypatch.setattr(fairseq_commands.logging.root, "handlers", [])
    monkeypatch.setattr(utils, "xm", xla)
    fairseq = options.parse_args_and_arch
    fairseq_commands.train()
    assert (parsed[0].bf16, parsed[0].tpu) == (True, tpu)
    assert options.parse_args_and_arch is fairseq


TRAINING = (
    "--arch", "transformer", "--criterion", "cross_entropy", "--optimizer", "adam", "--max-tokens", "100",
)  # fmt: skip


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        (
            "train",
            ("none", *TRAINING),
            "DATA 'none' is not a directory; use a directory that fairseq-preprocess has made",
        ),
        (
            "train",
            ("DATA", *TRAINING[:-2]),
            "--max-tokens is not given; add the most tokens that a batch may hold",
        ),
        ("train", ("DATA", *TRAINING, "--train-subset", "more"), "--train-subset 'more' is not in DATA"),
        ("train", ("DATA", *TRAINING, "--valid-subset", "valid,dev"), "--valid-subset 'dev' is not in DATA"),
        ("generate", ("none", "--path", "x.pt"), "DATA 'none' is not a directory"),
        (
            "generate",
            ("DATA", "--path", "x.pt", "--gen-subset", "nope"),
            "--gen-subset 'nope' is not in DATA",
        ),
        ("generate", ("DATA",), "--path is not given; name the student's checkpoint"),
        ("generate", ("DATA", "--path", "none.pt"), "--path 'none.pt' is not a file"),
        ("generate", ("DATA", "--path", "FOLDER/text.pt:none.pt"), "--path 'none.pt' is not a file"),
        (
            "generate",
            ("DATA", "--path", "FOLDER/text.pt"),
            "--path 'FOLDER/text.pt' is damaged or not a checkpoint",
        ),
        (
            "interactive",
            ("DATA", "--path", "FOLDER/text.pt"),
            "--path 'FOLDER/text.pt' is damaged or not a checkpoint",
        ),
        ("interactive", ("DATA", "--path", "none.pt"), "--path 'none.pt' is not a file"),
        (
            "generate",
            ("DATA", "--path", "x.pt", "--save-dir", "x"),
            "--save-dir changes nothing in imitkd-generate, because it is a flag of imitkd-train: leave",
        ),
        (
            "interactive",
            ("DATA", "--path", "x.pt", "--teacher-path", "t"),
            "--teacher-path changes nothing in",
        ),
        (
            "train",
            ("DATA", *TRAINING, "--user-dir", "tasks"),
            "--user-dir 'tasks' is not a directory; the one",
        ),
        ("train", ("DATA", "--jsd-wieght", "1"), "--jsd-wieght is not a flag of this command: did you mean "),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_done(
    command: str, flags: tuple[str, ...], message: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, of fairseq's own modules too."""
    (data.parent / "text.pt").write_text("no checkpoint")

    def filled(text: str) -> str:
        return text.replace("DATA", str(data)) if text == "DATA" else text.replace("FOLDER", str(data.parent))

    monkeypatch.setattr(sys, "argv", ["command", *map(filled, flags)])
    monkeypatch.setattr(fairseq_commands.logging.root, "handlers", [])
    with pytest.raises(UsageError, match=f"^{re.escape(filled(message))}") as refused:
        getattr(fairseq_commands, command)()
    assert "\n" not in str(refused.value)


def test_training_without_validation_needs_no_split_for_it(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does another task than translation, whose data lie otherwise."""
    parsed: list[Any] = []
    for end in ("idx", "bin"):
        (data / f"valid.src-tgt.src.{end}").unlink()

    def command() -> None:
        parsed.append(
            options.parse_args_and_arch(options.get_training_parser(default_task="translation"), sys.argv[1:])
        )

    monkeypatch.setattr(
        fairseq_commands.importlib, "import_module", lambda name: SimpleNamespace(cli_main=command, main=None)
    )
    monkeypatch.setattr(fairseq_commands.logging.root, "handlers", [])
    for typed in ((str(data), "--disable-validation"), ("none", "--task", "language_modeling")):
        monkeypatch.setattr(sys, "argv", ["imitkd-train", *typed, *TRAINING])
        fairseq_commands.train()
    assert len(parsed) == 2
    assert (parsed[0].source_lang, parsed[0].target_lang) == ("src", "tgt"), "a checkpoint tells them later"
    assert not hasattr(parsed[1], "source_lang")
