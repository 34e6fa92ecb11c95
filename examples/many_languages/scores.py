"""Collects the evaluations of all pairs: ``scores.py RUN PAIR…``.

It reads ``RUN/evaluation/PAIR/evaluation.json``, which imitkd-evaluate has written, writes
``RUN/results.json`` and prints the table.
"""

import json
import sys
from pathlib import Path
from typing import Any

from table import table
from trainings import logged, origin, training

from fairseq_imitkd.data.files import write_json


def main() -> None:
    run, pairs = Path(sys.argv[1]), sys.argv[2:]
    evaluations = {
        pair: json.loads((run / "evaluation" / pair / "evaluation.json").read_text()) for pair in pairs
    }
    names = list(next(iter(evaluations.values()))["models"])
    results = {
        "recipe": "many_languages",
        **origin(),
        "trainings": {name: {**training(run, name), "logged": logged(run / name)} for name in names},
        "models": {name: model(name, evaluations) for name in names},
        "pairs": {pair: sentences(run, pair) for pair in pairs},
        "signatures": {pair: each["signatures"]["bleu"] for pair, each in evaluations.items()},
        "commands": [each["command"] for each in evaluations.values()],
    }
    write_json(run / "results.json", results)
    print(table(results))


def model(name: str, evaluations: dict[str, Any]) -> dict[str, Any]:
    """Return a model's parameters, and its greedy scores of each pair."""
    found = {pair: each["models"][name] for pair, each in evaluations.items()}
    _, _, seed = name.partition("-seed")
    return {
        "parameters": next(iter(found.values()))["parameters"],
        "seed": int(seed or 1),
        "scores": {pair: each["decoding"]["greedy"] for pair, each in found.items()},
    }


def sentences(run: Path, pair: str) -> dict[str, int]:
    """Return how many sentences each split of a pair has."""
    source, target = pair.split("-")
    texts = run / "text"
    there = pair if (texts / f"train.{pair}.{source}").exists() else f"{target}-{source}"
    return {
        split: len((texts / f"{split}.{there}.{source}").read_text(encoding="utf-8").splitlines())
        for split in ("train", "valid", "test")
    }


if __name__ == "__main__":
    main()
