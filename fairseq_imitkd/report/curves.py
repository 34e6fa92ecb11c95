"""Figures of curves: metrics by update, and quality by length, each with a legend."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from fairseq_imitkd.report.evaluations import Evaluation
from fairseq_imitkd.report.picture import MIDDLE, SMALL, STEPS, WIDE, Picture, Styles, listed
from fairseq_imitkd.report.runs import Points, Run
from fairseq_imitkd.report.svg import SOFT, SvgFigure, clean, legend_room
from fairseq_imitkd.report.tables import LOSSES_DIFFER, Cell, Table, comparable, named

FEWEST = 20  # sentences of a group that is drawn
POINTS = 240  # of a curve; more are averaged
# The plugin's metrics in the order of the page: title, and unit or explanation.
ROLLOUTS = {
    "student_share": ("Student's share", "of sentences whose prefixes it writes itself"),
    "agreement": ("Agreement with the teacher", "share of tokens for which both prefer the same"),
    "loss_data": ("Loss on the data's prefixes", "bits per token"),
    "loss_rollout": ("Loss on the student's prefixes", "bits per token"),
    "rollout_len": ("Length of rollouts", "tokens"),
    "truncated": ("Truncated rollouts", "share cut by the length cap"),
    "empty": ("Empty rollouts", "share that ends at once"),
    "repetition": ("Repetition", "share of the rollouts' tokens"),
    "rollout_time": ("Time for rollouts", "share of the training step"),
    "teacher_time": ("Time for the teacher", "share of the training step"),
    "rollout_work": ("Decoder's work", "rows computed per token written"),
    "padding": ("Padding", "target positions per real token"),
    "reward": ("Reward", "of sampled rollouts"),
    "reward_spread": ("Spread of the reward", "its standard deviation"),
    "rollout_staleness": ("Age of rollouts", "updates"),
    "rollouts_replayed": ("Replayed rollouts", "share of all"),
    "rollout_out_of_memory": ("Out of memory", "rollouts decoded again in parts"),
    "sparsity": ("Sparsity", "share of weights that are zero"),
}
FROM_ZERO = (
    "student_share",
    "truncated",
    "empty",
    "repetition",
    "rollout_time",
    "teacher_time",
    "rollouts_replayed",
    "sparsity",
)


Group = tuple[int, int | None]  # first and last token; None is without end


@dataclass(frozen=True)
class Curve:
    """A run's or model's values."""

    name: str
    points: Points


def training(runs: Sequence[Run], styles: Styles) -> list[Picture]:
    """Show the metrics that choose the best checkpoints, and the losses of training and validation."""
    metrics = dict.fromkeys(run.best_metric for run in runs if run.best_metric != "loss" and run.best)
    pictures = [_best_metric(metric, runs, styles) for metric in metrics]
    for kind in ("training", "validation"):
        curves = [
            _curve(run, run.training("loss") if kind == "training" else run.validated("loss")) for run in runs
        ]
        pictures.append(_losses(kind, runs, curves, styles=styles))
    return [picture for picture in pictures if picture]


def _curve(run: Run, points: Points) -> "Curve":
    """Return values of a run by all updates of its weights, with those before it started."""
    return Curve(run.name, [(update + run.before, value) for update, value in points])


def _starts(runs: Sequence[Run]) -> str:
    """Return a sentence about the runs that started from the weights of others; empty if none did."""
    found: dict[str, list[str]] = {}
    for run in runs:
        if run.origin:
            where = run.origin if run.parent else f"{run.origin}, whose updates are not counted here"
            found.setdefault(where, []).append(run.name)
    return " ".join(f"Started {where}: {listed(names)}." for where, names in found.items())


def _best_metric(metric: str, runs: Sequence[Run], styles: Styles) -> Picture | None:
    of_metric = [run for run in runs if run.best_metric == metric and run.best]
    curves = [_curve(run, run.validated(metric)) for run in of_metric]
    if all(len(curve.points) < 2 for curve in curves):
        return None  # the table says as much
    figure = _by_update(curves, styles, size=WIDE, unit=named(metric), markers=True)
    title = f"Validation {named(metric)}"
    return _picture(figure, curves, title=title, note=_starts(of_metric), is_wide=True)


def _losses(kind: str, runs: Sequence[Run], curves: Sequence[Curve], *, styles: Styles) -> Picture | None:
    curves = [curve for curve in curves if curve.points]
    if all(len(curve.points) < 2 for curve in curves):
        return None
    drawn = [run for run in runs if run.name in {curve.name for curve in curves}]
    figure = _by_update(
        curves,
        styles,
        size=MIDDLE,
        unit="bits per token",
        markers=kind == "validation",
        ranked=comparable(drawn),
    )
    limits = _late(curves)
    if limits:
        figure.axes.set_ylim(limits)
    notes = [_starts(drawn), "" if comparable(drawn) else LOSSES_DIFFER]
    notes += ["Higher losses of the first updates are above the figure."] if limits else []
    return _picture(figure, curves, title=f"{kind.capitalize()} loss", note=" ".join(filter(None, notes)))


def rollouts(runs: Sequence[Run], styles: Styles) -> list[Picture]:
    """Show each of the plugin's metrics over time, for the runs that log it."""
    pictures = []
    for name, (title, unit) in ROLLOUTS.items():
        curves = [_curve(run, run.training(name)) for run in runs]
        curves = [curve for curve in curves if curve.points]
        if any(len(curve.points) > 1 for curve in curves):
            figure = _by_update(curves, styles, size=SMALL)
            if name in FROM_ZERO:
                top = max(figure.axes.get_ylim()[1], 0.01)
                if all(value <= 1.0 for curve in curves for _, value in curve.points):
                    top = min(top, 1.05)  # a share that stays at 1 would be drawn in a range up to 1.5
                figure.axes.set_ylim(bottom=0.0, top=top)
            pictures.append(_picture(figure, curves, title=title, note=unit))
    return pictures


def by_length(evaluation: Evaluation, styles: Styles) -> Picture | None:
    """Show BLEU by the length of the source."""
    found: dict[str, dict[Group, float]] = {}
    counts: dict[Group, int] = {}
    for name, model in evaluation.models.items():
        for group in model.main.by_length if model.main else []:
            key = (group.first, group.last)
            found.setdefault(name, {})[key] = group.bleu
            counts[key] = max(group.sentences, counts.get(key, 0))
    groups = sorted(counts, key=lambda group: group[0])
    drawn = [group for group in groups if counts[group] >= FEWEST]
    if len(drawn) < 2:
        return None
    labels = [f"{_tokens(group)} tokens\n{counts[group]:,} sentences" for group in drawn]
    figure = _by_group(_group_curves(found, drawn), labels, styles, unit="BLEU")
    title = "BLEU by the length of the source"
    rows = [
        [Cell(name), *(Cell(f"{each[group]:.2f}" if group in each else "") for group in groups)]
        for name, each in found.items()
    ]
    table = Table(["model", *(f"{_tokens(group)} ({counts[group]:,})" for group in groups)], rows)
    note = "The fewer sentences a group has, the more of a difference is chance."
    if len(drawn) < len(groups):
        note += f" Groups of fewer than {FEWEST} sentences are in the numbers alone."
    return Picture(title, figure.svg(f"{title}."), table, note)


def by_position(evaluation: Evaluation, styles: Styles) -> Picture | None:
    """Show how much more often students agree with the teacher after their own prefixes, by position."""
    found: dict[str, dict[Group, tuple[float, float]]] = {}
    counts: dict[Group, int] = {}
    for name, model in evaluation.models.items():
        for group in model.probes.by_position if model.probes else []:
            key = (group.first, group.last)
            found.setdefault(name, {})[key] = (100 * group.gold.agreement, 100 * group.own.agreement)
            counts[key] = max(group.own.tokens or 0, counts.get(key, 0))
    groups = sorted(counts, key=lambda group: group[0])
    if len(groups) < 2:
        return None
    gains = {name: {group: own - gold for group, (gold, own) in each.items()} for name, each in found.items()}
    labels = [
        f"tokens {_tokens(group)}" + (f"\nup to {counts[group]:,}" if counts[group] else "")
        for group in groups
    ]
    figure = _by_group(_group_curves(gains, groups), labels, styles, unit="percentage points")
    figure.axes.axhline(0.0, color=SOFT, linewidth=0.8, linestyle=":")
    title = "Agreement with the teacher after own prefixes, by position"
    rows = [
        [
            Cell(name),
            *(Cell("{1:.1f}% ({0:.1f}%)".format(*each[group]) if group in each else "") for group in groups),
        ]
        for name, each in found.items()
    ]
    header = [label.replace("\n", ": ") for label in labels]
    table = Table(["agreement on own prefixes (references')", *header], rows)
    note = (
        "How much more often a student prefers the teacher's token after its own prefixes than after the "
        "references'. The numbers of tokens are those of the student that wrote most."
    )
    return Picture(title, figure.svg(f"{title}."), table, note, is_wide=True)


def _group_curves(found: Mapping[str, Mapping[Group, float]], groups: Sequence[Group]) -> list[Curve]:
    return [
        Curve(name, [(place, each[group]) for place, group in enumerate(groups) if group in each])
        for name, each in found.items()
    ]


def _by_group(curves: Sequence[Curve], labels: Sequence[str], styles: Styles, *, unit: str) -> SvgFigure:
    """Return a figure of curves over groups by length, the shortest first."""
    figure = _figure(curves, styles, size=WIDE, markers=True)
    axes = figure.axes
    axes.set_xlim(-0.15, len(labels) - 1 + 0.1)
    axes.xaxis.set_major_locator(FixedLocator(range(len(labels))))
    axes.set_xticklabels(labels)
    axes.set_ylabel(unit)
    return figure


def _tokens(group: Group) -> str:
    first, last = group
    return f"{first} or more" if last is None else f"{first} to {last}"


def _by_update(
    curves: Sequence[Curve],
    styles: Styles,
    *,
    size: tuple[float, float],
    unit: str = "",
    markers: bool = False,
    ranked: bool = True,
) -> SvgFigure:
    """Return a figure of curves over updates."""
    figure = _figure(curves, styles, size=size, markers=markers, ranked=ranked)
    axes = figure.axes
    axes.xaxis.set_major_locator(MaxNLocator(4 if size == SMALL else 6, integer=True, steps=STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("updates")
    axes.set_ylabel(unit)
    return figure


def _picture(
    figure: SvgFigure, curves: Sequence[Curve], *, title: str, note: str = "", is_wide: bool = False
) -> Picture:
    """Return a figure of curves over updates with a table of their values."""
    rows = []
    for curve in curves:
        values = [value for _, value in curve.points]
        numbers = (len(values), values[0], min(values), max(values), values[-1])
        rows.append([Cell(curve.name), *(Cell(f"{number:,.4g}") for number in numbers)])
    table = Table(["run", "values", "first", "least", "most", "last"], rows)
    return Picture(title, figure.svg(f"{title}, by update."), table, note, is_wide)


def _late(curves: Sequence[Curve]) -> tuple[float, float] | None:
    """Return where to cut an axis whose first values would flatten all others; None if they would not."""
    thin = [[value for _, value in thinned(curve.points)] for curve in curves]
    late = [value for values in thin for value in values[len(values) // 12 :]]
    low, high, highest = min(late), max(late), max(value for values in thin for value in values)
    pad = 0.06 * (high - low)
    return (low - pad, high + pad) if highest - high > 0.35 * (high - low) > 0 else None


def thinned(points: Points, count: int = POINTS) -> list[tuple[float, float]]:
    """Return a curve of at most ``count`` points, each the mean of neighbours, from the first update to the
    last.
    """
    if len(points) <= count:
        return [(float(x), y) for x, y in points]
    size = math.ceil(len(points) / count)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    means = [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]
    return [(float(points[0][0]), means[0][1]), *means[1:-1], (float(points[-1][0]), means[-1][1])]


def _figure(
    curves: Sequence[Curve],
    styles: Styles,
    *,
    size: tuple[float, float],
    markers: bool,
    ranked: bool = True,
) -> SvgFigure:
    """Return a figure of curves, with a legend in the order of their ends if that is ``ranked``."""
    texts = {curve.name: _text(curve, len(curves)) for curve in curves}
    right, legend_height = legend_room(texts.values())
    figure = SvgFigure(size[0], max(size[1], legend_height + 50), right=right)
    axes = figure.axes
    for curve in curves:
        style, points = styles[curve.name], thinned(curve.points)
        look: dict[str, Any] = {"color": style.colour, "linestyle": style.dashes, "linewidth": 1.8}
        if len(points) == 1 or (markers and len(points) <= 30):
            look |= {"marker": style.marker, "markersize": 4.5}
        axes.plot(*zip(*points, strict=True), **look)
    axes.margins(x=0.02, y=0.08)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    values = [value for curve in curves for _, value in curve.points]
    if max(values) - min(values) < 1e-9 + 1e-3 * abs(max(values)):  # all the same
        middle, pad = values[0], max(abs(values[0]) * 0.1, 0.5)
        axes.set_ylim(middle - pad, middle + pad)
    order = sorted(curves, key=lambda curve: -curve.points[-1][1]) if ranked else curves
    names = [curve.name for curve in order]
    figure.legend(names, styles, texts=texts, linewidth=1.8, markersize=5 if markers else 0)
    return figure


def _tick(value: float, _: int | None = None) -> str:
    """Return what the vertical axis says at a value."""
    return f"{value:,.4g}".replace("-", "\N{MINUS SIGN}")


def _text(curve: Curve, count: int) -> str:
    """Return what the legend says of a curve; of a single one, its last value too."""
    name = clean(curve.name, 20 if count > 1 else 16)
    return name if count > 1 else f"{name} {curve.points[-1][1]:.4g}"
