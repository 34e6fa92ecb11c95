"""When one of several processes fails, all of them end soon, and each says which one failed and why."""

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.test_two_ranks import digit_data, free_port
from tests.helpers import warm_commands
from tests.helpers.digit_corpus import ENVIRONMENT, REPO
from tests.helpers.fairseq_models import TINY_TRANSFORMER_FLAGS
from tests.helpers.shared import made_once
from tests.integration.test_resume_epochs import differences, end

SOON = 30.0  # seconds in which all processes end after a fault
UPDATES = 6
FAULTY = Path(__file__).parent / "faulty_ranks"


@dataclass(frozen=True)
class Fault:
    """What goes wrong in a training of several processes.

    Args:
        inject: ``RANK PLACE KIND UPDATE`` of :mod:`tests.distributed.faulty_ranks`.
        flags: more flags of a rank.
        line: what each process's last line must contain.
        silent: ranks that end without such a line, because they are killed.
        own: what the last line of a silent rank must contain.
        done: the number of updates in the last checkpoint; -1 for any.
        ranks: number of processes.
    """

    inject: str = ""
    line: str = ""
    flags: dict[int, tuple[object, ...]] = field(default_factory=dict)
    silent: tuple[int, ...] = ()
    own: str = ""
    done: int = 0
    ranks: int = 2


@dataclass(frozen=True)
class Ended:
    """How a process has ended.

    Args:
        status: its exit status; negative for a signal.
        output: what it has printed.
        at: the time at which it was seen to have ended.
    """

    status: int
    output: str
    at: float

    @property
    def last(self) -> str:
        return (self.output.rstrip().splitlines() or [""])[-1]

    def errors(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("error: ")]


WORKERS = ("--num-workers", 1)
FEW = {
    "refused before they meet, rank 1": Fault(
        flags={1: ("--dropout", "2")}, line="rank 1 ended: --dropout must be .*, but is 2"
    ),
    "no memory for the teacher, rank 1": Fault(
        "1 teacher oom 0", "rank 1 ended: update 1 is refused: .*memory ran out.*lower --max-tokens"
    ),
    "loss not finite, rank 0": Fault(
        "0 loss nan 3", "rank 0 ended: update 4 is refused: .*loss of sentence", done=3
    ),
    "SIGKILL in the backward pass, rank 1": Fault(
        "1 backward SIGKILL 3", "rank 1 ended without a message", silent=(1,), done=3
    ),
}

MEMORY = r"update \d+ is refused: .*(memory ran out|out of memory).*lower --max-tokens"
MANY = {
    # before they meet
    "refused before they meet, rank 0": Fault(
        flags={0: ("--dropout", "2")}, line="rank 0 ended: --dropout must be .*, but is 2"
    ),
    **{
        f"unknown flag, rank {rank}": Fault(
            flags={rank: ("--no-such-flag",)},
            line=f"error: rank {rank} ended: --no-such-flag is not a flag",
            silent=(rank,),
            own="error: --no-such-flag is not a flag",
        )
        for rank in (0, 1)
    },
    "no teacher, rank 1": Fault(
        flags={1: ("--teacher-path", "/absent/teacher.pt")},
        line="rank 1 ended: --teacher-path '/absent/teacher.pt'",
    ),
    "no --user-dir, rank 1": Fault(
        flags={1: ("--user-dir", "/absent")}, line="rank 1 ended: --user-dir '/absent' is not a directory"
    ),
    "no --user-dir, rank 0": Fault(
        flags={0: ("--user-dir", "/absent")}, line="rank 0 ended: --user-dir '/absent' is not a directory"
    ),
    # settings that differ
    "another seed": Fault(flags={1: ("--seed", 2)}, line="--seed is 1 on rank 0 and 2 on rank 1"),
    "another share": Fault(
        flags={1: ("--student-share", 0.7)}, line="--student-share is 0.6 on rank 0 and 0.7 on rank 1"
    ),
    "another method": Fault(
        flags={0: ("--criterion", "gkd")}, line="--criterion is gkd on rank 0 and imitkd on rank 1"
    ),
    "another task": Fault(
        flags={1: ("--task", "translation")},
        line="rank 1 ended: --teacher-path can't be used here",
        silent=(1,),
        own="error: --teacher-path can't be used here",
    ),
    "another --update-freq": Fault(
        flags={1: ("--update-freq", 2)}, line=r"--update-freq is \[1\] on rank 0 and \[2\] on rank 1"
    ),
    "another --max-update": Fault(flags={1: ("--max-update", 9)}, line="--max-update is 6 on rank 0 and 9"),
    "another optimizer": Fault(flags={1: ("--optimizer", "sgd")}, line="--optimizer is adam on rank 0"),
    "another number of processes": Fault(
        flags={1: ("--distributed-world-size", 3)}, line="--distributed-world-size is 3 there and 2 on rank 0"
    ),
    "rank 1 twice": Fault(
        flags={2: ("--distributed-rank", 1)}, line="two processes .* --distributed-rank 1", ranks=3
    ),
    "rank 0 twice": Fault(
        flags={1: ("--distributed-rank", 0)}, line="rank 0 ended: .*--distributed-(rank 0|init-method)"
    ),
    # while they build and read
    **{
        f"{kind} in {place}, rank {rank}": Fault(f"{rank} {place} {kind} -1", f"rank {rank} ended: {line}")
        for rank in (0, 1)
        for place, kind, line in (
            ("model", "error", "the fault of the test"),
            ("criterion", "error", "the fault of the test"),
            ("criterion", "oom", "CUDA out of memory.*lower --max-tokens"),
            ("dataset", "error", "the fault of the test"),
            ("data", "memory", ".*not enough memory"),
        )
    },
    # in the first update and in a later one
    **{
        f"{kind} in {place}, update {update}, rank {rank}": Fault(
            f"{rank} {place} {kind} {update}", f"rank {rank} ended: {line}", done=update
        )
        for update, rank in ((0, 1), (3, 0), (0, 0), (3, 1))
        for place, kind, line in (
            ("rollout", "error", "the fault of the test"),
            ("rollout", "memory", MEMORY),
            ("teacher", "oom", MEMORY),
            ("teacher", "error", "the fault of the test"),
            ("student", "memory", MEMORY),
            ("student", "python-memory", "MemoryError; lower --max-tokens"),
            ("loss", "nan", f"update {update + 1} is refused: the loss of sentence .* is not finite"),
            ("backward", "oom", MEMORY),
            ("backward", "error", "the fault of the test"),
            ("step", "error", "the fault of the test"),
            ("validation", "error", "the fault of the test"),
        )
        if (update, rank) in ((0, 1), (3, 0)) or kind in ("oom", "nan")
    },
    # The gradient is the sum over all processes, so each of them finds it.
    **{
        f"gradient not finite, update {update}, rank {rank}": Fault(
            f"{rank} loss slope {update}",
            rf"rank [01] ended: update {update + 1} is refused: the gradient of \S+ and \d+ other",
            done=update,
        )
        for update, rank in ((0, 1), (3, 0))
    },
    "exit, rank 1": Fault("1 criterion exit -1", "rank 1 ended: its status is 7", silent=(1,)),
    "disk full, update 0": Fault("0 save full 0", "rank 0 ended: --save-dir .*No space left"),
    "disk full, update 3": Fault("0 save full 3", "rank 0 ended: --save-dir .*No space left", done=3),
    "error while it reads, a later update, rank 0": Fault(
        "0 data error 1", "rank 0 ended: the fault of the test", done=-1
    ),
    "error in a worker, rank 1": Fault(
        "1 worker error -1", "rank 1 ended: .*the fault of the test", flags=dict.fromkeys((0, 1), WORKERS)
    ),
    "SIGKILL of a worker, rank 1": Fault(
        "1 worker SIGKILL -1",
        "rank 1 ended: DataLoader worker",
        flags=dict.fromkeys((0, 1), WORKERS),
        done=-1,
    ),
    # signals
    **{
        f"{kind} in {place}, update {update}, rank {rank}": Fault(
            f"{rank} {place} {kind} {update}",
            f"rank {rank} ended without a message",
            silent=(rank,),
            done=max(update, 0),
        )
        for kind, place, update, rank in (
            ("SIGKILL", "model", -1, 0),
            ("SIGKILL", "criterion", -1, 1),
            ("SIGKILL", "rollout", 0, 0),
            ("SIGKILL", "teacher", 3, 1),
            ("SIGKILL", "backward", 3, 0),
            ("SIGKILL", "validation", 3, 1),
            ("SIGKILL", "save", 3, 0),
            ("abort", "backward", 3, 0),
            ("abort", "teacher", 0, 1),
            ("SIGSEGV", "student", 3, 1),
        )
    },
    **{
        f"{kind} in {place}, update {update}, rank {rank}": Fault(
            f"{rank} {place} {kind} {update}",
            f"rank {rank} ended: it was stopped by {kind}",
            done=max(update, 0),
        )
        for kind, place, update, rank in (
            ("SIGTERM", "criterion", -1, 1),
            ("SIGTERM", "student", 0, 0),
            ("SIGTERM", "backward", 3, 1),
            ("SIGTERM", "save", 3, 0),
        )
    },
    **{
        f"SIGINT in {place}, update {update}, rank {rank}": Fault(
            f"{rank} {place} SIGINT {update}",
            f"rank {rank} ended: it was stopped by SIGINT",
            silent=(rank,),
            own="^stopped; the same command continues",
            done=max(update, 0),
        )
        for place, update, rank in (("model", -1, 0), ("student", 3, 0), ("backward", 0, 1))
    },
    # more processes
    "three processes, no memory in rank 2": Fault("2 teacher oom 0", f"rank 2 ended: {MEMORY}", ranks=3),
    "three processes, SIGKILL of rank 2": Fault(
        "2 student SIGKILL 0", "rank 2 ended without a message", ranks=3, silent=(2,)
    ),
    "three processes, SIGKILL of rank 0": Fault(
        "0 student SIGKILL 0", "rank 0 ended without a message", ranks=3, silent=(0,)
    ),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and an untrained teacher."""
    return made_once(tmp_path_factory, "ranks-data", digit_data) / "data-bin"


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of all updates of a training without a fault."""

    def train(folder: Path) -> None:
        ended = run(commands(data, folder), folder)
        assert [each.status for each in ended] == [0, 0], "\n".join(each.output[-3000:] for each in ended)

    return made_once(tmp_path_factory, "ranks-whole", train)


def commands(
    data: Path,
    folder: Path,
    *,
    ranks: int = 2,
    flags: dict[int, tuple[object, ...]] | None = None,
    meeting: Sequence[object] | None = None,
) -> list[list[str]]:
    """Return the command of each rank of a training that saves each update.

    Args:
        data: the data.
        folder: for checkpoints.
        ranks: number of processes.
        flags: more flags of a rank.
        meeting: flags that say where the processes meet; a free port if it is not given.
    """
    if meeting is None:
        meeting = ("--distributed-init-method", f"tcp://127.0.0.1:{free_port()}")
    common = [
        warm_commands.folder() / "imitkd-train", data, "--save-dir", folder / "checkpoints", "--cpu",
        *TINY_TRANSFORMER_FLAGS, "--user-dir", FAULTY, "--criterion", "imitkd", "--teacher-path",
        data / "teacher.pt", "--teacher-allow-poor", "--student-share", "0.6", "--rollout-max-len-b", 2,
        "--optimizer", "adam", "--lr", "1e-3", "--batch-size", 15, "--required-batch-size-multiple", 1,
        "--max-update", UPDATES, "--save-interval-updates", 1, "--num-workers", 0, "--clip-norm", "1",
        *meeting, "--distributed-world-size", ranks, "--distributed-no-spawn",
        "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp",
    ]  # fmt: skip
    more = flags or {}
    return [
        list(map(str, (*common, "--distributed-rank", rank, *more.get(rank, ())))) for rank in range(ranks)
    ]


def run(
    together: list[list[str]],
    folder: Path,
    inject: str = "",
    pids: list[int] | None = None,
    **environment: str,
) -> list[Ended]:
    """Run the commands of all ranks at the same time, until all have ended or a minute is over.

    Args:
        together: a command for each rank.
        folder: for outputs.
        inject: a fault, see :class:`Fault`.
        pids: gets the numbers of the processes.
        environment: more variables.
    """
    if inject:
        environment = {**environment, "FAULT": inject, "FAULT_LOG": str(folder / "fault")}
    paths = [folder / f"output-{rank}.txt" for rank in range(len(together))]
    found: dict[int, tuple[int, float]] = {}
    with contextlib.ExitStack() as stack:
        processes = [
            subprocess.Popen(
                command,
                cwd=REPO,
                env={**ENVIRONMENT, **environment, "OWN_RANK": str(rank)},
                stdout=stack.enter_context(open(path, "w")),
                stderr=subprocess.STDOUT,
            )
            for rank, (command, path) in enumerate(zip(together, paths, strict=True))
        ]
        if pids is not None:
            pids.extend(process.pid for process in processes)
        try:
            until = time.time() + 120
            while len(found) < len(processes) and time.time() < until:
                for rank, process in enumerate(processes):
                    if rank not in found and process.poll() is not None:
                        found[rank] = (process.returncode, time.time())
                time.sleep(0.02)
        finally:
            for process in processes:
                process.kill()
                process.wait()
    hung = (-1000, float("inf"))
    return [
        Ended(found.get(rank, hung)[0], path.read_text(), found.get(rank, hung)[1])
        for rank, path in enumerate(paths)
    ]


def seconds_since_fault(ended: list[Ended], folder: Path, began: float) -> float:
    """Return how long after the fault all processes had ended; after their start if the fault is a flag."""
    log = folder / "fault"
    return max(each.at for each in ended) - (float(log.read_text().split()[0]) if log.exists() else began)


def check(fault: Fault, data: Path, folder: Path, *, name: str) -> list[Ended]:
    """Train with a fault. All processes end soon, each with a line; print a row of the table.

    Returns:
        how they have ended.
    """
    began = time.time()
    ended = run(commands(data, folder, ranks=fault.ranks, flags=fault.flags), folder, fault.inject)
    seconds = seconds_since_fault(ended, folder, began)
    statuses = ", ".join(str(each.status) for each in ended)
    print(f"| {name} | {seconds:.1f} | {statuses} | {' | '.join(each.last for each in ended)} |")
    if fault.inject:
        assert (folder / "fault").exists(), "the fault did not happen"
    assert seconds < SOON
    for rank, each in enumerate(ended):
        assert each.status != 0
        assert "Traceback" not in each.output
        assert re.search(fault.own if rank in fault.silent else fault.line, each.last), each.last
        if rank not in fault.silent:
            assert each.errors() == [each.last], each.output[-3000:]
    return ended


def check_checkpoints(folder: Path, whole: Path, done: int) -> None:
    """The last checkpoint has the bytes of the training without a fault."""
    path = folder / "checkpoints" / "checkpoint_last.pt"
    if not path.exists():
        assert done <= 0
        return
    last = torch.load(path, weights_only=True)
    updates = last["optimizer_history"][-1]["num_updates"]
    assert done in (-1, updates)
    assert differences(end(last), at_update(whole, updates)) == []


def at_update(whole: Path, updates: int) -> dict[str, Any]:
    return end(torch.load(whole / "checkpoints" / f"checkpoint_1_{updates}.pt", weights_only=True))


@pytest.mark.parametrize("name", FEW)
def test_a_fault_ends_all_processes_with_a_line(name: str, data: Path, whole: Path, tmp_path: Path) -> None:
    """The last checkpoint is that of the update before."""
    fault = FEW[name]
    check(fault, data, tmp_path, name=name)
    check_checkpoints(tmp_path, whole, fault.done)


@pytest.mark.slow
@pytest.mark.parametrize("name", MANY)
def test_each_fault_ends_all_processes_with_a_line(
    name: str, data: Path, whole: Path, tmp_path: Path
) -> None:
    """Afterwards the same commands train on, and end like the training without a fault."""
    fault = MANY[name]
    check(fault, data, tmp_path, name=name)
    if fault.ranks != 2:
        return
    check_checkpoints(tmp_path, whole, fault.done)
    if fault.inject:
        began = time.time()
        ended = run(commands(data, tmp_path), tmp_path)
        assert [each.status for each in ended] == [0, 0], [each.output[-3000:] for each in ended]
        print(f"resumed in {time.time() - began:.1f} s")
        last = torch.load(tmp_path / "checkpoints" / "checkpoint_last.pt", weights_only=True)
        assert differences(end(last), at_update(whole, UPDATES)) == []
        assert not list((tmp_path / "checkpoints").glob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dictionary", "sentences", "teacher"])
def test_other_files_of_the_same_names_are_refused(name: str, data: Path, tmp_path: Path) -> None:
    """The flags are the same. Each process would read its own files."""
    other = tmp_path / "data-bin"
    shutil.copytree(data, other)
    first, second = commands(data, tmp_path)
    if name == "teacher":
        state = torch.load(data / "teacher.pt")
        state["model"]["decoder.output_projection.weight"] *= 2
        torch.save(state, other / "teacher.pt")
        second[second.index("--teacher-path") + 1] = str(other / "teacher.pt")
        line = "the content of teacher.pt is .* on rank 0 and .* on rank 1"
    else:
        second[1] = str(other)
        path = other / ("dict.tgt.txt" if name == "dictionary" else "train.src-tgt.src.bin")
        path.write_bytes(b"\n".join(reversed(path.read_bytes().split(b"\n"))) + b"9 9\n")
        line = f"DATA/{path.name} is .* on rank 0 and .* on rank 1"
    for each in run([first, second], tmp_path):
        assert re.search(f"^error: rank [01] ended: {line}", each.last), each.output[-3000:]
        assert each.status == 1
