"""Logged metrics have the same names in metrics.jsonl, TensorBoard and Weights & Biases."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fairseq.logging import progress_bar

import fairseq_imitkd.mixing.mixer
from fairseq_imitkd.report import tensorboard
from fairseq_imitkd.report.runs import read_run
from fairseq_imitkd.training.configuration import devices
from fairseq_imitkd.training.run_files import CPU_SECONDS
from tests.helpers import digit_corpus, in_process

# Metrics that docs/methods.md lists beside fairseq's own: those of every training with rollouts
# …
ALWAYS = {
    "loss_data",
    "loss_rollout",
    "tokens_data",
    "tokens_rollout",
    "student_share",
    "rollout_len",
    "truncated",
    "empty",
    "repetition",
    "agreement",
    "rollout_time",
    "teacher_time",
    "rollout_work",
    "padding",
}
# … and those that only some trainings log.
OF_REWARDS, OF_PRUNING = {"reward", "reward_spread"}, {"sparsity"}
OF_REPLAY, OF_MEMORY = {"rollout_staleness", "rollouts_replayed"}, {"rollout_out_of_memory"}
# Their values are read some microseconds after fairseq's progress bar shows them.
RATES = {"wps", "ups", "train_wall", "wall"}
SCORES = {"chrf", "ter", "rouge1", "rouge2", "rougeL", "bleu"}

UPDATES = 6
COMMON = (
    "--max-update",
    UPDATES,
    "--student-share",
    "constant:0.5",
    "--rollout-policy",
    "sampling",
    "--rollout-max-len-b",
    2,
    "--validate-interval-updates",
    3,
    "--no-save",
    "--log-interval",
    1,
)
# The part of the package that fairseq calls. It writes its arguments to a file.
STAND_IN = """
import json, os

def note(**what):
    with open(os.environ["WANDB_NOTES"], "a") as file:
        print(json.dumps(what), file=file)

class config:
    @staticmethod
    def update(settings):
        note(settings=sorted(settings))

def init(project, reinit, name):
    note(project=project, name=name)

def log(metrics, step):
    note(metrics=metrics, step=step)
"""


def check_tensorboard(folder: Path, logged: dict[str, list[dict[str, float]]]) -> None:
    """Check that the event files hold every metric of the JSON log under its tag and update, and no other."""
    found = tensorboard.read(folder, tensorboard.event_files(folder))
    for tag in ("train_inner", "valid"):
        rows = {int(row["num_updates"]): shown(row) for row in logged[tag]}
        assert found[tag] == {update: pytest.approx(row, rel=1e-4, abs=1e-6) for update, row in rows.items()}


def check_metrics(folder: Path, logged: dict[str, list[dict[str, float]]]) -> None:
    """Check that metrics.jsonl holds every metric of the JSON log, and the CPU time."""
    run = read_run(folder)
    for tag in ("train_inner", "valid"):
        rows = {int(row["num_updates"]): shown(row) for row in logged[tag]}
        found = {update: shown(row) for update, row in run.metrics[tag].items()}
        assert found.keys() == rows.keys()
        for update, row in rows.items():
            assert found[update].keys() == row.keys() | {CPU_SECONDS}
            for name in row.keys() - RATES:
                assert found[update][name] == pytest.approx(row[name], rel=1e-4, abs=1e-6), name


def shown(row: dict[str, float]) -> dict[str, float]:
    """Return the metrics without their updates and times."""
    return {name: value for name, value in row.items() if name not in ("epoch", "update", "num_updates")}


def check_wandb(notes: list[dict], logged: dict[str, list[dict[str, float]]]) -> None:
    """Check that Weights & Biases gets the same metrics, under names that begin with the tag."""
    found: dict[int, dict[str, float]] = {}
    for note in notes:
        found.setdefault(note["step"], {}).update(note["metrics"])
    for tag in ("train_inner", "valid"):
        for row in logged[tag]:
            own = {
                name: value
                for name, value in found[int(row["num_updates"])].items()
                if name.startswith(f"{tag}/")
            }
            assert own == pytest.approx(
                {f"{tag}/{name}": value for name, value in shown(row).items()}, rel=1e-4, abs=1e-6
            )


def test_everything_arrives(digits, teacher, tmp_path):
    """``imitkd-train`` logs rollouts, rewards, pruning, and the scores of two validations."""
    (tmp_path / "stand_in").mkdir()
    (tmp_path / "stand_in" / "wandb.py").write_text(STAND_IN)
    done = digit_corpus.train(
        digits.data,
        tmp_path / "saved",
        "--teacher-path",
        teacher,
        "--criterion",
        "imitkd_full",
        *COMMON,
        "--reward",
        "chrf",
        "--prune-sparsity",
        0.5,
        "--prune-end",
        4,
        "--prune-every",
        2,
        "--eval-bleu-args",
        '{"beam": 1, "max_len_b": 9}',
        "--eval-metrics",
        "chrf,ter,rouge-1,rouge-2,rouge-l,bleu",
        "--tensorboard-logdir",
        tmp_path / "tensorboard",
        "--wandb-project",
        "students",
        *digit_corpus.TINY,
        real=True,
        env={
            "PYTHONPATH": f"{digit_corpus.REPO}:{tmp_path / 'stand_in'}",
            "WANDB_NOTES": str(tmp_path / "notes.jsonl"),
        },
    )
    logged = in_process.read_metrics(done.stdout)
    assert [row["num_updates"] for row in logged["train_inner"]] == list(range(1, UPDATES + 1))
    assert all(row.keys() >= ALWAYS | OF_REWARDS | OF_PRUNING for row in logged["train_inner"])
    assert [row["num_updates"] for row in logged["valid"]] == [3, 6]
    assert all(row.keys() >= SCORES for row in logged["valid"])
    check_metrics(tmp_path / "saved", logged)
    check_tensorboard(tmp_path / "tensorboard", logged)
    notes = [json.loads(line) for line in (tmp_path / "notes.jsonl").read_text().splitlines()]
    assert {"project": "students", "name": "saved"} in notes
    assert any("task" in note.get("settings", ()) for note in notes)
    check_wandb([note for note in notes if "metrics" in note], logged)


def test_replay_and_lost_rollouts_arrive(digits, teacher, tmp_path, monkeypatch):
    """Only some trainings log these metrics. A rollout that runs out of memory is simulated."""
    decode, calls, notes = fairseq_imitkd.mixing.mixer.decode, [], []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("no memory is left")
        return decode(*args, **kwargs)

    monkeypatch.setattr(fairseq_imitkd.mixing.mixer, "decode", failing)
    monkeypatch.setattr(
        progress_bar, "_tensorboard_writers", {}
    )  # these would belong to another training with the same tags
    stand_in = SimpleNamespace(
        init=lambda **_: None,
        config=SimpleNamespace(update=lambda _: None),
        log=lambda metrics, step: notes.append({"metrics": metrics, "step": step}),
    )
    monkeypatch.setattr(progress_bar, "wandb", stand_in)
    monkeypatch.setattr(devices, "find_spec", lambda name: name)  # as if wandb were installed
    logged = in_process.train(
        digits.data,
        tmp_path / "saved",
        "--task",
        "translation_with_teacher",
        "--teacher-path",
        teacher,
        "--criterion",
        "imitkd_full",
        *COMMON,
        "--rollout-replay",
        60,
        "--rollout-replay-share",
        "constant:0.5",
        "--tensorboard-logdir",
        tmp_path / "tensorboard",
        "--wandb-project",
        "students",
    ).metrics
    assert set().union(*logged["train_inner"]) >= ALWAYS | OF_REPLAY | OF_MEMORY
    assert any(row.get("rollout_staleness", 0) > 0 for row in logged["train_inner"])
    assert sum(row.get("rollout_out_of_memory", 0) for row in logged["train_inner"]) == 1
    check_metrics(tmp_path / "saved", logged)
    check_tensorboard(tmp_path / "tensorboard", logged)
    check_wandb(notes, logged)
