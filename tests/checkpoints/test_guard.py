"""The guard of fairseq's commands: it refuses checkpoints whose settings are code, in one line."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils

from fairseq_imitkd.checkpoints.safe_load import read_checkpoint
from fairseq_imitkd.errors import UsageError
from tests.helpers.fairseq_models import (
    STUDENTS,
    build_student,
    checkpoint_state,
    tiny_task,
    training_config,
    write_dictionaries,
)


@pytest.fixture
def state(tmp_path: Path) -> dict[str, Any]:
    """A checkpoint of a convolutional model, whose layers fairseq evaluates as Python."""
    cfg = training_config(write_dictionaries(tmp_path), "--task", "translation")
    model = build_student("fconv")
    made = checkpoint_state(model, cfg)
    made["cfg"]["model"] = Namespace(
        **{**vars(cfg.model), "arch": "fconv", "_name": "fconv", **STUDENTS["fconv"][1]}
    )
    for name in ("decoder_attention", "share_input_output_embed", "dropout"):
        setattr(made["cfg"]["model"], name, {"decoder_attention": "True", "dropout": 0.1}.get(name, False))
    made["cfg"]["model"].max_source_positions = made["cfg"]["model"].max_target_positions = 64
    return made


def written(tmp_path: Path, state: Any) -> str:
    torch.save(state, tmp_path / "student.pt")
    return str(tmp_path / "student.pt")


def evil(state: dict[str, Any], trace: Path) -> dict[str, Any]:
    """A checkpoint whose model makes a folder when it is built."""
    state["cfg"]["model"].encoder_layers = f"__import__('os').mkdir({str(trace)!r}) or [(32, 3)] * 2"
    return state


def test_code_in_settings_is_not_run(state: dict[str, Any], tmp_path: Path) -> None:
    """By whatever loads models: all of fairseq's commands do it here.

    What the user changes does not make the file better.
    """
    path = written(tmp_path, evil(state, tmp_path / "made"))
    for changes in (None, {"encoder_layers": "[(32, 3)] * 2"}):
        with pytest.raises(
            UsageError,
            match=r"its setting model\.encoder_layers holds an expression, which fairseq would run",
        ):
            checkpoint_utils.load_model_ensemble([path], arg_overrides=changes, task=tiny_task())
    with pytest.raises(UsageError, match="holds an expression"):
        checkpoint_utils.load_checkpoint_to_cpu(path)
    assert not (tmp_path / "made").exists()


def test_criterion_too(state: dict[str, Any], tmp_path: Path) -> None:
    """``fairseq-validate`` builds the criterion, and one of them evaluates a setting."""
    state["cfg"]["criterion"] = {"_name": "ctc", "wer_args": "print('x')"}
    with pytest.raises(UsageError, match=r"its setting criterion\.wer_args holds an expression"):
        checkpoint_utils.load_model_ensemble([written(tmp_path, state)], task=tiny_task())


def test_trusted_code_is_run(state: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If torch was told to trust files. So the test above would notice code that runs."""
    path = written(tmp_path, evil(state, tmp_path / "made"))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    checkpoint_utils.load_model_ensemble([path], task=tiny_task())
    assert (tmp_path / "made").is_dir()


def test_harmless_checkpoints_load(state: dict[str, Any], tmp_path: Path) -> None:
    """Layers that are numbers, file names with brackets, and overrides by the user."""
    state["cfg"]["task"].update(teacher_path="models (1)/t.pt", finetune_from_model="old (2).pt")
    path = written(tmp_path, state)
    [model], _ = checkpoint_utils.load_model_ensemble(
        [path], arg_overrides={"path": "student (3).pt"}, task=tiny_task()
    )
    for name, value in model.state_dict().items():
        assert value.equal(state["model"][name])


def test_trainer_reads_weights_alone(state: dict[str, Any], tmp_path: Path) -> None:
    """It builds no model from the file, so a training with an expression in its settings can be resumed."""
    path = written(tmp_path, evil(state, tmp_path / "made"))
    loaded = checkpoint_utils.load_checkpoint_to_cpu(path, load_on_all_ranks=False)
    assert set(loaded["model"]) == set(state["model"])
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; copy it again"),
        (b"hello", "is damaged or not a checkpoint; copy it again, or use another"),
        ([1, 2], "is not a fairseq checkpoint: it lacks 'model'"),
        (
            {"model": {}, "cfg": torch.zeros(2)},
            "is not a fairseq checkpoint: its 'cfg' must be settings, but is a Tensor",
        ),
        (
            {"model": {}, "args": torch.zeros(2)},
            "is not a fairseq checkpoint: its 'args' must be settings, but is a Tensor",
        ),
        ({"model": {}, "cfg": {"a": 1}, "extra_state": Path("x")}, "needs pathlib"),
    ],
    ids=str,
)
def test_strange_files_end_in_one_line(trains: bool, content: Any, message: str, tmp_path: Path) -> None:
    """For training and for decoding. torch's advice to load the file unsafely is not shown."""
    path = tmp_path / "strange.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UsageError) as refused:
        checkpoint_utils.load_checkpoint_to_cpu(str(path), **({"load_on_all_ranks": False} if trains else {}))
    assert str(refused.value).startswith(f"checkpoint '{path}' {message}")
    assert "\n" not in str(refused.value)
    assert "weights_only" not in str(refused.value)


@pytest.mark.parametrize("key", ["cfg", "args"])
def test_strange_settings_are_refused_where_no_model_is_built(key: str, tmp_path: Path) -> None:
    """A tensor of several values has no truth value."""
    path = written(tmp_path, {"model": {}, key: torch.zeros(2)})
    with pytest.raises(
        UsageError, match=f"CHECKPOINT '{path}' is not a fairseq checkpoint: its '{key}' must be settings"
    ):
        read_checkpoint(path, None, ("CHECKPOINT", "--allow-globals"))
