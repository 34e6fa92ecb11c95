"""``imitkd-seqkd`` in processes that can be killed and start at once: a start-up costs seconds, nearly all of it imports.

They are forked from a server that has imported everything and done nothing else: it has one thread, and no lock is held.
The command's own workers are forks too here, of a process that has not yet computed anything.
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

from fairseq_imitkd.cli import seqkd
from fairseq_imitkd.engines.base import Translator
from fairseq_imitkd.seqkd import factory

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["pytest", "fairseq_imitkd.cli.seqkd", "tests.helpers.killable"])

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
    """Every file's bytes, and the folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


class Command:
    """One run.

    Args:
        arguments: of the command line.
        log: where its output goes.
        stop_at: it kills itself before the so-many-th change of files.
        fault: something that goes wrong in a worker: ``full disk`` or ``death``.
    """

    def __init__(self, arguments: Sequence[object], log: Path, stop_at: int = 0, fault: str = ""):
        self.log = log
        self.process = _server.Process(target=_main, args=(list(map(str, arguments)), log, stop_at, fault))
        self.began = time.monotonic()
        self.process.start()

    def killed_after(self, seconds: float) -> bool:
        """Kill the process, and it alone, so long after its start. False if it had ended by itself, and well."""
        self.process.join(max(0.0, seconds - (time.monotonic() - self.began)))
        self.process.kill()
        return self.end() != 0

    def end(self) -> int:
        """Its exit code: the signal's, negative, if it was killed. Anything but that and success is a failure."""
        self.process.join(120)
        code = self.process.exitcode
        assert code in (0, -signal.SIGKILL), f"ended with {code}:\n{self.said()}"
        return code

    def refusal(self) -> str:
        """What a run that was refused said last."""
        self.process.join(120)
        assert self.process.exitcode == 1
        return self.said().splitlines()[-1]

    def said(self) -> str:
        """All of its output."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def _main(arguments: list[str], log: Path, stop_at: int, fault: str) -> None:
    assert len(os.listdir(f"/proc/{os.getppid()}/task")) == 1, "a process with threads can't be forked safely"
    out = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(out, 1)
    os.dup2(out, 2)
    torch.set_num_threads(1)
    tqdm.tqdm.monitor_interval = 0  # no thread that watches the bar
    fork = multiprocessing.get_context("fork")
    factory.multiprocessing = SimpleNamespace(  # type: ignore[assignment]
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
    """Counts what is about to be changed, by this process's own thread."""
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
