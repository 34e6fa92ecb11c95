"""Measures ``imitkd-serve`` under many clients: sentences per second, latencies and failed requests.

    python benchmarks/serve_load.py EXPORTED --text sentences.de [--clients 50] [--seconds 60]
        [--serve-flags "--threads 1"]

The script starts the server on a free port. Each client posts one sentence after another and waits for each
answer. The answers are compared with the exported student's translation of the sentence alone. They may
differ by rounding, because the server translates sentences in batches. The exit status is 1 if a request
failed.
"""

import argparse
import asyncio
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import torch

from fairseq_imitkd.__main__ import versions
from fairseq_imitkd.export.bundle import Bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("exported", type=Path, help="folder that imitkd-export wrote")
    parser.add_argument("--text", type=Path, required=True, help="file of raw sentences, one per line")
    parser.add_argument("--clients", type=int, default=50, help="number of clients (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="duration (default: %(default)s)")
    parser.add_argument("--serve-flags", default="", help="flags for imitkd-serve")
    parser.add_argument(
        "--json",
        type=Path,
        default=Path("serve_load.json"),
        help="file for all figures (default: %(default)s)",
    )
    args = parser.parse_args()
    lines = [line for line in args.text.read_text(encoding="utf-8").split("\n") if line.strip()]
    torch.set_num_threads(1)
    bundle = Bundle.read(args.exported)
    expected = {line: bundle.decode(bundle.translate([bundle.encode(line)])[0]) for line in lines}
    command = [
        Path(sys.executable).parent / "imitkd-serve",
        args.exported,
        "--port",
        "0",
        *args.serve_flags.split(),
    ]
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            address = server.stdout.readline().split()[-1]
            place = urlsplit(address)
            began = time.perf_counter()
            latencies, failed, others = asyncio.run(load(args, (place.hostname, place.port), lines, expected))
            taken = time.perf_counter() - began
            metrics = urlopen(f"{address}/metrics").read().decode()
        finally:
            server.terminate()
            server.wait(timeout=30)
    for line in metrics.splitlines():
        if "_batch" in line and line.rpartition(" ")[0].endswith(("_sum", "_count")):
            print(line)
    cuts = statistics.quantiles(latencies, n=100)
    print(
        f"{args.clients} clients for {taken:.0f} s: {len(latencies):,} requests answered, {failed} failed; "
        f"{len(latencies) / taken:,.0f} sentences per second; latency p50 {1000 * cuts[49]:.0f} ms, "
        f"p95 {1000 * cuts[94]:.0f} ms, longest {1000 * max(latencies):.0f} ms; {others} answers "
        f"differ from the translation alone; {platform.machine()}"
    )
    figures = {
        "latencies": latencies,
        "failed": failed,
        "others": others,
        "seconds": taken,
        "versions": versions().splitlines(),
    }
    args.json.write_text(json.dumps(figures) + "\n")
    sys.exit(1 if failed else 0)


async def load(
    args: argparse.Namespace, address: tuple[Any, Any], lines: list[str], expected: dict[str, str]
) -> tuple[list[float], int, int]:
    """Send requests until the time is over.

    Returns:
        the latencies of the answered requests in seconds, the number of failed ones, and the number of
        answers that are not the expected ones.
    """
    latencies: list[float] = []
    failed, others = 0, 0
    until = time.perf_counter() + args.seconds
    sentences = itertools.cycle(lines)

    async def ask() -> None:
        nonlocal failed, others
        reader, writer = await asyncio.open_connection(*address)
        while time.perf_counter() < until:
            line = next(sentences)
            begun = time.perf_counter()
            try:
                async with asyncio.timeout(60):
                    said = await post(reader, writer, {"text": line})
            except (OSError, ValueError, KeyError, EOFError, TimeoutError):
                failed += 1
                reader, writer = await asyncio.open_connection(*address)
                continue
            latencies.append(time.perf_counter() - begun)
            others += said["translations"] != [expected[line]]
        writer.close()

    await asyncio.gather(*(ask() for _ in range(args.clients)))
    return latencies, failed, others


async def post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, content: dict[str, str]
) -> dict[str, Any]:
    """Return the answer to a request. A full HTTP client would use more CPU time than the server."""
    body = json.dumps(content).encode()
    writer.write(b"POST /translate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
    writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
    answer = json.loads(await reader.readexactly(length))
    if not head.startswith("http/1.1 200"):
        raise ValueError(answer)
    return answer


if __name__ == "__main__":
    main()
