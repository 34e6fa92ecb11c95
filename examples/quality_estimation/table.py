"""The quality estimators' table, in Markdown."""

from typing import Any


def table(results: dict[str, Any]) -> str:
    """Return the table of evaluate.py's results.json, and notes on its columns."""
    rows = [
        "| model | seed | parameters | updates to best | Pearson (95%) | Spearman (95%) | RMSE | p "
        "| CPU min |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, model in results["models"].items():
        training = results["trainings"][name]
        known = f"{model['pearson_p']:.3f}" if "pearson_p" in model else ""
        seconds = training["cpu_seconds"]
        rows.append(
            f"| {name.partition('-')[0]} | {model['seed']} | {model['parameters']:,} "
            f"| {training['updates']:,} "
            f"| {interval(model, 'pearson')} | {interval(model, 'spearman')} | {model['rmse']:.3f} | {known} "
            f"| {'' if seconds is None else f'{seconds / 60:.1f}'} |"
        )
    chrf = results["chrf"]
    rows += [
        "",
        f"{results['pairs']:,} test pairs, whose chrF has the mean {chrf['mean']:.3f} and the standard "
        f"deviation {chrf['deviation']:.3f}. Intervals: bootstrap of 1,000 samples. RMSE: root of the "
        "mean squared error. p: of the difference of Pearson's correlation from `scratch` of the same size "
        "and seed, "
        "paired bootstrap. CPU min: processor time of the training. Parameters exclude the head for masked "
        "words, which fairseq builds but regression does not use.",
    ]
    return "\n".join(rows)


def interval(model: dict[str, Any], name: str) -> str:
    """Return a correlation with its interval."""
    low, high = model[f"{name}_interval"]
    return f"{model[name]:.3f} ({low:.3f} to {high:.3f})"
