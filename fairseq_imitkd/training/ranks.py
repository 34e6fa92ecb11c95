"""Processes that train together end together: each of them prints which one failed, and why.

fairseq leaves the others waiting, or ends them by a traceback or a signal. Here every process is connected to
the first one, over a socket of its own. A process that fails says why before it ends. If it is killed, its
connection ends. A thread in each other process hears of both, even while the process waits for the failed
one, and ends it.
"""

import functools
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, cast

import torch.distributed
from fairseq.distributed import utils

from fairseq_imitkd.checkpoints import saving
from fairseq_imitkd.errors import RefusedUpdate, UsageError, described, in_one_line
from fairseq_imitkd.training.meeting import Meeting, meeting_of_command, meeting_of_config
from fairseq_imitkd.training.rank_links import PATIENCE, Links
from fairseq_imitkd.training.same_settings import check_same_settings

# What gloo, NCCL and torch's store say when another process has ended.
_LOST = re.compile("closed by peer|reset by peer|broken pipe|gloo|nccl|timed out|tcpstore", re.IGNORECASE)
_LOSTS_NEWS = 5.0  # seconds within which the news of the other process's end arrives
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SIGNAL_WAITS = 1.0  # seconds that a signal waits for the main thread, or for news
_SAVING = 15.0  # seconds that a process may still need to write a checkpoint
_END = 15  # seconds in which a process that has failed must end


class RankFailed(RefusedUpdate):
    """One of several processes that train together has failed, and all of them end.

    Args:
        message: one line that names the rank of the process, and why it failed.
    """


class Watch:
    """Ends this process when another one fails, and tells the others when this one does.

    Args:
        meeting: where the processes meet.
    """

    def __init__(self, meeting: Meeting):
        self.rank = meeting.rank
        self._ending = threading.Event()  # the main thread ends this process
        self._signal: int | None = None
        self._before: dict[int, Any] = {}
        self._links = Links(meeting, on_signal=self._heed, on_news=self._leave)
        self._main = os.getpid()
        self._wakeup = -1
        if threading.current_thread() is threading.main_thread():
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._ignore_here)
            self._wakeup = signal.set_wakeup_fd(self._links.wake_descriptor, warn_on_full_buffer=False)
            os.register_at_fork(after_in_child=self._forget_in_child)
        self._links.start()

    @property
    def store(self) -> Any:
        """torch's store, by which the process group meets. It waits until the first process is there.

        Raises:
            UsageError: the first process can't be reached.
        """
        return self._links.wait_for_store()

    def fail(self, message: str, error: BaseException | None = None) -> str:
        """Tell the other processes that this one fails. If another one has failed first, it is the cause.

        Args:
            message: why, in one line.
            error: the exception that ends this process.

        Returns:
            the line that names the process at fault.
        """
        self._ending.set()
        if isinstance(error, RuntimeError) and not isinstance(error, SystemExit) and _LOST.search(str(error)):
            self._links.heard.wait(_LOSTS_NEWS)
            message = f"another process ended without a message; see its own output ({message})"
        line = self._links.tell(f"rank {self.rank} ended: {message}")
        if not self._links.all_told.wait(2.0):
            print(
                f"this process waits {PATIENCE:.0f} s to tell the others: {line}", file=sys.stderr, flush=True
            )
            self._links.all_told.wait(PATIENCE)
        self._stop()
        return line

    def done(self) -> None:
        """Tell the other processes that this one has come to its end."""
        self._ending.set()
        self._links.tell_done()
        self._stop()

    def _stop(self) -> None:
        self._links.stop()
        if self._before:
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._before.items():
                signal.signal(number, handler)

    # In the thread

    def _heed(self, number: int) -> float | None:
        """Return after how many seconds a signal ends this process, if its main thread does not do so."""
        if number in _SIGNALS and not self._ending.is_set():
            self._signal = number
            return _SIGNAL_WAITS
        return None

    def _leave(self, line: str | None) -> None:
        """End this process, unless its main thread does so already.

        Args:
            line: which process has failed, and why; None if this one got a signal and nothing else happened.
        """
        if self._ending.is_set():
            return
        stopped = None
        if self._signal is not None:
            stopped = f"rank {self.rank} ended: it was stopped by {signal.Signals(self._signal).name}"
        if line is None:
            self._links.tell(stopped or "")
        else:
            _end_now(f"error: {line}", 128 + (self._signal or 0) if line == stopped else 1)

    # Signals and forks

    def _ignore_here(self, number: int, _: FrameType | None) -> None:
        """Leave a signal to the thread, which has got it too. A forked process ends by it, as by default."""
        if os.getpid() != self._main:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _forget_in_child(self) -> None:
        """Close the connections in a worker, so that they end when this process does."""
        if os.getpid() != self._main and not self._links.stopped:
            with suppress(ValueError):
                signal.set_wakeup_fd(-1)
            self._links.forget()


_watch: Watch | None = None  # of this process


@contextmanager
def together(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Return a context in which this process ends with the others that it trains with, if there are any.

    Args:
        arguments: the command line, which may not have been checked yet.
        environment: variables of ``torchrun`` or Slurm.

    Raises:
        RankFailed: an exception has ended this process or another one.
    """
    try:
        with _watched(meeting_of_command(arguments, environment)):
            yield
    except RankFailed:
        for worker in multiprocessing.active_children():
            worker.terminate()  # otherwise torch waits for each of them, for 5 seconds
        # Exchanges that were begun may keep a process from ending, too.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_END)
        raise


@contextmanager
def _watched(meeting: Meeting | None) -> Iterator[None]:
    global _watch
    if meeting is None or _watch is not None:
        yield
        return
    _watch = watch = Watch(meeting)
    try:
        yield
    except KeyboardInterrupt:
        watch.fail("it was stopped by SIGINT")
        raise
    except SystemExit as error:
        if error.code in (None, 0):
            watch.done()
            raise
        if isinstance(error.code, str):
            raise RankFailed(watch.fail(error.code.removeprefix("error: "), error)) from error
        notes = getattr(error, "__notes__", [f"its status is {error.code}; see its own output"])
        watch.fail("; ".join(notes))
        raise
    except Exception as error:
        raise RankFailed(watch.fail(described(error), error)) from error
    else:
        watch.done()
    finally:
        _watch = None


@contextmanager
def memory_for(update_num: int) -> Iterator[None]:
    """Return a context in which one of several processes ends if it runs out of memory.

    fairseq leaves out the batch, as it does in a single process, and goes on to the next exchange with the
    others, which have a batch. This ends in a signal, or they wait for ever.

    Args:
        update_num: number of the update (0 = first).

    Raises:
        RefusedUpdate: the memory is not enough. Its text does not have the words by which fairseq knows such
            an error.
    """
    try:
        yield
    except RuntimeError as error:
        several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        if not several or "out of memory" not in str(error):
            raise
        detail = in_one_line(error).replace("out of memory", "memory ran out").rstrip(".")
        raise RefusedUpdate(
            f"update {update_num + 1} is refused: {detail}; lower --max-tokens or --batch-size, or use a "
            "smaller model"
        ) from error


def guard_ranks() -> None:
    """Make fairseq's processes meet by their watch, compare their settings, and end together.

    fairseq calls the two functions that are replaced here, for each of the processes that train together:
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/distributed/utils.py#L349-L366
    They hold for the whole process. ``fairseq-train --user-dir fairseq_imitkd`` runs no other code of this
    package before it needs them.
    """
    begin, main = utils.distributed_init, utils.distributed_main

    @functools.wraps(begin)
    def compare_and_begin(cfg: Any) -> int:
        if _watch is None or not hasattr(cfg, "distributed_training"):
            return begin(cfg)
        store = _watch.store
        given = cfg.distributed_training.distributed_rank
        if given != _watch.rank:
            raise UsageError(f"--distributed-rank is {given}, but RANK is {_watch.rank}: make them equal")
        check_same_settings(store, cfg, _watch.rank)
        with _meeting_by(store):
            return begin(cfg)

    @functools.wraps(main)
    def main_together(i: int, function: Any, *more: Any) -> None:
        cfg, settings = more
        is_spawned = cfg.distributed_training.distributed_rank is None  # fairseq has started it itself
        if is_spawned:
            cfg.distributed_training.distributed_rank = settings.pop("start_rank", 0) + i
        try:
            with _watched(meeting_of_config(cfg.distributed_training, os.environ)):
                main(i, function, cfg, settings)
        except RankFailed as failure:
            if is_spawned:  # torch shows the failure of one process only
                print(failure.code, file=sys.stderr, flush=True)
            raise

    utils.distributed_init, utils.distributed_main = compare_and_begin, main_together


@contextmanager
def _meeting_by(store: Any) -> Iterator[None]:
    """Let fairseq's process group use a store that is there already."""
    original = torch.distributed.init_process_group

    @functools.wraps(original)
    def init(*, init_method: str, **settings: Any) -> None:
        original(**{**settings, "store": store})

    torch.distributed.init_process_group = cast(Any, init)
    try:
        yield
    finally:
        torch.distributed.init_process_group = original


def _end_now(line: str, status: int) -> None:
    """End this process from a thread, whatever its main thread waits for."""

    def finish() -> None:
        for handler in logging.root.handlers:
            with suppress(Exception):
                handler.flush()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()

    saving.writing.acquire(timeout=_SAVING)  # a checkpoint that is nearly there
    finishing = threading.Thread(target=finish, daemon=True)
    finishing.start()
    finishing.join(2.0)  # the main thread may hold a lock of these files
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())
    for worker in multiprocessing.active_children():
        with suppress(Exception):
            worker.kill()
    os._exit(status)
