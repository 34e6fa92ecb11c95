"""What many tests share and is made once: the digit corpus, a teacher that knows it, and a student trained by a command."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.helpers import digit_corpus, in_process


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The models are tiny: threads that wait for each other cost more than they bring, and may change the last bit."""
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Corpus:
    """Digits to the same digits as words, last first. ``dictionaries`` is ``data`` without a single sentence."""

    text: Path
    data: Path
    dictionaries: Path

    def references(self) -> list[str]:
        return (self.text / "test.tgt").read_text().splitlines()


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Corpus:
    root = tmp_path_factory.mktemp("digits")
    made = Corpus(root / "text", root / "data", root / "dictionaries")
    made.text.mkdir()
    # Multiples of 8: fairseq drops a last batch that is no multiple of --required-batch-size-multiple, in testing too.
    for split, sentences, seed in (("train", 3000, 1), ("valid", 104, 2), ("test", 104, 3)):
        digit_corpus.write_text(made.text, split, sentences, seed, longest=6)
    digit_corpus.binarise(made.text, made.data)
    made.dictionaries.mkdir()
    for language in ("src", "tgt"):
        name = f"dict.{language}.txt"
        (made.dictionaries / name).write_bytes((made.data / name).read_bytes())
    return made


@pytest.fixture(scope="session")
def teacher(digits, tmp_path_factory) -> Path:
    """A stock transformer of the stock ``translation`` task."""
    folder = tmp_path_factory.mktemp("teacher")
    in_process.train(
        digits.data, folder, "--task", "translation", "--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1",
        "--max-update", "450", "--max-tokens", "1200", "--lr", "1e-2", "--warmup-updates", "100",
        "--disable-validation", "--save-interval", "1000",
    )  # fmt: skip
    return folder / "checkpoint_last.pt"
