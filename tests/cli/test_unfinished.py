"""A training that is stopped says where it goes on; one that is refused leaves no folder."""

from pathlib import Path

import pytest

from fairseq_imitkd.cli.unfinished import no_trace_of_a_refusal, where_it_goes_on
from fairseq_imitkd.errors import UsageError


def test_where_a_stopped_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["imitkd-train", "data", f"--save-dir={tmp_path}"])
    assert where_it_goes_on() == "; there is no checkpoint yet, so the same command starts from the beginning"
    (tmp_path / "checkpoint_last.pt").touch()
    assert where_it_goes_on() == f"; the same command continues from {tmp_path}/checkpoint_last.pt"


def refused(folder: Path, files: dict[str, str]) -> None:
    """Begin a training that writes files, and is refused."""

    def begin() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
        raise UsageError("refused")

    with pytest.raises(UsageError), no_trace_of_a_refusal():
        begin()


@pytest.mark.parametrize(
    ("files", "stays"),
    [
        ({}, False),
        ({"config.json": "{}", "train.log": "x\n", "metrics.jsonl": "{}\n"}, False),
        ({"config.json": "{}", "metrics.jsonl": "{}\n{}\n"}, True),
        ({"checkpoint_last.pt": ""}, True),
    ],
)
def test_what_a_refused_training_has_made(
    files: dict[str, str], stays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its own empty folders are removed, and not those of a training that had updates."""
    folder = tmp_path / "runs" / "student"
    monkeypatch.setattr("sys.argv", ["imitkd-train", "data", "--save-dir", str(folder)])
    refused(folder, files)
    assert folder.exists() == (tmp_path / "runs").exists() == stays
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.setattr("sys.argv", ["imitkd-train", "data", "--save-dir", str(there)])
    refused(there, {})
    assert there.exists()
