"""The quickstart's table: Markdown with aligned columns, which a console shows as well."""

from typing import Any

HEAD = ("", "BLEU", "chrF", "right", "parameters", "MB", "sentences/s", "updates", "training, s")


def table(results: dict[str, Any]) -> str:
    """All models, a line each, and what the columns are; ``results`` is a results.json of evaluate.py."""
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
                f"{model['file_bytes'] / 1e6:.2f}",
                f"{model['sentences_per_second']:.0f}",
                f"{training['updates_in_all']:,}",
                seconds(training),
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
        f"right: equals one of the right translations. BLEU ± 95% bootstrap interval: `{results['signatures']['bleu']}`. "
        f"chrF: `{results['signatures']['chrf']}`. "
        "MB: of the checkpoint. training: of this model alone, beside whatever else the machine did. "
        f"Seed {results['seed']}."
    )
    return "\n".join([lines[0], f"|{rule}|", *lines[1:], "", notes])


def seconds(training: dict[str, Any]) -> str:
    """Unknown where the model that it began as is gone."""
    return "" if training["minutes"] is None else f"{training['minutes'] * 60:.0f}"
