"""Decode both tasks' test sets with every model of RUN; write its table, table.md, and results.json."""

import logging
from pathlib import Path
from typing import Any

from fairseq import options
from fairseq_cli import generate
from scoring import DECODING, asked, score, write  # the quickstart's
from table import TASKS, table
from trainings import training

MODELS = {
    "teacher of the first": "teacher-first",
    "teacher of the second": "teacher-second",
    "student after the first": "first",
    "then the second by its teacher alone": "forgetful",
    "then the second, lifelong": "lifelong",
}


def main() -> None:
    run, seed, device = asked(__doc__)
    trainings = {folder: training(run, folder) for folder in ("scratch", *MODELS.values())}
    logging.disable(logging.INFO)  # fairseq logs into the first of the outputs, closed or not
    models = {
        label: {"folder": folder, **{task: quality(run, folder, task, device) for task in TASKS}}
        for label, folder in MODELS.items()
    }
    write(run, {"recipe": "lifelong", "seed": seed, "trainings": trainings, "models": models}, device, table)


def quality(run: Path, folder: str, task: str, device: list[str]) -> dict[str, Any]:
    """Of one model on one task's test set."""
    out = run / folder / task
    paths = [
        str(run / "data-bin" / task),
        "--path",
        str(run / folder / "checkpoint_last.pt"),
        "--results-path",
        str(out),
    ]
    generate.main(options.parse_args_and_arch(options.get_generation_parser(), [*paths, *DECODING, *device]))
    return score(run / "text" / task, out / "generate-test.txt")


if __name__ == "__main__":
    main()
