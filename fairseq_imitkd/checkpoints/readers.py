"""Checks the dictionaries and tasks of checkpoints where fairseq's own commands read them."""

import functools
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from fairseq.models.nat import FairseqNATModel
from fairseq.tasks import TASK_REGISTRY
from fairseq.tasks.translation import TranslationTask
from fairseq.tasks.translation_lev import TranslationLevenshteinTask

from fairseq_imitkd.checkpoints.build import configuration
from fairseq_imitkd.checkpoints.guard import all_are_trusted
from fairseq_imitkd.checkpoints.kinds import language_tags, task_name
from fairseq_imitkd.checkpoints.safe_load import read_untrusted, reported
from fairseq_imitkd.checkpoints.weights import UnusableWeights
from fairseq_imitkd.data.dictionaries import check_fingerprints, dictionaries_of, fingerprints


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
        if given.get("task") is not None:
            _check_files(paths, given["task"], decodes=True)
        with _reported(paths):
            models, cfg, task = load_models(*arguments, **settings)
        if given.get("task") is None:
            _check_files(paths, task, decodes=True)
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
        UsageError: the dictionaries differ, or the weights are not in use.
    """
    if PathManager.isfile(filename):
        _check_files([filename], trainer.task, decodes=False)
    with _reported([filename]):
        return load(filename, *arguments, **settings)


@contextmanager
def _reported(paths: list[str]) -> Iterator[None]:
    """Turn a refusal of :mod:`~fairseq_imitkd.checkpoints.weights` into one line.

    fairseq's trainer replaces every exception by one of its own, which has the first one as its context:
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/trainer.py#L587-L592

    Raises:
        UsageError: the enclosed code raised :class:`~fairseq_imitkd.checkpoints.weights.UnusableWeights`.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error if isinstance(error, UnusableWeights) else error.__context__
        if not isinstance(cause, UnusableWeights):
            raise
        with reported(os.pathsep.join(paths), "checkpoint"):
            raise cause from error


def _has_one_pair(task: Any) -> bool:
    """Return whether a task has one source and one target dictionary, the same in training and decoding."""
    return isinstance(task, TranslationTask) or getattr(task, "has_teacher", False)


def _check_files(paths: list[str], task: Any, *, decodes: bool) -> None:
    """Refuse checkpoints that were trained with other dictionaries or, in decoding, with tags.

    If torch was told that all files are trusted, nothing is read here and nothing is refused.

    Raises:
        UsageError: naming the file.
    """
    for path in paths if not all_are_trusted() else ():
        state = read_untrusted(str(PathManager.get_local_path(path)), None, ("checkpoint", None))
        if not isinstance(state, dict):
            continue
        with reported(path, "checkpoint"):
            if _has_one_pair(task):
                check_fingerprints(state, dictionaries_of(task))
            if decodes and (state.get("cfg") is not None or state.get("args") is not None):
                _check_tags(configuration(state), task)


def _check_tags(cfg: Any, task: Any) -> None:
    """Refuse to decode a model of several languages by a task that feeds it no language tags."""
    kind, tags = TASK_REGISTRY.get(task_name(cfg)), language_tags(cfg.task)
    if tags and kind is not None and not isinstance(task, kind):
        raise ValueError(
            f"it was trained by --task {task_name(cfg)} with the language tags {tags}; add that --task and "
            "its flags"
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
