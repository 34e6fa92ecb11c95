"""The server's connections: how long one may keep it waiting, how many there may be, and what is answered to no HTTP."""

import asyncio
import resource
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from fairseq_imitkd.serving.app import HEADERS, error_response
from fairseq_imitkd.serving.metrics import Metrics

MOST = 1000


def most_connections() -> int:
    """How many there may be. The process may have more descriptors afterwards, if it has few of those it can have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * MOST if hard == resource.RLIM_INFINITY else min(4 * MOST, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    # The other half is for files, and for connections that are accepted before those that gave way to them are closed.
    return MOST if soft == resource.RLIM_INFINITY else max(1, min(MOST, soft // 2))


def protocol(metrics: Metrics, seconds: float, most: int) -> Any:
    """What uvicorn makes a server's connections with, in the place of a class.

    Args:
        metrics: which count what is answered here.
        seconds: that a client may keep the server waiting, outside of a request's body.
        most: connections at once.
    """
    return partial(Connection, _Room(metrics, seconds, most))


@dataclass(eq=False)
class _Room:
    """What a server's connections share; ``taken`` has them by when they were opened, or answered last."""

    metrics: Metrics
    seconds: float
    most: int
    taken: dict["Connection", None] = field(default_factory=dict)


class Connection(H11Protocol):
    """One that doesn't wait for ever for a request, nor for its client to read the answer."""

    def __init__(self, room: _Room, **of_uvicorn: Any):
        super().__init__(**of_uvicorn)
        self.room = room
        self.deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Where there is no room, the one that has let the server wait longest goes, or this one is told to come later."""
        super().connection_made(transport)
        self.room.taken[self] = None
        if len(self.room.taken) > self.room.most:
            idle = next(
                (other for other in self.room.taken if other is not self and not other._is_served()), None
            )
            if idle is None:
                del self.room.taken[self]
                self._refuse(503, "too many requests at once: try again later", {"Retry-After": "1"})
            else:
                idle._give_way()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Its place is free."""
        self.room.taken.pop(self, None)
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A request may now be complete, and have no deadline any more."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """The next request's deadline begins; of those who may have to go it is the last."""
        if self in self.room.taken:
            self.room.taken[self] = self.room.taken.pop(self)
        self._unwatch()
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """The client does not read its answer: it has until the deadline."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Called while h11's error is handled, which says more."""
        error, status = sys.exception(), 400
        if isinstance(error, h11.RemoteProtocolError):
            msg, status = " ".join(str(error).split())[:200], error.error_status_hint
        self._refuse(status, f"this is no HTTP: {msg}")

    def _is_asked(self) -> bool:
        """Whether there is a request that is not answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _is_served(self) -> bool:
        """Whether the client waits for the server, not the server for the client."""
        return self._is_asked() and not self.cycle.more_body and not self.flow.write_paused

    def _watch(self) -> None:
        """The application has an eye on a request's body; all else that a client is slow with has its deadline here."""
        if self._is_asked() and not self.flow.write_paused:
            self._unwatch()
        elif self.deadline is None:
            self.deadline = self.loop.call_later(self.room.seconds, self._is_late)

    def _unwatch(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def _is_late(self) -> None:
        self.deadline = None
        if self.transport.is_closing() or self.flow.write_paused:
            self.transport.abort()  # to close it would wait for the client to read
            return
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(408, f"the request's headers were not complete within {self.room.seconds:g} seconds")
        self.transport.close()
        self._watch()

    def _give_way(self) -> None:
        """To another, at once."""
        self.room.taken.pop(self, None)
        self.connections.discard(self)
        self.transport.abort()

    def _refuse(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        """Answer what the application is not asked, or can't be asked to the end, and close."""
        asked = self._is_asked()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer = error_response(status, message, {**HEADERS, "Connection": "close", **(headers or {})})
            fields = [*self.server_state.default_headers, *answer.raw_headers]
            body = b"" if asked and self.scope["method"] == "HEAD" else bytes(answer.body)
            response = h11.Response(status_code=status, headers=fields, reason=STATUS_PHRASES[status])
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            if not asked:  # else the application counts it
                self.room.metrics.answered("other", status)
        if asked:  # so that the application sends no more
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
