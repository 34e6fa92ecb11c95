"""The server's application: ``POST /translate``, and ``GET`` of ``/health``, ``/metrics`` and the page at
``/``.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib.resources import files
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fairseq_imitkd import __version__
from fairseq_imitkd.serving.batching import (
    Batcher,
    BatchingSettings,
    ModelFailed,
    QueueFull,
    TooLong,
    TranslatedRequest,
)
from fairseq_imitkd.serving.metrics import CONTENT_TYPE, Metrics
from fairseq_imitkd.serving.model import ServedModel, model_facts
from fairseq_imitkd.serving.requests import (
    JSON,
    Refused,
    RequestLimits,
    as_lines,
    media_type,
    parse_sentences,
)

PAGE = {"/": "index.html", "/style.css": "style.css", "/page.js": "page.js", "/icon.svg": "icon.svg"}
PATHS = ("/translate", "/health", "/metrics", *PAGE)
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
CLIENT_GONE = 499  # nginx's status for a client that did not wait; only the metrics show it

READING = (
    "GET",
    "HEAD",
    "OPTIONS",
)  # they change nothing; browsers let no other site read the answer
HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?")  # name and port of a Host header

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


def application(
    model: ServedModel,
    limits: RequestLimits,
    batching: BatchingSettings,
    *,
    hosts: Collection[str] | None = None,
    origins: Collection[str] = (),
) -> Starlette:
    """Return the server's application.

    Args:
        model: what translates.
        limits: limits of requests.
        batching: limits of batches and queue.
        hosts: names that ``Host`` may have, in lower case and without port; None allows any.
        origins: origins of pages that may use the server beside its own, in lower case, such as
            ``https://translate.example``.

    Returns:
        the application; its ``state.metrics`` also count what the connections answer without it.
    """
    service = _Service(model, limits, batching)
    routes = [
        Route("/translate", service.translate, methods=["POST"]),
        Route("/health", service.health),
        Route("/metrics", service.metrics_text),
        *(Route(path, _file(name)) for path, name in PAGE.items()),
    ]
    handlers: dict[Any, Any] = {
        Refused: _refused,
        HTTPException: _http_error,
        Exception: _unexpected_error,
    }
    guard = Middleware(_Guard, metrics=service.metrics, hosts=hosts, origins=origins)
    app = Starlette(routes=routes, middleware=[guard], exception_handlers=handlers, lifespan=service.lifespan)
    app.router.redirect_slashes = False
    app.state.metrics = service.metrics
    return app


class _Service:
    """The endpoints of ``/translate``, ``/health`` and ``/metrics``."""

    def __init__(self, model: ServedModel, limits: RequestLimits, batching: BatchingSettings):
        self.model, self.limits = model, limits
        self.metrics = Metrics(lambda: self.batcher.waiting)
        self.batcher = Batcher(model, batching, self.metrics.observe_batch)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async with self.batcher.running():
            yield

    async def health(self, request: Request) -> Response:
        return JSONResponse(
            {
                "status": "ok",
                "version": __version__,
                "model": model_facts(self.model),
                "limits": asdict(self.limits),
                "waiting": self.batcher.waiting,
            }
        )

    async def metrics_text(self, request: Request) -> Response:
        return Response(self.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def translate(self, request: Request) -> Response:
        start = time.perf_counter()
        try:
            return await self._translate(request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        finally:
            self.metrics.observe_request(time.perf_counter() - start)

    async def _translate(self, request: Request) -> Response:
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refused(415, "Content-Encoding must be identity; send the body as it is")
        kind = media_type(request.headers.get("content-type", ""))
        deadline = asyncio.get_running_loop().time() + self.limits.seconds
        sentences = parse_sentences(await self._body(request, deadline), kind, self.limits)
        done = await self._translate_sentences(request, sentences, deadline)
        self.metrics.count_translations(len(done.texts), done.source_tokens, done.target_tokens)
        if kind != JSON:
            return Response(as_lines(done.texts), media_type="text/plain")
        counts = {"source_tokens": done.source_tokens, "target_tokens": done.target_tokens}
        return JSONResponse({"translations": done.texts, **counts})

    async def _body(self, request: Request, deadline: float) -> bytes:
        """Read the body; never hold more of it in memory than the limit."""
        limit = self.limits.request_bytes
        too_large = Refused(413, f"a request may have {limit} bytes; send fewer sentences at once")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and float(length) > limit:  # int refuses thousands of digits
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout_at(deadline):
                async for part in request.stream():
                    if len(body) + len(part) > limit:
                        raise too_large
                    body += part
        except TimeoutError:
            raise Refused(
                408, f"the request was not complete within {self.limits.seconds:g} seconds"
            ) from None
        return bytes(body)

    async def _translate_sentences(
        self, request: Request, texts: list[str], deadline: float
    ) -> TranslatedRequest:
        try:
            async with asyncio.timeout_at(deadline):
                return await _unless_gone(request, self.batcher.translate(texts))
        except TimeoutError:
            raise Refused(
                504, f"not translated within {self.limits.seconds:g} seconds; send fewer sentences at once"
            ) from None
        except QueueFull:
            raise Refused(
                503, "too many sentences are waiting; try again later", {"Retry-After": "1"}
            ) from None
        except TooLong as error:
            raise Refused(
                413,
                f"sentence {error.place} has {error.tokens} tokens, but may have {self.limits.tokens}; "
                "split it",
            ) from None
        except ModelFailed as error:
            logger.error("a request of %d sentences failed", len(texts), exc_info=error.__cause__)
            raise Refused(500, "the model failed on this request; the server's log has the reason") from None


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of some work.

    Raises:
        ClientDisconnect: the client disconnected before the work was done; the work is cancelled.
    """

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work), asyncio.create_task(disconnected())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


def _file(name: str) -> Any:
    """Return an endpoint that answers with a file of the page; the file is read once."""
    content = (files("fairseq_imitkd.serving") / "page" / name).read_bytes()
    media = TYPES[name.rpartition(".")[2]]

    async def answer(request: Request) -> Response:
        return Response(content, media_type=media)

    return answer


def error_response(status: int, message: str, headers: Any = None) -> Response:
    """Return the answer that every error has; the message is one line."""
    return JSONResponse({"error": message}, status, headers)


async def _refused(request: Request, error: Refused) -> Response:
    return error_response(error.status, error.message, error.headers)


async def _http_error(request: Request, error: HTTPException) -> Response:
    message = error.detail
    if error.status_code == 404:
        message = "this path does not exist; use /translate, /health, /metrics or /"
    elif error.status_code == 405:
        message = f"this path answers {(error.headers or {}).get('Allow')}, not {request.method}"
    return error_response(error.status_code, message, error.headers)


async def _unexpected_error(request: Request, error: Exception) -> Response:
    """The server that runs the application logs the traceback."""
    return error_response(500, "the server failed on this request; its log has the reason")


class _Guard:
    """Middleware that counts requests, adds the security headers, and refuses pages of other sites.

    It also answers requests that are cancelled because the server stops.

    A page of another site can reach a loopback address in two ways. It can point a name of its own to the
    address (DNS rebinding), which shows in ``Host``. Or it can send there openly, which browsers mark in
    ``Origin`` and in ``Sec-Fetch-Site``. A client that is not a browser sends neither.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, *, hosts: Collection[str] | None, origins: Collection[str]
    ):
        self.app, self.metrics, self.hosts, self.origins = app, metrics, hosts, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status, has_begun = 500, False

        async def with_headers(message: Message) -> None:
            nonlocal status, has_begun
            if message["type"] == "http.response.start":
                status, has_begun = message["status"], True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        try:
            app = self._refusal(scope["method"], Headers(scope=scope)) or self.app
            await app(scope, receive, with_headers)
        except asyncio.CancelledError:  # the server stops, and has waited for this request long enough
            if not has_begun:
                headers = {"Retry-After": "1", "Connection": "close"}
                stopping = error_response(503, "the server is stopping; try again later", headers)
                await stopping(scope, receive, with_headers)
        finally:
            self.metrics.count_answer(scope["path"] if scope["path"] in PATHS else "other", status)

    def _refusal(self, method: str, headers: Headers) -> Response | None:
        host = headers.get("host", "")
        name = HOST.fullmatch(host.lower())
        if self.hosts is not None and (name is None or name[1] not in self.hosts):
            return error_response(
                400, f"Host must be {' or '.join(sorted(self.hosts))}, but is {host[:100]!r}"
            )
        if method in READING:
            return None
        given = [origin.lower() for origin in headers.getlist("origin")]
        if given and given[0] in self.origins and len(given) == 1:
            return None
        if headers.get("sec-fetch-site") == "cross-site":
            return error_response(403, "pages of other sites may not use this server")
        if given and not (len(given) == 1 and _is_origin_of(given[0], host.lower())):
            return error_response(
                403,
                f"Origin must be that of this server, but is {', '.join(given)[:100]!r}; pages of other "
                "sites may not use it",
            )
        return None


def _is_origin_of(origin: str, host: str) -> bool:
    """Return whether an ``Origin`` names the server that ``Host`` names. Both are in lower case."""
    scheme, _, authority = origin.partition("://")
    port = {"http": ":80", "https": ":443"}.get(scheme)  # a proxy may add TLS
    return port is not None and authority.removesuffix(port) == host.removesuffix(port) != ""
