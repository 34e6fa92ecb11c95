"""Tests of evidence.py: which trainings its queue begins, kills and resumes, and the table of its rows."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import sacrebleu

from fairseq_imitkd.text.scores import CorpusScores
from tests.helpers import scripts
from tests.helpers.scripts import EXAMPLES

NAMES = ("error_rates", "evidence", "evidence_rows", "evidence_scores", "evidence_tables", "tables")
PLAN = """
[environment]
GREETING = "hello"
[rows.teacher]
script = "teacher.sh"
[rows.seqkd]
script = "train.sh seqkd"
rates = ["4e-3", "2e-3"]
[rows.then_imitkd]
start = "seqkd"
script = "train.sh seqkd_imitkd"
rates = ["1e-3"]
[[queue]]
rows = ["teacher"]
[[queue]]
rows = ["seqkd"]
rates = 2
[[queue]]
rows = ["then_imitkd"]
rates = 1
[[queue]]
rows = ["seqkd", "then_imitkd"]
seeds = [2]
"""
# The script of every row notes its call, and fails for the row that `fails` names.
SCRIPT = """set -e
name=$AS; [ "$SEED" = 1 ] || name=$name-seed$SEED
echo "$name START=$START${TEACHER:+ TEACHER=$TEACHER}${STUDENT:+ STUDENT=$STUDENT} $*" >>"$RUN/calls"
[ "$GREETING $OMP_NUM_THREADS $OTHER_FLAGS" = "hello 1 refuse" ]
[ ! -e "$RUN/sleeps" ] || sleep 60
[ "$name" != "$(cat "$RUN/fails" 2>/dev/null)" ]
"""


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The scripts, imported until the test ends."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    before = set(sys.modules)
    yield {name: __import__(name) for name in NAMES}
    for name in set(sys.modules) - before:
        if str(EXAMPLES) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe whose trainings only note that they were called."""
    folder = tmp_path / "recipe"
    folder.mkdir()
    (folder / "evidence.toml").write_text(PLAN)
    for name, text in {"train": SCRIPT, "teacher": SCRIPT, "prepare": "", "decode": ""}.items():
        (folder / f"{name}.sh").write_text(f"#!/usr/bin/env bash\n{text}")
        (folder / f"{name}.sh").chmod(0o755)
    return folder


def made(name: str, errors: list[float], **more: Any) -> dict[str, Any]:
    """Return a row with a validation every 500 updates and 60 CPU seconds."""
    row, _, seed = name.partition("-seed")
    row, _, rate = row.partition("_lr")
    updates = 500 * (errors.index(min(errors)) + 1) if errors else 500
    return {
        "name": name,
        "row": row,
        "seed": int(seed or 1),
        "rate": rate or None,
        "start": None,
        "before": {"teacher": 6000.0, "data_seqkd": 120.0},
        "cpu_seconds": 60.0 * len(errors),
        "patience": 2,
        "parameters": 1234,
        "max_update": 9000,
        "training": {"commits": ["abc"], "threads": ["1"], "updates": updates},
        "test": {"word_errors": 10.0, "phoneme_errors": 2.0},
        "origin": {"versions": {"torch": "2"}, "machine": {"processor": "a processor"}},
        "validations": [
            {"updates": 500 * n, "cpu_seconds": 60.0 * n, "exact": 100 - each}
            for n, each in enumerate(errors, 1)
        ],
        **more,
    }


def test_only_earlier_jobs_choose_rates_and_starts(modules: dict[str, ModuleType], recipe: Path) -> None:
    plan = modules["evidence"].Plan(recipe / "evidence.toml")
    assert [tuple(job) for job in plan.jobs] == [
        ("teacher", 1, None),
        ("seqkd", 1, "4e-3"),
        ("seqkd", 1, "2e-3"),
        ("then_imitkd", 1, "1e-3"),
        ("seqkd", 2, None),
        ("then_imitkd", 2, None),
    ]

    def ready(finished: dict[str, Any]) -> list[str | None]:
        found = [plan.training(job, finished) for job in plan.jobs]
        return [training and training.name for training in found]

    assert ready({}) == ["teacher", None, None, None, None, None]
    done = {"teacher": made("teacher", [9.0])}
    assert ready(done)[1:] == ["seqkd_lr4e-3", "seqkd_lr2e-3", None, None, None]
    done["seqkd_lr4e-3"] = made("seqkd_lr4e-3", [20.0, 11.0, 12.0])
    assert ready(done)[3:] == [None, None, None]  # the other rate may be better
    done["seqkd_lr2e-3"] = made("seqkd_lr2e-3", [20.0, 10.0, 13.0])
    assert ready(done)[3:] == ["then_imitkd_lr1e-3", "seqkd_lr2e-3-seed2", None]
    done["then_imitkd_lr1e-3"] = made("then_imitkd_lr1e-3", [9.0])
    done["seqkd_lr2e-3-seed2"] = made("seqkd_lr2e-3-seed2", [9.0])
    last = plan.training(plan.jobs[-1], done)
    assert (last.name, last.start) == ("then_imitkd_lr1e-3-seed2", "seqkd_lr2e-3-seed2")
    (recipe / "evidence.toml").write_text('measure = "ter"' + PLAN)
    with pytest.raises(
        SystemExit, match="measure must be one of word_errors, bleu, every-bleu, rouge-l, but is 'ter'"
    ):
        modules["evidence"].Plan(recipe / "evidence.toml")
    (recipe / "evidence.toml").write_text(PLAN.replace("rates = 2", "rates = 3"))
    with pytest.raises(SystemExit, match="rates of seqkd must be at most 2"):
        modules["evidence"].Plan(recipe / "evidence.toml")


def test_an_assistant_is_trained_first_and_teaches_every_seed(
    modules: dict[str, ModuleType], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best student of the assistant's row with seed 1 is the teacher; its cost is part of the history."""
    assisted = """
[rows.assistant]
script = "train.sh seqkd"
student = "wide"
rates = ["7e-3"]
[rows.then_assistant]
start = "seqkd"
teacher = "assistant"
script = "train.sh seqkd_imitkd"
[[queue]]
rows = ["assistant"]
rates = 1
[[queue]]
rows = ["then_assistant"]
seeds = [1, 2]
"""
    (recipe / "evidence.toml").write_text(PLAN + assisted)
    evidence, run, recorded = modules["evidence"], recipe / "run", {}

    def record(run: Path, name: str, **known: Any) -> dict[str, Any]:
        recorded[name] = known
        return made(name, [9.0])

    monkeypatch.setattr(evidence, "WAIT", 0.01)
    monkeypatch.setattr(modules["evidence_rows"], "record", record)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    queue = evidence.Queue(evidence.Plan(recipe / "evidence.toml"), recipe, run)
    queue.work(workers=1)
    os.close(queue.lock)
    assert (run / "calls").read_text().splitlines()[-3:] == [
        "assistant_lr7e-3 START= STUDENT=wide seqkd --lr 7e-3",
        "then_assistant START=seqkd_lr4e-3 TEACHER=assistant_lr7e-3 seqkd_imitkd",
        "then_assistant-seed2 START=seqkd_lr4e-3-seed2 TEACHER=assistant_lr7e-3 seqkd_imitkd",
    ]
    assert recorded["then_assistant-seed2"]["needs"] == [
        "teacher",
        "data_seqkd",
        "seqkd_lr4e-3-seed2",
        "assistant_lr7e-3",
    ]
    before = modules["evidence_rows"].before(run, ["seqkd_lr4e-3", "assistant_lr7e-3"])
    assert before == {
        "teacher": 6000.0,
        "data_seqkd": 120.0,
        "seqkd_lr4e-3": 60.0,
        "assistant_lr7e-3": 60.0,
    }


def test_the_queue_goes_on_after_failures(
    modules: dict[str, ModuleType], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed training costs only those that need it, and is repeated by the next call."""
    evidence, run = modules["evidence"], recipe / "run"
    monkeypatch.setattr(evidence, "WAIT", 0.01)
    monkeypatch.setattr(modules["evidence_rows"], "record", lambda run, name, **_: made(name, [9.0]))

    def work(**more: Any) -> list[str]:
        before = (run / "calls").read_text().splitlines() if (run / "calls").exists() else []
        queue = evidence.Queue(evidence.Plan(recipe / "evidence.toml"), recipe, run)
        queue.work(**more)
        os.close(queue.lock)
        return (run / "calls").read_text().splitlines()[len(before) :]

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    run.mkdir()
    (run / "fails").write_text("seqkd_lr2e-3")
    assert work(workers=1, most=1) == ["teacher START= "]
    assert work(workers=2) == [
        "seqkd_lr4e-3 START= seqkd --lr 4e-3",
        "seqkd_lr2e-3 START= seqkd --lr 2e-3",
    ]
    assert "seqkd_lr2e-3: failed with status 1" in (run / "evidence.log").read_text()
    (run / "fails").unlink()
    assert work(workers=1) == [
        "seqkd_lr2e-3 START= seqkd --lr 2e-3",
        "then_imitkd_lr1e-3 START=seqkd_lr4e-3 seqkd_imitkd --lr 1e-3",
        "seqkd_lr4e-3-seed2 START= seqkd --lr 4e-3",
        "then_imitkd_lr1e-3-seed2 START=seqkd_lr4e-3-seed2 seqkd_imitkd --lr 1e-3",
    ]
    assert len(list((run / "rows").glob("*.json"))) == 6
    shown = evidence.status(evidence.Plan(recipe / "evidence.toml"), run)
    assert len(shown) == 6
    assert all("validation word errors 9.00%" in line for line in shown)


def test_a_training_that_a_kill_left_is_not_begun_twice(recipe: Path) -> None:
    run = recipe / "run"
    run.mkdir()
    (run / "sleeps").touch()
    command = [sys.executable, str(EXAMPLES / "evidence.py"), "run", str(recipe)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while not (run / "calls").exists():
            assert first.poll() is None
            time.sleep(0.1)
        first.kill()
        first.wait()
        second = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert second.returncode == 1
        assert "is in use by another call or a training that it left" in second.stderr
    finally:
        # The trainings are in process groups of their own, but in the session of the first call.
        listed = subprocess.run(["ps", "-o", "pid=", "-s", str(first.pid)], capture_output=True, text=True)
        for number in listed.stdout.split():
            os.kill(int(number), signal.SIGKILL)


def test_error_rates_with_several_right_answers(modules: dict[str, ModuleType]) -> None:
    found = modules["error_rates"].errors(
        ["A B C", "A C", "", "A B"], [["A B C"], ["A B C D", "A B C"], ["A"], ["B", "A B"]]
    )
    assert found.right == [True, False, False, True]
    assert found.words == 50.0
    assert found.phonemes == pytest.approx(100 * 2 / (3 + 3 + 1 + 2))


def test_right_words_are_packed(modules: dict[str, ModuleType]) -> None:
    right = [True, False, False, True, True, True, False, False, True]
    assert modules["error_rates"].packed(right) == "9c80"
    assert modules["error_rates"].unpacked("9c80", 9).tolist() == right


def test_chance_of_a_difference(modules: dict[str, ModuleType]) -> None:
    """A resample has the same words in each seed, so two seeds with the same errors say no more than one."""
    chance = modules["error_rates"].chance
    draw = np.random.default_rng(1)
    one, other = (draw.random((1, 2000)) < 0.8).astype(int), (draw.random((1, 2000)) < 0.77).astype(int)
    difference, (low, high), p = chance(one, other)
    assert difference == pytest.approx(100 * (one.mean() - other.mean()))
    error = 100 * (one - other).std() / 2000**0.5
    assert (low, high) == pytest.approx((difference - 1.96 * error, difference + 1.96 * error), abs=0.1)
    assert 0.001 < p < 0.2
    assert chance(np.repeat(one, 2, axis=0), np.repeat(other, 2, axis=0)) == (difference, (low, high), p)
    assert chance(one, one)[2] == 1.0
    assert chance(one, np.zeros_like(one))[2] < 0.001


def test_the_table_and_the_figure(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    packed = modules["error_rates"].packed
    words = 1000

    def test_set(wrong: int) -> dict[str, Any]:
        right = [n >= wrong for n in range(words)]
        return {
            "word_errors": 100 * wrong / words,
            "phoneme_errors": 1.0,
            "words": words,
            "right": packed(right),
        }

    base = "seqkd_lr4e-3"
    then = {"start": base, "before": {"teacher": 6000.0, "data_seqkd": 120.0, base: 180.0}}
    rows = [
        made("teacher", [30.0, 20.0], before={}, max_update=1000, test=test_set(190), parameters=3702),
        made(base, [50.0, 30.0, 31.0], test=test_set(300)),
        made("seqkd_lr2e-3", [50.0, 32.0, 33.0], test=test_set(310)),
        made("then_seqkd_lr1e-3", [31.0, 29.0, 30.0], **then, test=test_set(290)),
        made("then_imitkd_lr1e-3", [28.0, 25.0, 26.0], **then, test=test_set(250)),
        made("then_imitkd_lr1e-3-seed2", [29.0, 24.0, 27.0], **then, test=test_set(240)),
        made("assistant_lr2e-3", [40.0, 28.0], test=test_set(280)),
        made("assistant_then_seqkd_lr5e-4", [27.0], start="assistant_lr2e-3", test=test_set(270)),
        made("assistant_then_imitkd_lr5e-4", [26.0], start="assistant_lr2e-3", test=test_set(230)),
        # It goes on from another student than the control.
        made("then_word_kd_lr1e-3", [28.0], start="seqkd_lr2e-3", before={}, test=test_set(200)),
    ]
    for each in rows:
        (tmp_path / f"{each['name']}.json").write_text(json.dumps(each))
    shown = modules["evidence_tables"].table(modules["evidence_tables"].read(tmp_path))
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in shown.splitlines()
        if line.startswith("| `")
    }
    students = ["seqkd", "assistant", *(f"then_{row}" for row in ("seqkd", "word_kd", "imitkd"))]
    students += ["assistant_then_seqkd", "assistant_then_imitkd"]
    assert list(cells) == [f"`{row}`" for row in ("teacher", *students)]
    assert cells["`assistant`"][4].startswith("-2.00 (")  # from seqkd
    assert cells["`assistant_then_seqkd`"][4:6] == ["", ""]
    assert cells["`assistant_then_imitkd`"][4].startswith("-4.00 (")  # from assistant_then_seqkd
    assert "from `then_seqkd`, and from the larger one (`assistant_then_…`) from `assistant_then" in shown
    assert cells["`then_word_kd`"][4:7] == ["", "", ""]
    assert cells["`seqkd`"] == ["1,234", "4e-3", "30.00", "1.00", "", "", "", "1,000", "3", "5"]
    assert cells["`then_imitkd`"][1:4] == ["1e-3", "25.00; 24.00", "1.00; 1.00"]
    assert cells["`then_imitkd`"][4].startswith("-4.00 (")  # the seed that both have
    assert float(cells["`then_imitkd`"][5]) < 0.001
    assert cells["`then_imitkd`"][6:] == ["", "1,000", "3", "8"]
    assert (
        "is `then_imitkd` (33.3% of the parameters). On the test set it differs from the teacher by +5.50%"
        in shown
    )
    assert "or at its last update: `teacher` (1,000)" in shown
    assert "- `seqkd`: 2e-3: 32.00, 4e-3: 30.00" in shown
    for name in ("one", "two"):
        modules["evidence_tables"].figure(rows, tmp_path / f"{name}.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert b"<svg" in (tmp_path / "one.svg").read_bytes()
    curve = modules["evidence_tables"].curve
    names = {each["name"]: each for each in rows}
    assert curve(rows[4], names, by_minutes=True).places == [5.0, 6.0, 7.0, 8.0]
    assert curve(rows[4], names, by_minutes=False).places == [1500, 2000, 2500, 3000]
    assert curve(rows[4], names, by_minutes=False).best.tolist() == [30.0, 28.0, 25.0, 25.0]
    with pytest.raises(SystemExit, match="goes on from seqkd_lr4e-3, which is not among the rows; add it"):
        curve(rows[4], {}, by_minutes=True)


def test_rows_of_several_recipes(modules: dict[str, ModuleType]) -> None:
    """A row of one recipe alone is in that recipe's table. The best rate is shown, with all its seeds."""

    def row(name: str, score: float) -> dict[str, Any]:
        return made(name, [score], test={"word_errors": score, "phoneme_errors": 1.0})

    recipes = {
        "one": [row("then_imitkd_lr1", 3.0), row("teacher", 1.0), row("seqkd_lr1", 4.0)],
        "two": [
            row("seqkd_lr1", 5.0),
            row("seqkd_lr1-seed2", 6.0),
            row("seqkd_lr2", 2.0),
            row("teacher", 1.5),
        ],
    }
    assert modules["evidence_tables"].across(recipes).splitlines() == [
        "| row | one, word errors, % | two, word errors, % |",
        "|---|--:|--:|",
        "| `teacher` | 1.00 | 1.50 |",
        "| `seqkd` | 4.00 | 5.00; 6.00 |",
    ]


def test_p_over_the_seeds(modules: dict[str, ModuleType]) -> None:
    """A paired t-test, from three seeds on; with two degrees of freedom its p is 1 - t / sqrt(t^2 + 2)."""

    def seeds(row: str, wrong: list[int]) -> list[dict[str, Any]]:
        packed = modules["error_rates"].packed
        tests = [
            {
                "word_errors": each,
                "phoneme_errors": 1.0,
                "words": 10,
                "right": packed([n >= each for n in range(10)]),
            }
            for each in wrong
        ]
        return [made(f"{row}-seed{n}", [1.0], test=test) for n, test in enumerate(tests, 1)]

    rows = {"seqkd": seeds("seqkd", [3, 5, 5]), "imitkd": seeds("imitkd", [2, 3, 2])}
    t = 2 / (1 / 3**0.5)  # the differences are 1, 2 and 3
    compared = modules["evidence_tables"].compared
    assert float(compared(rows, "imitkd")[2]) == pytest.approx(1 - t / (t**2 + 2) ** 0.5, abs=5e-5)
    rows["imitkd"].pop()
    assert compared(rows, "imitkd")[0]
    assert compared(rows, "imitkd")[2] == ""


def test_the_figure_has_the_seeds_of_the_control(modules: dict[str, ModuleType]) -> None:
    """Means over other seeds can't be compared, so a row that lacks one of them waits."""
    rows = {
        "teacher": [made("teacher", [20.0])],
        "seqkd": [
            made("seqkd_lr1", [30.0]),
            made("seqkd_lr1-seed2", [30.0]),
            made("seqkd_lr1-seed3", [30.0]),
        ],
        "then_seqkd": [made("then_seqkd_lr1", [29.0]), made("then_seqkd_lr1-seed2", [29.0])],
        "then_imitkd": [made("then_imitkd_lr1", [28.0])],
    }
    drawn = modules["evidence_tables"].comparable(rows)
    assert {row: [each["seed"] for each in own] for row, own in drawn.items()} == {
        "teacher": [1],
        "seqkd": [1, 2],
        "then_seqkd": [1, 2],
    }


def test_a_rate_that_further_seeds_have_stays(modules: dict[str, ModuleType]) -> None:
    rows = [
        made("seqkd_lr4e-3", [30.0]),
        made("seqkd_lr4e-3-seed2", [30.0]),
        made("seqkd_lr2e-3", [29.0]),
    ]
    shown = modules["evidence_tables"].chosen(rows)["seqkd"]
    assert [each["name"] for each in shown] == ["seqkd_lr4e-3", "seqkd_lr4e-3-seed2"]


def test_rows_of_two_runs_are_not_published_together(modules: dict[str, ModuleType]) -> None:
    rows = [made("teacher", [20.0], before={}), made("seqkd_lr4e-3", [30.0], before={"teacher": 60.0})]
    rows[0]["cpu_seconds"] = 60.0
    modules["evidence_rows"].check_one_run(rows)
    rows.append(made("seqkd_lr2e-3", [30.0], before={"teacher": 61.0}))
    message = "seqkd_lr2e-3 needs teacher of 61 CPU seconds, but teacher needs one of 60; publish the rows of"
    with pytest.raises(SystemExit, match=message):
        modules["evidence_rows"].check_one_run(rows)


def test_curves_of_seeds_that_begin_and_end_elsewhere(modules: dict[str, ModuleType]) -> None:
    """They begin together in the figure, and a training that has ended keeps its best score."""
    tables = modules["evidence_tables"]
    early = tables.Curve(100.0, [110.0, 120.0], np.array([1.0, 2.0]))
    late = tables.Curve(300.0, [310.0, 320.0, 330.0], np.array([3.0, 4.0, 7.0]))
    places, values = tables.over_seeds([early, late])
    assert places.tolist() == [210.0, 220.0, 230.0]
    assert values.tolist() == [[1.0, 2.0, 2.0], [3.0, 4.0, 7.0]]


def test_a_curve_begins_after_the_whole_history(modules: dict[str, ModuleType]) -> None:
    """A student can go on from one that went on itself: the updates of both come before its own."""
    first = made("scratch", [9.0, 8.0])
    second = made("seqkd", [7.0], start="scratch")
    third = made("then_imitkd", [7.5, 5.0], start="seqkd")
    names = {each["name"]: each for each in (first, second, third)}
    found = modules["evidence_tables"].curve(third, names, by_minutes=False)
    assert found.places == [1500, 2000, 2500]
    assert found.best.tolist() == pytest.approx([7.0, 7.0, 5.0])
    with pytest.raises(SystemExit, match="seqkd goes on from scratch, which is not among the rows"):
        modules["evidence_tables"].curve(third, {"seqkd": second}, by_minutes=False)


@pytest.mark.parametrize("name", ["bleu", "rouge-l"])
def test_scores_of_text_are_resampled(modules: dict[str, ModuleType], name: str) -> None:
    """The score of the packed statistics is the corpus score, and a better row has a small p."""
    measure = modules["evidence_scores"].MEASURES[name]
    scores = CorpusScores([measure.flag])
    references = [f"the cat number {n} sat on the mat {n % 7}" for n in range(60)]
    hypotheses = [text if n % 3 else text.replace("sat on", "is") for n, text in enumerate(references)]
    worse = [text if n % 2 else text.replace("the", "a") for n, text in enumerate(hypotheses)]

    def test_set(texts: list[str]) -> dict[str, Any]:
        pairs = zip(texts, references, strict=True)
        each = [scores.statistics([text], [reference])[measure.key] for text, reference in pairs]
        packed = modules["evidence_scores"].packed(np.array(each))
        return {"sentences": 60, "statistics": packed}

    good, bad = test_set(hypotheses), test_set(worse)
    expected = [
        measure.scale * scores.score(measure.key, scores.statistics(texts, references)[measure.key])
        for texts in (hypotheses, worse)
    ]
    difference, (low, high), p = measure.chance([good], [bad])
    assert difference == pytest.approx(expected[0] - expected[1], abs=0.011)
    assert low < difference < high
    assert low > 0
    assert p < 0.01
    assert measure.chance([good, bad], [bad, good])[2] == 1.0
    assert measure.chance([good, good], [bad, bad])[0] == difference


def test_a_table_of_bleu(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    """More is better there, for the learning rate and the curves too."""
    statistics = modules["evidence_scores"].packed(np.array([[5.0, 5, 4, 3, 2, 1, 5, 4, 3, 2]]))

    def row(name: str, bleu: list[float]) -> dict[str, Any]:
        validations = [
            {"updates": 500 * n, "cpu_seconds": 60.0 * n, "bleu": each} for n, each in enumerate(bleu, 1)
        ]
        test = {"bleu": max(bleu), "chrf": 50.0, "sentences": 1, "statistics": statistics}
        return made(name, [], measure="bleu", validations=validations, test=test, cpu_seconds=60.0)

    rows = [row("seqkd_lr4e-3", [20.0, 30.0, 29.0]), row("seqkd_lr2e-3", [20.0, 31.0, 28.0])]
    shown = modules["evidence_tables"].table(rows)
    assert "| row | parameters | learning rate | BLEU, each seed | chrF, each seed |" in shown
    assert "| `seqkd` | 1,234 | 2e-3 | 31.00 | 50.00 |" in shown
    assert (
        "Greedy decoding of 1 sentences. A training ended when 2 validations in a row brought no higher BLEU"
        in shown
    )
    assert "- `seqkd`: 2e-3: 31.00, 4e-3: 30.00" in shown
    assert "validation BLEU 28.00, best 31.00, test 31.00" in modules["evidence_rows"].summary(rows[1])
    modules["evidence_tables"].figure(rows, tmp_path / "figure.svg")


def test_the_score_of_a_decoded_test_set(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    """Against the raw references, in fairseq-generate's order of lines."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "test.en").write_text("The cat sat on the mat.\nA dog runs in the park.\n")
    for folder in ("one", "data-bin"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data-bin" / "test.de-en.de.idx").touch()
    lines = "S-1\tx\nH-1\t-0.5\tA dog runs in the park.\nH-0\t-0.4\tThe cat sat on a mat.\n"
    (tmp_path / "one" / "test.txt").write_text(lines)
    measure = modules["evidence_scores"].MEASURES["bleu"]
    test = measure.test(tmp_path, "one")
    expected = sacrebleu.corpus_bleu(
        ["The cat sat on a mat.", "A dog runs in the park."],
        [["The cat sat on the mat.", "A dog runs in the park."]],
    )
    assert measure.scores(test)[0] == pytest.approx(expected.score, abs=0.01)
    assert measure.count(test) == "2 sentences"
    assert set(test["signatures"]) == {"bleu", "chrf"}
    sums = modules["evidence_scores"].unpacked(test["statistics"], 2).sum(axis=0)
    assert sums[:2].tolist() == [expected.sys_len, expected.ref_len]
    rouge = modules["evidence_scores"].MEASURES["rouge-l"].test(tmp_path, "one")
    assert rouge["rougeL"] == pytest.approx(100 * (5 / 6 + 1) / 2, abs=0.01)


def test_bleu_against_every_right_translation(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    """A sentence that equals any of its right translations is right, whatever the others are."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "one").mkdir()
    right = [["a b c d e", "e d c b a"], ["f g h i"], ["i h g f", "f h g i", "g f h i"]]
    written = ["e d c b a", "f g h j", "i h g f"]
    (tmp_path / "raw" / "test.all").write_text("".join("\t".join(every) + "\n" for every in right))
    (tmp_path / "one" / "test.txt").write_text(
        "".join(f"H-{number}\t-0.5\t{text}\n" for number, text in enumerate(written))
    )
    measure = modules["evidence_scores"].MEASURES["every-bleu"]
    test = measure.test(tmp_path, "one")
    columns = [[every[min(place, len(every) - 1)] for every in right] for place in range(3)]
    expected = sacrebleu.corpus_bleu(written, columns, tokenize="none").score
    assert measure.scores(test) == (pytest.approx(expected), pytest.approx(200 / 3))
    assert test["signatures"]["bleu"].startswith("nrefs:var|case:mixed|eff:no|tok:none")
    difference, (low, high), _ = measure.chance([test], [test])  # from the statistics that are packed
    assert (difference, low, high) == (0, 0, 0)
    perfect = np.array([[n, n, *range(n, n - 4, -1), *range(n, n - 4, -1)] for n in (5, 4, 4)], float)
    better = {**test, "statistics": modules["evidence_scores"].packed(perfect)}
    assert measure.chance([better], [test])[0] == pytest.approx(100 - expected, abs=0.01)


def test_the_score_of_a_language_model_s_continuations(
    modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    """Its data has one dictionary, and names no language."""
    for folder in ("raw", "one", "data-bin"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data-bin" / "dict.txt").touch()
    (tmp_path / "raw" / "test.src").write_text("the whole article\n")
    (tmp_path / "raw" / "test.tgt").write_text("a headline of news\n")
    (tmp_path / "one" / "test.txt").write_text("S-0\tthe whole article TL;DR\nH-0\t-0.5\ta headline\n")
    rouge = modules["evidence_scores"].MEASURES["rouge-l"].test(tmp_path, "one")
    assert rouge["rougeL"] == pytest.approx(100 * 2 / 3, abs=0.01)


@pytest.mark.parametrize(
    ("script", "needs"),
    [
        ("teacher.sh", []),
        ("student.sh", []),
        ("student.sh scratch --dropout 0", []),
        ("student.sh continued", []),
        ("student.sh gkd --jsd-weight 0.1", ["teacher"]),
        ("distill.sh imitkd", ["teacher"]),
        ("seqkd.sh seqkd --max-update 9", ["teacher", "data_seqkd"]),
        ("student.sh seqkd_gkd", ["teacher", "data_seqkd"]),
    ],
)
def test_what_a_training_needs(script: str, needs: list[str], modules: dict[str, ModuleType]) -> None:
    """Its minutes are part of the row's."""
    assert modules["evidence"].stages(script) == needs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "key", "title"),
    [("tatoeba", "bleu", "BLEU"), ("reuters_headlines", "rougeL", "ROUGE-L")],
)
def test_a_smoke_run_of_text(recipe: str, key: str, title: str, tmp_path: Path) -> None:
    """Real trainings of tiny models: the teacher, SeqKD's student, and the assistant and its student."""
    environment = scripts.environment(tmp_path, SMOKE="1")
    command = [sys.executable, str(EXAMPLES / "evidence.py"), "run", str(EXAMPLES / recipe)]
    done = subprocess.run(
        [*command, "--run", str(tmp_path), "--most", "2"],
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}"
    assert f"validation {title} " in done.stdout
    row = json.loads((tmp_path / "rows" / "seqkd_lr4e-3.json").read_text())
    assert key in row["validations"][-1]
    assert {key, "chrf", "sentences", "statistics"} <= set(row["test"])
    assert (row["patience"], row["measure"]) == (6, "bleu" if key == "bleu" else "rouge-l")
    for script, more in (
        (["seqkd.sh", "seqkd"], {"AS": "assistant", "STUDENT": "wide"}),
        (
            ["distill.sh", "seqkd_imitkd_full"],
            {"AS": "then", "START": "seqkd_lr4e-3", "TEACHER": "assistant"},
        ),
    ):
        called = subprocess.run(
            [str(EXAMPLES / recipe / script[0]), *script[1:]],
            env={**environment, **more, "RUN": str(tmp_path)}, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert called.returncode == 0, called.stderr[-2000:]
    assert "assistant/checkpoint_best.pt" in (tmp_path / "then" / "commands").read_text()


@pytest.mark.slow
def test_a_smoke_run_of_language_models(tmp_path: Path) -> None:
    """Real trainings of tiny models: on the data, on the teacher's continuations, and on-policy."""
    done = subprocess.run(
        [
            sys.executable, str(EXAMPLES / "evidence.py"), "run", str(EXAMPLES / "headlines_lm"),
            "--run", str(tmp_path), "--most", "4",
        ],
        env=scripts.environment(tmp_path, SMOKE="1"), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}"
    row = json.loads((tmp_path / "rows" / "then_imitkd_lr2e-3.json").read_text())
    assert row["start"] == "seqkd_lr2e-3"
    assert row["before"].keys() == {"teacher", "data_seqkd", "scratch_lr4e-3", "seqkd_lr2e-3"}
    assert {"rougeL", "chrf", "sentences", "statistics"} <= set(row["test"])
    assert "data_seqkd/data-bin" in row["training"]["command"]


@pytest.mark.slow
def test_a_smoke_run_records_its_rows(tmp_path: Path) -> None:
    """Real trainings of tiny models, from raw text to a row; a smoke run is not published."""
    environment = scripts.environment(tmp_path, SMOKE="1")
    command = [sys.executable, str(EXAMPLES / "evidence.py")]
    where = [str(EXAMPLES / "cmudict"), "--run", str(tmp_path)]
    done = subprocess.run(
        [*command, "run", *where, "--most", "2"], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}"
    rows = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "rows").glob("*.json")}
    assert rows.keys() == {"teacher", "seqkd_lr4e-3"}, done.stdout
    teacher, student = rows["teacher"], rows["seqkd_lr4e-3"]
    assert (student["rate"], student["seed"], student["start"]) == ("4e-3", 1, None)
    assert student["before"] == {
        "teacher": teacher["cpu_seconds"],
        "data_seqkd": student["before"]["data_seqkd"],
    }
    assert teacher["cpu_seconds"] > 0
    assert [each["updates"] for each in teacher["validations"]] == [100, 200]
    assert {"updates", "cpu_seconds", "exact", "loss"} <= set(student["validations"][-1])
    assert "--lr 4e-3" in student["training"]["command"]
    assert len(student["test"]["right"]) == 4  # of 16 words
    assert student["patience"] == 10
    refused = subprocess.run([*command, "publish", *where], env=environment, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "is a run with SMOKE=1" in refused.stderr
