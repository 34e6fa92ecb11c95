"""The lifelong recipe's table, in Markdown."""

from typing import Any

TASKS = ("first", "second")


def table(results: dict[str, Any]) -> str:
    """Return the table of evaluate.py's results.json, one line per model, and notes on its columns."""
    rows = [
        "| model | first: BLEU | right | second: BLEU | right | updates | training, s |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for label, model in results["models"].items():
        cells = [
            f"{model[t]['bleu']:.2f} ± {model[t]['bleu_interval']:.2f} | {model[t]['right']:.1f}%"
            for t in TASKS
        ]
        training = results["trainings"][model["folder"]]
        rows.append(
            f"| {' | '.join([label, *cells])} | {training['updates_in_all']:,} | {seconds(training)} |"
        )
    notes = (
        f"BLEU ± 95% bootstrap interval: `{results['signatures']['bleu']}`; right: share of translations "
        "that equal a right translation; greedy decoding; training: training time of this model, with up to "
        f"three trainings at a time; seed {results['seed']}."
    )
    return "\n".join([*rows, "", notes])


def seconds(training: dict[str, Any]) -> str:
    """Return the training time; it is unknown if the model that the training started from is gone."""
    return "" if training["minutes"] is None else f"{training['minutes'] * 60:.0f}"
