"""Checkpoints of teachers, as fairseq saves them and altered, and the messages that refuse them."""

import argparse
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import BaseFairseqModel

from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.teacher.loading import load_teacher
from fairseq_imitkd.teacher.source import TeacherSource
from fairseq_imitkd.teacher.teacher import Teacher
from tests.helpers.fairseq_models import (
    checkpoint_state,
    letters,
    tiny_task,
    training_config,
    write_dictionaries,
)

SIZES = tuple(
    f"--{side}-{size}"
    for side in ("encoder", "decoder")
    for size in ("layers=1", "embed-dim=32", "ffn-embed-dim=32", "attention-heads=2")
)
STUDENT_SIDE = LanguagePair("src", "tgt", letters(), letters())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with dictionaries of the letters."""
    return write_dictionaries(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def cfg(folder: Path) -> Any:
    """The configuration of a translation model trained in that folder."""
    return training_config(folder, "--task", "translation")


@pytest.fixture(scope="module")
def model(cfg: Any) -> BaseFairseqModel:
    """The weights of a model."""
    torch.manual_seed(4)
    return tiny_task().build_model(cfg.model)


def untrained(folder: Path, task: str, *flags: str) -> dict[str, Any]:
    """Return the checkpoint of a small untrained model of a task.

    Args:
        folder: folder with dictionaries of the languages src and tgt.
        task: the task's name.
        flags: further flags, with ``--arch``.
    """
    arguments = [str(folder), "--source-lang", "src", "--target-lang", "tgt", "--task", task, *SIZES, *flags]
    args = options.parse_args_and_arch(options.get_training_parser(), arguments)
    cfg = convert_namespace_to_omegaconf(args)
    return checkpoint_state(tasks.setup_task(cfg.task).build_model(cfg.model), cfg)


def saved(folder: Path, state: Any, name: str = "teacher.pt", **flags: Any) -> str:
    """Save an object by ``torch.save`` and return the path."""
    torch.save(state, folder / name, **flags)
    return str(folder / name)


def load(path: str, **settings: Any) -> Teacher:
    """Load the teacher of a checkpoint."""
    return load_teacher(TeacherSource(path, **settings), STUDENT_SIDE)


def refusal(path: str, **settings: Any) -> str:
    """Return the message with which loading ends."""
    with pytest.raises(UsageError) as error:
        load(path, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def harm(trace: Path) -> str:
    """Return a Python expression that creates a file when it is evaluated."""
    return f"__import__('os').system('touch {trace}')"


def state_with(model: BaseFairseqModel, cfg: Any, part: str, **settings: Any) -> dict[str, Any]:
    """Return a checkpoint's state with other settings of its task or model."""
    state = copy.deepcopy(checkpoint_state(model, cfg))
    node = state["cfg"][part]
    (vars(node) if isinstance(node, argparse.Namespace) else node).update(settings)
    return state


def with_layer_drop(teacher: Path, path: Path) -> Path:
    """Save a transformer's checkpoint as that of a model which was trained with LayerDrop."""
    state = torch.load(teacher, weights_only=True)
    for side in ("encoder", "decoder"):
        setattr(state["cfg"]["model"], f"{side}_layerdrop", 0.5)
    torch.save(state, path)
    return path


def fconv_args(folder: Path) -> argparse.Namespace:
    """Return the arguments of a convolutional model. fairseq evaluates its layers and attention as Python."""
    arguments = [
        str(folder), "--source-lang", "src", "--target-lang", "tgt", "--cpu", "--task", "translation",
        "--arch", "fconv",
        "--encoder-embed-dim", "32", "--encoder-layers", "[(32, 3)] * 2", "--decoder-embed-dim", "32",
        "--decoder-layers", "[(32, 3)] * 2", "--decoder-out-embed-dim", "32",
    ]  # fmt: skip
    return options.parse_args_and_arch(options.get_training_parser(), arguments)


def legacy_state(args: argparse.Namespace, weights: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint with ``args``, as written before ``cfg`` existed."""
    return {"args": args, "model": weights, "optimizer_history": [], "extra_state": {"epoch": 1}}
