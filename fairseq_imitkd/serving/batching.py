"""Sentences of many requests, translated by one model in batches that they share."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

WINDOW = 4  # batches' worth of sentences, among which those of like length are looked for
TEXTS = 32  # made tokens of, or text, before another request has its turn
THREADS = "imitkd-serve"

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
Made = TypeVar("Made")


class Model(Protocol):
    """What translates: a :class:`~fairseq_imitkd.export.bundle.Bundle`, or what a test has in its place.

    ``encode`` and ``decode`` run in one thread, ``translate`` in another.
    """

    manifest: dict[str, Any]
    longest_source: int

    def encode(self, text: str) -> Tensor:
        """A sentence's tokens with its EOS, ``(S,)``."""

    def decode(self, tokens: Tensor) -> str:
        """The text of a translation's tokens."""

    def translate(self, sources: Sequence[Tensor]) -> list[Tensor]:
        """The translations of one batch, in its order."""


def facts(model: Model) -> dict[str, Any]:
    """What there is to say of a model, each None if its manifest does not say it."""
    said = model.manifest
    return {
        "source_lang": said.get("source_lang"),
        "target_lang": said.get("target_lang"),
        "engine": said.get("form"),
        "quantization": said.get("quantization"),
        "parameters": said.get("student", {}).get("parameters"),
    }


def misstated(model: Model) -> str | None:
    """What its manifest says that :func:`facts` can't be made of, or JSON has no word for; the server reads it nowhere else."""
    student, quantization = model.manifest.get("student", {}), model.manifest.get("quantization")
    if not isinstance(student, dict):
        return f"its student is {student!r:.50}"
    if not isinstance(parameters := student.get("parameters"), int | None):
        return f"its student's parameters are {parameters!r:.50}"
    if not (
        quantization is None or (isinstance(quantization, str) and re.fullmatch(r"\w{1,100}", quantization))
    ):
        return f"its quantization is {quantization!r:.50}"
    return None


@dataclass(frozen=True)
class Batching:
    """How sentences come together.

    Attributes:
        sentences: most of a batch.
        tokens: most of a batch, padding included; a longer sentence is a batch of its own.
        wait: seconds that a sentence waits for company.
        queue: most sentences waiting.
        longest: most tokens of a sentence, EOS included.
    """

    sentences: int = 32
    tokens: int = 4096
    wait: float = 0.005
    queue: int = 2000
    longest: int = 1024


@dataclass(frozen=True)
class Translated:
    """A request's translations in its order, and how many tokens went in and came out."""

    texts: list[str]
    source_tokens: int
    target_tokens: int


class QueueFull(Exception):
    """A request's sentences would be more than may wait."""


class TooLong(Exception):
    """A sentence, by its place from 1, has more tokens than it may have."""

    def __init__(self, place: int, tokens: int):
        super().__init__(place, tokens)
        self.place, self.tokens = place, tokens


class ModelFailed(Exception):
    """The model raised the error that is the cause of this one."""


@dataclass(eq=False)
class _Sentence:
    """One that waits, with the request that it is of.

    Attributes:
        source: ``(S,)``.
        arrived: by the event loop's clock.
        target: what it is to become.
        request: all sentences of it that still wait.
    """

    source: Tensor
    arrived: float
    target: asyncio.Future[Tensor]
    request: list["_Sentence"]


class Batcher:
    """Lets a model translate for many requests at once. All that it remembers belongs to the event loop's thread.

    Args:
        model: what translates.
        batching: how sentences come together.
        on_batch: told of each batch how many sentences it had and how many seconds the model took.
    """

    def __init__(
        self, model: Model, batching: Batching, on_batch: Callable[[int, float], None] = lambda *_: None
    ):
        self.model, self.batching, self.on_batch = model, batching, on_batch
        self._requests: list[list[_Sentence]] = []
        self._encoding = 0
        self._arrived = asyncio.Event()
        self._text_thread = ThreadPoolExecutor(1, f"{THREADS}-text")
        self._model_thread = ThreadPoolExecutor(1, f"{THREADS}-model")

    @property
    def waiting(self) -> int:
        """Sentences taken on that the model has not begun."""
        return self._encoding + self._in_line()

    def _in_line(self) -> int:
        return sum(map(len, self._requests))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Translate what is asked for meanwhile."""
        worker = asyncio.create_task(self._run())
        try:
            yield
        finally:
            worker.cancel()
            for thread in (self._text_thread, self._model_thread):
                thread.shutdown(wait=False, cancel_futures=True)

    async def translate(self, texts: Sequence[str]) -> Translated:
        """Translate a request's sentences; blank ones stay empty. Cancelled, it takes back those that are not begun.

        Raises:
            QueueFull: too many are waiting.
            TooLong: one has too many tokens.
            ModelFailed: the model raised an error.
        """
        if self.waiting + len(texts) > self.batching.queue:
            raise QueueFull
        self._encoding += len(texts)
        try:
            sources = await self._by_texts(self._encode, texts)
        finally:
            self._encoding -= len(texts)
        for place, source in enumerate(sources, 1):
            if len(source) > self.batching.longest:
                raise TooLong(place, len(source))
        targets = await self._in_batches([source for source in sources if len(source) > 1])
        translations = iter(await self._by_texts(self.model.decode, targets))
        return Translated(
            [next(translations) if len(source) > 1 else "" for source in sources],
            sum(map(len, sources)),
            sum(map(len, targets)),
        )

    def _encode(self, text: str) -> Tensor:
        """No token at all for a blank text, of which a model might make something."""
        return self.model.encode(text) if text.strip() else torch.empty(0, dtype=torch.long)

    async def _by_texts(self, function: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
        """Call it for each in the text thread, some at a time: a request of many leaves others in between."""
        made: list[Made] = []
        for start in range(0, len(items), TEXTS):
            made += await _call(
                self._text_thread, lambda part: list(map(function, part)), items[start : start + TEXTS]
            )
        return made

    async def _in_batches(self, sources: Sequence[Tensor]) -> list[Tensor]:
        """Stand in line with others' sentences until all are translated."""
        loop = asyncio.get_running_loop()
        request: list[_Sentence] = []
        request += [_Sentence(source, loop.time(), loop.create_future(), request) for source in sources]
        self._requests.append(request)
        self._arrived.set()
        try:
            return await asyncio.gather(*(sentence.target for sentence in request))
        finally:  # also when it was abandoned or one of them failed: nobody wants the others
            request.clear()

    async def _run(self) -> None:
        while True:
            await self._company()
            if batch := self._next_batch():
                await self._translate(batch)

    async def _company(self) -> None:
        """Return when there is a full batch, or the sentence that came first has waited long enough."""
        while self._in_line() < self.batching.sentences:
            first = min((request[0].arrived for request in self._requests if request), default=None)
            self._arrived.clear()
            try:
                async with asyncio.timeout_at(None if first is None else first + self.batching.wait):
                    await self._arrived.wait()
            except TimeoutError:
                return

    def _next_batch(self) -> list[_Sentence]:
        """The sentence whose turn it is, and of those next in turn the ones most like it in length.

        Requests take turns, a sentence each, and the next batch begins with the next request. So a request is begun after no
        more batches than there are requests before it, and goes on in every round, however many sentences the others have.
        """
        self._requests = [request for request in self._requests if request]
        in_turn = (
            sentence for row in zip_longest(*self._requests) for sentence in row if sentence is not None
        )
        near = list(islice(in_turn, WINDOW * self.batching.sentences))
        if not near:
            return []
        wanted, longest = len(near[0].source), 0
        batch: list[_Sentence] = []
        for sentence in sorted(near, key=lambda sentence: abs(len(sentence.source) - wanted))[
            : self.batching.sentences
        ]:
            longest = max(longest, len(sentence.source))
            if batch and longest * (len(batch) + 1) > self.batching.tokens:
                break
            batch.append(sentence)
        taken = set(batch)
        for request in self._requests:
            request[:] = [sentence for sentence in request if sentence not in taken]
        self._requests = self._requests[1:] + self._requests[:1]
        return batch

    async def _translate(self, batch: Sequence[_Sentence]) -> None:
        """Give every sentence its translation. Where the model fails, no request fails by another's sentences."""
        try:
            targets, seconds = await _call(
                self._model_thread, self._timed, [sentence.source for sentence in batch]
            )
        except ModelFailed as error:
            requests = {id(sentence.request): sentence.request for sentence in batch}.values()
            if len(requests) > 1:
                logger.warning("a batch of %d requests failed: each is tried by itself", len(requests))
                for request in requests:
                    await self._translate([sentence for sentence in batch if sentence.request is request])
                return
            for sentence in batch:
                if not sentence.target.done():
                    sentence.target.set_exception(error)
            return
        self.on_batch(len(batch), seconds)
        for sentence, target in zip(batch, targets, strict=True):
            if not sentence.target.done():
                sentence.target.set_result(target)

    def _timed(self, sources: list[Tensor]) -> tuple[list[Tensor], float]:
        began = time.perf_counter()
        targets = self.model.translate(sources)
        if len(targets) != len(sources):
            raise ValueError(f"the model made {len(targets)} translations of {len(sources)} sentences")
        return targets, time.perf_counter() - began


async def _call(thread: ThreadPoolExecutor, function: Callable[[Item], Made], item: Item) -> Made:
    """Call it in a thread.

    Raises:
        ModelFailed: it raised an error. The error itself might be one that ends an event loop, as ``SystemExit`` does.
    """
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, function, item)
    except Exception as error:
        raise ModelFailed from error
