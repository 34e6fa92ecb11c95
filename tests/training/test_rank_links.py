"""Connections between processes: news reaches all, and strangers change nothing."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.training import meeting as meetings
from fairseq_imitkd.training import rank_links, ranks
from fairseq_imitkd.training.meeting import Meeting, meeting_of_command
from fairseq_imitkd.training.rank_links import Links
from tests.distributed.test_two_ranks import free_port

SOON = 10.0


class Process:
    """The links of a process, and the news that it has got."""

    def __init__(self, meeting: Meeting):
        self.news: list[str | None] = []
        self.got = threading.Event()
        self.links = Links(meeting, on_signal=lambda _: None, on_news=self._hear)
        self.links.start()

    def _hear(self, line: str | None) -> None:
        self.news.append(line)
        self.got.set()

    def heard(self) -> str | None:
        assert self.got.wait(SOON)
        return self.news[0]


@pytest.fixture
def start() -> Iterator:
    """Start the links of a process; all are stopped at the end."""
    started: list[Process] = []

    def begin(rank: int, port: int, count: int = 3, **more) -> Process:
        meeting = Meeting("127.0.0.1", port, rank, count, hosts_store=rank == 0, **more)
        started.append(Process(meeting))
        return started[-1]

    yield begin
    for process in started:
        process.links.stop()


def together(start, count: int = 3) -> list[Process]:
    port = free_port()
    processes = [start(rank, port, count) for rank in range(count)]
    for process in processes:
        process.links.wait_for_store()
    return processes


@pytest.mark.parametrize("rank", [0, 1])
def test_news_reaches_all(start, rank: int) -> None:
    """The first process passes it on; control characters of a terminal do not come with it."""
    processes = together(start)
    processes[rank].links.tell("rank \x1b[2J failed\nbadly")
    for number, process in enumerate(processes):
        sent, received = "rank \x1b[2J failed badly", "rank [2J failed badly"
        assert process.heard() == (sent if number == rank else received)


@pytest.mark.parametrize("rank", [0, 2])
def test_an_end_without_a_message_is_noticed(start, rank: int) -> None:
    processes = together(start)
    processes[rank].links.stop()
    for other in (0, 1, 2):
        if other != rank:
            assert processes[other].heard() == f"rank {rank} ended without a message; see its own output"


def test_an_end_that_was_announced_is_no_news(start) -> None:
    processes = together(start)
    for process in processes[1:]:
        process.links.tell_done()
        process.links.stop()
    time.sleep(1.0)
    assert processes[0].news == []


def test_the_first_failure_holds(start) -> None:
    """It is the cause; the others follow from it."""
    processes = together(start)
    assert processes[1].links.tell("first") == "first"
    assert processes[1].links.tell("second") == "first"
    assert processes[0].heard() == "first"
    assert processes[0].links.tell("third") == "first"


STRANGERS = [
    b"", b"\n", b"GET / HTTP/1.1\r\nHost: there\r\n\r\n", b"ended rank 1 ended: a lie\n", b"done \n",
    b"hello 00000000000000000000000000000000 1 2\n", b"hello\n", b"[" * 7000 + b"\n", b"x" * 100_000,
    b"\xff\xfe\n\0\n", b"\x80\x04\x95cos\nsystem\n.\n",
]  # fmt: skip


def test_strangers_change_nothing(start) -> None:
    """They connect before the others do, and say what they like; nobody can connect when all are there."""
    port = free_port()
    first = start(0, port)
    reader = Meeting("127.0.0.1", port, 1, 3, hosts_store=False)
    host, door, _ = reader.reach_store(lambda: False).get("hub").decode().split()
    assert host == "127.0.0.1"
    strangers = []
    for text in STRANGERS * 10:  # more than are kept
        stranger = socket.create_connection((host, int(door)), timeout=SOON)
        strangers.append(stranger)
        try:
            stranger.sendall(text)
        except OSError:
            assert len(text) > 1000, "it was refused before it had said all"
    others = [start(rank, port) for rank in (1, 2)]
    for process in (first, *others):
        process.links.wait_for_store()
    time.sleep(1.0)
    assert [process.news for process in (first, *others)] == [[], [], []]
    with pytest.raises(OSError):
        socket.create_connection((host, int(door)), timeout=SOON).close()
    for stranger in strangers:
        stranger.settimeout(SOON)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(100) == b""  # closed, and nothing was said to it
        stranger.close()
    others[0].links.tell("failed")
    assert first.heard() == others[1].heard() == "failed"


def test_a_stranger_that_speaks_when_all_are_there(start) -> None:
    """Dropping it and hearing it are of one look at the connections; the thread goes on."""
    meeting = Meeting("127.0.0.1", free_port(), 0, 3, hosts_store=True)
    links = Links(meeting, on_signal=lambda _: None, on_news=lambda _: None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        stranger = socket.create_connection(server.getsockname())
        link = rank_links._Link(server.accept()[0])
    links._add(link)
    key = links._selector.get_key(link.socket)
    links._drop(link)
    links._hear([key])
    assert link not in links._links
    stranger.close()
    links.forget()


def test_two_first_processes(start) -> None:
    port = free_port()
    first, twin = start(0, port, 2), start(0, port, 2)
    assert "two processes were started with --distributed-rank 0" in first.heard()
    assert "two processes were started with --distributed-rank 0" in twin.heard()


def test_a_port_of_another_program_is_refused(start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = start(0, port)
        threading.Thread(target=lambda: [other.accept()[0].close() for _ in range(9)], daemon=True).start()
        with pytest.raises(UsageError, match=f"127.0.0.1:{port}' can't be opened: .*use an address of this"):
            process.links.wait_for_store()


@pytest.mark.parametrize(("rank", "line"), [(0, "ranks 1, 2 are not at"), (1, "rank 0 has not opened")])
def test_processes_that_never_start(start, monkeypatch, capsys, rank: int, line: str) -> None:
    """Those who wait say for whom, and end with a line."""
    monkeypatch.setattr(meetings, "ARRIVAL", 2.0)
    monkeypatch.setattr(rank_links, "NOTICE", 0.5)
    with pytest.raises(UsageError, match=line):
        start(rank, free_port()).links.wait_for_store()
    assert f"rank {rank} waits: r" in capsys.readouterr().err


def test_a_socket_is_open_on_no_more_addresses_than_needed() -> None:
    """A name that is known to be this machine may be another address for the others."""
    assert rank_links._listening("127.0.0.1").getsockname()[0] == "127.0.0.1"
    assert rank_links._listening("localhost").getsockname()[0] in ("127.0.0.1", "::1")


def test_one_process_gets_no_thread_and_no_signal_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "Watch", None)  # it can't be made
    for arguments in ([], ["--distributed-world-size", "1", "--distributed-init-method", "tcp://a:1"]):
        with ranks.together(["data", "--arch", "transformer", *arguments], {}):
            assert ranks._watch is None


HOST = Meeting("there", 7, 0, 2, hosts_store=True)
TWO = ["data", "--distributed-world-size", "2", "--distributed-rank", "1"]
KEPT = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "3"}
TORCHRUN = {"MASTER_ADDR": "there", "MASTER_PORT": "7", "RANK": "1", "WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("flags", "environment", "meeting"),
    [
        (["tcp://there:7"], {}, Meeting("there", 7, 1, 2, hosts_store=False)),
        (["tcp://[fe80::1]:7/"], {}, Meeting("fe80::1", 7, 1, 2, hosts_store=False)),
        (["file:///a%20b/c"], {}, Meeting("", 0, 1, 2, hosts_store=False, file=Path("/a b/c"))),
        (["env://"], TORCHRUN, Meeting("there", 7, 1, 2, hosts_store=False)),
        (["env://", "--distributed-rank", "0"], {**TORCHRUN, "RANK": "0"}, HOST),
        (
            ["env://", "--distributed-rank", "0"],
            {**TORCHRUN, "RANK": "0", **KEPT},
            Meeting("there", 7, 0, 2, hosts_store=False, attempt="3"),
        ),
        (["tcp://there:7", "--distributed-world-size", "1"], {}, None),
        (["tcp://there:7", "--distributed-rank", "2"], {}, None),
        (["tcp://there:7", "--distributed-rank", "x"], {}, None),
        (["mpi://"], {}, None),
    ],
)  # fmt: skip
def test_where_a_command_line_meets(flags, environment, meeting) -> None:
    arguments = [*TWO, "--distributed-no-spawn", "--distributed-init-method", *flags]
    assert meeting_of_command(arguments, environment) == meeting


def test_processes_that_fairseq_starts_itself_meet_later() -> None:
    assert meeting_of_command([*TWO, "--distributed-init-method", "tcp://there:7"], {}) is None
