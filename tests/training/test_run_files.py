"""``config.json``, ``metrics.jsonl`` and ``train.log`` hold what fairseq logs, across kills and restarts."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.logging import metrics
from omegaconf import OmegaConf

from fairseq_imitkd.training import run_files
from fairseq_imitkd.training.run_files import RunFiles, continue_metrics
from fairseq_imitkd.training.train_log import LOG, TrainLog
from tests.helpers import in_process

# Rates are read some microseconds after the progress bar shows them.
RATES = ("wps", "ups", "wall", "train_wall")


@pytest.fixture(autouse=True)
def ended_log() -> Iterator[None]:
    yield
    TrainLog.attached().close()


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the lines of a training by tag."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in (folder / run_files.METRICS).read_text().splitlines():
        content = json.loads(line)
        found.setdefault(content.pop("tag"), []).append(content)
    return found


def flags(updates: int, *more: object) -> tuple[object, ...]:
    return (
        "--task", "translation_with_teacher", "--criterion", "label_smoothed_cross_entropy",
        "--max-update", updates, "--validate-interval-updates", 4, *more,
    )  # fmt: skip


@pytest.mark.parametrize("log_format", ["json", "simple", "none", "tqdm"])
def test_every_log_format(log_format: str, digits: Any, tmp_path: Path) -> None:
    """The metrics are in the file under their own names, also for a criterion that is not the plugin's."""
    done = in_process.train(
        digits.data, tmp_path, *flags(8, "--no-save", "--log-format", log_format, "--log-interval", 2)
    )
    lines = read(tmp_path)
    assert [line["num_updates"] for line in lines["train_inner"]] == [2, 4, 6, 8]
    assert [line["num_updates"] for line in lines["valid"]] == [4, 8]
    assert [(line["epoch"], line["num_updates"]) for line in lines["train"]] == [(1, 8)]
    assert [(line["epoch"], line["num_updates"]) for line in lines["epoch_begins"]] == [(1, 0)]
    assert {"loss", "nll_loss", "ppl", "lr", "gnorm", "wps", "ups", "wall", "train_wall"} <= set(
        lines["train_inner"][0]
    )
    if log_format == "json":
        for tag in ("train_inner", "valid"):
            for line, logged in zip(lines[tag], done.metrics[tag], strict=True):
                logged.pop("update", None)
                assert set(line) == set(logged) | {"cpu_seconds"}
                for name in set(logged) - set(RATES):
                    assert line[name] == pytest.approx(logged[name], rel=1e-4, abs=1e-6), name


def test_the_configuration(digits: Any, tmp_path: Path) -> None:
    """The file holds the whole configuration and the versions of the software."""
    in_process.train(digits.data, tmp_path, *flags(2, "--no-save", "--disable-validation"))
    content = json.loads((tmp_path / run_files.CONFIG).read_text())
    assert (content["format"], content["starts"]) == (1, 1)
    assert content["parameters"] > 1000
    assert {"fairseq_imitkd", "Python", "torch", "fairseq"} == set(content["versions"])
    config = content["config"]
    assert config["criterion"]["_name"] == "label_smoothed_cross_entropy"
    assert config["optimization"]["max_update"] == 2
    assert config["model"]["arch"] == "transformer"
    assert config["task"]["teacher_selection"] == "fixed"


def test_several_validation_sets(digits: Any, tmp_path: Path) -> None:
    """Each set is logged under its own name at every validation."""
    more = ("--no-save", "--valid-subset", "valid,test", "--dataset-impl", "mmap")
    in_process.train(digits.data, tmp_path, *flags(8, *more))
    lines = read(tmp_path)
    assert [[line["num_updates"] for line in lines[tag]] for tag in ("valid", "test")] == [[4, 8]] * 2
    assert lines["valid"][0]["loss"] != lines["test"][0]["loss"]


def test_a_resumed_run_continues(digits: Any, tmp_path: Path) -> None:
    """It resumes before the last line: later lines and a torn one are removed, and no line occurs twice."""
    in_process.train(digits.data, tmp_path, *flags(8, "--save-interval-updates", 4, "--log-interval", 1))
    whole = read(tmp_path)
    path = tmp_path / run_files.METRICS
    path.write_text(path.read_text() + '{"tag": "train_inner", "num_upd')
    (tmp_path / "checkpoint_last.pt").write_bytes((tmp_path / "checkpoint_1_4.pt").read_bytes())
    in_process.train(digits.data, tmp_path, *flags(10, "--save-interval-updates", 4, "--log-interval", 1))
    lines = read(tmp_path)
    assert [line["num_updates"] for line in lines["train_inner"]] == list(range(1, 11))
    assert [line["num_updates"] for line in lines["valid"]] == [4, 8, 10]
    assert [line["num_updates"] for line in lines["train"]] == [10]
    assert [line["num_updates"] for line in lines["epoch_begins"]] == [0, 4]
    for before, after in zip(whole["train_inner"], lines["train_inner"], strict=False):
        assert before["loss"] == pytest.approx(after["loss"])
    spent = [line["cpu_seconds"] for line in lines["train_inner"]]
    assert spent == sorted(spent)
    assert lines["valid"][0]["cpu_seconds"] == whole["valid"][0]["cpu_seconds"]
    assert spent[4] >= whole["valid"][0]["cpu_seconds"] > 0  # the resumed run adds to what was spent
    assert json.loads((tmp_path / run_files.CONFIG).read_text())["starts"] == 2
    assert (tmp_path / LOG).read_text().count("done training") == 2  # a log by time
    in_process.train(digits.data, tmp_path, *flags(12, "--save-interval-updates", 4, "--log-interval", 1))
    lines = read(tmp_path)
    assert [line["num_updates"] for line in lines["train_inner"]] == list(range(1, 13))
    assert [line["num_updates"] for line in lines["valid"]] == [4, 8, 10, 12]
    assert [line["num_updates"] for line in lines["epoch_begins"]] == [0, 4, 10]
    assert json.loads((tmp_path / run_files.CONFIG).read_text())["starts"] == 3


def test_cpu_seconds_are_those_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses do not count, and an earlier start's seconds do."""
    now = 100.0
    monkeypatch.setattr(run_files.time, "process_time", lambda: now)
    seconds = run_files.CpuSeconds(7.0)
    now = 103.0
    seconds.pause()
    now = 120.0
    seconds.pause()  # another validation set
    assert seconds.read() == 10.0
    seconds.go_on()
    seconds.go_on()
    now = 121.0
    assert seconds.read() == 11.0


def test_validation_takes_no_training_seconds(
    digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two validation sets, the seconds of neither count."""
    clock = 0.0
    monkeypatch.setattr(run_files.time, "process_time", lambda: clock)
    kept = RunFiles.post_validate

    def slow(self: RunFiles, stats: Any) -> None:
        nonlocal clock
        clock += 50.0
        kept(self, stats)

    monkeypatch.setattr(RunFiles, "post_validate", slow)
    more = ("--no-save", "--valid-subset", "valid,test", "--dataset-impl", "mmap")
    in_process.train(digits.data, tmp_path, *flags(8, *more))
    lines = read(tmp_path)
    assert clock == 200.0
    assert {line["cpu_seconds"] for tag in ("valid", "test", "train") for line in lines[tag]} == {0.0}


def test_a_new_run_in_a_used_folder_begins_a_new_file(digits: Any, tmp_path: Path) -> None:
    for updates in (6, 3):
        in_process.train(digits.data, tmp_path, *flags(updates, "--no-save", "--disable-validation"))
    assert [line["num_updates"] for line in read(tmp_path)["train_inner"]] == [1, 2, 3]
    assert json.loads((tmp_path / run_files.CONFIG).read_text())["starts"] == 1
    assert (tmp_path / LOG).read_text().count("done training") == 1


def test_a_refused_training_leaves_no_log(tmp_path: Path) -> None:
    """What was said before a training begins is in its file all the same; what can't be written is lost."""
    log = TrainLog()
    log.emit(logging.makeLogRecord({"msg": "before"}))
    assert not list(tmp_path.iterdir())
    log.begin(tmp_path, continues=False)
    log.emit(logging.makeLogRecord({"msg": "after \udcff", "levelname": "INFO", "name": "x"}))
    assert [line.rpartition(" | ")[2] for line in (tmp_path / LOG).read_text().splitlines()] == [
        "before",
        "after ?",
    ]
    with pytest.raises(OSError):
        TrainLog().begin(tmp_path / "missing", continues=True)


def test_lines_to_continue(tmp_path: Path) -> None:
    """After a kill or an edit, only whole lines up to the update stay."""
    path = tmp_path / run_files.METRICS
    assert continue_metrics(path, 5) == {}
    good = [
        '{"tag": "train_inner", "num_updates": 2}\n',
        '{"tag": "valid", "num_updates": 5, "loss": "inf"}\n',
    ]
    bad = [
        "[1]\n",
        "{}\n",
        "\n",
        '{"tag": "valid", "num_updates": 6}\n',
        '{"tag": "valid", "num_updates": "x"}\n',
        "[" * 9999,
    ]
    path.write_text("".join([good[0], *bad[:-1], good[1], bad[-1]]))
    assert continue_metrics(path, 5) == {"train_inner": 2, "valid": 5}
    assert path.read_text() == "".join(good)
    assert [each.name for each in tmp_path.iterdir()] == [run_files.METRICS]


def begun(folder: Path, rank: int = 0) -> RunFiles:
    """Return the files of a training that has begun, without a training."""
    config = OmegaConf.create(
        {
            "task": {"data": "x"},
            "checkpoint": {
                "save_dir": str(folder),
                "best_checkpoint_metric": "loss",
                "maximize_best_checkpoint_metric": False,
            },
            "dataset": {"valid_subset": "valid", "disable_validation": False},
            "distributed_training": {"distributed_rank": rank},
        }
    )
    files = RunFiles(config.task)
    files.begin_epoch(1, torch.nn.Linear(2, 2))
    return files


@pytest.fixture
def fresh_metrics() -> Any:
    metrics.reset()
    yield
    metrics.reset()


@pytest.mark.usefixtures("fresh_metrics")
def test_only_the_first_process_writes(tmp_path: Path) -> None:
    begun(tmp_path, rank=1).post_validate({"loss": 1.0, "num_updates": 1})
    assert list(tmp_path.iterdir()) == []
    RunFiles(None).begin_epoch(1, torch.nn.Linear(2, 2))


@pytest.mark.usefixtures("fresh_metrics")
def test_values_that_json_lacks(tmp_path: Path) -> None:
    """JSON has neither infinities nor NaN. Values that are not numbers are left out."""
    stats = {
        "loss": float("inf"),
        "ppl": torch.tensor(float("nan")),
        "bleu": torch.tensor(2.5),
        "text": "x",
        "num_updates": 3,
    }
    begun(tmp_path).post_validate(stats)
    values = {"epoch": 1, "num_updates": 3, "loss": "inf", "ppl": "nan", "bleu": 2.5}
    assert read(tmp_path)["valid"] == [values | {"cpu_seconds": 0.0}]


@pytest.mark.usefixtures("fresh_metrics")
def test_updates_that_are_counted_again(tmp_path: Path) -> None:
    """After ``--reset-optimizer`` the lines of the earlier count are removed."""
    files = begun(tmp_path)
    for update in (4, 8, 8, 4, 6):
        files.post_validate({"loss": float(update), "num_updates": update})
    assert [line["num_updates"] for line in read(tmp_path)["valid"]] == [4, 6]


@pytest.mark.usefixtures("fresh_metrics")
def test_a_full_disk_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = begun(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    for update in (1, 2):
        files.post_validate({"loss": 1.0, "num_updates": update})
    monkeypatch.undo()
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.endswith("can't be written (No space left on device); training goes on without them")
    begun(tmp_path / "gone")
    assert "(No such file or directory)" in caplog.messages[-1]
