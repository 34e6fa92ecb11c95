"""Paths on a page that others read."""

from pathlib import Path

import pytest

from fairseq_imitkd.report.paths import disambiguate, shortened


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


def test_names_have_as_many_parts_as_tell_them_apart() -> None:
    """No more, and all of them where nothing does."""
    paths = [Path("/a/x/run"), Path("/b/x/run"), Path("/b/y/run"), Path("/b/other")]
    assert disambiguate(paths) == ["a/x/run", "b/x/run", "y/run", "other"]
    assert disambiguate([Path("/a/b"), Path("/a/b")]) == ["/a/b"] * 2
    assert disambiguate([]) == []
