"""Figures of the exposure bias: how far students are from their teacher, and what that costs."""

from collections.abc import Mapping, Sequence

from matplotlib.ticker import MaxNLocator, NullLocator

from fairseq_imitkd.evaluate.schema import EXPOSURE
from fairseq_imitkd.report.evaluations import Evaluation
from fairseq_imitkd.report.picture import MIDDLE, STEPS, Picture, Styles
from fairseq_imitkd.report.svg import CARD, SIZE, SOFT, SvgFigure, clean, width_of
from fairseq_imitkd.report.tables import Cell, Table

SAME = "% of tokens for which student and teacher prefer the same"
KINDS = ("o", "D", "s", "^")  # markers, those in HOLLOW not filled
HOLLOW = ("D", "s")


def agreement(evaluation: Evaluation, styles: Styles) -> Picture | None:
    """Show how often students prefer the teacher's token, after references' prefixes and their own."""
    rows, cells = {}, []
    every = [model.probes for model in evaluation.models.values() if model.probes]
    has_nll = any(probes.nll_own is not None for probes in every)
    for name, model in evaluation.models.items():
        probes = model.probes
        if probes and probes.agreement_gold is not None and probes.agreement_own is not None:
            rows[name] = [100 * probes.agreement_gold, 100 * probes.agreement_own]
            found = [probes.kl_gold, probes.kl_own]
            found += [probes.nll_gold, probes.nll_own] if has_nll else []
            nats = ("" if value is None else f"{value:.3f}" for value in found)
            shares = (f"{share:.1f}%" for share in rows[name])
            cells.append([Cell(name), *map(Cell, shares), *map(Cell, nats)])
    if not rows:
        return None
    figure = _figure(rows, ["references' prefixes", "own prefixes"], styles, label=SAME)
    title = "Agreement with the teacher, after references' prefixes and own ones"
    notes = [
        "Agreement: share of tokens for which student and teacher find the same one the most probable. KL: "
        "KL(teacher || student), in nats per token."
        + " NLL: the teacher's negative log-likelihood of the text, in nats per token."
        * has_nll,
        "References: after the references' prefixes. Own: after the student's own, by greedy decoding.",
    ]
    kinds = ("agreement", "KL", "NLL")[: 2 + has_nll]
    header = ["student", *(f"{kind}, {text}" for kind in kinds for text in ("references", "own"))]
    return Picture(title, figure.svg(f"{title}."), Table(header, cells, notes=notes))


def exposure(evaluation: Evaluation, styles: Styles) -> Picture | None:
    """Show what a good or bad first half of a translation does to the second half."""
    found = {
        name: model.probes.exposure
        for name, model in evaluation.models.items()
        if model.probes and {*EXPOSURE} <= {*model.probes.exposure}
    }
    if not found:
        return None
    titles = ["student alone", "student, then teacher", "teacher, then student", "teacher alone"]
    rows = {name: [bleu[each] for each in EXPOSURE] for name, bleu in found.items()}
    label = "BLEU; one model writes the first half, another the second"
    figure = _figure(rows, titles, styles, label=label)
    title = "BLEU of translations that one model begins and another completes"
    cells = [[Cell(name), *(Cell(f"{value:.2f}") for value in values)] for name, values in rows.items()]
    note = (
        "Student, then teacher: the first half is the student's, and the teacher completes it. Teacher, then "
        "student: the other way round. All are on the same sentences."
    )
    return Picture(title, figure.svg(f"{title}."), Table(["student", *titles], cells, notes=[note]))


def _figure(
    rows: Mapping[str, Sequence[float]], titles: Sequence[str], styles: Styles, *, label: str
) -> SvgFigure:
    """Return a figure with a row of markers for each student, and the markers' titles above.

    Args:
        rows: values by student.
        titles: what each value is.
        styles: style of each student.
        label: label of the horizontal axis.
    """
    left = max(width_of(clean(name, 24)) for name in rows) + 16
    height = 30 * len(rows) + 92
    figure = SvgFigure(MIDDLE[0], height, left=left, right=18, top=44, bottom=40)
    axes = figure.axes
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
        figure.write(clean(name, 24), (left - 12, figure.at(0, row)[1]), ha="right")
    _write_titles(figure, titles)
    return figure


def _write_titles(figure: SvgFigure, titles: Sequence[str]) -> None:
    """Write each marker with its title, in one or two lines at the top."""
    x, y = 6.0, figure.height - 12.0
    for kind, title in zip(KINDS, titles, strict=False):
        width = width_of(title, SIZE - 0.5) + 30
        if x + width > figure.width:
            x, y = 6.0, y - 17
        figure.mark(
            (x + 5, y), marker=kind, markersize=7, markerfacecolor=CARD if kind in HOLLOW else SOFT,
            markeredgecolor=SOFT, markeredgewidth=1.4,
        )  # fmt: skip
        figure.write(title, (x + 15, y), colour=SOFT, size=SIZE - 0.5)
        x += width
