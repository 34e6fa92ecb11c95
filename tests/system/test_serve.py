"""``imitkd-serve`` as a process on a real port answers many clients at once and stops on request."""

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
from tests.helpers import warm_commands
from tests.helpers.exports import make_students
from tests.helpers.served_model import server


def test_an_exported_student_is_served(tmp_path: Path) -> None:
    """Console commands lead from a checkpoint to an answer, which is the student's own."""
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
            taken = run(warm_commands.folder() / "imitkd-serve", tmp_path / "exported", "--port", port)
            assert (taken.returncode, taken.stdout) == (1, "")
            assert (
                f"error: --port {port} is in use on 127.0.0.1; use another, or 0 for any free port"
                in taken.stderr
            )
        finally:
            process.terminate()
    assert process.returncode == 0
    nothing = run(warm_commands.folder() / "imitkd-serve", tmp_path, "--port", 0)
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert f"is not an exported student: did you mean {tmp_path / 'exported'}?" in nothing.stderr


def run(*command: object) -> subprocess.CompletedProcess:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=120)


def wait_for(address: str, waiting: int) -> None:
    """Return when this many sentences wait."""
    until = time.monotonic() + 30
    while httpx.get(f"{address}/health").json()["waiting"] != waiting:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_it_finishes_running_requests_when_it_is_stopped() -> None:
    """It answers over kept and new connections. It finishes requests that it has started, and prints nothing
    else.
    """
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
            assert (
                62 <= float(sentences) < 200
            )  # the client has gone, so sentences that were not begun are left out

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


def test_half_requests_do_not_block_others() -> None:
    """There are more of them than file descriptors. Other requests are answered, and the server stops
    silently.
    """
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


def test_second_interrupt_ends_it_at_once() -> None:
    """As when a terminal's Ctrl-C is typed twice, or follows another signal."""
    with (
        server("--shutdown-timeout", 60, "--max-batch-sentences", 1) as (process, address),
        ThreadPoolExecutor(1) as threads,
    ):
        slow = {"text": ["slow 40", "a"]}
        stuck = threads.submit(httpx.post, f"{address}/translate", json=slow, timeout=60)
        wait_for(address, waiting=1)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert time.monotonic() - began < 15
        with contextlib.suppress(httpx.TransportError):
            stuck.result()
        assert process.communicate() == ("", "")


def test_it_ends_though_the_model_does_not() -> None:
    """It ends in time with status 0 while the model still computes."""
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
        assert stuck.result().status_code == 503
        errors = process.communicate()[1]
        assert "stopped while the model was translating" in errors
        assert "Traceback" not in errors
