"""``imitkd-serve`` as a process on a real port: it answers many at once, and ends when it is told to."""

import contextlib
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from fairseq_imitkd.export.bundle import Bundle
from tests.helpers.exports import make_students
from tests.helpers.served_model import server


def test_an_exported_student_is_served(tmp_path: Path) -> None:
    """From a checkpoint to an answer, by the commands that people type; the answer is the student's own."""
    root = make_students(tmp_path)
    bin_folder = Path(sys.executable).parent
    flags = (
        "--data",
        root / "data",
        "--out",
        tmp_path / "exported",
        "--quantization",
        "float32",
        "--max-len-b",
        12,
    )
    made = run(bin_folder / "imitkd-export", root / "transformer.pt", *flags)
    assert (made.returncode, "WARN" in made.stderr.upper()) == (0, False), made.stderr
    assert made.stdout.startswith(f"{tmp_path / 'exported'}: CTranslate2, float32")
    bundle = Bundle.read(tmp_path / "exported")
    command = (bin_folder / "imitkd-serve", tmp_path / "exported", "--port", 0, "--threads", 1)
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("serving src-tgt (ctranslate2, float32) on http://127.0.0.1:")
            port = line.strip().rpartition(":")[2]
            answer = httpx.post(
                f"http://127.0.0.1:{port}/translate", json={"text": ["a b c", "", "g"]}, timeout=60
            )
            expected = [bundle.decode(bundle.translate([bundle.encode(text)])[0]) for text in ("a b c", "g")]
            assert answer.json()["translations"] == [expected[0], "", expected[1]]
            taken = run(*command[:-4], "--port", port)
            assert (taken.returncode, taken.stdout) == (1, "")
            assert (
                f"error: --port {port} is in use on 127.0.0.1: give another, or 0 for one that is free"
                in taken.stderr
            )
        finally:
            process.terminate()
    assert process.returncode == 0
    nothing = run(bin_folder / "imitkd-serve", tmp_path, "--port", 0)
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert (
        "is no exported student: there is no imitkd.json; give one that imitkd-export made" in nothing.stderr
    )


def run(*command: object) -> subprocess.CompletedProcess:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=120)


def wait_for(address: str, waiting: int) -> None:
    """Return when so many sentences wait."""
    until = time.monotonic() + 30
    while httpx.get(f"{address}/health").json()["waiting"] != waiting:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_it_answers_and_finishes_what_runs_when_told_to_stop() -> None:
    """Over connections that stay open as over new ones; what it has begun, it finishes; nothing else is said."""
    with server("--max-batch-sentences", 4) as (process, address):
        host, port = urlsplit(address).hostname, urlsplit(address).port
        with httpx.Client(base_url=address) as stays, ThreadPoolExecutor(20) as threads:
            text = stays.post(
                "/translate", content="eins\r\n\nzwei\n", headers={"Content-Type": "text/plain"}
            )
            assert (text.status_code, text.content) == (200, b"EINS\n\nZWEI\n")
            asked = [[f"client {number} sentence {i}" for i in range(3)] for number in range(20)]
            answers = threads.map(
                lambda texts: httpx.post(f"{address}/translate", json={"text": texts}, timeout=60), asked
            )
            for texts, answer in zip(asked, answers, strict=True):
                assert (answer.status_code, answer.json()["translations"]) == (
                    200,
                    [text.upper() for text in texts],
                )
            assert httpx.post(f"{address}/translate", content=b"a" * 2_000_000).status_code in (413, 415)
            assert stays.get("/health", headers={"Host": "evil.example"}).status_code == 400
            assert stays.get("/").status_code == 200

            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{address}/translate", json={"text": ["slow 0.1"] * 200}, timeout=0.5)
            wait_for(address, waiting=0)
            [sentences] = re.findall(
                r"^imitkd_batch_sentences_sum (\S+)$", stays.get("/metrics").text, re.MULTILINE
            )
            assert 62 <= float(sentences) < 200  # the client had gone: what was not begun is left out

            slow = ["slow 0.4", "slow 0.4 too", "slow 0.4 as well", "slow 0.4 again", "last"]
            begun = threads.submit(httpx.post, f"{address}/translate", json={"text": slow}, timeout=60)
            wait_for(address, waiting=1)
            process.send_signal(signal.SIGTERM)
            answer = begun.result()
            assert (answer.status_code, answer.json()["translations"]) == (
                200,
                [text.upper() for text in slow],
            )
        assert process.wait(timeout=30) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, port))
        out, errors = process.communicate()
        assert out == ""
        assert errors == ""


def test_half_requests_keep_nobody_out() -> None:
    """More of them than the process has descriptors: others are answered, it ends when told to, and nothing is said."""
    with server("--timeout", 300, descriptors=200) as (process, address), contextlib.ExitStack() as open_ones:
        for _ in range(260):
            half = socket.create_connection((urlsplit(address).hostname, urlsplit(address).port), timeout=60)
            open_ones.enter_context(half).sendall(b"GET /health HTTP/1.1\r\nHost: 127")
        for _ in range(3):
            answer = httpx.post(f"{address}/translate", json={"text": "eins"}, timeout=60)
            assert (answer.status_code, answer.json()["translations"]) == (200, ["EINS"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        assert process.communicate() == ("", "")


def test_it_ends_though_the_model_does_not() -> None:
    """Within its time, as if all were well, whatever is still to be done."""
    with (
        server("--shutdown-timeout", 1, "--max-batch-sentences", 1) as (process, address),
        ThreadPoolExecutor(1) as threads,
    ):
        stuck = threads.submit(
            httpx.post, f"{address}/translate", json={"text": ["slow 100", "a"]}, timeout=60
        )
        wait_for(address, waiting=1)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        assert time.monotonic() - began < 50
        with contextlib.suppress(httpx.TransportError):  # the connection ended without an answer
            assert stuck.result().status_code >= 500
        assert "stopped while the model was translating" in process.communicate()[1]
