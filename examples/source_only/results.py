"""Collects the results of recipe.yaml: ``results.py RUN`` writes RUN/results.json, and prints the table.

The table of methods is the one that imitkd-distill has made; the processor times are those that it has noted.
"""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from table import table

from fairseq_imitkd.data.files import write_json


def main() -> None:
    run = Path(sys.argv[1])
    students = run / "students"
    evaluation = read(students / "evaluation" / "evaluation.json")
    steps = {step["name"]: step for step in read(students / ".steps" / "plan.json")["steps"]}
    origin = {key: evaluation[key] for key in ("commit", "machine", "versions")}
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
                "commits": [origin["commit"]],
                "command": shlex.join(steps[step]["commands"][0]["words"]).replace(str(run.resolve()), "run"),
                **noted(students, step),
            }
            for name, step in trained.items()
        },
        "translations": {
            name: [noted(students, f"{name}{part}") for part in ("", "-mono")] for name in ("seqkd", "mbr")
        },
        "table": (students / "table.md").read_text(encoding="utf-8"),
        "models": {name: model["decoding"]["greedy"] for name, model in evaluation["models"].items()},
    }
    write_json(run / "results.json", results)
    print(table(results))


def noted(students: Path, step: str) -> dict[str, Any]:
    """Return the processor time of a step, in seconds, and its peak memory, in bytes."""
    note = read(students / ".steps" / "notes" / f"{step}.json")
    return {"cpu_seconds": note["cpu"], "peak_bytes": note["peak"]}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
