"""Reads what imitkd-generate wrote: ``answers.py join OUTPUT`` and ``answers.py score RUN NAME…``.

``join`` prints each prompt with its continuation, in the order of the data. ``score`` compares the models'
continuations of the test set, ``RUN/NAME/test.out``, with ``RUN/raw/test.txt``. It writes
``RUN/results.json`` and prints the table. An answer is what follows the last "=" of a continuation.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROWS = ("teacher", "scratch", "continued", "seqkd", "word_kd", "imitkd", "gkd")


def main() -> None:
    command, *words = sys.argv[1:]
    if command == "join":
        [output] = words
        for prompt, continuation in continuations(Path(output)):
            print(f"{prompt} {continuation}")
    elif command == "score":
        score(Path(words[0]), words[1:])
    else:
        raise SystemExit(f"the first word must be join or score, but is '{command}'")


def continuations(output: Path) -> list[tuple[str, str]]:
    """Return the prompts and their best continuations, in the order of the data."""
    found: dict[int, dict[str, str]] = {}
    for line in output.read_text(encoding="utf-8").splitlines():
        kind, _, number = line.partition("\t")[0].partition("-")
        if kind in ("S", "H") and number.isdecimal():
            found.setdefault(int(number), {})[kind] = line.split("\t")[-1]
    return [(found[number]["S"], found[number]["H"]) for number in sorted(found)]


def answer(continuation: str) -> str:
    """Return what follows the last "=" of worked steps."""
    return continuation.rpartition("=")[2].strip()


def score(run: Path, names: list[str]) -> None:
    """Write ``RUN/results.json``, and print the table."""
    from proportions import mcnemar, wilson
    from table import table
    from trainings import origin, training

    from fairseq_imitkd.checkpoints.safe_load import read_checkpoint
    from fairseq_imitkd.data.files import write_json

    problems = (run / "raw" / "test.txt").read_text(encoding="utf-8").splitlines()
    right: dict[str, Tensor] = {}
    models: dict[str, Any] = {}
    for name in sorted(names, key=order):
        written = continuations(run / name / "test.out")
        assert [prompt for prompt, _ in written] == [problem.partition("=")[0] + "=" for problem in problems]
        pairs = [
            (found, problem.partition("= ")[2]) for (_, found), problem in zip(written, problems, strict=True)
        ]
        right[name] = torch.tensor([answer(found) == answer(wanted) for found, wanted in pairs])
        state = read_checkpoint(str(run / name / "checkpoint_best.pt"), None)
        weights = {  # tied ones once
            tensor.data_ptr(): tensor.numel()
            for weight, tensor in state["model"].items()
            if not weight.endswith((".version", "._float_tensor"))
        }
        count = int(right[name].sum())
        models[name] = {
            "parameters": sum(weights.values()),
            "seed": state["cfg"]["common"]["seed"],
            "problems": len(problems),
            "right_answers": count,
            "interval": [100.0 * end for end in wilson(count, len(problems))],
            "right_steps": sum(found == wanted for found, wanted in pairs),
            "validations": validations(run / name / "metrics.jsonl"),
        }
    for name, model in models.items():
        row, dash, seed = name.partition("-")
        control = f"continued{dash}{seed}"
        if control in right and row not in ("scratch", "teacher", "continued"):
            model["against_continued"] = mcnemar(right[control], right[name])
    trainings = {name: training(run, name) for name in names}
    results = {"recipe": "arithmetic", **origin(), "trainings": trainings, "models": models}
    if (theirs := run / "teachers" / "train.txt").exists():  # the training set with the teacher's steps
        files = [
            path.read_text(encoding="utf-8").splitlines() for path in (theirs, run / "raw" / "train.txt")
        ]
        results["teachers_right_steps"] = sum(one == other for one, other in zip(*files, strict=True))
    write_json(run / "results.json", results)
    print(table(results))


def validations(metrics: Path) -> list[tuple[int, float]]:
    """Return the update and the share of right steps, in per cent, of each validation of a training."""
    lines = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
    return [(int(line["num_updates"]), float(line["exact"])) for line in lines if line["tag"] == "valid"]


def order(name: str) -> tuple[int, str]:
    """Return a sort key: the order of the table's rows."""
    row = name.partition("-")[0]
    return ROWS.index(row) if row in ROWS else len(ROWS), name


if __name__ == "__main__":
    main()
