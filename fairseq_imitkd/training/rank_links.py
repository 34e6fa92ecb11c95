"""Connections between processes that train together: each to the first, which passes on what it hears."""

import contextlib
import json
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed

from fairseq_imitkd.errors import UsageError, as_usage_error

PATIENCE = 25.0  # seconds in which a process that fails waits for the others, to tell them
ARRIVAL = 1800.0  # seconds in which the first process must begin; it is torch's own limit
LONGEST = 1000  # characters of a message
_HUB = "hub"  # the key of torch's store under which the first process leaves its address


@dataclass(frozen=True)
class Meeting:
    """Where processes that train together meet.

    Args:
        host: the host of ``--distributed-init-method``.
        port: its port, on which torch's store listens.
        rank: the number of this process (0 = first).
        world_size: the number of processes, 2 or more.
        hosts_store: whether this process opens torch's store.
        attempt: tells apart runs that use the same store, one after the other.
    """

    host: str
    port: int
    rank: int
    world_size: int
    hosts_store: bool
    attempt: str = ""

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass
class _Link:
    """A connection to another process.

    Args:
        socket: the connection.
        rank: the other process's number; -1 until it has said so.
        received: the bytes of an unfinished message.
        done: whether the other process has come to its end.
        told: whether the other process knows who has failed.
    """

    socket: socket.socket
    rank: int = -1
    received: bytes = b""
    done: bool = False
    told: bool = False

    def send(self, **message: Any) -> None:
        """Send a message; a process that has ended does not get it."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def messages(self) -> list[dict[str, Any]] | None:
        """Return the messages that have arrived; None if the connection has ended.

        A message that does not parse ends the connection.
        """
        try:
            part = self.socket.recv(1 << 12)
            *whole, self.received = (self.received + part).split(b"\n")
            messages = [json.loads(line) for line in whole]
        except (OSError, ValueError):
            return None
        if not part or len(self.received) > 8 * LONGEST or not all(isinstance(m, dict) for m in messages):
            return None
        return messages


@dataclass
class Links:
    """The connections of this process, and the thread that listens to them.

    Args:
        meeting: where the processes meet.
        on_signal: is called with the number of a signal that this process gets. It returns in how many
            seconds ``on_news`` is called, if nothing else is heard; None for never.
        on_news: is called when the others have been told that a process has failed, with the line that
            says so; or with None when a signal has waited for long enough.
    """

    meeting: Meeting
    on_signal: Callable[[int], float | None]
    on_news: Callable[[str | None], None]
    heard: threading.Event = field(default_factory=threading.Event)  # that a process has failed
    all_told: threading.Event = field(default_factory=threading.Event)  # all others know it
    stopped: bool = False

    def __post_init__(self) -> None:
        self._line: str | None = None
        self._lock = threading.Lock()
        self._is_done = False
        self._links: dict[socket.socket, _Link] = {}
        self._selector = selectors.DefaultSelector()
        self._store: Any = None
        self._failure: UsageError | None = None
        self._ready = threading.Event()
        self._told_by = float("inf")
        self._signalled_at = float("inf")
        self._wake_end, self._wake = socket.socketpair()
        for end in (self._wake_end, self._wake):
            end.setblocking(False)
        self._selector.register(self._wake_end, selectors.EVENT_READ)
        self._listener: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="imitkd-ranks")
        if self.meeting.rank == 0:
            self._open_hub()

    @property
    def wake_descriptor(self) -> int:
        """The descriptor into which Python writes the numbers of signals."""
        return self._wake.fileno()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and the connections."""
        self.stopped = True
        self._nudge()
        self._thread.join(2.0)

    def forget(self) -> None:
        """Close the connections in a forked process."""
        self.stopped = True
        for opened in (*self._links, self._listener, self._wake, self._wake_end):
            if opened is not None:
                opened.close()

    def wait_for_store(self) -> Any:
        """Return torch's store, when the first process has opened it.

        Raises:
            UsageError: it can't be reached.
        """
        while not self._ready.wait(0.5):  # in parts, so that Ctrl-C is heeded
            pass
        if self._failure is not None:
            raise self._failure
        return self._store

    def tell(self, line: str) -> str:
        """Let the thread tell all others which process has failed, and why. The first such line holds.

        Returns:
            the line that holds.
        """
        with self._lock:
            if self._line is None:
                self._line = " ".join(line.split())[:LONGEST]
                self._told_by = time.monotonic() + PATIENCE
        self.heard.set()
        self._nudge()
        return self._line

    def tell_done(self) -> None:
        """Let all others know that this process has come to its end."""
        self._is_done = True
        for link in list(self._links.values()):
            link.send(done=True)

    def _nudge(self) -> None:
        with contextlib.suppress(OSError):
            self._wake.send(b"\0")

    # The meeting

    def _open_hub(self) -> None:
        """Open torch's store and the socket that the others connect to."""
        address = f"--distributed-init-method '{self.meeting}'"
        with as_usage_error(f"{address} can't be opened", "use the address of this machine and a free port"):
            self._store = self._connect_store()
            family, *_, found = socket.getaddrinfo(self.meeting.host, 0, type=socket.SOCK_STREAM)[0]
            try:
                self._listener = socket.create_server(found, family=family, backlog=128)
            except OSError:  # the address belongs to a gateway
                self._listener = socket.create_server(("", 0), backlog=128)
            port = self._listener.getsockname()[1]
            self._store.set(_HUB, str(port))
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._ready.set()

    def _connect_store(self) -> Any:
        meeting = self.meeting
        store = torch.distributed.TCPStore(
            meeting.host,
            meeting.port,
            meeting.world_size,
            meeting.hosts_store,
            timeout=timedelta(seconds=ARRIVAL),
            wait_for_workers=False,
        )
        return torch.distributed.PrefixStore(f"imitkd/{meeting.attempt}", store)

    def _join(self) -> None:
        """Connect to the first process as soon as it is there."""
        try:
            self._wait_for_port()
            with as_usage_error(f"rank 0 can't be reached at {self.meeting}"):
                store = self._connect_store()
                port = int(store.get(_HUB))
                link = _Link(self._dial(port), rank=0)
        except UsageError as failure:
            self._failure = failure
        else:
            self._add(link)
            link.send(rank=self.meeting.rank, world_size=self.meeting.world_size)
            self._store = store
        self._ready.set()

    def _wait_for_port(self) -> None:
        """Wait until the first process listens; torch's own way prints a warning for each attempt."""
        until = time.monotonic() + ARRIVAL
        while not self.stopped and time.monotonic() < until:
            try:
                self._dial(self.meeting.port).close()
                return
            except socket.gaierror as error:
                raise UsageError(
                    f"--distributed-init-method names the host '{self.meeting.host}', which is not known "
                    f"here ({error.strerror}); use the address of rank 0's machine"
                ) from error
            except OSError:
                time.sleep(0.2)
        raise UsageError(f"rank 0 has not opened {self.meeting} within {ARRIVAL / 60:.0f} minutes")

    def _dial(self, port: int) -> socket.socket:
        return socket.create_connection((self.meeting.host, port), timeout=5.0)

    # The thread

    def _run(self) -> None:
        if self.meeting.rank > 0:
            self._join()
        while not self.stopped:
            for key, _ in self._selector.select(timeout=0.5):
                if key.fileobj is self._wake_end:
                    self._read_signals()
                elif key.fileobj is self._listener:
                    self._add(_Link(self._listener.accept()[0]))
                else:
                    self._listen(key.data)
            self._spread()
            if self.all_told.is_set():
                self.on_news(self._line)
            elif time.monotonic() > self._signalled_at:
                self._signalled_at = float("inf")
                self.on_news(None)
        self.forget()

    def _read_signals(self) -> None:
        with contextlib.suppress(OSError):
            for number in self._wake_end.recv(64):
                seconds = self.on_signal(number) if number else None
                if seconds is not None:
                    self._signalled_at = time.monotonic() + seconds

    def _add(self, link: _Link) -> None:
        link.socket.settimeout(5.0)
        link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):  # a machine that is switched off is noticed too
                link.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._links[link.socket] = link
        self._selector.register(link.socket, selectors.EVENT_READ, link)

    def _listen(self, link: _Link) -> None:
        messages = link.messages()
        for message in messages or ():
            if "ended" in message:
                link.told = True
                self.tell(_printable(message["ended"]))
            elif "done" in message:
                link.done = True
            elif self.meeting.rank == 0 and "rank" in message:
                self._welcome(link, message)
        if messages is None:
            self._selector.unregister(link.socket)
            if self.meeting.rank == 0 and link.rank < 0:
                del self._links[link.socket]  # somebody else
            elif not link.done and not self._is_done and not link.told:
                link.told = True
                self.tell(f"rank {link.rank} ended without a message; see its own output")

    def _welcome(self, link: _Link, message: dict[str, Any]) -> None:
        rank, count = message["rank"], message.get("world_size")
        others = [other.rank for other in self._links.values()]
        if count != self.meeting.world_size:
            self.tell(
                f"rank {rank} ended: --distributed-world-size is {count} there and {self.meeting.world_size} "
                "on rank 0; start all processes with the same number"
            )
        elif rank in (0, *others):
            self.tell(
                f"rank {rank} ended: two processes were started with --distributed-rank {rank}; give each "
                "of them another one"
            )
        link.rank = rank if isinstance(rank, int) else -1

    def _spread(self) -> None:
        """Tell those who do not know it yet which process has failed."""
        if self._line is None or self.all_told.is_set():
            return
        for link in self._links.values():
            if not link.told and link.rank >= 0:
                link.send(ended=self._line)
                link.told = True
        expected = self.meeting.world_size - 1 if self.meeting.rank == 0 else 1
        told = sum(link.told for link in self._links.values())
        if told >= expected or self._failure is not None or time.monotonic() > self._told_by:
            self.all_told.set()


def _printable(text: Any) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in str(text))[:LONGEST]
