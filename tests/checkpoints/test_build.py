"""Configurations: expressions and strange settings are refused; old checkpoints load."""

import argparse
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.models import BaseFairseqModel

from fairseq_imitkd.checkpoints.build import refuse_expressions
from tests.helpers.fairseq_models import (
    POSITIONS,
    build_student,
    checkpoint_state,
    training_args,
)
from tests.helpers.teacher_checkpoints import (
    fconv_args,
    harm,
    legacy_state,
    load,
    refusal,
    saved,
    state_with,
)


def test_legacy_checkpoint_with_args_loads(folder: Path, model: BaseFairseqModel) -> None:
    """Before 2020 fairseq wrote an ``argparse.Namespace`` and no ``cfg``."""
    args = training_args(folder, "--task", "translation")
    state = checkpoint_state(model, None, args=args)
    del state["cfg"]
    assert isinstance(args, argparse.Namespace)
    [loaded] = load(saved(folder, state, "legacy.pt")).models
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_weights_that_do_not_fit_are_refused(folder: Path, cfg: Any, model: BaseFairseqModel) -> None:
    """The weights belong to another configuration."""
    weights = dict(model.state_dict())
    del weights["decoder.output_projection.weight"]
    path = saved(folder, {**checkpoint_state(model, cfg), "model": weights}, "misfit.pt")
    assert f"--teacher-path '{path}' can't be used" in refusal(path)


def test_the_harmful_expression_is_harmful(tmp_path: Path) -> None:
    """Its evaluation, as text or as bytes, creates the file, so the tests below would notice it."""
    for number, form in enumerate((str, str.encode)):
        trace = tmp_path / f"executed-{number}"
        eval(form(harm(trace)))
        assert trace.exists()


EXPRESSIONS = {
    "call": "__import__('os').system('touch {trace}')",
    "call-in-a-list": "[__import__('os').system('touch {trace}')]",
    "call-in-a-layer": "[(32, 3), (32, __import__('os').system('touch {trace}'))] * 2",
    "call-without-quotes": "[exec(chr(49))]",
    "comprehension": "[x for x in [1]]",
    "subscript-of-a-name": "sys.modules[0]",
    "format-string": "f'{{1}}'",
    "power": "2**3",
    "power-in-brackets": "[(2**3, 3)]",
}


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_expression_in_a_setting_is_refused_and_does_nothing(
    folder: Path, tmp_path: Path, cfg: Any, model: BaseFairseqModel, expression: str
) -> None:
    """fairseq evaluates the cutoff as Python, and the safe loader accepts any text."""
    trace = tmp_path / "executed"
    state = state_with(model, cfg, "model", adaptive_softmax_cutoff=expression.format(trace=trace))
    path = saved(folder, state, "expression.pt")
    message = refusal(path)
    assert not trace.exists()
    assert f"--teacher-path '{path}'" in message
    assert "model.adaptive_softmax_cutoff holds an expression" in message


@pytest.mark.parametrize(
    ("name", "text"),
    [("prompt_symbol", "TL;DR"), ("prompt_symbol", "f(*)"), ("curriculum_scores", "my (scores)/easy.txt")],
)
def test_symbols_and_file_names_may_hold_anything(name: str, text: str) -> None:
    """Nothing evaluates them. Another setting with the same text is refused."""
    refuse_expressions({"task": {name: text}, "model": {}})
    with pytest.raises(ValueError, match="holds an expression"):
        refuse_expressions({"task": {"other": text}, "model": {}})


@pytest.mark.parametrize("setting", ["encoder_layers", "decoder_layers", "decoder_attention"])
def test_expression_in_an_old_checkpoint_is_refused(folder: Path, tmp_path: Path, setting: str) -> None:
    """Also in the older ``args``, and for another architecture."""
    trace, args = tmp_path / "executed", fconv_args(folder)
    setattr(args, setting, f"[{harm(trace)}] * 2")
    message = refusal(saved(folder, legacy_state(args, build_student("fconv").state_dict()), "expression.pt"))
    assert not trace.exists()
    assert f".{setting} holds an expression" in message


@pytest.mark.parametrize("disguise", [bytes, bytearray])
def test_expression_in_bytes_is_refused_and_does_nothing(folder: Path, tmp_path: Path, disguise: Any) -> None:
    """Python evaluates bytes like text, and the safe loader accepts them."""
    trace, args = tmp_path / "executed", fconv_args(folder)
    args.encoder_layers = disguise(harm(trace).encode())
    message = refusal(saved(folder, legacy_state(args, build_student("fconv").state_dict()), "expression.pt"))
    assert not trace.exists()
    assert ".encoder_layers holds " in message


@pytest.mark.parametrize("part", ["task", "model"])
@pytest.mark.parametrize(
    ("nest", "name"),
    [
        (lambda text: {"cutoff": text}, "cutoff"),
        (lambda text: argparse.Namespace(cutoff=text), "cutoff"),
        (lambda text: {"decoder": argparse.Namespace(inner={"cutoff": text})}, "cutoff"),
        (lambda text: [1, text], "1"),
        (lambda text: {"data_path": [text]}, "0"),
    ],
    ids=["mapping", "namespace", "namespace-in-a-mapping", "list", "list-of-paths"],
)
def test_nested_expression_is_refused(
    folder: Path, tmp_path: Path, cfg: Any, model: BaseFairseqModel, part: str, nest: Any, name: str
) -> None:
    """At any depth, in the settings of the task and of the model."""
    trace = tmp_path / "executed"
    message = refusal(saved(folder, state_with(model, cfg, part, inner=nest(harm(trace))), "expression.pt"))
    assert not trace.exists()
    assert f"its setting {part}.{name} holds an expression" in message


def test_reference_to_another_setting_is_not_followed(
    folder: Path, tmp_path: Path, model: BaseFairseqModel
) -> None:
    """A path may hold any character, so another setting must not take its value."""
    trace = tmp_path / "executed"
    cfg = {"_name": "fconv", "some_path": harm(trace), "encoder_layers": "${model.some_path}"}
    state = checkpoint_state(model, {"task": {"_name": "translation", "data": str(folder)}, "model": cfg})
    assert "model.encoder_layers refers to another value" in refusal(saved(folder, state, "expression.pt"))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eval_bleu_args", '{"beam": 1}'),
        ("eval_metrics", "chrf,rouge-l"),
        ("eval_bleu_detok_args", '{"target_lang": "de"}'),
        ("adam_betas", "(0.9, 0.98)"),
        ("post_process", "@@ "),
        ("eval_bleu_remove_bpe", "@@ "),
        ("cross_self_attention_text", "True"),
        ("encoder_kernel_size_text", "[3, 7, 15, 31]"),
        ("encoder_layers_text", "[(512, 3)] * 4 + [(1024, -1)]"),
        ("save_dir", "/runs (2019)/it's [old]; copy"),
        ("tensorboard_logdir", "/logs (2019)"),
        ("pretrained_path", "/models (copy)/bart.pt"),
        ("restore_file", "checkpoint (1).pt"),
        ("valid_data", "/data (new)"),
        ("distributed_init_method", "tcp://10.0.0.1:29500"),
        ("source_note", "zh-Hans, 中文"),
        ("nothing", ""),
    ],
)
def test_harmless_text_is_accepted(
    folder: Path, cfg: Any, model: BaseFairseqModel, name: str, value: str
) -> None:
    """As in fairseq's checkpoints: numbers in brackets, JSON, subword marks, and any path."""
    path = saved(folder, state_with(model, cfg, "model", **{name: value}), "harmless.pt")
    assert len(load(path).models) == 1


def test_convolutional_teacher_loads(folder: Path) -> None:
    """Its layers are an expression of numbers, which fairseq evaluates, and its attention is ``True``."""
    model, args = build_student("fconv"), fconv_args(folder)
    assert (args.encoder_layers, args.decoder_attention) == ("[(32, 3)] * 2", "True")
    args.max_source_positions = args.max_target_positions = POSITIONS
    [loaded] = load(saved(folder, legacy_state(args, model.state_dict()), "fconv.pt")).models
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_oldest_checkpoint_loads(folder: Path, model: BaseFairseqModel) -> None:
    """From 2017: with ``best_loss``, the optimizer's state and the epoch instead of ``optimizer_history``."""
    state = {
        "args": training_args(folder, "--task", "translation"),
        "model": model.state_dict(),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(8)}}, "param_groups": []},
        "best_loss": 3.0,
        "epoch": 4,
        "batch_offset": 0,
        "val_loss": 3.1,
    }
    path = saved(folder, state, "oldest.pt", _use_new_zipfile_serialization=False)
    [loaded] = load(path).models
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    del state["epoch"], state["batch_offset"], state["val_loss"]
    assert len(load(saved(folder, state, "oldest.pt")).models) == 1


def strange(state: dict[str, Any], part: str, change: Any) -> None:
    """Exchange a part of a checkpoint's configuration, or one setting of it."""
    if part == "cfg":
        state["cfg"] = change
    elif isinstance(change, dict):
        node = state["cfg"][part]
        (vars(node) if isinstance(node, argparse.Namespace) else node).update(change)
    else:
        state["cfg"][part] = change


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("cfg", [1, 2]),
        ("cfg", "a text"),
        ("cfg", 7),
        ("cfg", {"task": {}}),
        ("cfg", torch.ones(1)),
        ("cfg", torch.ones(2)),
        ("task", None),
        ("task", "translation"),
        ("task", {"_name": "no_such_task"}),
        ("model", None),
        ("model", [1]),
        ("model", {"_name": "no_such_arch", "arch": "no_such_arch"}),
        ("model", {"encoder_layers": "many"}),
    ],
    ids=str,
)
def test_strange_configuration_is_refused(
    folder: Path, cfg: Any, model: BaseFairseqModel, part: str, change: Any
) -> None:
    """In one line that names the file, whatever fairseq raises."""
    state = copy.deepcopy(checkpoint_state(model, cfg))
    strange(state, part, change)
    path = saved(folder, state, "strange.pt")
    assert f"--teacher-path '{path}' " in refusal(path)


@pytest.mark.parametrize(
    "setting", [{"arch": "no_such_arch"}, {"task": "no_such_task"}, {"arch": None}, {"task": None}], ids=str
)
def test_strange_arguments_are_refused(
    folder: Path, model: BaseFairseqModel, setting: dict[str, Any]
) -> None:
    """The same for an old checkpoint's ``args``."""
    args = training_args(folder, "--task", "translation")
    vars(args).update(setting)
    path = saved(folder, legacy_state(args, model.state_dict()), "strange.pt")
    assert f"--teacher-path '{path}' " in refusal(path)


def test_checkpoint_without_weights_is_refused(folder: Path, cfg: Any, model: BaseFairseqModel) -> None:
    """``model`` exists but is not a mapping of tensors."""
    for weights in (None, [], 3, {"encoder": 1}):
        path = saved(folder, {**checkpoint_state(model, cfg), "model": weights}, "weights.pt")
        assert f"--teacher-path '{path}' " in refusal(path)
