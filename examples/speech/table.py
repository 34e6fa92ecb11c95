"""The spoken commands' tables, in Markdown."""

from typing import Any

ROWS = (
    "teacher", "scratch", "word_kd", "seqkd", "imitkd_full", "continued", "then_imitkd_full", "then_word_kd",
    "after_word_kd", "ctc", "ctc_seqkd", "ctc_kd",
)  # fmt: skip
# What a sentence must be to be right, and what the models read.
NOTES = {
    "de": "A sentence is wrong if it is none of the up to eight right ones; the word error rate is to the "
    "nearest of them. `teacher` reads the text, all others hear the speech. Against another: points of right "
    "sentences more than `scratch`, and for `then_…` more than `continued`, of the same seed",
    "frame": "A sentence is wrong if its intent or a slot is; the word error rate counts both as words. "
    "`teacher` reads the text, all others hear the speech. Against another: points of right sentences more "
    "than `scratch`, and for `then_…` and `after_…` more than `continued`, of the same seed",
    "en": "All models hear the speech. Against another: points of right sentences more than `scratch`, and "
    "for `ctc_…` more than `ctc`, of the same seed",
}


def table(results: dict[str, Any]) -> str:
    """Return the table of answers.py's results.json, and notes on its columns."""
    models = results["models"]
    timed = any("sentences_per_second" in model for model in models.values())
    rows = [
        "| model | seed | parameters | wrong sentences, % | word error rate, % "
        "| right, against another (95%) | p | updates to best | CPU min |"
        + (" sentences/s |" if timed else ""),
        f"|---|--:|--:|--:|--:|--:|--:|--:|--:|{'--:|' if timed else ''}",
    ]
    for name, model in models.items():
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
            + (f" {model['sentences_per_second']:.0f} |" if timed else "")
        )
    rows += [
        "",
        f"Greedy decoding of {results['commands']:,} test commands. {NOTES[results.get('target', 'de')]}; "
        "interval and p by a paired bootstrap over the commands. Updates to best: of the row's own training. "
        "CPU min: processor time of this training."
        + (" Sentences/s: the highest of three decodings on one core." if timed else ""),
    ]
    return "\n".join(rows)
