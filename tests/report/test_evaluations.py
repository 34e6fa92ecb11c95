"""What the report reads of evaluations, the examples it chooses, and what it says of them."""

import json
from pathlib import Path

import pytest

from fairseq_imitkd.evaluate.schema import FILE, LengthGroup
from fairseq_imitkd.report import tables
from fairseq_imitkd.report.evaluations import read_evaluation, read_evaluations
from fairseq_imitkd.report.examples import compared, examples
from fairseq_imitkd.report.page import summary
from fairseq_imitkd.report.svg import styles
from tests.helpers import report_files


def test_everything_of_an_evaluation(tmp_path: Path) -> None:
    """As the command writes it."""
    found = read_evaluation(report_files.evaluation(tmp_path))
    one = found.models["m1"]
    assert (found.baseline, found.teacher) == ("m1", "m0")
    assert found.data == "20 sentences of test from de to en"
    assert (one.parameters, one.bytes, one.peak_memory_bytes, one.batch) == (5_000_000, 20_000_000, None, 32)
    assert one.speed("greedy") == one.speeds[32]
    assert one.speed("beam 5") == one.searches["beam 5"].speed
    assert one.searches["greedy"].by_length[-1] == LengthGroup(21, None, 20, pytest.approx(32.8))
    assert found.signatures["BLEU"] == "nrefs:1|case:mixed|version:2.6.0"
    assert found.signatures["machine"] == "A fast one, 2 cores, 1 thread"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "must have format 1, but has None"),
        ('{"format": 2, "models": {}}', "must have format 1, but has 2"),
        ('{"format": 1}', "has no results of any model"),
        ('{"format": 1, "models": {"a": {"decoding": 3}, "b": null}}', "has no results of any model"),
    ],
)
def test_evaluations_that_cannot_be_shown(content: str, said: str, tmp_path: Path) -> None:
    """Are a line with the file's name, and the others are there."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / FILE).write_text(content)
    good = report_files.evaluation(tmp_path / "good")
    found, notes = read_evaluations([tmp_path / "bad", good, tmp_path / "gone", good])
    assert [each.path for each in found] == [good]
    remedy = "let imitkd-evaluate write it again"
    assert notes == [
        f"--evaluation '{tmp_path / 'bad' / FILE}' {said}; {remedy}",
        f"--evaluation '{tmp_path / 'gone' / FILE}' can't be read (No such file or directory); use "
        "imitkd-evaluate's --out",
        f"--evaluation '{good}' is given twice; it is shown once",
    ]


def test_missing_figures(tmp_path: Path) -> None:
    """Leave out what they are of, and nothing else."""
    folder = report_files.evaluation(tmp_path)
    odd = {
        "decoding": {
            "greedy": {
                "bleu": {"score": 20.0},
                "chrf": {"score": float("nan")},
                "ter": True,
                "by_length": [7, {}],
            }
        },
        "speed": {"1": None, "x": {}, "9" * 5000: {}},
        "parameters": "many",
        "bytes": 10**400,
    }
    report_files.change(
        folder, models={"odd": odd}, baseline=None, teacher="gone", signatures=None, machine=None, data=None
    )
    found = read_evaluation(folder)
    one = found.models["odd"]
    assert (found.baseline, found.teacher, found.data) == (None, None, "")
    assert list(one.searches["greedy"].scores) == ["bleu"]
    assert (one.speeds, one.parameters, one.bytes, one.searches["greedy"].by_length) == ({}, None, None, [])
    assert (summary(found), examples(found)) == (("", [], ""), [])
    table = tables.models(found, styles(["odd"]))
    assert table is not None
    assert table.header == ["model", "BLEU"]


@pytest.mark.parametrize("odd", [0, -1.0, 1e-300])
@pytest.mark.parametrize("place", ["median", "low", "high"])
def test_a_speed_is_more_than_zero(place: str, odd: float, tmp_path: Path) -> None:
    """Figures divide by it, and their axes have no zero."""
    folder = report_files.evaluation(tmp_path)
    content = json.loads((folder / FILE).read_text())
    for model in content["models"].values():
        for name in ("rounds", "times_baseline"):
            model["speed"]["32"][name] = {"count": 3, "median": 2.0, "low": 1.0, "high": 3.0, place: odd}
    (folder / FILE).write_text(json.dumps(content))
    found = read_evaluation(folder)
    speed = found.models["m2"].speeds[32]
    assert (speed.rounds, speed.times_baseline, speed.rate) == (None, None, speed.sentences_per_second)
    assert not any("speed" in fact.what for fact in summary(found)[1])


def test_files_outside_are_not_read(tmp_path: Path) -> None:
    """Whatever an evaluation says."""
    (tmp_path / "secret.txt").write_text("secret\n" * 20)
    folder = report_files.evaluation(tmp_path / "ev")
    content = json.loads((folder / FILE).read_text())
    content["models"]["m0"]["decoding"]["greedy"]["outputs"] = "\ud800\0"
    content["models"]["m1"]["decoding"]["greedy"]["outputs"] = "../secret.txt"
    content["files"]["sources"] = str(tmp_path / "secret.txt")
    (folder / FILE).write_text(json.dumps(content))
    shown = examples(read_evaluation(folder))
    assert shown
    assert all(not one.source and {output.name for output in one.outputs} == {"m2"} for one in shown)


def write(folder: Path, **texts: list[str]) -> None:
    for name, lines in texts.items():
        (folder / f"{name.replace('_', '.')}.txt").write_text("".join(f"{line}\n" for line in lines))


def test_the_worst_regressions_come_first(tmp_path: Path) -> None:
    """By what a student loses against the baseline; neither the teacher nor an equal sentence counts."""
    folder = report_files.evaluation(tmp_path, sentences=4)
    references = ["one two three four"] * 4
    write(folder, sources=list("abcd"), references=references, m0_greedy=["x"] * 4, m1_greedy=references,
          m2_greedy=["one two three four", "one two three", "", "one two"])  # fmt: skip
    found = read_evaluation(folder)
    shown = examples(found)
    assert [(one.number, one.source, one.worst) for one in shown] == [
        (2, "c", "m2"),
        (3, "d", "m2"),
        (1, "b", "m2"),
    ]
    assert shown[0].drop == pytest.approx(100)
    assert [one.number for one in examples(found, count=1)] == [2]
    report_files.change(folder, baseline=None)
    shown = examples(read_evaluation(folder))
    assert (shown[0].number, shown[0].drop, shown[0].chrf) == (2, None, 0.0)


def test_outputs_that_do_not_fit(tmp_path: Path) -> None:
    """Are a note that names the file."""
    folder = report_files.evaluation(tmp_path)
    write(folder, m2_greedy=["too short"])
    (folder / "m0.greedy.txt").unlink()
    found = read_evaluation(folder)
    assert {output.name for one in examples(found) for output in one.outputs} == {"m1"}
    assert found.notes == [
        f"'{folder / 'm0.greedy.txt'}' can't be read (No such file or directory), so there are no "
        "examples of it",
        f"'{folder / 'm2.greedy.txt'}' has 1 lines, but there are 20 references, so there are no examples "
        "of it",
    ]


def test_words_that_differ() -> None:
    """What is missing stands before what is there instead."""
    assert compared("a small brown dog runs", "a brown cat runs fast") == [
        ("both", "a"),
        ("missing", "small"),
        ("both", "brown"),
        ("missing", "dog"),
        ("extra", "cat"),
        ("both", "runs"),
        ("extra", "fast"),
    ]
    assert compared("a b", "") == [("missing", "a b")]
    assert compared("", "") == []
    assert compared("a", "b " * 1000)[-1][1].split() == ["b"] * 150 + ["…"]


def test_a_teacher_that_is_no_name(tmp_path: Path) -> None:
    """Is none; the rest is summed up."""
    folder = report_files.evaluation(tmp_path)
    report_files.change(folder, teacher={"name": "m0"})
    assert summary(read_evaluation(folder))[0] == "m0 beside m1"


def test_the_table_of_models(tmp_path: Path) -> None:
    """The best of each column is marked, what is lower where lower is better; columns without a figure are
    not there.
    """
    table = tables.models(read_evaluation(report_files.evaluation(tmp_path)), styles(["m0", "m1", "m2"]))
    assert table is not None
    assert table.header == [
        "model",
        "decoding",
        "BLEU",
        "p",
        "chrF",
        "TER",
        "sentences/s",
        "\N{MULTIPLICATION SIGN} m1",
        "ms",
        "parameters",
        "MB",
    ]
    best = {
        title: {(row[0].text, row[1].text) for row in table.rows if row[place].best}
        for place, title in enumerate(table.header)
    }
    both = {("m0", "greedy"), ("m0", "beam 5")}
    quick = {("m2", "greedy")}
    assert best == {
        "model": set(),
        "decoding": set(),
        "BLEU": {("m0", "beam 5")},
        "p": set(),
        "chrF": both,
        "TER": both,
        "sentences/s": quick,
        "\N{MULTIPLICATION SIGN} m1": quick,
        "ms": quick,
        "parameters": quick,
        "MB": quick,
    }
    assert table.rows[0][2].aside == "36.5 to 39.5"


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (
            {"p": 0.02, "difference_low": -0.4, "difference_high": -0.1},
            "m2 is worse than m1 by 0.2 BLEU (95% interval 0.1 to 0.4, p = 0.020)",
        ),
        ({"p": 0.0004}, "m2 is worse than m1 (p < 0.001)"),
        ({"p": 0.2}, "m2 and m1 differ by no more than chance explains (p = 0.200)"),
        ({"p": None}, "m2 beside m1"),
    ],
)
def test_the_summary(known: dict[str, float | None], said: str, tmp_path: Path) -> None:
    """A measured number has its interval or is not there, and no difference that may be chance is named."""
    folder = report_files.evaluation(tmp_path)
    content = json.loads((folder / FILE).read_text())
    content["models"]["m2"]["decoding"]["greedy"]["bleu"].update(known)
    content["models"]["m2"]["weight_bytes"] = 4_000_000
    content["models"]["m0"]["speed"]["32"]["times_baseline"] = {"median": 1.8, "low": 1.6, "high": 2.0}
    (folder / FILE).write_text(json.dumps(content))
    teacher = content["models"]["m0"]
    teacher_score = teacher["decoding"]["greedy"]["bleu"]["score"]
    headline, facts, chosen = summary(read_evaluation(folder))
    assert (headline, chosen) == (said, "")
    assert [(fact.number, fact.what, fact.between) for fact in facts] == [
        ("37.6", f"BLEU of m2 (m0: {teacher_score:.1f})", "95% interval 36.1 to 39.1"),
        ("2.0\N{MULTIPLICATION SIGN}", "the speed of m0", "quartiles 1.6 to 2.5"),
        ("10%", "of m0's megabytes", ""),
    ]
    for model in content["models"].values():
        del model["decoding"]["greedy"]["bleu"]["low"], model["speed"]["32"]["times_baseline"]["low"]
    content["models"]["m3"] = content["models"]["m2"]
    (folder / FILE).write_text(json.dumps(content))
    _, facts, chosen = summary(read_evaluation(folder))
    assert [fact.what for fact in facts] == ["of m0's megabytes"]
    assert "m2 is named because it has the highest BLEU of the 2 models beside m1 and m0." in chosen


def test_a_speed_is_that_of_the_baseline_if_the_teacher_has_none(tmp_path: Path) -> None:
    folder = report_files.evaluation(tmp_path)
    content = json.loads((folder / FILE).read_text())
    del content["models"]["m0"]["speed"]
    (folder / FILE).write_text(json.dumps(content))
    _, facts, _ = summary(read_evaluation(folder))
    assert [fact.what for fact in facts if "speed" in fact.what] == ["the speed of m1"]


def test_a_difference_that_is_rounded_to_zero_is_none(tmp_path: Path) -> None:
    """However sure it is."""
    folder = report_files.evaluation(tmp_path)
    content = json.loads((folder / FILE).read_text())
    own, base = (content["models"][name]["decoding"]["greedy"]["bleu"] for name in ("m2", "m1"))
    own.update(score=base["score"] - 0.04, p=0.02, difference_low=-0.05, difference_high=-0.01)
    (folder / FILE).write_text(json.dumps(content))
    assert summary(read_evaluation(folder))[0] == "m2 is as good as m1, to a tenth of a BLEU point"


def test_models_to_serve_come_first(tmp_path: Path) -> None:
    """Exported students with all their searches; without any, the students without the teacher."""
    folder = report_files.evaluation(tmp_path)
    looks = styles(["m0", "m1", "m2"])
    table = tables.served(read_evaluation(folder), looks)
    assert table is not None
    assert [row[0].text for row in table.rows] == ["m1", "m2"]
    content = json.loads((folder / FILE).read_text())
    content["models"]["m2"] |= {"kind": "ctranslate2", "quantization": "int8"}
    rounds = {"count": 9, "median": 250.0, "low": 200.0, "high": 300.0}
    content["models"]["m2"]["speed"]["32"]["rounds"] = rounds
    (folder / FILE).write_text(json.dumps(content))
    table = tables.served(read_evaluation(folder), looks)
    assert table is not None
    assert table.header == ["exported student", "BLEU", "sentences/s", "MB"]
    assert [(row[0].text, row[0].aside) for row in table.rows] == [("m2", "greedy"), ("m2", "beam 5")]
    assert (table.rows[0][2].text, table.rows[0][2].aside) == ("250", "200 to 300")  # of the same kind


def test_sizes_are_those_of_weights(tmp_path: Path) -> None:
    """A checkpoint's optimiser state is not needed to translate."""
    folder = report_files.evaluation(tmp_path)
    content = json.loads((folder / FILE).read_text())
    content["models"]["m0"] |= {"bytes": 78_000_000, "weight_bytes": 26_000_000}
    (folder / FILE).write_text(json.dumps(content))
    table = tables.models(read_evaluation(folder), styles(["m0", "m1", "m2"]))
    assert table is not None
    assert table.rows[0][table.header.index("MB")].text == "26.0"
    assert any("without the optimiser's state" in note for note in table.notes)
