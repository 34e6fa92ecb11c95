"""Data, caches, exported students, subword files and results as a stranger or a broken copy would leave them.

Each change spoils one thing of a good folder. The commands that read it must refuse it in one line.
"""

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from fairseq_imitkd.data.files import sha256
from tests.helpers import digit_corpus
from tests.helpers.digit_corpus import TINY

_STUDENT = (
    f"--save-dir OUT/saved --cpu {' '.join(TINY)} --optimizer adam --lr 0.01 --max-tokens 200 "
    "--num-workers 0 --max-source-positions 64 --max-target-positions 64 --no-epoch-checkpoints "
    "--max-update 1 --criterion word_kd"
)
_TEACHER = "--teacher-path GOOD --teacher-allow-poor"
_DECODE = "--path GOOD --cpu --batch-size 1 --beam 1 --max-len-b 5"
_EVALUATE = "--out OUT/out --beam 1 --speed-sentences 8 --batch-sizes 8"
_EXPORT = "--out OUT/out --sentences 8 --gen-subset test"
_DATA = {
    "train": f"imitkd-train FOLDER {_STUDENT} {_TEACHER}",
    "generate": f"imitkd-generate FOLDER {_DECODE}",
    "seqkd": f"imitkd-seqkd FOLDER --out OUT/out {_TEACHER} --cpu --gen-subset test --beam 1",
    "cache": f"imitkd-cache FOLDER --out OUT/out {_TEACHER} --cpu --keep topk:4 --gen-subset test",
    "evaluate": f"imitkd-evaluate --model student=GOOD --data FOLDER {_EVALUATE}",
    "export": f"imitkd-export GOOD --data FOLDER {_EXPORT}",
}


def _with_subwords(flags: str) -> dict[str, str]:
    return {
        "export": f"imitkd-export GOOD --data DATA {_EXPORT} {flags}",
        "interactive": f"imitkd-interactive DATA {_DECODE} {flags}",
    }


# Commands by what they read: a folder of data, of a cache, an exported student, subwords, results.
COMMANDS: dict[str, dict[str, str]] = {
    "data": _DATA,
    "dictionary": {**_DATA, "interactive": f"imitkd-interactive FOLDER {_DECODE}"},
    "cache": {"train": f"imitkd-train DATA {_STUDENT} --teacher-cache FOLDER --teacher-topk 4"},
    "exported": {
        "evaluate": f"imitkd-evaluate --model student=FOLDER --data DATA {_EVALUATE}",
        "serve": "imitkd-serve FOLDER --port 0",
    },
    "sentencepiece": _with_subwords("--bpe sentencepiece --sentencepiece-model FOLDER/file"),
    "subword_nmt": _with_subwords("--bpe subword_nmt --bpe-codes FOLDER/file"),
    "run": {"report": "imitkd-report FOLDER --out OUT/report.html"},
    "evaluation": {"report": "imitkd-report --evaluation FOLDER --out OUT/report.html"},
}


@dataclass(frozen=True)
class HostileFolder:
    """A folder to be spoilt.

    Args:
        name: its name, unique.
        kind: what the folder is, a key of :data:`COMMANDS`.
        spoil: spoils a copy of a good folder.
        harmless: whether commands may accept it.
    """

    name: str
    kind: str
    spoil: Callable[[Path], None]
    harmless: bool = False


def all_folders() -> list[HostileFolder]:
    """Return every folder."""
    made = [*_data(), *_dictionaries(), *_caches(), *_exported(), *_subwords(), *_results()]
    assert len({(each.kind, each.name) for each in made}) == len(made)
    return made


def _replaced(pattern: str, content: bytes | Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Return a function that changes all files of a name."""

    def spoil(folder: Path) -> None:
        paths = list(folder.glob(pattern))
        assert paths, pattern
        for path in paths:
            path.write_bytes(content if isinstance(content, bytes) else content(path.read_bytes()))

    return spoil


def _dictionaries() -> list[HostileFolder]:
    lines = b"".join(b"%c 100\n" % letter for letter in b"abcdefghijklmnop")
    contents: dict[str, bytes] = {
        "empty": b"",
        "noise": bytes(range(256)) * 8,
        "without-counts": lines.replace(b" 100", b""),
        "text-as-count": lines.replace(b"100", b"many"),
        "fraction-as-count": lines.replace(b"100", b"1.5"),
        "million-digits": lines.replace(b"100", b"1" * 1_000_000, 1),
        "twice": lines + lines,
        "not-utf-8": lines.replace(b"a ", b"\xff\xfe "),
        "one-more": lines + b"zz 1\n",
        "one-less": lines[:-6],
        "long-symbol": lines.replace(b"a ", b"a" * 10**7 + b" "),
        "permuted": lines.replace(b"a ", b"? ").replace(b"b ", b"a ").replace(b"? ", b"b "),
        "special": lines.replace(b"a ", b"</s> "),
    }
    made = [
        HostileFolder(name, "dictionary", _replaced("dict.*.txt", content))
        for name, content in contents.items()
    ]

    def pipe(folder: Path) -> None:
        (folder / "dict.src.txt").unlink()
        os.mkfifo(folder / "dict.src.txt")

    def directory(folder: Path) -> None:
        (folder / "dict.src.txt").unlink()
        (folder / "dict.src.txt").mkdir()

    return [
        *made,
        HostileFolder("pipe", "dictionary", pipe),
        HostileFolder("folder", "dictionary", directory),
    ]


HEAD = struct.Struct("<9sQBQ")


def changed_index(**changes: Any) -> Callable[[bytes], bytes]:
    """Return a function that changes an index of fairseq: its head, lengths of sentences, and places."""

    def change(data: bytes) -> bytes:
        mark, version, kind, count = HEAD.unpack(data[: HEAD.size])
        sizes = numpy.frombuffer(data, numpy.int32, count, HEAD.size).copy()
        places = numpy.frombuffer(data, numpy.int64, count, HEAD.size + 4 * count).copy()
        for name, array in (("size", sizes), ("place", places)):
            if name in changes:
                array[len(array) // 2] = changes[name]
        head = (changes.get("mark", mark), changes.get("version", version), changes.get("type", kind))
        return HEAD.pack(*head, changes.get("count", count)) + sizes.tobytes() + places.tobytes()

    return change


def _data() -> list[HostileFolder]:
    index, tokens = "*.src.idx", "*.src.bin"
    changes: dict[str, tuple[str, bytes | Callable[[bytes], bytes]]] = {
        "no-index": (index, b""),
        "noise-as-index": (index, bytes(range(256)) * 8),
        "half-index": (index, lambda data: data[: len(data) // 2]),
        "head-alone": (index, lambda data: data[: HEAD.size]),
        "half-head": (index, lambda data: data[:12]),
        "other-mark": (index, changed_index(mark=b"MMIDIDX\0x")),
        "version": (index, changed_index(version=9)),
        "type": (index, changed_index(type=99)),
        "other-type": (index, changed_index(type=1)),
        "wider-type": (index, changed_index(type=5)),
        "float-type": (index, changed_index(type=7)),
        "count-huge": (index, changed_index(count=2**60)),
        "count-more": (index, changed_index(count=1000)),
        "count-none": (index, changed_index(count=0)),
        "count-less": (index, changed_index(count=5)),
        "size-negative": (index, changed_index(size=-5)),
        "size-none": (index, changed_index(size=0)),
        "size-huge": (index, changed_index(size=2**31 - 1)),
        "place-negative": (index, changed_index(place=-1000)),
        "place-beyond": (index, changed_index(place=10**12)),
        "place-odd": (index, changed_index(place=1)),
        "no-tokens": (tokens, b""),
        "half-tokens": (tokens, lambda data: data[: len(data) // 2]),
        "noise-as-tokens": (tokens, lambda data: bytes([255] * len(data))),
        "tokens-beyond": (tokens, lambda data: b"\x99" * len(data)),
        "tokens-of-target": ("*.tgt.bin", lambda data: b"\x77" * len(data)),
        "target-half": ("*.tgt.bin", lambda data: data[: len(data) // 2]),
        "target-index": ("*.tgt.idx", changed_index(size=-5)),
    }
    return [HostileFolder(name, "data", _replaced(*change)) for name, change in changes.items()]


_JSON: dict[str, bytes] = {
    "empty": b"", "noise": bytes(range(256)), "list": b"[1, 2]", "number": b"7", "null": b"null",
    "deep": b"[" * 100_000, "half": b'{"format": 1, "a',
    "million-digits": b'{"format": ' + b"1" * 10**6 + b"}",
    "nothing": b"{}", "other-format": b'{"format": 99}', "format-alone": b'{"format": 1}',
}  # fmt: skip


def _entry(name: str, file: str, **values: Any) -> Callable[[Path], None]:
    """Return a function that changes entries of a JSON file. Dots lead into dictionaries."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        for path, value in values.items():
            *parts, last = path.split("__")
            holder = content
            for part in parts:
                holder = holder[part]
            holder[last] = value
        (folder / file).write_text(json.dumps(content))

    return spoil


def _caches() -> list[HostileFolder]:
    made = {f"json-{name}": _replaced("cache.json", content) for name, content in _JSON.items()}
    values = {"none": None, "text": "x", "negative": -3, "huge": 10**15, "list": [1], "fraction": 1.5}
    for key in (
        "topk",
        "symbols",
        "sentences",
        "tokens",
        "absent",
        "dtype",
        "kind",
        "max_positions",
        "width",
    ):
        for name, value in values.items():
            if (key, name) not in {("absent", "huge"), ("width", "huge"), ("width", "negative")}:
                made[f"{key}-{name}"] = _entry(name, "cache.json", **{key: value})

    def array(change: Callable[[Path], None]) -> Callable[[Path], None]:
        return lambda folder: change(folder / "offsets.npy")

    def rows(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
        return lambda folder: numpy.save(folder / f"{name}.npy", change(numpy.load(folder / f"{name}.npy")))

    def objects(path: Path) -> None:
        numpy.save(path, numpy.array([{"a": 1}], dtype=object), allow_pickle=True)

    def huge(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data.replace(b"(97,)", b"(9" + b"7" * 12 + b",)", 1))

    made |= {
        "offsets-pickled": array(objects),
        "offsets-huge": array(huge),
        "offsets-empty": array(lambda path: path.write_bytes(b"")),
        "offsets-half": array(lambda path: path.write_bytes(path.read_bytes()[:200])),
        "offsets-noise": array(lambda path: path.write_bytes(bytes(range(256)) * 4)),
        "offsets-falling": array(lambda path: numpy.save(path, numpy.load(path)[::-1].copy())),
        "offsets-beyond": array(lambda path: numpy.save(path, numpy.load(path) * 1000)),
        "lprobs-nan": rows("lprobs", lambda values: values * numpy.nan),
        "symbols-beyond": rows("symbols", lambda values: values + 1000),
    }
    return [HostileFolder(name, "cache", spoil) for name, spoil in made.items()]


def _exported() -> list[HostileFolder]:
    file = "imitkd.json"
    made = {f"json-{name}": _replaced(file, content) for name, content in _JSON.items()}
    for name, value in {"none": None, "text": "x", "huge": 10**15, "negative": -3, "list": [1]}.items():
        for key in ("form", "longest_source", "longest_target", "decoding", "text", "files", "student"):
            if (key, name) != ("student", "none"):
                made[f"{key}-{name}"] = _entry(name, file, **{key: value})
        made[f"beam-{name}"] = _entry(name, file, decoding__beam=value)
        made[f"lenpen-{name}"] = _entry(name, file, decoding__max_len_a=value if name != "huge" else "1e400")
    made["language"] = _entry("", file, source_lang="../../../etc/passwd")
    made["files-elsewhere"] = _entry("", file, files={"../../x": "0" * 64, "model/model.bin": "0" * 64})
    made["engine"] = _entry("", file, form="pickle")

    def rehashed(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
        """Change a file and its sum in the manifest, as an attacker does."""

        def spoil(folder: Path) -> None:
            (folder / name).write_bytes(change((folder / name).read_bytes()))
            content = json.loads((folder / file).read_text())
            content["files"][name] = sha256(folder / name)
            (folder / file).write_text(json.dumps(content))

        return spoil

    for name in ("model/model.bin", "model/config.json", "model/shared_vocabulary.json", "dict.src.txt"):
        short = Path(name).stem
        made |= {
            f"{short}-unlike-its-sum": _replaced(name, lambda data: data + b"x"),
            f"{short}-empty": rehashed(name, lambda _: b""),
            f"{short}-noise": rehashed(name, lambda _: bytes(range(256)) * 8),
            f"{short}-half": rehashed(name, lambda data: data[: len(data) // 2]),
        }
    made["model-of-huge-numbers"] = rehashed(
        "model/model.bin", lambda data: data[:40] + b"\x7f" * 200 + data[240:]
    )
    harmless = {"student-list", "config-empty", "config-half", "config-noise"}
    return [HostileFolder(name, "exported", spoil, name in harmless) for name, spoil in made.items()]


def _subwords() -> list[HostileFolder]:
    contents = {
        "empty": b"", "noise": bytes(range(256)) * 8, "text": b"<html>404</html>\n", "zeros": bytes(5000),
        "long-line": b"a " * 10**6, "not-utf-8": b"#version: 0.2\n\xff\xfe a\n",
        "version": b"#version: 9.9\na b\n",
    }  # fmt: skip
    made = []
    for kind in SUBWORDS:
        for name, content in contents.items():
            harmless = kind == "subword_nmt" and name == "version"
            made.append(
                HostileFolder(name, kind, lambda folder, content=content: _written(folder, content), harmless)
            )
    return made


def _written(folder: Path, content: bytes) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "file").write_bytes(content)


def _results() -> list[HostileFolder]:
    made = []
    for name, content in _JSON.items():
        made.append(HostileFolder(name, "evaluation", _replaced("evaluation.json", content)))
        made.append(HostileFolder(f"settings-{name}", "run", _replaced("config.json", content), True))
        made.append(HostileFolder(f"metrics-{name}", "run", _replaced("metrics.jsonl", content)))
    line = b'{"tag": "train_inner", "epoch": 1, "num_updates": %s, "loss": %s}\n'
    for name, values in {
        "huge": (b"1" * 4000, b"1"), "not-a-number": (b"1", b'"nan"'), "infinite": (b"1", b"1e999"),
        "negative": (b"-5", b"1"), "list": (b"[1]", b"[2]"),
    }.items():  # fmt: skip
        content = line % values
        made.append(HostileFolder(f"line-{name}", "run", _replaced("metrics.jsonl", content), True))
    return made


def make_good(root: Path) -> dict[str, Path]:
    """Make a good folder of each kind from the corpus and the checkpoint of a place, which are in ``root``.

    Returns:
        the folders by kind; those of subwords are missing.
    """
    teacher, made = root / "good" / "checkpoint_last.pt", root / "made"
    made.mkdir()
    given = ("--teacher-path", teacher, "--cpu", "--teacher-allow-poor", "--keep", "topk:4")
    digit_corpus.run("imitkd-cache", root / "data", "--out", made / "cache", *given, "--gen-subset", "train")
    few = ("--data", root / "data", "--sentences", 8)
    digit_corpus.run("imitkd-export", teacher, *few, "--out", made / "exported", "--quantization", "float32")
    given = ("--model", f"student={teacher}", "--data", root / "data", "--beam", 1, "--speed-sentences", 8)
    digit_corpus.run("imitkd-evaluate", *given, "--batch-sizes", 8, "--out", made / "evaluation")
    shutil.copytree(root / "good", made / "run")
    return {
        "data": root / "data",
        "dictionary": root / "data",
        **{kind: made / kind for kind in ("cache", "exported", "evaluation", "run", *SUBWORDS)},
    }


SUBWORDS = ("sentencepiece", "subword_nmt")


def spoilt(good: Path, hostile: HostileFolder, at: Path) -> None:
    """Copy a good folder and spoil the copy.

    Args:
        good: the folder; one that is missing is made new.
        hostile: what is spoilt.
        at: the copy.
    """
    if good.is_dir():
        shutil.copytree(good, at)
    hostile.spoil(at)
