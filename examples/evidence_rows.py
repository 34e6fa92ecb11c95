"""The rows of evidence.py: what is recorded of a training."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from evidence_scores import MEASURES, best_of, of_record

Record = dict[str, Any]
NOT_SCORES = {"tag", "epoch", "num_updates", "wps", "wpb", "bsz", "ups", "wall", "ppl"}


def record(
    run: Path,
    name: str,
    *,
    row: str,
    seed: int,
    measure: str,
    needs: Sequence[str],
    **choices: str | None,
) -> Record:
    """Return what is known of a finished training.

    Args:
        run: the recipe's run.
        name: folder of the training in it, with the decoded test set.
        row, seed: which training it is.
        measure: key of :data:`~evidence_scores.MEASURES`.
        needs: what the training needed: ``teacher``, ``data_seqkd``, and names of finished rows.
        choices: its ``rate``, and names of the rows that are its ``start`` and its ``teacher``.
    """
    from trainings import origin, training

    found = validations(run, name)
    config = json.loads((run / name / "config.json").read_text())
    settings = config["config"]
    return {
        "name": name,
        "row": row,
        "seed": seed,
        **choices,
        "measure": measure,
        "parameters": config["parameters"],
        "training": training(run, name),
        "cpu_seconds": found[-1]["cpu_seconds"],
        "before": before(run, needs),
        "max_update": settings["optimization"]["max_update"],
        "patience": settings["checkpoint"]["patience"],
        "validations": found,
        "test": MEASURES[measure].test(run, name),
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


def before(run: Path, needs: Iterable[str]) -> dict[str, float]:
    """Return the CPU seconds of everything that a training needed, by name."""
    found: dict[str, float] = {}
    for name in needs:
        row = run / "rows" / f"{name}.json"
        if name == "teacher":
            found[name] = validations(run, name)[-1]["cpu_seconds"]
        elif row.exists():
            base = json.loads(row.read_text())
            found |= base["before"] | {name: base["cpu_seconds"]}
        else:
            found[name] = float((run / f"{name}.needs" / "cpu").read_text())
    return found


def check_one_run(records: Iterable[Record]) -> None:
    """Refuse rows whose teachers, translations or starts are not the same trainings.

    Raises:
        SystemExit: two rows record other CPU seconds for a training that both need.
    """
    known: dict[str, tuple[float, str]] = {}
    for each in records:
        for name, seconds in {**each["before"], each["name"]: each["cpu_seconds"]}.items():
            before, row = known.setdefault(name, (seconds, each["name"]))
            if before != seconds:
                raise SystemExit(
                    f"{each['name']} needs {name} of {seconds:.0f} CPU seconds, but {row} needs one of "
                    f"{before:.0f}; publish the rows of one run, and delete the others"
                )


def write(path: Path, content: Record) -> None:
    """Write a record; the file appears when it is complete."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)


def scores(each: Record) -> list[float]:
    """Return the score of every validation of a training."""
    return [of_record(each).validation(one) for one in each["validations"]]


def score(each: Record) -> float:
    """Return the best score of a training on the validation set."""
    return float(best_of(of_record(each))(scores(each)))


def best(records: Sequence[Record]) -> Record:
    """Return the training that is best on the validation set; the first of equally good ones."""
    found: Record = best_of(of_record(records[0]))(records, key=score)
    return found


def minutes(each: Record) -> float:
    """Return the CPU minutes before a training, without the teacher's training."""
    return sum(seconds for name, seconds in each["before"].items() if name != "teacher") / 60


def cut(each: Record) -> bool:
    """Return whether a training ended by its number of updates, not by patience."""
    return bool(each["validations"][-1]["updates"] >= each["max_update"])


def progress(each: Record) -> str:
    """Return how far a training is.

    Args:
        each: its ``validations`` and its ``measure``.
    """
    last, measure = each["validations"][-1], of_record(each)
    return (
        f"{last['updates']:,} updates, {last['cpu_seconds'] / 60:.1f} CPU minutes, validation "
        f"{measure.title} {scores(each)[-1]:.2f}{measure.unit}, best {score(each):.2f}{measure.unit}"
    )


def summary(each: Record) -> str:
    """Return a finished training in one line."""
    return f"{progress(each)}, test {of_record(each).scores(each['test'])[0]:.2f}{of_record(each).unit}"
