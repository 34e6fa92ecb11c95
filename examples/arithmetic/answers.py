"""Scores the worked steps that language models wrote: ``answers.py RUN NAME…``.

It compares ``RUN/NAME/test.txt`` with ``RUN/raw/test.txt``, writes ``RUN/results.json`` and prints the table.
An answer is what follows the last "=" of a continuation.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from continuations import continuations, control_of, in_order, of_checkpoint, validations
from proportions import mcnemar, wilson
from table import table
from torch import Tensor
from trainings import origin, training

from fairseq_imitkd.data.files import write_json


def main() -> None:
    """Write ``RUN/results.json``, and print the table."""
    run, names = Path(sys.argv[1]), in_order(sys.argv[2:])
    problems = (run / "raw" / "test.txt").read_text(encoding="utf-8").splitlines()
    right: dict[str, Tensor] = {}
    models: dict[str, Any] = {}
    for name in names:
        written = continuations(run / name / "test.txt")
        assert [prompt for prompt, _ in written] == [problem.partition("=")[0] + "=" for problem in problems]
        pairs = [
            (found, problem.partition("= ")[2]) for (_, found), problem in zip(written, problems, strict=True)
        ]
        right[name] = torch.tensor([answer(found) == answer(wanted) for found, wanted in pairs])
        parameters, seed = of_checkpoint(run / name / "checkpoint_best.pt")
        count = int(right[name].sum())
        models[name] = {
            "parameters": parameters,
            "seed": seed,
            "problems": len(problems),
            "right_answers": count,
            "interval": [100.0 * end for end in wilson(count, len(problems))],
            "right_steps": sum(found == wanted for found, wanted in pairs),
            "validations": validations(run / name / "metrics.jsonl", "exact"),
        }
        control = control_of(name, names)
        if control is not None:
            models[name]["against_continued"] = mcnemar(right[control], right[name])
    trainings = {name: training(run, name) for name in names}
    results = {"recipe": "arithmetic", **origin(), "trainings": trainings, "models": models}
    if (theirs := run / "teachers" / "train.txt").exists():  # the training set with the teacher's steps
        files = [
            path.read_text(encoding="utf-8").splitlines() for path in (theirs, run / "raw" / "train.txt")
        ]
        results["teachers_right_steps"] = sum(one == other for one, other in zip(*files, strict=True))
    write_json(run / "results.json", results)
    print(table(results))


def answer(continuation: str) -> str:
    """Return what follows the last "=" of worked steps."""
    return continuation.rpartition("=")[2].strip()


if __name__ == "__main__":
    main()
