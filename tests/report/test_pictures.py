"""The report's figures: legends, the front, titles, and that each is a part of the page and of no other."""

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fairseq_imitkd.report import curves, probes, tables
from fairseq_imitkd.report.evaluations import read_evaluation
from fairseq_imitkd.report.pareto import front, pareto
from fairseq_imitkd.report.picture import Picture
from fairseq_imitkd.report.runs import read_run, read_runs
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


def test_titles_claim_nothing(tmp_path: Path) -> None:
    """The figures' numbers have no intervals of differences, so no title ranks models or runs."""
    assert [each.title for each in pictures(tmp_path, "")][:8] == [
        "Quality against speed",
        "BLEU by the length of the source",
        "Agreement with the teacher, after references' prefixes and own ones",
        "BLEU of translations that one model begins and another completes",
        "Agreement with the teacher after own prefixes, by position",
        "Validation BLEU",
        "Training loss",
        "Validation loss",
    ]


def test_small_groups_are_not_drawn(tmp_path: Path) -> None:
    """Two long sentences say nothing, and would flatten or lift a curve; their number stays in the table."""
    folder = report_files.evaluation(tmp_path / "ev")
    content = json.loads((folder / "evaluation.json").read_text())
    for model in content["models"].values():
        model["decoding"]["greedy"]["by_length"][2]["sentences"] = 2
    report_files.change(folder, models=content["models"])
    with figure_settings():
        picture = curves.by_length(read_evaluation(folder), styles(["m0", "m1", "m2"]))
    assert picture is not None
    assert "11 to 20 tokens" in picture.svg
    assert "21 or more tokens" not in picture.svg
    assert picture.table.header[-1] == "21 or more (2)"
    assert "Groups of fewer than 20 sentences are in the numbers alone." in picture.note


def test_positions_tell_how_many_tokens_they_have(tmp_path: Path) -> None:
    folder = report_files.evaluation(tmp_path / "ev")
    content = json.loads((folder / "evaluation.json").read_text())
    for number, model in enumerate(content["models"].values()):
        for group in (model.get("probes") or {}).get("by_position") or []:
            group["own"]["tokens"] = 400 + number
    report_files.change(folder, models=content["models"])
    with figure_settings():
        picture = curves.by_position(read_evaluation(folder), styles(["m0", "m1", "m2"]))
    assert picture is not None
    assert "up to 402" in picture.svg
    assert picture.table.header[1:] == ["tokens 1 to 5: up to 402", "tokens 6 or more: up to 402"]


def test_one_update_is_not_drawn(tmp_path: Path) -> None:
    """Its values are in the log."""
    run = read_run(report_files.run(tmp_path / "run"))
    looks = styles([run.name])
    with figure_settings():
        assert curves.rollouts([run], looks)
        run.training = lambda key: [(1, 0.5)]  # type: ignore[method-assign]
        assert curves.rollouts([run], looks) == []


def test_columns_of_the_probes_are_explained(tmp_path: Path) -> None:
    """Under their tables."""
    found = {each.title: each.table.notes for each in pictures(tmp_path, "")}
    agreement, mixed = (
        " ".join(found[title])
        for title in (
            "Agreement with the teacher, after references' prefixes and own ones",
            "BLEU of translations that one model begins and another completes",
        )
    )
    assert all(word in agreement for word in ("Agreement:", "KL(teacher || student)", "NLL:", "Own:"))
    assert "Student, then teacher: the first half is the student's" in mixed


def test_losses_that_cannot_be_compared_are_not_ranked(tmp_path: Path) -> None:
    """Legends of the same criterion are in the order of the curves' ends; else in the order given."""

    def legend(**changes: str) -> tuple[list[str], str]:
        made = []
        for seed, (name, own) in enumerate((("low", {}), ("high", changes))):
            found = {"divergence": "forward-kl", "teacher_path": None, "teacher_cache": "first", **own}
            criterion = {"_name": "imitkd", "divergence": found.pop("divergence"), "seed": seed}
            folder = report_files.run(tmp_path / "-".join(("runs", *changes)) / name, seed=5 * seed)
            report_files.write_config(folder, criterion=criterion, task=found)
            made.append(read_run(folder))
        looks = styles(["low", "high"])
        with figure_settings():
            picture = next(each for each in curves.training(made, looks) if each.title == "Training loss")
        names = re.findall(r">(low|high)<", picture.svg)
        return names, picture.note

    assert legend() == (["high", "low"], "")
    others = {"teacher_cache": "second", "teacher_weights": "1:2", "teacher_selection": "agreement"}
    for name, value in {"divergence": "reverse-kl", **others}.items():
        names, note = legend(**{name: value})
        assert names == ["low", "high"]
        assert "These runs compute different losses" in note


def test_a_run_that_goes_on_from_another_says_so(tmp_path: Path) -> None:
    """Its curve begins where the other's ended, and the table names both numbers of updates."""
    for name, start in (("first", None), ("second", "first"), ("third", "second"), ("lone", "elsewhere")):
        folder = report_files.run(tmp_path / name, updates=range(50, 501, 50))
        checkpoint = {
            "restore_file": f"/moved/{start}/checkpoint_last.pt" if start else "checkpoint_last.pt",
            "reset_optimizer": start is not None,
            "best_checkpoint_metric": "bleu",
            "maximize_best_checkpoint_metric": True,
        }
        report_files.write_config(folder, checkpoint=checkpoint)
    runs, _ = read_runs([tmp_path / name for name in ("first", "second", "third", "lone")])
    assert [(run.parent, run.before) for run in runs] == [
        (None, 0),
        ("first", 500),
        ("second", 1000),
        (None, 0),
    ]
    looks = styles([run.name for run in runs])
    rows = {row[0].text: row[4] for row in tables.runs(runs, looks).rows}
    assert {name: (cell.text, cell.aside) for name, cell in rows.items()} == {
        "first": ("500", ""),
        "second": ("500", "after 500 updates of first"),
        "third": ("500", "after 1,000 updates of second"),
        "lone": ("500", "from the weights of elsewhere"),
    }
    with figure_settings():
        bleu, *_ = curves.training(runs, looks)
    assert "1,500" in bleu.svg
    assert "Started after 500 updates of first: second." in bleu.note
    assert "Started from the weights of elsewhere, whose updates are not counted here: lone." in bleu.note


def test_a_run_goes_on_from_that_of_its_own_folder(tmp_path: Path) -> None:
    """Folders of the same name are told apart by those above them, wherever all have moved to."""

    def parents(starts: Mapping[str, str | Path]) -> dict[str, str | None]:
        for name in ("seed1/first", "seed2/first", "seed1/second", "seed2/second"):
            if name in starts:
                folder = report_files.run(tmp_path / name, updates=range(50, 501, 50))
                start = starts[name] and f"{starts[name]}/checkpoint_last.pt"
                report_files.write_config(folder, checkpoint={"finetune_from_model": start})
        runs, _ = read_runs([tmp_path / name for name in starts])
        return {str(run.source.parent.relative_to(tmp_path)): run.parent for run in runs}

    every = {f"seed{seed}/first": "" for seed in (1, 2)}
    for where in ("/moved", "runs", tmp_path):
        of_both = {f"seed{seed}/second": f"{where}/seed{seed}/first" for seed in (1, 2)}
        found = parents({**every, **of_both})
        assert [found[name] for name in of_both] == ["seed1/first", "seed2/first"]
    for start, few in (("/moved/first", every), (tmp_path / "seed1/first", {"seed2/first": ""})):
        assert parents({**few, "seed2/second": start})["seed2/second"] is None


@pytest.mark.parametrize(
    ("name", "updates"),
    [
        ("checkpoint_last.pt", 1000),
        ("checkpoint_best.pt", 1000),
        ("checkpoint_3_750.pt", 750),
        ("checkpoint3.pt", None),
    ],
)
def test_updates_of_a_checkpoint(name: str, updates: int | None, tmp_path: Path) -> None:
    assert read_run(report_files.run(tmp_path / "run")).updates_at(name) == updates


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
