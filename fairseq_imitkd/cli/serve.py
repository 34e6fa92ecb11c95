"""``imitkd-serve``: an exported student over HTTP, with a page to try it."""

import argparse
import errno
import ipaddress
import logging
import math
import os
import re
import signal
import socket
import sys
import threading
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch

from fairseq_imitkd.cli.arguments import Parser, up_to
from fairseq_imitkd.cli.extras import check_extra
from fairseq_imitkd.errors import UsageError, one_line_errors
from fairseq_imitkd.export.bundle import MOST, MOST_BEAM, Bundle
from fairseq_imitkd.serving.batching import THREADS, BatchingSettings
from fairseq_imitkd.serving.model import ServedModel, manifest_error, model_facts
from fairseq_imitkd.serving.requests import RequestLimits

EXTRA = ("starlette", "uvicorn", "prometheus_client")
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
# The stacks of more threads, and the body of a larger request, would fill the memory.
MOST_THREADS, MOST_BYTES = 1024, 10**9


@one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Run the command; ``arguments`` default to those of the command line."""
    args = parser().parse_args(arguments)
    logging.basicConfig(
        format="%(asctime)s | %(levelname)s | %(name)s | %(message)s",
        level=args.log_level.upper(),
        force=True,
    )
    _check(args)
    check_extra("imitkd-serve", "serve", EXTRA)
    with bind(args.host, args.port) as listener:  # before the model, which takes long to load
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _exit)
        host, port = listener.getsockname()[:2]
        is_local = ipaddress.ip_address(host).is_loopback
        shown_host = f"[{host}]" if ":" in host else host
        if not is_local:
            logging.warning(
                "--host %s accepts requests from every machine that can reach this one: put a proxy with a "
                "password and TLS in front of it",
                args.host,
            )
        model = _model(args)
        names = {*LOOPBACK, shown_host, args.host.lower(), *map(_name, args.public_origin)}
        server = _server(args, model, names if is_local else None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, partial(_exit_unless_ending, server))
        name = "{source_lang}-{target_lang} ({engine}, {quantization})".format(**model_facts(model))
        print(f"serving {name} on http://{shown_host}:{port}", flush=True)
        try:
            server.run(sockets=[listener])
        finally:
            _end_threads()


def parser() -> Parser:
    """Return the parser."""
    made = Parser(
        "imitkd-serve",
        "Translate over HTTP with an exported student: POST /translate, or the page at /.",
    )
    made.add_argument("folder", type=Path, metavar="DIR", help="folder of the exported student")
    made.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; only this machine can reach 127.0.0.1",
    )
    made.add_argument("--port", type=_port, default=8080, help="port to listen on (0: any free port)")
    made.add_argument(
        "--public-origin",
        type=_origin,
        action="append",
        default=[],
        metavar="URL",
        help="address of the server as browsers know it, if a proxy is in front of it, such as "
        "https://translate.example; once for each",
    )
    made.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="warning",
        help="least level of messages on stderr; info logs each request",
    )
    _add_model_flags(made.add_argument_group("model"))
    _add_batching_flags(made.add_argument_group("batches"))
    _add_request_flags(made.add_argument_group("limits of a request"))
    return made


def _add_model_flags(group: Any) -> None:
    group.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device that computes")
    group.add_argument(
        "--threads",
        type=up_to(MOST_THREADS),
        metavar="N",
        help=f"threads of the model on the CPU, at most {MOST_THREADS:,} (default: torch's)",
    )
    group.add_argument(
        "--beam",
        type=up_to(MOST_BEAM),
        metavar="N",
        help=f"beam size, at most {MOST_BEAM:,} (default: that of the exported student)",
    )


def _add_batching_flags(group: Any) -> None:
    default = BatchingSettings()
    for flag, value, text in (
        ("--max-batch-sentences", default.sentences, "maximum number of sentences in a batch"),
        ("--max-batch-tokens", default.tokens, "maximum number of tokens in a batch, padding included"),
        (
            "--queue",
            default.queue,
            "maximum number of waiting sentences; requests beyond it are answered with 503",
        ),
    ):
        group.add_argument(flag, type=up_to(MOST), metavar="N", default=value, help=text)
    group.add_argument(
        "--batch-wait",
        type=_number,
        default=1000 * default.wait,
        metavar="MILLISECONDS",
        help="time that a sentence waits for others to fill a batch",
    )


def _add_request_flags(group: Any) -> None:
    default = RequestLimits()
    group.add_argument(
        "--max-request-bytes",
        type=up_to(MOST_BYTES),
        metavar="N",
        default=default.request_bytes,
        help="maximum size of its body",
    )
    group.add_argument(
        "--max-request-sentences",
        type=up_to(MOST),
        metavar="N",
        default=default.sentences,
        help="maximum number of its sentences or lines",
    )
    group.add_argument(
        "--max-sentence-tokens",
        type=up_to(MOST),
        metavar="N",
        help="maximum number of tokens in a sentence, EOS included (default: what the model can represent)",
    )
    group.add_argument(
        "--timeout",
        type=_number,
        default=default.seconds,
        metavar="SECONDS",
        help="maximum time to receive a request's headers, then to its last translation, and for a client to "
        "take the answer",
    )
    group.add_argument(
        "--shutdown-timeout",
        type=up_to(MOST),
        default=10,
        metavar="SECONDS",
        help="time to answer running requests after the server is told to stop",
    )


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535, but is '{text}'")
    return int(text)


def _origin(text: str) -> str:
    """Return an origin as browsers write it: in lower case, and without the port that its scheme implies."""
    pattern = r"(https?)(://(?:\[[\da-f:.]+\]|[\w.-]+))(?::0*(\d{1,5}))?"
    origin = re.fullmatch(pattern, text.lower().removesuffix("/"), re.ASCII)
    if origin is None:
        raise argparse.ArgumentTypeError(f"must be like https://translate.example, but is '{text}'")
    scheme, name, port = origin.groups()
    is_implied = port in (None, {"http": "80", "https": "443"}[scheme])
    return scheme + name + ("" if is_implied else f":{port}")


def _name(origin: str) -> str:
    """Return the name of the server in an origin, without its port."""
    return re.sub(r":\d+$", "", origin.partition("://")[2])


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
    if args.batch_wait >= 1000 * args.timeout:
        raise UsageError(
            f"--batch-wait {args.batch_wait:g} milliseconds must be less than --timeout, which is "
            f"{args.timeout:g} seconds: no sentence would be translated in time; lower it"
        )
    if args.max_sentence_tokens == 1:
        raise UsageError(
            "--max-sentence-tokens must be 2 or more, but is 1: the EOS of a sentence is one of its tokens"
        )
    if args.max_request_sentences > args.queue:
        raise UsageError(
            f"--max-request-sentences {args.max_request_sentences} must be at most --queue, which is "
            f"{args.queue}: the queue would never have room for a larger request; lower it or raise --queue"
        )


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    """End the command at a signal before the server runs; a running server handles signals itself."""
    raise SystemExit(0)


def _exit_unless_ending(server: Any, number: int, frame: FrameType | None) -> None:
    """End the command at a signal, unless the server is ending because of it.

    uvicorn raises a signal again in its event loop when it has handled it. An exception there would be
    logged.
    """
    if not server.should_exit:
        raise SystemExit(0)


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        UsageError: the address does not exist or can't be used.
    """
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"--host '{host}' is not an address; use one of this machine's, such as 127.0.0.1"
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise UsageError(_bind_error(error, host, port)) from error
    return listener


def _bind_error(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"--port {port} is in use on {host}; use another, or 0 for any free port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host '{host}' is not an address of this machine; use one of its own, such as 127.0.0.1"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"--port {port} is reserved for privileged users; use 1024 or more"
    return f"--host '{host}' with --port {port} can't be used ({error.strerror}); use others"


def _model(args: argparse.Namespace) -> ServedModel:
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    model = Bundle.read(args.folder, device=args.device, beam=args.beam)
    if wrong := manifest_error(model):
        raise UsageError(f"{args.folder / 'imitkd.json'} is damaged ({wrong}); export the student again")
    if args.max_sentence_tokens is not None and args.max_sentence_tokens > model.longest_source:
        raise UsageError(
            f"--max-sentence-tokens {args.max_sentence_tokens} must be at most the {model.longest_source} "
            "tokens that the model can represent; lower it or leave it out"
        )
    return model


def _server(args: argparse.Namespace, model: ServedModel, hosts: set[str] | None) -> Any:
    """Return uvicorn's server; ``hosts`` are the names that ``Host`` may have, None allows any."""
    import uvicorn

    from fairseq_imitkd.serving.app import application
    from fairseq_imitkd.serving.connections import connection_factory, most_connections

    longest = args.max_sentence_tokens or model.longest_source
    limits = RequestLimits(
        request_bytes=args.max_request_bytes,
        sentences=args.max_request_sentences,
        tokens=longest,
        seconds=args.timeout,
        word=model.longest_word,
    )
    batching = BatchingSettings(
        sentences=args.max_batch_sentences,
        tokens=args.max_batch_tokens,
        wait=args.batch_wait / 1000,
        queue=args.queue,
        longest=longest,
    )
    app = application(model, limits, batching, hosts=hosts, origins=args.public_origin)
    most = most_connections()
    config = uvicorn.Config(
        app,
        http=connection_factory(app.state.metrics, seconds=args.timeout, most=most),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=args.shutdown_timeout,
        timeout_keep_alive=math.ceil(args.timeout),
        # The event loop accepts up to three times as many connections before it closes the first.
        backlog=max(1, min(128, most // 8)),
    )

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """Begin to end. A second Ctrl-C ends at once; uvicorn would log a traceback then."""
            if self.should_exit and sig == signal.SIGINT:
                logging.shutdown()
                os._exit(0)
            super().handle_exit(sig, frame)

    return Server(config)


def _end_threads() -> None:
    """End the process at once if the model still computes, where Python would wait for its thread."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith(THREADS)]
    for thread in threads:
        thread.join(timeout=0.5)
    if any(thread.is_alive() for thread in threads):
        logging.warning("stopped while the model was translating")
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)
