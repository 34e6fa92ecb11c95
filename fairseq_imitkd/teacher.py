"""The frozen teacher: loaded safely, checked against the student's dictionaries, asked for its logits.

It is no part of any module: no optimizer, checkpoint or distributed wrapper ever sees it.
"""

import importlib
import json
import logging
import math
import os
import pickle
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils, tasks
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf, overwrite_args_by_name
from fairseq.models import BaseFairseqModel, FairseqEncoderDecoderModel
from fairseq.models.bart import BARTModel
from fairseq.models.lstm import LSTMModel
from fairseq.models.transformer import TransformerModelBase
from omegaconf import Container, OmegaConf
from torch import Tensor

from fairseq_imitkd.batch import Batch
from fairseq_imitkd.divergences import full_precision
from fairseq_imitkd.encoder_cache import EncoderCache
from fairseq_imitkd.errors import UsageError

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class StudentSide:
    """What of the student's task a teacher must agree with."""

    source_lang: str
    target_lang: str
    source_dictionary: Dictionary
    target_dictionary: Dictionary


class Teacher:
    """One frozen model, or an ensemble whose probabilities are averaged.

    Args:
        models: encoder-decoder models over the student's dictionaries.
        dtype: ``fp32``, ``fp16``, ``bf16``, or ``auto``: the student's own.
        cache: where encoder outputs are kept; None keeps none.
    """

    def __init__(self, models: Sequence[BaseFairseqModel], dtype: str = "auto", cache: EncoderCache | None = None):
        self.models = [_without_attention_weights(model.eval().requires_grad_(False)) for model in models]
        self.dtype = dtype
        self.cache = cache
        self._dtype: torch.dtype | None = None
        self._placed_on: torch.device | None = None

    def place(self, device: torch.device, student_dtype: torch.dtype) -> None:
        """Move to the student's device, in the dtype asked for, the first time: rounding could not be undone later."""
        if self._placed_on != device:
            self._dtype = self._dtype or DTYPES.get(self.dtype, student_dtype)
            self.models = [model.to(device=device, dtype=self._dtype) for model in self.models]
            self._placed_on = device

    @property
    def max_positions(self) -> tuple[int, int]:
        """The longest source and target, in tokens, that every member can represent."""
        limits = [model.max_positions() for model in self.models]
        return min(source for source, _ in limits), min(target for _, target in limits)

    @torch.no_grad()
    def encode(self, sample: Batch) -> list[Any]:
        """Each member's encoder output for a batch, for :meth:`score`; None for a member that can't encode apart.

        With a cache, a batch that was encoded before (the same sentences in the same order, as fairseq's batches come
        back every epoch) is not encoded again, and its logits are bitwise the same.
        """
        known = self.cache.find(sample) if self.cache else None
        if known is not None:
            return known
        net_input = {name: value for name, value in sample["net_input"].items() if name != "prev_output_tokens"}
        encoded = [model.encoder(**net_input) if _encodes_apart(model, net_input) else None for model in self.models]
        if self.cache:
            self.cache.keep(sample, encoded)
        return encoded

    @torch.no_grad()
    def score(self, sample: Batch, encoded: Sequence[Any] | None = None, rows: Tensor | None = None) -> Tensor:
        """The teacher's logits at every prefix of the batch.

        Args:
            sample: a batch with ``net_input`` for ``B`` sentences of ``T`` target positions, on the teacher's device.
            encoded: what :meth:`encode` gave for the batch that this one is part of; None encodes anew.
            rows: ``(B,)`` int64, the rows of that batch that this one holds; None is all of them.

        Returns:
            ``(B, T, V)`` logits. For an ensemble, the log of the mean of the members' probabilities.
        """
        logits = [
            self._logits(model, sample, None if encoded is None else encoded[number], rows)
            for number, model in enumerate(self.models)
        ]
        if len(logits) == 1:
            return logits[0]
        lprobs = [full_precision(member).log_softmax(dim=-1) for member in logits]
        return torch.stack(lprobs).logsumexp(dim=0) - math.log(len(self.models))

    def _logits(self, model: BaseFairseqModel, sample: Batch, encoder_out: Any, rows: Tensor | None) -> Tensor:
        net_input = sample["net_input"]
        if encoder_out is None:
            return model(**net_input)[0]
        if rows is not None:
            encoder_out = model.encoder.reorder_encoder_out(encoder_out, rows)
        return model.decoder(net_input["prev_output_tokens"], encoder_out=encoder_out)[0]


def _without_attention_weights(model: BaseFairseqModel) -> BaseFairseqModel:
    """In evaluation mode fairseq's decoder layers also average attention weights over heads, which nobody reads here."""
    for module in model.modules():
        if getattr(module, "need_attn", None) is True:
            module.need_attn = False
    return model


def _encodes_apart(model: BaseFairseqModel, encoder_input: Batch) -> bool:
    """Whether a model's forward pass is fairseq's: its encoder's, then its decoder's, and nothing else.

    What the decoder reads of an encoder's output is then all that the encoder gives by default.
    """
    stock = (FairseqEncoderDecoderModel.forward, TransformerModelBase.forward, BARTModel.forward, LSTMModel.forward)
    return type(model).forward in stock and encoder_input.keys() == {"src_tokens", "src_lengths"}


def load_teacher(
    paths: str,
    student: StudentSide,
    dtype: str = "auto",
    data: str | None = None,
    allow_globals: str | None = None,
    encoder_cache: int = 0,
) -> Teacher:
    """Load the teacher's checkpoints and make sure that they speak the student's dictionaries.

    Args:
        paths: ``--teacher-path``: checkpoint files joined by ``:``.
        student: the dictionaries and languages to agree with.
        dtype: ``--teacher-dtype``.
        data: ``--teacher-data``: the folder with the dictionaries that the teacher was trained with. By default they
            are looked for beside the checkpoint and in the folder that the checkpoint names.
        allow_globals: ``--teacher-allow-globals``: names to add to the safe loader's allow-list, joined by commas.
        encoder_cache: bytes to keep encoder outputs in; 0 keeps none.

    Raises:
        UsageError: a file is missing, unreadable, unsafe or no translation model, or a dictionary differs.
    """
    models = []
    for path in paths.split(os.pathsep):
        state = _read_checkpoint(path, allow_globals)
        with _reported(path):
            cfg = _config(state)
            _refuse_expressions(cfg)
            _check_languages(cfg, student)
            models.append(_build_model(state, cfg, _dictionary_folder(path, cfg, student, data), student))
        logger.info("teacher %s: %s parameters", path, f"{sum(p.numel() for p in models[-1].parameters()):,}")
    return Teacher(models, dtype, EncoderCache(encoder_cache) if encoder_cache else None)


def check_files(paths: str | None) -> None:
    """Refuse a missing or unreadable ``--teacher-path`` before anything slow happens.

    Raises:
        UsageError: no path was given, or one is no readable file.
    """
    if not paths:
        raise UsageError("--teacher-path is not given: name the teacher's checkpoint, or several joined by ':' (an ensemble)")
    for path in paths.split(os.pathsep):
        if not Path(path).is_file():
            raise UsageError(f"--teacher-path '{path}' is no file: give the path of a fairseq checkpoint (.pt)")
        if not os.access(path, os.R_OK):
            raise UsageError(f"--teacher-path '{path}' can't be read: check the file's permissions")


def _read_checkpoint(path: str, allow_globals: str | None) -> dict[str, Any]:
    """The checkpoint's configuration and weights, by torch's safe loader. The optimizer's state is never kept."""
    check_files(path)
    try:
        with torch.serialization.safe_globals(_named_globals(allow_globals)):
            # Memory-mapped: the optimizer's state, twice the model's size, is then not even read.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        blocked = re.findall(r"GLOBAL ([\w.]+) whose module \S+ is blocked", str(error))
        if blocked:
            raise UsageError(
                f"--teacher-path '{path}' holds {', '.join(blocked)}, which torch's safe loader never allows: don't use it"
            ) from error
        unsafe = _unsafe_globals(path, allow_globals) or re.findall(r"GLOBAL (\S+) was not an allowed", str(error))
        unsafe = [name for name in unsafe if re.fullmatch(r"[\w.]+", name)]  # the file's author wrote these names
        if not unsafe:
            raise UsageError(f"--teacher-path '{path}' is no checkpoint that torch can read: {_first_line(error)}") from error
        raise UsageError(
            f"--teacher-path '{path}' needs {', '.join(unsafe)}, which torch's safe loader does not allow; if you trust "
            f"the file and these names, add --teacher-allow-globals {','.join(unsafe)}"
        ) from error
    except UsageError:
        raise
    except Exception as error:  # whatever a foreign file makes the unpickler raise
        raise UsageError(f"--teacher-path '{path}' is no checkpoint that torch can read: {_first_line(error)}") from error
    if not isinstance(state, dict) or "model" not in state or not (state.get("cfg") or state.get("args")):
        raise UsageError(f"--teacher-path '{path}' is no fairseq checkpoint: it lacks 'model' and 'cfg' (or 'args')")
    for key in ("last_optimizer_state", "optimizer"):
        state.pop(key, None)
    return state


def _named_globals(names: str | None) -> list[Any]:
    found = []
    for name in filter(None, (names or "").split(",")):
        module, _, attribute = name.strip().rpartition(".")
        try:
            found.append(getattr(importlib.import_module(module), attribute))
        except (ImportError, AttributeError, ValueError) as error:
            raise UsageError(f"--teacher-allow-globals '{name}' must be an importable module.name: {error}") from error
    return found


def _unsafe_globals(path: str, allow_globals: str | None) -> list[str]:
    try:
        with torch.serialization.safe_globals(_named_globals(allow_globals)):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        return []


def _is_zip(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _first_line(error: Exception) -> str:
    """What went wrong, without torch's advice to load the file unsafely."""
    reason = str(error).rsplit("WeightsUnpickler error:", 1)[-1]
    return reason.strip().split("\n")[0] or type(error).__name__


@contextmanager
def _reported(path: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes one line that names the checkpoint: fairseq raises anything on a strange one."""
    try:
        yield
    except (UsageError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"--teacher-path '{path}' can't be used: {detail[:300]}") from error


def _config(state: dict[str, Any]) -> Any:
    """The configuration that the teacher was trained with, old checkpoints upgraded as fairseq does."""
    state = dict(state)
    if not state.get("optimizer_history"):  # very old, or slimmed by its owner
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


# fairseq evaluates some of a model's settings as Python ("[(512, 3)] * 4", "True"). A checkpoint is untrusted, so a text
# may be a plain word or path, numbers in brackets, or JSON; nothing that could call. Names of files are never evaluated.
_PLAIN_TEXT = re.compile(r"(?:(?!\*\*)[^()\[\]{}'\"`\\;])*")
_NUMBERS = re.compile(r"(?:True|False|None|[\d\s.,()\[\]+-]|(?<!\*)\*(?!\*))*")


def _refuse_expressions(cfg: Any) -> None:
    """Refuse a configuration in which fairseq would run code of the checkpoint's author."""
    for part in ("task", "model"):
        for name, value in _settings(cfg[part]):
            if value is None or isinstance(value, bool | int | float) or name.endswith(("dir", "path", "file", "data")):
                continue
            if not isinstance(value, str):  # Python evaluates bytes as it does text
                raise ValueError(f"its setting {part}.{name} holds {type(value).__name__}, which is no plain value")
            if not (_PLAIN_TEXT.fullmatch(value) or _NUMBERS.fullmatch(value) or _is_json(value)):
                raise ValueError(f"its setting {part}.{name} holds an expression, which fairseq would run: {value[:60]!r}")


def _settings(node: Any) -> Iterator[tuple[str, Any]]:
    """Every setting of a configuration, nested ones too, without resolving any reference."""
    if isinstance(node, Namespace):
        node = vars(node)
    if isinstance(node, Container):
        node = OmegaConf.to_container(node, resolve=False)
    for name, value in node.items() if isinstance(node, Mapping) else enumerate(node):
        if isinstance(value, Namespace | Mapping | Container | list | tuple):
            yield from _settings(value)
        else:
            yield str(name), value


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _check_languages(cfg: Any, student: StudentSide) -> None:
    """A teacher of the other direction shares a joined dictionary, and would teach nonsense."""
    teacher_pair = tuple(getattr(cfg.task, name, None) for name in ("source_lang", "target_lang"))
    student_pair = (student.source_lang, student.target_lang)
    if None in teacher_pair or teacher_pair == student_pair:
        return
    if teacher_pair == student_pair[::-1]:
        raise ValueError(
            f"it translates {'-'.join(teacher_pair)}, but the student {'-'.join(student_pair)}: give a teacher of that"
        )
    logger.warning("the teacher translates %s, the student %s: make sure that they mean the same", teacher_pair, student_pair)


def _build_model(state: dict[str, Any], cfg: Any, folder: Path, student: StudentSide) -> BaseFairseqModel:
    """The teacher's model, built by its own task so that nothing of the student's task is touched."""
    source_lang, target_lang = _languages(cfg, student)
    overrides = {
        "data": str(folder),
        "source_lang": source_lang,
        "target_lang": target_lang,
        "eval_bleu": False,
        "encoder_embed_path": None,
        "decoder_embed_path": None,
    }
    overwrite_args_by_name(cfg, overrides)
    task = tasks.setup_task(cfg.task, from_checkpoint=True)
    _check_dictionary(f"{folder}/dict.{source_lang}.txt", task.source_dictionary, student.source_dictionary)
    _check_dictionary(f"{folder}/dict.{target_lang}.txt", task.target_dictionary, student.target_dictionary)
    model = task.build_model(cfg.model, from_checkpoint=True)
    model.load_state_dict(state["model"], strict=True, model_cfg=cfg.model)
    if not hasattr(model, "encoder") or not hasattr(model, "decoder"):
        raise ValueError(f"it holds a {type(model).__name__}, but must hold an encoder-decoder model")
    if getattr(model.decoder, "adaptive_softmax", None) is not None:
        raise ValueError("it has an adaptive softmax, which gives no logits over the whole vocabulary")
    return model


def _check_dictionary(name: str, theirs: Dictionary, own: Dictionary) -> None:
    """Compare symbol by symbol: equal sizes with shifted symbols would train on nonsense."""
    difference = first_difference(theirs.symbols, own.symbols)
    if difference is not None:
        index, theirs_symbol, own_symbol = difference
        raise UsageError(
            f"the teacher's dictionary {name} differs from the student's at index {index}: teacher '{theirs_symbol}', "
            f"student '{own_symbol}'; binarise the student's data with the teacher's dictionaries "
            "(fairseq-preprocess --srcdict --tgtdict)"
        )


def first_difference(teacher_symbols: Sequence[str], student_symbols: Sequence[str]) -> tuple[int, str, str] | None:
    """Where two dictionaries part: ``(index, teacher's symbol, student's symbol)``, or None when they are equal.

    A dictionary that ends early counts as holding ``(nothing)`` there.
    """
    nothing = "(nothing)"
    for index in range(max(len(teacher_symbols), len(student_symbols))):
        theirs = teacher_symbols[index] if index < len(teacher_symbols) else nothing
        own = student_symbols[index] if index < len(student_symbols) else nothing
        if theirs != own:
            return index, theirs, own
    return None


def _dictionary_folder(path: str, cfg: Any, student: StudentSide, data: str | None) -> Path:
    source_lang, target_lang = _languages(cfg, student)
    names = [f"dict.{language}.txt" for language in (source_lang, target_lang)]
    saved = (getattr(cfg.task, "data", None) or "").split(os.pathsep)[0]
    folders = [Path(data)] if data else [Path(path).resolve().parent, *([Path(saved)] if saved else [])]
    for folder in folders:
        if all((folder / name).is_file() for name in names):
            logger.info("teacher %s: dictionaries of %s", path, folder)
            return folder
    raise UsageError(
        f"the teacher's dictionaries {' and '.join(names)} are not in {' or '.join(map(str, folders))}: "
        "--teacher-data must name the folder that holds the ones it was trained with"
    )


def _languages(cfg: Any, student: StudentSide) -> tuple[str, str]:
    source_lang = getattr(cfg.task, "source_lang", None) or student.source_lang
    target_lang = getattr(cfg.task, "target_lang", None) or student.target_lang
    return source_lang, target_lang
