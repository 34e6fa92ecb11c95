"""Loads language models as teachers of language models."""

from argparse import Namespace
from typing import Any

from fairseq.data import Dictionary
from fairseq.models import BaseFairseqModel
from fairseq.tasks import TASK_REGISTRY
from fairseq.tasks.language_modeling import LanguageModelingTask

from fairseq_imitkd.checkpoints.build import build_model
from fairseq_imitkd.checkpoints.kinds import check_model, task_name
from fairseq_imitkd.data.dictionaries import check_dictionary, check_fingerprints, load_dictionary
from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.models.prompted import PromptedModel, prompted
from fairseq_imitkd.teacher.loading import dictionary_folder, load_members
from fairseq_imitkd.teacher.source import TeacherSource
from fairseq_imitkd.teacher.teacher import Teacher

_NAME = "dict.txt"
# Settings of fairseq's language_modeling with which a model reads or predicts other sequences.
_OTHERS = {"add_bos_token": False, "self_target": False, "past_target": False, "output_dictionary_size": -1}


def load_language_models(source: TeacherSource, dictionary: Dictionary) -> Teacher:
    """Load a language model, or an ensemble, and check that it uses the student's dictionary.

    Args:
        source: checkpoints of the teacher.
        dictionary: dictionary of the student.

    Raises:
        UsageError: a file is missing, unreadable, unsafe or not a language model that writes from left to
            right, or the dictionary differs.
    """

    def build(path: str, state: dict[str, Any], cfg: Any) -> BaseFairseqModel:
        _check_task(cfg)
        folder = dictionary_folder(path, cfg, [_NAME], data=source.data)
        theirs = load_dictionary(folder / _NAME)
        check_dictionary(str(folder / _NAME), theirs, dictionary)
        check_fingerprints(state, {"source": dictionary, "target": dictionary})
        # fairseq's own task: it builds the model alone, and needs no other files.
        task = LanguageModelingTask(Namespace(data=str(folder)), theirs)
        model = prompted(build_model(state, cfg, task))
        if not isinstance(model, PromptedModel):
            raise ValueError(
                f"it holds a {type(model).__name__}, but must hold a language model such as transformer_lm"
            )
        check_model(model, LanguagePair("", "", dictionary, dictionary))
        return model

    models = load_members(source, build)
    return Teacher(models, dtype=source.dtype, weights=source.weights, device=source.device)


def _check_task(cfg: Any) -> None:
    """Refuse a checkpoint of another task, and one that reads or predicts other sequences.

    Raises:
        ValueError: it is one of these.
    """
    name = task_name(cfg)
    kind = TASK_REGISTRY.get(name)
    if kind is None or not issubclass(kind, LanguageModelingTask):
        raise ValueError(
            f"it was trained by --task {name}, which is not language_modeling; use a language model"
        )
    for setting, only in _OTHERS.items():
        value = getattr(cfg.task, setting, None)
        if value is not None and value != only:
            flag = "--" + setting.replace("_", "-")
            raise ValueError(f"it was trained with {flag}, so it reads other sequences; use another")
