"""``imitkd-cache`` and then ``imitkd-train --teacher-cache`` give the same training without the teacher's
file.
"""

import argparse
import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.teacher.cache.reader import CachedTeacher
from tests.distributed.test_two_ranks import free_port, run_together
from tests.helpers import digit_corpus, in_process

BUCKET = ("--teacher-topk", 4, "--teacher-tail", "bucket")


@pytest.fixture(scope="module")
def caches(digits, teacher, tmp_path_factory) -> dict[str, Path]:
    """Caches made by the command. The teacher's file is deleted afterwards."""
    root = tmp_path_factory.mktemp("caches")
    gone = root / "teacher.pt"
    shutil.copy(teacher, gone)
    for name, flags in {
        "topk": ("--keep", "topk:8"),
        "hidden": ("--keep", "hidden", "--dtype", "fp32"),
    }.items():
        done = cache(digits, gone, root / name, *flags)
        assert f"{root / name} is complete" in done.stdout
        assert "left out as too long for the teacher: 0" in done.stdout
    gone.unlink()
    return {name: root / name for name in ("topk", "hidden")}


def cache(digits, teacher, out, *flags, **kwargs) -> subprocess.CompletedProcess:
    given = (digits.data, "--teacher-path", teacher, "--teacher-data", digits.data, "--out", out)
    return digit_corpus.run("imitkd-cache", *given, *flags, **kwargs)


def run_flags(criterion, updates, *flags):
    return (
        "--task",
        "translation_with_teacher",
        "--criterion",
        criterion,
        "--max-update",
        updates,
        "--disable-validation",
        *flags,
    )


def losses(metrics) -> list[float]:
    return [interval["loss"] for interval in metrics["train_inner"]]


@pytest.mark.parametrize(
    ("kind", "flags", "tolerance"),
    [
        ("hidden", (), 1e-5),
        pytest.param("topk", BUCKET, 5e-4, marks=pytest.mark.slow),
    ],
    ids=["hidden", "topk"],
)
def test_command_trains_as_with_the_live_teacher(kind, flags, tolerance, digits, teacher, caches, tmp_path):
    """``word_kd`` gives the same losses and weights, up to the cache's precision. All parts are real
    commands.

    Plain gradient descent keeps rounding errors small. Training on the references alone gives other weights.
    """
    flags = (
        *flags,
        "--optimizer",
        "sgd",
        "--lr",
        "0.1",
        "--lr-scheduler",
        "fixed",
        "--warmup-updates",
        0,
        "--dropout",
        "0",
        "--log-interval",
        1,
    )
    live, untaught = (
        in_process.train(
            digits.data,
            tmp_path,
            *run_flags("word_kd", 20, "--teacher-path", teacher, *flags, "--no-save", *more),
        )
        for more in ((), ("--gold-weight", 0.999))
    )
    done = digit_corpus.train(
        digits.data,
        tmp_path,
        *run_flags("word_kd", 20, "--teacher-cache", caches[kind], *flags),
        *digit_corpus.TINY,
    )
    assert losses(in_process.read_metrics(done.stdout)) == pytest.approx(losses(live.metrics), abs=2e-3)
    weights = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)["model"]
    torch.testing.assert_close(weights, live.weights(), rtol=0, atol=tolerance)
    assert (
        max(float((weights[name] - weight).abs().max()) for name, weight in untaught.weights().items())
        > 5 * tolerance
    )


def test_annealing_kd_needs_hidden_states(digits, teacher, caches, tmp_path):
    """Its loss compares logits. Hidden states give the live teacher's logits, and a cache of symbols is
    refused.
    """
    trained = [
        in_process.train(digits.data, tmp_path, *run_flags("annealing_kd", 9, *source, "--no-save"))
        for source in (("--teacher-path", teacher), ("--teacher-cache", caches["hidden"]))
    ]
    assert losses(trained[1].metrics) == pytest.approx(losses(trained[0].metrics), abs=2e-3)
    torch.testing.assert_close(trained[1].weights(), trained[0].weights(), rtol=0, atol=2e-3)
    assert isinstance(trained[1].trainer.task._distiller.teacher, CachedTeacher)
    with pytest.raises(UsageError, match=r"--divergence logit-mse needs more .* --keep hidden"):
        in_process.train(
            digits.data, tmp_path, *run_flags("annealing_kd", 9, "--teacher-cache", caches["topk"])
        )


@pytest.mark.slow
def test_sentences_too_long_for_the_teacher_are_left_out_alike(digits, teacher, tmp_path):
    """The batches and the final weights are those with a live teacher of the same limit."""
    state = torch.load(teacher, weights_only=True)
    model = state["cfg"]["model"]
    settings = vars(model) if isinstance(model, argparse.Namespace) else model
    settings.update(
        max_source_positions=5, max_target_positions=5
    )  # targets have up to 7 tokens, including EOS
    torch.save(state, tmp_path / "short.pt")
    done = cache(digits, tmp_path / "short.pt", tmp_path / "cache", "--keep", "hidden", "--dtype", "fp32")
    long = sum(len(line.split()) > 4 for line in (digits.text / "train.src").read_text().splitlines())
    assert f"left out as too long for the teacher: {long:,}" in done.stdout
    live, cached = (
        in_process.train(digits.data, tmp_path / "saved", *run_flags("word_kd", 4, *source, "--no-save"))
        for source in (
            ("--teacher-path", tmp_path / "short.pt", "--teacher-data", digits.data),
            ("--teacher-cache", tmp_path / "cache"),
        )
    )
    sizes = [
        [(interval["wpb"], interval["bsz"]) for interval in run.metrics["train_inner"]]
        for run in (live, cached)
    ]
    assert sizes[0] == sizes[1]
    torch.testing.assert_close(cached.weights(), live.weights(), rtol=0, atol=1e-3)


def test_both_teacher_and_cache_are_refused(digits, teacher, caches, tmp_path):
    """One of them would be ignored. The run ends before data is read."""
    flags = (
        "--source-lang",
        "src",
        "--target-lang",
        "tgt",
        "--teacher-path",
        teacher,
        "--teacher-cache",
        caches["hidden"],
    )
    with pytest.raises(UsageError, match=r"--teacher-path .* changes nothing with --teacher-cache"):
        in_process.train(digits.dictionaries, tmp_path, *run_flags("word_kd", 9, *flags))


def test_validation_data_is_not_the_caches(digits, caches, tmp_path):
    """Validation does not ask the teacher. Its sentences have the numbers of training sentences, but no
    answers.
    """
    flags = run_flags("word_kd", 4, "--teacher-cache", caches["hidden"], "--no-save")
    flags = [flag for flag in flags if flag != "--disable-validation"]
    trained = in_process.train(digits.data, tmp_path, *flags, "--validate-interval-updates", 2)
    assert len(trained.metrics["valid"]) >= 2


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "kind"), [("fp16", "hidden"), ("fp16", "topk"), ("amp", "hidden")])
def test_half_precision_student(precision, kind, digits, teacher, caches, tmp_path):
    """A cache answers in the student's precision, like a teacher of ``--teacher-dtype auto``."""
    flags = {"fp16": ("--fp16", "--fp16-no-flatten-grads", "--fp16-init-scale", 4), "amp": ("--amp",)}[
        precision
    ]
    flags = (*flags, "--no-save", *(BUCKET if kind == "topk" else ()))
    trained = [
        in_process.train(digits.data, tmp_path, *run_flags("word_kd", 4, *source, *flags))
        for source in (("--teacher-path", teacher), ("--teacher-cache", caches[kind]))
    ]
    assert losses(trained[1].metrics) == pytest.approx(losses(trained[0].metrics), abs=0.02)


@pytest.mark.slow
def test_update_freq_and_chunks(digits, caches, tmp_path):
    """Two micro-batches in chunks equal the double batch, as with a live teacher."""
    flags = (
        "--teacher-cache",
        caches["topk"],
        *BUCKET,
        "--dropout",
        "0",
        "--optimizer",
        "sgd",
        "--lr",
        "0.5",
        "--lr-scheduler",
        "fixed",
        "--warmup-updates",
        0,
        "--curriculum",
        9,
        "--no-save",
    )
    double = in_process.train(
        digits.data, tmp_path, *run_flags("word_kd", 3, *flags, "--batch-size", 32)
    ).weights()
    split = in_process.train(
        digits.data,
        tmp_path,
        *run_flags("word_kd", 3, *flags, "--batch-size", 16, "--update-freq", 2, "--loss-chunk", 17),
    ).weights()
    torch.testing.assert_close(split, double, rtol=1e-5, atol=1e-6)


def test_stopped_and_resumed_equals_uninterrupted(digits, caches, tmp_path):
    """A cache has no state. The weights are equal to the last bit."""
    flags = ("--teacher-cache", caches["hidden"], "--save-interval-updates", 5, "--keep-interval-updates", 1)
    whole = in_process.train(digits.data, tmp_path / "whole", *run_flags("word_kd", 10, *flags)).weights()

    class Stop(Exception):
        pass

    def stop(trainer, update, samples):
        if trainer.get_num_updates() == 7:
            raise Stop
        return update()

    with pytest.raises(Stop):
        in_process.train(
            digits.data, tmp_path / "stopped", *run_flags("word_kd", 10, *flags), around_step=stop
        )
    resumed = in_process.train(digits.data, tmp_path / "stopped", *run_flags("word_kd", 10, *flags))
    assert len(resumed.metrics["train_inner"]) == 5
    torch.testing.assert_close(resumed.weights(), whole, rtol=0, atol=0)


@pytest.mark.slow
def test_two_processes_train_as_one(digits, caches, tmp_path):
    """Each process reads the answers for its own batches."""

    def command(name: str, *flags: object) -> list[str]:
        common = run_flags(
            "word_kd",
            4,
            "--teacher-cache",
            caches["hidden"],
            "--dropout",
            "0",
            "--optimizer",
            "sgd",
            "--lr",
            "0.5",
            "--lr-scheduler",
            "fixed",
            "--warmup-updates",
            0,
            *digit_corpus.TINY,
        )
        arguments = (digits.data, "--save-dir", tmp_path / name, *in_process.SETTINGS, *common, *flags)
        return list(map(str, (digit_corpus.BIN / "imitkd-train", *arguments)))

    meeting = f"tcp://127.0.0.1:{free_port()}"
    two = [
        command(
            "two",
            "--distributed-init-method",
            meeting,
            "--distributed-rank",
            rank,
            "--distributed-world-size",
            2,
            "--distributed-no-spawn",
            "--distributed-backend",
            "gloo",
            "--ddp-backend",
            "legacy_ddp",
        )
        for rank in range(2)
    ]
    run_together([*two, command("one", "--update-freq", 2)], tmp_path)
    models = [
        torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=True)["model"]
        for name in ("two", "one")
    ]
    torch.testing.assert_close(models[0], models[1], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_killed_command_continues(digits, teacher, tmp_path):
    """After ``kill -9`` no run accepts the unfinished cache. The same command completes it."""
    flags = ("--keep", "topk:8", "--max-tokens", 8)
    out = tmp_path / "killed"
    arguments = [digits.data, "--teacher-path", teacher, "--teacher-data", digits.data, "--out", out, *flags]
    process = subprocess.Popen(
        [digit_corpus.BIN / "imitkd-cache", *map(str, arguments)],
        stderr=subprocess.DEVNULL,
        env=digit_corpus.ENVIRONMENT,
    )
    deadline = time.monotonic() + 200
    while noted(out) == 0 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait(timeout=60) == -9, "the first command must be killed before its end"
    assert noted(out) > 0
    assert not (out / "cache.json").exists()
    with pytest.raises(UsageError, match=r"is not complete: run its imitkd-cache command again"):
        in_process.train(
            digits.data, tmp_path / "saved", *run_flags("word_kd", 9, "--teacher-cache", out, *BUCKET)
        )

    cache(digits, teacher, out, *flags)
    cache(digits, teacher, tmp_path / "whole", *flags)
    names = sorted(path.name for path in out.iterdir())
    assert names == ["cache.json", "lprobs.npy", "offsets.npy", "symbols.npy", "tail.npy"]
    assert [(out / name).read_bytes() for name in names] == [
        (tmp_path / "whole" / name).read_bytes() for name in names
    ]


def noted(out: Path) -> int:
    """Return the number of batches that a command has recorded as done."""
    path = out / "progress.json"
    return (json.loads(path.read_text())["batches"] or 0) if path.exists() else 0


def test_full_disk_is_one_line(digits, teacher, tmp_path):
    """The file size is really limited. The command names the problem and leaves no torn cache."""
    out = tmp_path / "full"
    command = [
        digit_corpus.BIN / "imitkd-cache",
        digits.data,
        "--teacher-path",
        teacher,
        "--teacher-data",
        digits.data,
        "--out",
        out,
    ]
    words = " ".join(f"'{word}'" for word in [*command, "--keep", "topk:8"])
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 100; {words}"],
        capture_output=True,
        text=True,
        env=digit_corpus.ENVIRONMENT,
        timeout=200,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: --out '{out}' can't be written (File too large)")
    assert "Traceback" not in done.stderr
    assert not out.exists()
