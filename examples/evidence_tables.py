"""The table and the figure of evidence.py's finished rows. They need nothing but the rows' JSON files."""

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from evidence_rows import Record, best, cut, minutes, score, scores
from evidence_scores import best_of, of_record, titled
from scipy.stats import ttest_rel

CONTROL = "seqkd"  # the row that others are compared with: then_seqkd if they go on from its student
COLOURS = {
    "scratch": "#888888",
    "seqkd": "#e6a532",
    "word_kd": "#6a9a48",
    "imitkd": "#7fb3e0",
    "imitkd_full": "#1f6fb4",
    "tie_kd": "#2a8f85",
    "selective_kd": "#c4a000",
    "confident": "#123f6b",
    "entropy_aware_kd": "#c2557a",
    "assistant": "#7a5c3e",
    "gkd_05": "#b07cc6",
    "gkd_01": "#7b3f98",
}
OTHER = "#b0413e"
# How a row's name begins, by the student that it goes on from, and its line in the figure.
WAYS = {"": "--", "then_": "-", "assistant_then_": "-."}


def read(folder: Path) -> list[Record]:
    """Return the rows of a folder, by name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def chosen(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the trainings of each row with its best learning rate, one for each seed.

    The rate is the one that most seeds have, because further seeds take the rate that was best by then. Of
    several such rates it is the best one of seed 1 on the validation set. The teacher comes first, then the
    rows without a start, then the others; rows of a kind are in the order of :data:`COLOURS`.
    """
    found = {}
    for row in sorted({each["row"] for each in records}, key=_place):
        own = [each for each in records if each["row"] == row]
        seeds = Counter(each["rate"] for each in own)
        most = max(seeds.values())
        first = [each for each in own if each["seed"] == 1 and seeds[each["rate"]] == most]
        if first:
            rate = best(first)["rate"]
            found[row] = sorted((each for each in own if each["rate"] == rate), key=lambda each: each["seed"])
    return found


def _place(row: str) -> tuple[int, str]:
    """Return what rows are sorted by."""
    order = ["teacher", *(f"{way}{each}" for way in WAYS for each in COLOURS)]
    return (order.index(row) if row in order else len(order)), row


def table(records: Sequence[Record]) -> str:
    """Return a Markdown table with a line for each row, and notes on its columns."""
    rows, measure = chosen(records), of_record(records[0])
    head = (
        "row", "parameters", "learning rate", f"{titled(measure)}, each seed", f"{measure.second}, each seed",
        "difference (95%)", "p", "p, seeds", "updates to best", "CPU minutes", "with all before",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---|--:" + "|--:" * (len(head) - 2) + "|"]
    for row, own in rows.items():
        tested = [measure.scores(each["test"]) for each in own]
        cells = [
            f"`{row}`",
            f"{own[0]['parameters']:,}",
            own[0]["rate"] or "",
            "; ".join(f"{first:.2f}" for first, _ in tested),
            "; ".join(f"{second:.2f}" for _, second in tested),
            *compared(rows, row),
            f"{statistics.mean(each['training']['updates'] for each in own):,.0f}",
            f"{statistics.mean(each['cpu_seconds'] for each in own) / 60:.0f}",
            f"{statistics.mean(each['cpu_seconds'] / 60 + minutes(each) for each in own):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    parts = ["\n".join(lines), notes(records), nearest(rows), grid(records)]
    return "\n\n".join(part for part in parts if part)


def across(recipes: dict[str, Sequence[Record]]) -> str:
    """Return a table with a column for each recipe: the test scores of all rows that several recipes have.

    Args:
        recipes: the rows of each recipe, by the head of its column.
    """
    columns = {f"{title}, {titled(of_record(each[0]))}": chosen(each) for title, each in recipes.items()}
    found = Counter(row for rows in columns.values() for row in rows)
    lines = [f"| row | {' | '.join(columns)} |", "|---|" + "--:|" * len(columns)]
    for row in sorted((row for row in found if found[row] > 1), key=_place):
        cells = (
            "; ".join(f"{of_record(each).scores(each['test'])[0]:.2f}" for each in rows.get(row, ()))
            for rows in columns.values()
        )
        lines.append(f"| `{row}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def pairs(rows: dict[str, list[Record]], row: str) -> list[tuple[Record, Record]]:
    """Return a row's trainings, each with its control's of the same seed and the same start."""
    controls = {(each["seed"], each["start"]): each for each in rows.get(control_of(row), [])}
    keys = [(each["seed"], each["start"]) for each in rows[row]]
    return [(own, controls[key]) for own, key in zip(rows[row], keys, strict=True) if key in controls]


def control_of(row: str) -> str:
    """Return the row that a row is compared with: SeqKD from the same start."""
    return f"{way_of(row)}{CONTROL}"


def way_of(row: str) -> str:
    """Return the key of :data:`WAYS` that a row's name begins with."""
    return max((way for way in WAYS if row.startswith(way)), key=len)


def compared(rows: dict[str, list[Record]], row: str) -> tuple[str, str, str]:
    """Return a row's difference from its control with its interval, p, and p over the seeds.

    The last one is empty with fewer than three seeds; all are, if the row has no control.
    """
    both = pairs(rows, row)
    if row in (control_of(row), "teacher") or not both:
        return "", "", ""
    own, controls = ([each["test"] for each in side] for side in zip(*both, strict=True))
    measure = of_record(rows[row][0])
    difference, (low, high), p = measure.chance(own, controls)
    of_seeds = ([measure.scores(each)[0] for each in side] for side in (own, controls))
    p_seeds = f"{ttest_rel(*of_seeds).pvalue:.4f}" if len(both) > 2 else ""
    return f"{difference:+.2f} ({low:+.2f} to {high:+.2f})", f"{p:.4f}", p_seeds


def nearest(rows: dict[str, list[Record]]) -> str:
    """Return how near the teacher the best student is that has at most a third of its parameters."""
    teacher = rows.get("teacher")
    if teacher is None:
        return ""
    small = {row: own for row, own in rows.items() if 3 * own[0]["parameters"] <= teacher[0]["parameters"]}
    if not small:
        return ""
    measure = of_record(teacher[0])
    row, own = best_of(measure)(small.items(), key=lambda pair: statistics.mean(map(score, pair[1])))
    tests = [each["test"] for each in own]
    difference, (low, high), _ = measure.chance(tests, [teacher[0]["test"]] * len(own))
    return (
        "Of the students with at most a third of the teacher's parameters, the best one on the validation "
        f"set is `{row}` ({100 * own[0]['parameters'] / teacher[0]['parameters']:.1f}% of the parameters). "
        f"On the test set it differs from the teacher by {difference:+.2f}{measure.unit} {measure.title} "
        f"(95%: {low:+.2f} to {high:+.2f})."
    )


def notes(records: Sequence[Record]) -> str:
    """Return what the columns mean, and where the figures are from."""
    measure = of_record(records[0])
    commits = dict.fromkeys(commit for each in records for commit in each["training"]["commits"])
    threads = {each for record in records for each in record["training"]["threads"]}
    origins = [each["origin"] for each in records]
    processors = dict.fromkeys(each["machine"]["processor"] for each in origins)
    versions = dict.fromkeys(
        f"{name} {version}" for each in origins for name, version in each["versions"].items()
    )
    larger = ""
    if any(way_of(each["row"]) == "assistant_then_" for each in records):
        larger = ", and from the larger one (`assistant_then_…`) from `assistant_then_seqkd`"
    assistant = ", of its assistant" if any(each.get("teacher") for each in records) else ""
    return (
        f"Greedy decoding of {measure.count(records[0]['test'])}. A training ended when {patience(records)} "
        f"validations in a row brought no {measure.brought}{cut_short(records)}. Difference: in "
        f"{measure.title} from `seqkd`, and of rows that start from `seqkd`'s student "
        f"(`then_…`) from `then_seqkd`{larger}, averaged over the seeds that both have; p: two-sided, by a "
        f"paired bootstrap over {measure.bootstrap}, which says nothing about other seeds; p, seeds: "
        "two-sided, by a paired t-test over the scores of three or more seeds. Updates and minutes are "
        "means over the row's seeds. CPU minutes: of the row's own training, without validation; with all "
        f"before: also of its start{assistant} and of the teacher's translations, without the teacher's "
        f"training. Trained at {', '.join(commits)} on {' and '.join(processors)}, "
        f"{' or '.join(sorted(threads))} thread{'s' * (threads != {'1'})}; {', '.join(versions)}. "
        "Each row's commands and all validations: `evidence/`."
    )


def patience(records: Sequence[Record]) -> str:
    """Return how many validations without a better one end a training, and trainings with another number."""
    usual = Counter(each["patience"] for each in records).most_common(1)[0][0]
    others = [f"`{each['name']}`: {each['patience']}" for each in records if each["patience"] != usual]
    return f"{usual} ({', '.join(others)})" if others else str(usual)


def cut_short(records: Sequence[Record]) -> str:
    """Return the note on the trainings that the number of updates ended."""
    names = [f"`{each['name']}` ({each['max_update']:,})" for each in records if cut(each)]
    return f", or at its last update: {', '.join(names)}" if names else ""


def grid(records: Sequence[Record]) -> str:
    """Return the best score on the validation set at each learning rate that was tried with seed 1."""
    lines = []
    for row, own in chosen(records).items():
        tried = {each["rate"]: each for each in records if each["row"] == row and each["seed"] == 1}
        if own[0]["rate"]:
            shown = (
                f"{rate}: {score(each):.2f}"
                for rate, each in sorted(tried.items(), key=lambda pair: float(pair[0] or 0))
            )
            lines.append(f"- `{row}`: {', '.join(shown)}")
    measure = of_record(records[0])
    unit = f", {measure.unit}" if measure.unit else ""
    head = [f"Validation {measure.title} at each learning rate that was tried (seed 1){unit}:", ""]
    return "\n".join([*head, *lines]) if lines else ""


def figure(records: Sequence[Record], path: Path) -> None:
    """Draw the best score on the validation set so far against updates and against CPU minutes.

    A line is a student's whole history. It is the mean over the seeds of ``then_seqkd``, or of ``seqkd`` as
    long as that row is not there; a row that lacks one of them is not drawn.
    """
    import matplotlib
    import matplotlib.pyplot as pyplot

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "evidence"  # the same file for the same rows
    rows = comparable(chosen(records))
    whole, sides = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained", sharey=True)
    names = {each["name"]: each for each in records}
    for row, own in rows.items():
        if row == "teacher":
            for side in sides:
                side.axhline(score(own[0]), color="black", lw=1, ls=":", label=row)
            continue
        way = way_of(row)
        colour = COLOURS.get(row.removeprefix(way), OTHER)
        style = {"color": colour, "ls": WAYS[way]}
        for side, by_minutes in zip(sides, (False, True), strict=True):
            places, values = over_seeds([curve(each, names, by_minutes=by_minutes) for each in own])
            side.plot(places, values.mean(axis=0), **style, lw=1.4, label=f"{row} ({len(own)})")
            if len(own) > 1:
                side.fill_between(places, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2)
    ends, measure = [score(each) for own in rows.values() for each in own], of_record(records[0])
    worse, better = (12, 1) if measure.less_is_better else (1, 12)
    limits = (min(ends) - better, max(ends) + worse)
    sides[0].set(xlabel="updates", ylabel=f"best validation {titled(measure)} so far", ylim=limits)
    sides[1].set(xlabel="CPU minutes, without the teacher's training")
    whole.legend(*sides[0].get_legend_handles_labels(), loc="outside right center")
    whole.savefig(path, metadata={"Date": None})
    pyplot.close(whole)


def comparable(rows: dict[str, list[Record]]) -> dict[str, list[Record]]:
    """Return the teacher, and the rows that have every seed of the control, with these seeds alone."""
    control = rows.get(f"then_{CONTROL}") or rows.get(CONTROL) or []
    seeds = {each["seed"] for each in control}
    found = {}
    for row, own in rows.items():
        kept = [each for each in own if each["seed"] in seeds]
        if row == "teacher" or not seeds:
            found[row] = own
        elif len(kept) == len(seeds):
            found[row] = kept
    return found


@dataclass(frozen=True)
class Curve:
    """The places of a student's scores on the validation set, and the best score so far at each of them.

    A student that goes on from another one begins with that one's best score, at ``begin``.
    """

    begin: float
    places: list[float]
    best: np.ndarray


def over_seeds(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """Return common places, and each curve's values there, interpolated.

    All curves begin where they do on average: those of other seeds may go on from students that ended earlier
    or later. A training that has ended keeps its best score.

    Returns:
        ``(P,)`` places and ``(len(curves), P)`` values.
    """
    begin = sum(each.begin for each in curves) / len(curves)
    moved = [np.array(each.places) - each.begin + begin for each in curves]
    places = np.unique(np.concatenate(moved))
    places = places[places >= max(x[0] for x in moved)]
    return places, np.stack([np.interp(places, x, each.best) for x, each in zip(moved, curves, strict=True)])


def curve(each: Record, names: dict[str, Record], *, by_minutes: bool) -> Curve:
    """Return a training's curve.

    Updates and minutes begin where those of the student that it started from end.

    Raises:
        SystemExit: that student is not among the rows.
    """
    start = start_of(each, names)
    if by_minutes:
        begin = minutes(each)
        places = [begin + one["cpu_seconds"] / 60 for one in each["validations"]]
    else:
        begin = updates_before(each, names)
        places = [begin + one["updates"] for one in each["validations"]]
    found = scores(each)
    if start is not None:
        places, found = [begin, *places], [score(start), *found]
    better = np.minimum if of_record(each).less_is_better else np.maximum
    return Curve(begin, places, better.accumulate(found))


def updates_before(each: Record, names: dict[str, Record]) -> float:
    """Return the updates of the students that a training goes on from, one after the other."""
    start = start_of(each, names)
    if start is None:
        return 0
    return updates_before(start, names) + float(start["validations"][-1]["updates"])


def start_of(each: Record, names: dict[str, Record]) -> Record | None:
    """Return the training that another one goes on from; None if it began with random weights.

    Raises:
        SystemExit: it is not among the rows.
    """
    start = names.get(each["start"] or "")
    if each["start"] and start is None:
        raise SystemExit(f"{each['name']} goes on from {each['start']}, which is not among the rows; add it")
    return start
