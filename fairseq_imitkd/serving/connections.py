"""The server's connections: deadlines for slow clients, a limit on their number, and answers to malformed
HTTP.

uvicorn has no deadline for a request's headers (https://github.com/Kludex/uvicorn/issues/157) or for a client
that does not read its answer, and its ``limit_concurrency`` counts idle connections. The classes here extend
its h11 protocol, which is not a public interface, so ``setup.py`` pins uvicorn and h11.

h11 reads some requests that a proxy in front of the server may read otherwise, so that the two do not agree
where a request ends (https://www.rfc-editor.org/rfc/rfc9112#section-11.2). Such requests are refused here.
"""

import asyncio
import re
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import h11
from h11._receivebuffer import ReceiveBuffer
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from fairseq_imitkd.errors import in_one_line
from fairseq_imitkd.serving.app import HEADERS, error_response
from fairseq_imitkd.serving.metrics import Metrics

MOST = 1000


def most_connections() -> int:
    """Return the maximum number of connections.

    The process's limit on file descriptors is raised first, where it is low and may be raised.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * MOST if hard == resource.RLIM_INFINITY else min(4 * MOST, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    # Half of the descriptors is left for files, and for connections that are accepted before others have
    # closed.
    return MOST if soft == resource.RLIM_INFINITY else max(1, min(MOST, soft // 2))


def connection_factory(metrics: Metrics, *, seconds: float, most: int) -> Any:
    """Return what uvicorn calls in place of a protocol class.

    Args:
        metrics: metrics that count what the connections answer.
        seconds: deadline for a client to send the headers of a request, and to read an answer.
        most: maximum number of connections.
    """
    return partial(Connection, _Shared(metrics, seconds, most))


@dataclass(eq=False)
class _Shared:
    """The state that connections share; ``open`` is in the order of their opening or last answer."""

    metrics: Metrics
    seconds: float
    most: int
    open: dict["Connection", None] = field(default_factory=dict)


class _StrictBuffer(ReceiveBuffer):
    """The bytes that a client has sent. It refuses headers that tell the end of a request in two ways."""

    _extracted = b""

    def _extract(self, count: int) -> bytearray:
        extracted = super()._extract(count)
        self._extracted = bytes(extracted)
        return extracted

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """Return the lines of the headers, or of what follows a body in chunks; None if some are missing."""
        lines = super().maybe_extract_lines()
        if lines and (why := _ambiguity(self._extracted, lines)):
            raise h11.RemoteProtocolError(why, error_status_hint=400)
        return lines


def _ambiguity(head: bytes, lines: Sequence[bytes | bytearray]) -> str | None:
    """Return what makes the headers of a request ambiguous, or None."""
    if re.search(rb"(?<!\r)\n", head):
        return "each line must end with CR LF"
    if any(line[:1] in (b" ", b"\t") for line in lines):
        return "a header must not go on in a second line"
    fields = [line.partition(b":") for line in lines[1:]]
    lengths = [value for name, _, value in fields if name.strip().lower() == b"content-length"]
    encodings = [value for name, _, value in fields if name.strip().lower() == b"transfer-encoding"]
    if len(lengths) > 1 or any(b"," in value for value in lengths):
        return "Content-Length must be given once"
    if encodings and lengths:
        return "Content-Length and Transfer-Encoding must not be given both"
    if encodings and lines[0].endswith(b"HTTP/1.0"):
        return "HTTP/1.0 has no Transfer-Encoding"
    return None


class Connection(H11Protocol):
    """A connection with a deadline for its client to send a request and to read the answer.

    Args:
        shared: state of the server's connections.
        of_uvicorn: uvicorn's own arguments.
    """

    def __init__(self, shared: _Shared, **of_uvicorn: Any):
        super().__init__(**of_uvicorn)
        self.conn._receive_buffer = _StrictBuffer()
        self.shared = shared
        self.deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close the connection that has been idle longest if there are too many.

        If none is idle, refuse this one.
        """
        super().connection_made(transport)
        self.shared.open[self] = None
        if len(self.shared.open) > self.shared.most:
            idle = next(
                (other for other in self.shared.open if other is not self and not other._is_served()), None
            )
            if idle is None:
                del self.shared.open[self]
                self._refuse(503, "too many requests at once; try again later", {"Retry-After": "1"})
            else:
                idle._close_for_another()
        self._update_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Free the connection's place."""
        self.shared.open.pop(self, None)
        self._clear_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Lift the deadline if the headers are complete now."""
        super().data_received(data)
        self._update_deadline()

    def on_response_complete(self) -> None:
        """Start the next request's deadline; this connection is now the last that makes room for another."""
        if self in self.shared.open:
            self.shared.open[self] = self.shared.open.pop(self)
        self._clear_deadline()
        super().on_response_complete()
        self._update_deadline()

    def pause_writing(self) -> None:
        """Start a deadline: the client does not read its answer."""
        super().pause_writing()
        self._update_deadline()

    def resume_writing(self) -> None:
        """Lift the deadline: the client reads again."""
        super().resume_writing()
        self._update_deadline()

    def send_400_response(self, msg: str) -> None:
        """Answer malformed HTTP. uvicorn calls this while it handles h11's error, which says more than
        ``msg``.
        """
        error, status = sys.exception(), 400
        if isinstance(error, h11.RemoteProtocolError):
            msg, status = in_one_line(error, 200), error.error_status_hint
        self._refuse(status, f"the request is not valid HTTP: {msg}")

    def _has_request(self) -> bool:
        """Return whether there is a request that is not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete

    def _is_served(self) -> bool:
        """Return whether the client waits for the server, not the server for the client."""
        return self._has_request() and not self.cycle.more_body and not self.flow.write_paused

    def _update_deadline(self) -> None:
        """Run a deadline while the client keeps the server waiting; the application times the body itself."""
        if self._has_request() and not self.flow.write_paused:
            self._clear_deadline()
        elif self.deadline is None:
            self.deadline = self.loop.call_later(self.shared.seconds, self._on_deadline)

    def _clear_deadline(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def _on_deadline(self) -> None:
        self.deadline = None
        if self.transport.is_closing() or self.flow.write_paused:
            self.transport.abort()  # close() would wait for the client to read
            return
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(
                408, f"the request's headers were not complete within {self.shared.seconds:g} seconds"
            )
        self.transport.close()
        self._update_deadline()

    def _close_for_another(self) -> None:
        self.shared.open.pop(self, None)
        self.connections.discard(self)
        self.transport.abort()

    def _refuse(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        """Answer in place of the application, and close the connection."""
        in_application = self._has_request()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer = error_response(status, message, {**HEADERS, "Connection": "close", **(headers or {})})
            fields = [*self.server_state.default_headers, *answer.raw_headers]
            body = b"" if in_application and self.scope["method"] == "HEAD" else bytes(answer.body)
            response = h11.Response(status_code=status, headers=fields, reason=STATUS_PHRASES[status])
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            if not in_application:  # the application counts its own requests
                self.shared.metrics.count_answer("other", status)
        if in_application:  # the application must not send any more
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
