"""Curves, by update and by length, each with its name at its end."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from fairseq_imitkd.report.evaluations import Evaluation, Group
from fairseq_imitkd.report.logs import Points, Run
from fairseq_imitkd.report.picture import MIDDLE, SMALL, STEPS, WIDE, Picture, Styles
from fairseq_imitkd.report.svg import SIZE, SOFT, Drawing, clean, spread, width_of
from fairseq_imitkd.report.tables import Cell, Table, named, signed

POINTS = 240  # of a curve; more are averaged
# What the plugin logs, in the order in which it is shown: a title, and what its values are, if that is not plain.
ROLLOUTS = {
    "student_share": ("Student's share", "of sentences, which it writes itself"),
    "agreement": ("Agreement with the teacher", "share of tokens for which both prefer the same"),
    "loss_data": ("Loss on the data's prefixes", "bits a token"),
    "loss_rollout": ("Loss on the student's prefixes", "bits a token"),
    "rollout_len": ("Length of rollouts", "tokens"),
    "truncated": ("Truncated rollouts", "share that the length cap cuts"),
    "rollout_time": ("Time for rollouts", "share of the training step"),
    "teacher_time": ("Time for the teacher", "share of the training step"),
    "rollout_work": ("Decoder's work", "rows computed for each token written"),
    "padding": ("Padding", "target positions for each real token"),
    "reward": ("Reward", "of sampled rollouts"),
    "reward_spread": ("Spread of the reward", "its standard deviation"),
    "rollout_staleness": ("Age of rollouts", "updates"),
    "rollouts_replayed": ("Replayed rollouts", "share of all"),
    "rollout_out_of_memory": ("Out of memory", "rollouts decoded again in parts"),
    "sparsity": ("Sparsity", "share of weights that are zero"),
}
FROM_ZERO = ("student_share", "truncated", "rollout_time", "teacher_time", "rollouts_replayed", "sparsity")


@dataclass(frozen=True)
class Labelled:
    """A curve with its name."""

    name: str
    points: Points


def training(every: Sequence[Run], styles: Styles) -> list[Picture]:
    """Loss while training, and on the validation set, and what the best checkpoint is chosen by."""
    pictures = []
    metrics = dict.fromkeys(run.metric for run in every if run.metric != "loss" and run.best)
    for metric in metrics:
        curves = [
            Labelled(run.name, run.validated(metric)) for run in every if run.metric == metric and run.best
        ]
        best = {run.name: run.best for run in every if run.metric == metric and run.best}
        if all(len(curve.points) < 2 for curve in curves):
            continue  # the table says as much
        more = next(run.more_is_better for run in every if run.name in best)
        leader = (max if more else min)(best, key=lambda name: best[name][1])
        update, value = best[leader]
        title = f"Validation {named(metric)} is best for {leader}: {value:.2f} at update {update:,}"
        pictures.append(_by_update(curves, styles, title, named(metric), markers=True, size=WIDE))
    for name, curves in (
        ("training", [Labelled(run.name, run.training("loss")) for run in every]),
        ("validation", [Labelled(run.name, run.validated("loss")) for run in every]),
    ):
        curves = [curve for curve in curves if curve.points]
        if any(len(curve.points) > 1 for curve in curves):
            lowest = min(curves, key=lambda curve: curve.points[-1][1])
            title = f"{name.capitalize()} loss ends at {lowest.points[-1][1]:.2f} for {lowest.name}"
            title += ", the lowest" if len(curves) > 1 else ""
            pictures.append(
                _by_update(curves, styles, title, "bits a token", markers=name == "validation", clip=True)
            )
    return pictures


def rollouts(every: Sequence[Run], styles: Styles) -> list[Picture]:
    """Each figure of the plugin, over time, of those runs that log it."""
    pictures = []
    for name, (title, unit) in ROLLOUTS.items():
        curves = [Labelled(run.name, run.training(name)) for run in every]
        curves = [curve for curve in curves if curve.points]
        if curves:
            pictures.append(_by_update(curves, styles, title, unit, size=SMALL, from_zero=name in FROM_ZERO))
    return pictures


def by_length(evaluation: Evaluation, styles: Styles) -> Picture | None:
    """BLEU by the length of the source."""
    found = {
        name: model.first.by_length
        for name, model in evaluation.models.items()
        if model.first and model.first.by_length
    }
    groups = sorted({group for each in found.values() for group in each}, key=lambda group: group[0])
    if len(groups) < 2:
        return None
    counts = {group: max(each[group][0] for each in found.values() if group in each) for group in groups}
    curves = [
        Labelled(name, [(place, each[group][1]) for place, group in enumerate(groups) if group in each])
        for name, each in found.items()
    ]
    labels = [f"{_tokens(group)} tokens\n{counts[group]:,} sentences" for group in groups]
    drawing = _by_group(curves, labels, "BLEU", styles)
    first, last = groups[0], groups[-1]
    falls = {
        name: each[last][1] - each[first][1] for name, each in found.items() if first in each and last in each
    }
    if len({signed(fall) for fall in falls.values()}) > 1:
        most, least = min(falls, key=falls.__getitem__), max(falls, key=falls.__getitem__)
        title = f"From the shortest sources to the longest, {most} changes by {signed(falls[most])} BLEU"
        title += f" and {least} by {signed(falls[least])}"
    else:
        title = "BLEU by the length of the source"
    rows = [
        [Cell(name), *(Cell(f"{each[group][1]:.2f}" if group in each else "") for group in groups)]
        for name, each in found.items()
    ]
    table = Table(["model", *(f"{_tokens(group)} ({counts[group]:,})" for group in groups)], rows)
    return Picture(
        title,
        drawing.svg(f"BLEU by tokens of the source. {title}."),
        table,
        "Groups of few sentences say little.",
    )


def by_position(evaluation: Evaluation, styles: Styles) -> Picture | None:
    """How much more often a student agrees with the teacher after its own prefixes than after the references', by position."""
    found = {
        name: {group: (100 * gold, 100 * own) for group, (gold, own) in model.drift.items()}
        for name, model in evaluation.models.items()
        if model.drift
    }
    groups = sorted({group for each in found.values() for group in each}, key=lambda group: group[0])
    if len(groups) < 2:
        return None
    gains = {name: {group: own - gold for group, (gold, own) in each.items()} for name, each in found.items()}
    curves = [
        Labelled(name, [(place, each[group]) for place, group in enumerate(groups) if group in each])
        for name, each in gains.items()
    ]
    drawing = _by_group(curves, [f"tokens {_tokens(group)}" for group in groups], "points", styles, zero=True)
    title = _drift(gains, groups)
    rows = [
        [
            Cell(name),
            *(Cell("{1:.1f}% ({0:.1f}%)".format(*each[group]) if group in each else "") for group in groups),
        ]
        for name, each in found.items()
    ]
    table = Table(
        ["agreement on own prefixes (references')", *(f"tokens {_tokens(group)}" for group in groups)], rows
    )
    note = "How much more often a student prefers the teacher's token after its own prefixes than after the references'."
    return Picture(title, drawing.svg(f"Agreement by position. {title}."), table, note, is_wide=True)


def _drift(gains: Mapping[str, Mapping[Group, float]], groups: Sequence[Group]) -> str:
    """What the last position that all students have shows."""
    shared = [group for group in groups if all(group in each for each in gains.values())]
    if not shared:
        return "Agreement with the teacher on own prefixes, by position"
    last = {name: each[shared[-1]] for name, each in gains.items()}
    least = min(last, key=last.__getitem__)
    where, change = f"at tokens {_tokens(shared[-1])}", last[least]
    if len(last) > 1:
        verb = "loses most agreement" if change < 0 else "gains least agreement"
        return f"On its own prefixes, {least} {verb} with the teacher {where}: {signed(change)} points"
    return f"On its own prefixes, {least}'s agreement with the teacher changes by {signed(change)} points {where}"


def _by_group(
    curves: Sequence[Labelled], labels: Sequence[str], unit: str, styles: Styles, zero: bool = False
) -> Drawing:
    """Curves over groups by length, the shortest first; ``zero`` draws a line there."""
    drawing = _curves(curves, styles, *WIDE, markers=True)
    axes = drawing.axes
    if zero:
        axes.axhline(0.0, color=SOFT, linewidth=0.8, linestyle=":")
    axes.set_xlim(-0.15, len(labels) - 1 + 0.1)
    axes.xaxis.set_major_locator(FixedLocator(range(len(labels))))
    axes.set_xticklabels(labels)
    axes.set_ylabel(unit)
    _label_ends(drawing, curves, styles)
    return drawing


def _tokens(group: Group) -> str:
    first, last = group
    return f"{first} or more" if last is None else f"{first} to {last}"


def _by_update(
    curves: Sequence[Labelled], styles: Styles, title: str, unit: str, markers: bool = False, clip: bool = False,
    size: tuple[float, float] = MIDDLE, from_zero: bool = False,
) -> Picture:  # fmt: skip
    drawing = _curves(curves, styles, *size, markers=markers)
    small = size == SMALL
    axes, note = drawing.axes, ""
    if from_zero:
        axes.set_ylim(bottom=0.0, top=max(axes.get_ylim()[1], 0.01))
    if clip and (limits := _late(curves)):
        axes.set_ylim(limits)
        note = "Higher losses of the first updates are above the figure."
    axes.xaxis.set_major_locator(MaxNLocator(4 if small else 6, integer=True, steps=STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("updates")
    if unit and not small:
        axes.set_ylabel(unit)
    _label_ends(drawing, curves, styles)
    rows = []
    for curve in curves:
        values = [value for _, value in curve.points]
        numbers = (len(values), values[0], min(values), max(values), values[-1])
        rows.append([Cell(curve.name), *(Cell(f"{number:,.4g}") for number in numbers)])
    table = Table(["run", "values", "first", "least", "most", "last"], rows)
    return Picture(title, drawing.svg(f"{title}, by update."), table, unit if small else note, size == WIDE)


def _late(curves: Sequence[Labelled]) -> tuple[float, float] | None:
    """Where to cut an axis whose first values would press all others flat."""
    late = [
        value for curve in curves for _, value in thinned(curve.points)[len(thinned(curve.points)) // 12 :]
    ]
    low, high, highest = (
        min(late),
        max(late),
        max(value for curve in curves for _, value in thinned(curve.points)),
    )
    pad = 0.06 * (high - low)
    return (low - pad, high + pad) if highest - high > 0.35 * (high - low) > 0 else None


def thinned(points: Points, count: int = POINTS) -> list[tuple[float, float]]:
    """A curve of no more points than that, each the mean of its neighbours, from the first update to the last."""
    if len(points) <= count:
        return [(float(x), y) for x, y in points]
    size = math.ceil(len(points) / count)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    means = [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]
    return [(float(points[0][0]), means[0][1]), *means[1:-1], (float(points[-1][0]), means[-1][1])]


def _curves(
    curves: Sequence[Labelled], styles: Styles, width: float, height: float, markers: bool = False
) -> Drawing:
    """Curves in a drawing with room for their names at the right."""
    right = max(width_of(_end(curve, len(curves))) for curve in curves) + 22
    drawing = Drawing(width, height, right=right)
    axes = drawing.axes
    for curve in curves:
        style, points = styles[curve.name], thinned(curve.points)
        look: Any = {"color": style.colour, "linestyle": style.dashes, "linewidth": 1.8}
        if len(points) == 1 or (markers and len(points) <= 30):
            look |= {"marker": style.marker, "markersize": 4.5}
        axes.plot(*zip(*points, strict=True), **look)
    axes.margins(x=0.02, y=0.08)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    values = [value for curve in curves for _, value in curve.points]
    if max(values) - min(values) < 1e-9 + 1e-3 * abs(max(values)):  # all the same
        middle, pad = values[0], max(abs(values[0]) * 0.1, 0.5)
        axes.set_ylim(middle - pad, middle + pad)
    return drawing


def _label_ends(drawing: Drawing, curves: Sequence[Labelled], styles: Styles) -> None:
    """Each curve's name at its end, names pushed apart."""
    _, bottom, right, top = drawing.axes.get_window_extent().extents
    low, high = drawing.axes.get_ylim()
    last = [thinned(curve.points)[-1] for curve in curves]
    ends = [drawing.at(x, min(max(y, low), high)) for x, y in last]
    heights = spread([y for _, y in ends], SIZE + 3, bottom + 4, top - 2)
    for curve, (x, y), height in zip(curves, ends, heights, strict=True):
        colour = styles[curve.name].colour
        if right - x > 16 or abs(height - y) > 3:  # else it is plain whose end it is
            drawing.lead((x + 5, y), (right + 8, height), colour)
        drawing.write(_end(curve, len(curves)), right + 11, height, colour)


def _end(curve: Labelled, count: int) -> str:
    """What stands at a curve's end; where it is the only one, its last value too."""
    name = clean(curve.name, 20 if count > 1 else 16)
    return name if count > 1 else f"{name} {curve.points[-1][1]:.4g}"
