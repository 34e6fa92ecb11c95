"""``--log-rollouts`` in whole trainings: what it writes, and that the weights are the same without it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.logging import progress_bar

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.report.page import page
from fairseq_imitkd.report.runs import read_runs
from tests.helpers import in_process

FLAGS = (
    "--task", "translation_with_teacher", "--student-share", "constant:0.5", "--max-update", 6,
    "--rollout-max-len-b", 4, "--update-freq", 2, "--disable-validation", "--max-tokens", 100,
)  # fmt: skip
SHOWING = ("--log-rollouts", 2, "--log-rollouts-interval", 3)


@pytest.mark.parametrize(
    "method",
    [
        ("imitkd", "--loss-chunk", 8),
        ("imitkd_full", "--rollout-pool"),
        ("imitkd", "--rollout-policy", "sampling", "--reward", "chrf", "--teacher-dtype", "bf16"),
    ],
    ids=["chunks", "pool", "reward"],
)
def test_training_is_the_same_bit_for_bit(
    method: tuple[Any, ...], digits: Any, teacher: Path, tmp_path: Path
) -> None:
    flags = (*FLAGS, "--teacher-path", teacher, "--criterion", *method)
    without = in_process.train(digits.data, tmp_path / "without", *flags).weights()
    shown = in_process.train(digits.data, tmp_path / "shown", *flags, *SHOWING).weights()
    assert without.keys() == shown.keys()
    assert all(torch.equal(without[name], shown[name]) for name in without)
    assert not (tmp_path / "without" / "rollouts.jsonl").exists()
    lines = (tmp_path / "shown" / "rollouts.jsonl").read_text().splitlines()
    assert [json.loads(line)["num_updates"] for line in lines] == [1, 3, 6]
    assert all(len(json.loads(line)["rollouts"]) == 2 for line in lines)


def test_it_is_in_the_log_in_tensorboard_and_in_the_report(
    digits: Any, teacher: Path, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    """The same words in each of them, and in a resumed run those of later updates once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(progress_bar, "_tensorboard_writers", {})  # of other trainings
    caplog.set_level("INFO")
    logs = ("--tensorboard-logdir", tmp_path / "tensorboard", "--teacher-path", teacher)
    for flags in (SHOWING, (*SHOWING, "--max-update", 9)):
        in_process.train(digits.data, tmp_path / "run", *FLAGS, "--criterion", "imitkd", *logs, *flags)
    lines = (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()
    by_update = {json.loads(line)["num_updates"]: json.loads(line)["rollouts"] for line in lines}
    assert list(by_update) == [1, 3, 6, 7, 9]
    progress_bar._tensorboard_writers["train_inner"].flush()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "train_inner"))
    events.Reload()
    tables = {
        event.step: event.tensor_proto.string_val[0].decode()
        for event in events.Tensors("rollouts/text_summary")
    }
    [run], notes = read_runs([tmp_path / "run"])
    assert notes == []
    assert [at.update for at in run.rollouts] == [1, 3, 7, 9]
    html, _ = page([run], [])
    for at in run.rollouts:
        assert f"update {at.update}</span>" in html
        for rollout, written in zip(at.rollouts, by_update[at.update], strict=True):
            assert any(f"source:  {rollout.source}\n" in record.getMessage() for record in caplog.records)
            assert any(f"student: {rollout.plain()}" in record.getMessage() for record in caplog.records)
            assert rollout.source == written["source"]
            assert f"| {rollout.source} |" in tables[at.update]
            assert f'<dd dir="auto">{rollout.source}</dd>' in html
            for own, *other in rollout.parts:
                if other:
                    corrected = own.strip().replace("<", "&lt;").replace(">", "&gt;")
                    assert f"<del>{corrected}</del>&nbsp;<ins>" in html


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--criterion", "word_kd", "--log-rollouts", 3),
            "--log-rollouts 3 changes nothing at --student-",
        ),
        (
            ("--criterion", "imitkd", "--log-rollouts", -1),
            "--log-rollouts must be 0 (none) or more, but",
        ),
        (
            ("--criterion", "imitkd", "--log-rollouts-interval", 9),
            "--log-rollouts-interval 9 changes nothing without --log-rollouts: add it with the number",
        ),
    ],
)
def test_refused(flags: tuple[Any, ...], message: str, digits: Any, tmp_path: Path) -> None:
    """Where there is nothing to show, before the teacher is read."""
    with pytest.raises(UsageError) as found:
        in_process.train(
            digits.data, tmp_path, "--task", "translation_with_teacher", "--max-update", 6, *flags
        )
    assert str(found.value).startswith(message)
    assert "\n" not in str(found.value)
