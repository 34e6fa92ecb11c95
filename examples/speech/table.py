"""The spoken commands' table, in Markdown."""

from typing import Any

ROWS = ("teacher", "scratch", "word_kd", "seqkd", "imitkd_full", "continued", "then_imitkd_full")


def table(results: dict[str, Any]) -> str:
    """Return the table of answers.py's results.json, and notes on its columns."""
    rows = [
        "| model | seed | parameters | wrong sentences, % | word error rate, % "
        "| right, against another (95%) | p | updates to best | CPU min |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, model in results["models"].items():
        training = results["trainings"][name]
        against, seconds = model.get("against"), training["cpu_seconds"]
        compared = "| | |"
        if against is not None:
            low, high = against["interval"]
            p = "< 0.001" if against["p"] < 0.001 else f"{against['p']:.3f}"
            compared = f"| {against['gain']:+.1f} ({low:+.1f} to {high:+.1f}) | {p} |"
        rows.append(
            f"| `{name.partition('-')[0]}` | {model['seed']} | {model['parameters']:,} "
            f"| {model['sentence_errors']:.1f} | {model['word_error_rate']:.1f} {compared} "
            f"{training['updates']:,} | {'' if seconds is None else f'{seconds / 60:.1f}'} |"
        )
    rows += [
        "",
        f"Greedy decoding of {results['commands']:,} test commands. A sentence is wrong if it is none of the "
        "up to eight right ones; the word error rate is to the nearest of them. `teacher` reads the text, "
        "all others hear the speech. Against another: points of right sentences more than `scratch`, and for "
        "`then_…` more than `continued`, of the same seed; interval and p by a paired bootstrap over the "
        "commands. Updates to best: of the row's own training. CPU min: processor time of this training.",
    ]
    return "\n".join(rows)
