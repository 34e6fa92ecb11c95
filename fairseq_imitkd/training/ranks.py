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
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, cast

import torch.distributed
from fairseq.distributed import utils

from fairseq_imitkd.errors import RefusedUpdate, UsageError, described, in_one_line
from fairseq_imitkd.training.rank_links import PATIENCE, Links, Meeting
from fairseq_imitkd.training.same_settings import check_same_settings

# What gloo, NCCL and torch's store say when another process has ended.
_LOST = re.compile("closed by peer|reset by peer|broken pipe|gloo|nccl|timed out|tcpstore", re.IGNORECASE)
_LOSTS_NEWS = 5.0  # seconds within which the news of the other process's end arrives
_SIGNALS = {
    signal.SIGINT: 3.0,
    signal.SIGTERM: 1.0,
}  # seconds that a signal waits for the main thread, or news


class RankFailed(RefusedUpdate):
    """One of several processes that train together has failed, and all of them end.

    Args:
        message: one line that names the rank of the process, and why it failed.
    """


class Watch:
    """Ends this process when another one fails, and tells the others when this one does.

    Args:
        meeting: where the processes meet.

    Raises:
        UsageError: the address of ``--distributed-init-method`` can't be used.
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
            print(f"error: {line}; the others are told within {PATIENCE} s", file=sys.stderr, flush=True)
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
            return _SIGNALS[signal.Signals(number)]
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
        environment: variables of ``torchrun``.

    Raises:
        RankFailed: an exception has ended this process or another one.
    """
    with _watched(_meeting_of(arguments, environment)):
        yield


@contextmanager
def _watched(meeting: Meeting | None) -> Iterator[None]:
    global _watch
    if meeting is None or _watch is not None:
        yield
        return
    try:
        _watch = watch = Watch(meeting)
    except UsageError as error:
        raise RankFailed(f"rank {meeting.rank} ended: {error}") from error
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
        watch.fail(f"its status is {error.code}; see its own output")
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
        check_same_settings(store, cfg, _watch.rank)
        with _meeting_by(store):
            return begin(cfg)

    @functools.wraps(main)
    def main_together(i: int, function: Any, *more: Any) -> None:
        cfg, settings = more
        chosen = cfg.distributed_training
        meeting = _meeting(
            chosen.distributed_init_method,
            chosen.distributed_rank,
            chosen.distributed_world_size,
            environment=os.environ,
        )
        with _watched(meeting):
            main(i, function, cfg, settings)

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


def _meeting_of(arguments: Sequence[str], environment: Mapping[str, str]) -> Meeting | None:
    """Return where the processes of a command line meet; None if it has one process, or spawns them."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("init-method", "rank", "world-size"):
        parser.add_argument(f"--distributed-{name}")
    parser.add_argument("--distributed-no-spawn", action="store_true")
    try:
        given, _ = parser.parse_known_args(list(arguments))
        method, spawns = given.distributed_init_method, not given.distributed_no_spawn
        if method is None and {"MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK"} <= environment.keys():
            # fairseq takes all of these from the environment, whatever the flags say:
            # https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/distributed/utils.py#L88-L94
            return _meeting("env://", environment["RANK"], environment["WORLD_SIZE"], environment=environment)
        rank = given.distributed_rank or ("0" if method != "env://" else environment.get("RANK", "0"))
        count = given.distributed_world_size or environment.get("WORLD_SIZE", "1")
        return None if spawns else _meeting(method, rank, count, environment=environment)
    except Exception:  # fairseq's own parser refuses this command line in a moment
        return None


def _meeting(method: str | None, rank: Any, count: Any, *, environment: Mapping[str, str]) -> Meeting | None:
    rank, count = int(rank or 0), int(count or 1)
    if count < 2 or not 0 <= rank < count:
        return None
    hosts_store, attempt = rank == 0, ""
    if method == "env://" and {"MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        # torchrun keeps a store of its own, which outlives the processes that it starts again.
        hosts_store = hosts_store and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "")
    else:
        found = re.fullmatch(r"tcp://\[?([^/\[\]?]+)\]?:(\d+)/?", method or "")
        if found is None:
            return None
        host, port = found[1], int(found[2])
    return Meeting(host, port, rank, count, hosts_store=hosts_store, attempt=attempt)


def _end_now(line: str, status: int) -> None:
    """End this process from a thread, whatever its main thread waits for."""

    def finish() -> None:
        for handler in logging.root.handlers:
            with suppress(Exception):
                handler.flush()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()

    finishing = threading.Thread(target=finish, daemon=True)
    finishing.start()
    finishing.join(2.0)  # the main thread may hold a lock of these files
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())
    for worker in multiprocessing.active_children():
        with suppress(Exception):
            worker.kill()
    os._exit(status)
