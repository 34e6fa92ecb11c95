"""Figures as SVG that belongs to the page: its letters, its colours in light and dark, no name that another figure has."""

import hashlib
import io
import logging
import math
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path

SIZE = 11.0  # of letters, in the units of a figure
SERIES = 8  # colours of the style sheet
# What stands for a colour of the style sheet until the figure is written.
INK, SOFT, LINE, CARD, NEUTRAL = (f"#0101{number:02x}" for number in range(5))
_VARIABLES = dict(zip((INK, SOFT, LINE, CARD, NEUTRAL), ("ink", "soft", "line", "card", "soft"), strict=True))
_VARIABLES.update({f"#0102{number:02x}": f"series-{number}" for number in range(SERIES)})
_DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = (
    "solid",
    (0, (4, 2)),
    (0, (1.5, 1.5)),
    (0, (6, 2, 1.5, 2)),
)
_MARKERS = "osD^vPX*"
_SHAPES = {
    "o": "M5 5a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z", "s": "M5.5 1.5h7v7h-7Z", "D": "M9 .5 13.5 5 9 9.5 4.5 5Z",
    "^": "M9 1 13.5 9h-9Z", "v": "M9 9 4.5 1h9Z", "P": "M7.5 1h3v2.5H13v3h-2.5V9h-3V6.5H5v-3h2.5Z",
    "X": "M5 3 7 1 9 3 11 1 13 3 11 5 13 7 11 9 9 7 7 9 5 7 7 5Z",
    "*": "M9 0 10.3 3.5 14 3.6 11.1 5.9 12.1 9.5 9 7.4 5.9 9.5 6.9 5.9 4 3.6 7.7 3.5Z",
}  # fmt: skip
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "imitkd", "text.parse_math": False, "font.size": SIZE,
    "font.family": "DejaVu Sans", "text.color": INK, "axes.edgecolor": LINE, "axes.labelcolor": SOFT, "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": SOFT, "ytick.color": SOFT, "grid.color": LINE, "grid.linewidth": 0.8, "axes.linewidth": 0.8,
    "axes.unicode_minus": True, "path.simplify": True,
}  # fmt: skip

Box = tuple[float, float, float, float]  # left, bottom, right, top


@dataclass(frozen=True)
class Style:
    """How a model or run looks in every figure: colour, dashes and marker, so that it is known without colours too."""

    colour: str
    dashes: str | tuple[int, tuple[float, ...]]
    marker: str
    number: int

    @property
    def shape(self) -> str:
        """The marker's outline, for the page: 8 wide and high, its middle at 9, 5."""
        return _SHAPES[self.marker]

    @property
    def strokes(self) -> str:
        """The dashes, for the page."""
        return "none" if isinstance(self.dashes, str) else " ".join(f"{each:g}" for each in self.dashes[1])


def styles(names: Sequence[str]) -> dict[str, Style]:
    """One for each name."""
    return {
        name: Style(
            f"#0102{number % SERIES:02x}",
            _DASHES[number // SERIES % len(_DASHES)],
            _MARKERS[(number + number // SERIES) % len(_MARKERS)],
            number % SERIES,
        )
        for number, name in enumerate(dict.fromkeys(names))
    }


@contextmanager
def drawing() -> Iterator[None]:
    """matplotlib as all figures here want it, whatever the user's settings are, and silent about letters that it lacks."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        try:
            yield
        finally:
            logger.setLevel(level)


class Drawing:
    """A figure with one pair of axes.

    Args:
        width, height: in units that are about a pixel.
        left, right, top, bottom: between its edges and the axes.
    """

    def __init__(
        self,
        width: float,
        height: float,
        left: float = 46,
        right: float = 12,
        top: float = 10,
        bottom: float = 40,
    ):
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        self.width, self.height = width, height
        rectangle = (
            left / width,
            bottom / height,
            (width - left - right) / width,
            (height - top - bottom) / height,
        )
        self.axes: Axes = self.figure.add_axes(rectangle)
        self.axes.spines[["top", "right", "left"]].set_visible(False)
        self.axes.tick_params(length=0, pad=5)
        self.axes.grid(axis="y")
        self.axes.set_axisbelow(True)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies, from the lower left corner."""
        across, up = self.axes.transData.transform((x, y))
        return float(across), float(up)

    def write(
        self, text: str, x: float, y: float, colour: str = INK, size: float = SIZE, **more: str
    ) -> None:
        """Text at a place counted from the lower left corner; in its middle upwards."""
        settings = {"va": "center_baseline", "ha": "left", **more}
        self.figure.text(x / self.width, y / self.height, text, color=colour, fontsize=size, **settings)  # type: ignore[arg-type]

    def lead(self, start: tuple[float, float], end: tuple[float, float], colour: str = SOFT) -> None:
        """A thin line from a point to its label, both counted from the lower left corner."""
        xs, ys = zip(start, end, strict=True)
        line = Line2D(
            [x / self.width for x in xs], [y / self.height for y in ys], color=colour, linewidth=0.9,
            linestyle=(0, (1, 2.5)),
            transform=self.figure.transFigure,
        )  # fmt: skip
        self.figure.add_artist(line)

    def svg(self, label: str) -> Markup:
        """The figure for the page.

        Args:
            label: what it shows, for those who can't see it.
        """
        file = io.StringIO()
        FigureCanvasSVG(self.figure).print_svg(
            file, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
        return finished(file.getvalue(), label)


def finished(svg: str, label: str) -> Markup:
    """matplotlib's file as a part of a page."""
    own = hashlib.sha256(svg.encode()).hexdigest()[:8]
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', body)
    used = set(re.findall(r'<[^>]*?(?:url\(#|href="#)([^)"]+)', body))

    def tag(found: re.Match[str]) -> str:
        text = re.sub(
            r' id="([^"]*)"', lambda each: f' id="f{own}-{each[1]}"' if each[1] in used else "", found[0]
        )
        text = re.sub(r'(url\(#|href="#)', rf"\g<1>f{own}-", text)
        text = re.sub(r"#010[12][0-9a-f]{2}", lambda each: f"var(--{_VARIABLES[each[0]]})", text)
        text = re.sub(r"font: (?:(\d+) )?([\d.]+)px [^;\"]*", _font, text)
        text = re.sub(r"font-family: [^;\"]*;? ?", "", text).replace("xlink:href", "href")
        return re.sub(r"-?\d+\.\d{3,}", lambda each: f"{float(each[0]):.2f}".rstrip("0").rstrip("."), text)

    body = re.sub(r"<[^>]+>", tag, body[body.index(">") + 1 :])
    body = re.sub(r"\n\s*", "\n", body)
    width = float(box[1].split()[2]) if box else 0
    return Markup(
        f'<svg viewBox="{box[1] if box else ""}" style="--width: {width:.0f}" role="img" aria-label="{escape(label)}">{body}'
    )


def _font(found: re.Match[str]) -> str:
    return (f"font-weight: {found[1]}; " if found[1] else "") + f"font-size: {found[2]}px"


def clean(text: str, longest: int = 28) -> str:
    """A name that a figure has room for: in one line, without what is not to be seen."""
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def width_of(text: str, size: float = SIZE) -> float:
    """How wide a text is at most: DejaVu's letters are wider than those of most systems, and lack some scripts."""
    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return max(
        float(width),
        sum(size if unicodedata.east_asian_width(letter) in "WF" else 0.45 * size for letter in text),
    )


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places that are at least ``gap`` apart, in the same order and as near to those wanted as a push allows."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    if not order:
        return []
    gap = min(gap, (high - low) / max(len(order) - 1, 1))
    # Groups of places that have been pushed against each other: their middle is where their members want to be.
    groups: list[list[int]] = []
    for index in order:
        groups.append([index])
        while len(groups) > 1 and _start(groups[-2], wanted, gap, low, high) + gap * len(groups[-2]) > _start(
            groups[-1], wanted, gap, low, high
        ):
            last = groups.pop()
            groups[-1] += last
    places = [0.0] * len(wanted)
    for group in groups:
        start = _start(group, wanted, gap, low, high)
        for rank, index in enumerate(group):
            places[index] = start + rank * gap
    return places


def _start(group: Sequence[int], wanted: Sequence[float], gap: float, low: float, high: float) -> float:
    """Where the lowest of a group lies."""
    middle = sum(wanted[index] - rank * gap for rank, index in enumerate(group)) / len(group)
    return min(max(middle, low), high - gap * (len(group) - 1))


def place(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    taken: Sequence[Box],
    room: Box,
    others: Sequence[tuple[float, float]] = (),
) -> list[Box]:
    """A box for each point's label that overlaps no other, nor what is taken, where there is such a place.

    Args:
        points: what is labelled.
        sizes: of the labels: width and height.
        taken: by other things, the points among them.
        room: for all labels.
        others: points without a label, to which none should seem to belong.
    """
    every = [*points, *others]
    placed: list[Box] = []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        candidates = []
        for ring in range(1, 13):
            for step in range(16):
                angle = math.pi * step / 8
                across, up = math.cos(angle), math.sin(angle)
                # Farther rings go farther; the label's near edge lies on the ring.
                left = x + across * (5 + 5 * ring) - width * (1 - across) / 2
                low = y + up * (5 + 5 * ring) - height * (1 - up) / 2
                box = (left, low, left + width, low + height)
                outside = max(room[0] - box[0], room[1] - box[1], box[2] - room[2], box[3] - room[3], 0.0)
                crowd = sum(overlap(box, other) for other in (*placed, *taken))
                own = distance((x, y), box)
                crowd += sum(25 for other in every if other != (x, y) and distance(other, box) < own + 6)
                candidates.append((outside * 100 + crowd, ring, abs(up), -across, box))
        placed.append(min(candidates)[-1])
    return placed


def distance(point: tuple[float, float], box: Box) -> float:
    """From a point to the nearest of a box."""
    return math.dist(point, nearest(point, box))


def nearest(point: tuple[float, float], box: Box) -> tuple[float, float]:
    """The place in a box that is nearest to a point."""
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


def overlap(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    up = min(one[3], other[3]) - max(one[1], other[1])
    return across * up if across > 0 and up > 0 else 0.0
