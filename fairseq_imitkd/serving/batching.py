"""Dynamic batching: sentences of many requests are translated together."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import TypeVar

import torch
from torch import Tensor

from fairseq_imitkd.serving.model import ServedModel

WINDOW = 4  # a batch is chosen among this many batches' worth of sentences, by length
# Texts that are encoded or decoded before another request gets its turn, and their characters or tokens.
TEXTS, LENGTH = 32, 4096
THREADS = "imitkd-serve"

logger = logging.getLogger(__name__)
Item = TypeVar("Item", bound=Sized)
Result = TypeVar("Result")


@dataclass(frozen=True)
class BatchingSettings:
    """The limits of a batch and of the queue.

    Attributes:
        sentences: maximum number of sentences in a batch.
        tokens: maximum number of tokens in a batch, padding included; a longer sentence is a batch of its
            own.
        wait: seconds that a sentence waits for others.
        queue: maximum number of waiting sentences.
        longest: maximum number of tokens in a sentence, EOS included.
    """

    sentences: int = 32
    tokens: int = 4096
    wait: float = 0.005
    queue: int = 2000
    longest: int = 1024


@dataclass(frozen=True)
class TranslatedRequest:
    """The translations of a request, in its order.

    Attributes:
        texts: the translations.
        source_tokens, target_tokens: numbers of tokens read and written, each EOS included.
    """

    texts: list[str]
    source_tokens: int
    target_tokens: int


class QueueFull(Exception):
    """The request has more sentences than the queue has room for."""


class TooLong(Exception):
    """A sentence has too many tokens.

    Attributes:
        place: the sentence's place in its request, from 1.
        tokens: how many it has.
    """

    def __init__(self, place: int, tokens: int):
        super().__init__(place, tokens)
        self.place, self.tokens = place, tokens


class ModelFailed(Exception):
    """The model raised an error, the cause of this one."""


@dataclass(eq=False)
class _Sentence:
    """A waiting sentence.

    Attributes:
        source: its tokens ``(S,)``.
        arrived: time of arrival by the event loop's clock.
        target: future of its translation.
        request: all waiting sentences of its request.
    """

    source: Tensor
    arrived: float
    target: asyncio.Future[Tensor]
    request: list["_Sentence"]


class Batcher:
    """Translates the sentences of many requests in shared batches.

    All its state belongs to the event loop's thread.

    Args:
        model: what translates.
        settings: limits of batches and queue.
        on_batch: called after each batch with its number of sentences and the model's seconds.
    """

    def __init__(
        self,
        model: ServedModel,
        settings: BatchingSettings,
        on_batch: Callable[[int, float], None] = lambda *_: None,
    ):
        self.model, self.settings, self.on_batch = model, settings, on_batch
        self._requests: list[list[_Sentence]] = []
        self._encoding = 0
        self._arrived = asyncio.Event()
        self._text_thread = ThreadPoolExecutor(1, f"{THREADS}-text")
        self._model_thread = ThreadPoolExecutor(1, f"{THREADS}-model")

    @property
    def waiting(self) -> int:
        """Number of accepted sentences that the model has not started."""
        return self._encoding + self._queued()

    def _queued(self) -> int:
        return sum(map(len, self._requests))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Translate requests within this context."""
        worker = asyncio.create_task(self._run())
        try:
            yield
        finally:
            worker.cancel()
            for thread in (self._text_thread, self._model_thread):
                thread.shutdown(wait=False, cancel_futures=True)

    async def translate(self, texts: Sequence[str]) -> TranslatedRequest:
        """Translate the sentences of a request; blank ones stay empty.

        If the call is cancelled, its sentences leave the queue, except for those that the model has started.

        Raises:
            QueueFull: too many sentences are waiting.
            TooLong: a sentence has too many tokens.
            ModelFailed: the model raised an error.
        """
        if self.waiting + len(texts) > self.settings.queue:
            raise QueueFull
        self._encoding += len(texts)
        try:
            sources = await self._in_text_thread(self._encode, texts)
        finally:
            self._encoding -= len(texts)
        for place, source in enumerate(sources, 1):
            if len(source) > self.settings.longest:
                raise TooLong(place, len(source))
        targets = await self._in_batches([source for source in sources if len(source) > 1])
        translations = iter(await self._in_text_thread(self.model.decode, targets))
        return TranslatedRequest(
            [next(translations) if len(source) > 1 else "" for source in sources],
            source_tokens=sum(map(len, sources)),
            target_tokens=sum(map(len, targets)),
        )

    def _encode(self, text: str) -> Tensor:
        """Encode a text; a blank one has no tokens, because a model might translate its EOS into words."""
        return self.model.encode(text) if text.strip() else torch.empty(0, dtype=torch.long)

    async def _in_text_thread(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> list[Result]:
        """Call a function for each item, a few at a time.

        A request with many or long items does not block others, and ends after a part if it is cancelled.
        """
        results: list[Result] = []
        for part in _parts(items):
            results += await _call(self._text_thread, lambda part: list(map(function, part)), part)
        return results

    async def _in_batches(self, sources: Sequence[Tensor]) -> list[Tensor]:
        """Queue a request's sentences until all are translated."""
        loop = asyncio.get_running_loop()
        request: list[_Sentence] = []
        request += [_Sentence(source, loop.time(), loop.create_future(), request) for source in sources]
        self._requests.append(request)
        self._arrived.set()
        try:
            return await asyncio.gather(*(sentence.target for sentence in request))
        finally:  # if the request was cancelled or one of its sentences failed, the others are not needed
            request.clear()

    async def _run(self) -> None:
        while True:
            await self._wait_for_batch()
            if batch := self._next_batch():
                await self._translate(batch)

    async def _wait_for_batch(self) -> None:
        """Return when a batch is full or the first sentence has waited long enough."""
        while self._queued() < self.settings.sentences:
            first = min((request[0].arrived for request in self._requests if request), default=None)
            self._arrived.clear()
            try:
                async with asyncio.timeout_at(None if first is None else first + self.settings.wait):
                    await self._arrived.wait()
            except TimeoutError:
                return

    def _next_batch(self) -> list[_Sentence]:
        """Take the sentence whose turn it is, and the sentences closest in length among the next in turn.

        Requests take turns, one sentence each, and the next batch starts with the next request. So a request
        starts after at most as many batches as there are requests before it, and advances in every round,
        however many sentences the others have.
        """
        self._requests = [request for request in self._requests if request]
        in_turn = (
            sentence for row in zip_longest(*self._requests) for sentence in row if sentence is not None
        )
        near = list(islice(in_turn, WINDOW * self.settings.sentences))
        if not near:
            return []
        wanted, longest = len(near[0].source), 0
        near.sort(key=lambda sentence: abs(len(sentence.source) - wanted))
        batch: list[_Sentence] = []
        for sentence in near[: self.settings.sentences]:
            longest = max(longest, len(sentence.source))
            if batch and longest * (len(batch) + 1) > self.settings.tokens:
                break
            batch.append(sentence)
        taken = set(batch)
        for request in self._requests:
            request[:] = [sentence for sentence in request if sentence not in taken]
        self._requests = self._requests[1:] + self._requests[:1]
        return batch

    async def _translate(self, batch: Sequence[_Sentence]) -> None:
        """Translate a batch. If the model fails, try each request alone.

        So no request fails because of another.
        """
        try:
            targets, seconds = await _call(
                self._model_thread, self._timed, [sentence.source for sentence in batch]
            )
        except ModelFailed as error:
            requests = {id(sentence.request): sentence.request for sentence in batch}.values()
            if len(requests) > 1:
                logger.warning("a batch of %d requests failed; each is tried alone", len(requests))
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
        start = time.perf_counter()
        targets = self.model.translate(sources)
        if len(targets) != len(sources):
            raise ValueError(f"the model made {len(targets)} translations of {len(sources)} sentences")
        return targets, time.perf_counter() - start


def _parts(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Yield items in parts of limited length, in their order; a longer item is a part of its own."""
    part: list[Item] = []
    length = 0
    for item in items:
        if part and (len(part) == TEXTS or length + len(item) > LENGTH):
            yield part
            part, length = [], 0
        part.append(item)
        length += len(item)
    if part:
        yield part


async def _call(thread: ThreadPoolExecutor, function: Callable[[Item], Result], item: Item) -> Result:
    """Call a function in a thread.

    Raises:
        ModelFailed: the function raised an error. The error itself might end the event loop, as a
            ``SystemExit`` does, so it becomes the cause.
    """
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, function, item)
    except Exception as error:
        raise ModelFailed from error
