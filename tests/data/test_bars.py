"""Progress of long work on a terminal, and in files and pipes."""

import io
import sys
from typing import Any

import pytest

from fairseq_imitkd.data import bars
from fairseq_imitkd.data.bars import Bar


class Terminal(io.StringIO):
    """Standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(stream: Any, monkeypatch: pytest.MonkeyPatch, seconds: float) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(bars, "SECONDS", seconds)
    with Bar(total=3, desc="translate", unit=" sentences") as bar:
        for _ in range(3):
            bar.update()
    return stream.getvalue()


def test_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\rtranslate: " in shown(Terminal(), monkeypatch, 30.0)


def test_short_work_writes_nothing_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(io.StringIO(), monkeypatch, 30.0) == ""


def test_long_work_writes_lines_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(io.StringIO(), monkeypatch, 0.0).splitlines()
    assert [line.split("|")[0] for line in lines[-3:]] == [f"translate:  {n}%" for n in (33, 67)] + [
        "translate: 100%"
    ]
    assert "sentences" in lines[0]


def test_the_last_line_in_a_file_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the end comes right after another line."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(bars, "SECONDS", 0.0)
    with Bar(total=3, desc="translate") as bar:
        bar.update(2)
        bar.mininterval = 30.0
        bar.update()
    assert [line.split("|")[0] for line in stream.getvalue().splitlines()][-2:] == [
        "translate:  67%",
        "translate: 100%",
    ]
