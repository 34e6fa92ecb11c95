"""A run that is resumed at any moment of any epoch ends with the weights of the run that was not stopped."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq_cli import train as fairseq_train

from tests.helpers import digit_corpus, in_process
from tests.helpers.teacher_checkpoints import with_layer_drop

SENTENCES, EPOCHS = 88, 3  # six batches an epoch: five of sixteen sentences, and one of eight
FLAGS = (
    "--task", "translation_with_teacher", "--batch-size", 16,
    "--save-interval-updates", 1, "--validate-interval-updates", 10**6, "--log-interval", 100,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A method and its flags.

    Args:
        flags: flags of the training.
        updates: number of updates of an epoch.
        state: a part of the training state that the checkpoint of update 10 must hold and that must not be
            empty: without it the case shows nothing.
        teachers: number of teachers.
        validates: whether validations decide anything.
        shards: whether the second epoch reads another folder of training data, as DATA1:DATA2 does.
        more_sources: whether sources of another folder are mixed in, other ones in each epoch.
        scores: whether sentences come in the order of a file of scores.
    """

    flags: tuple[object, ...]
    updates: int = 6
    state: str = ""
    teachers: int = 1
    validates: bool = False
    shards: bool = False
    more_sources: bool = False
    scores: bool = False


CASES = {
    "references": Case(("--criterion", "cross_entropy")),
    "stock-task": Case(("--criterion", "cross_entropy", "--task", "translation")),
    "update-freq": Case(("--criterion", "imitkd", "--student-share", "0.5", "--update-freq", 2), updates=3),
    "sampling": Case(
        ("--criterion", "gkd", "--student-share", "exponential:0.1", "--rollout-policy", "sampling")
    ),
    "pool": Case(
        ("--criterion", "imitkd", "--rollout-pool-updates", 3, "--student-share", "0.7"), state="processes"
    ),
    "pool-update-freq": Case(
        ("--criterion", "imitkd", "--rollout-pool-updates", 2, "--update-freq", 2, "--student-share", "0.7"),
        updates=3,
    ),
    "replay-adaptive": Case(
        (
            "--criterion", "distillm", "--student-share", "adaptive:0.3", "--rollout-replay-share", "0.6",
            "--validate-interval-updates", 2,
        ),
        state="share",
        validates=True,
    ),
    "reward": Case(
        (
            "--criterion", "gkd", "--reward", "chrf", "--reward-weight", "0.2", "--reward-baseline",
            "running", "--rollout-policy", "sampling",
        ),
        state="baseline",
    ),
    "reinforced": Case(
        ("--criterion", "imitkd_full", "--teacher-selection", "reinforced"), state="selector", teachers=2
    ),
    "plateau": Case(
        (
            "--criterion", "word_kd", "--lr-scheduler", "reduce_lr_on_plateau", "--lr-patience", 1, "--lr",
            "0.2", "--lr-threshold", "0.5", "--patience", 9, "--warmup-updates", 0,
        ),
        state="fairseq",
        validates=True,
    ),
    "layer-drop": Case(  # a cached batch is not encoded again, and a resumed run begins without a cache
        (
            "--criterion", "imitkd", "--student-share", "0.5", "--teacher-encoder-cache", "1M",
            "--encoder-layerdrop", "0.5", "--decoder-layerdrop", "0.5", "--dropout", "0.3",
        )
    ),
    "shards": Case(("--criterion", "imitkd", "--student-share", "0.5"), shards=True),
    "more-sources": Case(  # eight of them, so an epoch has six batches too
        ("--criterion", "imitkd", "--student-share", "0.5", "--mono-source-share", "0.0834"),
        more_sources=True,
    ),
    "curriculum": Case(  # until the second epoch, so a run is cut in its order and behind it
        ("--criterion", "imitkd", "--student-share", "0.5", "--curriculum", 2), updates=6, scores=True
    ),
    "pruning-ema": Case(
        (
            "--criterion", "word_kd", "--prune-sparsity", "0.5", "--prune-end", 12, "--store-ema",
            "--ema-decay", "0.9",
        )
    ),
}  # fmt: skip
CONTAINED = ("references", "pool")  # in stock-task and pool-update-freq
CUTS = {
    6: ("checkpoint1.pt", "checkpoint_2_10.pt", "checkpoint2.pt"),
    3: ("checkpoint1.pt", "checkpoint_2_4.pt"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of three lengths, so most of a batch is drawn among sentences of equal length."""
    root = tmp_path_factory.mktemp("resume")
    for split, sentences, seed in (("train", SENTENCES, 1), ("valid", 16, 2), ("test", 16, 3)):
        digit_corpus.write_text(root, split, sentences, seed, longest=3)
    digit_corpus.binarise(root, root / "data")
    return root / "data"


@pytest.fixture(scope="module")
def second(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other training sentences with the same dictionaries."""
    root = tmp_path_factory.mktemp("second")
    for split, sentences in (("train", SENTENCES), ("valid", 16), ("test", 16)):
        digit_corpus.write_text(root, split, sentences, 4, longest=3)
    dictionaries = ("--srcdict", str(data / "dict.src.txt"), "--tgtdict", str(data / "dict.tgt.txt"))
    digit_corpus.binarise(root, root / "data", *dictionaries)
    return root / "data"


@pytest.fixture(scope="module")
def teachers(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two small teachers, as if they had been trained with LayerDrop."""
    folders = [tmp_path_factory.mktemp("teacher") for _ in range(2)]
    for seed, folder in enumerate(folders, start=1):
        in_process.train(
            data, folder, "--task", "translation", "--criterion", "cross_entropy", "--seed", seed,
            "--max-update", 30, "--batch-size", 16, "--disable-validation",
        )  # fmt: skip
    return [
        with_layer_drop(folder / "checkpoint_last.pt", folder / "with_layer_drop.pt") for folder in folders
    ]


def train(data: Path | str, folder: Path, *flags: object) -> dict[str, Any]:
    """Train, and return the last checkpoint. The checkpoints of all updates are kept."""
    cfg = in_process.config(data, folder, *flags)
    cfg.checkpoint.no_epoch_checkpoints = False
    checkpoint_utils.save_checkpoint.__dict__.pop("best", None)
    fairseq_train.main(cfg)
    return torch.load(folder / "checkpoint_last.pt", weights_only=True)


def end(state: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a checkpoint that an equal run repeats: all but times and its folder."""
    extra = state["extra_state"]
    own = extra.get("TranslationWithTeacherTask", {})
    return {
        "model": state["model"],
        "optimizer": state["last_optimizer_state"],
        "history": state["optimizer_history"][-1],
        "iterator": extra["train_iterator"],
        "ema": extra.get("ema"),
        "own": own,
        "best": extra.get("best"),
    }


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Return the names of the parts that differ in a bit."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [text for key in one for text in differences(one[key], other[key], f"{name}.{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [text for place, pair in pairs for text in differences(*pair, f"{name}.{place}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [name]
    return [] if one == other else [f"{name}: {one} and {other}"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in CONTAINED)) for name in CASES]
)
def test_resumed_run_ends_like_the_run_that_was_not_stopped(
    name: str, data: Path, second: Path, teachers: list[Path], tmp_path: Path
) -> None:
    """Weights, optimizer and training state are equal in every bit, wherever the run was cut."""
    case = CASES[name]
    folders = f"{data}:{second}" if case.shards else data
    flags = [*FLAGS, *case.flags, "--max-update", EPOCHS * case.updates]
    if not case.validates:
        flags.append("--disable-validation")
    if "cross_entropy" not in case.flags:
        flags += ["--teacher-path", ":".join(map(str, teachers[: case.teachers]))]
    if case.more_sources:
        flags += ["--mono-source-data", second]
    if case.scores:
        scores = tmp_path / "scores.txt"
        scores.write_text("".join(f"{number * 37 % SENTENCES}\n" for number in range(SENTENCES)))
        flags += ["--curriculum-scores", scores]
    whole = train(folders, tmp_path / "whole", *flags)
    assert whole["optimizer_history"][-1]["num_updates"] == EPOCHS * case.updates
    if case.state:
        middle = torch.load(tmp_path / "whole" / "checkpoint_2_10.pt", weights_only=True)
        assert middle["extra_state"]["TranslationWithTeacherTask"][case.state]
    for cut in CUTS[case.updates]:
        folder = tmp_path / cut
        folder.mkdir()
        shutil.copy(tmp_path / "whole" / cut, folder / "checkpoint_last.pt")
        assert differences(end(train(folders, folder, *flags)), end(whole)) == [], cut


@pytest.mark.parametrize(
    ("flags", "updates"),
    [
        (("--max-update", 7), 7),  # within an epoch
        pytest.param(("--max-update", 12), 12, marks=pytest.mark.slow),  # at the end of one
        pytest.param(("--max-epoch", 1), 6, marks=pytest.mark.slow),
        (("--lr", 1e-9, "--warmup-updates", 0, "--lr-scheduler", "fixed", "--patience", 1), None),
    ],
    ids=["max-update", "end-of-epoch", "max-epoch", "patience"],
)
def test_the_command_of_a_finished_run_changes_nothing(
    flags: tuple[object, ...], updates: int | None, data: Path, tmp_path: Path
) -> None:
    """A run may be killed after its last checkpoint; fairseq alone would take one more update."""
    given = ("--task", "translation_with_teacher", "--criterion", "cross_entropy", "--batch-size", 16)
    run = tmp_path / "run"
    first = train(data, run, *given, *flags)
    made = first["optimizer_history"][-1]["num_updates"]
    assert made == updates or updates is None
    files = {path.name: path.read_bytes() for path in run.glob("*.pt")}
    again = train(data, run, *given, *flags)
    assert again["optimizer_history"][-1]["num_updates"] == made
    assert {path.name: path.read_bytes() for path in run.glob("*.pt")} == files
    if "--max-update" in flags:
        more = train(data, run, *given, "--max-update", made + 2)
        assert more["optimizer_history"][-1]["num_updates"] == made + 2


@pytest.mark.parametrize("flags", [(), ("--restore-file", "checkpoint_1_3.pt")], ids=["last", "restore-file"])
def test_what_a_killed_run_has_half_written_is_removed(
    flags: tuple[str, ...], data: Path, tmp_path: Path
) -> None:
    """Whatever the run continues from."""
    own = ("--task", "translation_with_teacher", "--criterion", "cross_entropy", "--batch-size", 16)
    train(data, tmp_path, *own, "--max-update", 3, "--save-interval-updates", 1)
    for name in ("checkpoint_last.pt", "config.json"):
        (tmp_path / f"{name}.0123456789abcdef.partial").write_bytes(b"half")
    given = [tmp_path / value if value.endswith(".pt") else value for value in flags]
    train(data, tmp_path, *own, "--max-update", 4, *given)
    assert not list(tmp_path.glob("*.partial"))


def test_a_damaged_checkpoint_gives_way_to_one_of_the_same_training(data: Path, tmp_path: Path) -> None:
    """A newer checkpoint of another criterion in the same folder is not continued from."""
    own = ("--task", "translation_with_teacher", "--criterion", "cross_entropy", "--batch-size", 16)
    run, other = tmp_path / "run", tmp_path / "other"
    whole = train(data, run, *own, "--max-update", 8)
    train(data, other, *own, "--criterion", "label_smoothed_cross_entropy", "--max-update", 20)
    shutil.copy(other / "checkpoint_last.pt", run / "checkpoint_best.pt")
    (run / "checkpoint_last.pt").write_bytes((run / "checkpoint_last.pt").read_bytes()[:-500])
    again = train(data, run, *own, "--max-update", 8)
    assert (run / "checkpoint_last.pt.damaged").exists()
    assert differences(again["model"], whole["model"]) == []
