"""What the report reads of a training: its own files, fairseq's JSON logs, and TensorBoard's files."""

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fairseq.logging.progress_bar import progress_bar

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.report import logs, settings
from fairseq_imitkd.report.logs import parse_log_line, parse_metrics_line
from fairseq_imitkd.report.runs import Run, read_run, read_runs
from fairseq_imitkd.training.run_files import INNER
from tests.helpers import in_process, report_files
from tests.helpers.evaluations import hide


def test_what_a_training_writes(digits: Any, tmp_path: Path) -> None:
    """Its metrics, its settings and its size, although it logs nothing."""
    in_process.train(
        digits.data, tmp_path / "run", "--task", "translation_with_teacher", "--criterion", "cross_entropy",
        "--max-update", 4, "--no-save", "--validate-interval-updates", 2, "--log-format", "none",
    )  # fmt: skip
    run = read_run(tmp_path / "run")
    assert [update for update, _ in run.training("loss")] == [1, 2, 3, 4]
    assert [update for update, _ in run.validated("loss")] == [2, 4]
    assert (run.name, run.updates, run.starts, run.is_finished, run.notes) == ("run", 4, 1, True, [])
    assert run.parameters is not None
    wanted = {
        "criterion": "cross_entropy",
        "task": "translation_with_teacher",
        "max_tokens": 400,
        "lr": [0.005],
        "optimizer": "adam",
        "dropout": 0.1,
        "stop_min_lr": -1.0,
        "max_update": 4,
        "arch": "transformer",
        "teacher_selection": "fixed",
    }
    assert {name: run.settings.get(name) for name in wanted} == wanted


@pytest.mark.parametrize(
    "prefix", ["%(asctime)s | %(levelname)s | %(name)s | ", ""], ids=["console", "--log-file"]
)
def test_what_fairseq_itself_writes(prefix: str, tmp_path: Path) -> None:
    """By its own progress bars in ``--log-format json``."""
    handler = logging.FileHandler(tmp_path / "train.log")
    handler.setFormatter(logging.Formatter(f"{prefix}%(message)s", "%Y-%m-%d %H:%M:%S"))
    logger = logging.getLogger("fairseq.logging.progress_bar")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        for update, _ in enumerate(
            bar := progress_bar(range(3), log_format="json", log_interval=1, epoch=2), 1
        ):
            bar.log(
                {"loss": 4.125 / update, "student_share": 0.5, "ppl": float("inf"), "num_updates": update},
                INNER,
                update,
            )
        bar.print({"loss": 3.5, "wall": 70, "num_updates": 3}, tag="train")
        for subset, bleu in (("valid", 31.5), ("valid1", 12.25)):
            bar = progress_bar([], log_format="json", epoch=2, prefix=f"valid on '{subset}' subset")
            bar.print({"loss": 3.25, "bleu": bleu, "num_updates": 3, "best_bleu": bleu}, tag=subset)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    run = read_run(tmp_path)
    assert run.training("loss") == [(1, 4.125), (2, 2.0625), (3, 1.375)]
    assert run.points("train", "loss") == [(3, 3.5)]
    assert run.validated("bleu") == [(3, 31.5)]
    assert run.points("valid1", "bleu") == [(3, 12.25)]
    assert run.points(INNER, "ppl") == []
    assert (run.best_metric, run.best, run.is_distillation) == ("bleu", (3, 31.5), True)


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", "", "[" * 100_000, '{"config": 3, "parameters": "many", "starts": null}', "{}", "\xff" * 9],
    ids=range(7),
)
def test_damaged_settings(content: str, tmp_path: Path) -> None:
    """Are left out, with a note where the file is not JSON; the metrics are there."""
    report_files.run(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(content)
    run = read_run(tmp_path / "run")
    assert (run.settings, run.parameters, run.starts, run.updates) == ({}, None, 0, 1000)
    assert len(run.notes) == (not content.startswith("{") or content == "{")
    assert all("config.json' can't be read (it is not " in note for note in run.notes)


def test_settings_that_are_nested(tmp_path: Path) -> None:
    """Deeper than any setting is: they are left out."""
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    assert settings.flatten({"common": {"seed": 1, "deep": deep}, "deeper": deep}) == {"seed": 1}


def test_settings_of_several_sections() -> None:
    """A section's name tells apart values that differ."""
    config = {"a": {"_name": None, "lr": 1, "x": 2}, "b": {"_name": "word_kd", "lr": 3, "x": 2}, "y": [1]}
    assert settings.flatten(config) == {"a.lr": 1, "b.lr": 3, "x": 2, "b": "word_kd", "y": [1]}


def test_settings_side_by_side() -> None:
    """The most telling ones, and others only where runs differ; paths by their last part, and not where a run
    is kept.
    """
    both = [
        {
            "criterion": "imitkd",
            "teacher_path": "/a/t.pt:/b/u.pt",
            "clip_norm": 1.0,
            "adam_eps": 1e-8,
            "save_dir": "x",
        },
        {"criterion": "imitkd", "clip_norm": 0.0, "adam_eps": 1e-8, "save_dir": "y"},
    ]
    assert settings.compared(both) == [
        ("criterion", ["imitkd", "imitkd"]),
        ("teacher_path", ["t.pt:u.pt", ""]),
        ("clip_norm", ["1.0", "0.0"]),
    ]


def test_paths_have_their_folders_where_only_those_differ() -> None:
    """A checkpoint's folder is always named; equal paths of two runs are short."""
    runs = [
        {"data": "data-bin", "finetune_from_model": "models/a/checkpoint_best.pt", "teacher_path": "x/t.pt"},
        {"data": "s/data-bin:t/data-bin", "finetune_from_model": "models/b/checkpoint_best.pt",
         "teacher_path": "x/t.pt"},
        {"data": "s/data-bin", "finetune_from_model": None, "teacher_path": "x/t.pt"},
    ]  # fmt: skip
    assert settings.compared(runs) == [
        ("teacher_path", ["t.pt"] * 3),
        ("data", ["data-bin", "data-bin:data-bin", "data-bin"]),
        ("finetune_from_model", ["a/checkpoint_best.pt", "b/checkpoint_best.pt", ""]),
    ]
    assert settings.compared(runs[::2])[1] == ("data", ["data-bin", "s/data-bin"])


@pytest.mark.parametrize(
    "line",
    [
        "2026-01-02 03:04:05 | INFO | fairseq.trainer | begin training epoch 10",
        "2026-01-02 03:04:05 | INFO | fairseq.checkpoint_utils | Preparing to save checkpoint for epoch "
        "11 @ 1500 updates",
        "epoch 001:   5%|#         | 3/60 [00:01<00:20,  2.8it/s, loss=3.1, num_updates=3]",
        f'{report_files.TIME}train_inner | {{"loss": "nan", "num_updates": "nan"}}',
        f'{report_files.TIME}train_inner | {{"loss": "3"}}',
        f'{report_files.TIME}train_inner | {{"loss": "3", "num_updates": "1e300"}}',
        f'{report_files.TIME}train_inner | {{"loss": "3", "num_updates": "-5"}}',
        f'{report_files.TIME}train_inner | {{"loss": "3", "num_updates": {{"a": 1}}}}',
        f'{report_files.TIME}train | {{"' + "[" * 20000 + "}",
        '{"": ' + "[" * 20000 + "}",
        "\x00\xff{}|||",
    ],
    ids=range(11),
)
def test_lines_without_metrics(line: str) -> None:
    """Others that have something in common with those."""
    assert parse_log_line(line) is None
    assert parse_metrics_line(line[line.find("{") :]) is None


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        "3",
        '{"tag": 3, "num_updates": 3}',
        '{"num_updates": 3}',
        '{"tag": "train"}',
        '{"tag": "train", "num_upd',
    ],
)
def test_lines_of_a_damaged_file(line: str) -> None:
    assert parse_metrics_line(line) is None


def test_a_folder_that_may_not_be_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is a note, where Path.is_dir raises up to Python 3.13."""
    run = report_files.run(tmp_path / "run")
    hide(monkeypatch, tmp_path)
    runs, [note] = read_runs([run])
    assert runs == []
    assert note.startswith(f"RUN_DIR '{run}' can't be ")
    assert "Permission denied" in note


@pytest.mark.parametrize("form", ["metrics.jsonl", "train.log"])
def test_a_long_line_is_not_a_killed_training(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is skipped up to its end, and what follows is read."""
    monkeypatch.setattr(logs, "LONGEST_LINE", 5000)
    rows = [lined(form, {"loss": 9.0, "num_updates": update}) for update in (10, 20)]
    for long in (4999, 5000, 9999, 12000):
        (tmp_path / form).write_text("".join([rows[0], "x" * long, "\n", rows[1]]))
        run = read_run(tmp_path)
        assert (run.training("loss"), run.notes) == ([(10, 9.0), (20, 9.0)], [])
    (tmp_path / form).write_text("".join([*rows, "x" * 12000]))
    assert read_run(tmp_path).notes == [
        f"'{tmp_path / form}' ends in an incomplete line, which is skipped: the training was killed or "
        "goes on"
    ]


def lined(form: str, values: dict[str, float]) -> str:
    return report_files.line("train_inner", values) if form == "metrics.jsonl" else report_files.inner(values)


@pytest.mark.parametrize("form", ["metrics.jsonl", "train.log"])
def test_a_run_that_was_killed_and_went_on(form: str, tmp_path: Path) -> None:
    """What came after the checkpoint it went on from is dropped; a line that was cut is skipped."""
    first = [lined(form, {"loss": 9.0, "num_updates": update}) for update in (10, 20, 30, 40)]
    cut = lined(form, {"loss": 9.0, "num_updates": 500})[:-3]
    second = [lined(form, {"loss": 5.0, "num_updates": update}) for update in (25, 30)]
    file = tmp_path / form
    start, middle = (report_files.START, cut + report_files.START) if form == "train.log" else ("", "")
    file.write_text("".join([start, *first, middle, *second]))
    run = read_run(tmp_path)
    assert run.training("loss") == [(10, 9.0), (20, 9.0), (25, 5.0), (30, 5.0)]
    assert (run.starts, run.is_finished, run.notes) == (2 if start else 0, False, [])

    file.write_text("".join([start, *first, cut]))
    run = read_run(tmp_path)
    assert run.training("loss")[-1] == (40, 9.0)
    assert run.notes == [
        f"'{file}' ends in an incomplete line, which is skipped: the training was killed or goes on"
    ]


@pytest.mark.parametrize(
    ("tags", "finished"),
    [
        (["epoch_begins", "train_inner"], False),
        (["epoch_begins", "train_inner", "valid", "train"], True),
        (["epoch_begins", "train_inner", "train", "epoch_begins"], False),
        (["epoch_begins", "train", "epoch_begins", "train_inner", "valid"], False),
    ],
)
def test_whether_a_run_is_finished(tags: list[str], finished: bool, tmp_path: Path) -> None:
    """An epoch's metrics are the last line then."""
    lines = [report_files.line(tag, {"loss": 2.0, "num_updates": update}) for update, tag in enumerate(tags)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    run = read_run(tmp_path)
    assert run.is_finished is finished
    assert "epoch_begins" not in run.metrics


def test_later_values_win(tmp_path: Path) -> None:
    """Of the same update; what only the earlier line has, stays."""
    lines = [
        report_files.inner({"loss": 9.0, "wps": 3.0, "num_updates": 10}),
        report_files.inner({"loss": 8.0, "num_updates": 10}),
    ]
    (tmp_path / "train.log").write_text("".join(lines))
    run = read_run(tmp_path)
    assert (run.training("loss"), run.training("wps")) == ([(10, 8.0)], [(10, 3.0)])


def test_a_whole_run(tmp_path: Path) -> None:
    """What the tables show."""
    run = read_run(report_files.run(tmp_path / "student", seed=3))
    facts = (run.name, run.parameters, run.updates, run.is_finished, run.starts)
    assert facts == ("student", 370_176, 1000, True, 1)
    assert run.best == (1000, 29.5)
    assert [
        run.settings[name] for name in ("arch", "criterion", "divergence", "prune_scope", "seed", "lr")
    ] == [
        "transformer",
        "imitkd",
        "forward-kl",
        "global",
        3,
        [0.002],
    ]


def test_a_whole_log(tmp_path: Path) -> None:
    """It has everything but the settings."""
    run = read_run(report_files.run(tmp_path / "student", seed=3, from_log=True))
    facts = (run.name, run.parameters, run.updates, run.is_finished, run.starts)
    assert facts == ("student", 370_176, 1000, True, 1)
    assert (run.best, run.settings) == ((1000, 29.5), {})


def test_the_trainings_own_file_comes_first(tmp_path: Path) -> None:
    """Where there is a log too."""
    folder = report_files.run(tmp_path / "run")
    (folder / "train.log").write_text(report_files.inner({"loss": 9.0, "num_updates": 5000}))
    assert read_run(folder).updates == 1000
    assert read_run(folder / "train.log").updates == 5000


def test_the_best_is_the_lowest_of_a_loss(tmp_path: Path) -> None:
    """Where nothing says otherwise; the first of equals."""
    run = Run("a", tmp_path)
    for update, loss in ((10, 3.0), (20, 2.0), (30, 2.0)):
        run.add("valid", update, {"loss": loss})
    assert (run.best_metric, run.best) == ("loss", (20, 2.0))


@pytest.mark.parametrize(
    ("metric", "best"), [("chrf", 20), ("rougeL", 20), ("accuracy", 20), ("ter", 10), ("ppl", 10)]
)
def test_without_settings_the_metric_says_which_is_better(metric: str, best: int, tmp_path: Path) -> None:
    run = Run("a", tmp_path)
    for update, score in ((10, 0.25), (20, 0.5)):
        run.add("valid", update, {metric: score, f"best_{metric}": score})
    assert run.best is not None
    assert (run.best_metric, run.best[0]) == (metric, best)


def test_other_names_of_logs(tmp_path: Path) -> None:
    """A folder without train.log gives all of its logs, the oldest first. A file gives itself."""
    for number, (name, loss) in enumerate((("z.log", 9.0), ("a.log", 8.0))):
        (tmp_path / name).write_text(report_files.inner({"loss": loss, "num_updates": 10}))
        stamp = 1_700_000_000 + number
        os.utime(tmp_path / name, (stamp, stamp))
    assert read_run(tmp_path).training("loss") == [(10, 8.0)]
    assert read_run(tmp_path / "z.log").training("loss") == [(10, 9.0)]


def test_runs_that_cannot_be_read(tmp_path: Path) -> None:
    """Are a line each, with the file's name; the others are there."""
    good = report_files.run(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    simple = f"{report_files.TIME}train_inner | epoch 001:     40 / 146 loss=3, num_updates=40\n"
    files = [("garbage", "train.log", bytes(range(256)) * 99), ("nothing", "train.log", b"")]
    files += [("damaged", "metrics.jsonl", b"{}\n"), ("simple", "train.log", simple.encode())]
    for folder, name, content in files:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(content)
    paths = [tmp_path / "gone", tmp_path / "empty", *(tmp_path / folder for folder, *_ in files), good]
    runs, notes = read_runs([*paths, good])
    assert [run.name for run in runs] == ["good"]
    none = "has no metrics of a training; use metrics.jsonl, or a log of --log-format json"
    assert notes == [
        f"RUN_DIR '{paths[0]}' does not exist; use the folder of a training",
        f"RUN_DIR '{paths[1]}' has no metrics.jsonl and no log; use the --save-dir of a training, or "
        "--evaluation with the --out folder of imitkd-evaluate",
        *(f"'{tmp_path / folder / name}' {none}" for folder, name, _ in files),
        f"RUN_DIR '{good}' is given twice; it is shown once",
    ]


def test_logs_of_one_folder(tmp_path: Path) -> None:
    """Are told apart by their own names; a folder and the log in it are one run."""
    folder = report_files.run(tmp_path / "run", from_log=True)
    other = folder / "other.log"
    other.write_text((folder / "train.log").read_text())
    runs, notes = read_runs([folder, other, folder / "train.log"])
    assert [run.name for run in runs] == ["train.log", "other.log"]
    assert notes == [
        f"RUN_DIR '{folder / 'train.log'}' is given twice; it is shown once",
        "2 runs are called 'run'; they are shown as train.log, other.log",
    ]


@pytest.mark.parametrize(
    "part", ['| {"', '{"', '{"a":', "[", '"', "num. shared model params: 1,", "2026-01-02 03:04:05 | "]
)
@pytest.mark.parametrize("name", ["train.log", "metrics.jsonl"])
def test_a_hostile_line_takes_no_longer_than_it_is_long(name: str, part: str, tmp_path: Path) -> None:
    """It has as many beginnings as letters, and from each of them a parser could look to the end."""

    def seconds(count: int) -> float:
        text = f"{report_files.TIME}x | {{{part * count}"
        (tmp_path / name).write_text(f"{text}\n{text}x}}\n" + lined(name, {"loss": 1.0, "num_updates": 1}))
        begun = time.process_time()
        read_run(tmp_path)
        return time.process_time() - begun

    few, many = (min(seconds(count) for _ in range(3)) for count in (2_000, 32_000))
    assert many < 60 * few


def test_runs_of_one_name(tmp_path: Path) -> None:
    """Are told apart by as much of their paths as it takes."""
    paths = [report_files.run(tmp_path / where) for where in ("a/x/student", "b/x/student", "b/teacher")]
    runs, notes = read_runs(paths)
    assert [run.name for run in runs] == ["a/x/student", "b/x/student", "teacher"]
    assert notes == ["2 runs are called 'student'; they are shown as a/x/student, b/x/student"]


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folders are tags; without it there is a line that says what to install."""
    folder = tmp_path / "tb" / "train_inner"
    folder.mkdir(parents=True)
    (folder / "events.out.tfevents.1.host").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_accumulator", None)
    with pytest.raises(
        UsageError,
        match="has only TensorBoard's files, and reading them needs tensorboard: pip install tensorboard",
    ):
        read_run(tmp_path / "tb")


def test_real_tensorboard_files(tmp_path: Path) -> None:
    """As fairseq's own wrapper writes them."""
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    for tag, values in (("train_inner", [(10, 5.0), (20, 4.0)]), ("valid", [(20, 3.5)])):
        with SummaryWriter(str(tmp_path / "tb" / tag)) as writer:
            for update, loss in values:
                writer.add_scalar("loss", loss, update)
    run = read_run(tmp_path)
    assert run.training("loss") == [(10, 5.0), (20, 4.0)]
    assert run.validated("loss") == [(20, 3.5)]
    [damaged, *_] = (tmp_path / "tb" / "valid").iterdir()
    damaged.write_bytes(damaged.read_bytes()[:-7])
    assert read_run(tmp_path).training("loss") == [(10, 5.0), (20, 4.0)]
