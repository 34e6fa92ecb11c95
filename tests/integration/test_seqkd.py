"""``imitkd-seqkd`` writes fairseq-generate's hypotheses as a data set, with the same bytes after any kill."""

import contextlib
import json
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from fairseq_imitkd.seqkd.folder import saved_batches
from tests.helpers import digit_corpus, in_process
from tests.helpers.killable import Command, tree

SENTENCES = 104
BATCHES = ("--beam", 5, "--batch-size", 16)


@pytest.fixture(scope="module")
def made(digits, teacher, tmp_path_factory) -> Path:
    """The data set that the installed command makes of the test split with two workers."""
    out = tmp_path_factory.mktemp("seqkd") / "out"
    began = time.monotonic()
    done = digit_corpus.run("imitkd-seqkd", *given(digits, teacher, out), *BATCHES, "--workers", 2, real=True)
    took = time.monotonic() - began
    assert (
        f"{SENTENCES} sentences, {SENTENCES} translations, 0 references, {SENTENCES} pairs written"
        in done.stdout
    )
    assert took > 20 or "translate: " not in done.stderr  # short work shows no progress in a pipe
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
    """Return each sentence's hypothesis and score (mean natural logarithm) by number."""
    lines = (line.split("\t") for line in text.splitlines() if line.startswith("H-"))
    return {
        int(number[2:]): (hypothesis, float(score) * 0.6931471805599453)
        for number, score, hypothesis in lines
    }


@pytest.mark.parametrize("task", ["translation", "translation_with_teacher"])
def test_hypotheses_are_fairseqs(task, digits, teacher, made, tmp_path):
    """Ids, tokens and scores are those of fairseq-generate and imitkd-generate. All written files agree."""
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
    """One process writes the bytes that two write."""
    assert Command([*given(digits, teacher, tmp_path / "out"), *BATCHES], tmp_path / "log").end() == 0
    assert tree(tmp_path / "out") == tree(made)


def test_samples_and_best(digits, teacher, tmp_path):
    """With ``--select best`` the hypotheses are more like the references than the first ones are."""
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
    """The translations of the training split."""
    out = tmp_path_factory.mktemp("distilled") / "out"
    run = Command(
        [*given(digits, teacher, out), "--gen-subset", "train", "--beam", 1, "--dedup"], out.parent / "log"
    )
    assert run.end() == 0
    return out / "data-bin"


def test_imitkd_trains_on_it(distilled, teacher, digits, tmp_path):
    """The command needs no flags for languages and dictionaries."""
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
    assert len(in_process.read_metrics(done.stdout)["train_inner"]) == 4
    assert in_process.read_metrics(done.stdout)["valid"]
    assert (tmp_path / "checkpoint_last.pt").is_file()


def test_cross_entropy_trains_on_it(distilled, tmp_path):
    """Stock fairseq trains on it without the plugin's task, and the loss falls."""
    flags = ("--task", "translation", "--criterion", "cross_entropy", "--max-update", 30, "--no-save")
    losses = [
        metrics["loss"] for metrics in in_process.train(distilled, tmp_path, *flags).metrics["train_inner"]
    ]
    assert losses[-1] < 0.8 * losses[0]


class Killer:
    """Repeats a job and kills it until the data set is complete. Then it compares the data set and starts
    again.

    Args:
        arguments: arguments of the command, without ``--out``.
        folder: working folder.
        workers: values of ``--workers``, one for each run in turn.
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
        """Run once, and kill the run within this multiple of a whole run's time."""
        command = Command(
            [*self.arguments(self.out), "--workers", self.random.choice(self.workers)], self.folder / "log"
        )
        if command.killed_after(self.random.uniform(0.0, longest * self.seconds)):
            self.kills += 1
        else:
            self.finish()

    def finish(self) -> None:
        """Let the job end, and compare its data set."""
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


@pytest.fixture
def translated(digits, tmp_path):
    """A job whose translations are those of files, which are put together, selected and filtered."""
    path = tmp_path / "all.tsv"
    sources, targets = ((digits.text / f"train.{side}").read_text().splitlines() for side in ("src", "tgt"))
    lines = zip(sources[:60], targets[:60], targets[1:61], sources[:60], strict=True)
    path.write_text("".join("\t".join(line) + "\n" for line in lines))

    def arguments(out):
        flags = ("--select", "mbr", "--metric", "chrf", "--keep", 2, "--drop-copies", "--dedup")
        return [digits.data, "--out", out, "--cpu", "--translations", path, path, *flags]

    return arguments


def test_killed_at_random_moments(job, tmp_path):
    """Many runs follow each other. Of two processes, only the first one is killed."""
    killer = Killer(job, tmp_path, workers=(1, 1, 2))
    while killer.kills < 8:
        killer.run(1.0)
    killer.finish()


def changes(job, folder, stop_at):
    """Kill a run before a change of files and run it again. Return whether the run got that far."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    killed = Command(job(folder / "out"), folder / "log", stop_at=stop_at).end() != 0
    assert Command(job(folder / "out"), folder / "log").end() == 0
    return killed


@pytest.mark.slow
def test_killed_before_changes_of_files(job, tmp_path):
    """A random kill rarely hits these moments: writing, renaming and cleaning up."""
    killer = Killer(job, tmp_path)
    for stop_at in (2, 14, 53, 67, 68, 74):
        assert changes(job, tmp_path, stop_at), "there are fewer changes than there were"
        assert tree(tmp_path / "out") == killer.expected, f"killed before change {stop_at}"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "fewest"), [("job", 81), ("translated", 60)])
def test_killed_before_every_change_of_files(kind, fewest, tmp_path, request):
    """Every change of files is tested."""
    job = request.getfixturevalue(kind)
    killer = Killer(job, tmp_path)
    stop_at = 1
    while changes(job, tmp_path, stop_at):
        assert tree(tmp_path / "out") == killer.expected, f"killed before change {stop_at}"
        stop_at += 1
    assert stop_at >= fewest


@pytest.mark.slow
def test_killed_200_times(job, tmp_path):
    """Many jobs of one to three processes are killed at random moments."""
    killer = Killer(job, tmp_path, workers=(1, 1, 2, 3), seed=2)
    while killer.kills < 200:
        killer.run(1.1)
    killer.finish()


def test_workers_end_with_their_parent(digits, teacher, tmp_path):
    """The parent alone is killed. The workers end long before their work would, and write nothing more."""
    flags = ("--gen-subset", "train", "--batch-size", 2, "--beam", 5, "--workers", 2)
    command = Command([*given(digits, teacher, tmp_path / "out"), *flags], tmp_path / "log")
    until = time.monotonic() + 60
    decoded = tmp_path / "out" / "decoded"
    while not {0, 1} <= {int(path.stem) for path in decoded.glob("*.npz")}:  # both workers write
        assert time.monotonic() < until
        time.sleep(0.005)
    children = Path(f"/proc/{command.process.pid}/task/{command.process.pid}/children").read_text().split()
    assert command.killed_after(0.0)
    assert len(children) >= 2
    while any(_runs(child) for child in children):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert len(list(saved_batches(tmp_path / "out"))) < 750, "1,500 batches were to be translated"


def _runs(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_real_workers_killed(job, tmp_path):
    """The installed command is killed while its workers start, which takes seconds, or while they work."""
    killer = Killer(job, tmp_path)
    for delay in (3.0, 6.0, 8.0, 9.0, 10.0):
        with contextlib.suppress(subprocess.TimeoutExpired):
            digit_corpus.run("imitkd-seqkd", *job(killer.out), "--workers", 2, real=True, timeout=delay)
    killer.finish()


def test_command_ends_with_one_line(digits, teacher, tmp_path):
    """Standard error ends with this line and holds no traceback."""
    done = digit_corpus.run(
        "imitkd-seqkd", *given(digits, teacher, tmp_path / "out"), "--beam", 0, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "error: --beam must be 1 or more, but is 0"
    assert "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "out").exists()
