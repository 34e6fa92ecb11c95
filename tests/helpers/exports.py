"""Students to export: a small corpus of random letters, their checkpoints, and export jobs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from fairseq_imitkd.engines.base import SearchSettings
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.export.exporter import ExportJob, export
from fairseq_imitkd.text.subwords import TextSettings
from tests.helpers.fairseq_models import RECURRENT, checkpoint_state, trained_student
from tests.helpers.seqkd_jobs import make_root

POSITIONS = ("--max-source-positions", "64", "--max-target-positions", "64")


def make_students(root: Path) -> Path:
    """Make ``data``, ``transformer.pt`` and ``gru.pt``: students that have started to reverse letters."""
    make_root(root)
    (root / "teacher.pt").rename(root / "transformer.pt")
    sizes = [
        word for name, value in RECURRENT.items() for word in ("--" + name.replace("_", "-"), str(value))
    ]
    flags = [
        str(root / "data"),
        "--source-lang",
        "src",
        "--target-lang",
        "tgt",
        "--arch",
        "gru",
        *sizes,
        *POSITIONS,
    ]
    args = options.parse_args_and_arch(options.get_training_parser(), flags)
    torch.save(
        checkpoint_state(trained_student("gru"), convert_namespace_to_omegaconf(args)), root / "gru.pt"
    )
    return root


def job(root: Path, out: Path, **changes: Any) -> ExportJob:
    """Return an export of the transformer, in float32 by default."""
    settings = {
        "checkpoint": root / "transformer.pt",
        "data": root / "data",
        "quantization": "float32",
        "text": TextSettings(),
        "search": SearchSettings(beam=1, max_len_b=12),
        **changes,
    }
    return ExportJob(out=out, **{**settings, "checkpoint": str(settings["checkpoint"])})


def refusal(root: Path, out: Path, **changes: Any) -> str:
    """Return the message of an export that is refused and leaves nothing behind."""
    there = set(out.parent.iterdir())
    with pytest.raises(UsageError) as error:
        export(job(root, out, **changes))
    assert set(out.parent.iterdir()) == there
    assert "\n" not in str(error.value)
    return str(error.value)
