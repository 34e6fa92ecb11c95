"""The values of the ``--teacher-*`` flags: files, weights and sizes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.teacher.config import TeacherConfig
from fairseq_imitkd.teacher.source import TeacherSource, check_files, parse_bytes, parse_device, parse_weights


def test_flags_are_parsed_and_checked(tmp_path: Path) -> None:
    """All values are taken over, files and weights are checked; the default precision is the student's."""
    one, two = tmp_path / "one.pt", tmp_path / "two.pt"
    flags = TeacherConfig(
        teacher_path=f"{one}:{two}",
        teacher_weights="1:3",
        teacher_dtype="fp16",
        teacher_data="data",
        teacher_allow_globals="a.B",
    )
    with pytest.raises(UsageError, match=f"--teacher-path '{one}' is not a file"):
        TeacherSource.from_flags(flags)
    one.touch()
    two.touch()
    source = TeacherSource.from_flags(flags)
    assert source == TeacherSource(f"{one}:{two}", "fp16", "data", "a.B", [0.25, 0.75])
    assert source.paths == [str(one), str(two)]
    assert TeacherSource.from_flags(TeacherConfig(teacher_path=str(one))) == TeacherSource(str(one))
    with pytest.raises(UsageError, match="--teacher-weights must be 2 positive numbers"):
        TeacherSource.from_flags(replace(flags, teacher_weights="1"))


@pytest.mark.parametrize("path", [None, ""])
def test_no_path_is_refused(path: str | None) -> None:
    """The message names the flag."""
    with pytest.raises(UsageError, match="--teacher-path is not given"):
        check_files(path)


@pytest.mark.parametrize("text", ["0.5", "0.5:0.5:1", "a:b", "0:1", "-1:2", "nan:1", "inf:1", ""])
def test_wrong_weights_are_refused(text: str) -> None:
    """There must be one positive number for each teacher; the message names the flag and its value."""
    with pytest.raises(UsageError) as error:
        parse_weights(text, "a.pt:b.pt")
    assert str(error.value).startswith("--teacher-weights must be 2 positive numbers joined by ':'")
    assert f"'{text}'" in str(error.value)


def test_weights_are_scaled_to_add_up_to_1() -> None:
    """``2:1`` and ``0.2:0.1`` mean the same."""
    assert parse_weights("2:1", "a.pt:b.pt") == pytest.approx([2 / 3, 1 / 3])
    assert parse_weights("0.2:0.1", "a.pt:b.pt") == pytest.approx([2 / 3, 1 / 3])
    assert parse_weights(None, "a.pt:b.pt") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("1024", 1024), ("512MB", 512 << 20), ("2GB", 2 << 30), ("1.5g", 3 << 29), ("64 kb", 1 << 16)],
)
def test_sizes(text: str, expected: int) -> None:
    """Numbers alone are bytes."""
    assert parse_bytes(text, "--teacher-encoder-cache") == expected


@pytest.mark.parametrize("text", ["", "9" * 400, "much", "-1GB", "2XB", "GB", "1e3", "2GB2"])
def test_other_texts_are_not_sizes(text: str) -> None:
    """The message names the flag and the value."""
    with pytest.raises(
        UsageError, match=f"--teacher-encoder-cache must be a size such as 512MB or 2GB.*'{text}'"
    ):
        parse_bytes(text, "--teacher-encoder-cache")


def test_devices_of_a_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of a GPU must be one of those that are visible."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert parse_device(None) is None
    assert [str(parse_device(text)) for text in ("cpu", "cuda:0", "cuda:1")] == ["cpu", "cuda:0", "cuda:1"]
    for text in ("cuda", "gpu", "cuda:x", "CPU", "cuda:-1"):
        with pytest.raises(UsageError, match=f"must be cpu or a GPU such as cuda:1, but is '{text}'"):
            parse_device(text)
    with pytest.raises(UsageError, match="is cuda:2, but the number of visible GPUs is 2"):
        parse_device("cuda:2")
