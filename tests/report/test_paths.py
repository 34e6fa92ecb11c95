"""Paths on a page that others read."""

from pathlib import Path

import pytest

from fairseq_imitkd.report.paths import disambiguate, shortened
from fairseq_imitkd.report.settings import shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/someone/runs/student/train.log", "…/student/train.log"),
        ("/home/someone/data-bin", "…/data-bin"),
        ("/tmp/plasma", "…/plasma"),
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
    ("path", "text"),
    [
        ("/data", "data"),
        ("/x/data", "data"),
        ("/x/y/checkpoint_best.pt", "y/checkpoint_best.pt"),
        ("data", "data"),
    ],
)
def test_the_last_parts_of_a_path(path: str, text: str) -> None:
    assert shown("data", path) == text
    assert shown("data", "/data", 2) == "/data"


def test_names_have_as_many_parts_as_tell_them_apart() -> None:
    """No more, and all of them where nothing does."""
    paths = [Path("/a/x/run"), Path("/b/x/run"), Path("/b/y/run"), Path("/b/other")]
    assert disambiguate(paths) == ["a/x/run", "b/x/run", "y/run", "other"]
    assert disambiguate([Path("/a/b"), Path("/a/b")]) == ["/a/b"] * 2
    assert disambiguate([]) == []
