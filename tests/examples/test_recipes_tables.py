"""Tests of the special tables: quickstart, lifelong, SST-2, quality estimation, a teacher's data, and
Multi30k's earlier studies.
"""

import importlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

EXAMPLES = Path(__file__).parents[2] / "examples"
TRAINING = {
    "commits": ["abc"],
    "command": "imitkd-train",
    "updates": 5,
    "updates_in_all": 1000,
    "minutes": 2.0,
    "peak_bytes": 2e9,
    "cpu_seconds": 120.4,
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], ModuleType]]:
    """A function that imports a recipe's script, until the test ends: recipes share script names."""
    before = set(sys.modules)

    def load(recipe: str, name: str) -> ModuleType:
        for folder in (EXAMPLES, EXAMPLES / "quickstart", EXAMPLES / recipe):
            monkeypatch.syspath_prepend(str(folder))
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - before:
        if str(EXAMPLES) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_quickstart_s_evaluation_is_written_whole(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After decoding, results.json, the table and the figure are written."""
    evaluate, scoring = script("quickstart", "evaluate"), script("quickstart", "scoring")
    sources = [" ".join("w" * length) for length in (3, 10, 14, 18, 25)]
    right = [[source, f"{source} x"] for source in sources]

    def measure(run: Path, device: list[str]) -> dict[str, dict[str, Any]]:
        assert device == ["--cpu"]
        measured = {
            "parameters": 62_500,
            "sentences_per_second": 99.6,
            "sentences_per_second_rounds": [90, 1100],
        }
        measured |= scoring.quality(sources, right, [*sources[:4], "w"])
        return {label: {"folder": folder, **measured} for label, folder in evaluate.MODELS.items()}

    monkeypatch.setattr(evaluate, "measure", measure)
    monkeypatch.setattr(
        evaluate,
        "training",
        lambda run, name: (
            {
                **TRAINING,
                "command": "imitkd-train --restore-file run/scratch/checkpoint_last.pt",
            }
            if name == "continued"
            else TRAINING
        ),
    )
    (tmp_path / "data_seqkd.needs").mkdir()
    (tmp_path / "data_seqkd.needs" / "cpu").write_text("33.3")
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(tmp_path), "--seed", "3", "--cpu"])
    evaluate.main()
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["recipe"], results["seed"]) == ("quickstart", 3)
    assert results["signatures"]["bleu"].startswith("nrefs:2|bs:1000")
    assert results["signatures"]["chrf"].startswith("nrefs:2|case:mixed")
    assert results["decoding"].endswith("--cpu")
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert len({len(line) for line in lines[:7]}) == 1  # aligned
    assert cells(lines[2])[0] == "teacher"
    assert cells(lines[2])[3:] == ["80.0%", "62,500", "0.25", "100 (90 to 1,100)", "1,000", "120"]
    assert cells(lines[4])[-2] == "1,000 + 1,000"  # with those of the model that it started from
    assert "translations for SeqKD took 33 CPU s more" in lines[-1]
    assert (tmp_path / "quickstart.png").stat().st_size > 10_000


def test_the_advice_has_the_figures_of_both_seeds(script: Any, tmp_path: Path) -> None:
    """In the order of the seeds. Rows of the dictionary that are not finished are left out."""
    folders = ("scratch", "seqkd", "imitkd", "seqkd_continued", "seqkd_imitkd")
    runs = [
        {
            "seed": seed,
            "models": {
                name: {"folder": name, "bleu": 10.0 * place + seed} for place, name in enumerate(folders)
            },
            "trainings": {name: {"updates_in_all": 400, "cpu_seconds": 20.0 + seed} for name in folders},
            "translations": {"cpu_seconds": 7.0 * seed},
        }
        for seed in (2, 1)
    ]
    shown = script("quickstart", "advice").box(runs, tmp_path)
    assert "(2 seeds), 400 updates of it raise a student's BLEU from 1.0 and 2.0 to 11.0 and 12.0." in shown
    assert "They take 22 CPU seconds, and the translations 10 more." in shown
    assert "As many updates of `imitkd` reach 21.0 and 22.0, and take 22 seconds." in shown
    assert "updates of `imitkd` bring that student to 41.0 and 42.0 BLEU in 22 seconds, 400 more of" in shown
    assert "dictionary" not in shown
    assert "larger student" not in shown
    whole = script("quickstart", "advice").box(runs, EXAMPLES)
    assert "  - [CMU dictionary](examples/cmudict/README.md): `imitkd_full` ends at " in whole
    assert re.search(r"one of 1\.43 million parameters ends at [\d.]+, and their teacher of 6\.55 mil", whole)
    assert len(whole.splitlines()) == 3 + len(script("quickstart", "advice").ENDED) + 1 <= 10


def test_the_advice_compares_the_seeds_that_both_rows_have(script: Any, tmp_path: Path) -> None:
    """The control has three seeds here, and the method one."""
    there = tmp_path / "made_up_languages" / "evidence"
    shutil.copytree(EXAMPLES / "made_up_languages" / "evidence", there)
    for path in there.glob("then_imitkd_lr*-seed*.json"):
        path.unlink()
    at_the_end = script("quickstart", "advice").at_the_end
    line = at_the_end(tmp_path, "made-up languages", "made_up_languages", " Why.")
    where = "[made-up languages](examples/made_up_languages/README.md): "
    rows = script("quickstart", "advice").evidence_tables.chosen(
        [json.loads(path.read_text()) for path in there.glob("*.json")]
    )
    control = f"{rows['then_seqkd'][0]['test']['bleu']:.2f} after "  # of the first seed alone
    assert len(rows["then_seqkd"]) == 3
    for part, method in zip(line.removeprefix(where).split(" Why. "), ("imitkd", "imitkd_full"), strict=True):
        own = f"{rows[f'then_{method}'][0]['test']['bleu']:.2f} BLEU after "
        assert part.startswith(f"`{method}` ends at {own}")
        assert f", longer SeqKD at {control}" in part
        assert re.search(r" \(1 seed; p [<=] 0\.\d\d(, within chance)?\)\.?$", part)
    assert at_the_end(tmp_path, "Tatoeba", "tatoeba", " Why.") == ""


def test_a_lifelong_run_s_table(script: Any) -> None:
    table = script("lifelong", "table").table
    quality = {"bleu": 12.345, "bleu_interval": 1.0, "right": 50.0}
    models = {"one": {"folder": "a", "first": quality, "second": {**quality, "bleu": 2.0}}}
    lines = table(
        {"models": models, "trainings": {"a": TRAINING}, "signatures": {"bleu": "s"}, "seed": 1}
    ).splitlines()
    assert cells(lines[2]) == ["one", "12.35 ± 1.00", "50.0%", "2.00 ± 1.00", "50.0%", "1,000", "120"]


def test_sst2_s_table_and_means(script: Any) -> None:
    table = script("sst2", "table").table
    model = {
        "seed": 1,
        "parameters": 1000,
        "dev_accuracy": 80.0,
        "test_accuracy": 81.0,
        "test_interval": [79.0, 83.0],
    }
    against = {"gained": 3, "lost": 4, "p": 1.0}
    models = {
        "scratch": model,
        "word_kd": {**model, "against_baseline": against},
        "word_kd-seed2": {**model, "seed": 2, "test_accuracy": 82.0},
    }
    trainings = {
        "scratch": TRAINING,
        "word_kd": TRAINING,
        "word_kd-seed2": {**TRAINING, "minutes": None, "peak_bytes": None},
    }
    lines = table({"models": models, "trainings": trainings, "baseline": "scratch"}).splitlines()
    assert cells(lines[3]) == [
        "word_kd",
        "1",
        "1,000",
        "5",
        "80.0",
        "81.0 (79.0 to 83.0)",
        "3 / 4",
        "1.000",
        "2",
        "2.0",
    ]
    assert cells(lines[4])[-2:] == ["", ""]
    assert "| word_kd (2) | 80.0 | 81.5 |" in lines


def test_the_arithmetic_s_table_and_means(script: Any) -> None:
    answer = script("arithmetic", "answers").answer
    assert [answer(text) for text in ("1 + 2 = 3 ; 3 + 1 = 4", "5", "")] == ["4", "5", ""]
    table = script("arithmetic", "table").table
    model = {
        "seed": 1, "parameters": 1000, "problems": 200, "right_answers": 50, "right_steps": 40,
        "interval": [19.5, 31.4],
    }  # fmt: skip
    against = {"gained": 3, "lost": 4, "p": 1.0}
    models = {"scratch": model, "gkd-seed2": {**model, "right_answers": 60, "against_continued": against}}
    trainings = {"scratch": TRAINING, "gkd-seed2": {**TRAINING, "cpu_seconds": None}}
    rows = table({"models": models, "trainings": trainings}).splitlines()
    assert cells(rows[2])[2:] == ["1,000", "25.0 (19.5 to 31.4)", "20.0", "", "", "5", "2.0"]
    assert cells(rows[3])[5:] == ["3 / 4", "1.0000", "5", ""]
    assert "| `gkd` (1) | 30.0 |" in rows


def test_what_goes_wrong_in_written_headlines(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two seeds with the rate that the comparison shows, of the references, and of SeqKD's data."""
    for folder in ("rows", "raw", "teacher", "data_seqkd", "seqkd", "seqkd-seed2", "seqkd-other"):
        (tmp_path / folder).mkdir()
    task = {"eval_bleu_args": '{"beam": 1, "max_len_a": 0, "max_len_b": 40}'}
    (tmp_path / "teacher" / "config.json").write_text(json.dumps({"config": {"task": task}}))
    (tmp_path / "raw" / "test.tgt").write_text("one two\none two three four\n")
    for name, seed, rate, texts, tokens in (
        ("seqkd", 1, "2e-3", ["a b a b", "a a"], [41, 40]),
        ("seqkd-seed2", 2, "2e-3", ["a b c d", "a b b a"], [3, 3]),
        ("seqkd-other", 1, "1e-3", ["a", "a"], [2, 2]),
    ):
        row = {"name": name, "row": "seqkd", "seed": seed, "rate": rate, "measure": "rouge-l"}
        (tmp_path / "rows" / f"{name}.json").write_text(json.dumps(row | {"validations": [{"rougeL": 0.2}]}))
        lines = [
            f"S-{n}\tnews\nH-{n}\t-1\t{text}\nP-{n}\t{' '.join(['-0.5'] * count)}\n"
            for n, (text, count) in enumerate(zip(texts, tokens, strict=True))
        ]
        (tmp_path / name / "test.txt").write_text("".join(lines))
    shutil.copy(tmp_path / "seqkd" / "test.txt", tmp_path / "data_seqkd" / "train.out")
    writing = script("headlines_lm", "writing")
    monkeypatch.setattr(writing, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["writing.py", str(tmp_path)])
    writing.main()
    found = [cells(line) for line in capsys.readouterr().out.splitlines()]
    assert found[2:] == [
        ["the references", "3.0", "0.0", ""],
        ["SeqKD's data", "3.0", "50.0", "50.0"],
        ["`seqkd`", "3.0; 4.0", "50.0; 0.0", "50.0; 0.0"],
    ]
    saved = json.loads((tmp_path / "writing.json").read_text())
    assert saved["`seqkd`"] == {"words": [3.0, 4.0], "repeats": [50.0, 0.0], "cut": [50.0, 0.0]}


def test_the_table_of_headlines_by_language_models(script: Any) -> None:
    table = script("headlines_lm", "table").table
    scores = {"rouge1": 30.0, "rouge2": 12.5, "rougeL": 28.25}
    model = {"seed": 1, "parameters": 1000, "scores": scores, "interval": [27.0, 29.5], "words": 7.25}
    against = {"value": 0.5, "low": -0.25, "high": 1.25, "p": 0.2}
    models = {"scratch": model, "gkd": {**model, "against_continued": against}}
    trainings = {"scratch": TRAINING, "gkd": {**TRAINING, "cpu_seconds": None}}
    results = {"models": models, "trainings": trainings, "headlines": 1155, "signature": "rouge"}
    rows = table(results).splitlines()
    assert cells(rows[2])[2:5] == ["1,000", "28.25 (27.00 to 29.50)", "30.00"]
    assert cells(rows[2])[5:] == ["12.50", "", "", "7.2", "5", "2"]
    assert cells(rows[3])[6:] == ["+0.50 (-0.25 to +1.25)", "0.200", "7.2", "5", ""]


def test_sst2_s_statistics(script: Any) -> None:
    """At Wilson's bounds the score test's z is 1.96. McNemar's p is both tails of the binomial."""
    evaluate = script("sst2", "evaluate")
    for end in evaluate.wilson(30, 100):
        assert abs(0.3 - end) / (end * (1 - end) / 100) ** 0.5 == pytest.approx(1.96)
    right, other = torch.tensor([1, 1, 0, 0, 0, 0, 1]).bool(), torch.tensor([1, 0, 1, 1, 1, 1, 1]).bool()
    assert evaluate.mcnemar(right, other) == {"gained": 4, "lost": 1, "p": pytest.approx(2 * (1 + 5) / 2**5)}
    assert evaluate.mcnemar(right, right)["p"] == 1.0
    names = ["word_kd", "scratch-seed2", "teacher", "scratch"]
    assert sorted(names, key=lambda name: evaluate.order(name, "scratch")) == [
        "teacher",
        "scratch",
        "scratch-seed2",
        "word_kd",
    ]


def test_quality_estimation_s_pairs_and_table(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoint K has translated the lines K modulo their number. The table has a line for each model."""
    pairs = script("quality_estimation", "pairs")
    (tmp_path / "test.src").write_text("a\nb c\nd\ne\n")
    (tmp_path / "test.all").write_text("wort\neins zwei\tzwei eins\ndrei\nvier\n")
    (tmp_path / "part1.translations").write_text("S-1\td\nH-1\t-0.1\tdrei\nH-0\t-0.1\twort\n")
    (tmp_path / "part0.translations").write_text("H-0\t-0.1\tzwei eins\nH-1\t-0.1\tfünf\n")
    sizes = ("--labelled", "1", "--unlabelled", "1", "--valid", "1", "--test", "1")
    arguments = ["pairs.py", str(tmp_path), str(tmp_path / "raw"), "--checkpoints", "2", *sizes]
    monkeypatch.setattr(sys, "argv", arguments)
    pairs.main()
    read = {path.name: path.read_text().splitlines() for path in (tmp_path / "raw").iterdir()}
    assert read["more.input1"] == ["wort", "zwei eins"]
    assert read["more.label"] == ["1.0", "nan"]
    assert (read["train.label"], read["valid.label"], read["test.label"]) == (["1.0"], ["1.0"], ["0.0"])
    model = {"seed": 1, "parameters": 1000, "rmse": 0.1, "pearson": 0.5, "pearson_interval": [0.4, 0.6]}
    model |= {"spearman": 0.4, "spearman_interval": [0.3, 0.5]}
    table = script("quality_estimation", "table").table
    names = ("teacher", "more_half-seed2")
    results = {
        "pairs": 9,
        "chrf": {"mean": 0.5, "deviation": 0.1},
        "trainings": dict.fromkeys(names, TRAINING),
    }
    results["models"] = {"teacher": model, "more_half-seed2": {**model, "seed": 2, "pearson_p": 0.002}}
    lines = table(results).splitlines()
    assert cells(lines[2])[4:] == ["0.500 (0.400 to 0.600)", "0.400 (0.300 to 0.500)", "0.100", "", "2.0"]
    assert cells(lines[3])[:2] + cells(lines[3])[-2:] == ["more_half", "2", "0.002", "2.0"]


def test_quality_estimation_s_statistics(script: Any) -> None:
    """The correlations are scipy's; a model that is as good as its rival has a p near 1."""
    evaluate = script("quality_estimation", "evaluate")
    generator = np.random.default_rng(3)
    labels = generator.random(60)
    scores, rival = labels + generator.normal(size=(2, 60)) * 0.2
    drawn = generator.integers(60, size=(200, 60))
    found = evaluate.correlations(scores, labels, drawn, rival)
    assert found["pearson"] == pytest.approx(pearsonr(scores, labels)[0])
    assert found["spearman"] == pytest.approx(spearmanr(scores, labels)[0])
    assert found["pearson_interval"][0] < found["pearson"] < found["pearson_interval"][1]
    assert evaluate.correlations(labels, labels, drawn, generator.random(60))["pearson_p"] < 0.02
    assert evaluate.correlations(scores, labels, drawn, scores)["pearson_p"] == 1.0
    names = ["more_half", "scratch_eighth", "teacher", "scratch_half", "scratch_half-seed2"]
    assert sorted(names, key=evaluate.order)[:2] == ["teacher", "scratch_eighth"]
    assert evaluate.rival("more_half-seed2") == "scratch_half-seed2"


def test_the_spoken_commands_table(script: Any) -> None:
    table = script("speech", "table").table
    model = {"seed": 1, "parameters": 1000, "sentence_errors": 20.04, "word_error_rate": 5.0}
    against = {"rival": "scratch-seed2", "gain": 2.5, "interval": [-0.5, 5.5], "p": 0.0004}
    models = {"scratch": model, "gkd-seed2": {**model, "against": against}}
    trainings = {"scratch": TRAINING, "gkd-seed2": {**TRAINING, "cpu_seconds": None}}
    rows = table({"models": models, "trainings": trainings, "commands": 500}).splitlines()
    assert cells(rows[2]) == ["`scratch`", "1", "1,000", "20.0", "5.0", "", "", "5", "2.0"]
    assert cells(rows[3])[5:] == ["+2.5 (-0.5 to +5.5)", "< 0.001", "5", ""]
    timed = {"ctc": {**model, "sentences_per_second": 123.4}}
    results = {"models": timed, "trainings": {"ctc": TRAINING}, "commands": 500, "target": "en"}
    rows = table(results).splitlines()
    assert (cells(rows[0])[-1], cells(rows[2])[-1]) == ("sentences/s", "123")


def test_a_teacher_s_data(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The half of the sentences where the student differs most, and a line of the table."""
    worst = script("teacher_data", "worst")
    output = "".join(
        f"S-{number}\ts{number}\nT-{number}\t{target}\nH-{number}\t-0.5\t{own}\nD-{number}\t-0.5\t{own}\n"
        for number, target, own in (
            (2, "ab ab", "ab ab"),
            (0, "cd cd", "xy"),
            (1, "ef", "eg"),
            (3, "gh", "gh"),
        )
    )
    (tmp_path / "train.txt").write_text(output)
    arguments = ["worst.py", str(tmp_path / "train.txt"), str(tmp_path / "out"), "--share", "0.5"]
    monkeypatch.setattr(sys, "argv", arguments)
    worst.main()
    assert (tmp_path / "out" / "train.src").read_text() == "s0\ns1\n"
    assert (tmp_path / "out" / "train.tgt").read_text() == "cd cd\nef\n"
    assert "2 of 4 sentences" in capsys.readouterr().out
    model = {"bleu": 12.345, "bleu_interval": 1.0, "chrf": 40.0, "right": 50.0, "parameters": 1000}
    results = {"models": {"seqkd": model}, "trainings": {"seqkd": TRAINING}, "seed": 1}
    lines = (
        script("teacher_data", "table")
        .table({**results, "signatures": {"bleu": "s", "chrf": "c"}})
        .splitlines()
    )
    assert cells(lines[2])[2:] == ["12.35 ± 1.00", "40.00", "50.0%", "1,000", "1,000", "120"]


def test_the_time_of_a_training_excludes_that_of_its_start(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fairseq adds the time of the checkpoint that a training starts from."""
    trainings = script("quickstart", "trainings")
    spent = {"parent": 60.0, "child": 180.0}

    def load(path: str) -> dict[str, Any]:
        extra = {"best": 1.0}
        if (name := Path(path).parent.name) in spent:
            extra["previous_training_time"] = spent[name]
        history = [{"num_updates": 7}]
        return {
            "extra_state": extra,
            "optimizer_history": history,
            "cfg": {"checkpoint": {"best_checkpoint_metric": "loss"}},
        }

    monkeypatch.setattr(trainings.checkpoint_utils, "load_checkpoint_to_cpu", load)
    for name in (*spent, "published"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoint_last.pt").touch()
    start = tmp_path / "parent" / "checkpoint_last.pt"
    for flag, minutes in (("--restore-file", 2.0), ("--finetune-from-model", 2.0), ("--other", 3.0)):
        command = f"imitkd-train {tmp_path}/data-bin {flag} {start}"
        (tmp_path / "child" / "commands").write_text(f"abc\t{command}\t1\n")
        found = trainings.training(tmp_path, "child")
        assert found["minutes"] == minutes
        assert found["command"] == f"imitkd-train run/data-bin {flag} run/parent/checkpoint_last.pt"
        assert (found["threads"], found["updates_in_all"]) == (["1"], 7)
    for start, minutes in (("published/checkpoint_last.pt", 3.0), ("gone.pt", None)):
        paths = ("parent/checkpoint_last.pt", start)
        twice = " ".join(f"--finetune-from-model {tmp_path}/{path}" for path in paths)
        (tmp_path / "child" / "commands").write_text(f"abc\timitkd-train {twice}\t1\n")
        assert trainings.training(tmp_path, "child")["minutes"] == minutes


def test_a_run_without_training_commands_is_refused(script: Any, tmp_path: Path) -> None:
    with pytest.raises(
        SystemExit,
        match=r"teacher/commands must hold the training command of teacher, .*; delete .*/\.done/teacher",
    ):
        script("quickstart", "trainings").training(tmp_path, "teacher")


def test_means_of_the_studies(script: Any) -> None:
    """The models that all others are compared with come first, then the best ones."""
    means = script("multi30k", "studies").means
    scores = {"teacher": 40.0, "scratch": 30.0, "a": 31.0, "a-seed2": 33.0, "continued": 30.5, "b": 35.0}
    models = {name: {"valid_bleu": 1.0, "bleu": score, "chrf": 2.0} for name, score in scores.items()}
    lines = means({"models": models, "baseline": "continued"}).splitlines()[2:]
    assert [cells(line)[0] for line in lines] == [
        "teacher (1)",
        "scratch (1)",
        "continued (1)",
        "b (1)",
        "a (2)",
    ]
    assert cells(lines[-1])[2] == "32.00"


def test_no_place_for_a_table_is_empty() -> None:
    for path in (
        EXAMPLES.parent / "README.md",
        *(EXAMPLES.parent / "docs").glob("*.md"),
        *EXAMPLES.glob("**/*.md"),
    ):
        if "run" not in path.relative_to(EXAMPLES.parent).parts:
            assert not re.search(r"<!-- ([\w-]+) -->\s*<!-- /\1 -->", path.read_text()), path


def test_a_study_s_results_stay(script: Any, tmp_path: Path) -> None:
    results = {"recipe": "multi30k", "trainings": {"a": {}}, "evaluation": {"models": {"a": {}}}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(SystemExit, match=r"--beside 'compare' is a study in .*studies\.md; use another name"):
        script("multi30k", "tables").published_by(tmp_path, "compare")


def test_many_languages_cipher_and_table(script: Any) -> None:
    assert script("many_languages", "languages").ciphered("Two cats. Zu") == "Vxu devt. Ba"
    found = {"bleu": {"score": 20.0, "p": None}}
    better = {"bleu": {"score": 22.0, "p": 0.01}}
    models = {
        "scratch": {"seed": 1, "parameters": 1000, "scores": {"de-en": found, "en-de": found}},
        "gkd-seed2": {"seed": 2, "parameters": 1000, "scores": {"de-en": better, "en-de": found}},
    }
    results = {
        "pairs": {pair: {"train": 9, "valid": 2, "test": 3} for pair in ("de-en", "en-de")},
        "signatures": {"de-en": "a", "en-de": "a"},
        "trainings": dict.fromkeys(models, TRAINING),
        "models": models,
    }
    lines = script("many_languages", "table").table(results).splitlines()
    assert cells(lines[2])[3:6] == ["20.0", "20.0", "20.0"]
    assert cells(lines[3])[:6] == ["`gkd`", "2", "1,000", "22.0 (0.010)", "20.0", "21.0"]


def test_what_a_training_has_logged(script: Any, tmp_path: Path) -> None:
    """Rollouts and validations; nothing of epochs, and of updates without rollouts."""
    lines = [
        {"tag": "epoch_begins", "epoch": 1, "num_updates": 0},
        {"tag": "train_inner", "num_updates": 50, "loss": 2.0},
        {"tag": "train_inner", "num_updates": 100, "loss": 1.5, "truncated": 0.25, "repetition": 0.5},
        {"tag": "valid", "num_updates": 100, "loss": 3.0, "bleu": 20.5},
        {"tag": "train", "num_updates": 100, "truncated": 0.25},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert script(".", "trainings").logged(tmp_path) == [
        {"tag": "train_inner", "num_updates": 100, "truncated": 0.25, "repetition": 0.5},
        {"tag": "valid", "num_updates": 100, "bleu": 20.5},
    ]
