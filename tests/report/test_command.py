"""``imitkd-report``: the command, and the page it writes."""

import json
import os
import re
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fairseq_imitkd.cli import report
from fairseq_imitkd.errors import UsageError
from tests.helpers import report_files

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def make(folder: Path, *arguments: object) -> str:
    report.main([*map(str, arguments), "--out", str(folder / "report.html")])
    return (folder / "report.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Collects a page's tags, what they refer to, and their ids; complains of one that is not closed."""

    EMPTY = ("meta", "link", "input", "br", "img", "wbr")

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())


def test_a_page_of_everything(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """All sections, well-formed, nothing from elsewhere, and nothing that runs."""
    runs = [
        report_files.run(tmp_path / name, seed=seed, from_log=from_log)
        for seed, (name, from_log) in enumerate((("a", False), ("b", True)))
    ]
    rollout = {"source": "a b", "student": [["c d"], ["e", "f"]]}
    (runs[0] / "rollouts.jsonl").write_text(json.dumps({"num_updates": 9, "rollouts": [rollout]}) + "\n")
    page = make(tmp_path, *runs, "--evaluation", report_files.evaluation(tmp_path / "ev"))
    reader = Reader(page)
    sections = [attrs["id"] for tag, attrs in reader.tags if tag == "section"]
    assert sections == [
        "models", "training", "rollouts", "sentences", "length", "exposure", "examples", "settings",
    ]  # fmt: skip
    assert page.count("Unknown: config.json is missing or can't be read.") == 1
    ids = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [
        attrs.get(name, "")
        for _, attrs in reader.tags
        for name in ("href", "src", "xlink:href")
        if name in attrs
    ]
    assert all(link[1:] in ids or link == "data:," for link in links)
    assert not {tag for tag, _ in reader.tags} & {"script", "iframe", "object", "img", "form"}
    assert not [attrs for _, attrs in reader.tags if any(name.startswith("on") for name in attrs)]
    assert "url(http" not in page
    assert "t.pt:u.pt" in page
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path / 'report.html'}: 2 runs, 1 evaluation, 0.")
    assert err == ""


def test_whatever_is_in_files_is_text(tmp_path: Path) -> None:
    """Names, settings, translations and everything else that a page shows of them."""
    run = report_files.run(tmp_path / "<b>run")
    config = run / "config.json"
    config.write_text(config.read_text().replace("imitkd", HOSTILE).replace("/home/someone/run", HOSTILE))
    folder = report_files.evaluation(tmp_path / "ev")
    content = (folder / "evaluation.json").read_text().replace('"m1"', f'"{HOSTILE}"')
    for harmless in ("A fast one", "nrefs:1", "transformer", "imitkd-evaluate …"):
        content = content.replace(harmless, HOSTILE)
    (folder / "evaluation.json").write_text(content)
    for name in ("sources.txt", "references.txt", "m2.greedy.txt"):
        (folder / name).write_text(f"{HOSTILE} {name}\n" * 20)
    page = make(tmp_path, run, "--evaluation", folder)
    assert not {tag for tag, _ in Reader(page).tags} & {"script", "img", "b"}
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 20


def test_names_that_are_not_text(tmp_path: Path) -> None:
    """A file system's bytes and JSON's halves of letters can't be written; the page can."""
    folder = report_files.evaluation(tmp_path / "ev")
    content = (folder / "evaluation.json").read_text()
    (folder / "evaluation.json").write_text(content.replace('"m2"', '"m\\ud800\\u0000\\u202e$_{"'))
    (folder / "m2.greedy.txt").write_bytes(b"\xff\xfe\n" * 20)
    Reader(make(tmp_path, "--evaluation", folder))


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Sections without data are left out."""
    page = make(tmp_path, report_files.run(tmp_path / "plain", rollouts=False))
    assert re.findall(r'<section id="(\w+)"', page) == ["training", "settings"]
    assert "imitkd-evaluate measures them" in page
    assert "no run was trained by one of the plugin" in page
    assert capsys.readouterr().err == ""  # a training without a method is nothing odd

    page = make(tmp_path, "--evaluation", report_files.evaluation(tmp_path / "ev"))
    assert re.findall(r'<section id="(\w+)"', page) == [
        "models",
        "length",
        "exposure",
        "examples",
        "settings",
    ]
    assert "Training is missing" in page


def test_the_rest_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """What can't be read is a warning on the console and a note on the page.

    The status is 1, because a folder does not exist, or an evaluation is damaged.
    """
    (tmp_path / "ev").mkdir()
    (tmp_path / "ev" / "evaluation.json").write_text("{")
    report_files.run(tmp_path / "good")
    with pytest.raises(SystemExit, match="1"):
        make(tmp_path, tmp_path / "good", "--evaluation", tmp_path / "ev")
    capsys.readouterr()
    with pytest.raises(SystemExit, match="1"):
        make(tmp_path, tmp_path / "gone", tmp_path / "good", "--evaluation", tmp_path / "ev")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    warnings = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in warnings] == ["warning"] * 2
    for line, name in zip(warnings, (tmp_path / "gone", tmp_path / "ev" / "evaluation.json"), strict=True):
        assert str(name) in line
        assert f"…/{name.parent.name}/{name.name}" in page
        assert str(name) not in page


def test_notes_shorten_folders_with_blanks(tmp_path: Path) -> None:
    """As all others."""
    several = tmp_path / "jane doe" / "runs of may"
    report_files.run(several / "one")
    page = unescape(make(tmp_path, report_files.run(tmp_path / "run"), several))
    assert "RUN_DIR '…/jane doe/runs of may' has trainings in its folders" in page
    assert "; name those, such as '…/runs of may/one'" in page


def test_nothing_to_report(tmp_path: Path) -> None:
    """Ends with a line, and no page."""
    with pytest.raises(UsageError, match=r"nothing could be read: RUN_DIR '.*gone' does not exist"):
        make(tmp_path, tmp_path / "gone")
    with pytest.raises(
        UsageError, match="there is nothing to report; give folders of trainings, --evaluation DIR, or both"
    ):
        make(tmp_path)
    run = report_files.run(tmp_path / "run")
    for folder in (tmp_path / "nowhere", run):
        with pytest.raises(UsageError) as refused:
            make(tmp_path, run, "--evaluation", folder)
        assert str(refused.value) == (
            f"--evaluation '{folder}' has no evaluation.json; use the --out folder of imitkd-evaluate, or "
            "leave it out"
        )
    assert not (tmp_path / "report.html").exists()


def test_out_that_cannot_be_written(tmp_path: Path) -> None:
    """Is refused before anything is read. Only a former report is overwritten."""
    run = report_files.run(tmp_path / "run")
    for out, said in (
        (tmp_path, "is a folder; use a file, such as"),
        (tmp_path / "no" / "report.html", "can't be written: its folder does not exist; create it"),
        (run / "metrics.jsonl", "exists and is not a report; use another file, or delete it first"),
    ):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UsageError, match=re.escape(f"--out '{out}' {said}")):
            report.main([str(run), "--out", str(out)])
        assert sorted(tmp_path.rglob("*")) == before
    first = make(tmp_path, run)
    assert make(tmp_path, run) == first
    assert not list(tmp_path.glob("*.partial"))


def test_a_full_disk_leaves_the_former_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing beside it."""
    out = tmp_path / "report.html"
    out.write_text("former")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        UsageError, match=r"can't be written \(No space left on device\); make room or use another file"
    ):
        report.write(out, "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["former"]


@pytest.mark.parametrize("name", report.EXTRA)
def test_what_is_not_installed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is named, with what installs it."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        UsageError, match=rf"imitkd-report needs {name}: pip install 'fairseq-imitkd\[report\]'"
    ):
        make(tmp_path, tmp_path)


def test_paths_of_the_machine(tmp_path: Path) -> None:
    """Are not for those who read a page; their last parts are."""
    folder = report_files.evaluation(tmp_path / "ev")
    report_files.change(folder, command="imitkd-evaluate --model one=/home/someone/runs/one/best.pt --out ev")
    page = make(tmp_path, report_files.run(tmp_path / "student"), "--evaluation", folder)
    assert "someone" not in page
    assert str(tmp_path) not in page
    assert "--model one=…/one/best.pt --out ev" in page
    assert f"…/{tmp_path.name}/student/metrics.jsonl" not in page
    assert "…/student/metrics.jsonl" in page
    assert "save_dir = …/run" in page


def test_evaluations_of_one_name(tmp_path: Path) -> None:
    """Are told apart by as much of their paths as it takes."""
    folders = [report_files.evaluation(tmp_path / where / "evaluation") for where in ("one", "two")]
    page = make(tmp_path, *(part for folder in folders for part in ("--evaluation", folder)))
    assert re.findall(r'<p class="of">([\w/]+)', page) == ["one/evaluation", "two/evaluation"] * 4


def test_several_evaluations(tmp_path: Path) -> None:
    """Stand one after the other under their folders' names."""
    page = make(
        tmp_path,
        *(
            part
            for name in ("one", "two")
            for part in ("--evaluation", report_files.evaluation(tmp_path / name))
        ),
    )
    Reader(page)
    assert re.findall(r'<p class="of">(\w+)', page) == ["one", "two"] * 4
