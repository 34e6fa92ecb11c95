"""The quickstart's table, in Markdown with aligned columns that are readable in a console."""

import re
from pathlib import Path
from typing import Any

SHORT = ("", "BLEU", "right", "parameters", "updates", "training, CPU s")  # README.md's columns


def table(results: dict[str, Any], *, short: bool = False) -> str:
    """Return the table of evaluate.py's results.json, one line per model, and notes on its columns."""
    described = [row(results, label) for label in results["models"]]
    columns = SHORT if short else tuple(described[0])
    cells = [columns, *(tuple(each[column] for column in columns) for each in described)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    lines = [
        " | ".join(
            [
                first.ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)),
            ]
        )
        for first, *others in cells
    ]
    of_columns = "" if short else of_long_columns(results)
    notes = (
        "right: share of translations that equal a right translation. BLEU ± 95% bootstrap interval: "
        f"`{results['signatures']['bleu']}`. {of_columns}updates: those of the student whose weights it "
        "starts from + its own. training: processor time of this model's training command. The teacher's "
        f"translations for SeqKD took {results['translations']['cpu_seconds']:.0f} CPU s more. "
        f"Seed {results['seed']}."
    )
    return "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:]), "", notes])


def row(results: dict[str, Any], label: str) -> dict[str, str]:
    """Return the cells of a model, by column."""
    model = results["models"][label]
    training = results["trainings"][model["folder"]]
    return {
        "": label,
        "BLEU": f"{model['bleu']:.2f} ± {model['bleu_interval']:.2f}",
        "chrF": f"{model['chrf']:.2f}",
        "right": f"{model['right']:.1f}%",
        "parameters": f"{model['parameters']:,}",
        "MB": f"{4 * model['parameters'] / 1e6:.2f}",
        "sentences/s": speed(model),
        "updates": updates(training, results["trainings"]),
        "training, CPU s": f"{training['cpu_seconds']:.0f}",
    }


def of_long_columns(results: dict[str, Any]) -> str:
    """Return the notes on the columns that README.md leaves out."""
    return (
        f"chrF: `{results['signatures']['chrf']}`. MB: size of the weights, in float32. sentences/s: median "
        "of the rounds (least to most). "
    )


def speed(model: dict[str, Any]) -> str:
    """Return the median of the rounds, with the slowest and the fastest one if there are several."""
    rounds = model.get("sentences_per_second_rounds", [])
    between = f" ({min(rounds):,.0f} to {max(rounds):,.0f})" if len(rounds) > 1 else ""
    return f"{model['sentences_per_second']:,.0f}{between}"


def updates(training: dict[str, Any], trainings: dict[str, dict[str, Any]]) -> str:
    """Return the updates of a training, after those of the models whose weights it started from."""
    start = re.search(r"--(?:restore-file|finetune-from-model) (\S+)", training["command"] or "")
    before = trainings.get(Path(start[1]).parent.name) if start else None
    own = f"{training['updates_in_all']:,}"
    return f"{updates(before, trainings)} + {own}" if before else own
