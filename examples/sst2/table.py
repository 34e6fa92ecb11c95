"""SST-2's table of all models and the means over seeds, in Markdown."""

import statistics
from typing import Any


def table(results: dict[str, Any]) -> str:
    """Return the tables of evaluate.py's results.json, and notes on their columns."""
    rows = [
        "| model | seed | parameters | updates to best | dev | test (95%) | gained / lost | p | minutes "
        "| GB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    seeds: dict[str, list[dict[str, Any]]] = {}
    for name, model in results["models"].items():
        row, training = name.partition("-")[0], results["trainings"][name]
        seeds.setdefault(row, []).append(model)
        low, high = model["test_interval"]
        against = model.get("against_baseline")
        compared = (
            "| |" if against is None else f"{against['gained']} / {against['lost']} | {against['p']:.3f} |"
        )
        rows.append(
            f"| {row} | {model['seed']} | {model['parameters']:,} | {training['updates']} "
            f"| {model['dev_accuracy']:.1f} | {model['test_accuracy']:.1f} ({low:.1f} to {high:.1f}) "
            f"| {compared} {rounded(training['minutes'], 0)} "
            f"| {rounded(training['peak_bytes'], 1, 1e9)} |"
        )
    rows += ["", "| mean over seeds | dev | test |", "|---|--:|--:|"]
    for row, runs in seeds.items():
        dev, test = (statistics.mean(run[f"{split}_accuracy"] for run in runs) for split in ("dev", "test"))
        rows.append(f"| {row} ({len(runs)}) | {dev:.1f} | {test:.1f} |")
    rows += [
        "",
        "Accuracy in per cent. Interval: Wilson's, 95%. Gained / lost: test sentences that only the model, "
        f"or only `{results['baseline']}` of the same seed, gets right. p: McNemar's exact test. Minutes: "
        "training time, on a machine that also did other work. GB: peak host memory of the training. "
        "Parameters exclude the head for masked words, which fairseq builds but classification does not use.",
    ]
    return "\n".join(rows)


def rounded(number: float | None, digits: int, unit: float = 1.0) -> str:
    """Return a rounded number, or an empty cell if it is unknown."""
    return "" if number is None else f"{number / unit:.{digits}f}"
