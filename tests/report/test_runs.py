"""What the report reads of fairseq's logs, TensorBoard's files and printed settings."""

import logging
import os
import sys
import time
from pathlib import Path

import pytest
from fairseq.logging.progress_bar import progress_bar

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.report import logs, settings
from fairseq_imitkd.report.logs import INNER, Run, read_figures, read_log, read_run, read_runs
from tests.helpers import in_process, report_files
from tests.helpers.evaluations import hide


@pytest.mark.parametrize("form", ["simple", "json"])
@pytest.mark.parametrize(
    "prefix", ["%(asctime)s | %(levelname)s | %(name)s | ", ""], ids=["console", "--log-file"]
)
def test_what_fairseq_itself_writes(form: str, prefix: str, tmp_path: Path) -> None:
    """By its own progress bars, and its settings as they are printed."""
    handler = logging.FileHandler(tmp_path / "train.log")
    handler.setFormatter(logging.Formatter(f"{prefix}%(message)s", "%Y-%m-%d %H:%M:%S"))
    logger = logging.getLogger("fairseq.logging.progress_bar")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        for update, _ in enumerate(
            bar := progress_bar(range(3), log_format=form, log_interval=1, epoch=2), 1
        ):
            bar.log(
                {"loss": 4.125 / update, "student_share": 0.5, "ppl": float("inf"), "num_updates": update},
                INNER,
                update,
            )
        bar.print({"loss": 3.5, "wall": 70, "num_updates": 3}, tag="train")
        for subset, bleu in (("valid", 31.5), ("valid1", 12.25)):
            bar = progress_bar([], log_format=form, epoch=2, prefix=f"valid on '{subset}' subset")
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
    assert (run.metric, run.best, run.is_distillation) == ("bleu", (3, 31.5), True)


def test_settings_that_fairseq_prints(tmp_path: Path) -> None:
    """Whatever it prints without quotation marks: its Enum members, the older Namespace of a model."""
    told = settings.parse(
        str(in_process.config(tmp_path, tmp_path, "--task", "translation_with_teacher", "--teacher-path", "t.pt",
                          "--criterion", "imitkd", "--divergence", "forward-kl"))
    )  # fmt: skip
    wanted = {
        "criterion": "imitkd", "divergence": "forward-kl", "teacher_path": "t.pt", "task": "translation_with_teacher",
        "max_tokens": 400, "lr": [0.005], "optimizer": "adam", "dropout": 0.1, "stop_min_lr": -1.0,
    }  # fmt: skip
    assert {name: told.get(name) for name in wanted} == wanted


@pytest.mark.parametrize(
    "text",
    [
        "{'a': ",
        "{'a': __import__('os').system('true')}",
        "[1]",
        "{'a': f(1)}",
        "(" * 9000,
        "{'a': 1 + 1}",
        "{**b}",
    ],
    ids=range(7),
)
def test_damaged_settings_are_none(text: str) -> None:
    """And nothing in them is run."""
    assert settings.parse(text) in ({}, {"a": None})


def test_settings_side_by_side() -> None:
    """The most telling ones, and others only where runs differ; paths by their last part, and not where a run is kept."""
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
        ("criterion", ["imitkd", "imitkd"]), ("teacher_path", ["t.pt:u.pt", ""]), ("clip_norm", ["1.0", "0.0"]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "2026-01-02 03:04:05 | INFO | fairseq.trainer | begin training epoch 10",
        "2026-01-02 03:04:05 | INFO | fairseq.checkpoint_utils | Preparing to save checkpoint for epoch 11 @ 1500 updates",
        "epoch 001:   5%|#         | 3/60 [00:01<00:20,  2.8it/s, loss=3.1, num_updates=3]",
        f"{report_files.TIME}train_inner | epoch 001:     40 / 146 loss=nan, num_updates=nan",
        f"{report_files.TIME}train_inner | epoch 001:     40 / 146 loss=3",
        f"{report_files.TIME}train_inner | epoch 001:     40 / 146 loss=3, num_updates=1e300",
        f"{report_files.TIME}train_inner | epoch 001:     40 / 146 loss=3, num_updates=-5",
        f'{report_files.TIME}train_inner | {{"loss": "3", "num_updates": {{"a": 1}}}}',
        f'{report_files.TIME}train | {{"' + "[" * 20000 + "}",
        "\x00\xff{}|||",
    ],
    ids=range(10),
)
def test_lines_without_figures(line: str) -> None:
    """Others that have something in common with those."""
    assert read_figures(line) is None


def test_a_folder_that_may_not_be_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is a note, where Path.is_dir raises up to Python 3.13."""
    run = report_files.log(tmp_path / "run")
    hide(monkeypatch, tmp_path)
    assert read_runs([run]) == ([], [f"RUN_DIR '{run}' can't be read: Permission denied"])


@pytest.mark.parametrize("form", ["simple", "json"])
def test_a_long_line_is_no_killed_training(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is skipped up to its end, and what follows is read."""
    monkeypatch.setattr(logs, "LONGEST_LINE", 5000)
    rows = [report_files.inner({"loss": 9.0, "num_updates": update}, form) for update in (10, 20)]
    for long in (4999, 5000, 9999, 12000):
        (tmp_path / "train.log").write_text(
            "".join([report_files.start(1), rows[0], "x" * long, "\n", rows[1]])
        )
        run = read_run(tmp_path)
        assert (run.training("loss"), run.notes) == ([(10, 9.0), (20, 9.0)], [])
    (tmp_path / "train.log").write_text("".join([report_files.start(1), *rows, "x" * 12000]))
    assert [note.partition("' ")[2].partition(",")[0] for note in read_run(tmp_path).notes] == [
        "ends within a line"
    ]


@pytest.mark.parametrize("form", ["simple", "json"])
def test_a_run_that_was_killed_and_went_on(form: str, tmp_path: Path) -> None:
    """What came after the checkpoint it went on from is taken back; a line that was cut is no figure."""
    first = [report_files.inner({"loss": 9.0, "num_updates": update}, form) for update in (10, 20, 30, 40)]
    cut = report_files.inner({"loss": 9.0, "num_updates": 500}, form)[:-3]
    second = [report_files.inner({"loss": 5.0, "num_updates": update}, form) for update in (25, 30)]
    log = tmp_path / "train.log"
    log.write_text("".join([report_files.start(1), *first, cut, report_files.start(2), *second]))
    run = read_run(tmp_path)
    assert run.training("loss") == [(10, 9.0), (20, 9.0), (25, 5.0), (30, 5.0)]
    assert (run.starts, run.settings["seed"], run.finished, run.notes) == (2, 2, False, [])

    log.write_text("".join([report_files.start(1), *first, cut]))
    run = read_run(tmp_path)
    assert run.training("loss")[-1] == (40, 9.0)
    assert run.notes == [
        f"'{log}' ends within a line, which is left out: the training was killed, or goes on"
    ]


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
    run = read_run(report_files.log(tmp_path / "student", seed=3))
    assert (run.name, run.parameters, run.updates, run.finished, run.starts) == (
        "student",
        370_176,
        1000,
        True,
        1,
    )
    assert run.best == (1000, 29.5)
    assert [run.settings[name] for name in ("arch", "criterion", "divergence", "prune_scope", "seed", "lr")] == [
        "transformer", "imitkd", "forward-kl", "global", 3, [0.002],
    ]  # fmt: skip


def test_the_best_is_the_lowest_of_a_loss(tmp_path: Path) -> None:
    """Where nothing says otherwise; the first of equals."""
    run = Run("a", tmp_path)
    for update, loss in ((10, 3.0), (20, 2.0), (30, 2.0)):
        run.add("valid", {"loss": loss, "num_updates": update})
    assert (run.metric, run.best) == ("loss", (20, 2.0))


@pytest.mark.parametrize(
    ("metric", "best"), [("chrf", 20), ("rougeL", 20), ("accuracy", 20), ("ter", 10), ("ppl", 10)]
)
def test_without_settings_the_metric_says_which_is_better(metric: str, best: int, tmp_path: Path) -> None:
    run = Run("a", tmp_path)
    for update, score in ((10, 0.25), (20, 0.5)):
        run.add("valid", {metric: score, f"best_{metric}": score, "num_updates": update})
    assert run.best is not None
    assert (run.metric, run.best[0]) == (metric, best)


def test_other_names_of_logs(tmp_path: Path) -> None:
    """All of them where there is no train.log, the oldest first; or the file itself."""
    for number, (name, loss) in enumerate((("z.log", 9.0), ("a.log", 8.0))):
        (tmp_path / name).write_text(report_files.inner({"loss": loss, "num_updates": 10}))
        stamp = 1_700_000_000 + number
        os.utime(tmp_path / name, (stamp, stamp))
    assert read_run(tmp_path).training("loss") == [(10, 8.0)]
    assert read_run(tmp_path / "z.log").training("loss") == [(10, 9.0)]


def test_runs_that_cannot_be_read(tmp_path: Path) -> None:
    """Are a line each, with the file's name; the others are there."""
    good = report_files.log(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    for name, content in (("garbage", bytes(range(256)) * 99), ("nothing", b"")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.log").write_bytes(content)
    paths = [tmp_path / name for name in ("gone", "empty", "garbage", "nothing", "good")]
    runs, notes = read_runs([*paths, good])
    assert [run.name for run in runs] == ["good"]
    none = "has no figures of a training: give the log of fairseq-train with --log-format simple or json"
    assert notes == [
        f"RUN_DIR '{paths[0]}' is not there: give the folder of a training",
        f"RUN_DIR '{paths[1]}' has no train.log, nor another *.log: write fairseq-train's output to one",
        f"'{paths[2] / 'train.log'}' {none}",
        f"'{paths[3] / 'train.log'}' {none}",
        f"RUN_DIR '{good}' is there twice; it is shown once",
    ]


def test_logs_of_one_folder(tmp_path: Path) -> None:
    """Are told apart by their own names; a folder and the log in it are one run."""
    folder = report_files.log(tmp_path / "run")
    other = folder / "other.log"
    other.write_text((folder / "train.log").read_text())
    runs, notes = read_runs([folder, other, folder / "train.log"])
    assert [run.name for run in runs] == ["train.log", "other.log"]
    assert notes == [
        f"RUN_DIR '{folder / 'train.log'}' is there twice; it is shown once",
        "2 runs are called 'run'; they are shown as train.log, other.log",
    ]


@pytest.mark.parametrize("part", ['| {"', "| {'", "| Namespace(", "\\'"])
def test_a_hostile_line_takes_no_longer_than_it_is_long(part: str, tmp_path: Path) -> None:
    """Of as many beginnings as it has letters, each of which could be looked into to the end."""

    def seconds(count: int) -> float:
        text = f"{report_files.TIME}x | {{'{part * count}"
        run, log = Run("r", tmp_path), tmp_path / "train.log"
        log.write_text(f"{text}\n{text}x)\n")
        begun = time.process_time()
        read_log(run, log)
        return time.process_time() - begun

    few, many = (min(seconds(count) for _ in range(3)) for count in (2_000, 32_000))
    assert many < 60 * few


def test_runs_of_one_name(tmp_path: Path) -> None:
    """Are told apart by as much of their paths as it takes."""
    paths = [report_files.log(tmp_path / where) for where in ("a/x/student", "b/x/student", "b/teacher")]
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
        UsageError, match="has TensorBoard's files and no log, which needs tensorboard: pip install tensor"
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
