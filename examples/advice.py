"""The box "Which method?" of README.md, from the results of the quickstart and of the CMU dictionary."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import evidence_tables
from evidence_scores import of_record

Results = dict[str, Any]


def box(quickstarts: Sequence[Results], cmudict: Path) -> str:
    """Return what to start with, when to go on by which method, and what it costs.

    Args:
        quickstarts: the quickstart's results, one for each seed.
        cmudict: folder of the recipe for the CMU dictionary, with its finished rows.
    """
    quickstarts = sorted(quickstarts, key=lambda one: one["seed"])
    before, seqkd, imitkd = (scores(quickstarts, name) for name in ("scratch", "seqkd", "imitkd"))
    more, then = (scores(quickstarts, name) for name in ("seqkd_continued", "seqkd_imitkd"))
    updates = quickstarts[0]["trainings"]["seqkd"]["updates_in_all"]
    lines = [
        "**Begin with SeqKD** (`imitkd-seqkd`, then cross-entropy on the teacher's translations). In the "
        f"[quickstart](examples/quickstart/README.md), {updates} updates of it bring a student from {before} "
        f"BLEU to {seqkd}, at {seconds(quickstarts, 'seqkd')} CPU seconds and {translating(quickstarts)} "
        f"for the translations; as many updates of `imitkd` bring {imitkd}, at "
        f"{seconds(quickstarts, 'imitkd')}.",
        "**Then go on by `imitkd` or `imitkd_full`** from SeqKD's student, on its data "
        f"(`--finetune-from-model`). There {updates} more updates bring {then} BLEU, and {updates} more of "
        f"SeqKD {more}, at {seconds(quickstarts, 'seqkd_imitkd')} and "
        f"{seconds(quickstarts, 'seqkd_continued')} CPU seconds.",
    ]
    rows = evidence_tables.chosen(evidence_tables.read(cmudict / "evidence"))
    if "then_seqkd" in rows and "then_imitkd_full" in rows:
        _, p = evidence_tables.compared(rows, "then_imitkd_full")
        own, control = (errors(rows[name]) for name in ("then_imitkd_full", "then_seqkd"))
        spent, less = (minutes(rows[name]) for name in ("then_imitkd_full", "then_seqkd"))
        lines.append(
            "**It does not pay everywhere.** On the [CMU dictionary](examples/cmudict/README.md), at the end "
            f"of training, `imitkd_full` after SeqKD has {own}% word errors and more of SeqKD {control}% "
            f"(p = {float(p):.2f}), in {spent} and {less} CPU minutes: what the students lack there are "
            "words, not prefixes."
        )
    return "\n".join(f"- {line}" for line in lines)


def scores(quickstarts: Sequence[Results], folder: str) -> str:
    """Return the BLEU of a model, one for each seed."""
    models = [
        next(each for each in one["models"].values() if each["folder"] == folder) for one in quickstarts
    ]
    return " and ".join(f"{each['bleu']:.1f}" for each in models)


def seconds(quickstarts: Sequence[Results], folder: str) -> str:
    """Return the CPU seconds of a training, averaged over the seeds."""
    return f"{statistics.mean(one['trainings'][folder]['cpu_seconds'] for one in quickstarts):.0f}"


def translating(quickstarts: Sequence[Results]) -> str:
    """Return the CPU seconds of the teacher's translations, averaged over the seeds."""
    return f"{statistics.mean(one['translations']['cpu_seconds'] for one in quickstarts):.0f}"


def errors(own: Sequence[evidence_tables.Record]) -> str:
    return f"{statistics.mean(of_record(each).scores(each['test'])[0] for each in own):.2f}"


def minutes(own: Sequence[evidence_tables.Record]) -> str:
    return f"{statistics.mean(each['cpu_seconds'] for each in own) / 60:.0f}"
