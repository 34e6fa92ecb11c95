"""Builds a checkpoint's model from its untrusted configuration, in which fairseq would run code."""

import json
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fairseq import checkpoint_utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import BaseFairseqModel
from omegaconf import Container, OmegaConf

from fairseq_imitkd.checkpoints.bounds import check_expression
from fairseq_imitkd.checkpoints.budget import budget_of

# fairseq evaluates some of a model's settings as Python ("[(512, 3)] * 4", "True"), for example in
# https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/models/fconv.py#L123
# So a text may be a plain word or path, numbers in brackets, or JSON: nothing that could call a function, or
# stand for much, such as 1<<80000000000.
_PLAIN_TEXT = re.compile(r"(?:(?!<<)[^()\[\]{}'\"`\\;*])*")
_NUMBERS = re.compile(r"(?:True|False|None|[\d\s.,()\[\]+-]|(?<!\*)\*(?!\*))*")
# The files that embeddings start from. A checkpoint holds the trained ones.
EMBEDDING_FILES = ("encoder_embed_path", "decoder_embed_path")
# Settings whose names end so hold file names, which are never evaluated.
_FILE_SETTINGS = ("dir", "path", "file", "data", "finetune_from_model", "teacher_cache", "curriculum_scores")
_SYMBOLS = ("prompt_symbol",)  # any text may be a symbol, and nothing evaluates it


def configuration(state: dict[str, Any]) -> Any:
    """Return the configuration of a checkpoint. Old checkpoints are upgraded by fairseq's function.

    Args:
        state: content of the checkpoint, which stays unchanged.

    Raises:
        ValueError: the checkpoint does not name its task and model.
    """
    state = dict(state)
    if not state.get("optimizer_history"):  # a very old checkpoint, or one that was made smaller
        state.pop("best_loss", None)
        state["optimizer_history"] = [{"optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}]
    state.setdefault("extra_state", {"epoch": 1})
    if state.get("cfg") is not None:
        state["cfg"] = OmegaConf.create(state["cfg"], flags={"allow_objects": True})
    state = checkpoint_utils._upgrade_state_dict(state)
    cfg = convert_namespace_to_omegaconf(state["args"]) if state.get("args") is not None else state["cfg"]
    if cfg.get("task") is None or cfg.get("model") is None:
        raise ValueError("it does not say which task and model it holds")
    return cfg


def refuse_expressions(cfg: Any, parts: Sequence[str] = ("task", "model")) -> None:
    """Refuse a configuration with settings that could run code of the checkpoint's author.

    Args:
        cfg: configuration of a checkpoint.
        parts: the parts of it from which something is built.

    Raises:
        ValueError: a setting holds an expression.
    """
    for part in parts:
        for name, value in _settings(cfg[part]):
            if isinstance(value, str) and "${" in value:
                raise ValueError(f"its setting {part}.{name} refers to another value: {value[:60]!r}")
            if value is None or isinstance(value, bool | int | float) or name.endswith(_FILE_SETTINGS):
                continue
            if isinstance(value, str) and name in _SYMBOLS:
                continue
            if not isinstance(value, str):  # Python evaluates bytes, too
                raise ValueError(
                    f"its setting {part}.{name} holds {type(value).__name__}, which is not a plain value"
                )
            if not (_PLAIN_TEXT.fullmatch(value) or _is_numbers(value, f"{part}.{name}") or _is_json(value)):
                raise ValueError(
                    f"its setting {part}.{name} holds an expression, which fairseq would run: {value[:60]!r}"
                )


def build_model(state: dict[str, Any], cfg: Any, task: Any) -> BaseFairseqModel:
    """Build a checkpoint's model and load its weights.

    Args:
        state: content of the checkpoint.
        cfg: its configuration, seen to hold no expressions.
        task: task that builds the model.
    """
    with budget_of(state["model"].values()):
        model = task.build_model(cfg.model, from_checkpoint=True)
    model.load_state_dict(state["model"], strict=True, model_cfg=cfg.model)
    return model


def _settings(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of every setting, nested ones too, without resolving any reference."""
    if isinstance(node, Namespace):
        node = vars(node)
    if isinstance(node, Container):
        node = OmegaConf.to_container(node, resolve=False)
    for name, value in node.items() if isinstance(node, Mapping) else enumerate(node):
        if isinstance(value, Namespace | Mapping | Container | list | tuple):
            yield from _settings(value)
        else:
            yield str(name), value


def _is_numbers(text: str, name: str) -> bool:
    """Return whether a text is made of numbers and brackets.

    Raises:
        ValueError: it is, but stands for a list or a number that is too large.
    """
    if not _NUMBERS.fullmatch(text):
        return False
    try:
        check_expression(text)
    except ValueError as error:
        raise ValueError(f"its setting {name} can't be read: {error}: {text[:60]!r}") from error
    return True


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
