"""Figures as SVG in the style of the page: its font, its colours in light and dark, and ids of their own."""

import hashlib
import io
import logging
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from matplotlib.transforms import Affine2D, Transform

SIZE = 11.0  # of letters
LEGEND_LINE, _LEGEND_GAP, _HANDLE = 15.0, 12.0, 18.0
SERIES = 8  # colours of the style sheet
# Placeholders, which are replaced with the style sheet's colours when the figure is written.
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
    "svg.fonttype": "none",
    "svg.hashsalt": "imitkd",
    "text.parse_math": False,
    "font.size": SIZE,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "axes.linewidth": 0.8,
    "axes.unicode_minus": True,
    "path.simplify": True,
}


@dataclass(frozen=True)
class Style:
    """The look of a model or run in all figures: colour, dashes and marker, which tell it apart without
    colours too.
    """

    colour: str
    dashes: str | tuple[int, tuple[float, ...]]
    marker: str
    number: int

    @property
    def shape(self) -> str:
        """The marker's outline for the page, as the path of an SVG: 8 wide and high, its middle at 9, 5."""
        return _SHAPES[self.marker]

    @property
    def strokes(self) -> str:
        """The dashes for the page, as an SVG has them."""
        return "none" if isinstance(self.dashes, str) else " ".join(f"{each:g}" for each in self.dashes[1])


def styles(names: Sequence[str]) -> dict[str, Style]:
    """Return a style for each name."""
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
def figure_settings() -> Iterator[None]:
    """Set matplotlib up for the page, whatever the user's settings are; missing letters cause no warnings."""
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


class SvgFigure:
    """A figure with one pair of axes. Its unit is about a pixel, and it counts from the lower left corner.

    Args:
        width, height: size of the figure.
        left, right, top, bottom: room between its edges and the axes.
    """

    def __init__(
        self,
        width: float,
        height: float,
        *,
        left: float = 46,
        right: float = 12,
        top: float = 10,
        bottom: float = 40,
    ):
        self._figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        self.width, self.height = width, height
        axes_width, axes_height = width - left - right, height - top - bottom
        self.axes: Axes = self._figure.add_axes(
            (left / width, bottom / height, axes_width / width, axes_height / height)
        )
        self.axes.spines[["top", "right", "left"]].set_visible(False)
        self.axes.tick_params(length=0, pad=5)
        self.axes.grid(axis="y")
        self.axes.set_axisbelow(True)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return where a point of the axes lies in the figure."""
        across, up = self.axes.transData.transform((x, y))
        return float(across), float(up)

    def write(
        self, text: str, at: tuple[float, float], *, colour: str = INK, size: float = SIZE, **more: str
    ) -> None:
        """Write a text, vertically centred at a place of the figure."""
        settings: dict[str, Any] = {"va": "center_baseline", "ha": "left", **more}
        x, y = at[0] / self.width, at[1] / self.height
        self._figure.text(x, y, text, color=colour, fontsize=size, **settings)

    def mark(self, at: tuple[float, float], **look: Any) -> None:
        """Draw a marker at a place of the figure; ``look`` is matplotlib's."""
        x, y = at[0] / self.width, at[1] / self.height
        self._figure.add_artist(
            Line2D([x], [y], linestyle="none", transform=self._figure.transFigure, **look)
        )

    def legend(
        self, names: Sequence[str], styles: Mapping[str, "Style"], *, texts: Mapping[str, str], **look: Any
    ) -> None:
        """List names right of the axes, each with its line or marker.

        Args:
            names: names from top to bottom.
            styles: style of each name.
            texts: what is written for each name.
            look: further settings of the lines, by matplotlib's names.
        """
        handles = [
            Line2D(
                [],
                [],
                color=styles[name].colour,
                **{"linestyle": styles[name].dashes, "marker": styles[name].marker, **look},
            )
            for name in names
        ]
        legend = self.axes.legend(
            handles,
            [texts[name] for name in names],
            loc="upper left",
            bbox_to_anchor=(1.0, 1.0),
            frameon=False,
            borderaxespad=0.0,
            borderpad=0.0,
            handlelength=_HANDLE / SIZE,
            handletextpad=6 / SIZE,
            labelspacing=(LEGEND_LINE - SIZE) / SIZE,
            fontsize=SIZE,
            bbox_transform=self._beside_axes(),
        )
        legend.set_in_layout(False)

    def _beside_axes(self) -> Transform:
        """Return the axes' coordinates, moved right by the gap to the legend."""
        return self.axes.transAxes + Affine2D().translate(_LEGEND_GAP, 0)

    def svg(self, label: str) -> Markup:
        """Return the figure for the page.

        Args:
            label: what it shows, for those who can't see it.
        """
        file = io.StringIO()
        FigureCanvasSVG(self._figure).print_svg(
            file, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
        return finished(file.getvalue(), label)


def legend_room(texts: Iterable[str]) -> tuple[float, float]:
    """Return the width right of the axes, and the height, that a legend of these texts needs."""
    every = list(texts)
    return _LEGEND_GAP + _HANDLE + 12 + max(map(width_of, every), default=0.0), LEGEND_LINE * len(every)


def finished(svg: str, label: str) -> Markup:
    """Return matplotlib's file as a part of a page."""
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
    attributes = f'viewBox="{box[1] if box else ""}" style="--width: {width:.0f}" role="img"'
    return Markup(f'<svg {attributes} aria-label="{escape(label)}">{body}')


def _font(found: re.Match[str]) -> str:
    return (f"font-weight: {found[1]}; " if found[1] else "") + f"font-size: {found[2]}px"


def clean(text: str, longest: int = 28) -> str:
    """Return a name in one line, without control characters, cut to a length."""
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def width_of(text: str, size: float = SIZE) -> float:
    """Return how wide a text is at most. DejaVu's letters are wider than most fonts', but it lacks some
    scripts.
    """
    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return max(
        float(width),
        sum(size if unicodedata.east_asian_width(letter) in "WF" else 0.45 * size for letter in text),
    )
