"""The table of headlines by language models, in Markdown."""

from typing import Any


def table(results: dict[str, Any]) -> str:
    """Return the table of scores.py's results.json, and notes on its columns."""
    rows = [
        "| model | seed | parameters | ROUGE-L (95%) | ROUGE-1 | ROUGE-2 | over `continued` (95%) | p "
        "| words | updates to best | CPU minutes |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, model in results["models"].items():
        training, scores = results["trainings"][name], model["scores"]
        low, high = model["interval"]
        against = model.get("against_continued")
        compared = " | "
        if against is not None:
            p = "" if against["p"] is None else f"{against['p']:.3f}"
            compared = f"{against['value']:+.2f} ({against['low']:+.2f} to {against['high']:+.2f}) | {p}"
        seconds = training["cpu_seconds"]
        rows.append(
            f"| `{name.partition('-')[0]}` | {model['seed']} | {model['parameters']:,} "
            f"| {scores['rougeL']:.2f} ({low:.2f} to {high:.2f}) | {scores['rouge1']:.2f} "
            f"| {scores['rouge2']:.2f} | {compared} | {model['words']:.1f} | {training['updates']:,} "
            f"| {'' if seconds is None else f'{seconds / 60:.0f}'} |"
        )
    rows += [
        "",
        f"Greedy decoding of {results['headlines']:,} test articles. ROUGE: F-measure, "
        f"`{results['signature']}`. Intervals and p: paired bootstrap over the articles, p one-sided as "
        "sacreBLEU's; `continued` is that of the same seed. Words: mean length of the headlines that the "
        "model writes. Updates to best: of "
        "the row's own training. CPU minutes: processor time of this training, with its validations and the "
        "teacher's passes; `seqkd` without the teacher's continuations.",
    ]
    return "\n".join(rows)
