"""A generated digit corpus, and the real commands on it, for all tests that train."""

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.helpers import warm_commands

REPO = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

# One thread for each process: with tiny models, more threads are slower.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO), "PYTHONWARNINGS": "ignore"}


def write_text(folder: Path, split: str, sentences: int, seed: int, longest: int = 8) -> None:
    """Write lines of digits as sources. The target is the same digits as words in reverse order."""
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    generator = random.Random(seed)
    with open(folder / f"{split}.src", "w") as source, open(folder / f"{split}.tgt", "w") as target:
        for _ in range(sentences):
            digits = [generator.randrange(10) for _ in range(generator.randint(1, longest))]
            print(*digits, file=source)
            print(*(words[digit] for digit in reversed(digits)), file=target)


def binarise(text: Path, destination: Path, *flags: str) -> None:
    """Run ``fairseq-preprocess`` on train, valid and test."""
    run(
        "fairseq-preprocess", "--source-lang", "src", "--target-lang", "tgt", "--destdir", destination,
        "--trainpref", text / "train", "--validpref", text / "valid", "--testpref", text / "test", *flags,
    )  # fmt: skip


def run(
    command: str, *arguments: object, check: bool = True, real: bool = False, **kwargs
) -> subprocess.CompletedProcess:
    """Run a console command of this environment and capture its output. Show its end on failure.

    Args:
        command: its name.
        arguments: its arguments.
        check: fail when its exit status is not 0.
        real: start a new Python instead of a fork of a process that has imported the package.
        kwargs: passed to ``subprocess.run``.
    """
    kwargs.setdefault("timeout", 300)
    done = subprocess.run(
        [(BIN if real else warm_commands.folder()) / command, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, **kwargs.pop("env", {})},
        **kwargs,
    )
    if check and done.returncode != 0:
        raise AssertionError(
            f"{command} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
    return done


TINY = (
    "--arch", "transformer", "--encoder-layers", "1", "--decoder-layers", "1", "--encoder-embed-dim", "32",
    "--decoder-embed-dim", "32", "--encoder-ffn-embed-dim", "64", "--decoder-ffn-embed-dim", "64",
    "--encoder-attention-heads", "2", "--decoder-attention-heads", "2",
)  # fmt: skip

ARCHITECTURES: dict[str, Sequence[str]] = {
    "transformer": TINY,
    "lstm": (
        "--arch", "lstm", "--encoder-embed-dim", "32", "--encoder-hidden-size", "48", "--decoder-embed-dim",
        "32", "--decoder-hidden-size", "48", "--decoder-out-embed-dim", "32", "--encoder-layers", "1",
        "--decoder-layers", "1",
    ),
    "fconv": (
        "--arch", "fconv", "--encoder-embed-dim", "32", "--encoder-layers", "[(48, 3)] * 2",
        "--decoder-embed-dim", "32", "--decoder-layers", "[(48, 3)] * 2", "--decoder-out-embed-dim", "32",
    ),
}  # fmt: skip


def train(
    data: Path, save_dir: Path, *flags: object, command: str = "imitkd-train", **kwargs
) -> subprocess.CompletedProcess:
    """Run a short training on the CPU with settings for the digit corpus."""
    return run(
        command, data, "--save-dir", save_dir, "--cpu", "--optimizer", "adam", "--lr", "5e-3",
        "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "20", "--max-tokens", "400", "--dropout", "0.1",
        "--log-format", "json", "--log-interval", "5", "--no-epoch-checkpoints", "--num-workers", "0", *flags,
        **kwargs,
    )  # fmt: skip
