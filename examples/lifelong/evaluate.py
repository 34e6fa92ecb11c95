"""Decodes both tasks' test sets with every model of RUN, and writes results.json and table.md."""

import logging
from pathlib import Path
from typing import Any

from scoring import asked, decode, score, write  # the quickstart's
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
    # fairseq logs into its first output file, even after closing it:
    # https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq_cli/generate.py#L61-L65
    logging.disable(logging.INFO)
    models = {
        label: {"folder": folder, **{task: quality(run, folder, task, device) for task in TASKS}}
        for label, folder in MODELS.items()
    }
    write(run, {"recipe": "lifelong", "seed": seed, "trainings": trainings, "models": models}, device, table)


def quality(run: Path, folder: str, task: str, device: list[str]) -> dict[str, Any]:
    """Return the scores of one model on one task's test set."""
    checkpoint = run / folder / "checkpoint_last.pt"
    return score(
        run / "text" / task, decode(run / "data-bin" / task, checkpoint, run / folder / task, device)
    )


if __name__ == "__main__":
    main()
