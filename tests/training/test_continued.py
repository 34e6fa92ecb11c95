"""The checkpoint that a training continues from is compared with the student before any data is read."""

import functools
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.models import BaseFairseqModel
from omegaconf import DictConfig, OmegaConf

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.training.continued import check_continued
from tests.helpers.fairseq_models import build_student


class ImitKD:
    """Stands for a criterion. fairseq stores the name of its class."""


@functools.cache
def student(**changes: Any) -> BaseFairseqModel:
    return build_student("transformer", **changes)


def run(folder: Path, *, optimizer: str = "adam", **changed: Any) -> DictConfig:
    """Return the configuration of a training that saves to this folder."""
    checkpoint = {"save_dir": str(folder), "restore_file": "checkpoint_last.pt", **changed}
    return OmegaConf.create(
        {"checkpoint": checkpoint, "optimizer": {"_name": optimizer}, "model": {"_name": "transformer"}},
        flags={"allow_objects": True},
    )


def save(
    path: Path, model: BaseFairseqModel, criterion: str = "ImitKD", optimizer: str = "FairseqAdam"
) -> Path:
    """Write what fairseq writes and this module reads."""
    path.parent.mkdir(exist_ok=True)
    history = [{"criterion_name": criterion, "optimizer_name": optimizer}]
    torch.save(
        {
            "model": model.state_dict(),
            "args": Namespace(),
            "optimizer_history": history,
            "last_optimizer_state": {"state": {}},
        },
        path,
    )
    return path


def refusal(config: DictConfig, model: BaseFairseqModel) -> str:
    with pytest.raises(UsageError) as refused:
        check_continued(config, model, ImitKD())
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_nothing_to_continue_from_and_the_same_student(tmp_path: Path) -> None:
    check_continued(run(tmp_path), student(), ImitKD())
    file = save(tmp_path / "checkpoint_last.pt", student())
    for config in (run(tmp_path), run(tmp_path / "new", finetune_from_model=str(file))):
        check_continued(config, student(), ImitKD())


def test_another_student(tmp_path: Path) -> None:
    """The first weight that differs is named, and the remedy fits the flag."""
    file = save(tmp_path / "checkpoint_last.pt", student(encoder_ffn_embed_dim=48))
    unlike = "encoder.layers.0.fc1.weight is 48x32 there and 32x32 here"
    assert refusal(run(tmp_path), student()) == (
        f"--save-dir '{tmp_path}': its checkpoint_last.pt is of another student ({unlike}): use "
        "another --save-dir, or that student's flags"
    )
    for name in ("restore_file", "continue_once", "finetune_from_model"):
        flag = "--" + name.replace("_", "-")
        assert refusal(run(tmp_path / "new", **{name: str(file)}), student()) == (
            f"{flag} '{file}' is of another student ({unlike}): use one of this student, or that student's "
            "flags"
        )


def test_more_and_fewer_layers(tmp_path: Path) -> None:
    file = str(save(tmp_path / "two.pt", student(decoder_layers=2)))
    assert " is 32x32 there and missing here" in refusal(run(tmp_path, restore_file=file), student())
    file = str(save(tmp_path / "one.pt", student()))
    message = refusal(run(tmp_path, restore_file=file), student(decoder_layers=2))
    assert " is missing there and 32x32 here" in message


def test_another_architecture(tmp_path: Path) -> None:
    file = str(save(tmp_path / "lstm.pt", build_student("lstm")))
    assert f"--restore-file '{file}' is of another student (" in refusal(
        run(tmp_path, restore_file=file), student()
    )


@pytest.mark.parametrize(
    ("saved", "changed", "differs"),
    [
        ({"criterion": "CrossEntropyCriterion"}, {}, "--criterion (cross_entropy, here ImitKD)"),
        ({"optimizer": "SGD"}, {}, "--optimizer (SGD, here FairseqAdam)"),
        ({}, {"optimizer": "nag"}, "--optimizer (FairseqAdam, here FairseqNAG)"),
    ],
)
def test_another_criterion_or_optimizer(
    saved: dict[str, str], changed: dict[str, str], differs: str, tmp_path: Path
) -> None:
    """fairseq can't continue with its state. The weights alone can be a start."""
    file = save(tmp_path / "checkpoint_last.pt", student(), **saved)
    assert refusal(run(tmp_path, **changed), student()) == (
        f"--save-dir '{tmp_path}': its checkpoint_last.pt was trained with another {differs}: use "
        "another --save-dir, and --finetune-from-model to start from its weights"
    )
    message = refusal(run(tmp_path / "new", restore_file=str(file), **changed), student())
    assert message.endswith(f"{differs}: use --finetune-from-model to start from its weights")
    for start in ({"finetune_from_model": str(file)}, {"restore_file": str(file), "reset_optimizer": True}):
        check_continued(run(tmp_path / "new", **start, **changed), student(), ImitKD())


@pytest.mark.parametrize(
    "stored",
    [
        {"cfg": {"lr_scheduler": {"_name": "fixed"}}},
        {"cfg": {"lr_scheduler": Namespace(_name="fixed")}, "args": None},
        {"args": Namespace(lr_scheduler="fixed")},
    ],
)
def test_another_schedule_of_the_learning_rate(stored: dict[str, Any], tmp_path: Path) -> None:
    """fairseq would read its state as this one's, and end with ``KeyError``."""
    file = save(tmp_path / "checkpoint_last.pt", student())
    torch.save({**torch.load(file, weights_only=False), **stored}, file)

    def with_schedule(name: str | None, **changed: Any) -> DictConfig:
        return OmegaConf.merge(run(tmp_path, **changed), {"lr_scheduler": {"_name": name}})

    remedy = "was begun with --lr-scheduler fixed; use it again, another"
    for changed, named in (
        ({}, f"--save-dir '{tmp_path}' {remedy} --save-dir"),
        ({"restore_file": str(file)}, f"--restore-file '{file}' {remedy} --restore-file"),
    ):
        message = refusal(with_schedule("inverse_sqrt", **changed), student())
        assert message == f"{named}, or --reset-lr-scheduler"
    for config in (
        with_schedule("fixed"),
        with_schedule("inverse_sqrt", reset_lr_scheduler=True),
        with_schedule("inverse_sqrt", reset_optimizer=True),
    ):
        check_continued(config, student(), ImitKD())


@pytest.mark.parametrize(
    ("half", "name"),
    [
        ({"fp16": True}, "FP16Optimizer"),
        ({"bf16": True}, "FP16Optimizer"),
        ({"fp16": True, "memory_efficient_fp16": True}, "MemoryEfficientFP16Optimizer"),
        ({"amp": True}, "AMPOptimizer"),
        ({"use_bmuf": True}, "FairseqBMUF"),
    ],
)
def test_the_optimizer_s_name_in_half_precision(half: dict[str, bool], name: str, tmp_path: Path) -> None:
    """fairseq wraps the optimizer then, and stores the wrapper's name."""
    save(tmp_path / "checkpoint_last.pt", student(), optimizer=name)
    check_continued(run(tmp_path, **half), student(), ImitKD())
    assert f"--optimizer ({name}, here FairseqAdam)" in refusal(run(tmp_path), student())


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    """A damaged newest checkpoint is left to what looks for an older one."""
    damaged = tmp_path / "checkpoint_last.pt"
    damaged.write_text("no checkpoint")
    check_continued(run(tmp_path), student(), ImitKD())
    for name in ("restore_file", "finetune_from_model"):
        message = refusal(run(tmp_path / "new", **{name: str(damaged)}), student())
        assert message.startswith(f"--{name.replace('_', '-')} '{damaged}' is damaged or not a checkpoint")
    averaged = {"ema_seed_model": str(damaged)}
    assert refusal(run(tmp_path / "new", store_ema=True, **averaged), student()).startswith(
        "--ema-seed-model"
    )
    check_continued(run(tmp_path / "new", **averaged), student(), ImitKD())


def test_averaged_weights_to_start_from(tmp_path: Path) -> None:
    """fairseq meets a checkpoint without them with ``KeyError``."""
    plain = save(tmp_path / "plain.pt", student())
    config = functools.partial(run, tmp_path / "new", store_ema=True)
    message = refusal(config(ema_seed_model=str(plain)), student())
    assert message.startswith(f"--ema-seed-model '{plain}' holds no averaged weights: use a checkpoint")
    state = torch.load(plain, weights_only=False)
    averaged = tmp_path / "averaged.pt"
    torch.save({**state, "extra_state": {"ema": state["model"]}}, averaged)
    check_continued(config(ema_seed_model=str(averaged)), student(), ImitKD())
    message = refusal(config(ema_seed_model=str(averaged)), student(encoder_ffn_embed_dim=48))
    assert "is of another student (encoder.layers.0.fc1.weight is 32x32 there and 48x32 here)" in message
