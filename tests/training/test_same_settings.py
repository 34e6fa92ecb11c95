"""Settings and files of processes that train together are compared before data is read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.training.same_settings import check_same_settings, flat_settings, marks_of_files


class Store(dict):
    """torch's store in memory."""

    def set(self, name: str, value: str) -> None:
        self[name] = value.encode()


def config(**changes: Any) -> Any:
    """Return a part of fairseq's configuration, with these settings of any group."""
    groups: dict[str, dict[str, Any]] = {
        "common": {"seed": 1, "log_interval": 100},
        "distributed_training": {"distributed_world_size": 3, "distributed_rank": 0},
        "task": {"_name": "translation_with_teacher", "data": "", "teacher_path": "/one/teacher.pt"},
        "criterion": {"_name": "gkd", "student_share": "0.5", "jsd_weight": 0.1},
        "optimization": {"lr": [0.25], "max_update": 9},
    }
    for name, value in changes.items():
        group, _, name = name.partition("__")
        groups[group][name] = value
    return OmegaConf.create(groups)


def compare(*configs: Any) -> list[str]:
    """Return what each process is told; empty texts if all settings are equal."""
    store, told = Store(), []
    for rank, cfg in enumerate(configs):
        own = {f"--{name}": value for name, value in flat_settings(cfg).items()}
        store.set(f"settings/{rank}", json.dumps({**own, **marks_of_files(cfg)}))
    for rank, cfg in enumerate(configs):
        try:
            check_same_settings(store, cfg, rank)
            told.append("")
        except UsageError as error:
            told.append(str(error))
    return told


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"common__seed": 2}, "--seed is 1 on rank 0 and 2 on rank 2"),
        ({"criterion__student_share": "0.6"}, "--student-share is 0.5 on rank 0 and 0.6 on rank 2"),
        ({"optimization__lr": [0.5]}, r"--lr is [0.25] on rank 0 and [0.5] on rank 2"),
        ({"criterion__other": 1}, "--other is not there on rank 0 and 1 on rank 2"),
        (
            {"task__teacher_path": "/one/other.pt"},
            "--teacher-path is teacher.pt on rank 0 and other.pt on rank 2",
        ),
    ],
)
def test_all_processes_are_told_the_flag_and_its_values(change: dict[str, Any], line: str) -> None:
    expected = f"{line}: start all processes with the same flags and files"
    assert compare(config(), config(), config(**change)) == [expected] * 3


def test_what_chooses_other_flags_is_named_first() -> None:
    """Another method has many other flags."""
    other = config(criterion___name="imitkd", criterion__jsd_weight=0.5, criterion__student_share="linear")
    assert compare(config(), config(), other)[0].startswith(
        "--criterion is gkd on rank 0 and imitkd on rank 2"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"distributed_training__distributed_rank": 1},
        {"common__log_interval": 1},
        {"task__data": "/elsewhere/data"},
        {"task__teacher_path": "/elsewhere/teacher.pt"},
    ],
)
def test_settings_of_one_machine_may_differ(change: dict[str, Any]) -> None:
    assert compare(config(), config(**change), config()) == [""] * 3


def test_files_of_the_same_names_are_told_apart(tmp_path: Path) -> None:
    """A dictionary and a teacher by their content, and text by its size; copies are equal."""
    one, other = tmp_path / "one", tmp_path / "other"
    (one / "input0").mkdir(parents=True)
    (one / "dict.src.txt").write_text("a 1\nb 1\n")
    (one / "input0" / "train.bin").write_bytes(b"12345")
    torch.save({"model": {"weight": torch.ones(9)}}, one / "teacher.pt")
    shutil.copytree(one, other)

    def marks(folder: Path) -> dict[str, str]:
        return marks_of_files(config(task__data=str(folder), task__teacher_path=str(folder / "teacher.pt")))

    first = marks(one)
    assert marks(other) == first
    assert set(first) == {"DATA/dict.src.txt", "DATA/input0/train.bin", "the content of teacher.pt"}
    (other / "dict.src.txt").write_text("b 1\na 1\n")
    (other / "input0" / "train.bin").write_bytes(b"1234")
    torch.save({"model": {"weight": -torch.ones(9)}}, other / "teacher.pt")
    assert all(marks(other)[name] != mark for name, mark in first.items())
    assert marks_of_files(config(task__teacher_path="https://there/teacher.pt:/absent.pt")) == {}


def test_files_that_only_some_processes_have_are_not_compared(tmp_path: Path) -> None:
    """Who needs an absent file names it. A file that all have must be the same."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.bin").write_bytes(b"12345")
    (tmp_path / "one" / "test.bin").write_bytes(b"1")
    configs = [config(task__data=str(tmp_path / name)) for name in ("one", "other", "one")]
    assert compare(*configs) == [""] * 3
    (tmp_path / "other" / "train.bin").write_bytes(b"1234")
    line = (
        "DATA/train.bin is 5 bytes on rank 0 and 4 bytes on rank 1: start all processes with the same flags"
    )
    assert compare(*configs) == [f"{line} and files"] * 3
