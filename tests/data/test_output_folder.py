"""Output folders: whose they are, one run at a time, and one line for whatever can't be written."""

import errno
import fcntl
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from fairseq_imitkd.data import output_folder
from fairseq_imitkd.data.files import partial
from fairseq_imitkd.data.output_folder import LOCK, OutputFolder, difference, is_leftover
from fairseq_imitkd.errors import UsageError
from tests.helpers.killable import tree

IDENTITY = {"format": 1, "teachers": ["abc"], "decoding": {"beam": 5, "metric": None}}


def folder(path: Path, **settings: Any) -> OutputFolder:
    """A folder with a mark of a job that has begun and one of a job that is done."""
    return OutputFolder(path, "a folder of this test", **{"marks": ("done.json", "job.json"), **settings})


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(UsageError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_claim(tmp_path: Path) -> None:
    """An absent or empty folder becomes the job's, and is then found to be; leftovers don't count."""
    mine = folder(tmp_path / "some" / "out")
    assert mine.check(IDENTITY) is False
    assert not mine.path.exists()
    assert mine.claim(IDENTITY) is True
    assert mine.claim(IDENTITY) is False
    assert mine.check(IDENTITY) is True
    assert mine.check() is True
    (tmp_path / "killed").mkdir()
    partial(tmp_path / "killed" / "job.json").write_text("{")
    for name in (LOCK, f"{LOCK}.3"):
        (tmp_path / "killed" / name).touch()
    assert folder(tmp_path / "killed").claim(IDENTITY) is True


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"teachers": ["abc", "d"]}, "teachers = ['abc'], but now it is ['abc', 'd'];"),
        ({"decoding": {"beam": 4, "metric": None}}, "decoding.beam = 5, but now it is 4;"),
        ({"decoding": {"beam": 5}, "new": 1}, "new = None, but now it is 1; use another folder"),
        ({"new": "a" * 64}, "new = None, but now it is aaaaaaaaaaaa…; use"),
    ],
)
def test_another_job_is_refused(changes: dict[str, Any], part: str, tmp_path: Path) -> None:
    """The first difference is named, at any depth, and the folder is unchanged; a further entry is none."""
    mine = folder(tmp_path / "out")
    mine.claim({**IDENTITY, "batches": 3})
    assert mine.check(IDENTITY)
    before = tree(tmp_path)
    for call in (mine.check, mine.claim):
        assert f"--out '{tmp_path / 'out'}' was begun with {part}" in refusal(call, {**IDENTITY, **changes})
    assert tree(tmp_path) == before


def test_the_most_complete_mark_counts(tmp_path: Path) -> None:
    mine = folder(tmp_path)
    mine.claim(IDENTITY)
    mine.write_json("done.json", {"format": 2})
    assert mine.identity() == {"format": 2}
    assert difference({"format": 2}, {"format": 1}) == ("format", "2", "1")


@pytest.mark.parametrize("kind", ["file", "others", "broken", "no object", "another's", "link"])
def test_folder_of_something_else(kind: str, tmp_path: Path) -> None:
    """It is refused and not touched."""
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "link":
        out.symlink_to(tmp_path / "nowhere")
    else:
        out.mkdir()
        content = {"broken": "{", "no object": "[]", "another's": "{}"}.get(kind)
        (out / ("mine" if content is None else "job.json")).write_text(content or "mine")
    expected = {
        "broken": f"'{out / 'job.json'}' is damaged or another program's file; use another --out",
        "another's": f"--out '{out}' is not a folder of this test: its job.json is another program's; "
        "use another folder",
    }
    expected["no object"] = expected["broken"]
    before = tree(tmp_path)
    for call in (folder(out).check, folder(out).claim):
        assert refusal(call, IDENTITY) == expected.get(
            kind, f"--out '{out}' exists and is not a folder of this test; use a new or empty folder"
        )
    assert tree(tmp_path) == before


@pytest.mark.parametrize("other", [1, 2])
def test_machines_that_begin_at_once(other: int, tmp_path: Path, monkeypatch: Any) -> None:
    """Both find the folder empty; one claims it, and the other sees whether it is the same job."""
    mine, stock = folder(tmp_path / "out"), OutputFolder._is_free

    def overtaken(self: OutputFolder) -> bool:
        is_free = stock(self)
        monkeypatch.setattr(OutputFolder, "_is_free", stock)
        assert mine.claim({"format": other}) is True
        return is_free

    monkeypatch.setattr(OutputFolder, "_is_free", overtaken)
    if other == 1:
        assert mine.claim({"format": 1}) is False
    else:
        assert "was begun with format = 2, but now it is 1" in refusal(mine.claim, {"format": 1})
    assert [path.name for path in mine.path.iterdir()] == ["job.json"]


def test_a_machine_that_finished_between_two_looks(tmp_path: Path, monkeypatch: Any) -> None:
    """The folder had no mark, and holds files by then."""
    mine = folder(tmp_path)
    monkeypatch.setattr(OutputFolder, "_is_free", lambda _: not mine.write_json("done.json", IDENTITY))
    assert mine.check(IDENTITY) is True


def test_shares_and_runs_alone(tmp_path: Path, monkeypatch: Any) -> None:
    """Different shares run at the same time; the same share waits, and so does a run alone."""
    monkeypatch.setattr(output_folder, "PATIENCE", 0.1)
    mine = folder(tmp_path)

    def assert_refused(share: str | None) -> None:
        with pytest.raises(
            UsageError, match=f"another run is writing --out '{tmp_path}'; wait for it or use"
        ):
            mine.lock(share).__enter__()

    with mine.lock("0"), mine.lock("1"):
        for share in (None, None, "1"):
            assert_refused(share)
        with mine.lock("2"):
            pass
    with mine.lock():
        for share in ("0", None):
            assert_refused(share)
    assert not list(tmp_path.iterdir())
    (tmp_path / f"{LOCK}.5").touch()  # of a share that was killed
    with mine.lock():
        assert_refused("5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shares", [False, True])
def test_runs_that_wait_are_one_at_a_time(shares: bool, tmp_path: Path) -> None:
    """A run that waited for a lock file that is removed meanwhile takes the new one."""
    inside, most, begun = [0], [0], threading.Barrier(8)

    def run() -> None:
        begun.wait()
        for _ in range(5):
            with folder(tmp_path / "out").lock("0" if shares else None):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert not list(tmp_path.glob("out/*"))


def test_a_folder_that_stays_empty_is_removed(tmp_path: Path) -> None:
    """Only if it was made for this run."""
    with folder(tmp_path / "new").lock():
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()
    with folder(tmp_path / "kept").lock():
        (tmp_path / "kept" / "file").touch()
    with folder(tmp_path / "kept").lock():
        (tmp_path / "kept" / "file").unlink()
    assert (tmp_path / "kept").is_dir()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_system_without_locks(number: int, tmp_path: Path, monkeypatch: Any) -> None:
    """The folder is refused, although filelock could lock by a file, which a killed run would leave."""

    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    told = rf"is on a file system that can't lock files \({os.strerror(number)}\); use a folder on another"
    with pytest.raises(UsageError, match=told), folder(tmp_path).lock():
        pass


@pytest.mark.parametrize(
    ("file", "concerns"),
    [
        ("out", True),
        ("out/a/b", True),
        ("./out/../out/a", True),
        (".out.partial/bundle/a", True),
        (".", True),
        ("data/x", False),
        ("out2", False),
        (None, True),
    ],
)
def test_which_file_an_error_is_about(
    file: str | None, concerns: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder itself, what is in it, what it is in; an error that names no file may be about it too."""
    monkeypatch.chdir(tmp_path)
    where = "" if file in (None, "out") else f": '{file}'"
    remedy = "check the permissions of its folder, or use another folder"
    expected = f"--out 'out' can't be written (Denied{where}); {remedy}"
    with pytest.raises(UsageError) as error, folder(Path("out")).errors():
        raise OSError(errno.EACCES, "Denied", file)
    elsewhere = f"'{file}' can't be read (Denied); check the file and its permissions"
    assert str(error.value) == (expected if concerns else elsewhere)


def test_full_disk(tmp_path: Path) -> None:
    """The message says what helps; errors that are not about files pass."""
    with pytest.raises(UsageError) as error, folder(tmp_path, resumes=True).errors():
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(error.value) == (
        f"--out '{tmp_path}' can't be written (No space left on device); make room or use another folder; "
        "the same command then continues where it stopped"
    )
    for other in (BrokenPipeError(errno.EPIPE, "Broken pipe"), OSError("no number")):
        with pytest.raises(type(other)) as passed, folder(tmp_path).errors():
            raise other
        assert passed.value is other


def test_a_folder_that_may_not_be_written_is_refused_early(tmp_path: Path, monkeypatch: Any) -> None:
    """The superuser's permissions are not those of others."""
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(UsageError) as error:
        new_folder(tmp_path / "new").check_new()
    assert str(error.value) == (
        f"--out '{tmp_path}/new' can't be written (Permission denied); check the permissions of its folder, "
        "or use another folder"
    )


def refuse(**_: Any) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


def test_leftovers_are_removed(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.0.partial", "deep/b.0.partial", "deep/kept"):
        (tmp_path / name).touch()
    (tmp_path / "c.0.partial").mkdir()
    folder(tmp_path).remove_leftovers()
    assert tree(tmp_path) == {"deep": None, "deep/kept": b""}
    assert is_leftover(tmp_path / "a.0.partial")
    assert not is_leftover(tmp_path / "kept")


def new_folder(path: Path) -> OutputFolder:
    return OutputFolder(path, "empty")


def test_built_folders_are_complete_or_absent(tmp_path: Path) -> None:
    """What a run that was killed left behind is thrown away by the next one."""
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), new_folder(out).built():
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    left = tmp_path / ".out.partial" / "bundle"
    left.mkdir(parents=True)
    (left / "half").touch()
    with new_folder(out).built() as work:
        assert not list(work.iterdir())
        assert not out.exists()
        (work / "file").write_text("whole")
    assert tree(tmp_path) == {"out": None, "out/file": b"whole"}
    there = tmp_path / "there"
    there.mkdir()
    for name in (LOCK, "a.partial"):
        (there / name).touch()
    with new_folder(there).built() as work:
        (work / "file").write_text("whole")
    assert tree(there) == {"file": b"whole"}


def test_two_runs_do_not_build_the_same_folder(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(output_folder, "PATIENCE", 0.0)
    out = new_folder(tmp_path / "out")
    told = r"another run is writing --out '.*/out'"
    with out.built() as work, pytest.raises(UsageError, match=told), out.built():
        pytest.fail(f"{work} is built twice")
    with out.built() as work:
        (work / "file").touch()
    with pytest.raises(UsageError, match="exists and is not empty; use a new or empty folder"), out.built():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", "must be the name of a new folder"),
        ("link", "must be the name of a new folder"),
        ("x" * 300, r"can't be written \(File name too long"),
        ("full", "exists and is not empty"),
    ],
)
def test_folders_that_can_not_be_built(name: str, message: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UsageError, match=message):
        new_folder(Path(name)).check_new()
