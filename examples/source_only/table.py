"""The tables of students of a text that has few references, in Markdown."""

import statistics
from typing import Any

LEARNS = {
    "scratch": "the references of a tenth",
    "seqkd_mono": "the teacher's translations of all sources, by beam search",
    "mbr_mono": "the teacher's translations of all sources, of 8 each the one most like the others",
    "imitkd_mono": "the teacher's words, after prefixes of the student's own translations of all sources",
    "then_seqkd": "as `seqkd_mono`, whose student it continues",
    "then_imitkd": "the teacher's words, after its own prefixes; it continues `seqkd_mono`'s student",
}
TRANSLATIONS = {"seqkd_mono": "seqkd", "mbr_mono": "mbr"}
STARTS = {"then_seqkd": "seqkd_mono", "then_imitkd": "seqkd_mono"}


def table(results: dict[str, Any]) -> str:
    """Return the tables of results.py's results.json, and notes."""
    rows = [
        "| method | learns | CPU minutes of a training | of the translations | with all before |",
        "|---|---|--:|--:|--:|",
    ]
    trained = {name.rpartition("-seed")[0] for name in results["trainings"]}
    spent = {method: minutes(results, method) for method in LEARNS if method in trained}
    for method, (own, translated) in spent.items():
        start = sum(spent[STARTS[method]]) if method in STARTS else 0.0
        shown = f"{translated:.0f}" if translated else ""
        rows.append(
            f"| `{method}` | {LEARNS[method]} | {own:.0f} | {shown} | {own + translated + start:.0f} |"
        )
    counted = results["sentences"]
    notes = (
        f"{counted['train.de']:,} pairs and {counted['mono.de']:,} sources without a reference. Greedy "
        f"decoding of {counted['test.de']:,} test sentences. BLEU: `{results['signature']}`. Interval and p: "
        "paired bootstrap over the test sentences, of the mean of the seeds; p one-sided, as sacreBLEU's. "
        "With all before: also of the student that it continues, and its translations."
    )
    if gain := results.get("then_imitkd_over_then_seqkd"):
        notes += (
            f" `then_imitkd` from `then_seqkd`: {gain['value']:+.2f} ({gain['low']:+.2f} to "
            f"{gain['high']:+.2f}) BLEU, p = {gain['p']:.3f}."
        )
    return "\n".join([results["table"].strip(), "", *rows, "", notes])


def minutes(results: dict[str, Any], method: str) -> tuple[float, float]:
    """Return the CPU minutes of a method's training, the mean of its seeds, and of its translations."""
    trainings = results["trainings"].items()
    own = [each["cpu_seconds"] for name, each in trainings if name.rpartition("-seed")[0] == method]
    translated = results["translations"].get(TRANSLATIONS.get(method, ""), [])
    return statistics.mean(own) / 60, sum(each["cpu_seconds"] for each in translated) / 60
