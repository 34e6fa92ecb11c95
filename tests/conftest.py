"""Fixtures that many tests share: the digit corpus and a teacher trained on it. Each is made once
in a run.
"""

import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.helpers import digit_corpus, in_process
from tests.helpers.shared import made_once
from tests.helpers.warm_commands import compose_settings_quickly


def compute_with_one_thread():
    """For tiny models more threads are slower, and they may change the last bit. Some commands that tests run
    in this process set the number.
    """
    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup():
    compute_with_one_thread()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call():
    compute_with_one_thread()


@pytest.fixture(scope="session", autouse=True)
def interrupts_are_not_ignored():
    """Let the commands that tests start end at SIGINT. They inherit that it is ignored from a shell that
    runs the tests in the background.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def each_setting_is_parsed_once():
    """Tests train in their own process, too."""
    compose_settings_quickly()


@dataclass(frozen=True)
class Corpus:
    """Digits as sources, and the same digits as words in reverse as targets. ``dictionaries`` is ``data``
    without sentences.
    """

    text: Path
    data: Path
    dictionaries: Path

    def references(self) -> list[str]:
        return (self.text / "test.tgt").read_text().splitlines()


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Corpus:
    root = made_once(tmp_path_factory, "digits", write_digits)
    return Corpus(root / "text", root / "data", root / "dictionaries")


def write_digits(root: Path) -> None:
    """Write the text, the data and the dictionaries of the digit corpus."""
    made = Corpus(root / "text", root / "data", root / "dictionaries")
    made.text.mkdir()
    # Multiples of 8: fairseq drops a last batch whose size is not a multiple of
    # --required-batch-size-multiple, also when it tests.
    for split, sentences, seed in (("train", 3000, 1), ("valid", 104, 2), ("test", 104, 3)):
        digit_corpus.write_text(made.text, split, sentences, seed, longest=6)
    digit_corpus.binarise(made.text, made.data)
    made.dictionaries.mkdir()
    for language in ("src", "tgt"):
        name = f"dict.{language}.txt"
        (made.dictionaries / name).write_bytes((made.data / name).read_bytes())


@pytest.fixture(scope="session")
def teacher(digits, tmp_path_factory) -> Path:
    """The checkpoint of a stock transformer, trained with the stock ``translation`` task."""
    return (
        made_once(tmp_path_factory, "teacher", lambda folder: train_teacher(digits, folder))
        / "checkpoint_last.pt"
    )


def train_teacher(digits: Corpus, folder: Path) -> None:
    in_process.train(
        digits.data, folder, "--task", "translation", "--criterion", "label_smoothed_cross_entropy",
        "--label-smoothing", "0.1", "--max-update", "450", "--max-tokens", "1200", "--lr", "1e-2",
        "--warmup-updates", "100", "--disable-validation", "--save-interval", "1000",
    )  # fmt: skip
