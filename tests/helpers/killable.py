"""``imitkd-seqkd`` and ``imitkd-train`` in processes that can be killed.

They start at once, without seconds of imports.

They are forked from a server that has imported everything and has one thread and no locks. The command's own
workers are forks too, of a process that has not computed anything yet.
"""

import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import tqdm

from fairseq_imitkd.cli import fairseq_commands, seqkd
from fairseq_imitkd.seqkd import workers
from fairseq_imitkd.seqkd.translator import Translator

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [
        "pytest",
        "fairseq_imitkd.cli.fairseq_commands",
        "fairseq_imitkd.cli.seqkd",
        "ctranslate2",
        "torch._dynamo",
        "tests.helpers.killable",
    ]
)

CHANGES = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "shutil.copyfile",
    "shutil.rmtree",
    "fcntl.flock",
}


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return the bytes of every file, and the folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


class Command:
    """One run of the command.

    Args:
        arguments: arguments of the command line.
        log: file for its output.
        stop_at: number of the change of files before which it kills itself.
        fault: a fault in a worker: ``full disk`` or ``death``.
        train: run ``imitkd-train`` instead of ``imitkd-seqkd``; it has no faults.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        log: Path,
        stop_at: int = 0,
        *,
        fault: str = "",
        train: bool = False,
    ):
        self.log, texts = log, list(map(str, arguments))
        target, more = (_train, ()) if train else (_main, (stop_at, fault))
        self.process = _server.Process(target=target, args=(texts, log, *more))
        self.began = time.monotonic()
        self.process.start()

    def killed_after(self, seconds: float) -> bool:
        """Kill this process alone this many seconds after its start. Return False if it had succeeded."""
        self.process.join(max(0.0, seconds - (time.monotonic() - self.began)))
        self.process.kill()
        return self.end() != 0

    def end(self) -> int:
        """Return its exit code, 0 or -SIGKILL. Any other code fails the test."""
        self.process.join(120)
        code = self.process.exitcode
        assert code in (0, -signal.SIGKILL), f"ended with {code}:\n{self.output()}"
        return code

    def refusal(self) -> str:
        """Return the last line of a run that was refused."""
        self.process.join(120)
        assert self.process.exitcode == 1
        return self.output().splitlines()[-1]

    def output(self) -> str:
        """Return all of its output."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def _train(arguments: list[str], log: Path) -> None:
    _write_output_to(log)
    sys.argv = ["imitkd-train", *arguments]
    fairseq_commands.train()


def _write_output_to(log: Path) -> None:
    assert len(os.listdir(f"/proc/{os.getppid()}/task")) == 1, "a process with threads can't be forked safely"
    out = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(out, 1)
    os.dup2(out, 2)
    torch.set_num_threads(1)


def _main(arguments: list[str], log: Path, stop_at: int, fault: str) -> None:
    _write_output_to(log)
    tqdm.tqdm.monitor_interval = 0  # no thread that watches the bar
    fork = multiprocessing.get_context("fork")
    workers.multiprocessing = SimpleNamespace(  # type: ignore[assignment]
        get_context=lambda _: fork, parent_process=multiprocessing.parent_process
    )
    if fault == "full disk":
        Translator.translate = _full_disk  # type: ignore[method-assign]
    elif fault == "death":
        Translator.translate = lambda *_: os._exit(3)  # type: ignore[method-assign]
    if stop_at:
        sys.addaudithook(_killer(stop_at, arguments[arguments.index("--out") + 1]))
    seqkd.main(arguments)


def _full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _killer(stop_at: int, folder: str) -> Any:
    """Count changes of files in this process's own thread, and kill the process before one of them."""
    left = stop_at
    thread = threading.get_ident()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        opened = (
            event == "open"
            and str(arguments[0]).startswith(folder)
            and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if (event in CHANGES or opened) and threading.get_ident() == thread:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook
