"""Loads trained students from checkpoints, and holds the parts of loading that teachers share with them."""

import copy
import os
from pathlib import Path
from typing import Any, NamedTuple

from fairseq import tasks
from fairseq.data import Dictionary
from fairseq.dataclass.utils import overwrite_args_by_name
from fairseq.models import BaseFairseqModel, FairseqMultiModel

from fairseq_imitkd.checkpoints import compact
from fairseq_imitkd.checkpoints.build import (
    EMBEDDING_FILES,
    build_model,
    configuration,
    refuse_expressions,
)
from fairseq_imitkd.checkpoints.direction import flags_of, trained_pair
from fairseq_imitkd.checkpoints.kinds import check_kind, check_model
from fairseq_imitkd.checkpoints.safe_load import reported
from fairseq_imitkd.checkpoints.tags import COMMAND, SETTING, is_multilingual, language_tags
from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.data.dictionaries import check_fingerprints, dictionaries_of, first_difference
from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.models.tagged import TaggedModel
from fairseq_imitkd.text.scores import SCORES

# Dictionaries that multilingual trainings may name. Those of the folder are read instead.
_DICTIONARIES = ("source_dict", "target_dict", "fixed_dictionary")
_LARGEST_LIST = 1_000_000  # bytes of a list of languages


class LoadedStudent(NamedTuple):
    """A trained student.

    Args:
        model: the model, in evaluation mode, without the addition of language tags (see :func:`with_tags`).
        arch: name of its architecture.
        score: score that its validation asked for, a key of :data:`~fairseq_imitkd.text.scores.SCORES`; None
            if that was the loss.
        config: configuration of its training.
    """

    model: BaseFairseqModel
    arch: str
    score: str | None
    config: Any


def load_student(path: str, data: Languages, allow_globals: str | None = None) -> LoadedStudent:
    """Load a trained student, ready to translate.

    Args:
        path: checkpoint file, which may be compact.
        data: data directory that the student was trained on.
        allow_globals: types that the checkpoint may hold beside fairseq's own, ``module.name,…``.

    Raises:
        UsageError: the file can't be read, is unsafe, does not hold a translation model, or was trained with
            other dictionaries.
    """
    state = compact.read(path, allow_globals)
    with reported(path, "CHECKPOINT"):
        cfg = configuration(state)
        refuse_expressions(cfg)
        check_kind(cfg, (data.source, data.target))
        _check_languages(cfg, data)
        _check_dictionaries(path, cfg, weights=state["model"], data=data)
        check_fingerprints(state, dictionaries_of(data))
        score = validation_score(cfg)
        pair = (data.source, data.target)
        model = build_pair(state, cfg, translation_task(cfg, data.folder, pair=pair), pair=pair)
        check_model(model, data)
    architecture = getattr(cfg.model, "arch", None) or getattr(cfg.model, "_name", None)
    return LoadedStudent(model.eval().requires_grad_(False), str(architecture), score, cfg)


def build_pair(state: dict[str, Any], cfg: Any, task: Any, *, pair: tuple[str, str]) -> BaseFairseqModel:
    """Build a checkpoint's model and load its weights; take that of one pair out of a multilingual model.

    Args:
        state, cfg, task: as for :func:`~fairseq_imitkd.checkpoints.build.build_model`.
        pair: source and target language.
    """
    model = build_model(state, cfg, task)
    return model.models["-".join(pair)] if isinstance(model, FairseqMultiModel) else model


def with_tags(model: BaseFairseqModel, cfg: Any, pair: LanguagePair) -> BaseFairseqModel:
    """Return a model that reads and writes sentences without language tags.

    Args:
        model: the model.
        cfg: configuration of its checkpoint.
        pair: its languages and dictionaries.

    Returns:
        the model itself if it needs no tags.

    Raises:
        ValueError: a dictionary lacks a tag.
    """
    names = language_tags(cfg.task, (pair.source, pair.target))
    return TaggedModel(model, names.indices(pair)) if names else model


def validation_score(cfg: Any) -> str | None:
    """Return the score that chose a training's best checkpoint, else the first one that its validation
    computed.

    Args:
        cfg: configuration of the checkpoint.

    Returns:
        a key of :data:`~fairseq_imitkd.text.scores.SCORES`; None if there was no score.
    """
    metric = getattr(getattr(cfg, "checkpoint", None), "best_checkpoint_metric", None)
    asked = str(getattr(cfg.task, "eval_metrics", None) or "").split(",")
    asked += ["bleu"] if getattr(cfg.task, "eval_bleu", False) else []
    chosen = [name for name, logged in SCORES.items() if logged == metric]
    return next((name for name in (*chosen, *asked) if name in SCORES), None)


def translation_task(cfg: Any, folder: Path, *, pair: tuple[str, str]) -> Any:
    """Set up the task that a checkpoint was trained with, over the dictionaries of a folder.

    Args:
        cfg: configuration of the checkpoint, in which the folder and the languages are replaced.
        folder: folder with the dictionaries.
        pair: source and target language.

    Raises:
        ValueError: the model's list of languages is not there.
    """
    overrides = {
        "data": str(folder),
        "source_lang": pair[0],
        "target_lang": pair[1],
        "eval_bleu": False,
        "eval_metrics": None,
        **dict.fromkeys(_DICTIONARIES),
        **dict.fromkeys(EMBEDDING_FILES),
    }
    if getattr(cfg.task, "lang_dict", None):
        overrides["lang_dict"] = str(_list_of_languages(str(cfg.task.lang_dict), folder))
    overwrite_args_by_name(cfg, overrides)
    # fairseq removes the settings that its task does not have, such as the tags of an import.
    return tasks.setup_task(copy.deepcopy(cfg.task), from_checkpoint=True)


def _list_of_languages(path: str, folder: Path) -> Path:
    """Return the file of ``--lang-dict``, which may have come with the dictionaries from another machine."""
    for found in (Path(path), folder / Path(path).name):
        # A checkpoint may name anything, such as a device that never ends.
        if os.path.isfile(found) and os.path.getsize(found) <= _LARGEST_LIST:
            return found
    raise ValueError(f"its list of languages, {Path(path).name:.60}, is not in '{folder}'; copy it there")


def dictionary_folders(path: str, cfg: Any) -> list[Path]:
    """Return the folders that may hold the dictionaries of a checkpoint's training.

    These are the checkpoint's own folder and the one that its configuration names. Look into them with
    ``os.path``, since the named folder may be forbidden, where ``Path.is_file`` raises.
    """
    named = getattr(cfg.task, "data", None)
    folders = [Path(path).resolve().parent]
    if named and isinstance(named, str):
        folders.append(Path(named.split(os.pathsep)[0]))
    return folders


def _check_languages(cfg: Any, data: Languages) -> None:
    if is_multilingual(cfg.task):  # check_kind knows its pairs
        return
    trained, read = trained_pair(cfg, data.folder), (data.source, data.target)
    if trained is not None and trained != read:
        raise ValueError(
            f"it translates {'-'.join(trained)}, but --data is read as {'-'.join(read)}; use "
            f"{flags_of(trained)}"
        )


def _check_dictionaries(path: str, cfg: Any, *, weights: dict[str, Any], data: Languages) -> None:
    """Refuse other dictionaries than those of the training.

    Sizes are compared with the embeddings, symbols with the dictionaries of the training if they are still
    there.
    """
    for part, language, dictionary in (
        ("encoder", data.source, data.source_dictionary),
        ("decoder", data.target, data.target_dictionary),
    ):
        embedding = weights.get(f"{part}.embed_tokens.weight")
        if embedding is not None and embedding.size(0) != len(dictionary):
            raise ValueError(
                f"its {part} has {embedding.size(0):,} symbols, but {data.folder}/dict.{language}.txt has "
                f"{len(dictionary):,}; use the --data that it was trained on"
                + (f", with the dictionaries that {COMMAND} writes" if language_tags(cfg.task) else "")
            )
        for theirs in [folder / f"dict.{language}.txt" for folder in dictionary_folders(path, cfg)]:
            if not os.path.isfile(theirs) or theirs.samefile(data.folder / theirs.name):
                continue
            own, before = dictionary.symbols, Dictionary.load(str(theirs)).symbols
            if language_tags(cfg.task) and not hasattr(cfg.task, SETTING):  # its task adds tags at the end
                own = own[: len(before)]
            difference = first_difference(before, own)
            if difference is not None:
                index, symbol, own_symbol = difference
                raise ValueError(
                    f"it was trained with {theirs}, which has '{symbol}' at index {index}, but --data has "
                    f"'{own_symbol}'; use the --data that it was trained on, or move that file if it belongs "
                    "to another model"
                )
