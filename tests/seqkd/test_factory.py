"""A corpus translated: planned, shared out, stopped and gone on with, refused, and done only once."""

import contextlib
import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from fairseq.data import Dictionary, data_utils

import fairseq_imitkd
from fairseq_imitkd.cli import seqkd as command
from fairseq_imitkd.data import output_folder as output_folder_module
from fairseq_imitkd.data.corpus import Corpus, Languages, dataset_builder, read_split
from fairseq_imitkd.data.files import partial, sha256
from fairseq_imitkd.data.output_folder import OutputFolder
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.seqkd import factory, workers
from fairseq_imitkd.seqkd.factory import Result, make
from fairseq_imitkd.seqkd.filters import REASONS
from fairseq_imitkd.seqkd.folder import output_folder, saved_batches
from fairseq_imitkd.seqkd.job import Job
from fairseq_imitkd.seqkd.translator import Translator
from fairseq_imitkd.seqkd.work import plan
from fairseq_imitkd.tasks.translation import TranslationWithTeacherConfig, TranslationWithTeacherTask
from tests.helpers.evaluations import hide
from tests.helpers.fairseq_models import (
    checkpoint_state,
    letters,
    training_config,
    write_dictionaries,
)
from tests.helpers.killable import tree
from tests.helpers.seqkd_jobs import EOS, SENTENCES, job, make_root, refusal, start_command, write_split


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("seqkd"))


@pytest.fixture(scope="module")
def whole(root: Path) -> dict[str, bytes | None]:
    """What an uninterrupted run leaves."""
    made = make(job(root, root / "whole"))
    assert made.fresh
    assert made.done == made.batches == 15
    return tree(root / "whole")


def listed(out: Path, split: str = "test") -> list[list[str]]:
    return [line.split("\t") for line in (out / "text" / f"{split}.tsv").read_text().splitlines()]


def test_whole_run(root: Path, whole: dict[str, bytes | None]) -> None:
    """Exactly these files; every sentence once and in order; the manifest says how they were made."""
    data = {
        f"data-bin/{split}.src-tgt.{side}.{end}"
        for split in ("test", "valid")
        for side in ("src", "tgt")
        for end in ("bin", "idx")
    }
    text = {f"text/test.{end}" for end in ("src", "tgt", "tsv", "dropped.tsv")}
    dictionaries = {f"data-bin/dict.{side}.txt" for side in ("src", "tgt")}
    assert whole.keys() == {"job.json", "manifest.json", "text", "data-bin"} | data | text | dictionaries
    lines = listed(root / "whole")
    numbers = [int(line[0]) for line in lines]
    assert numbers == sorted(set(numbers)), "in order, none doubled"
    assert set(numbers) < set(range(SENTENCES)) - {7}
    sources = read_split(Languages.of(root / "data", "src", "tgt"), "test").sources
    assert all(line[3] == letters().string(sources[int(line[0])]) for line in lines)
    manifest = json.loads(whole["manifest.json"] or b"")
    assert manifest["versions"]["fairseq_imitkd"] == fairseq_imitkd.__version__
    assert manifest["teachers"] == [sha256(root / "teacher.pt")]
    assert manifest["decoding"]["beam"] == 3
    assert manifest["decoding"]["seed"] == manifest["filters"]["seed"] == 1
    assert manifest["dictionaries"] == {
        side: sha256(root / "data" / f"dict.{side}.txt") for side in ("src", "tgt")
    }
    assert manifest["data"]["test.src-tgt.tgt.bin"] == sha256(root / "data" / "test.src-tgt.tgt.bin")
    counts = manifest["counts"]
    assert counts["sentences"] == SENTENCES
    assert counts["empty_sources"] == 1
    assert counts["written"] == len(lines)
    assert counts["dropped"] == {**dict.fromkeys(REASONS, 0), "cut": SENTENCES - 1 - len(lines)}
    dropped = (root / "whole" / "text" / "test.dropped.tsv").read_text().splitlines()
    assert [line.split("\t")[2] for line in dropped] == ["cut"] * counts["dropped"]["cut"]
    assert counts["translations"] == counts["written"] + sum(counts["dropped"].values()) == SENTENCES - 1
    assert set(manifest["files"]) == data | text | dictionaries
    for name, file in manifest["files"].items():
        assert file == {"bytes": len(whole[name] or b""), "sha256": sha256(root / "whole" / name)}


def test_run_after_the_end_changes_nothing(root: Path, whole: dict[str, bytes | None], capsys: Any) -> None:
    """No time stamp changes, and the command says so. Another teacher or search is refused."""

    def stamps() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in sorted((root / "whole").rglob("*"))}

    before = stamps()
    flags = (
        "--out",
        root / "whole",
        "--gen-subset",
        "test",
        "--beam",
        3,
        "--max-len-b",
        12,
        "--batch-size",
        4,
        "--cpu",
    )
    arguments = [root / "data", "--teacher-path", root / "teacher.pt", *flags]
    command.main(list(map(str, arguments)))
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{SENTENCES} sentences, {SENTENCES - 1} translations, 0 references, ")
    assert "1 empty source" in said[0]
    assert said[-2] == "this was done before: nothing is changed"
    assert said[-1].startswith(f"Next: imitkd-train {root / 'whole'}/data-bin --criterion label_smoothed")
    assert make(job(root, root / "whole", num_shards=2, shard_id=1)).fresh is False
    with pytest.raises(
        UsageError, match=r"was begun with decoding\.beam = 3, but now it is 4; use another folder"
    ):
        command.main([*map(str, arguments), "--beam", "4"])
    assert stamps() == before
    assert tree(root / "whole") == whole


def corpus(lengths: list[int]) -> Corpus:
    return Corpus(SimpleNamespace(sizes=np.array(lengths), __len__=lambda: len(lengths)), None)


@pytest.mark.parametrize(("max_tokens", "batch_size"), [(40, 0), (0, 3), (40, 3), (12, 0)])
def test_plan(root: Path, tmp_path: Path, max_tokens: int, batch_size: int) -> None:
    """Every sentence that can be translated is there once, the longest first; the plan repeats."""
    random = np.random.default_rng(3)
    lengths = random.integers(1, 15, 200)
    lengths[:3] = 1, 30, 12
    some = job(root, tmp_path, max_tokens=max_tokens, batch_size=batch_size)
    batches = plan(corpus(list(lengths)), some, longest=12)
    order = np.concatenate(batches)
    assert sorted(order) == [number for number in range(200) if 1 < lengths[number] <= 12]
    assert list(lengths[order]) == sorted(lengths[order], reverse=True)
    for batch in batches:
        assert not batch_size or len(batch) <= batch_size
        # A sentence that is longer than the bound is alone, or with others of its length at most.
        assert not max_tokens or len(batch) * lengths[batch].max() <= max(max_tokens, 12)
    again = plan(corpus(list(lengths)), some, longest=12)
    assert all(np.array_equal(one, other) for one, other in zip(batches, again, strict=True))
    assert plan(corpus([1, 1, 40]), some, longest=12) == []
    few = plan(corpus(list(lengths)), some, longest=12, numbers=np.arange(20))
    assert sorted(np.concatenate(few)) == [number for number in range(20) if 1 < lengths[number] <= 12]
    if max_tokens:
        with pytest.raises(
            UsageError,
            match=rf"--max-tokens {max_tokens} is less than the longest source's {max_tokens + 1} ",
        ):
            plan(corpus([3, max_tokens + 1]), some, longest=100)


@pytest.mark.parametrize("count", [2, 9])
def test_workers_write_the_same(
    root: Path, whole: dict[str, bytes | None], tmp_path: Path, count: int
) -> None:
    """Each batch is translated by one; more workers than there are batches are not started."""
    for shard in (0, 1):
        assert (
            start_command(
                root, tmp_path, flags=("--workers", count, "--num-shards", 2, "--shard-id", shard)
            ).end()
            == 0
        )
    assert [number for number, _ in saved_batches(tmp_path / "out")] == list(range(15))
    assert start_command(root, tmp_path, flags=("--workers", count)).end() == 0
    assert tree(tmp_path / "out") == whole
    assert start_command(root, tmp_path, flags=("--workers", count)).end() == 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("full disk", "error: --out '{}' can't be written (No space left on device); make room"),
        ("death", "worker {} of --workers 2 ended with code 3"),
    ],
)
def test_fault_of_a_worker(
    root: Path, whole: dict[str, bytes | None], tmp_path: Path, fault: str, message: str
) -> None:
    """Is the command's own one line, and the command goes on afterwards."""
    said = start_command(root, tmp_path, fault=fault).refusal()
    assert any(message.format(what) in said for what in (tmp_path / "out", 0, 1))
    assert start_command(root, tmp_path).end() == 0
    assert tree(tmp_path / "out") == whole


def test_shards_and_a_last_run_write_the_same(
    root: Path, whole: dict[str, bytes | None], tmp_path: Path
) -> None:
    """In any order, one of them twice; each does only its own share; the last run has nothing left."""
    done = []
    for shard in (2, 0, 0, 1):
        some = job(root, tmp_path, num_shards=3, shard_id=shard)
        result = make(some)
        assert result.manifest is None
        done.append(result.done)
        assert not (tmp_path / "manifest.json").exists()
        assert str(tmp_path) in command.report(result, tmp_path, 1.0)
    assert done == [5, 10, 10, 15]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Translator, "translate", lambda *_: pytest.fail("nothing was left to translate"))
        make(job(root, tmp_path))
    assert tree(tmp_path) == whole


def translated_only(some: Job) -> None:
    """A run that is killed when all is translated and nothing written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factory, "finish", lambda *_: sys.exit())
        with pytest.raises(SystemExit):
            make(some)


def test_goes_on_where_it_stopped(
    root: Path, whole: dict[str, bytes | None], tmp_path: Path, monkeypatch: Any
) -> None:
    """Saved batches are kept, the one that was being written and the others are translated; by shares too."""
    translated_only(job(root, tmp_path))
    for number in (3, 9):
        path = tmp_path / "decoded" / f"{number:07d}.npz"
        path.rename(partial(path))
    for number in (10, 11, 12):
        (tmp_path / "decoded" / f"{number:07d}.npz").unlink()
    left = [number for number, _ in saved_batches(tmp_path)]
    assert len(left) == 10
    translated = []
    original = Translator.translate
    monkeypatch.setattr(
        Translator, "translate", lambda self, ids, *rest: translated.append(ids) or original(self, ids, *rest)
    )
    make(job(root, tmp_path, num_shards=3, shard_id=1))
    make(job(root, tmp_path))
    assert len(translated) == 15 - len(left)
    assert tree(tmp_path) == whole


@pytest.mark.parametrize(
    "changes",
    [
        {"decoding": {"select": "sample", "beam": 5, "samples": 3}, "filters": {"dedup": True}},
        {
            "decoding": {"select": "best", "beam": 4, "nbest": 4, "metric": "chrf"},
            "filters": {"mix_gold": 0.5},
        },
        {"max_tokens": 30, "batch_size": 0},
        {"teacher": "{0}:{0}"},
    ],
    ids=str,
)
def test_other_settings(root: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Everything adds up, and shards give the same bytes."""
    changes = {
        **changes,
        **({"teacher": changes["teacher"].format(root / "teacher.pt")} if "teacher" in changes else {}),
    }
    manifest = make(job(root, tmp_path / "one", **{**changes})).manifest
    assert manifest is not None
    each = changes.get("decoding", {}).get("samples", 1)
    assert manifest["counts"]["translations"] == each * (SENTENCES - 1)
    assert (manifest["counts"]["gold"] > 0) == ("mix_gold" in changes.get("filters", {}))
    assert len(manifest["teachers"]) == (2 if "teacher" in changes else 1)
    for shard in (0, 1, None):
        make(job(root, tmp_path / "two", num_shards=1 if shard is None else 2, shard_id=shard, **changes))
    assert tree(tmp_path / "two") == tree(tmp_path / "one")


def test_parts_of_a_split(root: Path, tmp_path: Path) -> None:
    """``train`` and ``train1`` are joined, as in training; other splits are not; uneven parts are refused."""
    data = write_dictionaries(tmp_path / "data")
    halves: dict[str, list[list[int]]] = {"train": [[4, 5], [6]], "train1": [[7, 8, 9], [4], [5]]}
    for split, rows in {**halves, "test": halves["train"], "test1": halves["train1"]}.items():
        for side in ("src", "tgt"):
            write_split(data, split, rows, side)
    some = {"data": data, "split": "train", "filters": {"mix_gold": 1.0}, "decoding": {"max_len_b": 30}}
    make(job(root, tmp_path / "out", **some))
    gold = [line for line in listed(tmp_path / "out", "train") if line[1] == "gold"]
    assert [line[0] for line in gold] == ["0", "1", "2", "3", "4"]
    assert [line[4] for line in gold] == ["a b", "c", "d e f", "a", "b"]
    for split, expected in (("test", ["a b", "c"]), ("test1", ["d e f", "a", "b"])):
        make(job(root, tmp_path / split, **{**some, "split": split}))
        assert [line[4] for line in listed(tmp_path / split, split) if line[1] == "gold"] == expected
    for end in ("idx", "bin"):
        (data / f"train1.src-tgt.tgt.{end}").unlink()
    assert "must have a target side, or none" in refusal(job(root, tmp_path / "new", **some))


def test_shards(root: Path, tmp_path: Path) -> None:
    """``DATA1:DATA2``: ``train`` of both, the dictionaries and other splits of the first; none may differ."""
    one, two = (write_dictionaries(tmp_path / name) for name in ("one", "two"))
    shards: tuple[tuple[Path, list[list[int]]], ...] = ((one, [[4, 5], [6]]), (two, [[7, 8, 9]]))
    for data, rows in shards:
        for side in ("src", "tgt"):
            write_split(data, "train", rows, side)
            write_split(data, "valid", rows, side)
    (two / "dict.src.txt").unlink()  # a shard need not have any
    some = {"data": Path(f"{one}:{two}"), "split": "train", "filters": {"mix_gold": 1.0}}
    some["decoding"] = {"max_len_b": 30}
    make(job(root, tmp_path / "out", **some))
    gold = [(line[0], line[4]) for line in listed(tmp_path / "out", "train") if line[1] == "gold"]
    assert gold == [("0", "a b"), ("1", "c"), ("2", "d e f")]
    data_hashes = json.loads((tmp_path / "out" / "manifest.json").read_text())["data"]
    assert "1/train.src-tgt.src.bin" in data_hashes
    valid = "valid.src-tgt.src.bin"
    assert (tmp_path / "out" / "data-bin" / valid).read_bytes() == (one / valid).read_bytes()
    (two / "dict.tgt.txt").write_text("x 1\n")
    assert f"'{two}/dict.tgt.txt' is not '{one}/dict.tgt.txt'" in refusal(job(root, tmp_path / "no", **some))


def test_target_side_is_not_needed(root: Path, whole: dict[str, bytes | None], tmp_path: Path) -> None:
    """Forward translation of a split that has none; what needs references is refused by name."""
    data = write_dictionaries(tmp_path / "data")
    for name in ("bin", "idx"):
        (data / f"test.src-tgt.src.{name}").write_bytes(
            (root / "data" / f"test.src-tgt.src.{name}").read_bytes()
        )
    make(job(root, tmp_path / "out", data=data))
    assert (tmp_path / "out" / "text" / "test.tsv").read_bytes() == whole["text/test.tsv"]
    best = {"select": "best", "nbest": 2, "metric": "chrf"}
    for flag, some in (("--select best", {"decoding": best}), ("--mix-gold", {"filters": {"mix_gold": 0.1}})):
        message = refusal(job(root, tmp_path / "new", data=data, **some))
        assert (
            message == f"{flag} needs references, but --gen-subset test of DATA '{data}' has no target side"
        )
        text = tmp_path / "text"
        text.write_text("a b\n")
        with pytest.raises(UsageError, match=f"{flag} needs references, but --source-text has none"):
            job(root, tmp_path / "new", source_text=text, **some)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": -1}, "--max-tokens must be 0 or more, but is -1"),
        ({"batch_size": -1}, "--batch-size must be 0 or more, but is -1"),
        ({"workers": 0}, "--workers must be 1 or more, but is 0"),
        ({"num_shards": 0}, "--num-shards must be 1 or more, but is 0"),
        (
            {"max_tokens": 0, "batch_size": 0},
            "--max-tokens 0 needs a --batch-size; one of them must limit a batch",
        ),
        (
            {"num_shards": 2},
            "--num-shards 2 needs --shard-id; add the number of this job, from 0",
        ),
        (
            {"shard_id": 0},
            "--shard-id 0 needs --num-shards; add the number of all jobs, 2 or more",
        ),
        ({"num_shards": 2, "shard_id": 2}, "--shard-id must be in 0..1, but is 2"),
        ({"num_shards": 2, "shard_id": -1}, "--shard-id must be in 0..1, but is -1"),
        ({"split": "a/b"}, "--gen-subset must be the name of a split, like train, but is 'a/b'"),
        ({"split": ""}, "--gen-subset must be the name of a split, like train, but is ''"),
        (
            {"source_text": Path("/")},
            "--source-text '/' is not a file; use a UTF-8 file with one sentence per line",
        ),
    ],
    ids=str,
)
def test_refused_flags(root: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """One line each."""
    with pytest.raises(UsageError) as error:
        job(root, tmp_path, **changes)
    assert str(error.value) == message


@pytest.mark.parametrize("kind", ["file", "others", "below a file", "job", "manifest"])
def test_folder_of_something_else(root: Path, tmp_path: Path, kind: str) -> None:
    """Refused, and not touched."""
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
        expected = f"--out '{out}' exists and is not a folder of imitkd-seqkd; use a new or empty folder"
    elif kind == "others":
        out.mkdir()
        (out / "mine").write_text("mine")
        expected = f"--out '{out}' exists and is not a folder of imitkd-seqkd; use a new or empty folder"
    elif kind == "below a file":
        (tmp_path / "file").write_text("mine")
        out = tmp_path / "file" / "out"
        expected = f"--out '{out}' can't be written (Not a directory); use another folder"
    else:
        make(job(root, out))
        (out / f"{kind}.json").write_text("{")
        expected = f"'{out / kind}.json' is damaged or another program's file; use another --out"
    before = tree(tmp_path)
    assert refusal(job(root, out)).startswith(expected)
    assert tree(tmp_path) == before


def test_file_elsewhere_that_may_not_be_read(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--out is not blamed for it."""
    data = shutil.copytree(root / "data", tmp_path / "data")

    def forbidden(source: Path, _: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(source))

    monkeypatch.setattr("fairseq_imitkd.seqkd.dataset.shutil.copy", forbidden)
    message = refusal(job(root, tmp_path / "out", data=data))
    path = data / "dict.src.txt"
    assert message == f"'{path}' can't be read (Permission denied); check the file and its permissions"


def test_folder_that_may_not_be_written(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, whom nothing is forbidden."""

    def forbidden(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", forbidden)
    message = refusal(job(root, tmp_path / "out"))
    assert message.startswith(
        f"--out '{tmp_path / 'out'}' can't be written (Permission denied); check the permissions of its "
        "folder, or use another folder"
    )


def test_two_runs_at_once(
    root: Path, whole: dict[str, bytes | None], tmp_path: Path, monkeypatch: Any
) -> None:
    """The second is refused while the first is there; shares are refused by it, but not by other shares."""
    monkeypatch.setattr(output_folder_module, "PATIENCE", 0.1)
    first = job(root, tmp_path)
    folder = output_folder(tmp_path)
    folder.claim(first.identity(first.languages()))
    with folder.lock():
        for second in (first, job(root, tmp_path, num_shards=2, shard_id=0)):
            assert (
                refusal(second)
                == f"another run is writing --out '{tmp_path}'; wait for it or use another folder"
            )
    with folder.lock("0"):
        make(job(root, tmp_path, num_shards=2, shard_id=1))
        assert "another run is writing" in refusal(first)
    make(first)
    assert tree(tmp_path) == whole


def test_refused_inputs_leave_the_folder_free(
    root: Path, whole: dict[str, bytes | None], tmp_path: Path
) -> None:
    """A wrong teacher or split costs nothing: the same --out works with right ones."""
    other = write_dictionaries(tmp_path / "other", target=list("bacdefghijklmnop"))
    for name in ("test.src-tgt.src", "test.src-tgt.tgt"):
        for end in ("bin", "idx"):
            (other / f"{name}.{end}").write_bytes((root / "data" / f"{name}.{end}").read_bytes())
    message = refusal(job(root, tmp_path / "out", data=other))
    assert "index 4: teacher 'a', student 'b'" in message
    garbage = tmp_path / "garbage.pt"
    garbage.write_text("no checkpoint")
    assert f"--teacher-path '{garbage}' is damaged or not a checkpoint" in refusal(
        job(root, tmp_path / "out", teacher=garbage)
    )
    text = tmp_path / "text"
    text.write_bytes("a b é\n".encode("latin1"))
    message = f"--source-text '{text}' must be UTF-8, but line 1 is not; convert the file (iconv)"
    assert refusal(job(root, tmp_path / "out", source_text=text)) == message
    text.write_bytes(b"a b\n" * 30000 + "é\n".encode("latin1"))
    assert "but line 30001 is not" in refusal(job(root, tmp_path / "out", source_text=text))
    text.write_text("")
    assert refusal(job(root, tmp_path / "out", source_text=text)).startswith(
        f"--source-text '{text}' is empty"
    )
    message = refusal(job(root, tmp_path / "out", decoding={"min_len": 64, "max_len_b": 100}))
    assert message == "--min-len must be below 64, the teacher's longest target, but is 64"
    assert tree(tmp_path / "out") == {}
    make(job(root, tmp_path / "out"))
    assert tree(tmp_path / "out") == whole


def damaged(data: Path, kind: str) -> str:
    """Damages a data directory; what the message must say."""
    prefix = data / "test.src-tgt.src"
    if kind == "lengths":
        write_split(data, "test", [[4]] * 3, "tgt")
        return f"but {prefix}.idx has {SENTENCES} and {data / 'test.src-tgt.tgt'}.idx 3; binarise"
    if kind == "cut data":
        size = Path(f"{prefix}.bin").stat().st_size
        Path(f"{prefix}.bin").write_bytes(Path(f"{prefix}.bin").read_bytes()[:-1])
        return f"{prefix}.bin has {size - 1} bytes, but {prefix}.idx describes {size}; copy both again"
    elif kind in ("cut index", "cut head", "head of another"):
        index = Path(f"{prefix}.idx").read_bytes()
        cut = {
            "cut index": index[:100],
            "cut head": index[:20],
            "head of another": index[:17] + b"\x63" + index[18:],
        }[kind]
        Path(f"{prefix}.idx").write_bytes(cut)
        said = "is damaged" if kind == "head of another" else "ends early"
        return f"{prefix}.idx {said}; copy it again, or binarise again"
    elif kind == "garbage":
        Path(f"{prefix}.idx").write_bytes(b"garbage" * 50)
    elif kind == "empty index":
        Path(f"{prefix}.idx").write_bytes(b"")
    elif kind == "no data":
        Path(f"{prefix}.bin").unlink()
        return f"'{prefix}.bin' is missing, but"
    elif kind == "empty":
        for side in ("src", "tgt"):
            write_split(data, "test", [], side)
        return f"{prefix}.bin is empty; use a split that has sentences"
    elif kind == "symbols":
        write_split(data, "test", [[4, 500]] * SENTENCES, "src")
        return f"sentence 0 of {prefix}.bin holds symbol 500, but its dictionary has only 20; binarise the"
    elif kind == "target symbols":
        write_split(data, "test", [[4, 500]] * SENTENCES, "tgt")
        return "tgt.bin holds symbol 500, but its dictionary has only 20; binarise the data again"
    elif kind == "dictionary":
        (data / "dict.tgt.txt").write_text("one two three\n")
        return f"'{data / 'dict.tgt.txt'}' is not a dictionary of fairseq (Incorrect dictionary format"
    return f"{prefix}.idx and .bin can't be read: "


@pytest.mark.parametrize(
    "kind",
    [
        "lengths",
        "cut data",
        "cut index",
        "cut head",
        "head of another",
        "garbage",
        "empty index",
        "no data",
        "empty",
        "symbols",
        "target symbols",
        "dictionary",
    ],
)
def test_damaged_data(root: Path, tmp_path: Path, kind: str, capfd: Any) -> None:
    """The file and what is wrong with it, and nothing of fairseq's own complaints."""
    data = tmp_path / "data"
    data.mkdir()
    for path in (root / "data").iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    expected = damaged(data, kind)
    assert expected in refusal(job(root, tmp_path / "out", data=data))
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (None, None, ("src", "tgt")),
        ("src", None, ("src", "tgt")),
        ("tgt", None, ("tgt", "src")),
        (None, "src", ("tgt", "src")),
        ("tgt", "src", ("tgt", "src")),
        ("src", "src", "--source-lang and --target-lang must be two languages, but both are src"),
        ("de", None, "--source-lang de is not in DATA '.*', whose files are of src-tgt; use one of these"),
        (None, "en", "--target-lang en is not in DATA '.*', whose files are of src-tgt; use one of these"),
        ("de", "en", "has no dict.de.txt, but those of src and tgt; use a directory"),
    ],
)
def test_languages(root: Path, source: str | None, target: str | None, expected: Any) -> None:
    """One of them says which the other is."""
    if isinstance(expected, tuple):
        found = Languages.of(root / "data", source, target)
        assert (found.source, found.target) == expected
    else:
        with pytest.raises(UsageError, match=expected):
            Languages.of(root / "data", source, target)


def test_a_side_without_its_bin(root: Path, tmp_path: Path) -> None:
    """A copy that was not finished."""
    data = shutil.copytree(root / "data", tmp_path / "data")
    binary = data / "test.src-tgt.tgt.bin"
    binary.unlink()
    with pytest.raises(UsageError) as error:
        read_split(Languages.of(data, "src", "tgt"), "test")
    index = binary.with_suffix(".idx").name
    assert str(error.value) == f"'{binary}' is missing, but {index} is there; copy it, or binarise again"


def test_folders_that_may_not_be_searched(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is one line, though Path.is_file raises up to Python 3.13."""
    text = tmp_path / "text"
    text.write_text("a b\n")
    data = shutil.copytree(root / "data", tmp_path / "data")
    with monkeypatch.context() as patch:
        hide(patch, tmp_path)
        for languages in ((None, None), ("src", "tgt")):
            with pytest.raises(UsageError, match=r"DATA '.*' can't be looked at \(Permission denied\); make"):
                Languages.of(data, *languages)
        with pytest.raises(UsageError, match=r"--source-text '.*' is not a file"):
            job(root, tmp_path / "out", source_text=text)

    def denied(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(data_utils, "infer_language_pair", denied)
    with pytest.raises(UsageError, match=rf"DATA '{data}' can't be read \(Permission denied\); check its"):
        Languages.of(data, None, None)


def test_missing_data(root: Path, tmp_path: Path) -> None:
    """No directory, one without files, a split that is not there."""
    assert "is not a directory; use a directory" in refusal(
        job(root, tmp_path / "out", data=tmp_path / "none")
    )
    (tmp_path / "empty").mkdir()
    assert "has no file such as train.de-en.de.idx" in refusal(
        job(root, tmp_path / "out", data=tmp_path / "empty")
    )
    message = refusal(job(root, tmp_path / "out", split="train"))
    there = "use a split that is there: it has test, valid"
    assert message == f"--gen-subset 'train' is not in DATA '{root / 'data'}'; {there}"
    assert not (tmp_path / "out").exists()


def test_damaged_batch(root: Path, whole: dict[str, bytes | None], tmp_path: Path) -> None:
    """It is refused by name. Without the file, only that batch is translated again."""
    for shard in (0, 1):
        make(job(root, tmp_path, num_shards=2, shard_id=shard))
    path = tmp_path / "decoded" / "0000004.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    before = tree(tmp_path)
    for some in (job(root, tmp_path), job(root, tmp_path, num_shards=2, shard_id=0)):
        assert refusal(some).startswith(
            f"'{path}' is damaged; delete the file and run the same command again"
        )
    assert tree(tmp_path) == before
    path.unlink()
    make(job(root, tmp_path))
    assert tree(tmp_path) == whole


def test_folder_that_an_older_version_began(root: Path, tmp_path: Path) -> None:
    """It kept journals. A finished folder of an older version has none, and is accepted."""
    translated_only(job(root, tmp_path))
    (tmp_path / "decoded" / "000-000.journal").touch()
    assert refusal(job(root, tmp_path)).startswith(
        f"--out '{tmp_path}' was begun by an older version of fairseq-imitkd, whose 000-000.journal can't be "
        "read"
    )


@contextlib.contextmanager
def full_disk(place: str) -> Iterator[None]:
    """Writing fails there as on a full disk."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        if place == "fourth batch":
            calls: list[int] = []
            sync = os.fsync
            # Two calls for each file, job.json among them: one for the file and one for its folder.
            patch.setattr(
                os, "fsync", lambda file: full() if len(calls) == 8 else calls.append(file) or sync(file)
            )
        else:
            patch.setattr(place, full)
        yield


@pytest.mark.parametrize(
    "place",
    [
        "pathlib.Path.mkdir",
        "fourth batch",
        "fairseq.data.indexed_dataset.MMapIndexedDatasetBuilder.add_item",
        "fairseq_imitkd.seqkd.dataset.shutil.copy",
        "pathlib.Path.rename",
        "fairseq_imitkd.seqkd.factory.summary",
        "pathlib.Path.replace",
    ],
)
def test_full_disk(root: Path, whole: dict[str, bytes | None], tmp_path: Path, place: str) -> None:
    """One line; when there is room again, the same command goes on and the end is the same."""
    out = tmp_path / "out"
    with full_disk(place):
        message = refusal(job(root, out))
    assert message == (
        f"--out '{out}' can't be written (No space left on device); make room or use another folder; "
        "the same command then continues where it stopped"
    )
    assert not (out / "manifest.json").exists()
    if place == "fourth batch":
        assert len(list(saved_batches(out))) == 3
    make(job(root, out))
    assert tree(out) == whole


@pytest.mark.parametrize("left", ["decoded", "building", "tidying", "partial"])
def test_killed_at_the_very_end(
    root: Path, whole: dict[str, bytes | None], tmp_path: Path, left: str
) -> None:
    """What was decoded is kept until the manifest is there, and thrown away in every case."""
    write = OutputFolder.write_json

    def killed(folder: OutputFolder, name: str, content: Any, replace: bool = True) -> bool:
        if name == "manifest.json":
            if left == "tidying":
                write(folder, name, content)
            raise SystemExit
        return write(folder, name, content, replace)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OutputFolder, "write_json", killed)
        with pytest.raises(SystemExit):
            make(job(root, tmp_path))
    assert (tmp_path / "building" / "decoded").is_dir()
    assert (tmp_path / "manifest.json").exists() == (left == "tidying")
    if left in ("decoded", "partial"):
        (tmp_path / "building" / "decoded").rename(tmp_path / "decoded")
    if left == "partial":
        for name in ("manifest.json.0.partial", "decoded/source.bin.0.partial"):
            (tmp_path / name).write_text("half of")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Translator, "translate", lambda *_: pytest.fail("all was translated"))
        make(job(root, tmp_path))
    assert tree(tmp_path) == whole


@pytest.mark.parametrize("change", ["gone", "changed", "longer", "other job", "no files"])
def test_finished_folder_that_was_changed(root: Path, tmp_path: Path, change: str) -> None:
    """It is not said to be done."""
    make(job(root, tmp_path))
    path, manifest = tmp_path / "data-bin" / "test.src-tgt.tgt.bin", tmp_path / "manifest.json"
    if change == "gone":
        path.unlink()
    elif change == "changed":
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    elif change == "longer":
        path.write_bytes(path.read_bytes() + b"?")
    else:
        said = json.loads(manifest.read_text())
        manifest.write_text(
            json.dumps(said | ({"split": "valid"} if change == "other job" else {"files": None}))
        )
    before = tree(tmp_path)
    if change in ("other job", "no files"):
        assert refusal(job(root, tmp_path)).startswith(
            f"'{manifest}' belongs to another job than '{tmp_path / 'job.json'}'; use another --out"
        )
    else:
        assert refusal(job(root, tmp_path)).startswith(
            f"'{path}' is not what manifest.json says any more; delete '{tmp_path}'"
        )
    assert tree(tmp_path) == before


def test_most_pairs_left_out(root: Path, tmp_path: Path, caplog: Any) -> None:
    """Is said; so is a split that is named for the other direction."""
    make(job(root, tmp_path / "out", decoding={"max_len_b": 2}))
    assert "most pairs are dropped: " in caplog.text
    assert "make sure that this is the teacher's direction" not in caplog.text
    read_split(Languages.of(root / "data", "tgt", "src"), "test")
    assert (
        "the files are of src-tgt, but are read as tgt-src: make sure that this is the teacher's direction"
        in caplog.text
    )


def test_lost_batch_is_noticed(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect of this program must not pass for a data set."""
    monkeypatch.setattr(workers, "save_batch", lambda *_: None)
    with pytest.raises(RuntimeError, match="15 batches were translated, but 0 are there"):
        make(job(root, tmp_path))
    assert not (tmp_path / "manifest.json").exists()


def test_long_sources_are_counted(root: Path, tmp_path: Path) -> None:
    """What the teacher can't read is left out, by name."""
    data = write_dictionaries(tmp_path / "data")
    write_split(data, "test", [[4], [5] * 70, [6, 7]], "src")
    result = make(job(root, tmp_path / "out", data=data))
    assert result.manifest is not None
    assert result.manifest["counts"]["too_long"] == 1
    assert [line[0] for line in listed(tmp_path / "out")] == ["0", "2"]
    assert "1 too long" in command.report(result, tmp_path, 1.0)
    write_split(data, "test", [[], []], "src")
    assert refusal(job(root, tmp_path / "none", data=data)).startswith(
        "no pair is left to train on: of 2 sources 2 are empty, 0 too long; "
    )


TEXT = "\ufeffthe cat sat\r\n\r\na dog ran to the cat\n\nthe dog"


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sentencepiece model, a data directory whose dictionaries are its pieces, and a teacher."""
    root = tmp_path_factory.mktemp("pieces")
    lines = [
        f"{who} {what} to {where}"
        for who in ("the cat", "a dog", "the rat")
        for what in ("sat", "ran")
        for where in ("the cat", "a mat", "the dog")
    ]
    (root / "lines").write_text("\n".join(lines) + "\n")
    sentencepiece.SentencePieceTrainer.train(
        input=str(root / "lines"),
        model_prefix=str(root / "pieces"),
        vocab_size=30,
        model_type="bpe",
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(root / "pieces.model"))
    symbols = [model.id_to_piece(number) for number in range(3, model.get_piece_size())]
    data = write_dictionaries(root / "data", symbols, symbols)
    dictionary = Dictionary.load(str(data / "dict.src.txt"))
    task = TranslationWithTeacherTask(
        TranslationWithTeacherConfig(source_lang="src", target_lang="tgt"), dictionary, dictionary
    )
    cfg = training_config(data, "--task", "translation")
    torch.manual_seed(2)
    torch.save(checkpoint_state(task.build_model(cfg.model), cfg), root / "teacher.pt")
    return root


def test_subwords_of_another_model_are_refused(pieces: Path, tmp_path: Path) -> None:
    """Its symbols are all known: only the sentences of the data show it."""
    data, text, lines = tmp_path / "data", tmp_path / "raw.txt", (pieces / "lines").read_text().splitlines()
    shutil.copytree(pieces / "data", data)
    text.write_text("the cat sat\n")
    model = sentencepiece.SentencePieceProcessor(model_file=str(pieces / "pieces.model"))
    dictionary = Dictionary.load(str(data / "dict.src.txt"))
    with dataset_builder(data / "valid.src-tgt.src", len(dictionary)) as builder:
        for line in model.encode(lines, out_type=str):
            builder.add_item(dictionary.encode_line(" ".join(line), add_if_not_exist=False))
    sentencepiece.SentencePieceTrainer.train(
        input=str(pieces / "lines"), model_prefix=str(tmp_path / "other"), vocab_size=22, model_type="bpe",
        minloglevel=2,
    )  # fmt: skip
    words = (data, "--teacher-path", pieces / "teacher.pt", "--source-text", text, "-s", "src", "-t", "tgt")
    words += ("--out", tmp_path / "out", "--cpu", "--bpe", "sentencepiece", "--sentencepiece-model")
    with dataset_builder(data / "train.src-tgt.src", len(dictionary)) as builder:
        for line in model.encode(lines, out_type=str, enable_sampling=True, alpha=0.1, nbest_size=-1):
            builder.add_item(dictionary.encode_line(" ".join(line), add_if_not_exist=False))
    with pytest.raises(UsageError, match=r"of the sentences of 'valid' change their subwords when decoded"):
        command.main(list(map(str, (*words, tmp_path / "other.model"))))
    for end in ("idx", "bin"):
        (data / f"valid.src-tgt.src.{end}").unlink()
    command.main(list(map(str, (*words, pieces / "pieces.model", "--max-len-b", 200, "--select", "sample"))))
    assert (tmp_path / "out" / "manifest.json").exists()


def test_text_through_sentencepiece(pieces: Path, tmp_path: Path) -> None:
    """Lines become the model's pieces, empty lines keep their numbers, and the result is that of a split."""
    text = tmp_path / "raw.txt"
    text.write_text(TEXT, encoding="utf-8", newline="")
    flags = (
        "--gen-subset",
        "mono",
        "--source-text",
        text,
        "-s",
        "src",
        "-t",
        "tgt",
        "--cpu",
        "--select",
        "sample",
        "--max-len-b",
        200,
    )
    bpe = (
        "--bpe",
        "sentencepiece",
        "--sentencepiece-model",
        pieces / "pieces.model",
        "--remove-bpe",
        "sentencepiece",
    )
    given = (pieces / "data", "--teacher-path", pieces / "teacher.pt", "--out", tmp_path / "out")
    command.main(list(map(str, [*given, *flags, *bpe])))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["data"] == {"source_text": sha256(text)}
    assert manifest["bpe"] == {
        "_name": "sentencepiece",
        "sentencepiece_model": sha256(pieces / "pieces.model"),
    }
    assert manifest["counts"]["sentences"] == 5
    assert manifest["counts"]["empty_sources"] == 2
    assert manifest["counts"]["written"] == 3, "an untrained teacher's samples end by chance"
    some = job(
        pieces,
        tmp_path / "split",
        data=tmp_path / "data",
        source_lang="src",
        target_lang="tgt",
        decoding={"select": "sample", "beam": 5, "max_len_b": 200, "remove_bpe": "sentencepiece"},
    )
    data = write_dictionaries(tmp_path / "data")
    for side in ("src", "tgt"):
        (data / f"dict.{side}.txt").write_bytes((pieces / "data" / f"dict.{side}.txt").read_bytes())
    dictionary = Dictionary.load(str(data / "dict.src.txt"))
    model = sentencepiece.SentencePieceProcessor(model_file=str(pieces / "pieces.model"))
    lines = ["the cat sat", "", "a dog ran to the cat", "", "the dog"]
    encoded = [[dictionary.index(piece) for piece in model.encode(line, out_type=str)] for line in lines]
    assert all(dictionary.unk() not in row for row in encoded)
    write_split(data, "test", encoded, "src")
    make(some)
    assert (tmp_path / "out" / "text" / "mono.tsv").read_text() == (
        tmp_path / "split" / "text" / "test.tsv"
    ).read_text()
    for name in ("data-bin/{}.src-tgt.src.bin", "data-bin/{}.src-tgt.tgt.bin"):
        assert (tmp_path / "out" / name.format("mono")).read_bytes() == (
            tmp_path / "split" / name.format("test")
        ).read_bytes()
    written = json.loads((tmp_path / "split" / "manifest.json").read_text())["counts"]
    assert written == manifest["counts"]
    for line in listed(tmp_path / "out", "mono"):
        assert line[3] == lines[int(line[0])]


def test_text_of_words(root: Path, tmp_path: Path, caplog: Any) -> None:
    """Without --bpe a line's words are the dictionary's; many unknown ones are warned of, or refused."""
    text = tmp_path / "words"
    text.write_text("\ufeffa b c\r\nd\n", newline="")
    make(job(root, tmp_path / "out", source_text=text, split="mono", decoding={"max_len_b": 30}))
    dataset = data_utils.load_indexed_dataset(
        str(tmp_path / "out" / "data-bin" / "mono.src-tgt.src"), letters()
    )
    assert [row.tolist() for row in dataset] == [[4, 5, 6, EOS], [7, EOS]]
    assert "unknown" not in caplog.text
    text.write_text("a b c\nwords\n")
    make(job(root, tmp_path / "other", source_text=text, split="mono"))
    assert "of the symbols of --source-text are unknown to dict.src.txt: encode the text" in caplog.text
    text.write_text("some words\n" * 9)
    for _ in range(2):  # nothing that the first run has left stands for the check
        assert refusal(job(root, tmp_path / "refused", source_text=text)) == (
            "66.7% of the symbols of --source-text are unknown to dict.src.txt: encode the text as the "
            "model's data was"
        )
    text.write_text("a b\n")
    assert "was begun with data.source_text = " in refusal(
        job(root, tmp_path / "other", source_text=text, split="mono")
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--bpe", "sentencepiece"),
            "--bpe changes nothing without --source-text: a split of DATA consists of subwords already",
        ),
        (("--sentencepiece-model", "x"), "--sentencepiece-model changes nothing without --bpe sentencepiece"),
        (("--bpe-codes", "x"), "--bpe-codes changes nothing without --bpe fastbpe or subword_nmt"),
        (("--source-text", "TEXT", "--bpe", "fastbpe"), "--bpe fastbpe needs --bpe-codes; add it"),
        (
            ("--source-text", "TEXT", "--bpe", "sentencepiece", "--sentencepiece-model", "/none"),
            "--sentencepiece-model '/none' is not a file; use the file that --bpe sentencepiece was made "
            "with",
        ),
        (
            ("--source-text", "TEXT", "--bpe", "sentencepiece", "--sentencepiece-model", "TEXT"),
            "--sentencepiece-model '",
        ),
        (
            ("--source-text", "TEXT", "--bpe", "fastbpe", "--bpe-codes", "CODES"),
            "--bpe-codes 'CODES' must hold two subwords to merge in each line, but line 3 does not",
        ),
        (
            ("--seed", "5"),
            "--seed 5 changes nothing: only --select sample, mbr without --nbest, and --mix-gold are random; "
            "leave it out",
        ),
        (("--nbest", "0", "--select", "best", "--metric", "chrf"), "--nbest must be 1 or more, but is 0"),
        (("--beam", "0"), "--beam must be 1 or more, but is 0"),
        (("--lenpen", "nan"), "--lenpen must be a number, but is nan"),
    ],
    ids=str,
)
def test_refused_command_lines(root: Path, tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    """Flags that need each other, from the command line."""
    text = tmp_path / "text"
    text.write_text("a b\n")
    given = [
        str(root / "data"),
        "--teacher-path",
        str(root / "teacher.pt"),
        "--out",
        str(tmp_path / "out"),
        "--cpu",
    ]
    codes = tmp_path / "codes"
    codes.write_text("#version: 0.2\na b\na\n")
    files = {"TEXT": str(text), "CODES": str(codes)}
    with pytest.raises(UsageError) as error:
        command.main([*given, *(files.get(flag, flag) for flag in flags)])
    assert str(error.value).startswith(message.replace("CODES", str(codes)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "beam", "nbest"),
    [
        ((), 5, 1),
        (("--select", "best", "--metric", "chrf"), 35, 35),
        (("--select", "best", "--metric", "chrf", "--nbest", "4"), 5, 4),
        (("--select", "best", "--metric", "chrf", "--nbest", "4", "--beam", "9"), 9, 4),
    ],
)
def test_beam_holds_the_nbest(
    root: Path, tmp_path: Path, flags: tuple[str, ...], beam: int, nbest: int
) -> None:
    """By default as wide as needed."""
    arguments = [str(root / "data"), "--teacher-path", "t", "--out", str(tmp_path), *flags]
    decoding = command.job(command.parser().parse_args(arguments)).decoding
    assert (decoding.beam, decoding.nbest) == (beam, nbest)


def test_result_without_a_manifest(tmp_path: Path) -> None:
    """Says how much is left and what to do next."""
    said = command.report(Result(None, 1200, 300), tmp_path, 5.0)
    assert said.startswith("300 of 1,200 batches are translated, 5 s.")
    assert "without --num-shards and --shard-id" in said
