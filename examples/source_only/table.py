"""The tables of students of a text that has few references, in Markdown."""

import statistics
from typing import Any

LEARNS = {
    "scratch": "the references of a tenth",
    "seqkd_mono": "the teacher's translations of all sources, by beam search",
    "mbr_mono": "the teacher's translations of all sources, of 8 each the one most like the others",
    "imitkd_mono": "the teacher's words, after prefixes of the student's own translations of all sources",
}


TRANSLATIONS = {"seqkd_mono": "seqkd", "mbr_mono": "mbr"}


def table(results: dict[str, Any]) -> str:
    """Return the tables of results.py's results.json, and notes."""
    rows = ["| method | learns | CPU minutes of a training | of the translations |", "|---|---|--:|--:|"]
    for method, what in LEARNS.items():
        own = [
            each["cpu_seconds"]
            for name, each in results["trainings"].items()
            if name.rpartition("-seed")[0] == method
        ]
        translated = results["translations"].get(TRANSLATIONS.get(method, ""), [])
        spent = f"{sum(each['cpu_seconds'] for each in translated) / 60:.0f}" if translated else ""
        rows.append(f"| `{method}` | {what} | {statistics.mean(own) / 60:.0f} | {spent} |")
    counted = results["sentences"]
    notes = (
        f"{counted['train.de']:,} pairs and {counted['mono.de']:,} sources without a reference. Greedy "
        f"decoding of {counted['test.de']:,} test sentences. BLEU: `{results['signature']}`. Interval and p: "
        "paired bootstrap over the test sentences, of the mean of the seeds; p one-sided, as sacreBLEU's."
    )
    return "\n".join([results["table"].strip(), "", *rows, "", notes])
