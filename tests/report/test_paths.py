"""Paths on a page that others read."""

from pathlib import Path

import pytest

from fairseq_imitkd.report.paths import disambiguate, shortened, shortened_value
from fairseq_imitkd.report.settings import shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/someone/runs/student/train.log", "…/student/train.log"),
        ("/home/someone/data-bin", "…/data-bin"),
        ("/home/someone", "…"),
        ("RUN_DIR '/home/jane doe/runs/x' is given twice", "RUN_DIR '…/runs/x' is given twice"),
        ("the run's '/home/a, b/c' and its teachers' /home/a/b", "the run's '…/c' and its teachers' …/b"),
        ("['/home/jane doe/a:/home/jane doe/b']", "['…/a:…/b']"),
        ("--model 't=/home/jane doe/a/b.pt' --out /home/jane/x", "--model 't=…/a/b.pt' --out …/x"),
        ("/data", "/data"),
        ("['/home/someone/a/b', 'c/d/e']", "['…/a/b', 'c/d/e']"),
        ("t.pt:/home/someone/models/u.pt", "t.pt:…/models/u.pt"),
        ("--model t=/home/someone/a/b.pt --data ../d/e/f", "--model t=…/a/b.pt --data ../d/e/f"),
        ("https://example.org/a/b/c", "https://example.org/a/b/c"),
        ("~/a/b/c and ./a/b/c, 1/2/3 / 4", "~/a/b/c and ./a/b/c, 1/2/3 / 4"),
        (0.5, "0.5"),
        (None, "None"),
    ],
)
def test_absolute_paths_are_shortened(text: object, expected: str) -> None:
    """Whatever stands around them; other paths, addresses and slashes stay."""
    assert shortened(text) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Path("/home/jane doe/runs/x/metrics.jsonl"), "…/x/metrics.jsonl"),
        ("/home/jane (a, b)/runs/x", "…/runs/x"),
        ("/home/jane doe", "…"),
        ("t.pt:/home/jane doe/u.pt:/home/jane doe/v.pt", "t.pt:…/u.pt:…/v.pt"),
        ("/home/jane doe/a, /home/jane doe/b", "…/a, …/b"),
        ("https://example.org/a/b/c", "https://example.org/a/b/c"),
        (["/home/jane doe/a"], "['…/a']"),
        (None, "None"),
    ],
)
def test_values_have_blanks_in_their_paths(value: object, expected: str) -> None:
    assert shortened_value(value) == expected


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/data", "data"),
        ("/x/data", "data"),
        ("/x/y/checkpoint_best.pt", "checkpoint_best.pt"),
        ("/x/y/z/checkpoint_best.pt", "z/checkpoint_best.pt"),
        ("/", "/"),
        ("data", "data"),
    ],
)
def test_the_last_parts_of_a_path(path: str, text: str) -> None:
    assert shown("data", path) == text
    assert shown("data", "/x/y/data", 2) == "data"
    assert shown("data", "x/y/data", 2) == "y/data"


def test_names_have_as_many_parts_as_tell_them_apart() -> None:
    """No more, and all of them where nothing does."""
    paths = [Path("/a/x/run"), Path("/b/x/run"), Path("/b/y/run"), Path("/b/other")]
    assert disambiguate(paths) == ["a/x/run", "b/x/run", "y/run", "other"]
    assert disambiguate([Path("/a/b"), Path("/a/b")]) == ["/a/b"] * 2
    assert disambiguate([]) == []
