"""Loads the teachers of speech students: they read the speech, or its transcript as text."""

from argparse import Namespace
from typing import Any

from fairseq.data import Dictionary
from fairseq.models import BaseFairseqModel
from fairseq.models.lstm import LSTMModel
from fairseq.tasks import TASK_REGISTRY
from fairseq.tasks.speech_to_text import SpeechToTextTask

from fairseq_imitkd.checkpoints.build import build_model, configuration, refuse_expressions
from fairseq_imitkd.checkpoints.direction import trained_pair
from fairseq_imitkd.checkpoints.kinds import task_name
from fairseq_imitkd.checkpoints.safe_load import read_checkpoint, reported
from fairseq_imitkd.data.dictionaries import check_dictionary, check_fingerprints, load_dictionary
from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.models.access import unsupported_reason
from fairseq_imitkd.teacher.loading import dictionary_folder, load_members, load_teacher
from fairseq_imitkd.teacher.source import TeacherSource
from fairseq_imitkd.teacher.teacher import Teacher


def load_speech_teacher(source: TeacherSource, task: Any) -> tuple[Teacher, Dictionary | None]:
    """Load a teacher of a speech student, and check that it writes with the student's dictionary.

    A teacher of ``--task translation`` reads transcripts; one of ``--task speech_to_text`` reads the speech.

    Args:
        source: checkpoints of the teacher. All of them read the same.
        task: the student's task.

    Returns:
        the teacher; and the source dictionary of one that reads transcripts, or None.

    Raises:
        UsageError: a file is missing, unreadable or unsafe, or the teacher does not fit the student.
    """
    configs = []
    for path in source.paths:
        with reported(path):
            cfg = configuration(read_checkpoint(path, source.allow_globals))
            refuse_expressions(cfg)
            configs.append(cfg)
    kinds = {_reads_speech(cfg) for cfg in configs}
    if len(kinds) > 1:
        raise UsageError(
            f"--teacher-path '{source.path}' names teachers of speech and of text: use teachers "
            "that read the same"
        )
    if kinds == {True}:
        return _load_speech(source, task), None
    pair = trained_pair(configs[0], source.data)
    if pair is None:
        raise UsageError(
            f"--teacher-path '{source.paths[0]}' (--task {task_name(configs[0])}) does not tell its "
            "languages: let --teacher-data name the folder that it was trained on, or use another teacher"
        )
    names = [f"dict.{language}.txt" for language in pair]
    with reported(source.paths[0]):
        folder = dictionary_folder(source.paths[0], configs[0], names, data=source.data)
    dictionary = load_dictionary(folder / names[0])
    teacher = load_teacher(source, LanguagePair(*pair, dictionary, task.target_dictionary))
    if any(isinstance(model, LSTMModel) for model in teacher.models):
        raise UsageError(
            f"--teacher-path '{source.path}' holds an LSTM, which needs sentences in order of length, but "
            "they are in that of the speech: use a transformer"
        )
    return teacher, dictionary


def _reads_speech(cfg: Any) -> bool:
    kind = TASK_REGISTRY.get(task_name(cfg))
    return kind is not None and issubclass(kind, SpeechToTextTask)


def _load_speech(source: TeacherSource, task: Any) -> Teacher:
    # fairseq's own task: it builds the model alone.
    folder_of_data = Namespace(data=task.cfg.data, config_yaml=task.cfg.config_yaml)
    builder = SpeechToTextTask(folder_of_data, task.target_dictionary)

    def build(path: str, state: dict[str, Any], cfg: Any) -> BaseFairseqModel:
        name = task.data_cfg.vocab_filename
        folder = dictionary_folder(path, cfg, [name], data=source.data)
        check_dictionary(f"{folder}/{name}", load_dictionary(folder / name), task.target_dictionary)
        check_fingerprints(state, {"target": task.target_dictionary})
        cfg.model.load_pretrained_encoder_from = None  # its weights follow
        model = build_model(state, cfg, builder)
        reason = unsupported_reason(model)
        if reason is not None:
            raise ValueError(f"it can't teach: {reason}")
        return model

    models = load_members(source, build)
    return Teacher(models, dtype=source.dtype, weights=source.weights, device=source.device)
