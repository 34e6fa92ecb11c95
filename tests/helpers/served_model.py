"""A fast model for the server that records its requests and can fail. As a script, this module runs the
server.
"""

import asyncio
import functools
import os
import resource
import subprocess
import sys
import threading
import time
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import Tensor

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.serving.app import application
from fairseq_imitkd.serving.batching import BatchingSettings
from fairseq_imitkd.serving.requests import RequestLimits
from tests.helpers import warm_commands
from tests.helpers.digit_corpus import ENVIRONMENT

EOS = 2
ROOT = Path(__file__).parents[2]


class FakeModel:
    """Translates into upper case. Each character is a token. ``batches`` holds the texts of each batch.

    Sentences that begin with ``fail`` raise an error. Those that begin with ``slow`` take as many seconds as
    their next word says.
    """

    def __init__(self, seconds: float = 0.0, longest_source: int = 100):
        self.manifest: dict[str, Any] = {
            "source_lang": "de", "target_lang": "en", "form": "ctranslate2", "quantization": "int8",
            "student": {"parameters": 6543210},
        }  # fmt: skip
        self.seconds, self.longest_source = seconds, longest_source
        self.longest_word = None
        self.batches: list[list[str]] = []
        self.threads: set[tuple[str, str]] = set()
        self.may_go = threading.Event()  # a test may block the model
        self.may_go.set()

    def encode(self, text: str) -> Tensor:
        self._called("encode")
        if text.startswith("unreadable"):
            raise UsageError("no such text")  # which is a SystemExit too
        return torch.tensor([*map(ord, text.strip("\u200b")), EOS])

    def decode(self, tokens: Tensor) -> str:
        self._called("decode")
        return "".join(map(chr, tokens.tolist()[:-1]))

    def translate(self, sources: Sequence[Tensor]) -> list[Tensor]:
        self._called("translate")
        texts = ["".join(map(chr, source.tolist()[:-1])) for source in sources]
        self.batches.append(texts)
        assert self.may_go.wait(timeout=30)
        time.sleep(self.seconds)
        for text in texts:
            if text.startswith("fail"):
                raise RuntimeError("secret of the model")
            if text.startswith("slow"):
                time.sleep(float(text.split()[1]))
        return [torch.tensor([*map(ord, text.upper()), EOS]) for text in texts]

    def _called(self, name: str) -> None:
        self.threads.add((name, threading.current_thread().name))


@asynccontextmanager
async def client(
    model: FakeModel,
    limits: RequestLimits | None = None,
    batching: BatchingSettings | None = None,
    hosts: set[str] | None = None,
    origins: Sequence[str] = (),
) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of an application in the same event loop."""
    app = application(
        model,
        limits or RequestLimits(tokens=100),
        batching or BatchingSettings(longest=100),
        hosts=hosts,
        origins=origins,
    )
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:1") as asked,
    ):
        yield asked


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Turn a test that is a coroutine into one that pytest can run, with a time limit."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 60))

    return run


async def until(condition: Any) -> None:
    """Wait until a condition holds. Fail if it takes too long."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


@contextmanager
def server(*flags: object, descriptors: int | None = None) -> Iterator[tuple[subprocess.Popen, str]]:
    """Run ``imitkd-serve`` with this model in its own process on a free port, and wait until it is ready.

    Args:
        flags: further flags of the command.
        descriptors: the most file descriptors that the process may open (default: the system's limit).

    Returns:
        The process and the server's address.
    """
    environment = {**ENVIRONMENT, "PYTHONUNBUFFERED": "", "DESCRIPTORS": str(descriptors or "")}
    python = warm_commands.folder() / "python"
    process = subprocess.Popen(
        [python, "-m", "tests.helpers.served_model", str(ROOT), "--port", "0", *map(str, flags)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    patience = threading.Timer(120, process.kill)
    patience.start()
    try:
        line = process.stdout.readline()
        patience.cancel()
        assert line.startswith("serving de-en (ctranslate2, int8) on http://"), (line, process.stderr.read())
        yield process, line.split()[-1]
    finally:
        patience.cancel()
        process.kill()
        process.communicate()


def main() -> None:
    """Run ``imitkd-serve`` with this model for any folder."""

    class Bundle(FakeModel):
        @classmethod
        def read(cls, folder: Path, *, device: str = "cpu", beam: int | None = None) -> "Bundle":
            if not folder.is_dir():
                raise UsageError(f"DIR '{folder}' is not a folder; use an exported model")
            return cls()

    module = types.ModuleType("fairseq_imitkd.export.bundle")
    module.Bundle = Bundle  # type: ignore[attr-defined]
    module.MOST, module.MOST_BEAM = 10**6, 1000  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    if descriptors := os.environ["DESCRIPTORS"]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(descriptors), int(descriptors)))
    from fairseq_imitkd.cli import serve

    serve.main()


if __name__ == "__main__":
    main()
