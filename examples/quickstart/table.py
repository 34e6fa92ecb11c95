"""The quickstart's table, in Markdown with aligned columns that are readable in a console."""

import re
from pathlib import Path
from typing import Any

HEAD = ("", "BLEU", "chrF", "right", "parameters", "MB", "sentences/s", "updates", "training, CPU s")


def table(results: dict[str, Any]) -> str:
    """Return the table of evaluate.py's results.json, one line per model, and notes on its columns."""
    rows = [HEAD]
    for label, model in results["models"].items():
        training = results["trainings"][model["folder"]]
        rows.append(
            (
                label,
                f"{model['bleu']:.2f} ± {model['bleu_interval']:.2f}",
                f"{model['chrf']:.2f}",
                f"{model['right']:.1f}%",
                f"{model['parameters']:,}",
                f"{4 * model['parameters'] / 1e6:.2f}",
                speed(model),
                updates(training, results["trainings"]),
                f"{training['cpu_seconds']:.0f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    lines = []
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    notes = (
        "right: share of translations that equal a right translation. "
        f"BLEU ± 95% bootstrap interval: `{results['signatures']['bleu']}`. "
        f"chrF: `{results['signatures']['chrf']}`. "
        "MB: size of the weights, in float32. sentences/s: median of the rounds (least to most). updates: "
        "those of the student whose weights it starts from + its own. training: processor time of this "
        "model's training command. The teacher's translations for SeqKD took "
        f"{results['translations']['cpu_seconds']:.0f} CPU s more. "
        f"Seed {results['seed']}."
    )
    return "\n".join([lines[0], f"|{rule}|", *lines[1:], "", notes])


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
