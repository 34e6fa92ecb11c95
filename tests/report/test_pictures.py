"""The report's figures: where labels go, what is on the front, and that each is a part of the page and not of another."""

import dataclasses
import itertools
import random
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from fairseq_imitkd.report import curves, probes
from fairseq_imitkd.report.evaluations import read_evaluation
from fairseq_imitkd.report.logs import read_run
from fairseq_imitkd.report.pareto import front, pareto
from fairseq_imitkd.report.picture import Picture
from fairseq_imitkd.report.svg import (
    SIZE,
    Drawing,
    clean,
    distance,
    drawing,
    overlap,
    place,
    spread,
    styles,
    width_of,
)
from tests.helpers import report_files

HOSTILE = '$x_{ <script>alert(\'1\')</script> & "#010100" id="a"'


def test_the_front() -> None:
    """Nothing is at least as good in both; equals are both on it."""
    points = [(1.0, 9.0), (2.0, 8.0), (2.0, 7.0), (3.0, 8.5), (4.0, 1.0), (4.0, 1.0), (0.5, 9.0)]
    assert front(points) == [0, 3, 4, 5]
    assert front([(1.0, 1.0)]) == [0]


def test_labels_are_pushed_apart() -> None:
    """In order, in their room, no farther than needed."""
    draw = random.Random(1)
    for count in range(1, 20):
        wanted = [draw.choice([draw.uniform(0, 300), 150.0]) for _ in range(count)]
        places = spread(wanted, 14, 4, 296)
        assert min(places) >= 4 - 1e-9
        assert max(places) <= 296 + 1e-9
        ordered = [places[index] for index in sorted(range(count), key=lambda index: wanted[index])]
        assert all(b - a >= 14 - 1e-6 for a, b in itertools.pairwise(ordered))
    assert spread([10.0, 100.0], 14, 0, 200) == [10, 100]
    assert spread([100.0, 100.0], 14, 0, 200) == pytest.approx([93, 107])
    assert spread([50.0] * 30, 14, 0, 100)[-1] == pytest.approx(100)  # closer where there is no room
    assert spread([], 14, 0, 100) == []


def test_labels_overlap_nothing() -> None:
    """Neither each other nor the points, in a crowd; and the nearest place is taken where there is no crowd."""
    draw = random.Random(2)
    for _ in range(10):
        points = [(draw.uniform(80, 700), draw.uniform(80, 320)) for _ in range(10)]
        taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]
        boxes = place(points, [(90, 14)] * 10, taken, (50, 50, 820, 400))
        assert all(overlap(a, b) == 0 for a, b in itertools.combinations([*boxes, *taken[:0]], 2))
        assert all(overlap(a, b) == 0 for a in boxes for b in taken)
        assert all(box[0] >= 50 and box[1] >= 50 and box[2] <= 820 and box[3] <= 400 for box in boxes)
    assert place([(100, 100)], [(40, 14)], [], (0, 0, 300, 300)) == [(110, 93, 150, 107)]
    [box] = place([(100, 100)], [(40, 14)], [], (0, 0, 300, 300), others=[(160, 100)])
    assert distance((160, 100), box) > distance((100, 100), box) + 5


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
    evaluation.models = {
        **{
            f"{name}{model.name}": type(model)(**{**vars(model), "name": f"{name}{model.name}"})
            for model in evaluation.models.values()
        }
    }
    runs = [read_run(report_files.log(folder / f"m{number}", seed=number)) for number in range(2)]
    for run in runs:
        run.name = f"{name}{run.name}"
    looks = styles([*evaluation.models, *(run.name for run in runs)])
    with drawing():
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
    """Well-formed, in its colours and letters, with text that is text; ids are nobody else's; names are no markup."""
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
        "Every model is on the front: what is faster is worse",
        "From the shortest sources to the longest, m2 changes by \N{MINUS SIGN}14.0 BLEU and m0 by \N{MINUS SIGN}12.0",
        "From the references' prefixes to its own, m1 keeps most of its agreement with the teacher",
        "The teacher's first half changes each student by +1.0 BLEU",
        "On its own prefixes, m2 loses most agreement with the teacher at tokens 6 or more: \N{MINUS SIGN}4.0 points",
        "Validation BLEU is best for m1: 28.50 at update 1,000",
        "Training loss ends at 3.20 for m1, the lowest",
        "Validation loss ends at 1.40 for m1, the lowest",
    ]


def test_names_stand_where_curves_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The axis is as it stays when they are placed, also where all students gain and the line at zero is far below."""
    folder = report_files.evaluation(tmp_path / "ev")
    evaluation = read_evaluation(folder)
    evaluation.models = {
        name: dataclasses.replace(model, drift={(1, 5): (0.5, 0.6), (6, None): (0.5, 0.7)})
        for name, model in evaluation.models.items()
    }
    drawn = []
    stock = curves._label_ends

    def placed(figure: Drawing, *others: Any) -> None:
        drawn.append((figure, figure.axes.get_ylim()))
        stock(figure, *others)

    monkeypatch.setattr(curves, "_label_ends", placed)
    with drawing():
        picture = curves.by_position(evaluation, styles(list(evaluation.models)))
        [(figure, limits)] = drawn
        assert figure.axes.get_ylim() == limits
        assert limits[0] < 0 < 20 < limits[1]
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
    run = read_run(report_files.log(tmp_path / "run", rollouts=False))
    looks = styles(["a", "run"])
    with drawing():
        for make in (pareto, curves.by_length, curves.by_position, probes.agreement, probes.exposure):
            assert make(evaluation, looks) is None
        assert curves.rollouts([run], looks) == []
        assert len(curves.training([run], looks)) == 3


def test_names_in_figures() -> None:
    """One line, as long as there is room for, without what is not to be seen."""
    assert clean("a\u202e\n\tb\x00 c") == "a b c"
    assert clean("a" * 40, 10) == "a" * 9 + "…"
    with drawing():
        assert width_of("MMMM") > width_of("iiii") > 0
        assert width_of("漢字") >= 2 * SIZE
        assert width_of("$x$") > width_of("x")
