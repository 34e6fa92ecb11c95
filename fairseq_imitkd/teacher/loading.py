"""Loads teachers from their checkpoints and checks them against the student's dictionaries and languages."""

import copy
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fairseq.data import Dictionary
from fairseq.models import BaseFairseqModel
from torch import Tensor

from fairseq_imitkd.checkpoints.build import configuration, refuse_expressions
from fairseq_imitkd.checkpoints.direction import check_direction
from fairseq_imitkd.checkpoints.kinds import check_kind, check_model
from fairseq_imitkd.checkpoints.safe_load import TEACHER_FLAGS, read_checkpoint, reported
from fairseq_imitkd.checkpoints.tags import COMMAND, is_multilingual, language_tags
from fairseq_imitkd.checkpoints.translation import (
    build_pair,
    dictionary_folders,
    translation_task,
    with_tags,
)
from fairseq_imitkd.data.dictionaries import (
    check_dictionary,
    check_fingerprints,
    dictionaries_of,
    first_difference,
)
from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.models.tagged import tags_of
from fairseq_imitkd.teacher.encoder_cache import EncoderCache
from fairseq_imitkd.teacher.source import TeacherSource
from fairseq_imitkd.teacher.subset import Outside, is_subset, restricted
from fairseq_imitkd.teacher.teacher import Teacher

logger = logging.getLogger(__name__)

# (the checkpoint's path, its content, its configuration) -> its model
BuildMember = Callable[[str, dict[str, Any], Any], BaseFairseqModel]
# a checkpoint's configuration -> what makes its model one that reads the student's batches
AsReader = Callable[[Any], Callable[[BaseFairseqModel], BaseFairseqModel]]


def load_teacher(
    source: TeacherSource, student: LanguagePair, *, encoder_cache: int = 0, as_reader: AsReader | None = None
) -> Teacher:
    """Load a translation teacher and check that it uses the student's dictionaries and languages.

    Args:
        source: checkpoints of the teacher.
        student: dictionaries and languages of the student.
        encoder_cache: size of the cache of encoder outputs, in bytes; 0 means no cache.
        as_reader: checks the language tags of each member before it is built, and makes it read the batches
            of a student of several pairs, ``student`` among them; None adds the tags of the one pair.

    Raises:
        UsageError: a file is missing, unreadable, unsafe or not a translation model, or a dictionary differs.
    """

    outside: list[Outside | None] = []

    def build(path: str, state: dict[str, Any], cfg: Any) -> BaseFairseqModel:
        check_kind(cfg, (student.source, student.target))
        if as_reader is None and not is_multilingual(cfg.task):  # check_kind knows its pairs
            check_direction(
                cfg,
                (student.source, student.target),
                reader="the student",
                remedy="use a teacher of that direction",
            )
        reader = None if as_reader is None else as_reader(cfg)
        model, lacking = _build_member(path, state, cfg, student=student, data=source.data)
        outside.append(lacking)
        return with_tags(model, cfg, student) if reader is None else reader(model)

    models = load_members(source, build)
    for path, model in zip(source.paths, models, strict=True):
        if tags_of(model) != tags_of(models[0]):
            raise UsageError(
                f"--teacher-path '{path}' needs other language tags than '{source.paths[0]}'; an ensemble's "
                "teachers must need the same"
            )
    if len(models) > 1 and any(lacking is not None for lacking in outside):
        raise UsageError(
            f"--teacher-path '{source.path}' names several teachers with more symbols than the student: "
            "their average is not exact then; use one, or text (imitkd-seqkd --student-data)"
        )
    return Teacher(
        models,
        outside=outside[0],
        dtype=source.dtype,
        cache=EncoderCache(encoder_cache) if encoder_cache else None,
        weights=source.weights,
        device=source.device,
    )


def load_members(source: TeacherSource, build: BuildMember) -> list[BaseFairseqModel]:
    """Load a teacher's checkpoints.

    Args:
        source: checkpoints of the teacher.
        build: builds and checks one member; its configuration holds no expressions.

    Raises:
        UsageError: a file is missing, unreadable, unsafe or not a checkpoint, or ``build`` raised an
            exception.
    """
    models = []
    for path in source.paths:
        state = read_checkpoint(path, source.allow_globals)
        with reported(path):
            cfg = configuration(state)
            refuse_expressions(cfg)
            model = build(path, state, cfg)
        logger.info("teacher %s: %s parameters", path, f"{sum(p.numel() for p in model.parameters()):,}")
        models.append(model)
    return models


def dictionary_folder(
    path: str, cfg: Any, names: Sequence[str], *, data: str | None, flag: str = TEACHER_FLAGS[0]
) -> Path:
    """Return the folder with the dictionaries that a teacher was trained with.

    Args:
        path: checkpoint file.
        cfg: configuration of the checkpoint.
        names: file names of the dictionaries. All of them must be in the folder.
        data: ``--teacher-data``; by default the checkpoint's folder or the one that the checkpoint names.
        flag: what messages call the checkpoint.

    Raises:
        UsageError: no folder holds all of them, or two folders hold different ones.
    """
    candidates = [Path(data)] if data else dictionary_folders(path, cfg)
    folders = [folder for folder in candidates if all(os.path.isfile(folder / name) for name in names)]
    remedy = "--teacher-data must name the folder that holds the ones it was trained with"
    if not folders:
        raise UsageError(
            f"the teacher's dictionaries {' and '.join(names)} are not in "
            f"{' or '.join(map(str, candidates))}; {remedy}"
        )
    for other in folders[1:]:
        for name in names:
            one, two = (str(folder / name) for folder in (folders[0], other))
            difference = first_difference(Dictionary.load(one).symbols, Dictionary.load(two).symbols)
            if difference is not None:
                index, first, second = difference
                raise UsageError(
                    f"{flag} '{path}' lies beside {one}, but names {two}, and they differ at index "
                    f"{index}, '{first}' and '{second}'; {remedy}"
                )
    logger.info("teacher %s: dictionaries from %s", path, folders[0])
    return folders[0]


def _build_member(
    path: str, state: dict[str, Any], cfg: Any, *, student: LanguagePair, data: str | None
) -> tuple[BaseFairseqModel, Outside | None]:
    """Build a member with its own task, so that nothing of the student's task is changed.

    Returns:
        the model over the student's symbols, and what is known of its other ones.
    """
    known = None if is_multilingual(cfg.task) else cfg.task  # of its pairs, the one of the student
    source_lang = getattr(known, "source_lang", None) or student.source
    target_lang = getattr(known, "target_lang", None) or student.target
    names = [f"dict.{language}.txt" for language in (source_lang, target_lang)]
    folder = dictionary_folder(path, cfg, names, data=data)
    task = translation_task(cfg, folder, pair=(source_lang, target_lang))
    if not language_tags(cfg.task):  # those are checked below
        _check_own(path, state, task, folder=folder, named=bool(data))
    for name, theirs, own, language in (
        (names[0], task.source_dictionary, student.source_dictionary, student.source),
        (names[1], task.target_dictionary, student.target_dictionary, student.target),
    ):
        if language_tags(cfg.task):
            _check_added(theirs, own, language)
        if is_multilingual(cfg.task) or language_tags(cfg.task) or not is_subset(theirs, own):
            check_dictionary(f"{folder}/{name}", theirs, own)
    check_fingerprints(state, dictionaries_of(task))
    outside = None
    theirs, own = ((of.source_dictionary, of.target_dictionary) for of in (task, student))
    if [len(each) for each in theirs] != [len(each) for each in own]:
        state, outside = restricted(state, theirs, own, path=path)
        task = copy.copy(task)
        task.src_dict, task.tgt_dict = own
    model = build_pair(state, cfg, task, pair=(source_lang, target_lang))
    check_model(model, student)
    return model, outside


def _check_own(path: str, state: dict[str, Any], task: Any, *, folder: Path, named: bool) -> None:
    """Refuse a folder whose dictionaries are not those of the teacher, which a student's may well equal.

    Args:
        named: whether ``--teacher-data`` named the folder.
    """
    flag, remedy = ("--teacher-data ", "") if named else ("", " by --teacher-data")
    for side, dictionary in (("encoder", task.source_dictionary), ("decoder", task.target_dictionary)):
        rows = state["model"].get(f"{side}.embed_tokens.weight")
        # fairseq drops BART's <mask>, which is one row more.
        if isinstance(rows, Tensor) and len(rows) - len(dictionary) not in (0, 1):
            raise UsageError(
                f"{flag}'{folder}' has other dictionaries than the teacher '{path}': the {side}'s has "
                f"{len(dictionary):,} symbols, not {len(rows):,}; name the folder of the teacher's{remedy}"
            )


def _check_added(theirs: Dictionary, own: Dictionary, language: str) -> None:
    """Refuse a student's dictionary that lacks the symbols which the teacher's task adds at the end."""
    added = theirs.symbols[len(own) :]
    if added and theirs.symbols[: len(own)] == own.symbols:
        raise ValueError(
            f"its task adds {' '.join(added)[:40]} to dict.{language}.txt, which the student's lacks; use "
            f"the dictionaries of: {COMMAND} TEACHER --out FOLDER"
        )
