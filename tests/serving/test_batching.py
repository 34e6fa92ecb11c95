"""Shared batches: which sentences they hold, which requests wait or fail, and what is cancelled."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import torch

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.serving.batching import (
    LENGTH,
    TEXTS,
    Batcher,
    BatchingSettings,
    ModelFailed,
    QueueFull,
    TooLong,
)
from tests.helpers.served_model import FakeModel, in_loop, until


@asynccontextmanager
async def running(model: FakeModel, on_batch=lambda *_: None, **batching) -> AsyncIterator[Batcher]:
    """Run a batcher."""
    batcher = Batcher(model, BatchingSettings(**batching), on_batch)
    async with batcher.running():
        yield batcher
    model.may_go.set()


@asynccontextmanager
async def held(batcher: Batcher, model: FakeModel) -> AsyncIterator[None]:
    """Keep the model busy with the sentence "first", so that other requests wait, then let it go on."""
    model.may_go.clear()
    first = asyncio.create_task(batcher.translate(["first"]))
    await until(lambda: model.batches == [["first"]])
    yield
    model.may_go.set()
    assert (await first).texts == ["FIRST"]


async def waiting(batcher: Batcher, *requests: list[str]) -> list[asyncio.Task]:
    """Queue requests in this order."""
    tasks = []
    for request in requests:
        wanted = batcher.waiting + len(request)
        tasks.append(asyncio.create_task(batcher.translate(request)))
        await until(lambda wanted=wanted: batcher.waiting == wanted and not batcher._encoding)
    return tasks


@in_loop
async def test_requests_share_a_batch_and_each_gets_its_own() -> None:
    """Each request's translations are in its own order."""
    model = FakeModel()
    async with running(model) as batcher:
        async with held(batcher, model):
            tasks = await waiting(batcher, ["b", "aaaa", "c"], ["dd"], ["aaa", "e"])
        results = [await task for task in tasks]
    assert [result.texts for result in results] == [["B", "AAAA", "C"], ["DD"], ["AAA", "E"]]
    assert [(result.source_tokens, result.target_tokens) for result in results] == [(9, 9), (3, 3), (6, 6)]
    assert [sorted(batch) for batch in model.batches[1:]] == [["aaa", "aaaa", "b", "c", "dd", "e"]]


@in_loop
async def test_batches_have_at_most_so_many_sentences() -> None:
    """And no fewer while enough are waiting."""
    model = FakeModel()
    async with running(model, sentences=3) as batcher:
        assert (await batcher.translate(list("abcdefg"))).texts == list("ABCDEFG")
    assert [len(batch) for batch in model.batches] == [3, 3, 1]


@in_loop
async def test_batches_have_at_most_so_many_tokens_with_padding() -> None:
    """A batch is as wide as its longest sentence; one above the limit is alone."""
    model = FakeModel()
    texts = [
        "aaaa",
        "b",
        "c",
        "d",
        "eeee",
        "ffff",
        "g" * 30,
        "hhhh",
    ]  # five tokens have four characters and an EOS
    async with running(model, tokens=15) as batcher:
        assert (await batcher.translate(texts)).texts == [text.upper() for text in texts]
    assert model.batches == [["aaaa", "eeee", "ffff"], ["b", "c", "d"], ["g" * 30], ["hhhh"]]


@in_loop
async def test_sentences_of_like_length_come_together() -> None:
    """Whichever request they belong to."""
    model = FakeModel()
    async with running(model, sentences=3) as batcher:
        async with held(batcher, model):
            tasks = await waiting(batcher, ["a" * 20, "b", "c" * 19], ["d", "e" * 21], ["ff"])
        await asyncio.gather(*tasks)
    assert [sorted(map(len, batch)) for batch in model.batches[1:]] == [[19, 20, 21], [1, 1, 2]]


@in_loop
async def test_a_full_batch_does_not_wait_and_others_wait_for_company() -> None:
    """Two sentences fill a batch here; one alone would wait an hour."""
    model = FakeModel()
    async with running(model, sentences=2, wait=3600.0) as batcher:
        [first] = await waiting(batcher, ["a"])
        await asyncio.sleep(0.1)
        assert not model.batches
        assert (await batcher.translate(["b"])).texts == ["B"]
        assert (await first).texts == ["A"]
    assert model.batches == [["a", "b"]]


@in_loop
async def test_one_sentence_does_not_wait_for_ever() -> None:
    """It is translated after the configured wait."""
    model = FakeModel()
    async with running(model, wait=0.01) as batcher:
        assert (await batcher.translate(["a"])).texts == ["A"]


@in_loop
@pytest.mark.parametrize(
    ("small", "batch"), [("b", 1), ("b" * 50, 2)], ids=["like the others", "of another length"]
)
async def test_a_request_of_many_sentences_does_not_starve_a_small_one(small: str, batch: int) -> None:
    """A small request behind a large one is in the next batch or the one after it."""
    model = FakeModel()
    async with running(model, sentences=4) as batcher:
        async with held(batcher, model):
            tasks = await waiting(batcher, ["a" * (1 + i % 5) for i in range(100)], [small])
        await asyncio.gather(*tasks)
    assert [small in batch for batch in model.batches].index(True) == batch
    assert sum(map(len, model.batches)) == 102


@in_loop
async def test_small_requests_do_not_starve_one_of_many_sentences() -> None:
    """More of them than fit in a batch always wait, and none is close to it in length."""
    model = FakeModel()
    async with running(model, sentences=2) as batcher:
        large = asyncio.create_task(batcher.translate(["a" * 40] * 8))

        async def small() -> None:
            for _ in range(50):
                await batcher.translate(["b"])

        others = [asyncio.create_task(small()) for _ in range(6)]
        assert (await large).texts == ["A" * 40] * 8
        assert not any(other.done() for other in others)
        await asyncio.gather(*others)


@in_loop
async def test_an_abandoned_request_is_left_out_if_not_begun() -> None:
    """The other requests in the queue are translated."""
    model = FakeModel()
    async with running(model) as batcher:
        async with held(batcher, model):
            gone, stays = await waiting(batcher, ["gone", "gone too"], ["stays"])
            assert batcher.waiting == 3
            gone.cancel()
            await until(gone.done)
            assert batcher.waiting == 1
        assert (await stays).texts == ["STAYS"]
        assert batcher.waiting == 0
    assert model.batches == [["first"], ["stays"]]


@in_loop
@pytest.mark.parametrize("text", ["gone", "fail"])
async def test_a_request_abandoned_in_its_batch_harms_nobody(text: str) -> None:
    """Its result or failure is dropped, and the next request gets its own."""
    model = FakeModel()
    async with running(model) as batcher:
        model.may_go.clear()
        gone = asyncio.create_task(batcher.translate([text]))
        await until(lambda: model.batches == [[text]])
        gone.cancel()
        await until(gone.done)
        model.may_go.set()
        assert (await batcher.translate(["next"])).texts == ["NEXT"]


@in_loop
async def test_more_sentences_than_may_wait_are_refused() -> None:
    """They are refused at once, and accepted as soon as there is room."""
    model = FakeModel()
    async with running(model, queue=3) as batcher:
        async with held(batcher, model):
            [fits] = await waiting(batcher, ["a", "b"])
            with pytest.raises(QueueFull):
                await batcher.translate(["c", "d"])
            assert batcher.waiting == 2
            [too] = await waiting(batcher, ["e"])
        await asyncio.gather(fits, too)
        assert (await batcher.translate(["c", "d", "f"])).texts == ["C", "D", "F"]


@in_loop
async def test_sentences_that_are_being_encoded_wait_too() -> None:
    """Otherwise any number of requests could be in memory."""
    model = FakeModel()
    async with running(model, queue=3) as batcher:
        tasks = [asyncio.create_task(batcher.translate(["a", "b"])) for _ in range(2)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, QueueFull) for result in results] == [False, True]


@in_loop
async def test_a_sentence_of_too_many_tokens_is_named() -> None:
    """By its place in the request; a sentence at the limit is translated."""
    model = FakeModel()
    async with running(model, longest=5) as batcher:
        assert (await batcher.translate(["aaaa"])).texts == ["AAAA"]
        with pytest.raises(TooLong) as refused:
            await batcher.translate(["a", "aaaa", "bbbbb", "cccccccc"])
        assert (refused.value.place, refused.value.tokens) == (3, 6)
        assert batcher.waiting == 0
    assert model.batches == [["aaaa"]]


@in_loop
async def test_a_request_that_fails_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    """The others in its batch succeed, and the model is used again."""
    model = FakeModel()
    async with running(model) as batcher:
        async with held(batcher, model):
            tasks = await waiting(batcher, ["a", "b"], ["fail", "c"], ["d"])
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert (await batcher.translate(["after"])).texts == ["AFTER"]
    assert [results[0].texts, results[2].texts] == [["A", "B"], ["D"]]
    assert isinstance(results[1], ModelFailed)
    assert str(results[1].__cause__) == "secret of the model"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["a batch of 3 requests failed; each is tried alone"]


@in_loop
async def test_an_error_that_would_end_the_process_ends_a_request() -> None:
    """:class:`UsageError` is a ``SystemExit`` too, which would end the event loop."""
    model = FakeModel()
    async with running(model) as batcher:
        with pytest.raises(ModelFailed) as failed:
            await batcher.translate(["a", "unreadable"])
        assert isinstance(failed.value.__cause__, UsageError)
        assert batcher.waiting == 0
        assert (await batcher.translate(["after"])).texts == ["AFTER"]


@in_loop
async def test_a_model_that_loses_a_translation_fails() -> None:
    """No sentence gets the translation of another."""
    model = FakeModel()
    model.translate = lambda sources: [torch.tensor([65, 2])]  # type: ignore[method-assign]
    async with running(model) as batcher:
        with pytest.raises(ModelFailed) as failed:
            await batcher.translate(["a", "b"])
    assert str(failed.value.__cause__) == "the model made 1 translations of 2 sentences"


@in_loop
async def test_blank_sentences_stay_empty_and_are_not_translated() -> None:
    """Neither are sentences that the subword model reduces to an EOS."""
    model = FakeModel()
    async with running(model) as batcher:
        assert (await batcher.translate(["", "a", " \t\u2028", "\u200b", "b"])).texts == [
            "",
            "A",
            "",
            "",
            "B",
        ]
        assert (await batcher.translate([" "])).texts == [""]
    assert model.batches == [["a", "b"]]


@in_loop
async def test_text_has_one_thread_and_the_model_another() -> None:
    """Neither is the event loop's thread."""
    model = FakeModel()
    async with running(model) as batcher:
        await batcher.translate([str(number) for number in range(3 * TEXTS)])
        await batcher.translate(["again"])
    names = dict(model.threads)
    assert len(model.threads) == len(names) == 3
    assert names["encode"] == names["decode"]
    assert len({names["encode"], names["translate"], "MainThread"}) == 3


@in_loop
async def test_a_request_of_many_sentences_leaves_the_text_thread_to_others() -> None:
    """They get their turn before it ends."""
    model, seen, encode = FakeModel(), [], FakeModel.encode
    model.encode = lambda text: seen.append(text) or encode(model, text)  # type: ignore[method-assign]
    async with running(model) as batcher:
        await asyncio.gather(batcher.translate(["a"] * 5 * TEXTS), batcher.translate(["b"]))
    assert seen.index("b") <= 2 * TEXTS


@in_loop
async def test_long_texts_leave_the_text_thread_to_others() -> None:
    """They are encoded a few at a time, and not at all once their request is given up."""
    model, seen = FakeModel(), []

    def encode(text: str) -> torch.Tensor:
        seen.append(text[0])
        assert model.may_go.wait(timeout=30)
        return FakeModel.encode(model, text)

    model.encode = encode  # type: ignore[method-assign]
    async with running(model, longest=10**6) as batcher:
        long = asyncio.create_task(batcher.translate(["a" * LENGTH] * 3 + ["c" * (LENGTH // 2)] * 5))
        await asyncio.gather(long, batcher.translate(["b"]))
        assert "".join(seen) == "abaaccccc"
        model.may_go.clear()
        given_up = asyncio.create_task(batcher.translate(["d" * LENGTH] * 20))
        await until(lambda: "d" in seen)
        given_up.cancel()
        model.may_go.set()
        await batcher.translate(["e"])
    assert seen[9:] == ["d", "e"]


@in_loop
async def test_every_batch_is_reported() -> None:
    """With its size and the time that the model took."""
    reported = []
    async with running(FakeModel(), lambda *batch: reported.append(batch), sentences=2) as batcher:
        await batcher.translate(["a", "b", "slow 0.05"])
    assert [sentences for sentences, _ in reported] == [2, 1]
    assert reported[1][1] >= 0.05
