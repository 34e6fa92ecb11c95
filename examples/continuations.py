"""Reads the continuations that imitkd-generate wrote: ``continuations.py OUTPUT`` prints each prompt with its
continuation, in the order of the data.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

ROWS = ("teacher", "scratch", "continued", "seqkd", "word_kd", "imitkd", "gkd")


def main() -> None:
    [output] = sys.argv[1:]
    for prompt, continuation in continuations(Path(output)):
        print(f"{prompt} {continuation}")


def continuations(output: Path) -> list[tuple[str, str]]:
    """Return the prompts and their best continuations, in the order of the data."""
    found: dict[int, dict[str, str]] = {}
    for line in output.read_text(encoding="utf-8").splitlines():
        kind, _, number = line.partition("\t")[0].partition("-")
        if kind in ("S", "H") and number.isdecimal():
            found.setdefault(int(number), {})[kind] = line.split("\t")[-1]
    return [(found[number]["S"], found[number]["H"]) for number in sorted(found)]


def in_order(names: Sequence[str]) -> list[str]:
    """Return the models in the order of the table."""

    def place(name: str) -> tuple[int, str]:
        row = name.partition("-")[0]
        return ROWS.index(row) if row in ROWS else len(ROWS), name

    return sorted(names, key=place)


def control_of(name: str, names: Sequence[str]) -> str | None:
    """Return the control of a student that goes on from another one: ``continued`` of the same seed."""
    row, dash, seed = name.partition("-")
    control = f"continued{dash}{seed}"
    return control if row not in ("scratch", "teacher", "continued") and control in names else None


def of_checkpoint(checkpoint: Path) -> tuple[int, int]:
    """Return a model's number of parameters, tied ones once, and its seed."""
    from fairseq_imitkd.checkpoints.safe_load import read_checkpoint

    state = read_checkpoint(str(checkpoint), None)
    weights = {
        tensor.data_ptr(): tensor.numel()
        for weight, tensor in state["model"].items()
        if not weight.endswith((".version", "._float_tensor"))
    }
    return sum(weights.values()), state["cfg"]["common"]["seed"]


def validations(metrics: Path, name: str) -> list[tuple[int, float]]:
    """Return the update and the value of a metric of each validation of a training."""
    lines = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
    return [(int(line["num_updates"]), float(line[name])) for line in lines if line["tag"] == "valid"]


if __name__ == "__main__":
    main()
