"""Data whose dictionaries are permuted: no command translates, trains or teaches nonsense."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fairseq_imitkd.cli import cache, evaluate, export, seqkd
from fairseq_imitkd.errors import UsageError
from tests.helpers import digit_corpus, in_process
from tests.helpers.shared import made_once


@pytest.fixture(scope="module")
def other(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sentences, binarised with the same symbols in another order."""
    return made_once(tmp_path_factory, "permuted", lambda folder: binarise(digits, folder)) / "data"


def binarise(digits: Any, folder: Path) -> None:
    for number, language in enumerate(("src", "tgt")):
        lines = (digits.data / f"dict.{language}.txt").read_text().splitlines()
        random.Random(number).shuffle(lines)
        (folder / language).write_text("\n".join(lines) + "\n")
    digit_corpus.binarise(
        digits.text, folder / "data", "--srcdict", str(folder / "src"), "--tgtdict", str(folder / "tgt")
    )


def train(data: Path, folder: Path, *flags: object) -> in_process.Training:
    return in_process.train(
        data, folder, "--task", "translation", "--criterion", "cross_entropy", "--max-update", 1,
        "--disable-validation", *flags,
    )  # fmt: skip


def distil(data: Path, folder: Path, teacher: Path, *flags: object) -> in_process.Training:
    return in_process.train(
        data, folder, "--task", "translation_with_teacher", "--criterion", "imitkd", "--max-update", 1,
        "--teacher-path", teacher, "--disable-validation", *flags,
    )  # fmt: skip


def call(main: Any, *arguments: object) -> Any:
    return main([str(argument) for argument in arguments])


READERS: dict[str, Any] = {
    "generate": lambda data, model, out: in_process.generate(data, model, out),
    "interactive": lambda data, model, out: in_process.interactive(data, model),
    "export": lambda data, model, out: call(export.main, model, "--data", data, "--out", out / "x"),
    "restore": lambda data, model, out: train(data, out, "--restore-file", model),
    "finetune": lambda data, model, out: train(data, out, "--finetune-from-model", model),
    "teacher": lambda data, model, out: distil(data, out, model, "--teacher-data", data),
    "evaluate": lambda data, model, out: call(
        evaluate.main, "--model", f"m={model}", "--data", data, "--out", out / "e"
    ),
    "seqkd": lambda data, model, out: call(
        seqkd.main, data, "--teacher-path", model, "--teacher-data", data, "--out", out / "s"
    ),
    "cache": lambda data, model, out: call(
        cache.main,
        data,
        "--teacher-path",
        model,
        "--teacher-data",
        data,
        "--keep",
        "hidden",
        "--out",
        out / "c",
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_checkpoint_knows_its_dictionaries(reader: str, teacher: Path, other: Path, tmp_path: Path) -> None:
    """Each command that reads one refuses data of other dictionaries, whatever their size."""
    with pytest.raises(
        UsageError, match=r"it was trained with (another source dictionary|/.*dict\.src\.txt)"
    ) as error:
        READERS[reader](other, teacher, tmp_path)
    assert str(teacher) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_was_binarised_anew_in_place(
    digits: Any, teacher: Path, other: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint of fairseq alone has no fingerprint. The likelihood shows that it means other words."""
    state = torch.load(teacher, weights_only=False)
    del state["task_state"]
    state["cfg"]["task"]["data"] = str(other)
    torch.save(state, tmp_path / "stock.pt")
    crash = tmp_path / "refused" / "crash.pt"  # of an earlier training
    crash.parent.mkdir()
    crash.write_text("kept")
    with pytest.raises(UsageError, match=r"does not know this data: .*--teacher-allow-poor"):
        distil(other, crash.parent, tmp_path / "stock.pt")
    assert not (crash.parent / "checkpoint_last.pt").exists()
    assert crash.read_text() == "kept"  # fairseq saves no student that was not trained
    distil(other, tmp_path / "allowed", tmp_path / "stock.pt", "--teacher-allow-poor")
    assert "does not know this data" in caplog.text
    state["cfg"]["task"]["data"] = str(digits.data)
    torch.save(state, tmp_path / "stock.pt")
    distil(digits.data, tmp_path / "own", tmp_path / "stock.pt")


def test_relative_data_is_found_beside_the_checkpoint_or_refused(
    digits: Any, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``task.data`` of a checkpoint may be relative to a folder that is not this one."""
    state = torch.load(teacher, weights_only=False)
    del state["task_state"]
    state["cfg"]["task"]["data"] = "data"
    (tmp_path / "elsewhere").mkdir()
    torch.save(state, tmp_path / "elsewhere" / "stock.pt")
    shutil.copytree(digits.dictionaries, tmp_path / "data")
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="--teacher-data"):
        distil(digits.data, tmp_path / "out", tmp_path / "elsewhere" / "stock.pt")
    monkeypatch.chdir(tmp_path)
    distil(digits.data, tmp_path / "out", tmp_path / "elsewhere" / "stock.pt")
