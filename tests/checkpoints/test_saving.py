"""Checkpoints are whole or absent, and a run continues from the newest whole one."""

import errno
import logging
import multiprocessing
import resource
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from filelock import FileLock

from fairseq_imitkd.checkpoints import saving
from fairseq_imitkd.checkpoints.safe_load import find_damage
from fairseq_imitkd.checkpoints.saving import newest_whole, prepare_folder, take_folder
from fairseq_imitkd.errors import UsageError
from tests.helpers import in_process


def test_two_trainings_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one is refused, and begins when the first one has ended. A process may take it twice."""
    monkeypatch.setattr(saving, "PATIENCE", 0.2)
    first = take_folder(tmp_path)
    take_folder(tmp_path)
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as other:
        with pytest.raises(UsageError, match="is in use by another training; wait until it ends"):
            other.submit(take_anew, tmp_path).result()
        first.release(force=True)
        assert other.submit(take_anew, tmp_path).result()


def take_anew(folder: Path) -> bool:
    """Take a folder as a process that has no lock yet."""
    FileLock._instances.clear()
    return take_folder(folder) is not None


def checkpoint(update: int) -> dict[str, Any]:
    """Return the parts of a checkpoint that a training continues from."""
    return {
        "model": {"weight": torch.arange(5000.0) + update},
        "optimizer_history": [{"num_updates": update}],
        "last_optimizer_state": {"state": {}, "param_groups": [1]},
        "extra_state": {"train_iterator": {"epoch": 1}},
    }


def save(path: Path, update: int) -> None:
    """Save a checkpoint as fairseq's trainer does."""
    checkpoint_utils.torch_persistent_save(checkpoint(update), str(path))


def update_of(path: Path) -> int:
    """Return the update of a whole checkpoint."""
    return torch.load(path, weights_only=True)["optimizer_history"][-1]["num_updates"]


def truncated(data: bytes) -> bytes:
    """As a copy that was killed leaves it."""
    return data[: len(data) // 2]


def with_a_page_of_zeros(data: bytes) -> bytes:
    """As a machine that lost its power can leave it. torch's loader does not notice."""
    return data[:8192] + bytes(4096) + data[12288:]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": truncated,
    "zeros": with_a_page_of_zeros,
    "empty": lambda _: b"",
    "text": lambda _: b"not a checkpoint",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_newest_whole_checkpoint_takes_the_place_of_a_damaged_one(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its name says nothing about its age. The damaged file is kept."""
    last = tmp_path / "checkpoint_last.pt"
    save(last, 50)
    damaged = DAMAGES[damage](last.read_bytes())
    last.write_bytes(damaged)
    for name, update in (("checkpoint_best.pt", 40), ("checkpoint_9_30.pt", 30), ("checkpoint1.pt", 45)):
        save(tmp_path / name, update)
    (tmp_path / "checkpoint1.pt").write_bytes(truncated((tmp_path / "checkpoint1.pt").read_bytes()))
    torch.save({"model": {}}, tmp_path / "checkpoint_weights.pt")  # nothing to continue from
    with caplog.at_level(logging.WARNING):
        prepare_folder(tmp_path)
    assert update_of(last) == 40
    assert (tmp_path / "checkpoint_last.pt.damaged").read_bytes() == damaged
    [line] = caplog.messages
    assert "checkpoint_last.pt is damaged" in line
    assert "continues from checkpoint_best.pt, at update 40" in line


def test_without_a_whole_checkpoint_the_run_is_refused(tmp_path: Path) -> None:
    """The damaged file is left as it is."""
    last = tmp_path / "checkpoint_last.pt"
    last.write_bytes(b"PK half")
    with pytest.raises(UsageError, match=r"is damaged \(a part of it is missing\), and no"):
        prepare_folder(tmp_path)
    assert last.read_bytes() == b"PK half"


def test_whole_checkpoints_are_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """So are a folder without checkpoints, and files of torch's old format."""
    prepare_folder(tmp_path / "absent")
    prepare_folder(tmp_path)
    last = tmp_path / "checkpoint_last.pt"
    for old_format in (False, True):
        torch.save(checkpoint(50), last, _use_new_zipfile_serialization=not old_format)
        assert find_damage(last) is None
        prepare_folder(tmp_path)
    assert update_of(last) == 50
    assert caplog.messages == []


def test_start_beside_other_checkpoints_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without checkpoint_last.pt fairseq starts from nothing."""
    save(tmp_path / "checkpoint2.pt", 20)
    assert newest_whole(tmp_path, tmp_path / "checkpoint_last.pt") == (20, tmp_path / "checkpoint2.pt")
    with caplog.at_level(logging.WARNING):
        prepare_folder(tmp_path)
    [line] = caplog.messages
    assert f"to continue from update 20, add --restore-file {tmp_path}/checkpoint2.pt" in line


def test_a_run_that_has_ended_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    """fairseq ends it by a learning rate that no flag has set, and would tell so. Others are told."""
    caplog.set_level(logging.INFO)
    trainer = SimpleNamespace(cfg=SimpleNamespace(optimization=SimpleNamespace(stop_min_lr=-1.0)))
    saving.train_no_further(trainer, "--max-update 3")
    for least in (trainer.cfg.optimization.stop_min_lr, 0.5):
        logging.getLogger("fairseq_cli.train").info(
            f"stopping training because current learning rate (0.001) is smaller than or equal to minimum "
            f"learning rate (--stop-min-lr={least})"
        )
    assert [message[:36] for message in caplog.messages] == [
        "this training has ended by --max-upd",
        "stopping training because current le",
    ]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the operating system refuse files above this size, in bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("write", ["save", "copy"])
def test_a_full_disk_ends_in_one_line_and_loses_nothing(write: str, tmp_path: Path) -> None:
    """The earlier checkpoint stays, and no half file is left."""
    last, first = tmp_path / "checkpoint_last.pt", tmp_path / "checkpoint1.pt"
    save(last, 10)
    save(first, 20)
    writing: Callable[[], Any] = {
        "save": lambda: save(last, 20),
        "copy": lambda: checkpoint_utils.PathManager.copy(str(first), str(last), overwrite=True),
    }[write]
    with largest_file(9000), pytest.raises(UsageError) as refused:
        writing()
    assert f"'{tmp_path}': checkpoint_last.pt can't be written (File too large)" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert update_of(last) == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint1.pt", "checkpoint_last.pt"]


def test_a_training_on_a_full_disk_continues_when_there_is_space(
    digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends as the run that always had space, in every bit."""
    flags = (
        "--task", "translation_with_teacher", "--criterion", "cross_entropy", "--batch-size", 32,
        "--save-interval-updates", 2, "--keep-interval-updates", 1, "--disable-validation", "--max-update", 6,
    )  # fmt: skip
    whole = in_process.train(digits.data, tmp_path / "whole", *flags).weights()
    copies, copy = [], shutil.copyfileobj

    def full(source: Any, target: Any, *more: Any) -> None:
        copies.append(1)
        if len(copies) == 2:
            target.write(source.read(1000))
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(source, target, *more)

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(UsageError, match="No space left on device"):
        in_process.train(digits.data, tmp_path / "full", *flags)
    assert update_of(tmp_path / "full" / "checkpoint_last.pt") == 2
    resumed = in_process.train(digits.data, tmp_path / "full", *flags).weights()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
