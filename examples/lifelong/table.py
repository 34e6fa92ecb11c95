"""The table of both tasks, in Markdown."""

from typing import Any

TASKS = ("first", "second")


def table(results: dict[str, Any]) -> str:
    """All models, a line each, and what the columns are; ``results`` is a results.json of evaluate.py."""
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
        f"BLEU ± 95% bootstrap interval: `{results['signatures']['bleu']}`; right: the share of sentences that equal one of "
        "the right translations; greedy decoding; training: of this model alone, up to three of them at a time; "
        f"seed {results['seed']}."
    )
    return "\n".join([*rows, "", notes])


def seconds(training: dict[str, Any]) -> str:
    """Unknown where the model that it began as is gone."""
    return "" if training["minutes"] is None else f"{training['minutes'] * 60:.0f}"
