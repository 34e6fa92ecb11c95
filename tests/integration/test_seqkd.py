"""``imitkd-seqkd``: fairseq-generate's hypotheses, a data set to train on, and the same bytes after kills at any moment."""

import contextlib
import json
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from fairseq_imitkd.seqkd.journal import records
from tests.helpers import digit_corpus, in_process
from tests.helpers.killable import Command, tree

SENTENCES = 104
BATCHES = ("--beam", 5, "--batch-size", 16)


@pytest.fixture(scope="module")
def made(digits, teacher, tmp_path_factory) -> Path:
    """What the installed command makes of the test split, with two workers of its own."""
    out = tmp_path_factory.mktemp("seqkd") / "out"
    done = digit_corpus.run("imitkd-seqkd", *given(digits, teacher, out), *BATCHES, "--workers", 2)
    assert (
        f"{SENTENCES} sentences, {SENTENCES} translations, 0 references, {SENTENCES} pairs written"
        in done.stdout
    )
    assert "translate: 100%" in done.stderr
    return out


def given(digits, teacher, out):
    return (
        digits.data,
        "--teacher-path",
        teacher,
        "--teacher-data",
        digits.data,
        "--out",
        out,
        "--gen-subset",
        "test",
        "--cpu",
    )


def generated(text: str) -> dict[int, tuple[str, float]]:
    """Each sentence's number, hypothesis and score from what fairseq-generate writes, as the mean natural logarithm."""
    lines = (line.split("\t") for line in text.splitlines() if line.startswith("H-"))
    return {
        int(number[2:]): (hypothesis, float(score) * 0.6931471805599453)
        for number, score, hypothesis in lines
    }


@pytest.mark.parametrize("task", ["translation", "translation_with_teacher"])
def test_hypotheses_are_fairseqs(task, digits, teacher, made, tmp_path):
    """The same ids, tokens and scores as fairseq-generate's and imitkd-generate's; text, ids and binarised data agree."""
    in_process.generate(digits.data, teacher, tmp_path, "--beam", 5, "--task", task)
    expected = generated((tmp_path / "generate-test.txt").read_text())
    lines = [line.split("\t") for line in (made / "text" / "test.tsv").read_text().splitlines()]
    assert [int(line[0]) for line in lines] == sorted(expected) == list(range(SENTENCES))
    assert [line[4] for line in lines] == [expected[number][0] for number in range(SENTENCES)]
    scores = [expected[number][1] for number in range(SENTENCES)]
    assert [float(line[2]) for line in lines] == pytest.approx(scores, abs=1e-4)
    assert [line[3] for line in lines] == (digits.text / "test.src").read_text().splitlines()
    assert (made / "text" / "test.tgt").read_text().splitlines() == [line[4] for line in lines]
    assert in_process.exact_matches([line[4] for line in lines], digits.references()) > 0.8, (
        "the teacher knows its language"
    )


@pytest.mark.slow
def test_workers_write_the_same(digits, teacher, made, tmp_path):
    """One process gives the bytes of two."""
    assert Command([*given(digits, teacher, tmp_path / "out"), *BATCHES], tmp_path / "log").end() == 0
    assert tree(tmp_path / "out") == tree(made)


def test_samples_and_best(digits, teacher, tmp_path):
    """The other selections, by the command: the best is more like the reference than the first."""
    shares = {}
    for name, flags in (
        ("first", ("--beam", 8)),
        ("best", ("--select", "best", "--metric", "sentence-bleu", "--nbest", 8)),
        ("sample", ("--select", "sample", "--n", 2, "--max-len-b", 20)),
    ):
        run = Command([*given(digits, teacher, tmp_path / name), *flags], tmp_path / f"{name}.log")
        assert run.end() == 0
        lines = [
            line.split("\t") for line in (tmp_path / name / "text" / "test.tsv").read_text().splitlines()
        ]
        found = {int(line[0]): line[4] for line in lines}
        shares[name] = sum(found.get(number) == text for number, text in enumerate(digits.references()))
        counts = json.loads((tmp_path / name / "manifest.json").read_text())["counts"]
        assert counts["translations"] == (2 if name == "sample" else 1) * SENTENCES
    assert shares["best"] > shares["first"]


@pytest.fixture(scope="module")
def distilled(digits, teacher, tmp_path_factory) -> Path:
    """The training split's translations, to train on."""
    out = tmp_path_factory.mktemp("distilled") / "out"
    run = Command(
        [*given(digits, teacher, out), "--gen-subset", "train", "--beam", 1, "--dedup"], out.parent / "log"
    )
    assert run.end() == 0
    return out / "data-bin"


def test_imitkd_trains_on_it(distilled, teacher, digits, tmp_path):
    """By the commands, without a word about languages or dictionaries."""
    flags = (
        "--criterion",
        "imitkd",
        "--teacher-path",
        teacher,
        "--teacher-data",
        digits.data,
        "--max-update",
        4,
    )
    done = digit_corpus.train(distilled, tmp_path, *flags, "--log-interval", 1, *digit_corpus.TINY)
    assert len(in_process.read_figures(done.stdout)["train_inner"]) == 4
    assert in_process.read_figures(done.stdout)["valid"]
    assert (tmp_path / "checkpoint_last.pt").is_file()


def test_cross_entropy_trains_on_it(distilled, tmp_path):
    """Stock fairseq, without the plugin's task; the loss falls."""
    flags = ("--task", "translation", "--criterion", "cross_entropy", "--max-update", 30, "--no-save")
    losses = [
        figures["loss"] for figures in in_process.train(distilled, tmp_path, *flags).figures["train_inner"]
    ]
    assert losses[-1] < 0.8 * losses[0]


class Killer:
    """Runs of one job over and over, killed, until the data set is there; then it is compared and begun anew.

    Args:
        arguments: of the command, but for ``--out``.
        folder: to work in.
        workers: what ``--workers`` may be, one of these each time.
    """

    def __init__(self, arguments, folder, workers=(1,), seed=1):
        self.arguments, self.folder, self.workers = arguments, folder, workers
        self.random = random.Random(seed)
        self.out, self.kills = folder / "out", 0
        began = time.monotonic()
        whole = Command([*arguments(folder / "whole")], folder / "log")
        assert whole.end() == 0
        self.seconds = time.monotonic() - began
        self.expected = tree(folder / "whole")

    def run(self, longest: float) -> None:
        """One run, killed within so many times the time of a whole one."""
        command = Command(
            [*self.arguments(self.out), "--workers", self.random.choice(self.workers)], self.folder / "log"
        )
        if command.killed_after(self.random.uniform(0.0, longest * self.seconds)):
            self.kills += 1
        else:
            self.finish()

    def finish(self) -> None:
        """Let it come to its end, and compare."""
        if not (self.out / "manifest.json").exists() or (self.out / "building").exists():
            assert Command(self.arguments(self.out), self.folder / "log").end() == 0
        assert tree(self.out) == self.expected
        shutil.rmtree(self.out)


@pytest.fixture
def job(digits, teacher):
    def arguments(out):
        flags = ("--batch-size", 8, "--beam", 5, "--max-len-b", 12, "--mix-gold", 0.2)
        return [*given(digits, teacher, out), *flags]

    return arguments


def test_killed_at_random_moments(job, tmp_path):
    """Killed up to so many times, one run after another, by one process or two of which only the first is killed."""
    killer = Killer(job, tmp_path, workers=(1, 1, 2))
    while killer.kills < 8:
        killer.run(1.0)
    killer.finish()


def changes(job, folder, stop_at):
    """Whether a run gets as far as so many changes of files; after a kill there, the next one ends the same."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    killed = Command(job(folder / "out"), folder / "log", stop_at=stop_at).end() != 0
    assert Command(job(folder / "out"), folder / "log").end() == 0
    return killed


@pytest.mark.slow
def test_killed_before_changes_of_files(job, tmp_path):
    """Where a random moment hardly ever falls: some of the writing, renaming and tidying up, one after another."""
    killer = Killer(job, tmp_path)
    for stop_at in (2, 14, 31, 36, 39, 43):
        assert changes(job, tmp_path, stop_at), "there are fewer changes than there were"
        assert tree(tmp_path / "out") == killer.expected, f"killed before change {stop_at}"


@pytest.mark.slow
def test_killed_before_every_change_of_files(job, tmp_path):
    """All of them."""
    killer = Killer(job, tmp_path)
    stop_at = 1
    while changes(job, tmp_path, stop_at):
        assert tree(tmp_path / "out") == killer.expected, f"killed before change {stop_at}"
        stop_at += 1
    assert stop_at > 40


@pytest.mark.slow
def test_killed_200_times(job, tmp_path):
    """At random moments of many jobs, from the first to the last, by one to three processes."""
    killer = Killer(job, tmp_path, workers=(1, 1, 2, 3), seed=2)
    while killer.kills < 200:
        killer.run(1.1)
    killer.finish()


def test_workers_end_with_their_parent(digits, teacher, tmp_path):
    """Killed alone, it leaves none behind that would still write: they end long before their work does."""
    flags = ("--gen-subset", "train", "--batch-size", 2, "--beam", 5, "--workers", 2)
    command = Command([*given(digits, teacher, tmp_path / "out"), *flags], tmp_path / "log")
    until = time.monotonic() + 60
    decoded = tmp_path / "out" / "decoded"
    journals = [decoded / f"000-00{worker}.journal" for worker in (0, 1)]
    while not all(path.is_file() and path.stat().st_size for path in journals):
        assert time.monotonic() < until
        time.sleep(0.005)
    children = Path(f"/proc/{command.process.pid}/task/{command.process.pid}/children").read_text().split()
    assert command.killed_after(0.0)
    assert len(children) >= 2
    while any(_runs(child) for child in children):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert len(list(records(decoded))) < 750, "1,500 batches were to be translated"


def _runs(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_real_workers_killed(job, tmp_path):
    """The command as it is installed, whose workers take seconds to start: killed while they do and while they work."""
    killer = Killer(job, tmp_path)
    for delay in (3.0, 6.0, 8.0, 9.0, 10.0):
        with contextlib.suppress(subprocess.TimeoutExpired):
            digit_corpus.run("imitkd-seqkd", *job(killer.out), "--workers", 2, timeout=delay)
    killer.finish()


def test_command_ends_with_one_line(digits, teacher, tmp_path):
    """Standard error ends with it, and holds no traceback."""
    done = digit_corpus.run(
        "imitkd-seqkd", *given(digits, teacher, tmp_path / "out"), "--beam", 0, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "error: --beam must be 1 or more, but is 0"
    assert "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "out").exists()
