"""Collects the results of recipe.yaml: ``results.py RUN`` writes RUN/results.json, and prints the table.

The table of methods is the one that imitkd-distill has made; the processor times are those that it has noted.
"""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from sacrebleu.metrics import BLEU
from table import table
from trainings import logged

from fairseq_imitkd.data.files import write_json
from fairseq_imitkd.pipeline.seeds import mean
from fairseq_imitkd.text import bootstrap


def main() -> None:
    run = Path(sys.argv[1])
    students = run / "students"
    evaluation = read(students / "evaluation" / "evaluation.json")
    steps = {step["name"]: step for step in read(students / ".steps" / "plan.json")["steps"]}
    origin = {key: evaluation[key] for key in ("commit", "machine", "versions")}
    path = run / "results.json"
    former = read(path)["trainings"] if path.exists() else {}
    trained = {name: f"train-{name}" for name in evaluation["models"] if f"train-{name}" in steps}
    results = {
        "recipe": "source_only",
        **origin,
        "signature": evaluation["signatures"]["bleu"],
        "sentences": {
            name: len((run / "text" / name).read_text(encoding="utf-8").splitlines())
            for name in ("train.de", "mono.de", "test.de")
        },
        "trainings": {
            name: {
                "commits": commits(former.get(name), noted(students, step), origin["commit"]),
                "command": shlex.join(steps[step]["commands"][0]["words"]).replace(str(run.resolve()), "run"),
                **noted(students, step),
                "logged": logged(students / "models" / name),
            }
            for name, step in trained.items()
        },
        "translations": {
            name: [noted(students, f"{name}{part}") for part in ("", "-mono")] for name in ("seqkd", "mbr")
        },
        "then_imitkd_over_then_seqkd": difference(students / "evaluation", "then_imitkd", "then_seqkd"),
        "table": (students / "table.md").read_text(encoding="utf-8"),
        "models": {name: model["decoding"]["greedy"] for name, model in evaluation["models"].items()},
    }
    write_json(path, results)
    print(table(results))


def commits(former: dict[str, Any] | None, spent: dict[str, Any], commit: str) -> list[str]:
    """Return the commit of a training: of an earlier call, unless it has been trained again since."""
    if former is not None and former["cpu_seconds"] == spent["cpu_seconds"]:
        return list(former["commits"])
    return [commit]


def difference(evaluation: Path, one: str, other: str) -> dict[str, float | None]:
    """Return how much more BLEU a method has than another, in the mean of the seeds, its interval, and p."""
    references = lines(evaluation / "references.txt")
    bleu, times = BLEU(references=[references]), bootstrap.resamples(len(references))
    systems = [
        mean(
            [
                bootstrap.of_metric(bleu, lines(path), times)
                for path in sorted(evaluation.glob(f"{method}-seed*.greedy.txt"))
            ]
        )
        for method in (one, other)
    ]
    return {**vars(systems[0].minus(systems[1])), "p": systems[0].p(systems[1])}


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def noted(students: Path, step: str) -> dict[str, Any]:
    """Return the processor time of a step, in seconds, and its peak memory, in bytes."""
    note = read(students / ".steps" / "notes" / f"{step}.json")
    return {"cpu_seconds": note["cpu"], "peak_bytes": note["peak"]}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
