"""The rows of evidence.py: what is recorded of a training."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import error_rates

Record = dict[str, Any]
NOT_SCORES = {"tag", "epoch", "num_updates", "wps", "wpb", "bsz", "ups", "wall", "ppl"}


def record(
    run: Path,
    name: str,
    *,
    row: str,
    seed: int,
    rate: str | None,
    start: str | None,
    stages: Sequence[str],
) -> Record:
    """Return what is known of a finished training.

    Args:
        run: the recipe's run.
        name: folder of the training in it, with the decoded test set.
        row, seed, rate, start: which training it is.
        stages: what the training needed beside its start: ``teacher``, ``data_seqkd``.
    """
    from trainings import origin, training

    found = validations(run, name)
    config = json.loads((run / name / "config.json").read_text())
    settings = config["config"]
    return {
        "name": name,
        "row": row,
        "seed": seed,
        "rate": rate,
        "start": start,
        "parameters": config["parameters"],
        "training": training(run, name),
        "cpu_seconds": found[-1]["cpu_seconds"],
        "before": before(run, start, stages),
        "max_update": settings["optimization"]["max_update"],
        "patience": settings["checkpoint"]["patience"],
        "validations": found,
        "test": tested(run, name),
        "origin": origin(),
    }


def validations(run: Path, name: str) -> list[dict[str, float]]:
    """Return every validation of a training: its updates, the training's CPU seconds so far, and scores."""
    path = run / name / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [
        {"updates": line["num_updates"]} | {key: line[key] for key in line if key not in NOT_SCORES}
        for line in lines
        if line.get("tag") == "valid"
    ]


def before(run: Path, start: str | None, stages: Iterable[str]) -> dict[str, float]:
    """Return the CPU seconds of everything that a training needed, by name."""
    found: dict[str, float] = {}
    if start is not None:
        base = json.loads((run / "rows" / f"{start}.json").read_text())
        found |= base["before"] | {start: base["cpu_seconds"]}
    for stage in stages:
        if stage == "teacher":
            found[stage] = validations(run, stage)[-1]["cpu_seconds"]
        else:
            found[stage] = float((run / f"{stage}.needs" / "cpu").read_text())
    return found


def tested(run: Path, name: str) -> dict[str, Any]:
    """Return the error rates of a decoded test set, greedily decoded, and which words are right."""
    from quickstart.scoring import read_hypotheses

    right = [line.split("\t") for line in (run / "raw" / "test.all").read_text().splitlines()]
    found = error_rates.errors(read_hypotheses(run / name / "test.txt"), right)
    return {
        "word_errors": found.words,
        "phoneme_errors": found.phonemes,
        "words": len(right),
        "right": error_rates.packed(found.right),
    }


def write(path: Path, content: Record) -> None:
    """Write a record; the file appears when it is complete."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)


def score(found: dict[str, float]) -> float:
    """Return the word error rate of a validation."""
    return 100 - found["exact"]


def best(records: Sequence[Record]) -> Record:
    """Return the training with the fewest errors on the validation set; the first of equally good ones."""
    return min(records, key=lambda each: min(map(score, each["validations"])))


def minutes(each: Record) -> float:
    """Return the CPU minutes before a training, without the teacher's training."""
    return sum(seconds for name, seconds in each["before"].items() if name != "teacher") / 60


def cut(each: Record) -> bool:
    """Return whether a training ended by its number of updates, not by patience."""
    return bool(each["validations"][-1]["updates"] >= each["max_update"])


def progress(found: list[dict[str, float]]) -> str:
    """Return how far a training is."""
    last = found[-1]
    return (
        f"{last['updates']:,} updates, {last['cpu_seconds'] / 60:.1f} CPU minutes, validation word errors "
        f"{score(last):.2f}%, best {min(map(score, found)):.2f}%"
    )


def summary(each: Record) -> str:
    """Return a finished training in one line."""
    return f"{progress(each['validations'])}, test {each['test']['word_errors']:.2f}%"
