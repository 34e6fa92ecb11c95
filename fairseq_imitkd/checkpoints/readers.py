"""Checks the dictionaries and tasks of checkpoints where fairseq's own commands read them."""

import functools
import inspect
import logging
import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from fairseq.models.nat import FairseqNATModel
from fairseq.tasks import TASK_REGISTRY
from fairseq.tasks.translation import TranslationTask
from fairseq.tasks.translation_lev import TranslationLevenshteinTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask

from fairseq_imitkd.checkpoints.budget import budget_of
from fairseq_imitkd.checkpoints.build import configuration
from fairseq_imitkd.checkpoints.direction import check_direction, flags_of
from fairseq_imitkd.checkpoints.guard import all_are_trusted, read_stock
from fairseq_imitkd.checkpoints.kinds import task_name
from fairseq_imitkd.checkpoints.progress import check_progress
from fairseq_imitkd.checkpoints.safe_load import reported
from fairseq_imitkd.checkpoints.tags import SETTING, is_multilingual, language_tags
from fairseq_imitkd.data.dictionaries import check_fingerprints, dictionaries_of, fingerprints

logger = logging.getLogger(__name__)


def check_fairseqs_readers() -> None:
    """Make fairseq's trainings, and its commands that decode, check the checkpoints that they read.

    The replacements hold for the whole process, for the reason that
    :func:`~fairseq_imitkd.checkpoints.guard.guard_fairseq` gives.
    """
    begin, load_models = checkpoint_utils.load_checkpoint, checkpoint_utils.load_model_ensemble_and_task

    @functools.wraps(begin)
    def begin_checked(cfg: Any, trainer: Any, **settings: Any) -> Any:
        if _has_one_pair(trainer.task):  # every checkpoint of this training stores them
            trainer.task.state.merge_state_dict(fingerprints(dictionaries_of(trainer.task)))
        trainer.load_checkpoint = functools.partial(_load_into, trainer, trainer.load_checkpoint)
        try:
            return begin(cfg, trainer, **settings)
        finally:
            del trainer.load_checkpoint

    @functools.wraps(load_models)
    def load_models_checked(*arguments: Any, **settings: Any) -> Any:
        given = inspect.signature(load_models).bind(*arguments, **settings).arguments
        paths = [
            checkpoint_utils.get_maybe_sharded_checkpoint_filename(
                name, given.get("suffix", ""), 0, given.get("num_shards", 1)
            )
            for name in (given["filenames"] if given.get("state") is None else ())
        ]
        states = _read(paths)
        if given.get("task") is not None:
            _check(states, given["task"], decodes=True)
        # Of a model in several files, the first one does not tell its size.
        limited = states and given.get("num_shards", 1) == 1
        weights = [value for state in states.values() for value in state["model"].values()] if limited else ()
        with _reported(paths), budget_of(weights) if limited else nullcontext():
            models, cfg, task = load_models(*arguments, **settings)
        if given.get("task") is None:
            _check(states, task, decodes=True)
        for path, model in zip(paths, models, strict=False):
            with reported(path, "checkpoint"):
                _check_decoding(model, task)
        return models, cfg, task

    checkpoint_utils.load_checkpoint = begin_checked
    checkpoint_utils.load_model_ensemble_and_task = load_models_checked


def _load_into(trainer: Any, load: Any, filename: str, *arguments: Any, **settings: Any) -> Any:
    """Load a checkpoint into a training, if its dictionaries are those of the training.

    Every process reads the fingerprints itself, so that all of them end alike.

    Raises:
        UsageError: the dictionaries differ, the training's record is damaged, or the weights are not in use.
    """
    if PathManager.isfile(filename):
        _check(_read([filename]), trainer.task, decodes=False)
    with _reported([filename]):
        return load(filename, *arguments, **settings)


@contextmanager
def _reported(paths: list[str]) -> Iterator[None]:
    """Turn any exception while fairseq loads checkpoints into one line that names them.

    fairseq's trainer replaces every exception by one of its own, which has the first one as its context:
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/trainer.py#L587-L592

    Raises:
        UsageError: the enclosed code raised an exception.
    """
    with reported(os.pathsep.join(paths), "checkpoint"):
        try:
            yield
        except Exception as error:
            if type(error) is Exception and isinstance(error.__context__, Exception):
                raise error.__context__ from None
            raise


def _has_one_pair(task: Any) -> bool:
    """Return whether a task has one source and one target dictionary, the same in training and decoding."""
    return isinstance(task, TranslationTask) or getattr(task, "has_teacher", False)


def _read(paths: list[str]) -> dict[str, dict[str, Any]]:
    """Return the content of checkpoints by path; of none if torch was told that all files are trusted.

    Raises:
        UsageError: naming the file.
    """
    if all_are_trusted():
        return {}
    return {path: read_stock(str(PathManager.get_local_path(path))) for path in paths}


def _check(states: dict[str, dict[str, Any]], task: Any, *, decodes: bool) -> None:
    """Refuse checkpoints that were trained with other dictionaries, in decoding with tags, and in training
    those that can't be continued.

    Raises:
        UsageError: naming the file.
    """
    for path, state in states.items():
        with reported(path, "checkpoint"):
            if _has_one_pair(task):
                check_fingerprints(state, dictionaries_of(task))
            if not decodes:
                check_progress(state)
            elif state.get("cfg") is not None or state.get("args") is not None:
                cfg = configuration(state)
                _check_tags(cfg, task)
                _check_direction(cfg, task)


def _check_tags(cfg: Any, task: Any) -> None:
    """Refuse to decode a model of several languages by a task that feeds it no language tags, or others."""
    kind = TASK_REGISTRY.get(task_name(cfg))
    is_multi = kind is not None and issubclass(kind, TranslationMultiSimpleEpochTask)
    if is_multi and isinstance(task, TranslationMultiSimpleEpochTask):
        _check_same_tags(cfg, task)
        return
    tags = language_tags(cfg.task)
    if tags and kind is not None and not isinstance(task, kind):
        raise ValueError(
            f"it was trained by --task {task_name(cfg)} with the language tags {tags}; add that --task and "
            "its flags"
        )
    if tags and getattr(cfg.task, SETTING, None) is not None:
        logger.warning("the data must hold the language tags %s: imitkd-encode --tags writes them", tags)


def _check_same_tags(cfg: Any, task: Any) -> None:
    """Refuse flags that feed a model of several languages other tags than its training did."""
    pair = (task.args.source_lang, task.args.target_lang)
    theirs = language_tags(cfg.task, pair)
    fed = language_tags(Namespace(**{**vars(task.args), "task": task_name(cfg)}), pair)
    if theirs != fed:
        raise ValueError(
            f"it reads {theirs or 'no tags'}, but the flags give {fed or 'none'}; use those of its training "
            "(--encoder-langtok, …)"
        )


def _check_direction(cfg: Any, task: Any) -> None:
    """Refuse to decode a model of one language pair in the opposite direction."""
    pair = tuple(getattr(task.cfg, name, None) for name in ("source_lang", "target_lang"))
    if isinstance(task, TranslationTask) and None not in pair and not is_multilingual(cfg.task):
        source, target = map(str, pair)
        check_direction(
            cfg,
            (source, target),
            reader="DATA is read as",
            remedy=f"use {flags_of((target, source))}",
            data=task.cfg.data,
        )


def _check_decoding(model: Any, task: Any) -> None:
    """Refuse a model that the task can't decode.

    Raises:
        ValueError: it does not write from left to right, but the task does.
    """
    if isinstance(model, FairseqNATModel) and not isinstance(task, TranslationLevenshteinTask):
        raise ValueError(
            f"a {type(model).__name__} does not write from left to right; add --task translation_lev"
        )
