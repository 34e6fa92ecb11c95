"""The table and the figure of evidence.py's finished rows. They need nothing but the rows' JSON files."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import error_rates
import numpy as np
from evidence_rows import Record, best, cut, minutes, score

CONTROLS = {True: "then_seqkd", False: "seqkd"}  # by whether a row goes on from another one's student
COLOURS = {
    "scratch": "#888888",
    "seqkd": "#e6a532",
    "word_kd": "#6a9a48",
    "imitkd": "#7fb3e0",
    "imitkd_full": "#1f6fb4",
    "gkd_05": "#b07cc6",
    "gkd_01": "#7b3f98",
}
OTHER = "#b0413e"


def read(folder: Path) -> list[Record]:
    """Return the rows of a folder, by name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def chosen(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the trainings of each row with its best learning rate, one for each seed.

    The rate is the best one of seed 1 on the validation set. The teacher comes first, then the rows without a
    start, then the others; rows of a kind are in the order of :data:`COLOURS`.
    """
    order = ["teacher", *COLOURS, *(f"then_{row}" for row in COLOURS)]
    found = {}
    known = {row: place for place, row in enumerate(order)}
    for row in sorted({each["row"] for each in records}, key=lambda row: (known.get(row, len(order)), row)):
        own = [each for each in records if each["row"] == row]
        first = [each for each in own if each["seed"] == 1]
        if first:
            rate = best(first)["rate"]
            found[row] = sorted((each for each in own if each["rate"] == rate), key=lambda each: each["seed"])
    return found


def table(records: Sequence[Record]) -> str:
    """Return a Markdown table with a line for each row, and notes on its columns."""
    rows = chosen(records)
    head = (
        "row", "parameters", "learning rate", "word errors, %, each seed", "phoneme errors, %",
        "difference (95%)", "p", "updates to best", "CPU minutes", "with all before",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---|--:" + "|--:" * (len(head) - 2) + "|"]
    for row, own in rows.items():
        difference, p = compared(rows, row)
        bests = [min(each["validations"], key=score) for each in own]
        cells = [
            f"`{row}`",
            f"{own[0]['parameters']:,}",
            own[0]["rate"] or "",
            "; ".join(f"{each['test']['word_errors']:.2f}" for each in own),
            f"{statistics.mean(each['test']['phoneme_errors'] for each in own):.2f}",
            difference,
            p,
            f"{statistics.mean(each['updates'] for each in bests):,.0f}",
            f"{statistics.mean(each['cpu_seconds'] for each in own) / 60:.0f}",
            f"{statistics.mean(each['cpu_seconds'] / 60 + minutes(each) for each in own):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", notes(records), *(["", tried] if (tried := grid(records)) else [])])


def compared(rows: dict[str, list[Record]], row: str) -> tuple[str, str]:
    """Return a row's difference from its control in word errors, with its interval, and p; else nothing."""
    own = {each["seed"]: each for each in rows[row]}
    control = CONTROLS[row.startswith("then_")]
    others = {each["seed"]: each for each in rows.get(control, [])}
    seeds = sorted(own.keys() & others.keys())
    if row in (control, "teacher") or not seeds:
        return "", ""
    words = own[seeds[0]]["test"]["words"]
    ones, controls = (
        np.stack([error_rates.unpacked(each[seed]["test"]["right"], words) for seed in seeds])
        for each in (own, others)
    )
    difference, (low, high), p = error_rates.chance(controls, ones)
    return f"{difference:+.2f} ({low:+.2f} to {high:+.2f})", f"{p:.4f}"


def notes(records: Sequence[Record]) -> str:
    """Return what the columns mean, and where the figures are from."""
    first = records[0]
    commits = dict.fromkeys(commit for each in records for commit in each["training"]["commits"])
    versions = ", ".join(f"{name} {version}" for name, version in first["origin"]["versions"].items())
    machine = first["origin"]["machine"]
    return (
        f"Greedy decoding of {first['test']['words']:,} words. A training ended when {first['patience']} "
        f"validations in a row brought no fewer word errors{cut_short(records)}. Difference: in word errors "
        "from `seqkd`, and of rows that go on from `seqkd`'s student (`then_…`) from `then_seqkd`, averaged "
        "over the seeds that both have; p: paired bootstrap over the words, stratified by seed (10,000 "
        "resamples). CPU minutes: of the row's own training, without validation; with all before: also of "
        "the student that it started from and of the teacher's translations, without the teacher's "
        f"training. Trained at {', '.join(commits)} on {machine['processor']}, 1 thread; {versions}. Each "
        "row's commands and all validations: `evidence/`."
    )


def cut_short(records: Sequence[Record]) -> str:
    """Return the note on the trainings that the number of updates ended."""
    names = [f"`{each['name']}` ({each['max_update']:,})" for each in records if cut(each)]
    return f", or at its last update: {', '.join(names)}" if names else ""


def grid(records: Sequence[Record]) -> str:
    """Return the validation word errors at each learning rate that was tried with seed 1."""
    lines = []
    for row, own in chosen(records).items():
        tried = {each["rate"]: each for each in records if each["row"] == row and each["seed"] == 1}
        if own[0]["rate"]:
            shown = (
                f"{rate}: {min(map(score, each['validations'])):.2f}"
                for rate, each in sorted(tried.items(), key=lambda pair: float(pair[0] or 0))
            )
            lines.append(f"- `{row}`: {', '.join(shown)}")
    head = ["Validation word errors at each learning rate that was tried (seed 1), %:", ""]
    return "\n".join([*head, *lines]) if lines else ""


def figure(records: Sequence[Record], path: Path) -> None:
    """Draw validation word errors against updates and against CPU minutes, both of the whole history."""
    import matplotlib
    import matplotlib.pyplot as pyplot

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "evidence"  # the same file for the same rows
    rows = chosen(records)
    whole, sides = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained", sharey=True)
    names = {each["name"]: each for each in records}
    for row, own in rows.items():
        if row == "teacher":
            for side in sides:
                side.axhline(min(map(score, own[0]["validations"])), color="black", lw=1, ls=":", label=row)
            continue
        colour = COLOURS.get(row.removeprefix("then_"), OTHER)
        style = {"color": colour, "ls": "-" if row.startswith("then_") else "--"}
        for side, by_minutes in zip(sides, (False, True), strict=True):
            places, values = over_seeds([curve(each, names, by_minutes=by_minutes) for each in own])
            side.plot(places, values.mean(axis=0), **style, lw=1.4, label=f"{row} ({len(own)})")
            if len(own) > 1:
                side.fill_between(places, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2)
    ends = [score(each["validations"][-1]) for own in rows.values() for each in own]
    sides[0].set(xlabel="updates", ylabel="validation word errors, %", ylim=(min(ends) - 1, max(ends) + 12))
    sides[1].set(xlabel="CPU minutes, without the teacher's training")
    whole.legend(*sides[0].get_legend_handles_labels(), loc="outside right center")
    whole.savefig(path, metadata={"Date": None})
    pyplot.close(whole)


def over_seeds(curves: Sequence[tuple[list[float], list[float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the places that all curves have in common, and each curve's values there, interpolated.

    Returns:
        ``(P,)`` places and ``(len(curves), P)`` values.
    """
    places = np.unique(np.concatenate([x for x, _ in curves]))
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    places = places[(places >= low) & (places <= high)]
    return places, np.stack([np.interp(places, x, y) for x, y in curves])


def curve(each: Record, names: dict[str, Record], *, by_minutes: bool) -> tuple[list[float], list[float]]:
    """Return the places and the word errors of a training's validations.

    Updates and minutes begin where those of the student that it started from end.
    """
    if by_minutes:
        begin = minutes(each)
        places = [begin + one["cpu_seconds"] / 60 for one in each["validations"]]
    else:
        start = names.get(each["start"] or "")
        begin = start["validations"][-1]["updates"] if start else 0
        places = [begin + one["updates"] for one in each["validations"]]
    return places, [score(one) for one in each["validations"]]
