"""Data directories: what is missing is said in one line."""

import os
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from fairseq_imitkd.data.directory import check_data, check_splits
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.tasks.translation import TranslationWithTeacherTask
from tests.helpers.fairseq_models import tiny_task, write_dictionaries


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Dictionaries, and splits without any sentence, one of them of the other direction."""
    folder = write_dictionaries(tmp_path / "data")
    for name in ("train.src-tgt.src", "train.src-tgt.tgt", "test.tgt-src.src"):
        for end in ("idx", "bin"):
            (folder / f"{name}.{end}").touch()
    return folder


def test_languages_are_told_as_fairseq_tells_them(data: Path) -> None:
    """One that was given alone counts for nothing; of several directories the first is asked."""
    (data / "test.tgt-src.src.idx").unlink()
    for given in ((None, None), ("src", None), ("src", "tgt")):
        assert check_data(str(data), *given) == ("src", "tgt")
    assert check_data(str(data), "tgt", "src") == ("tgt", "src")
    (data.parent / "more").mkdir()
    assert check_data(f"{data}{os.pathsep}{data.parent / 'more'}", None, None) == ("src", "tgt")


@pytest.mark.parametrize(
    ("name", "languages", "message"),
    [
        (None, (None, None), "DATA is not given: name a directory that fairseq-preprocess has made"),
        ("none", (None, None), "DATA '{}/none' is no directory: name one that fairseq-preprocess has made"),
        ("data/dict.src.txt", (None, None), "DATA '{}/data/dict.src.txt' is no directory: name one"),
        ("data:none", (None, None), "DATA 'none' is no directory"),
        (
            "empty",
            (None, None),
            "DATA '{}/empty' has no file such as train.de-en.de.idx, by which to tell its languages: name",
        ),
        ("empty", ("src", "tgt"), "DATA '{}/empty' has no dict.src.txt: name a directory"),
        ("data", ("src", "de"), "DATA '{}/data' has no dict.de.txt: name a directory"),
    ],
)
def test_what_is_missing_is_said(data: Path, name: str | None, languages: Any, message: str) -> None:
    """By the command's checks, and by the task under fairseq's own commands; a task of a checkpoint is no exception."""
    root = data.parent
    (root / "empty").mkdir()
    path = name and f"{root}/{name}"
    start = "^" + re.escape(message.format(root))
    with pytest.raises(UsageError, match=start):
        check_data(path, *languages)
    cfg = Namespace(
        **{**vars(tiny_task().cfg), "data": path, "source_lang": languages[0], "target_lang": languages[1]}
    )
    for settings in ({}, {"from_checkpoint": True}):
        with pytest.raises(UsageError, match=start):
            TranslationWithTeacherTask.setup_task(cfg, **settings)


def test_damaged_dictionary(data: Path) -> None:
    """Not a line is a symbol and its count."""
    (data / "dict.tgt.txt").write_text("no dictionary\n")
    cfg = Namespace(**{**vars(tiny_task().cfg), "data": str(data)})
    with pytest.raises(
        UsageError, match=rf"^a dictionary of DATA '{data}' can't be read \(.*\): give one of"
    ) as refused:
        TranslationWithTeacherTask.setup_task(cfg)
    assert "\n" not in str(refused.value)


def test_directory_that_may_not_be_read(data: Path, monkeypatch: Any) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(
        UsageError, match=r"DATA '.*' can't be read \(Permission denied\): check its permissions"
    ):
        check_data(str(data), "src", "tgt")


def test_splits(data: Path) -> None:
    """In either direction; what there is, is named."""
    check_splits(str(data), "src", "tgt", [("--train-subset", "train"), ("--gen-subset", "test")], None)
    told = f"--gen-subset 'nope' is not in DATA '{data}': name a split that is there; it has test, train"
    with pytest.raises(UsageError, match=f"^{re.escape(told)}$"):
        check_splits(str(data), "src", "tgt", [("--train-subset", "train"), ("--gen-subset", "nope")], None)
    with pytest.raises(UsageError, match=r"it has none$"):
        check_splits(
            str(write_dictionaries(data.parent / "bare")), "src", "tgt", [("--valid-subset", "valid")], None
        )
