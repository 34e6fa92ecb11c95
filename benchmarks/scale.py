"""Measures what the steps of imitkd-distill take for a sentence, and works out a job of many sentences.

    python benchmarks/scale.py train.de train.en [--sentences 100000000] [--device cpu] [--price 0.04]

The text is split into subwords and binarised by the pipeline's commands, at a quarter of its size and at its
whole size, and the difference counts, so start-up does not. Passes of a teacher and a student over random
tokens are timed as ``imitkd-distill --dry-run`` does it. ``--price`` is that of an hour of this machine's
device, of one core or one GPU. Times are processor times of one core, except on a GPU.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from fairseq_imitkd.export.architecture import build
from fairseq_imitkd.pipeline import sentencepieces
from fairseq_imitkd.pipeline.estimate import BEAM, timed
from fairseq_imitkd.pipeline.recipe_file import STUDENT

TEACHER = "--arch transformer_wmt_en_de --share-all-embeddings"
SIDES = ("src", "tgt")
MEASURED = ("encode", "binarise", "write seqkd's data")
PROGRAMS = Path(sys.executable).parent


LAUNCHER = (
    "import resource, subprocess, sys; status = subprocess.call(sys.argv[1:]); "
    "used = resource.getrusage(resource.RUSAGE_CHILDREN); "
    "print(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, file=sys.stderr); sys.exit(status)"
)


@dataclass(frozen=True)
class Used:
    """What some commands took: seconds of the processor, peak memory and results in bytes."""

    seconds: float
    memory: int
    bytes: int


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("text", nargs=2, type=Path, help="training text, source and target")
    parser.add_argument("--sentences", type=int, default=10**8, help="of the job (default: %(default)s)")
    parser.add_argument("--vocabulary", type=int, default=8000, help="default: %(default)s")
    parser.add_argument("--teacher", default=TEACHER, help="flags of its architecture (default: %(default)s)")
    parser.add_argument("--student", default=STUDENT, help="the same of the student (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument("--max-tokens", type=int, default=4096, help="of an update (default: %(default)s)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: %(default)s")
    parser.add_argument("--price", type=float, help="of an hour of the device, in any currency")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        sentence = per_sentence(args, Path(folder))
    rows = [*preparation(args, sentence), *computation(args, sentence["tokens"])]
    print(table(rows, args))
    if args.json:
        figures = {"sentence": sentence, "rows": rows, "load": os.getloadavg()[1], "arguments": sys.argv[1:]}
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def per_sentence(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Return seconds, bytes and memory of each preparing step, for a pair of sentences."""
    lines = [path.read_text(encoding="utf-8").splitlines() for path in args.text]
    count = len(lines[0])
    sentencepieces.train(folder / "model", args.vocabulary, [str(path) for path in args.text])
    found: dict[str, list[Used]] = {name: [] for name in MEASURED}
    for size in (count // 4, count):
        own = folder / str(size)
        own.mkdir()
        for side, text in zip(SIDES, lines, strict=True):
            (own / f"raw.{side}").write_text("".join(f"{line}\n" for line in text[:size]), encoding="utf-8")
        found["encode"].append(encode(own, folder / "model"))
        found["binarise"].append(binarise(own))
        found["write seqkd's data"].append(assemble(own, folder / "model"))
    tokens = sum(len(line.split()) + 1 for line in (own / "text.tgt").read_text("utf-8").splitlines())
    per = {
        "raw": sum((own / f"raw.{side}").stat().st_size for side in SIDES) / count,
        "tokens": tokens / count,
    }
    for name, (part, whole) in found.items():
        more = count - count // 4
        per |= {
            f"{name}_seconds": (whole.seconds - part.seconds) / more,
            f"{name}_bytes": whole.bytes / count,
            # The first of these steps has some thousand lines in memory, however many there are.
            f"{name}_memory": 0.0 if name == "encode" else max(0.0, (whole.memory - part.memory) / more),
        }
    return per


def encode(folder: Path, model: Path) -> Used:
    """Split a folder's text into subwords, as the step encode-train does."""
    command = (sys.executable, "-P", sentencepieces.__file__, "encode", str(model))
    each = [run(command, folder / f"raw.{side}", folder / f"text.{side}") for side in SIDES]
    size = sum((folder / f"text.{side}").stat().st_size for side in SIDES)
    return Used(sum(used.seconds for used in each), max(used.memory for used in each), size)


def binarise(folder: Path) -> Used:
    """Binarise a folder's text, as the step binarise does."""
    command = (
        str(PROGRAMS / "fairseq-preprocess"), "--source-lang", "src", "--target-lang", "tgt",
        "--joined-dictionary", "--trainpref", str(folder / "text"), "--destdir", str(folder / "bin"),
    )  # fmt: skip
    used = run(command, Path(os.devnull), folder / "log")
    return Used(used.seconds, used.memory, size_of(folder / "bin"))


def assemble(folder: Path, model: Path) -> Used:
    """Write the data set of a folder's pairs, as imitkd-seqkd does at its end with translations."""
    pairs = [(folder / f"raw.{side}").read_text("utf-8").splitlines() for side in SIDES]
    lines = (f"{one}\t{other}\n" for one, other in zip(*pairs, strict=True))
    (folder / "pairs.tsv").write_text("".join(lines), encoding="utf-8")
    command = (
        str(PROGRAMS / "imitkd-seqkd"), str(folder / "bin"), "--translations", str(folder / "pairs.tsv"),
        "--source-lang", "src", "--target-lang", "tgt", "--out", str(folder / "seqkd"),
        "--student-bpe", "sentencepiece", "--student-sentencepiece-model", str(model),
    )  # fmt: skip
    used = run(command, Path(os.devnull), folder / "seqkd.log")
    return Used(used.seconds, used.memory, size_of(folder / "seqkd"))


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run(command: tuple[str, ...], given: Path, out: Path) -> Used:
    """Run a command between two files, as a small process's child: a peak of memory includes the parent's."""
    with open(given, "rb") as source, open(out, "wb") as target:
        launched = (sys.executable, "-IS", "-c", LAUNCHER, *command)
        done = subprocess.run(launched, stdin=source, stdout=target, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"{shlex.join(command)} failed: {done.stderr.decode()[-500:]}")
    seconds, memory = done.stderr.decode().split()[-2:]
    return Used(float(seconds), int(memory), 0)


Row = tuple[str, float, float, float]  # step, hours, bytes on the disk, bytes of memory


def preparation(args: argparse.Namespace, per: dict[str, float]) -> list[Row]:
    """Return the rows of steps that prepare data."""
    count = args.sentences
    rows: list[Row] = [("text", 0.0, count * per["raw"], 0.0)]
    for name in MEASURED:
        hours = count * per[f"{name}_seconds"] / 3600
        rows.append((name, hours, count * per[f"{name}_bytes"], count * per[f"{name}_memory"]))
    return rows


def computation(args: argparse.Namespace, length: float) -> list[Row]:
    """Return the rows of steps that compute with models."""
    clock = time.process_time if args.device == "cpu" else time.monotonic
    student, teacher = (
        timed(build(shlex.split(flags), args.vocabulary), length, args.device, beam=beam, clock=clock)
        for flags, beam in ((args.student, 1), (args.teacher, BEAM))
    )
    tokens, words = args.updates * args.max_tokens, args.sentences * length
    return [
        (f"seqkd, beam {BEAM}", words * teacher.translation / 3600, 0.0, 0.0),
        (f"a student on it, {args.updates:,} updates", tokens * student.training / 3600, 0.0, 0.0),
        (
            f"a student with the teacher, {args.updates:,} updates",
            tokens * (student.training + student.forward + teacher.forward) / 3600,
            0.0,
            0.0,
        ),
    ]


def table(rows: list[Row], args: argparse.Namespace) -> str:
    """Return the rows as Markdown."""
    priced = ["cost"] * (args.price is not None)
    head = ["step", "hours", "GB on the disk", "GB of memory", *priced]
    lines = [head, ["---", *["--:"] * (len(head) - 1)]]
    for name, hours, disk, memory in rows:
        cells = [name, *(f"{value:,.1f}" if value else "" for value in (hours, disk / 1e9, memory / 1e9))]
        lines.append(cells if args.price is None else [*cells, f"{hours * args.price:,.0f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
