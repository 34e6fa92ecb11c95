"""Quality against speed, and the models that none surpasses in both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from fairseq_imitkd.evaluate.schema import GREEDY, QualityScore
from fairseq_imitkd.report.evaluations import Evaluation
from fairseq_imitkd.report.picture import STEPS, Picture, Styles, listed
from fairseq_imitkd.report.svg import CARD, SOFT, SvgFigure, clean, legend_room
from fairseq_imitkd.report.tables import Cell, Table


@dataclass(frozen=True)
class Point:
    """A model with one search.

    Args:
        name: name of the model.
        search: name of the search.
        x: sentences a second, of the median batch.
        bleu: BLEU with its interval.
        is_main: whether it is the model's main search, whose marker is filled.
    """

    name: str
    search: str
    x: float
    bleu: QualityScore
    is_main: bool

    @property
    def y(self) -> float:
        """BLEU as a number."""
        return self.bleu.score

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of BLEU's interval; BLEU itself if there is none."""
        low, high = self.bleu.low, self.bleu.high
        return (self.y, self.y) if low is None or high is None else (low, high)


def pareto(evaluation: Evaluation, styles: Styles) -> Picture | None:
    """Return the figure; None if no model has both BLEU and a speed."""
    points = [
        Point(name, search, speed.rate, found.bleu, search == model.main_search)
        for name, model in evaluation.models.items()
        for search, found in model.searches.items()
        if found.bleu and (speed := model.speed(search))
    ]
    if not points:
        return None
    best = [points[number] for number in front([(point.x, point.y) for point in points])]
    names = sorted(
        {point.name for point in points}, key=lambda name: -max(p.y for p in points if p.name == name)
    )
    figure = _figure(points, names)
    _draw_front(figure, best)
    for point in points:
        _draw_point(figure, point, styles)
    figure.legend(names, styles, texts={name: clean(name) for name in names}, linestyle="none", markersize=8)
    title = "Quality against speed"
    table = Table(
        ["model", "decoding", "sentences/s", "BLEU", "on the front"],
        [_row(point, point in best) for point in points],
        words=2,
    )
    return Picture(title, figure.svg(f"{title}: BLEU against sentences a second."), table, _note(points))


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the numbers of the points that no other point surpasses or equals in both coordinates, by the
    first.
    """
    return sorted(
        (
            number
            for number, (x, y) in enumerate(points)
            if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
        ),
        key=lambda number: points[number],
    )


def _row(point: Point, is_on_front: bool) -> list[Cell]:
    texts = (point.name, point.search, f"{point.x:,.1f}", f"{point.y:.2f}", "yes" if is_on_front else "")
    return list(map(Cell, texts))


def _note(points: Sequence[Point]) -> str:
    note = (
        "Vertical lines are 95% intervals of BLEU. The dotted line is the front: the models that none "
        "surpasses in both numbers, by differences that may be chance."
    )
    others = list(dict.fromkeys(point.search for point in points if point.search != GREEDY))
    if 0 < len(others) < len({point.search for point in points}):
        note += f" Filled markers: greedy decoding. Hollow markers: {listed(others)}."
    return note


def _figure(points: Sequence[Point], names: Sequence[str]) -> SvgFigure:
    """Return a figure with room on all sides of the points."""
    right, legend_height = legend_room(map(clean, names))
    figure = SvgFigure(820, max(400, legend_height + 60), left=52, right=right, bottom=46, top=14)
    axes = figure.axes
    low, high = min(point.ends[0] for point in points), max(point.ends[1] for point in points)
    pad = max((high - low) * 0.08, 0.25)
    axes.set_ylim(low - pad, high + pad)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
    axes.set_ylabel("BLEU")
    slowest, fastest = min(point.x for point in points), max(point.x for point in points)
    room = max((fastest / slowest) ** 0.12, 1.25)
    axes.set_xscale("log")
    axes.set_xlim(slowest / room, fastest * room)
    axes.set_xlabel("sentences a second, on a logarithmic scale")
    axes.grid(axis="x")
    # As many numbers such as 20 and 500 as there is room for.
    decades = math.log10(fastest * room / (slowest / room))
    steps: tuple[float, ...] = (
        (1,) if decades > 5 else (1, 2, 5) if decades > 0.9 else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    )
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    return figure


def _draw_front(figure: SvgFigure, best: Sequence[Point]) -> None:
    """Draw a staircase down to the right."""
    corners = [(figure.axes.get_xlim()[0], best[0].y), (best[0].x, best[0].y)]
    for before, point in pairwise(best):
        corners += [(before.x, point.y), (point.x, point.y)]
    corners.append((best[-1].x, figure.axes.get_ylim()[0]))
    figure.axes.plot(*zip(*corners, strict=True), color=SOFT, linewidth=1.1, linestyle=(0, (2, 3)), zorder=1)


def _draw_point(figure: SvgFigure, point: Point, styles: Styles) -> None:
    """Draw the marker and the interval."""
    style = styles[point.name]
    figure.axes.plot([point.x, point.x], point.ends, color=style.colour, linewidth=1.2, alpha=0.6)
    figure.axes.plot(
        point.x,
        point.y,
        marker=style.marker,
        markersize=9,
        markeredgewidth=1.6,
        markeredgecolor=style.colour,
        markerfacecolor=style.colour if point.is_main else CARD,
        linestyle="none",
    )
