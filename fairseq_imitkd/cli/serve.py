"""``imitkd-serve``: an exported model over HTTP, with a page to try it."""

import argparse
import errno
import ipaddress
import logging
import math
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch

from fairseq_imitkd.cli.arguments import Parser, positive
from fairseq_imitkd.cli.extras import check_extra
from fairseq_imitkd.errors import UsageError, interruptible
from fairseq_imitkd.serving.batching import THREADS, Batching, Model, facts, misstated
from fairseq_imitkd.serving.requests import Limits

EXTRA = ("starlette", "uvicorn", "prometheus_client")
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@interruptible()
def main(arguments: list[str] | None = None) -> None:
    """The command; ``arguments`` are those of the command line unless given."""
    args = argument_parser().parse_args(arguments)
    logging.basicConfig(
        format="%(asctime)s | %(levelname)s | %(name)s | %(message)s",
        level=args.log_level.upper(),
        force=True,
    )
    _check(args)
    check_extra("imitkd-serve", "serve", EXTRA)
    with bind(args.host, args.port) as listener:  # first, since a model takes long to load
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _leave)
        host, port = listener.getsockname()[:2]
        local = ipaddress.ip_address(host).is_loopback
        shown = f"[{host}]" if ":" in host else host
        if not local:
            logging.warning(
                "--host %s lets everyone in who reaches this machine: put a proxy with a password and TLS before it",
                args.host,
            )
        model = _model(args)
        server = _server(args, model, {*LOOPBACK, shown, args.host.lower()} if local else None)
        said = facts(model)
        name = "{source_lang}-{target_lang} ({engine}, {quantization})".format(**said)
        print(f"serving {name} on http://{shown}:{port}", flush=True)
        try:
            server.run(sockets=[listener])
        finally:
            _end_threads()


def argument_parser() -> Parser:
    """Every flag."""
    parser = Parser(
        "imitkd-serve", "Translate over HTTP with an exported model: POST /translate, or the page at /."
    )
    batching, limits = Batching(), Limits()
    parser.add_argument("folder", type=Path, metavar="DIR", help="the exported model")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 127.0.0.1 is reached from this machine alone",
    )
    parser.add_argument("--port", type=_port, default=8080, help="to listen on; 0 takes a free one")
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="warning",
        help="what is written to stderr; with info, a line for each request",
    )  # fmt: skip

    model = parser.add_argument_group("the model")
    model.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what computes")
    model.add_argument(
        "--threads", type=positive, metavar="N", help="of the model on the CPU (default: torch's own choice)"
    )
    model.add_argument("--beam", type=positive, metavar="N", help="beam size (default: the exported model's)")

    together = parser.add_argument_group("how sentences come together")
    together.add_argument(
        "--max-batch-sentences",
        type=positive,
        metavar="N",
        default=batching.sentences,
        help="sentences translated at once",
    )
    together.add_argument(
        "--max-batch-tokens",
        type=positive,
        metavar="N",
        default=batching.tokens,
        help="their tokens, padding included",
    )
    together.add_argument(
        "--batch-wait", type=_number, default=1000 * batching.wait, metavar="MILLISECONDS",
        help="that a sentence waits for company",
    )  # fmt: skip
    together.add_argument(
        "--queue",
        type=positive,
        metavar="N",
        default=batching.queue,
        help="sentences that may wait; more are answered with 503",
    )

    request = parser.add_argument_group("what a request may hold and take")
    request.add_argument(
        "--max-request-bytes", type=positive, metavar="N", default=limits.request_bytes, help="of its body"
    )
    request.add_argument(
        "--max-request-sentences", type=positive, metavar="N", default=limits.sentences, help="or lines"
    )
    request.add_argument(
        "--max-sentence-tokens",
        type=positive,
        metavar="N",
        help="of a sentence, its EOS included (default: what the model can read)",
    )
    request.add_argument(
        "--timeout",
        type=_number,
        default=limits.seconds,
        metavar="SECONDS",
        help="for its headers, and again from these to the last translation",
    )
    request.add_argument(
        "--shutdown-timeout", type=positive, default=10, metavar="SECONDS",
        help="that requests are given to be answered when the server is told to stop",
    )  # fmt: skip
    return parser


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535, but is '{text}'")
    return int(text)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of 0 or more, but is '{text}'")
    return number


def _check(args: argparse.Namespace) -> None:
    if args.timeout == 0:
        raise UsageError("--timeout must be more than 0 seconds, but is 0.0: no request could be answered")
    if args.max_request_sentences > args.queue:
        raise UsageError(
            f"--max-request-sentences {args.max_request_sentences} must be at most --queue, which is {args.queue}: "
            "a request of more would never have room; lower the one or raise the other"
        )


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """The server stops by itself at a signal, and raises it again at the end; before it runs there is nothing to finish."""
    raise SystemExit(0)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens, so that no other server can take its port meanwhile.

    Raises:
        UsageError: there is no such address, or it is not to be had.
    """
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"--host '{host}' is no address: give one of this machine's, such as 127.0.0.1"
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            message = f"--port {port} is in use on {host}: give another, or 0 for one that is free"
        elif error.errno == errno.EADDRNOTAVAIL:
            message = (
                f"--host '{host}' is not this machine's: give an address of this machine, such as 127.0.0.1"
            )
        elif error.errno in (errno.EACCES, errno.EPERM):
            message = f"--port {port} is only for privileged users: give one of 1024 or more"
        else:
            message = (
                f"--host '{host}' with --port {port} can't be listened on ({error.strerror}): give others"
            )
        raise UsageError(message) from error
    return listener


def _model(args: argparse.Namespace) -> Model:
    from fairseq_imitkd.export.bundle import Bundle

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    model = Bundle.read(args.folder, device=args.device, beam=args.beam)
    if wrong := misstated(model):
        raise UsageError(f"{args.folder / 'imitkd.json'} is damaged ({wrong}): export the student again")
    if args.max_sentence_tokens is not None and args.max_sentence_tokens > model.longest_source:
        raise UsageError(
            f"--max-sentence-tokens {args.max_sentence_tokens} must be at most what the model can read, "
            f"{model.longest_source}: give that or less, or leave it out"
        )
    return model


def _server(args: argparse.Namespace, model: Model, hosts: set[str] | None) -> Any:
    import uvicorn

    from fairseq_imitkd.serving.app import application
    from fairseq_imitkd.serving.connections import most_connections, protocol

    longest = args.max_sentence_tokens or model.longest_source
    limits = Limits(args.max_request_bytes, args.max_request_sentences, longest, args.timeout)
    batching = Batching(
        args.max_batch_sentences, args.max_batch_tokens, args.batch_wait / 1000, args.queue, longest
    )
    app = application(model, limits, batching, hosts)
    most = most_connections()
    config = uvicorn.Config(
        app, http=protocol(app.state.metrics, args.timeout, most), ws="none", loop="asyncio", lifespan="on", log_config=None,
        server_header=False, proxy_headers=False, timeout_graceful_shutdown=args.shutdown_timeout,
        backlog=max(1, min(128, most // 8)),  # three times as many may be accepted before the first gives way
    )  # fmt: skip
    return uvicorn.Server(config)


def _end_threads() -> None:
    """Leave at once where a model is still computing what nobody waits for: Python would wait for its thread."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith(THREADS)]
    for thread in threads:
        thread.join(timeout=0.5)
    if any(thread.is_alive() for thread in threads):
        logging.warning("stopped while the model was translating")
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)
