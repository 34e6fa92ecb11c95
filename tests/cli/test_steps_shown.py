"""How long steps have run and still take, in words."""

from types import SimpleNamespace
from typing import Any

import pytest

from fairseq_imitkd.cli import steps_shown
from fairseq_imitkd.cli.steps_shown import Shown, left, roughly
from fairseq_imitkd.pipeline.runner import RUNNING, WAITING, Status


def test_the_time_left_is_that_of_updates_alone() -> None:
    """A training of 200 updates was first seen at update 64, after 60 seconds, and did 34 more in 17."""
    step, status = SimpleNamespace(updates=200), Status(RUNNING, updates=98)
    assert left(step, status, 77.0, first=(60.0, 64)) == "0:01:17, 0:00:51 left"
    assert left(step, status, 60.0, first=(60.0, 98)) == "0:01:00", "no second update yet"
    assert left(step, status, 60.0, first=None) == "0:01:00"


def test_the_first_update_of_a_run_counts(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Those of an earlier run that was stopped don't."""
    step, clock = SimpleNamespace(name="train", updates=200), [1000.0]
    monkeypatch.setattr(steps_shown, "time", SimpleNamespace(time=lambda: clock[0]))
    run = SimpleNamespace(plan=SimpleNamespace(steps=[step]), statuses=lambda: {"train": Status(WAITING)})
    shown = Shown(run)
    for seconds, updates in ((0, 64), (70, 64), (140, 70), (210, 104)):
        clock[0] = 1000.0 + seconds
        shown.show({"train": Status(RUNNING, began=1000.0, updates=updates)})
    assert capsys.readouterr().err.splitlines() == [
        "train: begins",
        "train: 64 of 200 updates after 0:00:00",
        "train: 64 of 200 updates after 0:01:10",
        "train: 70 of 200 updates after 0:02:20",
        "train: 104 of 200 updates after 0:03:30, 0:03:18 left",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (18_720, "5 h 12 min"), (363_600, "4 d 5 h")],
)
def test_estimates_have_two_units(seconds: float, words: str) -> None:
    assert roughly(seconds) == words
