"""What the console shows of fairseq's messages, and the lines that tell how far a training is."""

import logging
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.dataclass.configs import FairseqConfig
from fairseq.logging import metrics, progress_bar
from omegaconf import OmegaConf

from fairseq_imitkd.cli import console, progress
from fairseq_imitkd.cli.console import Console
from fairseq_imitkd.cli.messages import ONLY_IN_FILES, PlainMessages, shown_text
from fairseq_imitkd.warnings_shown import silence_warnings


def record(name: str, message: Any, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord(name, level, __file__, 1, message, (), None)


@pytest.mark.parametrize(
    ("name", "message", "shown"),
    [
        ("fairseq.utils", "--user-dir=/x has already been imported.", None),
        ("fairseq_cli.train", "num. shared model params: 1,234 (num. trained: 9)", "model: 1,234 parameters"),
        ("fairseq_cli.train", "Stopping training due to num_updates: 6 >= max_update: 6", None),
        ("fairseq_cli.train", "early stop since valid performance hasn't improved", "early stop since valid "
         "performance hasn't improved"),
        ("fairseq.tasks.translation", "/d valid de-en 104 examples", "data: 104 sentences of valid, de-en"),
        ("fairseq.trainer", "Loaded checkpoint s/checkpoint_best.pt (epoch 1 @ 0 updates)",
         "starts from the weights of s/checkpoint_best.pt"),
        ("fairseq.trainer", "Loaded checkpoint s/checkpoint_last.pt (epoch 3 @ 60 updates)",
         "continues s/checkpoint_last.pt after 60 updates"),
        ("fairseq_cli.generate", "Translated 9 sentences", "Translated 9 sentences"),
        ("fairseq_imitkd.text.marks", "the dictionary has subwords", "the dictionary has subwords"),
        ("users_own_method", "what a user's own code logs", "what a user's own code logs"),
    ],
)  # fmt: skip
def test_messages(name: str, message: str, shown: str | None) -> None:
    assert shown_text(record(name, message)) == shown
    assert shown_text(record(name, message, logging.WARNING)) == message


def test_plain_messages_have_the_time_and_the_level(capsys: Any) -> None:
    handler = PlainMessages(sys.stdout)
    for one in (
        record("fairseq.trainer", "can't do it", logging.WARNING),
        record("fairseq.utils", "nobody reads it"),
        record("fairseq_imitkd", "a note"),
    ):
        handler.handle(one)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith(" | warning: can't do it")
    assert second.endswith(" | a note")
    assert first[:2] == second[:2] == "20"


@pytest.mark.parametrize(
    ("words", "left", "verbose", "stock"),
    [
        ([], [], False, False),
        (["d", "--verbose", "--lr", "1"], ["d", "--lr", "1"], True, True),
        (["--log-format", "json"], ["--log-format", "json"], False, True),
        (["--log-format=simple"], ["--log-format=simple"], False, True),
        (["--log-interval", "5"], ["--log-interval", "5"], False, False),
    ],
)
def test_flags(words: list[str], left: list[str], verbose: bool, stock: bool) -> None:
    assert Console.of("train", words) == Console("train", verbose, stock)
    assert words == left


@pytest.mark.parametrize(
    ("text", "kind", "shown"),
    [
        ("\nThe version_base parameter is not specified.", UserWarning, False),
        ("hydra.experimental.compose() is no longer experimental. Use hydra.compose()", UserWarning, False),
        ("torch.cuda.amp.autocast(args...) is deprecated.", FutureWarning, False),
        ("'pin_memory' argument is set as true but no accelerator is found", UserWarning, False),
        ("CUDA initialization: the NVIDIA driver on your system is too old", UserWarning, True),
    ],
)
def test_advice_that_no_user_can_follow_is_hidden(
    text: str, kind: Any, shown: bool, monkeypatch: Any
) -> None:
    """``--verbose`` and Python's own flags show it."""
    for words, options, expected in (([], [], shown), (["--verbose"], [], True), ([], ["default"], True)):
        monkeypatch.setattr(sys, "warnoptions", options)
        with warnings.catch_warnings(record=True) as found:
            warnings.resetwarnings()
            silence_warnings(words)
            warnings.warn(text, kind, stacklevel=1)
        assert bool(found) == expected


class Clock:
    """Time that passes when a test says so."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    metrics.reset()
    return made


def configuration(**changes: Any) -> Any:
    cfg = OmegaConf.structured(FairseqConfig)
    for name, value in {
        "optimization.max_update": 100,
        "checkpoint.best_checkpoint_metric": "bleu",
        **changes,
    }.items():
        OmegaConf.update(cfg, name, value)
    return cfg


def epoch(bar: Any, clock: Clock, seconds: float, first: int) -> None:
    for number, _ in enumerate(bar, start=first):
        clock.now += seconds
        metrics.log_scalar("num_updates", number, weight=0)
        metrics.log_scalar("loss", 2.5, 10)
        metrics.log_scalar("student_share", 0.5, 10)


def test_a_line_comes_by_time(clock: Clock, caplog: Any) -> None:
    """From the first seconds on, ever more rarely, with the time that is left; the next epoch goes on."""
    caplog.set_level("INFO")
    kind = progress.bars_of(progress.Progress(configuration(), "train", None))
    epoch(kind(range(20), epoch=1), clock, 3.0, 1)
    epoch(kind(range(20), epoch=2), clock, 30.0, 21)
    lines = [each.getMessage() for each in caplog.records]
    assert lines[0] == ("update 4/100, epoch 1 | loss 2.500 | rollouts 50% | 3.0 s an update | 0:04:48 left")
    assert [line.split()[1] for line in lines[:3]] == ["4/100,", "8/100,", "12/100,"]
    assert [line.split()[1] for line in lines[-2:]] == ["36/100,", "38/100,"]
    assert not metrics._aggregators.keys() - {"default"}, "a checkpoint would hold them"


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"optimization.max_update": 0, "optimization.max_epoch": 3}, "update 4/60, epoch 1 |"),
        ({"optimization.max_epoch": 3}, "update 4/60, epoch 1 |"),
        ({"optimization.max_update": 0}, "update 4, epoch 1 | loss 2.500 | rollouts 50% | 3.0 s an update"),
        ({"common.log_interval": 2}, "update 2/100, epoch 1 |"),
    ],
)
def test_where_a_training_ends(changes: Any, first: str, clock: Clock, caplog: Any) -> None:
    """By ``--max-update`` or ``--max-epoch``, whatever comes first. ``--log-interval`` asks for more
    lines.
    """
    caplog.set_level("INFO")
    kind = progress.bars_of(progress.Progress(configuration(**changes), "train", None))
    epoch(kind(range(20), epoch=1), clock, 3.0, 1)
    assert caplog.records[0].getMessage().startswith(first)


def test_an_interval_that_is_typed_decides_alone(clock: Clock, caplog: Any) -> None:
    caplog.set_level("INFO")
    kind = progress.bars_of(progress.Progress(configuration(**{"common.log_interval": 5}), "train", None))
    epoch(kind(range(20), epoch=1), clock, 30.0, 1)
    lines = [each.getMessage().split()[1] for each in caplog.records]
    assert lines == ["5/100,", "10/100,", "15/100,", "20/100,"]


def test_a_continued_training_counts_on(clock: Clock, caplog: Any) -> None:
    """Loading a checkpoint replaces the meters that have a name. fairseq logs into the others."""
    metrics.log_scalar("num_updates", 60, weight=0)
    metrics.load_state_dict(metrics.state_dict())
    caplog.set_level("INFO")
    kind = progress.bars_of(progress.Progress(configuration(), "train", None))
    epoch(kind(range(20), epoch=1), clock, 3.0, 61)
    assert caplog.records[-1].getMessage().startswith("update 80/100, epoch 1 |")
    assert "3.0 s an update | 0:01:00 left" in caplog.records[-1].getMessage()


def test_advice_of_an_import_is_hidden() -> None:
    """A later torch warns where fairseq uses it, before the command begins."""
    program = """if True:
        import sys, warnings

        class Warner:
            def find_spec(self, name, *more):
                if name == "fairseq":
                    warnings.warn("torch.jit.script is deprecated", FutureWarning)

        sys.meta_path.insert(0, Warner())
        sys.argv = [sys.argv[1], "--data", "x"]
        import fairseq_imitkd
    """
    for name, shown in (("imitkd-export", False), ("pytest", True)):
        done = subprocess.run(
            [sys.executable, "-c", program, name], capture_output=True, text=True, check=True
        )
        assert ("torch.jit.script" in done.stderr) == shown


def test_scores_of_validations(clock: Clock, caplog: Any) -> None:
    """The metric of the best checkpoint comes first. The last line has its last value."""
    caplog.set_level("INFO")
    shared = progress.Progress(configuration(), "train", None)
    kind = progress.bars_of(shared)
    list(kind(range(3), epoch=1))
    for update, bleu in ((10, 31.5), (20, 30.0)):
        bar = kind(range(2), epoch=1, prefix="valid on 'valid' subset")
        list(bar)
        metrics.log_scalar("num_updates", update, weight=0)
        bar.print({"loss": 2.0, "bleu": bleu, "wps": 9, "best_bleu": 31.5}, tag="valid", step=update)
    clock.now += 61
    shared.done()
    assert [each.getMessage() for each in caplog.records] == [
        "valid, update 10: bleu 31.5 (best so far), loss 2",
        "valid, update 20: bleu 30, loss 2",
        "trained 20 updates in 0:01:01, last bleu 30",
    ]
    assert not any(hasattr(each, ONLY_IN_FILES) for each in caplog.records)


def test_only_a_long_validation_tells_its_batches(clock: Clock, caplog: Any) -> None:
    """However long nothing was said before it."""
    caplog.set_level("INFO")
    shared = progress.Progress(configuration(), "train", None)
    kind = progress.bars_of(shared)
    for seconds in (1, 11):
        clock.now += 600
        for _ in kind(range(2), epoch=1, prefix="valid on 'valid' subset"):
            clock.now += seconds
    assert [each.getMessage() for each in caplog.records] == ["validate valid: batch 1/2 | 0:00:11 left"]


@pytest.mark.parametrize(("rank", "ours"), [(0, True), (1, False)])
def test_one_process_draws(rank: int, ours: bool, monkeypatch: Any, tmp_path: Path) -> None:
    """The bars of the first process are ours, within fairseq's wrappers, and fairseq's own come back."""
    cfg = configuration(**{"distributed_training.distributed_rank": rank})
    stock = progress_bar.progress_bar, progress_bar.NoopProgressBar
    found = []

    def main(cfg: Any) -> str:
        bar = progress_bar.progress_bar(range(3), epoch=1, tensorboard_logdir=str(tmp_path))
        found.append(isinstance(bar.wrapped_bar, progress._Bar))
        return "done"

    monkeypatch.setitem(console._stock_mains, "train", main)
    assert console.run_main(Console("train", False, False), cfg) == "done"
    assert found == [ours]
    assert (progress_bar.progress_bar, progress_bar.NoopProgressBar) == stock


@pytest.mark.parametrize("verbose", [False, True])
def test_settings_and_models_are_not_shown(verbose: bool, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(logging.root, "handlers", [caplog.handler])
    Console("train", verbose, True).begin()
    logging.root.addHandler(caplog.handler)
    caplog.set_level("INFO")
    logger = logging.getLogger("fairseq_cli.train")
    for message in (OmegaConf.create({"a": 1}), torch.nn.Linear(2, 2), "text"):
        logger.info(message)
    Console("train", True, True).begin()
    logging.root.addHandler(caplog.handler)
    assert len(caplog.records) == (3 if verbose else 1)
