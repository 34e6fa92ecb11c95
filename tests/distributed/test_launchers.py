"""Processes end together however they are started: by Slurm, torchrun, a shared file, or fairseq itself."""

import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.distributed.test_faults import (  # noqa: F401  (fixtures)
    SOON,
    UPDATES,
    Ended,
    at_update,
    commands,
    data,
    run,
    seconds_since_fault,
    whole,
)
from tests.distributed.test_two_ranks import free_port
from tests.helpers import warm_commands
from tests.helpers.digit_corpus import BIN
from tests.integration.test_resume_epochs import differences, end

pytestmark = pytest.mark.slow
KILLED = "1 backward SIGKILL 3"
FULL = "0 save full 3"
LINES = {KILLED: "rank 1 ended without a message", FULL: "rank 0 ended: --save-dir .*No space left"}


def flags_without(command: list[str], *names: str, values: int = 1) -> list[str]:
    """Return a command without some flags."""
    kept, skip = [], 0
    for word in command:
        skip = 1 + values if word in names else skip
        if not skip:
            kept.append(word)
        skip = max(0, skip - 1)
    return kept


def assert_ended(ended: list[Ended], folder: Path, inject: str) -> None:
    """Each rank that was not killed has ended soon, with the line."""
    assert seconds_since_fault(ended, folder, 0.0) < SOON
    for rank, each in enumerate(ended):
        assert each.status != 0
        if inject != KILLED or rank != 1:
            assert re.search(f"^error: {LINES[inject]}", each.last), each.output[-3000:]
            assert "Traceback" not in each.output


def assert_whole(ended: list[Ended], folder: Path, whole: Path) -> None:  # noqa: F811
    """All ranks have succeeded, and trained what others train."""
    assert all(each.status == 0 for each in ended), [each.output[-3000:] for each in ended]
    last = torch.load(folder / "checkpoints" / "checkpoint_last.pt", weights_only=True)
    assert differences(end(last), at_update(whole, UPDATES)) == []


@pytest.mark.parametrize("inject", [KILLED, FULL])
def test_a_shared_file(inject: str, data: Path, whole: Path, tmp_path: Path) -> None:  # noqa: F811
    """A file that a killed run has left does not stop the next one."""
    meeting = ("--distributed-init-method", f"file://{tmp_path}/meeting")
    (tmp_path / "meeting").write_text("127.0.0.1 9\n")
    assert_ended(run(commands(data, tmp_path, meeting=meeting), tmp_path, inject), tmp_path, inject)
    assert_whole(run(commands(data, tmp_path, meeting=meeting), tmp_path), tmp_path, whole)
    assert not (tmp_path / "meeting").exists()


@pytest.mark.parametrize("inject", [KILLED, FULL, "refused"])
def test_slurm(inject: str, data: Path, whole: Path, tmp_path: Path) -> None:  # noqa: F811
    """fairseq finds the meeting in Slurm's variables; the processes watch each other before it does."""
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho localhost\n")
    (tmp_path / "scontrol").chmod(0o755)
    slurm = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_STEP_NODELIST": "nodes", "SLURM_NNODES": "1",
        "SLURM_NTASKS": "2", "SLURM_LOCALID": "0",
    }  # fmt: skip

    def srun(inject: str = "", **flags: tuple[object, ...]) -> list[Ended]:
        together = commands(data, tmp_path, meeting=("--distributed-port", free_port()))
        together = [
            ["env", f"SLURM_PROCID={rank}", *flags_without(command, "--distributed-rank"), *map(str, more)]
            for rank, (command, more) in enumerate(zip(together, (flags.get("0", ()), ()), strict=True))
        ]
        together = [flags_without(command, "--distributed-no-spawn", values=0) for command in together]
        return run(together, tmp_path, inject, **slurm)

    if inject == "refused":
        for each in srun(**{"0": ("--dropout", 2)}):
            assert each.last.startswith("error: rank 0 ended: --dropout must be")
    else:
        assert_ended(srun(inject), tmp_path, inject)
        assert_whole(srun(), tmp_path, whole)


@pytest.mark.parametrize("inject", [KILLED, FULL])
def test_fairseqs_own_command(inject: str, data: Path, whole: Path, tmp_path: Path) -> None:  # noqa: F811
    """``fairseq-train --user-dir`` ends together too, from the meeting on."""
    train = str(warm_commands.folder() / "fairseq-train")

    def start(inject: str = "") -> list[Ended]:
        together = [
            [train, *command[1:], "--task", "translation_with_teacher"]
            for command in commands(data, tmp_path)
        ]
        return run(together, tmp_path, inject)

    assert_ended(start(inject), tmp_path, inject)
    assert_whole(start(), tmp_path, whole)


@pytest.mark.parametrize("inject", [KILLED, FULL])
def test_torchrun(inject: str, data: Path, whole: Path, tmp_path: Path) -> None:  # noqa: F811
    """torchrun's own store is the meeting. It also ends the others, by SIGTERM, which is not the cause."""
    command, _ = commands(data, tmp_path, meeting=("--distributed-init-method", "env://"))
    words = " ".join(f"'{word}'" for word in flags_without(command, "--distributed-rank"))
    script = f"OWN_RANK=$RANK exec {words} --distributed-rank $RANK > {tmp_path}/rank-$RANK.txt 2>&1"
    torchrun = [str(BIN / "torchrun"), "--nproc-per-node", "2", "--master-port", str(free_port())]

    def start(inject: str = "", *more: str) -> list[Ended]:
        [ended] = run([[*torchrun, *more, "--no-python", "bash", "-c", script]], tmp_path, inject)
        return [
            Ended(ended.status, (tmp_path / f"rank-{rank}.txt").read_text(), ended.at) for rank in range(2)
        ]

    assert_ended(start(inject), tmp_path, inject)
    assert_whole(start(), tmp_path, whole)


def test_torchrun_starts_again(data: Path, whole: Path, tmp_path: Path) -> None:  # noqa: F811
    """After a fault torchrun starts all processes again, with the store that it has kept; they go on."""
    command, _ = commands(data, tmp_path, meeting=("--distributed-init-method", "env://"))
    words = " ".join(f"'{word}'" for word in flags_without(command, "--distributed-rank"))
    once = "if [ $TORCHELASTIC_RESTART_COUNT != 0 ]; then unset FAULT; fi"
    script = f"{once}; OWN_RANK=$RANK exec {words} --distributed-rank $RANK > {tmp_path}/rank-$RANK.txt 2>&1"
    torchrun = [str(BIN / "torchrun"), "--nproc-per-node", "2", "--max-restarts", "1", "--standalone"]
    [ended] = run([[*torchrun, "--no-python", "bash", "-c", script]], tmp_path, KILLED)
    assert_whole([ended], tmp_path, whole)


@pytest.mark.parametrize(
    ("command", "inject"), [("imitkd-train", KILLED), ("imitkd-train", FULL), ("fairseq-train", KILLED)]
)
def test_processes_that_fairseq_spawns(
    command: str,
    inject: str,
    data: Path,  # noqa: F811
    whole: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """fairseq starts a process for each GPU itself, and ends when one of them has failed."""
    (tmp_path / "sitecustomize.py").write_text("import torch\ntorch.cuda.device_count = lambda: 2\n")
    [first, _] = commands(data, tmp_path)
    first = flags_without(flags_without(first, "--distributed-no-spawn", values=0), "--distributed-rank")
    first = ["env", "-u", "OWN_RANK", str(BIN / command), *first[1:], "--task", "translation_with_teacher"]
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    [ended] = run([first], tmp_path, inject, PYTHONPATH=path, SPAWNS="1")
    print(ended.output)
    assert seconds_since_fault([ended], tmp_path, 0.0) < SOON
    assert ended.status != 0
    if command == "fairseq-train":  # its processes know nothing of the plugin when they meet
        return
    assert re.search(f"(?m)^error: {LINES[inject]}", ended.output), ended.output[-3000:]
    assert ended.last.startswith("error: ")
    assert "Traceback" not in ended.output
    (tmp_path / "fault").unlink()
    assert_whole(run([first], tmp_path, PYTHONPATH=path, SPAWNS="1"), tmp_path, whole)


def test_a_process_that_is_paused_goes_on(data: Path, whole: Path, tmp_path: Path) -> None:  # noqa: F811
    """A process that is stopped is not a fault: the others wait for it."""

    def wake() -> None:
        while not (tmp_path / "fault").exists():
            time.sleep(0.1)
        time.sleep(3.0)
        os.kill(int((tmp_path / "fault").read_text().split()[1]), signal.SIGCONT)

    waking = threading.Thread(target=wake)
    waking.start()
    ended = run(commands(data, tmp_path), tmp_path, "1 teacher SIGSTOP 3")
    waking.join()
    assert seconds_since_fault(ended, tmp_path, 0.0) > 3.0
    assert_whole(ended, tmp_path, whole)


@pytest.mark.parametrize(("rank", "number"), [(0, signal.SIGTERM), (1, signal.SIGTERM), (1, signal.SIGINT)])
def test_a_process_whose_others_never_start_ends_by_a_signal(
    rank: int,
    number: signal.Signals,
    data: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """It waits for them for half an hour, unless it is stopped."""
    pids: list[int] = []
    threading.Timer(4.0, lambda: os.kill(pids[0], number)).start()
    began = time.time()
    [ended] = run([commands(data, tmp_path)[rank]], tmp_path, pids=pids)
    assert ended.at - began < 4.0 + SOON
    assert ended.status != 0
    assert re.search(f"rank {rank} ended: it was stopped by {number.name}", ended.output), ended.output
    assert "Traceback" not in ended.output
