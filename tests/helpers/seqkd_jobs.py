"""A small corpus, a teacher that has started to learn it, and jobs of ``imitkd-seqkd`` on them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.models import BaseFairseqModel

from fairseq_imitkd.data.corpus import dataset_builder
from fairseq_imitkd.engines.base import SearchSettings
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.seqkd.factory import make
from fairseq_imitkd.seqkd.filters import Filters
from fairseq_imitkd.seqkd.job import Job
from tests.helpers.fairseq_models import (
    checkpoint_state,
    reversed_pairs,
    trained_student,
    training_config,
    write_dictionaries,
)
from tests.helpers.killable import Command

EOS, SENTENCES = 2, 60


def make_root(root: Path, teacher: BaseFairseqModel | None = None, *flags: str) -> Path:
    """Make ``data``, two splits of random letters, and ``teacher.pt``, which has started to reverse them.

    Args:
        root: folder to fill.
        teacher: another one, of these architecture's flags.
    """
    data = write_dictionaries(root / "data")
    for split, seed in (("test", 1), ("valid", 2)):
        pairs = reversed_pairs(SENTENCES, seed)
        pairs[7] = ([], [4])  # an empty source
        write_split(data, split, [[4 + letter for letter in source] for source, _ in pairs], "src")
        write_split(data, split, [[4 + letter for letter in target] for _, target in pairs], "tgt")
    positions = ("--max-source-positions", 64, "--max-target-positions", 64)
    cfg = training_config(data, "--task", "translation", *positions, *flags)
    torch.save(checkpoint_state(teacher or trained_student("transformer"), cfg), root / "teacher.pt")
    return root


def write_split(data: Path, split: str, rows: list[list[int]], side: str) -> None:
    with dataset_builder(data / f"{split}.src-tgt.{side}", 20) as builder:
        for row in rows:
            builder.add_item(torch.tensor([*row, EOS]))


def job(root: Path, out: Path, **changes: Any) -> Job:
    """Return a job of about 15 batches with short translations."""
    decoding = SearchSettings(**{"beam": 3, "max_len_b": 12, **changes.pop("decoding", {})})
    filters = Filters(**changes.pop("filters", {}))
    settings = {"split": "test", "batch_size": 4, "cpu": True, **changes}
    return Job(
        settings.pop("data", root / "data"),
        str(settings.pop("teacher", root / "teacher.pt")),
        out,
        decoding,
        filters,
        **settings,
    )


def start_command(root: Path, out: Path, **settings: Any) -> Command:
    """Start the same job by its command line, in three processes. Two of them translate."""
    flags = (
        "--gen-subset",
        "test",
        "--beam",
        3,
        "--max-len-b",
        12,
        "--batch-size",
        4,
        "--cpu",
        "--workers",
        2,
    )
    given = (root / "data", "--teacher-path", root / "teacher.pt", "--out", out / "out")
    return Command([*given, *flags, *settings.pop("flags", ())], out / "log", **settings)


def refusal(some: Job) -> str:
    with pytest.raises(UsageError) as error:
        make(some)
    assert "\n" not in str(error.value)
    return str(error.value)
