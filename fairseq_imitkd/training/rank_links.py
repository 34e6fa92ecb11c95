"""Connections between processes that train together: each to the first, which passes on what it hears."""

import contextlib
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from fairseq_imitkd.errors import UsageError, as_usage_error
from fairseq_imitkd.training import meeting as meetings
from fairseq_imitkd.training.meeting import Meeting, is_loopback, own_address

PATIENCE = 25.0  # seconds in which a process that fails waits for the others, to tell them
NOTICE = 30.0  # seconds after which a process says for whom it waits
LONGEST = 1000  # characters of a message
_HUB = "hub"  # the key of torch's store under which the first process leaves its address and a secret
_STRANGERS = 64  # connections that have not said the secret


@dataclass
class _Link:
    """A connection to another process. Both send lines of text: ``KIND TEXT``.

    Args:
        socket: the connection.
        rank: the other process's number; -1 until it has said it, with the secret.
        received: the bytes of an unfinished line.
        done: whether the other process has come to its end.
        told: whether the other process knows who has failed.
    """

    socket: socket.socket
    rank: int = -1
    received: bytes = b""
    done: bool = False
    told: bool = False

    def send(self, kind: str, text: str = "") -> None:
        """Send a line; a process that has ended does not get it."""
        with contextlib.suppress(OSError):
            self.socket.sendall(f"{kind} {text}\n".encode())

    def lines(self) -> list[tuple[str, str]] | None:
        """Return kind and text of the lines that have arrived; None if the connection has ended.

        A line that is too long ends the connection.
        """
        try:
            part = self.socket.recv(1 << 12)
        except OSError:
            return None
        *whole, self.received = (self.received + part).split(b"\n")
        if not part or len(self.received) > 8 * LONGEST:
            return None
        pairs = (line.decode(errors="replace").partition(" ") for line in whole)
        return [(kind, _printable(text)) for kind, _, text in pairs]


class Links:
    """The connections of this process, and the thread that listens to them.

    Args:
        meeting: where the processes meet.
        on_signal: is called with the number of a signal that this process gets. It returns in how many
            seconds ``on_news`` is called, if nothing else is heard; None for never.
        on_news: is called when the others have been told that a process has failed, with the line that
            says so; or with None when a signal has waited for long enough.
    """

    def __init__(
        self,
        meeting: Meeting,
        *,
        on_signal: Callable[[int], float | None],
        on_news: Callable[[str | None], None],
    ):
        self.meeting = meeting
        self.heard = threading.Event()  # that a process has failed
        self.all_told = threading.Event()  # all others know it
        self.stopped = False
        self._on_signal, self._on_news = on_signal, on_news
        self._line: str | None = None
        self._lock = threading.Lock()  # of the line
        self._told_by = self._signalled_at = float("inf")
        self._is_done = False
        self._links: list[_Link] = []
        self._is_hub = meeting.rank == 0
        self._secret = secrets.token_hex(16)
        self._listener: socket.socket | None = None
        self._store: Any = None
        self._failure: UsageError | None = None
        self._met = threading.Event()  # with all others, or with the first process; or that failed
        self._wake_end, self._wake = socket.socketpair()
        for end in (self._wake_end, self._wake):
            end.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_end, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True, name="imitkd-ranks")

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
        self.meeting.clear()

    def forget(self) -> None:
        """Close the connections in a forked process."""
        self.stopped = True
        for opened in (*(link.socket for link in self._links), self._listener, self._wake, self._wake_end):
            if opened is not None:
                opened.close()

    def wait_for_store(self) -> Any:
        """Return torch's store, when all processes are there.

        Raises:
            UsageError: the first process can't be reached, or others do not come.
        """
        until = time.monotonic() + meetings.ARRIVAL
        while not self._met.wait(min(NOTICE, meetings.ARRIVAL)):
            waiting = f"rank {self.meeting.rank} waits: {self._absent()} not at {self.meeting}"
            print(waiting, file=sys.stderr, flush=True)
            if self._is_hub and time.monotonic() >= until:
                raise UsageError(f"{self._absent()} not at {self.meeting}; start all processes")
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
        for link in list(self._links):
            link.send("done")

    def _nudge(self) -> None:
        with contextlib.suppress(OSError):
            self._wake.send(b"\0")

    def _absent(self) -> str:
        if not self._is_hub:
            return "rank 0 is"
        there = {link.rank for link in self._links}
        absent = [str(rank) for rank in range(1, self.meeting.world_size) if rank not in there]
        return f"rank {absent[0]} is" if len(absent) == 1 else f"ranks {', '.join(absent)[:100]} are"

    # The meeting

    def _meet(self) -> None:
        """Open the meeting, or connect to the process that has opened it."""
        try:
            if self._is_hub:
                self._open()
            else:
                self._join(self.meeting.reach_store(lambda: self.stopped))
                self._met.set()
        except UsageError as failure:
            self._failure = failure
            self._met.set()

    def _open(self) -> None:
        """Open torch's store, and the socket that the others connect to."""
        remedy = "use an address of this machine and a free port"
        with as_usage_error(f"{self.meeting} can't be opened", remedy):
            try:
                self._store = self.meeting.open_store()
            except RuntimeError:
                if self._tell_twin():
                    return
                raise
            self._listener = _listening(self.meeting.host or own_address())
            self._listener.setblocking(False)
            host, port, *_ = self._listener.getsockname()
            self._store.set(_HUB, f"{host} {port} {self._secret}")
        self._selector.register(self._listener, selectors.EVENT_READ)

    def _join(self, store: Any) -> None:
        """Connect to the first process."""
        remedy = "start each process once, and each training with a port of its own"
        with as_usage_error(f"rank 0 can't be reached at {self.meeting}", remedy):
            host, port, secret = store.get(_HUB).decode().split()
            link = _Link(_dial([host, self.meeting.host], int(port)), rank=0)
        self._add(link)
        link.send("hello", f"{secret} {self.meeting.rank} {self.meeting.world_size}")
        self._store = store

    def _tell_twin(self) -> bool:
        """Return whether another process of this training is the first one too. It ends all processes."""
        with contextlib.suppress(UsageError, RuntimeError):
            store = replace(self.meeting, hosts_store=False).reach_store(lambda: self.stopped, 5.0)
            store.set_timeout(timedelta(seconds=5))
            self._join(store)
            self._is_hub = False
            return True
        return False

    # The thread

    def _run(self) -> None:
        threading.Thread(target=self._meet, daemon=True, name="imitkd-meeting").start()
        while not self.stopped:
            self._hear([key for key, _ in self._selector.select(timeout=0.5)])
            self._spread()
            if self.all_told.is_set():
                self._on_news(self._line)
            elif time.monotonic() > self._signalled_at:
                self._signalled_at = float("inf")
                self._on_news(None)
        self.forget()

    def _hear(self, keys: list[selectors.SelectorKey]) -> None:
        for key in keys:
            if key.fileobj is self._wake_end:
                self._read_signals()
            elif key.fileobj is self._listener:
                self._accept(self._listener)
            elif key.data in self._links:  # hearing another one may have dropped it
                self._listen(key.data)

    def _read_signals(self) -> None:
        with contextlib.suppress(OSError):
            for number in self._wake_end.recv(64):
                seconds = self._on_signal(number) if number else None
                if seconds is not None:
                    self._signalled_at = time.monotonic() + seconds

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it has gone again
            self._add(_Link(listener.accept()[0]))
        strangers = [link for link in self._links if link.rank < 0]
        if len(strangers) > _STRANGERS:
            self._drop(strangers[0])

    def _add(self, link: _Link) -> None:
        link.socket.settimeout(5.0)
        link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):  # a machine that is switched off is noticed too
                link.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._links.append(link)
        self._selector.register(link.socket, selectors.EVENT_READ, link)

    def _drop(self, link: _Link) -> None:
        self._selector.unregister(link.socket)
        self._links.remove(link)
        link.socket.close()

    def _listen(self, link: _Link) -> None:
        lines = link.lines()
        for kind, text in lines or ():
            if link.rank < 0 and not self._welcome(link, kind, text):
                return self._drop(link)
            if kind == "ended":
                link.told = True
                self.tell(text)
            elif kind == "done":
                link.done = True
        if lines is None and link.rank < 0:
            self._drop(link)
        elif lines is None:
            self._selector.unregister(link.socket)
            if not (link.done or self._is_done or link.told):
                link.told = True
                self.tell(f"rank {link.rank} ended without a message; see its own output")

    def _welcome(self, link: _Link, kind: str, text: str) -> bool:
        """Return whether a connection belongs to this training."""
        secret, *numbers = text.split(" ")
        if kind != "hello" or not secrets.compare_digest(secret.encode(), self._secret.encode()):
            return False
        rank, count = map(int, numbers)
        if count != self.meeting.world_size:
            self.tell(
                f"rank {rank} ended: --distributed-world-size is {count} there and {self.meeting.world_size} "
                "on rank 0; start all processes with the same number"
            )
        elif rank in {0, *(other.rank for other in self._links)}:
            self.tell(
                f"rank {rank} ended: two processes were started with --distributed-rank {rank}; give each "
                "of them another one"
            )
        link.rank = rank
        if sum(each.rank > 0 for each in self._links) == self.meeting.world_size - 1:
            self._close_door()
        return True

    def _close_door(self) -> None:
        """All are there: let nobody else connect."""
        assert self._listener is not None
        self._selector.unregister(self._listener)
        self._listener.close()
        self._met.set()
        for link in [link for link in self._links if link.rank < 0]:
            self._drop(link)

    def _spread(self) -> None:
        """Tell those who do not know it yet which process has failed."""
        if self._line is None or self.all_told.is_set():
            return
        for link in self._links:
            if not link.told and link.rank >= 0:
                link.send("ended", self._line)
                link.told = True
        expected = self.meeting.world_size - 1 if self._is_hub else 1
        told = sum(link.told for link in self._links)
        if told >= expected or self._failure is not None or time.monotonic() > self._told_by:
            self.all_told.set()


def _listening(host: str) -> socket.socket:
    """Open a socket on the address of a host. If others may know the host by another address, it is open on
    all addresses of this machine, as torch's store is.
    """
    family, *_, found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    if not is_loopback(str(found[0])) or is_loopback(host):
        with contextlib.suppress(OSError):  # the address belongs to a gateway
            return socket.create_server(found, family=family, backlog=128)
    return socket.create_server(("", 0), backlog=128)


def _dial(hosts: list[str], port: int) -> socket.socket:
    """Connect to the first of these hosts that answers."""
    error: OSError | None = None
    for host in hosts:
        if host not in ("", "0.0.0.0", "::"):
            try:
                return socket.create_connection((host, port), timeout=5.0)
            except OSError as failure:
                error = failure
    raise error or OSError("it has left no address")


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)[:LONGEST]
