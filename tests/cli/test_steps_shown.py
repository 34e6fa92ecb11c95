"""How long steps have run and still take, in words."""

from types import SimpleNamespace

import pytest

from fairseq_imitkd.cli.steps_shown import left, roughly
from fairseq_imitkd.pipeline.runner import RUNNING, Status


def test_updates_before_a_stop_took_no_time_of_this_run() -> None:
    """A training of 200 updates was stopped at update 64, and did 34 more in 17 seconds."""
    step, status = SimpleNamespace(updates=200), Status(RUNNING, updates=98)
    assert left(step, status, 17.0, before=64) == "0:00:17, 0:00:51 left"
    assert left(step, status, 17.0) == "0:00:17, 0:00:18 left"
    assert left(step, Status(RUNNING, updates=64), 0.0, before=64) == "0:00:00"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (18_720, "5 h 12 min"), (363_600, "4 d 5 h")],
)
def test_estimates_have_two_units(seconds: float, words: str) -> None:
    assert roughly(seconds) == words
