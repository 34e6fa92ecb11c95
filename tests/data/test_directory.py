"""Data directories: what is missing is said in one line."""

import functools
import os
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.data import indexed_dataset

from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.data.directory import (
    check_data,
    check_sentences,
    check_splits,
    dictionaries_read,
    languages_of_files,
)
from fairseq_imitkd.data.pair_flags import check_pair_splits
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


def test_the_data_of_a_language_model(tmp_path: Path) -> None:
    """It has one dictionary. No translation reads it."""
    with pytest.raises(UsageError, match=re.escape(f"DATA '{tmp_path}' has no dict.txt; use a directory")):
        check_sentences(str(tmp_path), [])
    (tmp_path / "dict.txt").touch()
    with pytest.raises(UsageError, match="is that of a language model, without translations: use --task"):
        check_data(str(tmp_path), None, None)
    for end in ("idx", "bin"):
        (tmp_path / f"valid.{end}").touch()
    with pytest.raises(UsageError, match=r"--train-subset 'train' is not in DATA '.*'; .* it has valid"):
        check_sentences(str(tmp_path), [("--valid-subset", "valid"), ("--train-subset", "train")])
    check_sentences(str(tmp_path), [("--valid-subset", "valid")])
    (tmp_path / "valid.bin").unlink()
    with pytest.raises(UsageError, match=r"valid\.bin' is missing, but valid\.idx is there; copy it, or bin"):
        check_sentences(str(tmp_path), [("--valid-subset", "valid")])


def test_plain_text_needs_to_be_binarised(tmp_path: Path) -> None:
    """Without dictionaries, to name the languages would not help."""
    (tmp_path / "train.de").touch()
    with pytest.raises(UsageError, match=r"shows its languages; use a directory .* has made$"):
        check_data(str(tmp_path), None, None)
    (tmp_path / "dict.de.txt").touch()
    with pytest.raises(UsageError, match="has made, or add --source-lang and --target-lang"):
        check_data(str(tmp_path), None, None)


@pytest.mark.parametrize(
    ("name", "languages", "message"),
    [
        (None, (None, None), "DATA is not given; use a directory that fairseq-preprocess has made"),
        ("none", (None, None), "DATA '{}/none' is not a directory; use a directory that fairseq"),
        ("data/dict.src.txt", (None, None), "DATA '{}/data/dict.src.txt' is not a directory; use"),
        ("data:none", (None, None), "DATA 'none' is not a directory"),
        (
            "empty",
            (None, None),
            "DATA '{}/empty' has no file such as train.de-en.de.idx, which shows its languages; use a",
        ),
        ("empty", ("src", "tgt"), "DATA '{}/empty' has no dict.src.txt; use a directory"),
        ("data", ("src", "de"), "DATA '{}/data' has no dict.de.txt, but those of src and tgt; use a dir"),
        ("sentences", ("src", "tgt"), "DATA '{}/sentences' has no dict.src.txt; use a directory"),
    ],
)
def test_what_is_missing_is_said(data: Path, name: str | None, languages: Any, message: str) -> None:
    """By this check, and by the task under fairseq's own commands, also when it comes from a checkpoint."""
    root = data.parent
    (root / "empty").mkdir()
    (root / "sentences").mkdir()
    (root / "sentences" / "dict.txt").touch()
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
    """The message is the same under fairseq's own commands and under those of this package."""
    (data / "dict.tgt.txt").write_text("no dictionary\n")
    cfg = Namespace(**{**vars(tiny_task().cfg), "data": str(data)})
    path = data / "dict.tgt.txt"
    told = rf"^'{path}' is not a dictionary of fairseq \(Incorrect dictionary format.*\); use one that"
    for call in (
        lambda: TranslationWithTeacherTask.setup_task(cfg),
        lambda: Languages.of(data, "src", "tgt"),
    ):
        with pytest.raises(UsageError, match=told) as refused:
            call()
        assert "\n" not in str(refused.value)


def test_dictionaries_that_another_error_hides(data: Path) -> None:
    """The directory is named when each dictionary can be read."""
    with (
        pytest.raises(UsageError, match=rf"^the dictionaries of DATA '{data}' can't be read \(why\); use a"),
        dictionaries_read(f"{data}:more"),
    ):
        raise Exception("why")


def test_data_that_is_missing_or_a_file(data: Path) -> None:
    """Permissions are not what is wrong."""
    for path in (data / "gone", data / "dict.src.txt"):
        with pytest.raises(UsageError, match=rf"^DATA '{path}' is not a directory; use a directory that"):
            languages_of_files(path)


def test_directory_that_may_not_be_read(data: Path, monkeypatch: Any) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(
        UsageError, match=r"DATA '.*' can't be read \(Permission denied\); check its permissions"
    ):
        check_data(str(data), "src", "tgt")
    with pytest.raises(UsageError, match=r"DATA '.*' can't be read \(Permission denied\); check"):
        Languages.of(data, "src", "tgt")


def test_splits(data: Path) -> None:
    """In either direction; the message names the splits that are there."""
    check = functools.partial(check_splits, languages=("src", "tgt"), dataset_impl=None)
    check(str(data), splits=[("--train-subset", "train"), ("--gen-subset", "test")])
    told = f"--gen-subset 'nope' is not in DATA '{data}'; use a split that is there: it has test, train"
    with pytest.raises(UsageError, match=f"^{re.escape(told)}$"):
        check(str(data), splits=[("--train-subset", "train"), ("--gen-subset", "nope")])
    with pytest.raises(UsageError, match=r"it has none$"):
        check(str(write_dictionaries(data.parent / "bare")), splits=[("--valid-subset", "valid")])


@pytest.mark.parametrize("kind", ["translation", "language model", "pairs"])
def test_files_of_another_kind(data: Path, kind: str) -> None:
    """Whatever the task, ``--dataset-impl`` that can't read the files is refused before they are read."""
    names = ("train.src-tgt.src", "train.src-tgt.tgt") if kind != "language model" else ("train",)
    for name in names:
        builder = indexed_dataset.make_builder(str(data / f"{name}.bin"), "mmap", 10)
        builder.add_item(torch.tensor([4, 2]))
        builder.finalize(str(data / f"{name}.idx"))
    (data / "dict.txt").touch()
    splits = [("--train-subset", "train")]

    def check(given: str) -> None:
        if kind == "translation":
            check_splits(str(data), ("src", "tgt"), splits, dataset_impl=given)
        elif kind == "language model":
            check_sentences(str(data), splits, dataset_impl=given)
        else:
            flags = {"data": str(data), "lang_pairs": "src-tgt", "source_lang": None}
            check_pair_splits(Namespace(**flags), splits, dataset_impl=given)

    check("mmap")
    (data / names[0]).touch()  # raw text beside them, which fairseq takes for the data
    check("mmap")
    told = f"--dataset-impl cached does not fit '{data / names[0]}.idx', which is of kind mmap: leave it out"
    with pytest.raises(UsageError, match=f"^{re.escape(told)}$"):
        check("cached")
    (data / names[0]).unlink()
    for name in names:
        (data / f"{name}.idx").rename(data / f"{name}.kept")
        (data / f"{name}.bin").rename(data / f"{name}.held")
    (data / names[0]).touch()
    raw = f"--dataset-impl mmap does not fit '{data / names[0]}', which is of kind raw: use raw"
    with pytest.raises(UsageError, match=f"^{re.escape(raw)}$"):
        check("mmap")
    check("raw")
