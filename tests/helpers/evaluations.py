"""Helpers for tests of evaluations: sentences without a data directory, and a scripted translator."""

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
    """Return a sentence's tokens with EOS."""
    return torch.tensor([*numbers, EOS])


def sentences(sources: Sequence[str], references: Sequence[str]) -> Sentences:
    """Return sentences of text. A source has as many tokens as words."""
    numbers = [tokens(*range(4, 4 + len(source.split()))) for source in sources]
    return Sentences(numbers, numbers, sources, references)


class ScriptedModel:
    """Writes one token for each sentence and records its calls in order."""

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
    """Write text files with a sentence in each line."""
    paths = {name: folder / f"{name}.txt" for name in texts}
    for name, lines in texts.items():
        paths[name].write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return paths


def output_of(*command: object) -> str:
    """Return the output of another tool's command line, run as a module."""
    given = [sys.executable, "-m", *map(str, command)]
    done = subprocess.run(given, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def hide(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make a folder look unreadable. A superuser ignores real permissions."""
    stat = os.stat

    def denied(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        if str(path).startswith(f"{folder}{os.sep}"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *args, **kwargs)

    patch.setattr(os, "stat", denied)
