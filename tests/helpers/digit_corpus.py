"""A generated digit corpus and the real commands on it, shared by the tests that train."""

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

# One thread each: the tests' models are tiny, and threads that wait for each other cost more than they bring.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO), "PYTHONWARNINGS": "ignore"}


def write_text(folder: Path, split: str, sentences: int, seed: int, longest: int = 8) -> None:
    """Digits on the source side, the same digits as words, last first, on the target side."""
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    generator = random.Random(seed)
    with open(folder / f"{split}.src", "w") as source, open(folder / f"{split}.tgt", "w") as target:
        for _ in range(sentences):
            digits = [generator.randrange(10) for _ in range(generator.randint(1, longest))]
            print(*digits, file=source)
            print(*(words[digit] for digit in reversed(digits)), file=target)


def binarise(text: Path, destination: Path, *flags: str) -> None:
    """``fairseq-preprocess`` of train, valid and test."""
    run(
        "fairseq-preprocess", "--source-lang", "src", "--target-lang", "tgt", "--destdir", destination,
        "--trainpref", text / "train", "--validpref", text / "valid", "--testpref", text / "test", *flags,
    )  # fmt: skip


def run(command: str, *arguments: object, check: bool = True, **kwargs) -> subprocess.CompletedProcess:
    """A console command of this environment, its output captured. A failure shows the end of the output."""
    kwargs.setdefault("timeout", 300)
    done = subprocess.run(
        [BIN / command, *map(str, arguments)],
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
        "--arch", "lstm", "--encoder-embed-dim", "32", "--encoder-hidden-size", "48", "--decoder-embed-dim", "32",
        "--decoder-hidden-size", "48", "--decoder-out-embed-dim", "32", "--encoder-layers", "1", "--decoder-layers", "1",
    ),
    "fconv": (
        "--arch", "fconv", "--encoder-embed-dim", "32", "--encoder-layers", "[(48, 3)] * 2", "--decoder-embed-dim", "32",
        "--decoder-layers", "[(48, 3)] * 2", "--decoder-out-embed-dim", "32",
    ),
}  # fmt: skip


def train(
    data: Path, save_dir: Path, *flags: object, command: str = "imitkd-train", **kwargs
) -> subprocess.CompletedProcess:
    """A short training on the CPU with settings that suit the digit corpus."""
    return run(
        command, data, "--save-dir", save_dir, "--cpu", "--optimizer", "adam", "--lr", "5e-3", "--lr-scheduler", "inverse_sqrt",
        "--warmup-updates", "20", "--max-tokens", "400", "--dropout", "0.1", "--log-format", "json", "--log-interval", "5",
        "--no-epoch-checkpoints", "--num-workers", "0", *flags, **kwargs,
    )  # fmt: skip
