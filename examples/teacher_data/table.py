"""The table of students of a teacher's translations, in Markdown."""

from typing import Any

# Folder of a model -> what it learns
MODELS = {
    "teacher": "the references",
    "scratch": "the references",
    "seqkd": "the teacher's translations",
    "several": "four of the teacher's translations each",
    "continued": "`seqkd`, then the same translations",
    "feedback": "`seqkd`, then the half where it is worst",
    "easy_first": "`seqkd`, then the same translations, the easiest first",
    "hard_first": "`seqkd`, then the same translations, the hardest first",
    "nat": "the references, and writes all words at once",
    "nat_seqkd": "the teacher's translations, and writes all words at once",
}


def table(results: dict[str, Any]) -> str:
    """Return the table of evaluate.py's results.json, one line per model, and notes on its columns."""
    rows = [
        "| model | learns | BLEU | chrF | right | parameters | updates | training, CPU s |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, model in results["models"].items():
        training = results["trainings"][name]
        seconds = training["cpu_seconds"]
        rows.append(
            f"| {name} | {MODELS[name]} | {model['bleu']:.2f} ± {model['bleu_interval']:.2f} "
            f"| {model['chrf']:.2f} | {model['right']:.1f}% | {model['parameters']:,} "
            f"| {training['updates_in_all']:,} | {'' if seconds is None else f'{seconds:.0f}'} |"
        )
    notes = (
        f"BLEU ± 95% bootstrap interval: `{results['signatures']['bleu']}`; chrF: "
        f"`{results['signatures']['chrf']}`; right: share of translations that equal a right translation; "
        "greedy decoding, or one pass (`nat`); updates: of this training alone; training: processor "
        f"time of this model's training command; seed {results['seed']}."
    )
    return "\n".join([*rows, "", notes])
