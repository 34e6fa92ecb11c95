"""What the tests of evaluations share: sentences without a data directory, and what translates them by a script."""

import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fairseq_imitkd.engines.base import Hypothesis
from fairseq_imitkd.evaluate.sentences import Sentences
from tests.helpers.digit_corpus import ENVIRONMENT

EOS = 2


def tokens(*numbers: int) -> Tensor:
    """A sentence with its EOS."""
    return torch.tensor([*numbers, EOS])


def sentences(sources: Sequence[str], references: Sequence[str]) -> Sentences:
    """Of text; a source has as many tokens as words."""
    numbers = [tokens(*range(4, 4 + len(source.split()))) for source in sources]
    return Sentences(numbers, numbers, sources, references)


class Scripted:
    """Writes a token for each sentence, and notes what it was asked for, in what order."""

    def __init__(
        self, name: str, asked: list[tuple[str, list[int]]], fails_at: int | None = None, score: float = -1.0
    ):
        self.name, self.asked, self.fails_at, self.score = name, asked, fails_at, score

    def translate(self, ids, sources, nbest):
        self.asked.append((self.name, list(ids)))
        if self.fails_at is not None and sum(name == self.name for name, _ in self.asked) > self.fails_at:
            raise RuntimeError("no more")
        return [[Hypothesis(tokens(4 + number), self.score, False)] for number in ids]


def write(folder: Path, **texts: Sequence[str]) -> dict[str, Path]:
    """Text files, a line a sentence."""
    paths = {name: folder / f"{name}.txt" for name in texts}
    for name, lines in texts.items():
        paths[name].write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return paths


def said_by(*command: object) -> str:
    """The output of another tool's own command line, run as a module."""
    given = [sys.executable, "-m", *map(str, command)]
    done = subprocess.run(given, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def hide(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """As to a user who may not search the folder: permissions themselves do not keep out a superuser."""
    stat = os.stat

    def denied(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        if str(path).startswith(f"{folder}{os.sep}"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *args, **kwargs)

    patch.setattr(os, "stat", denied)
