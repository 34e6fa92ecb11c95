"""The box "Which method?" of README.md, from the results of the quickstart, and of students at their end."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import evidence_tables
from evidence_scores import of_record

Results = dict[str, Any]
# Recipes whose students are trained to their end: title, folder, and the likely cause of the first
# method's gain.
ENDED = (
    (
        "made-up languages",
        "made_up_languages",
        " There, a sentence has several right translations, and the words already written decide which of "
        "them are still possible.",
    ),
    (
        "headlines by a language model",
        "headlines_lm",
        " SeqKD's student often writes on until the length limit, and `imitkd` teaches it to stop.",
    ),
    ("CMU dictionary", "cmudict", ""),
    ("Tatoeba", "tatoeba", ""),
    ("Reuters headlines", "reuters_headlines", ""),
)
METHODS = ("imitkd", "imitkd_full")
CERTAIN, CHANCE = 0.01, 0.05  # a p below the first one is given as that, one above the second one is chance


def box(quickstarts: Sequence[Results], examples: Path) -> str:
    """Return what to start with, when to go on by which method, and what it costs.

    Args:
        quickstarts: the quickstart's results, one for each seed.
        examples: folder of the recipes, with the finished rows of those that are trained to their end.
    """
    quickstarts = sorted(quickstarts, key=lambda one: one["seed"])
    before, seqkd, imitkd = (scores(quickstarts, name) for name in ("scratch", "seqkd", "imitkd"))
    more, then = (scores(quickstarts, name) for name in ("seqkd_continued", "seqkd_imitkd"))
    updates = quickstarts[0]["trainings"]["seqkd"]["updates_in_all"]
    lines = [
        "**Begin with SeqKD** (`imitkd-seqkd`, then cross-entropy on the teacher's translations). In the "
        f"[quickstart](examples/quickstart/README.md) ({counted(len(quickstarts), 'seed')}), {updates} "
        f"updates of it raise a student's BLEU from {before} to {seqkd}. They take "
        f"{seconds(quickstarts, 'seqkd')} CPU seconds, and the translations {translating(quickstarts)} more. "
        f"As many updates of `imitkd` reach {imitkd}, and take {seconds(quickstarts, 'imitkd')} seconds.",
        "**Then continue with `imitkd`** from SeqKD's student, on its data (`--finetune-from-model`), once "
        "its validation score no longer rises. Before that, more SeqKD can gain more in the same time "
        f"([example](examples/source_only/README.md#results)): in the quickstart, {updates} updates of "
        f"`imitkd` bring that student to {then} BLEU in {seconds(quickstarts, 'seqkd_imitkd')} seconds, "
        f"{updates} more of SeqKD to {more} in {seconds(quickstarts, 'seqkd_continued')}.",
    ]
    lines = [f"- {line}" for line in lines]
    if ended := [line for each in ENDED if (line := at_the_end(examples, *each))]:
        lines.append(
            "- **How much lasts to the end of training depends on the task.** SeqKD's student continues by a "
            "method, or by longer SeqKD from the same seeds. Minutes: CPU time of that second training. p: "
            "two-sided, over the test sentences; over three or more seeds by a t-test."
        )
    return "\n".join([*lines, *(f"  - {line}" for line in ended), *capacity(examples)])


def at_the_end(examples: Path, title: str, recipe: str, remark: str) -> str:
    """Return how each finished method ends that continues SeqKD's student, beside more of SeqKD, in the seeds
    that both have; nothing if none is finished.
    """
    rows = evidence_tables.chosen(evidence_tables.read(examples / recipe / "evidence"))
    found = [f"{text}." for method in METHODS if (text := beside_control(rows, method))]
    found[:1] = [f"{text}{remark}" for text in found[:1]]
    return f"[{title}](examples/{recipe}/README.md): {' '.join(found)}" if found else ""


def beside_control(rows: dict[str, list[evidence_tables.Record]], method: str) -> str:
    """Return the scores at the end of a method after SeqKD, and of more SeqKD; nothing if one is missing."""
    row = f"then_{method}"
    both = evidence_tables.pairs(rows, row) if row in rows else []
    if not both:
        return ""
    own, control = ([one[side] for one in both] for side in (0, 1))
    _, sentences, seeds = evidence_tables.compared(rows, row)
    p = float(sentences)
    chance = (
        f"p < {CERTAIN}" if p < CERTAIN else f"p = {p:.2f}, within chance" if p > CHANCE else f"p = {p:.2f}"
    )
    if seeds:
        chance += f"; over the seeds {float(seeds):.3f}"
    return (
        f"`{method}` ends at {mean_score(own)} {of_record(own[0]).title} after {minutes(own)} minutes, "
        f"longer SeqKD at {mean_score(control)} after {minutes(control)} ({counted(len(own), 'seed')}; "
        f"{chance})"
    )


def counted(count: int, what: str) -> str:
    """Return a number of things, in words."""
    return f"{count} {what}{'s' * (count != 1)}"


def capacity(examples: Path) -> list[str]:
    """Return a line that compares SeqKD's students of two sizes with their teacher; nothing if no recipe has
    them.
    """
    found = [text for title, recipe, _ in ENDED if (text := of_two_sizes(examples / recipe, title))]
    if not found:
        return []
    head = "- **If SeqKD's student ends far below its teacher, try a larger student first.** By SeqKD alone:"
    return [" ".join([head, *found])]


def of_two_sizes(recipe: Path, title: str) -> str:
    """Return how SeqKD's students of two sizes end, and their teacher's score; nothing if one is missing."""
    rows = evidence_tables.chosen(evidence_tables.read(recipe / "evidence"))
    if not {"teacher", "seqkd", "assistant"} <= rows.keys():
        return ""
    small, wide, teacher = (
        f"{rows[name][0]['parameters'] / 1e6:.2f} million parameters "
        f"{'has' if name == 'teacher' else 'ends at'} {mean_score(rows[name])}"
        for name in ("seqkd", "assistant", "teacher")
    )
    return (
        f"[{title}](examples/{recipe.name}/README.md): a student of {small} "
        f"{of_record(rows['seqkd'][0]).title}, one of {wide}, and their teacher of {teacher}."
    )


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


def mean_score(own: Sequence[evidence_tables.Record]) -> str:
    """Return the test score of a row, averaged over the seeds."""
    measure = of_record(own[0])
    return f"{statistics.mean(measure.scores(each['test'])[0] for each in own):.2f}{measure.unit}"


def minutes(own: Sequence[evidence_tables.Record]) -> str:
    return f"{statistics.mean(each['cpu_seconds'] for each in own) / 60:.0f}"
