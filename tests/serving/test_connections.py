"""Clients that send half a request, never read, or speak no HTTP do not keep others from being answered."""

import asyncio
import contextlib
import json
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from fairseq_imitkd.cli import serve
from fairseq_imitkd.serving import connections
from tests.helpers.served_model import FakeModel, in_loop, until

HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
HALF = b"GET /health HTTP/1.1\r\nHost: "
CHUNKED = b"/translate HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
TEXT = b"Content-Type: text/plain\r\n"
IN_TIME = ("--timeout", "300")  # nothing here takes so long


class Served:
    """A server in this process, and raw clients for it."""

    def __init__(self, server: Any, port: int):
        self.server, self.port = server, port

    @asynccontextmanager
    async def connected(self, sent: bytes, buffer: int | None = None) -> AsyncIterator[tuple[Any, Any]]:
        """Open a connection and send something; ``buffer`` limits the bytes that arrive unread."""
        there = socket.socket()
        if buffer is not None:
            there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        there.setblocking(False)
        await asyncio.get_running_loop().sock_connect(there, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=there, limit=buffer or 2**16)
        writer.write(sent)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def said(self, sent: bytes) -> bytes:
        """Return everything that the server answers until it closes the connection."""
        async with self.connected(sent) as (reader, _):
            return await reader.read()

    async def asked(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Send a request over a connection of its own and return the answer."""
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=60) as client:
            return await client.request(method, path, **content)

    async def counted(self, path: str) -> dict[str, float]:
        """Return how often each status was answered on a path."""
        lines = (await self.asked("GET", "/metrics")).text.splitlines()
        start = f'imitkd_requests_total{{path="{path}",status="'
        return {line.split('"')[3]: float(line.split()[-1]) for line in lines if line.startswith(start)}


@asynccontextmanager
async def served(*flags: str, model: FakeModel | None = None) -> AsyncIterator[Served]:
    """Run ``imitkd-serve`` in this event loop."""
    with serve.bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        server = serve._server(serve.parser().parse_args(["DIR", *flags]), model or FakeModel(), None)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        try:
            yield Served(server, port)
        finally:
            server.should_exit = True
            await running


def error(said: bytes) -> tuple[int, str]:
    """Return the status and the message of an answer that is the last of its connection."""
    head, _, body = said.partition(b"\r\n\r\n")
    status, *fields = head.decode().lower().split("\r\n")
    assert {"content-type: application/json", "connection: close", "x-content-type-options: nosniff"} <= {
        *fields
    }
    assert json.loads(body).keys() == {"error"}
    return int(status.split()[1]), json.loads(body)["error"]


@in_loop
async def test_headers_that_are_not_complete_in_time() -> None:
    """408, counted from the opening or the last answer; without any bytes, the connection just closes."""
    late = (408, "the request's headers were not complete within 3 seconds")
    async with served("--timeout", "3") as server:
        nothing, half = await asyncio.gather(server.said(b""), server.said(HALF))
        assert nothing == b""
        assert error(half) == late
        async with server.connected(HEALTH) as (reader, writer):
            await answered(reader)
            writer.write(HALF)
            assert error(await reader.read()) == late
        assert await server.counted("other") == {"408": 2}


@in_loop
async def test_a_kept_connection_closes_at_the_timeout() -> None:
    """By its own deadline, whatever uvicorn's is."""
    async with served("--timeout", "0.5") as server:
        server.server.config.timeout_keep_alive = 1000
        async with server.connected(HEALTH) as (reader, _):
            await answered(reader)
            assert await reader.read() == b""


@in_loop
async def test_a_server_that_stops_answers_what_it_gives_up(caplog: pytest.LogCaptureFixture) -> None:
    """In JSON as always, without a traceback in the log."""
    model = FakeModel()
    model.may_go.clear()
    waits = b"POST /translate HTTP/1.1\r\nHost: a\r\n" + TEXT + b"Content-Length: %d\r\n\r\na"
    async with (
        served(model=model) as server,
        server.connected(waits % 1) as (translated, _),
        server.connected(waits % 2) as (half, _),
    ):
        await until(lambda: model.batches and len(server.server.server_state.tasks) == 2)
        server.server.config.timeout_graceful_shutdown = 0.1
        server.server.should_exit = True
        said = await translated.read()
        assert b"retry-after: 1\r\n" in said.lower()
        assert error(said) == error(await half.read()) == (503, "the server is stopping; try again later")
    model.may_go.set()
    assert not [record for record in caplog.records if record.exc_info]


async def answered(reader: asyncio.StreamReader) -> bytes:
    """Read one answer to its end and return its status line."""
    head = await reader.readuntil(b"\r\n\r\n")
    [length] = [
        int(field[15:]) for field in head.lower().split(b"\r\n") if field.startswith(b"content-length:")
    ]
    await reader.readexactly(length)
    return head.partition(b"\r\n")[0]


@in_loop
@pytest.mark.parametrize(
    "begun", [HALF, b"POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n"]
)
async def test_dripping_bytes_do_not_extend_the_deadline(begun: bytes) -> None:
    """In headers, or in a body that the application does not read."""
    async with served("--timeout", "0.5") as server, server.connected(begun) as (reader, writer):

        async def drip() -> None:
            while True:
                writer.write(b"a")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        with contextlib.suppress(ConnectionError):
            await reader.read()
        dripping.cancel()
        await until(lambda: not server.server.server_state.connections)


@in_loop
@pytest.mark.parametrize("requests", [1, 3])
async def test_an_answer_that_is_not_read_in_time(requests: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is closed, and the next answer does not wait for it."""
    model = FakeModel()
    monkeypatch.setattr(model, "decode", lambda tokens: "x" * 20_000_000)  # more than a socket holds
    sent = requests * (b"POST /translate HTTP/1.1\r\nHost: a\r\n" + TEXT + b"Content-Length: 1\r\n\r\na")
    async with (
        served("--timeout", "3", model=model) as server,
        server.connected(sent, buffer=4096) as (reader, _),
    ):
        await reader.readexactly(100)
        await until(
            lambda: not server.server.server_state.connections and not server.server.server_state.tasks
        )


@in_loop
@pytest.mark.parametrize(
    ("sent", "status", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400, "Missing mandatory Host: header"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "Found multiple Host: headers"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400, "bad Content-Length"),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400, ""),  # as TLS begins
        (b"\x00\r\n\r\n", 400, ""),
        (b"GET / HTTP/1.1\r\nHost: a\r\nb: " + 100_000 * b"c", 431, "Receive buffer too long"),
    ],
)
async def test_malformed_http(sent: bytes, status: int, why: str) -> None:
    """It is answered with one line of JSON, like every error, and counted."""
    async with served(*IN_TIME) as server:
        found, message = error(await server.said(sent))
        assert found == status
        assert message.startswith(f"the request is not valid HTTP: {why}")
        assert "\n" not in message
        assert await server.counted("other") == {str(status): 1}


BODY = b"POST /translate HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\n"
HIDDEN = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"  # what another reader takes for the next request


@in_loop
@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (
            BODY + b"Content-Length: 48\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
            "Content-Length and Transfer-Encoding must not be given both",
        ),
        (
            BODY + b"transfer-encoding:chunked\r\ncontent-length:1\r\n\r\na" + HIDDEN,
            "Content-Length and Transfer-Encoding must not be given both",
        ),
        (
            BODY + b"Content-Length: 1\r\nContent-Length: 9\r\n\r\na" + HIDDEN,
            "Content-Length must be given once",
        ),
        (BODY + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na", "Content-Length must be given once"),
        (BODY + b"Content-Length: 1, 1\r\n\r\na", "Content-Length must be given once"),
        (BODY + b"Content-Length: +1\r\n\r\na", "bad Content-Length"),
        (BODY + b"Content-Length: 0x1\r\n\r\na", "bad Content-Length"),
        (BODY + b"A: b\r\n c\r\nContent-Length: 1\r\n\r\na", "a header must not go on in a second line"),
        (BODY + b"A: b\r\n\tContent-Length: 1\r\n\r\na", "a header must not go on in a second line"),
        (BODY + b"A: b\nContent-Length: 1\r\n\r\na", "each line must end with CR LF"),
        (b"GET / HTTP/1.1\nHost: a\n\n", "each line must end with CR LF"),
        (BODY + b"Content-Length : 1\r\n\r\na", "illegal header line"),
        (BODY + b"Content\x00-Length: 1\r\n\r\na", "illegal header line"),
        (
            b"POST /translate HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.0 has no Transfer-Encoding",
        ),
    ],
)
async def test_requests_whose_end_is_ambiguous(sent: bytes, why: str) -> None:
    """They get one answer, and the connection is closed: what follows is not read as a request."""
    async with served(*IN_TIME) as server:
        said = await server.said(sent)
        assert said.count(b"HTTP/1.1 ") == 1
        found, message = error(said)
        assert found == 400
        assert message.startswith(f"the request is not valid HTTP: {why}")
        assert await server.counted("/translate") == await server.counted("/health") == {}


@in_loop
@pytest.mark.parametrize(
    "encoding", [b"chunked, chunked", b"gzip, chunked", b"identity", b"chunked\x0b", b"xchunked"]
)
async def test_other_transfer_encodings(encoding: bytes) -> None:
    """They are refused, and the connection is closed."""
    async with served(*IN_TIME) as server:
        said = await server.said(BODY + b"Transfer-Encoding: " + encoding + b"\r\n\r\n0\r\n\r\n" + HIDDEN)
        assert said.count(b"HTTP/1.1 ") == 1
        assert error(said)[0] in (400, 501)


@in_loop
@pytest.mark.parametrize(
    "chunks",
    [b"-1\r\na\r\n", b"+1\r\na\r\n", b"0x1\r\na\r\n", b" 1\r\na\r\n", b"1\r\nab\r\n0\r\n\r\n", b"1\na\n0\n\n",
     b"f" * 21 + b"\r\na", b"g\r\na\r\n", b"\r\na\r\n"],
)  # fmt: skip
async def test_chunks_of_bad_sizes(chunks: bytes) -> None:
    """Nothing is translated, and what follows is not read as a request."""
    model = FakeModel()
    async with served(*IN_TIME, model=model) as server:
        said = await server.said(BODY + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + HIDDEN)
        assert said.count(b"HTTP/1.1 ") == 1
        assert said.startswith(b"HTTP/1.1 400 ")
        assert not model.batches


@in_loop
@pytest.mark.parametrize(
    "sent",
    [
        BODY + b"Content-Length: 1\r\n\r\na",
        BODY + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        BODY + b"Transfer-Encoding: Chunked\r\n\r\n1;note=b\r\na\r\n0\r\nTrailer: c\r\n\r\n",
    ],
)
async def test_plain_requests_are_answered(sent: bytes) -> None:
    """So the tests above refuse for the reason that they name. Two requests at once get two answers."""
    async with served(*IN_TIME) as server, server.connected(sent + sent) as (reader, _):
        for _ in range(2):
            assert await answered(reader) == b"HTTP/1.1 200 OK"
        assert await server.counted("/translate") == {"200": 2}


@in_loop
@pytest.mark.parametrize(
    ("asked", "answer", "counted"),
    [
        (b"POST " + CHUNKED + TEXT, b"HTTP/1.1 400 ", "499"),
        (b"POST " + CHUNKED, b"HTTP/1.1 415 ", "415"),
        (b"HEAD " + CHUNKED, b"HTTP/1.1 405 ", "405"),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_malformed_body(
    asked: bytes, answer: bytes, counted: str, at_once: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It is answered at most once and counted once, answered already or not, and it is not a server error."""
    async with served(*IN_TIME) as server:
        async with server.connected(asked + b"\r\n") as (reader, writer):
            if not at_once:
                writer.write(b"1\r\na\r\n")
                complete = counted != "499"
                there = server.server.server_state.connections
                await until(
                    lambda: [
                        each for each in there if each.cycle and each.cycle.response_complete == complete
                    ]
                )
            writer.write(b"no chunk\r\n")
            said = await reader.read()
        assert said.count(b"HTTP/1.1") == 1
        assert said.startswith((answer, b"HTTP/1.1 400 "))
        assert sum((await server.counted("/translate")).values()) == 1
        assert await server.counted("other") == {}
        if not at_once:
            assert said.startswith(answer)
            assert await server.counted("/translate") == {counted: 1}
    assert not [record for record in caplog.records if record.levelname == "ERROR" or record.exc_info]


@in_loop
@pytest.mark.parametrize(
    "kept",
    [b"", HALF, HEALTH, b"POST /translate HTTP/1.1\r\nHost: a\r\n" + TEXT + b"Content-Length: 9\r\n\r\na"],
)
async def test_idle_connections_make_room(kept: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest-idle one makes room for a new client, and the limit always holds."""
    monkeypatch.setattr(connections, "most_connections", lambda: 5)
    async with served(*IN_TIME) as server, contextlib.AsyncExitStack() as clients:
        opened = []
        for _ in range(12):
            reader, _ = await clients.enter_async_context(server.connected(kept))
            opened.append(reader)
            if kept == HEALTH:
                await answered(reader)
        for reader in opened[:7]:
            with contextlib.suppress(ConnectionError):
                await reader.read()
        assert len(server.server.server_state.connections) == 5
        assert (await server.asked("POST", "/translate", json={"text": "eins"})).json()["translations"] == [
            "EINS"
        ]
        assert len(server.server.server_state.connections) <= 5


@in_loop
async def test_a_connection_that_was_answered_last_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one closes: it has been idle longer, though it is younger."""
    monkeypatch.setattr(connections, "most_connections", lambda: 2)
    async with served(*IN_TIME) as server, server.connected(HEALTH) as (first, asks):
        assert await answered(first) == b"HTTP/1.1 200 OK"
        async with server.connected(HALF) as (second, _):
            await until(lambda: len(server.server.server_state.connections) == 2)
            asks.write(HEALTH)
            assert await answered(first) == b"HTTP/1.1 200 OK"
            async with server.connected(HEALTH) as (third, _):
                assert await answered(third) == b"HTTP/1.1 200 OK"
                with contextlib.suppress(ConnectionError):
                    assert await second.read() == b""
                asks.write(HEALTH)
                assert await answered(first) == b"HTTP/1.1 200 OK"


@in_loop
async def test_running_requests_do_not_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """While all connections wait for the model, a new one gets 503."""
    monkeypatch.setattr(connections, "most_connections", lambda: 2)
    model = FakeModel()
    async with served(*IN_TIME, "--batch-wait", "0", model=model) as server:
        model.may_go.clear()
        begun = [
            asyncio.create_task(server.asked("POST", "/translate", json={"text": text}))
            for text in ("a", "b")
        ]
        await until(lambda: sum(each._is_served() for each in server.server.server_state.connections) == 2)
        assert not [
            each for each in server.server.server_state.connections if each.deadline
        ]  # the application has its own
        said = await server.said(b"")
        assert error(said) == (503, "too many requests at once; try again later")
        assert b"\r\nretry-after: 1\r\n" in said.lower()
        model.may_go.set()
        assert [answer.json()["translations"] for answer in await asyncio.gather(*begun)] == [["A"], ["B"]]
        assert (await server.asked("GET", "/health")).status_code == 200
        assert await server.counted("other") == {"503": 1}


UNLIMITED = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "most"),
    [
        (200, 200, None, 100),
        (256, 1024, 1024, 512),
        (1024, 1_048_576, 4000, 1000),
        (1024, UNLIMITED, 4000, 1000),
        (20_000, 20_000, None, 1000),
        (UNLIMITED, UNLIMITED, None, 1000),
        (1, 1, None, 1),
    ],
)
def test_as_many_connections_as_descriptors_allow(
    soft: int, hard: int, raised: int | None, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process raises its limit of descriptors as far as it needs and may."""
    limits = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, to: limits.append(to))
    assert connections.most_connections() == most
    assert limits == ([] if raised is None else [(raised, hard)])
