"""How far students are from their teacher, and what that costs: the exposure bias."""

from collections.abc import Mapping, Sequence

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from fairseq_imitkd.report.evaluations import EXPOSURE, Evaluation
from fairseq_imitkd.report.picture import MIDDLE, STEPS, Picture, Styles
from fairseq_imitkd.report.svg import CARD, SIZE, SOFT, Drawing, clean, width_of
from fairseq_imitkd.report.tables import Cell, Table, signed

SAME = "% of tokens for which student and teacher prefer the same"
KINDS = ("o", "D", "s", "^")  # markers, those in HOLLOW not filled
HOLLOW = ("D", "s")


def agreement(evaluation: Evaluation, styles: Styles) -> Picture | None:
    """How often students prefer the teacher's token, after the references' prefixes and after their own."""
    names = ("agreement_gold", "agreement_own", "kl_gold", "kl_own")
    found = {
        name: model.probes for name, model in evaluation.models.items() if {*names[:2]} <= {*model.probes}
    }
    if not found:
        return None
    rows = {name: [100 * probes[each] for each in names[:2]] for name, probes in found.items()}
    drawing = _rows(rows, ["references' prefixes", "own prefixes"], styles, SAME)
    losses = {name: gold - own for name, (gold, own) in rows.items()}
    least = min(losses, key=losses.__getitem__)
    title = (
        f"After its own prefixes, {least} agrees with the teacher {_points(-losses[least])}"
        if len(losses) == 1
        else f"From the references' prefixes to its own, {least} keeps most of its agreement with the teacher"
    )
    shown = {name: "{:.1%}" if name in names[:2] else "{:.3f}" for name in names}
    cells = [
        [Cell(student), *(Cell(shown[name].format(probes[name]) if name in probes else "") for name in names)]
        for student, probes in found.items()
    ]
    table = Table(["student", "agreement, references", "agreement, own", "KL, references", "KL, own"], cells)
    return Picture(title, drawing.svg(f"Agreement with the teacher. {title}."), table)


def _points(change: float) -> str:
    return f"{abs(change):.1f} points {'more' if change > 0 else 'less'} often"


def exposure(evaluation: Evaluation, styles: Styles) -> Picture | None:
    """What a good or bad beginning of a translation does to its end."""
    found = {
        name: model.probes for name, model in evaluation.models.items() if {*EXPOSURE} <= {*model.probes}
    }
    if not found:
        return None
    titles = ["student alone", "student, then teacher", "teacher, then student", "teacher alone"]
    rows = {name: [probes[each] for each in EXPOSURE] for name, probes in found.items()}
    drawing = _rows(rows, titles, styles, "BLEU; halves of translations, one's beginning and the other's end")
    gains = {name: probes["teacher_then_student"] - probes["student"] for name, probes in found.items()}
    least, most = min(gains, key=gains.__getitem__), max(gains, key=gains.__getitem__)
    if signed(gains[least]) == signed(gains[most]):
        who = most if len(gains) == 1 else "each student"
        title = f"The teacher's first half changes {who} by {signed(gains[most])} BLEU"
    else:
        title = f"The teacher's first half changes {most} by {signed(gains[most])} BLEU and {least} by {signed(gains[least])}"
    cells = [
        [Cell(name), *(Cell(f"{probes[each]:.2f}") for each in EXPOSURE)] for name, probes in found.items()
    ]
    return Picture(
        title, drawing.svg(f"BLEU of mixed translations. {title}."), Table(["student", *titles], cells)
    )


def _rows(rows: Mapping[str, Sequence[float]], titles: Sequence[str], styles: Styles, label: str) -> Drawing:
    """A row of markers for each student, each kind of them named above the first row."""
    left = max(width_of(clean(name, 24)) for name in rows) + 16
    height = 30 * len(rows) + 92
    drawing = Drawing(MIDDLE[0], height, left=left, right=18, top=44, bottom=40)
    axes = drawing.axes
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x")
    values = [value for each in rows.values() for value in each]
    pad = max((max(values) - min(values)) * 0.08, 0.2)
    axes.set_xlim(min(values) - pad, max(values) + pad)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
    axes.yaxis.set_major_locator(NullLocator())
    axes.set_xlabel(label)
    for row, (name, each) in enumerate(rows.items()):
        colour = styles[name].colour
        axes.plot([min(each), max(each)], [row, row], color=colour, linewidth=1.4, alpha=0.6)
        for kind, value in zip(KINDS, each, strict=False):
            axes.plot(
                value, row, marker=kind, markersize=8, markeredgewidth=1.6, markeredgecolor=colour,
                markerfacecolor=CARD if kind in HOLLOW else colour, linestyle="none",
            )  # fmt: skip
        drawing.write(clean(name, 24), left - 12, drawing.at(0, row)[1], ha="right")
    # The markers' names, in a line or two above.
    x, y = 6.0, height - 12.0
    for kind, title in zip(KINDS, titles, strict=False):
        width = width_of(title, SIZE - 0.5) + 30
        if x + width > drawing.width:
            x, y = 6.0, y - 17
        drawing.figure.add_artist(_marker(drawing, kind, x + 5, y))
        drawing.write(title, x + 15, y, SOFT, SIZE - 0.5)
        x += width
    return drawing


def _marker(drawing: Drawing, kind: str, x: float, y: float) -> Line2D:
    return Line2D(
        [x / drawing.width], [y / drawing.height], marker=kind, markersize=7, color=SOFT,
        markerfacecolor=CARD if kind in HOLLOW else SOFT, markeredgecolor=SOFT, markeredgewidth=1.4, linestyle="none",
        transform=drawing.figure.transFigure,
    )  # fmt: skip
