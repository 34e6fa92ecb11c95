"""Draw the package's rooms and their imports as docs/rooms.svg.

    python docs/rooms.py

The arrows come from the code. Only the places of the boxes and the words in them are written here.
"""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

import grimp

PICTURE = Path(__file__).with_name("rooms.svg")
PACKAGE = "fairseq_imitkd"

# Three modules that nearly all rooms import, and two that only start the package.
LEFT_OUT = (
    "errors", "quick", "warnings_shown", "registration", "vocab_ops", "version", "__init__", "__main__"
)  # fmt: skip
AROUND = ("cli", "pipeline", "seqkd", "report", "serving", "evaluate", "export", "engines", "huggingface")


class Box(NamedTuple):
    """A room in the picture.

    Args:
        row, column: its place; rows are counted from above.
        purpose: a few words.
        stage: when a batch comes to it, from 1; 0 for never.
    """

    row: int
    column: int
    purpose: str
    stage: int = 0


BOXES = {
    "methods": Box(0, 0, "every method: a set of defaults"),
    "tasks": Box(0, 1, "fairseq's tasks, with a teacher", 1),
    "around": Box(0, 2, "before and after training"),
    "training": Box(1, 1, "the step, its state and times", 2),
    "criterion": Box(2, 0, "logits in, summed loss out", 6),
    "mixing": Box(2, 1, "whose targets a batch has", 3),
    "teacher": Box(2, 2, "scores every prefix", 5),
    "method": Box(3, 1, "flags, schedules, checks"),
    "losses": Box(4, 0, "divergences, sums to log", 7),
    "rollout": Box(4, 1, "decoding while training", 4),
    "checkpoints": Box(4, 2, "safe loading"),
    "models": Box(5, 1, "architectures, access, pruning"),
    "data": Box(6, 1, "corpora, files, languages"),
    "text": Box(7, 1, "subwords, scores, rewards"),
}
# What happens at the stages 1 to 7.
STAGES = (
    "fairseq's trainer hands over a batch",
    "the step begins",
    "some sentences are drawn",
    "the student writes their targets",
    "the teacher scores every prefix",
    "the student runs once; the loss follows",
    "sums go back; fairseq divides once",
)

WIDTH, HEIGHT = 236, 52
LEFT, TOP, ACROSS, DOWN = 24, 24, 276, 92
WIDE = 500  # the box with the names of several rooms
SIZE = (2 * LEFT + 2 * ACROSS + WIDE, TOP + 8 * DOWN - 16)
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.name { font-weight: 600; font-size: 15px }
.small { fill: #59636e; font-size: 12px }
.box { fill: #f6f8fa; stroke: #8c959f }
.path { fill: #ddf4ff; stroke: #0969da }
.badge { fill: #0969da }
.badge-text { fill: #ffffff; font-weight: 600; text-anchor: middle }
.arrow { fill: none; stroke: #59636e; stroke-width: 1.4; marker-end: url(#head) }
"""


def imports() -> set[tuple[str, str]]:
    """Return the pairs (importer, imported) of rooms."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    pairs = {
        (room(module), room(other))
        for module in graph.modules
        for other in graph.find_modules_directly_imported_by(module)
    }
    return {(one, other) for one, other in pairs if one != other and not {one, other} & {*LEFT_OUT}}


def room(module: str) -> str:
    """Return the room that a module belongs to."""
    name = f"{module}.__init__".split(".")[1]
    return "around" if name in AROUND else name


def transitive_reduction(pairs: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the pairs that don't follow from others; the graph has no cycles."""
    below: dict[str, set[str]] = {}

    def reached(start: str) -> set[str]:
        if start not in below:
            below[start] = set()
            for one, other in pairs:
                if one == start:
                    below[start] |= {other} | reached(other)
        return below[start]

    return sorted(
        (one, other)
        for one, other in pairs
        if not any(other in reached(between) for start, between in pairs if start == one)
    )


def check(pairs: set[tuple[str, str]]) -> None:
    """Check that every room has a box and that every arrow leads downwards."""
    unknown = {name for pair in pairs for name in pair} - BOXES.keys()
    upwards = [pair for pair in pairs if not unknown & {*pair} and BOXES[pair[0]].row >= BOXES[pair[1]].row]
    if unknown or upwards:
        raise SystemExit(f"docs/rooms.py: rooms without a box: {sorted(unknown)}; imports upwards: {upwards}")


def corner(name: str) -> tuple[int, int]:
    """Return the upper left corner of a box."""
    return LEFT + BOXES[name].column * ACROSS, TOP + BOXES[name].row * DOWN


def draw_box(name: str) -> Iterator[str]:
    """Yield a box with its words."""
    (x, y), box = corner(name), BOXES[name]
    kind, width = "path" if box.stage else "box", WIDE if name == "around" else WIDTH
    yield f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{HEIGHT}" rx="6"/>'
    title, purpose = (name, box.purpose) if name != "around" else (box.purpose, ", ".join(AROUND))
    indent = 44 if box.stage else 14
    yield f'<text class="name" x="{x + indent}" y="{y + 22}">{escape(title)}</text>'
    yield f'<text class="small" x="{x + indent}" y="{y + 41}">{escape(purpose)}</text>'
    if box.stage:
        yield from badge(x + 22, y + HEIGHT // 2, box.stage)


def badge(x: int, y: int, stage: int) -> Iterator[str]:
    """Yield the number of a stage in a circle."""
    yield f'<circle class="badge" cx="{x}" cy="{y}" r="11"/>'
    yield f'<text class="badge-text" x="{x}" y="{y + 5}">{stage}</text>'


def draw_arrow(one: str, other: str) -> str:
    """Return an arrow from a box down to the upper edge of another, or past a row to its side."""
    (x, y), (to_x, to_y) = corner(one), corner(other)
    side = BOXES[other].column - BOXES[one].column
    if side and BOXES[other].row > BOXES[one].row + 1:
        start, end = (x + WIDTH - 84, to_x - 2) if side > 0 else (x + 84, to_x + WIDTH + 2)
        return f'<path class="arrow" d="M {start} {y + HEIGHT} V {to_y + HEIGHT // 2} H {end}"/>'
    start, end = x + WIDTH // 2 + side * WIDTH // 4, to_x + WIDTH // 2 - side * WIDTH // 4
    return f'<path class="arrow" d="M {start} {y + HEIGHT} L {end} {to_y - 2}"/>'


def legend() -> Iterator[str]:
    """Yield the path of a batch in words."""
    x, y = corner("checkpoints")
    x, y = x + 122, y + HEIGHT + 48
    yield f'<text class="name" x="{x - 11}" y="{y}">The path of a batch</text>'
    for number, words in enumerate(STAGES, start=1):
        yield from badge(x, y + 28 * number - 5, number)
        yield f'<text x="{x + 20}" y="{y + 28 * number}">{escape(words)}</text>'


def picture() -> str:
    """Return the whole SVG."""
    pairs = imports()
    check(pairs)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{SIZE[0]}" height="{SIZE[1]}" '
        f'viewBox="0 0 {SIZE[0]} {SIZE[1]}" role="img">',
        "<title>The rooms of fairseq_imitkd, and the path of a batch through them</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M 0 0 L 8 4 L 0 8 z" fill="#59636e"/></marker></defs>',
        '<rect width="100%" height="100%" rx="8" fill="#ffffff"/>',
        *(draw_arrow(*pair) for pair in transitive_reduction(pairs)),
        *(line for name in BOXES for line in draw_box(name)),
        *legend(),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
