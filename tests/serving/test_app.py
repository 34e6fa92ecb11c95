"""The application in this process: what it answers, what it refuses and how, and what it counts."""

import argparse
import asyncio
import errno
import json
import logging
import math
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from fairseq_imitkd import __version__
from fairseq_imitkd.cli import serve
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.serving import app as application
from fairseq_imitkd.serving.batching import BatchingSettings
from fairseq_imitkd.serving.requests import RequestLimits, as_lines
from tests.helpers.served_model import FakeModel, client, in_loop, until

JSON, TEXT = {"Content-Type": "application/json"}, {"Content-Type": "text/plain; charset=utf-8"}
SHAPE = 'the JSON must be an object with "text" and nothing else: {"text": "…"} or {"text": ["…", "…"]}'
TYPES = "Content-Type must be application/json or text/plain; charset=utf-8, but is"
LIMITS = RequestLimits(request_bytes=2000, sentences=5, tokens=20, seconds=30.0)


async def ask(
    body: Any, headers: dict[str, str] = JSON, limits: RequestLimits = LIMITS, **others: Any
) -> httpx.Response:
    """Return the answer of a new server with a new model to one translation request."""
    batching = BatchingSettings(longest=limits.tokens, **others)
    async with client(FakeModel(), limits, batching) as asked:
        content = body if isinstance(body, bytes | str) or hasattr(body, "__aiter__") else json.dumps(body)
        return await asked.post("/translate", content=content, headers=headers)


def refusal(answer: httpx.Response) -> tuple[int, str]:
    """Return the status and the message of an error, which is one line in JSON."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"error"}
    assert "\n" not in answer.json()["error"]
    return answer.status_code, answer.json()["error"]


@in_loop
async def test_json() -> None:
    """One sentence or several, in order; blank ones stay empty. Token counts include each EOS."""
    answer = await ask({"text": "hallo"})
    assert answer.status_code == 200
    assert answer.json() == {"translations": ["HALLO"], "source_tokens": 6, "target_tokens": 6}
    answer = await ask({"text": ["zwei", "", "drü\tü", " "]})
    assert answer.json() == {
        "translations": ["ZWEI", "", "DRÜ\tÜ", ""],
        "source_tokens": 11,
        "target_tokens": 11,
    }
    assert (await ask(b'\xef\xbb\xbf{"text": "a"}')).json()["translations"] == [
        "A"
    ]  # a byte order mark is none of it


@in_loop
@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        ("eins\nzwei", "EINS\nZWEI\n"),
        ("eins\n", "EINS\n"),
        ("eins\r\nzwei\r\n", "EINS\nZWEI\n"),
        ("\neins\n\n", "\nEINS\n\n"),
        ("a\u2028b\x85c\x0bd\x0ce\x1cf\rg", "A\u2028B\x85C\x0bD\x0cE\x1cF G\n"),
        ("\ufeffa", "A\n"),
    ],
    ids=["two", "ended", "CRLF", "empty", "other separators", "byte order mark"],
)
async def test_plain_text(sent: str, answered: str) -> None:
    """The answer has one line per line of the request; only a line feed ends a line."""
    answer = await ask(sent.encode(), TEXT)
    assert (answer.status_code, answer.content.decode()) == (200, answered)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_a_line_break_in_a_translation_makes_no_line() -> None:
    """A byte-level model may write a line break."""
    assert as_lines(["a\nb", "", "c\r\n"]) == "a b\n\nc \n"


@in_loop
@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (b"", JSON, 400, "the body is not JSON: line 1, column 1"),
        (b'{"text": "a"', JSON, 400, "the body is not JSON: line 1, column 13"),
        (b'{"text": 1e999}', JSON, 422, '"text" must be a string or a list of strings'),
        (b'{"text": "\xff"}', JSON, 400, "the body must be UTF-8, but byte 11 is not"),
        (b"a\xc3", TEXT, 400, "the body must be UTF-8, but byte 2 is not"),
        ([], JSON, 422, SHAPE),
        ({}, JSON, 422, SHAPE),
        ({"text": "a", "beam": 1}, JSON, 422, SHAPE),
        ({"text": None}, JSON, 422, '"text" must be a string or a list of strings'),
        ({"text": {"a": "b"}}, JSON, 422, '"text" must be a string or a list of strings'),
        ({"text": ["a", 1]}, JSON, 422, '"text" must be a string or a list of strings'),
        ({"text": ["a", ["b"]]}, JSON, 422, '"text" must be a string or a list of strings'),
        (
            {"text": ["a", "b\nc"]},
            JSON,
            422,
            "sentence 2 contains a line break; send each line as a string of its own",
        ),
        ({"text": "a\0"}, JSON, 422, "sentence 1 contains a control character, U+0000; leave it out"),
        (b"a\nb\x1b", TEXT, 422, "sentence 2 contains a control character, U+001B; leave it out"),
        (
            b'{"text": "\\ud800"}',
            JSON,
            422,
            "sentence 1 contains half of a surrogate pair, U+D800; leave it out",
        ),
        ({"text": ""}, JSON, 400, "there is nothing to translate; send a sentence that is not empty"),
        ({"text": []}, JSON, 400, "there is nothing to translate; send a sentence that is not empty"),
        (
            {"text": [" ", "\t"]},
            JSON,
            400,
            "there is nothing to translate; send a sentence that is not empty",
        ),
        (b"", TEXT, 400, "there is nothing to translate; send a sentence that is not empty"),
        (b"\n \r\n\n", TEXT, 400, "there is nothing to translate; send a sentence that is not empty"),
        (
            {"text": ["a"] * 6},
            JSON,
            413,
            "a request may have 5 sentences, but this one has 6; send fewer at once",
        ),
        (b"a\n" * 6, TEXT, 413, "a request may have 5 sentences, but this one has 6; send fewer at once"),
        ({"text": ["a", "b" * 20]}, JSON, 413, "sentence 2 has 21 tokens, but may have 20; split it"),
        (b"\n\na\n" + b"b" * 25, TEXT, 413, "sentence 4 has 26 tokens, but may have 20; split it"),
        (
            {"text": "a" * 321},
            JSON,
            413,
            "sentence 1 has 321 characters, but may have 320, 16 for each of 20 tokens; split it",
        ),
        (b"a" * 2001, TEXT, 413, "a request may have 2000 bytes; send fewer sentences at once"),
        ({"text": "a"}, {"Content-Type": "text/html"}, 415, f"{TYPES} 'text/html'"),
        ({"text": "a"}, {}, 415, f"{TYPES} ''"),
        (
            b"a",
            {"Content-Type": "text/plain; charset=latin-1"},
            415,
            f"{TYPES} 'text/plain; charset=latin-1'",
        ),
        (
            b"a",
            {**TEXT, "Content-Encoding": "gzip"},
            415,
            "Content-Encoding must be identity; send the body as it is",
        ),
    ],
)
async def test_what_is_refused(body: Any, headers: dict[str, str], status: int, message: str) -> None:
    """Errors are in JSON, whatever the request was in, and the model is not called."""
    assert refusal(await ask(body, headers)) == (status, message)


@in_loop
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[" * 900_000, 400),
        (b'{"text": ' * 90_000, 400),
        (b'{"text": ' + b"9" * 900_000 + b"}", 400),
        (b"{}" * 400_000, 400),
    ],
    ids=["lists", "objects", "digits", "values"],
)
async def test_malicious_json(body: bytes, status: int) -> None:
    """Deep nesting and endless numbers meet the JSON parser's own limits."""
    code, message = refusal(await ask(body, limits=RequestLimits()))
    assert (code, message.partition(":")[0]) == (status, "the body is not JSON")


@in_loop
@pytest.mark.parametrize(
    "kind", ['application/JSON;charset="UTF-8"', "text/plain", "Text/Plain ; charset = us-ascii"]
)
async def test_other_spellings_of_the_content_type(kind: str) -> None:
    """They have the same meaning."""
    body = b'{"text": "a"}' if "JSON" in kind else b"a"
    assert (await ask(body, {"Content-Type": kind})).status_code == 200


@in_loop
async def test_a_request_that_is_just_as_large_as_it_may_be() -> None:
    """At the limits of bytes, sentences and tokens, it is accepted."""
    answer = await ask(
        b"\n".join([b"a" * 19] * 5), TEXT, RequestLimits(request_bytes=99, sentences=5, tokens=20)
    )
    assert answer.content == b"\n".join([b"A" * 19] * 5) + b"\n"


@in_loop
async def test_a_word_that_takes_too_long_to_split() -> None:
    """Only where the model's subwords need the limit; Chinese or Thai has long runs without a space."""
    texts = ["a" * 8, "ab \u3000" + "b" * 7, "c" * 9]
    answer = await ask({"text": texts}, limits=RequestLimits(tokens=20, word=8))
    assert refusal(answer) == (
        413,
        "sentence 3 has 9 characters without a space, but may have 8; split it",
    )
    assert (await ask({"text": texts[:2]}, limits=RequestLimits(tokens=20, word=8))).status_code == 200
    assert (await ask({"text": texts}, limits=RequestLimits(tokens=20))).status_code == 200


@in_loop
async def test_a_body_of_unknown_length_is_counted_as_it_comes() -> None:
    """It is not read to its end, which might never come."""
    sent = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 1_000_000:
            sent += 500
            yield b"a" * 500

    answer = await ask(parts(), TEXT)
    assert refusal(answer) == (413, "a request may have 2000 bytes; send fewer sentences at once")
    assert "content-length" not in answer.request.headers
    assert sent <= 3000


@in_loop
async def test_fifty_clients_at_once() -> None:
    """Each gets its own answer, none fails, and their sentences share batches."""
    model = FakeModel(seconds=0.01)
    async with client(model) as asked:

        async def one(number: int) -> None:
            texts = [f"client {number} sentence {i}" for i in range(1 + number % 4)]
            answer = await asked.post("/translate", json={"text": texts})
            assert (answer.status_code, answer.json()["translations"]) == (
                200,
                [text.upper() for text in texts],
            )

        await asyncio.gather(*map(one, range(50)))
    sentences = sum(map(len, model.batches))
    assert sentences == sum(1 + number % 4 for number in range(50))
    assert len(model.batches) <= sentences / 4
    assert max(map(len, model.batches)) <= 32


@in_loop
async def test_too_many_sentences_waiting() -> None:
    """The answer is 503 with Retry-After; the waiting sentences are translated."""
    model = FakeModel()
    async with client(model, LIMITS, BatchingSettings(queue=5)) as asked:
        model.may_go.clear()
        tasks = [asyncio.create_task(asked.post("/translate", json={"text": ["a"]}))]
        await until(lambda: model.batches)
        tasks.append(asyncio.create_task(asked.post("/translate", json={"text": ["b"] * 4})))
        while (await asked.get("/health")).json()["waiting"] != 4:
            await asyncio.sleep(0.001)
        refused = await asked.post("/translate", json={"text": ["c"] * 2})
        assert refusal(refused) == (503, "too many sentences are waiting; try again later")
        assert refused.headers["retry-after"] == "1"
        model.may_go.set()
        assert [(await task).status_code for task in tasks] == [200, 200]


@in_loop
async def test_a_translation_that_takes_too_long_is_given_up() -> None:
    """The answer is 504; sentences that are not started are dropped, and the server goes on."""
    model = FakeModel()
    limits = RequestLimits(seconds=0.2)
    async with client(model, limits, BatchingSettings(sentences=1)) as asked:
        model.may_go.clear()
        answer = await asked.post("/translate", json={"text": ["a", "b"]})
        assert refusal(answer) == (504, "not translated within 0.2 seconds; send fewer sentences at once")
        model.may_go.set()
        assert (await asked.post("/translate", json={"text": "c"})).json()["translations"] == ["C"]
    assert model.batches == [["a"], ["c"]]


def scope(app: Any) -> dict[str, Any]:
    """Return the ASGI scope of a translation request."""
    return {
        "type": "http",
        "scheme": "http",
        "method": "POST",
        "path": "/translate",
        "raw_path": b"/translate",
        "http_version": "1.1",
        "root_path": "",
        "headers": [(b"content-type", b"text/plain"), (b"host", b"127.0.0.1")],
        "query_string": b"",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
        "app": app,
    }


@in_loop
async def test_a_request_that_never_ends_is_given_up() -> None:
    """A client that sends a byte now and then gets 408."""
    app = application.application(FakeModel(), RequestLimits(seconds=0.1), BatchingSettings())
    sent = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"a", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    async with app.router.lifespan_context(app):
        await app(scope(app), receive, send)
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"]) == {"error": "the request was not complete within 0.1 seconds"}


@in_loop
@pytest.mark.parametrize("length", [b"2001", b"9" * 5000])
async def test_a_body_that_says_that_it_is_too_large_is_not_read(length: bytes) -> None:
    """None of its bytes is read."""
    app, sent = application.application(FakeModel(), LIMITS, BatchingSettings()), []
    asked = scope(app)
    asked["headers"].append((b"content-length", length))

    async def receive() -> dict[str, Any]:
        raise AssertionError("read")

    async def send(message: Any) -> None:
        sent.append(message)

    async with app.router.lifespan_context(app):
        await app(asked, receive, send)
    assert sent[0]["status"] == 413


@in_loop
@pytest.mark.parametrize("when", ["in its body", "while it waits"])
async def test_a_client_that_goes_away(when: str) -> None:
    """Its sentences are dropped if the model has not started them."""
    model = FakeModel()
    app = application.application(model, RequestLimits(), BatchingSettings(sentences=1))
    gone = asyncio.Event()
    messages = [{"type": "http.request", "body": b"a\nb\nc", "more_body": when == "in its body"}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    async with app.router.lifespan_context(app):
        model.may_go.clear()
        task = asyncio.create_task(app(scope(app), receive, send))
        if when == "while it waits":
            await until(lambda: model.batches)
        gone.set()
        await task
        model.may_go.set()
        await asyncio.sleep(0.05)
    assert model.batches == ([["a"]] if when == "while it waits" else [])


@in_loop
async def test_a_model_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """The answer is 500 without the error, which is logged with its traceback; the server goes on."""
    async with client(FakeModel()) as asked:
        for text in ("fail", "unreadable"):
            answer = await asked.post("/translate", json={"text": text})
            assert refusal(answer) == (
                500,
                "the model failed on this request; the server's log has the reason",
            )
        assert (await asked.post("/translate", json={"text": "a"})).json()["translations"] == ["A"]
    [first, second] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert first.getMessage() == "a request of 1 sentences failed"
    assert 'raise RuntimeError("secret of the model")' in caplog.text
    assert first.exc_info is not None
    assert second.exc_info is not None


@in_loop
async def test_an_error_of_the_server_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is 500 in JSON too, without details."""
    monkeypatch.setattr(application, "parse_sentences", lambda *_: 1 / 0)
    assert refusal(await ask({"text": "a"})) == (
        500,
        "the server failed on this request; its log has the reason",
    )


@in_loop
async def test_an_answer_that_is_cancelled_in_its_middle() -> None:
    """It just ends: a second answer can't follow."""
    app, sent = application.application(FakeModel(), LIMITS, BatchingSettings()), []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message["type"])
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async with app.router.lifespan_context(app):
        task = asyncio.create_task(app({**scope(app), "method": "GET", "path": "/health"}, receive, send))
        await until(lambda: len(sent) == 2)
        task.cancel()
        await task
    assert sent == ["http.response.start", "http.response.body"]


@in_loop
async def test_health() -> None:
    """It describes the model, the limits and the queue."""
    async with client(FakeModel(), LIMITS) as asked:
        answer = await asked.get("/health")
    assert answer.json() == {
        "status": "ok",
        "version": __version__,
        "model": {
            "source_lang": "de",
            "target_lang": "en",
            "engine": "ctranslate2",
            "quantization": "int8",
            "parameters": 6543210,
        },
        "limits": {"request_bytes": 2000, "sentences": 5, "tokens": 20, "seconds": 30.0, "word": None},
        "waiting": 0,
    }


async def counted(asked: httpx.AsyncClient) -> dict[str, float]:
    """Return the samples that Prometheus reads from the server's metrics."""
    answer = await asked.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    samples = [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
    return {" ".join([sample.name, *sample.labels.values()]): sample.value for sample in samples}


@in_loop
async def test_metrics() -> None:
    """Everything is counted once, and two servers in one process count separately."""
    model = FakeModel()
    async with client(model) as asked, client(FakeModel()) as other:
        await asked.post("/translate", json={"text": ["ab", "", "cde"]})
        await asked.post("/translate", json={"text": ["slow 0.06"]})
        await asked.post("/translate", json={"text": []})
        await asked.get("/nothing/of/the/kind")
        model.may_go.clear()
        begun = asyncio.create_task(asked.post("/translate", json={"text": "a"}))
        await until(lambda: model.batches[-1] == ["a"])
        waits = asyncio.create_task(asked.post("/translate", json={"text": ["b", "c"]}))
        while (found := await counted(asked))["imitkd_waiting_sentences"] != 2:
            await asyncio.sleep(0.001)
        model.may_go.set()
        await asyncio.gather(begun, waits)
        untouched = await counted(other)
    assert found["imitkd_requests_total /translate 200"] == 2
    assert found["imitkd_requests_total /translate 400"] == 1
    assert found["imitkd_requests_total other 404"] == 1
    assert found["imitkd_sentences_total"] == 4
    assert found["imitkd_source_tokens_total"] == 7 + 10
    assert found["imitkd_target_tokens_total"] == 7 + 10
    assert (found["imitkd_batch_sentences_count"], found["imitkd_batch_sentences_sum"]) == (2, 3)
    assert found["imitkd_batch_sentences_bucket 1.0"] == 1
    assert found["imitkd_translate_seconds_count"] == 2
    assert found["imitkd_translate_seconds_sum"] >= 0.06
    assert found["imitkd_request_seconds_count"] == 3
    assert found["imitkd_request_seconds_sum"] > found["imitkd_translate_seconds_sum"]
    assert untouched["imitkd_sentences_total"] == 0


@in_loop
async def test_other_paths_and_methods() -> None:
    """The error is in JSON with the allowed methods, and no path redirects to another."""
    async with client(FakeModel()) as asked:
        nothing = (404, "this path does not exist; use /translate, /health, /metrics or /")
        for path in ("/nothing", "/translate/", "/page/index.html", "/..%2fapp.py", "/static/../app.py"):
            assert refusal(await asked.get(path)) == nothing
        answer = await asked.get("/translate")
        assert refusal(answer) == (405, "this path answers POST, not GET")
        assert answer.headers["allow"] == "POST"
        assert (await asked.options("/translate")).status_code == 405
        assert (await asked.post("/health")).status_code == 405


@in_loop
async def test_the_page_and_its_files() -> None:
    """Each file has its type, and nothing in them is inline or comes from elsewhere."""
    async with client(FakeModel()) as asked:
        page = (await asked.get("/")).text
        linked = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert {"page.js", "style.css", "icon.svg", "health", "metrics"} == set(linked)
        types = {
            "/": "text/html",
            "/page.js": "text/javascript",
            "/style.css": "text/css",
            "/icon.svg": "image/svg+xml",
        }
        for path, kind in types.items():
            answer = await asked.get(path)
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith(kind)
            assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", answer.text)
    assert not re.search(r"<script(?![^>]* src=)|<style| on\w+=| style=", page)


@in_loop
async def test_headers_of_every_answer() -> None:
    """The page may load its own files only, and other sites may read nothing."""
    async with client(FakeModel(), hosts={"127.0.0.1"}) as asked:
        for path, host in (
            ("/", "127.0.0.1"),
            ("/health", "127.0.0.1"),
            ("/nothing", "127.0.0.1"),
            ("/", "evil.example"),
        ):
            headers = (await asked.get(path, headers={"Host": host, "Origin": "http://evil.example"})).headers
            policy = dict(
                part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";")
            )
            assert policy["default-src"] == "'none'"
            assert {policy[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {
                "'self'"
            }
            assert headers["x-content-type-options"] == "nosniff"
            assert not [name for name in headers if name.startswith("access-control")]


@in_loop
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8080", 200),
        ("LocalHost:1", 200),
        ("[::1]", 200),
        ("[::1]:80", 200),
        ("evil.example", 400),
        ("localhost.evil.example", 400),
        ("127.0.0.1.evil.example:80", 400),
        ("", 400),
        ("[::1]x", 400),
        ("localhost:80:80", 400),
        ("[::2]", 400),
    ],
)
async def test_a_name_that_leads_to_this_machine_is_not_enough(host: str, status: int) -> None:
    """Another site's page can point its own name here (DNS rebinding)."""
    async with client(FakeModel(), hosts={"127.0.0.1", "localhost", "[::1]"}) as asked:
        for answer in (
            await asked.get("/health", headers={"Host": host}),
            await asked.get("/", headers={"Host": host}),
        ):
            assert answer.status_code == status
    if status == 400:
        assert refusal(answer) == (400, f"Host must be 127.0.0.1 or [::1] or localhost, but is {host!r}")


@in_loop
async def test_any_name_where_none_is_asked_for() -> None:
    """The server can't know the names of an address that other machines reach."""
    async with client(FakeModel()) as asked:
        assert (await asked.get("/health", headers={"Host": "translate.example"})).status_code == 200


@in_loop
@pytest.mark.parametrize(("site", "status"), [("cross-site", 403), ("same-origin", 200), ("none", 200)])
async def test_other_sites_may_not_use_the_server(site: str, status: int) -> None:
    """Browsers send plain text to any site without asking, but say which site it comes from."""
    async with client(FakeModel()) as asked:
        answer = await asked.post("/translate", content="a", headers={**TEXT, "Sec-Fetch-Site": site})
        assert answer.status_code == status
        assert (await asked.get("/", headers={"Sec-Fetch-Site": site})).status_code == 200  # a link to it


OWN = "http://127.0.0.1:1"  # the address of the test's client


@in_loop
@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        (OWN, 200),
        (OWN.upper(), 200),
        ("https://127.0.0.1:1", 200),  # a proxy adds TLS
        ("https://translate.example", 200),  # a proxy has this name
        ("http://127.0.0.1", 403),
        ("http://127.0.0.1:2", 403),
        ("http://localhost:1", 403),
        ("http://evil.example", 403),
        ("http://127.0.0.1:1.evil.example", 403),
        ("http://evil.example#http://127.0.0.1:1", 403),
        ("http://translate.example", 403),
        ("chrome-extension://127.0.0.1:1", 403),
        ("127.0.0.1:1", 403),
        ("null", 403),
        ("", 403),
    ],
)
async def test_pages_of_other_origins_may_not_use_the_server(origin: str | None, status: int) -> None:
    """A browser sends the origin with each POST. Other clients send none."""
    model = FakeModel()
    async with client(model, origins=("https://translate.example",)) as asked:
        headers = {**TEXT, **({} if origin is None else {"Origin": origin})}
        answer = await asked.post("/translate", content="a", headers=headers)
        assert answer.status_code == status
        assert model.batches == ([["a"]] if status == 200 else [])
        assert (await asked.get("/health", headers=headers)).status_code == 200  # it changes nothing
        if status == 403:
            _, message = refusal(answer)
            assert message == (
                f"Origin must be that of this server, but is {origin!r}; pages of other sites may not use it"
            )


@in_loop
async def test_a_second_origin_and_a_marked_page() -> None:
    """A page of the public address is marked as another site's, since it is behind a proxy."""
    async with client(FakeModel(), origins=("https://translate.example",)) as asked:
        twice = [*TEXT.items(), ("Origin", OWN), ("Origin", "http://evil.example")]
        assert (await asked.post("/translate", content="a", headers=twice)).status_code == 403
        marked = {**TEXT, "Origin": "https://translate.example", "Sec-Fetch-Site": "cross-site"}
        assert (await asked.post("/translate", content="a", headers=marked)).status_code == 200


@in_loop
async def test_the_default_port_is_not_written() -> None:
    """Browsers leave it out of ``Origin`` and ``Host``; other clients may not."""
    async with client(FakeModel()) as asked:
        for origin, host in (("http://a", "a:80"), ("https://a", "a:443"), ("http://a:80", "a")):
            headers = {**TEXT, "Origin": origin, "Host": host}
            assert (await asked.post("/translate", content="a", headers=headers)).status_code == 200
        headers = {**TEXT, "Origin": "http://a", "Host": "a:443"}
        assert (await asked.post("/translate", content="a", headers=headers)).status_code == 403


@pytest.mark.parametrize("url", ["translate.example", "ftp://a", "https://", "https://a/b", "*", "null"])
def test_a_public_origin_is_a_url(url: str, capsys: pytest.CaptureFixture) -> None:
    """One line says what it must be."""
    with pytest.raises(SystemExit) as ended:
        parsed("--public-origin", url)
    assert ended.value.code == 2
    assert f"must be like https://translate.example, but is '{url}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://Translate.example:443/", "https://translate.example"),
        ("http://a:80", "http://a"),
        ("http://[::1]:080", "http://[::1]"),
        ("http://a:443", "http://a:443"),
        ("https://a:08443", "https://a:8443"),
        ("https://[::1]", "https://[::1]"),
    ],
)
def test_a_public_origin_is_written_as_browsers_do(url: str, origin: str) -> None:
    """Without the port that the scheme implies."""
    assert parsed("--public-origin", url).public_origin == [origin]


def test_the_public_name_is_one_of_the_servers(command: dict[str, Any]) -> None:
    """A proxy may pass ``Host`` on."""
    serve.main(["DIR", "--port", "0", "--public-origin", "https://translate.example:8443"])
    assert command["hosts"] == {"127.0.0.1", "localhost", "[::1]", "translate.example"}


def bind_refused(host: str, port: int) -> str:
    """Return the message of the refusal."""
    with pytest.raises(UsageError) as refused:
        serve.bind(host, port)
    return str(refused.value)


def test_a_port_in_use_is_refused() -> None:
    """By our own server or another; port 0 finds a free one."""
    with serve.bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        expected = f"--port {port} is in use on 127.0.0.1; use another, or 0 for any free port"
        assert bind_refused("127.0.0.1", port) == expected


def test_a_port_is_free_again_at_once() -> None:
    """Even while connections of the previous server are closing."""
    with serve.bind("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        with socket.create_connection(address) as connection:
            accepted, _ = listener.accept()
            accepted.close()  # first, so that its end is remembered
            connection.recv(1)
    serve.bind(*address).close()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "256.1.1.1", "a" * 300, "x..y"])
def test_a_host_that_is_not_an_address_is_refused(host: str) -> None:
    """The message quotes it."""
    assert (
        bind_refused(host, 0)
        == f"--host '{host}' is not an address; use one of this machine's, such as 127.0.0.1"
    )


def test_an_address_of_another_machine_is_refused() -> None:
    """The address is reserved for documentation."""
    expected = "--host '192.0.2.1' is not an address of this machine; use one of its own, such as 127.0.0.1"
    assert bind_refused("192.0.2.1", 0) == expected


def test_a_privileged_port_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test imitates the system's refusal, which root does not get."""

    class Unprivileged(socket.socket):
        def bind(self, address: Any) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(serve.socket, "socket", Unprivileged)
    assert bind_refused("127.0.0.1", 80) == "--port 80 is reserved for privileged users; use 1024 or more"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--port", "70000"), "--port must be a whole number from 0 to 65535, but is '70000'"),
        (("--port", "http"), "--port must be a whole number from 0 to 65535, but is 'http'"),
        (("--batch-wait", "nan"), "--batch-wait must be a number of 0 or more, but is 'nan'"),
        (("--timeout", "-1"), "--timeout must be a number of 0 or more, but is '-1'"),
        (("--timeout", "inf"), "--timeout must be a number of 0 or more, but is 'inf'"),
        (("--queue", "0"), "--queue must be a whole number from 1 to 1,000,000, but is '0'"),
        (("--beam", "1001"), "--beam must be a whole number from 1 to 1,000, but is '1001'"),
        (("--beam", "9" * 5000), f"--beam must be a whole number from 1 to 1,000, but is '{'9' * 60}'"),
        (("--threads", "1025"), "--threads must be a whole number from 1 to 1,024, but is '1025'"),
        (
            ("--max-batch-sentences", "1000001"),
            "--max-batch-sentences must be a whole number from 1 to 1,000,000, but is '1000001'",
        ),
        (
            ("--max-request-bytes", "2000000000"),
            "--max-request-bytes must be a whole number from 1 to 1,000,000,000, but is '2000000000'",
        ),
    ],
)
def test_flags_out_of_range(flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture) -> None:
    """The message is one line."""
    with pytest.raises(SystemExit) as end:
        serve.main(["DIR", *flags])
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {message}; see imitkd-serve --help\n"


def parsed(*flags: str) -> argparse.Namespace:
    """Parse the flags."""
    return serve.parser().parse_args(["DIR", *flags])


def test_no_whole_number_is_without_a_limit(capsys: pytest.CaptureFixture) -> None:
    numbers = [
        action.option_strings[0]
        for action in serve.parser()._actions
        if action.option_strings and action.metavar and isinstance(action.default, int | None)
    ]
    assert len(numbers) == 9
    for flag in numbers:
        with pytest.raises(SystemExit):
            parsed(flag, "2" * 30)
        assert f"{flag} must be a whole number from 1 to 1,0" in capsys.readouterr().err


def test_the_largest_numbers_are_taken() -> None:
    """An exported folder may have this beam, too."""
    args = parsed(
        "--beam", "1000", "--threads", "1024", "--queue", "1000000", "--max-request-bytes", "1000000000"
    )
    assert (args.beam, args.threads, args.queue, args.max_request_bytes) == (1000, 1024, 10**6, 10**9)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--timeout", "0"),
            "--timeout must be more than 0 seconds, but is 0.0: no request could be answered",
        ),
        (
            ("--batch-wait", "60000"),
            "--batch-wait 60000 milliseconds must be less than --timeout, which is 60 seconds: no sentence "
            "would be translated in time; lower it",
        ),
        (
            ("--max-sentence-tokens", "1"),
            "--max-sentence-tokens must be 2 or more, but is 1: the EOS of a sentence is one of its tokens",
        ),
        (
            ("--queue", "10"),
            "--max-request-sentences 1000 must be at most --queue, which is 10: the queue would never have "
            "room for a larger request; lower it or raise --queue",
        ),
    ],
)
def test_flags_that_cannot_work(flags: tuple[str, ...], message: str) -> None:
    """They are refused before anything is bound or read."""
    with pytest.raises(UsageError) as refused:
        serve._check(parsed(*flags))
    assert str(refused.value) == message


@pytest.mark.parametrize("name", ["starlette", "uvicorn", "prometheus_client"])
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says how to install it."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError) as refused:
        serve.main(["nowhere"])
    assert str(refused.value) == f"imitkd-serve needs {name}: pip install 'fairseq-imitkd[serve]'"


def test_the_server_has_the_flags_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a flag, the longest sentence is the model's own."""

    def settings(*given: Any, hosts: Any, origins: Any) -> SimpleNamespace:
        return SimpleNamespace(
            given=(*given[1:], hosts), origins=origins, state=SimpleNamespace(metrics=None)
        )

    monkeypatch.setattr(application, "application", settings)
    flags = (
        "--max-batch-sentences",
        "2",
        "--max-batch-tokens",
        "3",
        "--batch-wait",
        "4",
        "--queue",
        "2000",
        "--max-request-bytes",
        "6",
        "--max-request-sentences",
        "7",
        "--timeout",
        "8",
        "--shutdown-timeout",
        "9",
        "--public-origin",
        "https://Translate.example/",
    )
    config = serve._server(parsed(*flags), FakeModel(), {"localhost"}).config
    assert config.app.given == (
        RequestLimits(6, 7, 100, 8.0),
        BatchingSettings(2, 3, 0.004, 2000, 100),
        {"localhost"},
    )
    assert config.app.origins == ["https://translate.example"]
    assert config.timeout_graceful_shutdown == 9
    assert config.timeout_keep_alive == 8
    limits, batching, _ = serve._server(
        parsed("--max-sentence-tokens", "50"), FakeModel(), None
    ).config.app.given
    assert (limits.tokens, batching.longest) == (50, 50)
    assert serve._server(parsed(), FakeModel(), None).config.app.given[:2] == (
        RequestLimits(tokens=100),
        BatchingSettings(longest=100),
    )


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """``imitkd-serve`` with a fake model, and a record of its calls in place of the server."""
    record: dict[str, Any] = {}
    handlers: dict[int, Any] = {}

    class Bundle(FakeModel):
        @classmethod
        def read(cls, folder: Path, **settings: Any) -> FakeModel:
            record.update(folder=folder, threads=torch.get_num_threads(), **settings)
            if str(folder) == "slow":
                handlers[signal.SIGTERM](signal.SIGTERM, None)
            if str(folder) == "nothing":
                raise UsageError("DIR 'nothing' is not a folder")
            model = cls()
            model.manifest.update(record.get("says", {}))
            return model

    class Server:
        def run(self, sockets: list[socket.socket]) -> None:
            record["address"] = sockets[0].getsockname()
            with socket.create_connection(record["address"][:2]):
                record["listens"] = True

    def server(args: argparse.Namespace, model: FakeModel, hosts: set[str] | None) -> Server:
        record["hosts"] = hosts
        return Server()

    monkeypatch.setattr(serve, "Bundle", Bundle)
    monkeypatch.setattr(serve, "_server", server)
    monkeypatch.setattr(serve.signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(serve.logging, "basicConfig", lambda **_: None)
    return record


def test_the_command(
    command: dict[str, Any], capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    """It prints one line that says what it serves where, and listens on this machine only."""
    serve.main(["DIR", "--port", "0"])
    port = command["address"][1]
    assert capsys.readouterr().out == f"serving de-en (ctranslate2, int8) on http://127.0.0.1:{port}\n"
    assert command["address"][0] == "127.0.0.1"
    assert command["listens"]
    assert command["hosts"] == {"127.0.0.1", "localhost", "[::1]"}
    assert {name: command[name] for name in ("folder", "device", "beam")} == {
        "folder": Path("DIR"),
        "device": "cpu",
        "beam": None,
    }
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_models_settings(command: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has its threads before the model is loaded."""
    threads = []
    monkeypatch.setattr(serve.torch, "set_num_threads", threads.append)
    serve.main(["DIR", "--port", "0", "--device", "cuda", "--beam", "3", "--threads", "2"])
    assert (command["device"], command["beam"], threads) == ("cuda", 3, [2])


def test_an_address_that_others_reach(
    command: dict[str, Any], capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    """One line warns about it, and any Host is allowed."""
    serve.main(["DIR", "--host", "0.0.0.0", "--port", "0"])
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert (
        warning == "--host 0.0.0.0 accepts requests from every machine that can reach this one: "
        "put a proxy with a password and TLS in front of it"
    )
    assert command["hosts"] is None
    assert " on http://0.0.0.0:" in capsys.readouterr().out


def test_loopback_of_the_other_kind(command: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    """An IPv6 address is shown in brackets, as in URLs."""
    try:
        serve.bind("::1", 0).close()
    except UsageError:
        pytest.skip("this machine has no IPv6")
    serve.main(["DIR", "--host", "::1", "--port", "0"])
    assert f" on http://[::1]:{command['address'][1]}\n" in capsys.readouterr().out
    assert "[::1]" in command["hosts"]


def test_the_port_is_taken_before_the_model_is_read(command: dict[str, Any]) -> None:
    """A wrong port is reported without waiting for the model."""
    with serve.bind("127.0.0.1", 0) as listener, pytest.raises(UsageError, match="is in use on"):
        serve.main(["DIR", "--port", str(listener.getsockname()[1])])
    assert command == {}


def test_a_model_that_cannot_be_read(command: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    """Its message ends the command before the line that says where it serves."""
    with pytest.raises(UsageError, match=r"^DIR 'nothing' is not a folder$"):
        serve.main(["nothing", "--port", "0"])
    assert capsys.readouterr().out == ""
    assert "hosts" not in command


@pytest.mark.parametrize(
    ("says", "wrong"),
    [
        ({"student": 3}, "its student is 3"),
        ({"student": None}, "its student is None"),
        ({"student": {"parameters": math.nan}}, "its student's parameters are nan"),
        ({"quantization": "int8\n"}, r"its quantization is 'int8\n'"),
        ({"quantization": [8]}, "its quantization is [8]"),
    ],
)
def test_a_model_whose_folder_says_nonsense(
    says: dict[str, Any], wrong: str, command: dict[str, Any]
) -> None:
    """In fields that only ``/health`` reads."""
    command["says"] = says
    with pytest.raises(UsageError) as refused:
        serve.main(["DIR", "--port", "0"])
    assert str(refused.value) == f"DIR/imitkd.json is damaged ({wrong}); export the student again"
    assert "hosts" not in command


def test_a_model_whose_folder_says_little(command: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    """It is served."""
    command["says"] = {"student": {}, "quantization": None}
    serve.main(["DIR", "--port", "0"])
    assert capsys.readouterr().out.startswith("serving de-en (ctranslate2, None) on http://")


def test_a_signal_while_the_model_is_read(command: dict[str, Any]) -> None:
    """The command ends at once with status 0."""
    with pytest.raises(SystemExit) as end:
        serve.main(["slow", "--port", "0"])
    assert end.value.code == 0
    assert "hosts" not in command


def test_more_tokens_than_the_model_can_read_are_refused(command: dict[str, Any]) -> None:
    """The model's own limit is accepted."""
    serve.main(["DIR", "--port", "0", "--max-sentence-tokens", "100"])
    with pytest.raises(UsageError) as refused:
        serve.main(["DIR", "--port", "0", "--max-sentence-tokens", "101"])
    expected = (
        "--max-sentence-tokens 101 must be at most the 100 tokens that the model can represent; lower it or "
        "leave it out"
    )
    assert str(refused.value) == expected
