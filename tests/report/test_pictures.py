"""The report's figures: legends, the front, titles, and that each is a part of the page and of no other."""

import itertools
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fairseq_imitkd.evaluate.schema import PositionGroup, ProbeResults, TeacherDistance
from fairseq_imitkd.report import curves, probes
from fairseq_imitkd.report.evaluations import read_evaluation
from fairseq_imitkd.report.pareto import front, pareto
from fairseq_imitkd.report.picture import Picture
from fairseq_imitkd.report.runs import read_run
from fairseq_imitkd.report.svg import LEGEND_LINE, SIZE, clean, figure_settings, styles, width_of
from tests.helpers import report_files

HOSTILE = '$x_{ <script>alert(\'1\')</script> & "#010100" id="a"'


def test_the_front() -> None:
    """Nothing is at least as good in both; equals are both on it."""
    points = [(1.0, 9.0), (2.0, 8.0), (2.0, 7.0), (3.0, 8.5), (4.0, 1.0), (4.0, 1.0), (0.5, 9.0)]
    assert front(points) == [0, 3, 4, 5]
    assert front([(1.0, 1.0)]) == [0]


@pytest.mark.parametrize("count", [1, 3, 8, 40])
def test_legends_have_room(count: int, tmp_path: Path) -> None:
    """Every name is inside its figure, below the one before; the figure grows with their number."""
    names = [f"{'long name ' * 3}{number}" for number in range(count)]
    lines = [
        curves.Curve(name, [(0, float(-number)), (10, float(number))]) for number, name in enumerate(names)
    ]
    with figure_settings():
        figure = curves._figure(lines, styles(names), size=(340.0, 200.0), markers=False)
        svg = figure.svg("x")
        _, _, right, top = figure.axes.get_window_extent().extents
    # matplotlib's places count from the upper left corner.
    texts = [each for each in ElementTree.fromstring(svg).iter() if (each.text or "").startswith("long name")]
    xs, ys = ([float(each.get(axis, "nan")) for each in texts] for axis in "xy")
    assert len(ys) == count
    assert all(b - a == pytest.approx(LEGEND_LINE, abs=1.5) for a, b in itertools.pairwise(ys))
    assert min(xs) > right
    assert figure.height - top <= min(ys)
    assert max(ys) <= figure.height
    assert max(xs) + max(width_of(curves._text(line, count)) for line in lines) <= figure.width


def test_legends_are_in_the_order_of_the_ends() -> None:
    """From the highest curve to the lowest."""
    lines = [
        curves.Curve(name, [(0, 1.0), (10, value)])
        for name, value in (("low", 1.0), ("high", 3.0), ("mid", 2.0))
    ]
    with figure_settings():
        figure = curves._figure(lines, styles(["low", "high", "mid"]), size=(340.0, 200.0), markers=False)
        legend = figure.axes.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["high", "mid", "low"]


def test_thinning_keeps_ends_and_means() -> None:
    """Of ever so many points there are few."""
    points = [(update, float(update % 2)) for update in range(1, 5002)]
    found = curves.thinned(points)
    assert len(found) <= curves.POINTS
    assert (found[0][0], found[-1][0]) == (1, 5001)
    assert all(abs(value - 0.5) < 0.05 for _, value in found[:-1])
    assert curves.thinned(points[:3]) == points[:3]


def test_every_name_looks_different() -> None:
    """Up to 32 of them, without colours too: dashes and markers together tell at least as many apart."""
    looks = styles([f"m{number}" for number in range(32)])
    assert len({(look.colour, look.dashes) for look in looks.values()}) == 32
    assert len({(look.marker, look.dashes) for look in looks.values()}) == 32
    assert len({look.shape for look in looks.values()}) == 8


def pictures(folder: Path, name: str) -> list[Picture]:
    evaluation = read_evaluation(report_files.evaluation(folder / "ev", 3))
    evaluation.results.models = {f"{name}{each}": model for each, model in evaluation.models.items()}
    runs = [read_run(report_files.run(folder / f"m{number}", seed=number)) for number in range(2)]
    for run in runs:
        run.name = f"{name}{run.name}"
    looks = styles([*evaluation.models, *(run.name for run in runs)])
    with figure_settings():
        made = [pareto(evaluation, looks), curves.by_length(evaluation, looks)]
        made += [
            probes.agreement(evaluation, looks),
            probes.exposure(evaluation, looks),
            curves.by_position(evaluation, looks),
        ]
        return [
            *(each for each in made if each),
            *curves.training(runs, looks),
            *curves.rollouts(runs, looks),
        ]


def test_figures_are_parts_of_a_page(tmp_path: Path) -> None:
    """Well-formed, in its colours and letters, with text that is text; ids are nobody else's; names are no
    markup.
    """
    made = pictures(tmp_path, HOSTILE)
    assert len(made) == 5 + 3 + 10
    ids: set[str] = set()
    for each in made:
        tree = ElementTree.fromstring(each.svg)
        texts = ["".join(node.itertext()) for node in tree.iter() if node.tag.endswith("text")]
        assert any(HOSTILE[:10] in text for text in texts), texts
        markup = re.sub(r' aria-label="[^"]*"', "", re.sub(r">[^<]*<", "><", each.svg))
        assert not re.search(r"#010[12]|DejaVu|<script|<metadata", markup)
        assert "var(--series-" in each.svg
        own = set(re.findall(r'<[^>]* id="([^"]+)"', re.sub(r">[^<]*<", "><", each.svg)))
        assert not own & ids
        ids |= own
        assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', each.svg)) == own
        assert each.table.rows
        assert tree.get("role") == "img"
        assert tree.get("aria-label")


def test_figures_are_the_same_again(tmp_path: Path) -> None:
    """A report made twice is the same file."""
    one, two = (pictures(tmp_path / folder, "") for folder in ("a", "b"))
    assert [each.svg for each in one] == [each.svg for each in two]


def test_titles_say_what_is_seen(tmp_path: Path) -> None:
    """Not only what is drawn."""
    assert [each.title for each in pictures(tmp_path, "")][:8] == [
        "All models are on the front: the faster, the worse",
        "From the shortest sources to the longest, m2 changes by \N{MINUS SIGN}14.0 BLEU and m0 by "
        "\N{MINUS SIGN}12.0",
        "From the references' prefixes to its own, m1 keeps most of its agreement with the teacher",
        "The teacher's first half changes each student by +1.0 BLEU",
        "On its own prefixes, m2 loses most agreement with the teacher at tokens 6 or more: "
        "\N{MINUS SIGN}4.0 points",
        "Validation BLEU is best for m1: 28.50 at update 1,000",
        "Training loss ends at 3.20 for m1, the lowest",
        "Validation loss ends at 1.40 for m1, the lowest",
    ]


def test_gains_only(tmp_path: Path) -> None:
    """Where all students gain, the title says so, and the line at zero is in the figure."""
    evaluation = read_evaluation(report_files.evaluation(tmp_path / "ev"))
    half, more, most = (TeacherDistance(agreement=share) for share in (0.5, 0.6, 0.7))
    groups = [PositionGroup(1, 5, half, more), PositionGroup(6, None, half, most)]
    for model in evaluation.models.values():
        model.probes = ProbeResults(by_position=groups)
    with figure_settings():
        picture = curves.by_position(evaluation, styles(list(evaluation.models)))
    assert picture is not None
    assert (
        picture.title
        == "On its own prefixes, m0 gains least agreement with the teacher at tokens 6 or more: +20.0 points"
    )


def test_no_figure_of_nothing(tmp_path: Path) -> None:
    """A run without the plugin's figures, a model without speed, length or probes."""
    folder = report_files.evaluation(tmp_path / "ev")
    report_files.change(folder, models={"a": {"decoding": {"greedy": {"bleu": {"score": 20.0}}}}})
    evaluation = read_evaluation(folder)
    run = read_run(report_files.run(tmp_path / "run", rollouts=False))
    looks = styles(["a", "run"])
    with figure_settings():
        for make in (pareto, curves.by_length, curves.by_position, probes.agreement, probes.exposure):
            assert make(evaluation, looks) is None
        assert curves.rollouts([run], looks) == []
        assert len(curves.training([run], looks)) == 3


def test_names_in_figures() -> None:
    """One line, as long as there is room for, without what is not to be seen."""
    assert clean("a\u202e\n\tb\x00 c") == "a b c"
    assert clean("a" * 40, 10) == "a" * 9 + "…"
    with figure_settings():
        assert width_of("MMMM") > width_of("iiii") > 0
        assert width_of("漢字") >= 2 * SIZE
        assert width_of("$x$") > width_of("x")
