"""Trainings that are killed at random moments end on the bytes of the training that was not."""

import random
import time
from pathlib import Path

import pytest
import torch

from tests.helpers import digit_corpus, in_process
from tests.helpers.killable import Command
from tests.integration.test_resume_epochs import differences, end

KILLS, UPDATES = 34, 30  # kills of each method; ten updates in each of three epochs
METHODS: dict[str, tuple[object, ...]] = {
    "references": ("--criterion", "cross_entropy"),
    "word_kd": ("--criterion", "word_kd", "--prune-sparsity", 0.5, "--prune-end", 20, "--prune-every", 3),
    "imitkd": ("--criterion", "imitkd", "--rollout-pool-updates", 3, "--update-freq", 1),
    "gkd": ("--criterion", "gkd", "--reward", "chrf", "--reward-baseline", "running"),
    "distillm": ("--criterion", "distillm", "--rollout-replay", 60, "--validate-interval-updates", 3),
    "annealing_kd": ("--criterion", "annealing_kd", "--patience", 50),
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short sentences, and a teacher."""
    root = tmp_path_factory.mktemp("killed")
    for split, sentences, seed in (("train", 160, 1), ("valid", 16, 2), ("test", 16, 3)):
        digit_corpus.write_text(root, split, sentences, seed, longest=3)
    digit_corpus.binarise(root, root / "data")
    in_process.train(
        root / "data", root, "--task", "translation", "--criterion", "cross_entropy", "--max-update", 30,
        "--batch-size", 16, "--disable-validation",
    )  # fmt: skip
    return root / "data"


@pytest.mark.parametrize("method", METHODS)
def test_killed_trainings_end_like_the_training_that_was_not(method: str, data: Path, tmp_path: Path) -> None:
    """Each run is killed after a random time, and the same command is typed again, until the run ends."""
    flags = [
        *in_process.SETTINGS, *digit_corpus.TINY, "--batch-size", 16, "--max-update", UPDATES,
        "--save-interval-updates", 2, "--keep-interval-updates", 2, *METHODS[method],
    ]  # fmt: skip
    if "cross_entropy" not in flags:
        flags += ["--teacher-path", data.parent / "checkpoint_last.pt"]

    def start(folder: Path) -> Command:
        return Command([data, "--save-dir", folder, *flags], tmp_path / "log.txt", train=True)

    durations = []
    for _ in range(2):  # the first one also starts the server of processes
        began = time.monotonic()
        assert start(tmp_path / f"whole-{len(durations)}").end() == 0
        durations.append(time.monotonic() - began)
    duration = min(durations)
    whole = end(torch.load(tmp_path / "whole-0" / "checkpoint_last.pt", weights_only=True))
    moments, killed, runs = random.Random(method), 0, 0
    while killed < KILLS:
        folder = tmp_path / f"killed-{runs}"
        while start(folder).killed_after(moments.uniform(0.2, 2 * duration)):
            killed += 1
        found = torch.load(folder / "checkpoint_last.pt", weights_only=True)
        assert differences(end(found), whole) == [], f"{killed} kills, run {runs}"
        assert not list(folder.glob("*.partial"))
        runs += 1
    print(f"{method}: {killed} kills in {runs} runs of {duration:.1f} s")
