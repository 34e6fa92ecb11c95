"""The table of one student of several language pairs, in Markdown."""

import statistics
from typing import Any


def table(results: dict[str, Any]) -> str:
    """Return the table of scores.py's results.json, and notes on its columns."""
    pairs = list(results["pairs"])
    heads = " | ".join(f"{pair}, BLEU" for pair in pairs)
    rows = [
        f"| model | seed | parameters | {heads} | mean | updates to best | CPU minutes |",
        f"|---|--:|--:|{'--:|' * len(pairs)}--:|--:|--:|",
    ]
    for name, model in results["models"].items():
        training, scores = results["trainings"][name], [model["scores"][pair]["bleu"] for pair in pairs]
        shown = " | ".join(score(each) for each in scores)
        mean = statistics.mean(each["score"] for each in scores)
        seconds = training["cpu_seconds"]
        rows.append(
            f"| `{name.partition('-')[0]}` | {model['seed']} | {model['parameters']:,} | {shown} "
            f"| {mean:.1f} | {training['updates']:,} | {'' if seconds is None else f'{seconds / 60:.1f}'} |"
        )
    counts = "; ".join(
        f"{pair} {each['train']:,} and {each['test']:,}" for pair, each in results["pairs"].items()
    )
    signatures = ", ".join(f"`{each}`" for each in dict.fromkeys(results["signatures"].values()))
    rows += [
        "",
        f"Greedy decoding, one model for all pairs. Sentences for training and in the test set: {counts}. In "
        "brackets: p of the difference from `scratch`, sacreBLEU's paired bootstrap, one-sided. CPU minutes: "
        "processor time of the training, with its validations and the teacher's passes; `seqkd` without the "
        f"teacher's translations. BLEU: {signatures}.",
    ]
    return "\n".join(rows)


def score(found: dict[str, Any]) -> str:
    """Return a score with the p-value of its difference, if it has one."""
    p = found.get("p")
    return f"{found['score']:.1f}" + ("" if p is None else f" ({p:.3f})")
