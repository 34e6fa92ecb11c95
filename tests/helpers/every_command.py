"""Every command that reads a checkpoint, run on a file: how it ends, in what time and memory."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.helpers import digit_corpus, warm_commands
from tests.helpers.command_lines import End
from tests.helpers.fairseq_models import reversed_pairs, write_dictionaries
from tests.helpers.hostile_files import State, Wrong
from tests.helpers.seqkd_jobs import write_split

MEMORY = 3 * 2**30  # bytes that a command may map; it maps 0.9 GB when it starts
SECONDS = 10  # of the processor; a command on a good file needs two
PATIENCE = 300.0  # seconds to wait for a command that does not compute

_STUDENT = (
    "DATA", "--save-dir", "OUT/saved", "--cpu", *digit_corpus.TINY, "--optimizer", "adam", "--lr", "0.01",
    "--max-tokens", "200", "--num-workers", "0", "--max-source-positions", "64",
    "--max-target-positions", "64",
    "--log-format", "simple", "--disable-validation", "--no-epoch-checkpoints",
)  # fmt: skip
_TRAIN = (*_STUDENT, "--max-update", "4", "--criterion", "cross_entropy")
_DECODE = ("DATA", "--path", "FILE", "--cpu", "--batch-size", "1", "--beam", "1", "--max-len-b", "5")
_TEACHER = ("--teacher-path", "FILE", "--cpu", "--teacher-allow-poor")
READERS: dict[str, tuple[str, ...]] = {
    "train --teacher-path": (
        "imitkd-train", *_STUDENT, "--max-update", "1", "--criterion", "word_kd", "--teacher-path", "FILE",
        "--teacher-allow-poor",
    ),
    "train --restore-file": ("imitkd-train", *_TRAIN, "--restore-file", "FILE"),
    "train --finetune-from-model": ("imitkd-train", *_TRAIN, "--finetune-from-model", "FILE"),
    "train --save-dir": ("imitkd-train", *_TRAIN),  # where the file is checkpoint_last.pt
    "generate": ("imitkd-generate", *_DECODE),
    "interactive": ("imitkd-interactive", *_DECODE),
    "seqkd": ("imitkd-seqkd", "DATA", "--out", "OUT/out", *_TEACHER, "--gen-subset", "test", "--beam", "1"),
    "cache": (
        "imitkd-cache", "DATA", "--out", "OUT/out", *_TEACHER, "--keep", "topk:4", "--gen-subset", "test",
    ),
    "evaluate": (
        "imitkd-evaluate", "--model", "student=FILE", "--data", "DATA", "--out", "OUT/out", "--beam", "1",
        "--speed-sentences", "8", "--batch-sizes", "8",
    ),
    "export": ("imitkd-export", "FILE", "--data", "DATA", "--out", "OUT/out", "--sentences", "8"),
    "prune": ("imitkd-prune", "FILE", "--sparsity", "0.5", "--out", "OUT/out.pt"),
}  # fmt: skip
CONTINUES = ("train --restore-file", "train --save-dir")
BUILDS = tuple(name for name in READERS if not name.startswith("train --") and name != "prune")
BUILDS += ("train --teacher-path",)


@dataclass(frozen=True)
class Outcome:
    """How a command ended on a file.

    Args:
        end: its status and output.
        seconds: how long it took.
        executed: whether it ran the file's code.
        must_refuse: whether the file has a fault that the command must see.
    """

    end: End
    seconds: float
    executed: bool
    must_refuse: bool

    @property
    def kind(self) -> str:
        """The column of the table."""
        if self.executed:
            return "executed"
        if self.end.status in (None, -signal.SIGXCPU, -signal.SIGKILL):
            return "over time"
        if "memory" in self.end.last and "error" in self.end.last:
            return "over memory"
        if self.end.fault is not None:
            return "traceback" if "raceback" in self.end.fault else "no line"
        if self.end.output.count("\nerror: ") + self.end.output.startswith("error: ") > 1:
            return "no line"
        if self.end.status == 0:
            return "missed" if self.must_refuse else "accepted"
        return "one line"

    @property
    def is_fault(self) -> bool:
        """Whether the command did something else than to refuse the file in a line or to use it."""
        return self.kind not in ("one line", "accepted")


def must_refuse(reader: str, wrong: Wrong) -> bool:
    """Return whether a command must refuse a file with such a fault."""
    loads = reader in BUILDS or reader.startswith("train --")
    return {
        Wrong.FILE: True,
        Wrong.SETTINGS: reader in BUILDS,
        Wrong.TASK: reader in BUILDS and reader not in ("generate", "interactive"),
        Wrong.WEIGHTS: loads,
        Wrong.PROGRESS: reader in CONTINUES,
        Wrong.NOTHING: False,
    }[wrong]


@dataclass(frozen=True)
class Place:
    """A small corpus, and the checkpoint of a training on it that can be continued.

    Args:
        root: the folder.
        state: the content of the checkpoint.
    """

    root: Path
    state: State

    @classmethod
    def made(cls, root: Path) -> "Place":
        """Make the corpus and the checkpoint."""
        data = write_dictionaries(root / "data")
        for split, sentences, seed in (("train", 96, 1), ("valid", 16, 2), ("test", 16, 3)):
            pairs = reversed_pairs(sentences, seed)
            write_split(data, split, [[4 + letter for letter in source] for source, _ in pairs], "src")
            write_split(data, split, [[4 + letter for letter in target] for _, target in pairs], "tgt")
        good = ("--max-update", "2", "--criterion", "cross_entropy", "--task", "translation_with_teacher")
        names = {"DATA": data, "OUT": root}
        digit_corpus.run("imitkd-train", *_filled((*_STUDENT, *good), names))
        state = torch.load(root / "saved" / "checkpoint_last.pt", weights_only=True)
        (root / "saved").rename(root / "good")
        return cls(root, state)

    def run(
        self, reader: str, file: Path, out: Path, *, trace: Path, wrong: Wrong = Wrong.NOTHING
    ) -> Outcome:
        """Run a command on a checkpoint.

        Args:
            reader: a name of :data:`READERS`.
            file: the checkpoint.
            out: a new folder for what the command writes.
            trace: a path that the file's code would create.
            wrong: what is wrong with the file.
        """
        out.mkdir()
        if reader == "train --save-dir":
            (out / "saved").mkdir()
            os.link(file, out / "saved" / "checkpoint_last.pt")
        names = {"DATA": self.root / "data", "OUT": out, "FILE": file}
        return run(READERS[reader], names, trace=trace, must_refuse=must_refuse(reader, wrong))


def run(words: Sequence[str], names: Mapping[str, Path], *, trace: Path, must_refuse: bool) -> Outcome:
    """Run a command line with little memory and time.

    Args:
        words: the command and its arguments.
        names: what stands for the words in capitals.
        trace: a path that a hostile file's code would create.
        must_refuse: whether the command must end with an error.
    """
    command, *arguments = _filled(words, names)
    limits = {"WARM_ADDRESS_SPACE": str(MEMORY), "WARM_SECONDS": str(SECONDS)}
    start = time.monotonic()
    try:
        done = subprocess.run(
            [warm_commands.folder() / command, *arguments], input="a b c\n", capture_output=True, text=True,
            errors="replace", env={**digit_corpus.ENVIRONMENT, **limits}, timeout=PATIENCE,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        end = End(None, "", "")
    else:
        shown = done.stderr.strip().splitlines() or [""]
        end = End(done.returncode, f"{done.stdout}\n{done.stderr}", shown[-1])
    return Outcome(end, time.monotonic() - start, trace.exists(), must_refuse)


def _filled(words: Sequence[str], names: Mapping[str, Path]) -> list[str]:
    """Replace the names in capitals."""
    for name, path in names.items():
        starts = (name, f"student={name}")
        words = [word.replace(name, str(path)) if word.startswith(starts) else word for word in words]
    return list(words)
