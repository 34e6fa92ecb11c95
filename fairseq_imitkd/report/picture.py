"""A figure with its title and its numbers, and what all figures share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fairseq_imitkd.report.svg import Style
from fairseq_imitkd.report.tables import Table

# Width and height of a figure alone in its row, of one of two, and of one of three.
WIDE, MIDDLE, SMALL = (820.0, 290.0), (440.0, 270.0), (340.0, 200.0)
STEPS = [1, 2, 2.5, 5, 10]  # distances of an axis's ticks, times a power of 10

Styles = Mapping[str, Style]


@dataclass(frozen=True)
class Picture:
    """A figure.

    Args:
        title: what it shows, in a line.
        svg: the figure itself.
        table: its numbers, for those who can't see it.
        note: a remark.
        is_wide: whether it has a row to itself.
    """

    title: str
    svg: Markup
    table: Table
    note: str = ""
    is_wide: bool = False


def listed(names: Sequence[str]) -> str:
    """Return names as ``a, b and c``."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)
