"""The arithmetic recipe's table of all models and the means over seeds, in Markdown."""

import statistics
from typing import Any


def table(results: dict[str, Any]) -> str:
    """Return the tables of answers.py's results.json, and notes on their columns."""
    rows = [
        "| model | seed | parameters | right answers, % (95%) | all steps right, % | gained / lost | p "
        "| updates to best | CPU minutes |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    seeds: dict[str, list[float]] = {}
    for name, model in results["models"].items():
        row, training = name.partition("-")[0], results["trainings"][name]
        share = 100 * model["right_answers"] / model["problems"]
        seeds.setdefault(row, []).append(share)
        low, high = model["interval"]
        against = model.get("against_continued")
        compared = (
            "| |" if against is None else f"{against['gained']} / {against['lost']} | {shown(against['p'])} |"
        )
        seconds = training["cpu_seconds"]
        rows.append(
            f"| `{row}` | {model['seed']} | {model['parameters']:,} | {share:.1f} ({low:.1f} to {high:.1f}) "
            f"| {100 * model['right_steps'] / model['problems']:.1f} | {compared} {training['updates']:,} "
            f"| {'' if seconds is None else f'{seconds / 60:.1f}'} |"
        )
    rows += ["", "| mean over seeds | right answers, % |", "|---|--:|"]
    rows += [f"| `{row}` ({len(shares)}) | {statistics.mean(shares):.1f} |" for row, shares in seeds.items()]
    count = next(iter(results["models"].values()))["problems"]
    rows += [
        "",
        f"Greedy decoding of {count:,} test problems. An answer is right if it equals that of the problem. "
        "Interval: Wilson's, 95%. Gained / lost: test problems that only the model, or only `continued` of "
        "the same seed, gets right. p: McNemar's exact test. Updates to best: of the row's own training. CPU "
        "minutes: processor time of this training, with its validations and the teacher's passes; `seqkd` "
        "without the teacher's continuations.",
    ]
    return "\n".join(rows)


def shown(p: float) -> str:
    """Return a p-value, or its bound."""
    return f"{p:.4f}" if p >= 0.0001 else "< 0.0001"
