"""Quality against speed, and what nothing surpasses in both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from fairseq_imitkd.report.evaluations import GREEDY, Evaluation, Model, Score
from fairseq_imitkd.report.picture import STEPS, Picture, Styles, listed
from fairseq_imitkd.report.svg import (
    CARD,
    SIZE,
    SOFT,
    Box,
    Drawing,
    clean,
    distance,
    nearest,
    place,
    width_of,
)
from fairseq_imitkd.report.tables import Cell, Table


@dataclass(frozen=True)
class Point:
    """A model that decodes in some way: its sentences a second, and its BLEU."""

    model: Model
    search: str
    x: float
    bleu: Score

    @property
    def y(self) -> float:
        """Its BLEU as a number."""
        return self.bleu.score

    @property
    def ends(self) -> tuple[float, float]:
        """Of its interval; itself where there is none."""
        known = self.bleu.low is not None and self.bleu.high is not None
        return (self.bleu.low, self.bleu.high) if known else (self.y, self.y)  # type: ignore[return-value]

    @property
    def is_first(self) -> bool:
        """Whether it is the model's point with a name."""
        return self.search == (GREEDY if GREEDY in self.model.decodings else next(iter(self.model.decodings)))


def pareto(evaluation: Evaluation, styles: Styles) -> Picture | None:
    """The figure, if there is a model of which both are known."""
    points = [
        Point(model, search, speed.sentences, decoding.bleu)
        for model in evaluation.models.values()
        for search, decoding in model.decodings.items()
        if decoding.bleu and (speed := model.fast(search))
    ]
    if not points:
        return None
    best = [points[number] for number in front([(point.x, point.y) for point in points])]
    drawing = _axes(points)
    taken = _draw_front(drawing, best)
    for point in points:
        taken += _draw_point(drawing, point, styles)
    _draw_names(drawing, points, taken, styles)

    names = list(dict.fromkeys(point.model.name for point in best))
    title = _title(names, len({point.model.name for point in points}))
    note = "Vertical lines are 95% intervals; the dotted line is the front."
    others = list(dict.fromkeys(point.search for point in points if point.search != GREEDY))
    if 0 < len(others) < len({point.search for point in points}):
        note += f" Filled: greedy decoding. Hollow: {listed(others)}."
    rows = [
        [
            Cell(each)
            for each in (
                point.model.name,
                point.search,
                f"{point.x:,.1f}",
                f"{point.y:.2f}",
                "yes" * (point in best),
            )
        ]
        for point in points
    ]
    table = Table(["model", "decoding", "sentences/s", "BLEU", "on the front"], rows, words=2)
    return Picture(title, drawing.svg(f"BLEU against sentences a second. {title}."), table, note)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Those that no other is beside or above in both coordinates, by the first one."""
    return sorted(
        (
            number
            for number, (x, y) in enumerate(points)
            if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
        ),
        key=lambda number: points[number],
    )


def _title(names: Sequence[str], count: int) -> str:
    """What the front says.

    Args:
        names: of the models on it.
        count: of all models.
    """
    if count == 1:
        return "Quality and speed"
    if len(names) == count:
        return "Every model is on the front: what is faster is worse"
    if len(names) <= 3:
        return f"Nothing is both faster and better than {listed(names)}"
    return f"Nothing surpasses {len(names)} of {count} models in both speed and quality"


def _axes(points: Sequence[Point]) -> Drawing:
    """With some room on all sides."""
    drawing = Drawing(820, 400, left=52, right=24, bottom=46, top=14)
    axes = drawing.axes
    low, high = min(point.ends[0] for point in points), max(point.ends[1] for point in points)
    pad = max((high - low) * 0.08, 0.25)
    axes.set_ylim(low - pad, high + pad)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
    axes.set_ylabel("BLEU")
    slowest, quickest = min(point.x for point in points), max(point.x for point in points)
    room = max((quickest / slowest) ** 0.12, 1.25)
    axes.set_xscale("log")
    axes.set_xlim(slowest / room, quickest * room)
    axes.set_xlabel("sentences a second, on a logarithmic scale")
    axes.grid(axis="x")
    # As many numbers such as 20 and 500 as there is room for.
    decades = math.log10(quickest * room / (slowest / room))
    steps: tuple[float, ...] = (
        (1,) if decades > 5 else (1, 2, 5) if decades > 0.9 else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    )
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    return drawing


def _draw_front(drawing: Drawing, best: Sequence[Point]) -> list[Box]:
    """A staircase down to the right; where it lies."""
    corners = [(drawing.axes.get_xlim()[0], best[0].y), (best[0].x, best[0].y)]
    for before, point in pairwise(best):
        corners += [(before.x, point.y), (point.x, point.y)]
    corners.append((best[-1].x, drawing.axes.get_ylim()[0]))
    drawing.axes.plot(*zip(*corners, strict=True), color=SOFT, linewidth=1.1, linestyle=(0, (2, 3)), zorder=1)
    places = [drawing.at(*corner) for corner in corners]
    return [
        (min(x, a) - 1, min(y, b) - 1, max(x, a) + 1, max(y, b) + 1) for (x, y), (a, b) in pairwise(places)
    ]


def _draw_point(drawing: Drawing, point: Point, styles: Styles) -> list[Box]:
    """Its interval and marker; where they lie."""
    style = styles[point.model.name]
    drawing.axes.plot([point.x, point.x], point.ends, color=style.colour, linewidth=1.2, alpha=0.6)
    drawing.axes.plot(
        point.x, point.y, marker=style.marker, markersize=9, markeredgewidth=1.6, markeredgecolor=style.colour,
        markerfacecolor=style.colour if point.is_first else CARD, linestyle="none",
    )  # fmt: skip
    (x, low), (_, y), (_, high) = (
        drawing.at(point.x, each) for each in (point.ends[0], point.y, point.ends[1])
    )
    return [(x - 2, low, x + 2, high), (x - 6, y - 6, x + 6, y + 6)]


def _draw_names(drawing: Drawing, points: Sequence[Point], taken: Sequence[Box], styles: Styles) -> None:
    """Each near its model's first point, with a line to it where it had to go farther."""
    first = [point for point in points if point.is_first]
    names = [clean(point.model.name, 34) for point in first]
    places = [drawing.at(point.x, point.y) for point in first]
    others = [drawing.at(point.x, point.y) for point in points if not point.is_first]
    room = (54.0, 50.0, drawing.width - 2, drawing.height - 2)
    boxes = place(places, [(width_of(name) + 2, SIZE + 3) for name in names], taken, room, others)
    for point, name, at, box in zip(first, names, places, boxes, strict=True):
        colour = styles[point.model.name].colour
        if distance(at, box) > 16:
            drawing.lead(at, nearest(at, box), colour)
        drawing.write(name, box[0] + 1, (box[1] + box[3]) / 2, colour)
