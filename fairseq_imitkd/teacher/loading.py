"""Translation models built from their checkpoints: teachers, checked against the student's dictionaries, and students."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq import tasks, utils
from fairseq.data import Dictionary, data_utils
from fairseq.dataclass.utils import overwrite_args_by_name
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY, BaseFairseqModel, FairseqEncoderDecoderModel

from fairseq_imitkd.checkpoints import compact
from fairseq_imitkd.checkpoints.safe_load import (
    check_dictionary,
    configuration,
    first_difference,
    read_checkpoint,
    refuse_expressions,
    reported,
)
from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.teacher.encoder_cache import EncoderCache
from fairseq_imitkd.teacher.teacher import Teacher

logger = logging.getLogger(__name__)


def load_teacher(
    paths: str,
    student: LanguagePair,
    dtype: str = "auto",
    data: str | None = None,
    allow_globals: str | None = None,
    encoder_cache: int = 0,
    weights: Sequence[float] | None = None,
) -> Teacher:
    """Load the teacher's checkpoints and make sure that they speak the student's dictionaries.

    Args:
        paths: ``--teacher-path``: checkpoint files joined by ``:``.
        student: the dictionaries and languages to agree with.
        dtype: ``--teacher-dtype``.
        data: ``--teacher-data``: the folder with the dictionaries that the teacher was trained with. By default they
            are looked for beside the checkpoint and in the folder that the checkpoint names, which must agree.
        allow_globals: ``--teacher-allow-globals``: names to add to the safe loader's allow-list, joined by commas.
        encoder_cache: bytes to keep encoder outputs in; 0 keeps none.
        weights: of the members of an ensemble, adding up to 1; None is all alike.

    Raises:
        UsageError: a file is missing, unreadable, unsafe or no translation model, or a dictionary differs.
    """
    models = []
    for path in paths.split(os.pathsep):
        state = read_checkpoint(path, allow_globals)
        with reported(path):
            cfg = configuration(state)
            refuse_expressions(cfg)
            _check_languages(cfg, student)
            names = [f"dict.{language}.txt" for language in _languages(cfg, student)]
            models.append(_build_model(state, cfg, dictionary_folder(path, cfg, names, data), student))
        logger.info("teacher %s: %s parameters", path, f"{sum(p.numel() for p in models[-1].parameters()):,}")
    return Teacher(models, dtype, EncoderCache(encoder_cache) if encoder_cache else None, weights)


def _check_languages(cfg: Any, student: LanguagePair) -> None:
    """A teacher of the other direction shares a joined dictionary, and would teach nonsense."""
    teacher_pair = tuple(getattr(cfg.task, name, None) for name in ("source_lang", "target_lang"))
    if None in teacher_pair:
        teacher_pair = _pair_of_its_data(cfg) or teacher_pair
    student_pair = (student.source, student.target)
    if None in teacher_pair or teacher_pair == student_pair:
        return
    if teacher_pair == student_pair[::-1]:
        raise ValueError(
            f"it translates {'-'.join(teacher_pair)}, but the student {'-'.join(student_pair)}: give a teacher of that"
        )
    logger.warning(
        "the teacher translates %s, the student %s: make sure that they mean the same",
        teacher_pair,
        student_pair,
    )


def _pair_of_its_data(cfg: Any) -> tuple[str, str] | None:
    """The languages that fairseq guessed from the data of its training and did not save, where that is still there."""
    try:
        source, target = data_utils.infer_language_pair(utils.split_paths(cfg.task.data)[0])
    except (OSError, TypeError, AttributeError, IndexError):  # not there, or not named
        return None
    return (source, target) if source and target else None


def _build_model(state: dict[str, Any], cfg: Any, folder: Path, student: LanguagePair) -> BaseFairseqModel:
    """The teacher's model, built by its own task so that nothing of the student's task is touched."""
    source_lang, target_lang = _languages(cfg, student)
    task = _task_over(cfg, folder, source_lang, target_lang)
    check_dictionary(f"{folder}/dict.{source_lang}.txt", task.source_dictionary, student.source_dictionary)
    check_dictionary(f"{folder}/dict.{target_lang}.txt", task.target_dictionary, student.target_dictionary)
    model = _with_weights(state, cfg, task)
    if not hasattr(model, "encoder") or not hasattr(model, "decoder"):
        raise ValueError(f"it holds a {type(model).__name__}, but must hold an encoder-decoder model")
    if getattr(model.decoder, "adaptive_softmax", None) is not None:
        raise ValueError("it has an adaptive softmax, which gives no logits over the whole vocabulary")
    return model


def _task_over(cfg: Any, folder: Path, source_lang: str, target_lang: str) -> Any:
    """The task that a checkpoint was trained by, over the dictionaries of a folder."""
    overrides = {
        "data": str(folder),
        "source_lang": source_lang,
        "target_lang": target_lang,
        "eval_bleu": False,
        "eval_metrics": None,
        "encoder_embed_path": None,
        "decoder_embed_path": None,
    }
    overwrite_args_by_name(cfg, overrides)
    return tasks.setup_task(cfg.task, from_checkpoint=True)


def _with_weights(state: dict[str, Any], cfg: Any, task: Any) -> BaseFairseqModel:
    model = task.build_model(cfg.model, from_checkpoint=True)
    model.load_state_dict(state["model"], strict=True, model_cfg=cfg.model)
    return model


def load_student(
    path: str, data: Languages, allow_globals: str | None = None
) -> tuple[BaseFairseqModel, str]:
    """A trained student, ready to translate, and the name of its architecture.

    Args:
        path: of the checkpoint, a compact one too.
        data: the data directory that it was trained on.
        allow_globals: types that the checkpoint may hold beside fairseq's own: ``module.name,…``.

    Raises:
        UsageError: it is unreadable, unsafe or no translation model, or was trained with other dictionaries.
    """
    state = compact.read(path, allow_globals)
    with reported(path, "CHECKPOINT"):
        cfg = configuration(state)
        refuse_expressions(cfg)
        asked = (data.source, data.target)
        _check_architecture(cfg)
        # A training that was not told its languages has read them off the names of the data's files.
        read = [
            found or own
            for found, own in zip(data_utils.infer_language_pair(str(data.folder)), asked, strict=True)
        ]
        pair = [
            getattr(cfg.task, name, None) or own
            for name, own in zip(("source_lang", "target_lang"), read, strict=True)
        ]
        if tuple(pair) != asked:
            raise ValueError(
                f"it translates {'-'.join(pair)}, but --data is {'-'.join(asked)}: give --source-lang and --target-lang"
            )
        _check_trained_with(path, cfg, state["model"], data)
        model = _with_weights(state, cfg, _task_over(cfg, data.folder, *asked))
        if not isinstance(model, FairseqEncoderDecoderModel):
            raise ValueError(f"it holds a {type(model).__name__}, but must hold an encoder-decoder model")
        if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
            raise ValueError("it holds weights that are no numbers: use another")
    return model.eval().requires_grad_(False), str(
        getattr(cfg.model, "arch", None) or getattr(cfg.model, "_name", None)
    )


def _check_architecture(cfg: Any) -> None:
    names = [getattr(cfg.model, name, None) for name in ("arch", "_name")]
    if not any(name in registry for name in names for registry in (ARCH_MODEL_REGISTRY, MODEL_REGISTRY)):
        raise ValueError(
            f"its architecture {names[0] or names[1]!r} is unknown to fairseq and to this package"
        )


def _check_trained_with(path: str, cfg: Any, weights: dict[str, Any], data: Languages) -> None:
    """By the size of its embeddings, and symbol by symbol where the dictionaries that it was trained with are to be found."""
    for part, language, dictionary in (
        ("encoder", data.source, data.source_dictionary),
        ("decoder", data.target, data.target_dictionary),
    ):
        embedding = weights.get(f"{part}.embed_tokens.weight")
        if embedding is not None and embedding.size(0) != len(dictionary):
            raise ValueError(
                f"its {part} knows {embedding.size(0):,} symbols, but {data.folder}/dict.{language}.txt has {len(dictionary):,}: "
                "give the --data that it was trained on"
            )
        for place in _places(path, cfg):
            theirs = place / f"dict.{language}.txt"
            if os.path.isfile(theirs) and not theirs.samefile(data.folder / theirs.name):
                difference = first_difference(Dictionary.load(str(theirs)).symbols, dictionary.symbols)
                if difference is not None:
                    raise ValueError(
                        f"it was trained with {theirs}, which has '{difference[1]}' at index {difference[0]}, but --data "
                        f"'{difference[2]}': give the --data that it was trained on, or move that file if it is another's"
                    )


def dictionary_folder(path: str, cfg: Any, names: Sequence[str], data: str | None) -> Path:
    """The folder with the dictionaries that a teacher was trained with.

    Args:
        path: of the checkpoint.
        cfg: its configuration.
        names: of the dictionaries' files, all of which a folder must hold.
        data: ``--teacher-data``; by default it is the checkpoint's folder, or the one that the checkpoint names.

    Raises:
        UsageError: neither holds them, or they differ, so that which are the teacher's is anyone's guess.
    """
    places = [Path(data)] if data else _places(path, cfg)
    folders = [place for place in places if all(os.path.isfile(place / name) for name in names)]
    if not folders:
        raise UsageError(
            f"the teacher's dictionaries {' and '.join(names)} are not in {' or '.join(map(str, places))}: "
            "--teacher-data must name the folder that holds the ones it was trained with"
        )
    for other in folders[1:]:
        for name in names:
            one, two = (str(folder / name) for folder in (folders[0], other))
            difference = first_difference(Dictionary.load(one).symbols, Dictionary.load(two).symbols)
            if difference is not None:
                raise UsageError(
                    f"--teacher-path '{path}' lies beside {one}, but names {two}, and they differ at index {difference[0]}, "
                    f"'{difference[1]}' and '{difference[2]}': --teacher-data must name the folder that holds the ones it was "
                    "trained with"
                )
    logger.info("teacher %s: dictionaries of %s", path, folders[0])
    return folders[0]


def _places(path: str, cfg: Any) -> list[Path]:
    """Where the dictionaries that a checkpoint was trained with may be: beside it, and where it says.

    To be asked by ``os.path``: what the checkpoint names may be a folder that no one else may look into.
    """
    said = getattr(cfg.task, "data", None)
    return [
        Path(path).resolve().parent,
        *([Path(said.split(os.pathsep)[0])] if said and isinstance(said, str) else []),
    ]


def _languages(cfg: Any, student: LanguagePair) -> tuple[str, str]:
    source_lang = getattr(cfg.task, "source_lang", None) or student.source
    target_lang = getattr(cfg.task, "target_lang", None) or student.target
    return source_lang, target_lang
