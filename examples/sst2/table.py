"""The table of all models and the means over seeds, in Markdown."""

import statistics
from typing import Any


def table(results: dict[str, Any]) -> str:
    """All models, a line each, and what the columns are; ``results`` is a results.json of evaluate.py."""
    rows = [
        "| model | seed | parameters | updates to best | dev | test (95%) | gained / lost | p | minutes | GB |",
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
            f"| {row} | {model['seed']} | {model['parameters']:,} | {training['updates']} | {model['dev_accuracy']:.1f} | "
            f"{model['test_accuracy']:.1f} ({low:.1f} to {high:.1f}) | {compared} {rounded(training['minutes'], 0)} | "
            f"{rounded(training['peak_bytes'], 1, 1e9)} |"
        )
    rows += ["", "| mean over seeds | dev | test |", "|---|--:|--:|"]
    for row, runs in seeds.items():
        dev, test = (statistics.mean(run[f"{split}_accuracy"] for run in runs) for split in ("dev", "test"))
        rows.append(f"| {row} ({len(runs)}) | {dev:.1f} | {test:.1f} |")
    rows += [
        "",
        "Accuracy in per cent; interval: Wilson's, 95%; gained / lost: test sentences that only the model, or only "
        f"`{results['baseline']}` of the same seed, gets right; p: McNemar's exact test of these; minutes: of training alone, "
        "beside whatever else the machine did; GB: the most memory of the host that the training held. Parameters without the "
        "head for masked words, which fairseq builds and classification leaves alone.",
    ]
    return "\n".join(rows)


def rounded(number: float | None, digits: int, unit: float = 1.0) -> str:
    """Nothing where it is not known."""
    return "" if number is None else f"{number / unit:.{digits}f}"
