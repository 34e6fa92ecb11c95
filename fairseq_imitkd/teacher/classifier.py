"""The frozen teacher of a classification task: a classifier, or an ensemble of them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq import tasks
from fairseq.dataclass.utils import overwrite_args_by_name
from fairseq.models import BaseFairseqModel
from fairseq.tasks.sentence_prediction import SentencePredictionTask
from torch import Tensor

from fairseq_imitkd.checkpoints.build import build_model
from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.data.dictionaries import check_dictionary, check_fingerprints, dictionaries_of
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.models.logits import TokenLogits, WholeLogits
from fairseq_imitkd.rollout import Ensemble
from fairseq_imitkd.teacher.loading import dictionary_folder, load_members
from fairseq_imitkd.teacher.source import TeacherSource
from fairseq_imitkd.teacher.teacher import Teacher


class ClassifyingTeacher(Teacher):
    """One frozen classifier, or an ensemble whose members are averaged.

    :meth:`score` returns the logits of ``B`` sentences over ``C`` classes, one position for each sentence.

    Args:
        models: models with a classification head over the student's classes.
        head: name of the classification head.
        dtype: see :class:`~fairseq_imitkd.teacher.teacher.Teacher`.
        weights: see :class:`~fairseq_imitkd.teacher.teacher.Teacher`.
    """

    def __init__(
        self,
        models: Sequence[BaseFairseqModel],
        head: str,
        *,
        dtype: str = "auto",
        weights: Sequence[float] | None = None,
    ):
        super().__init__(models, dtype=dtype, weights=weights)
        self.head = head

    @property
    def max_positions(self) -> tuple[int, int]:
        """The longest sentence, in tokens, that every member accepts, and 1 for the class."""
        return min(longest_sentence(model) for model in self.models), 1

    @property
    def writer(self) -> Ensemble:
        """An ensemble without members: a classifier writes no sentences."""
        return Ensemble([], torch.empty(0))

    @property
    def encoder_width(self) -> None:
        """A classifier has no separate encoder."""
        return None

    def encode(self, sample: Batch, *, cacheable: bool = True) -> list[Any]:
        """Return an empty list: a classifier has no separate encoder."""
        return []

    @torch.no_grad()
    def each_score(self, sample: Batch) -> list[Tensor]:
        """Return each member's score of every sentence, ``(B,)``, if the members have one output."""
        return [member.logits(slice(None)).squeeze(-1) for member in self._members_logits(sample, None)]

    def _members_logits(
        self,
        sample: Batch,
        encoded: Sequence[Any] | None,
        *,
        rows: Tensor | None = None,
        materialise: bool = True,
    ) -> list[TokenLogits]:
        with self._precision():
            return [WholeLogits(class_logits(model, sample, self.head)) for model in self.models]


def class_logits(model: torch.nn.Module, sample: Batch, head: str) -> Tensor:
    """Return a classifier's logits.

    Args:
        model: classifier, in its distributed wrappers or without.
        sample: batch of ``B`` sentences.
        head: name of the classification head.

    Returns:
        ``(B, C)``.
    """
    return model(**sample["net_input"], features_only=True, classification_head_name=head)[0]


def longest_sentence(model: BaseFairseqModel) -> int:
    """Return the longest sentence that a classifier accepts, in tokens."""
    limit = model.max_positions()
    return min(limit) if isinstance(limit, tuple) else limit


def load_classifier(source: TeacherSource, student: SentencePredictionTask) -> ClassifyingTeacher:
    """Load a classifier and check that it has the student's classes, dictionaries and input format.

    Args:
        source: checkpoints of the teacher.
        student: task of the student.

    Raises:
        UsageError: a file is missing, unreadable, unsafe or not a classifier, or something differs from the
            student's.
    """

    def build(path: str, state: dict[str, Any], cfg: Any) -> BaseFairseqModel:
        _check_head(path, state["model"], student.cfg)
        _check_input_format(path, cfg.task, student.cfg)
        task = _task_of_teacher(path, cfg, student, data=source.data)
        check_fingerprints(state, dictionaries_of(student))
        model = build_model(state, cfg, task)
        longest = longest_sentence(model)
        if longest < student.cfg.max_positions:
            raise UsageError(
                f"--max-positions {student.cfg.max_positions} is more than --teacher-path '{path}' can read; "
                f"use --max-positions {longest}, with --shorten-method truncate for longer sentences"
            )
        return model

    members = load_members(source, build)
    return ClassifyingTeacher(
        members, student.cfg.classification_head_name, dtype=source.dtype, weights=source.weights
    )


def _check_head(path: str, weights: dict[str, Tensor], student: Any) -> None:
    """Refuse a teacher without the student's head or with other classes.

    fairseq would leave the weights of a missing head random:
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/models/roberta/model.py#L449-L454
    """
    head = student.classification_head_name
    matrix = weights.get(f"classification_heads.{head}.out_proj.weight")
    if matrix is None:
        found = (re.match(r"classification_heads\.(\w+)\.", name) for name in weights)
        heads = sorted({name[1] for name in found if name})
        remedy = "use a teacher that was trained with --task sentence_prediction"
        if heads:
            remedy = f"--classification-head-name must name one that it has: {', '.join(heads)}"
        raise UsageError(f"--teacher-path '{path}' has no classification head '{head}'; {remedy}")
    if student.regression_target and matrix.size(0) != 1:
        raise UsageError(
            f"--teacher-path '{path}' has {matrix.size(0)} classes, but --regression-target needs one score; "
            "use a teacher that was trained with it"
        )
    if matrix.size(0) != student.num_classes:
        raise UsageError(
            f"--teacher-path '{path}' has {matrix.size(0)} classes, but the student {student.num_classes} "
            "(--num-classes); use a teacher of the same classes"
        )


def _check_input_format(path: str, teacher: Any, student: Any) -> None:
    """Refuse a teacher that was trained on another input format: it never saw such sentences."""
    for name in ("init_token", "separator_token", "add_prev_output_tokens"):
        theirs, own = getattr(teacher, name, None), getattr(student, name)
        if theirs == own or (theirs is None and own is False):
            continue
        flag = "--" + name.replace("_", "-")
        remedy = f"add {flag} {'' if theirs is True else theirs}".rstrip()
        if theirs is None or theirs is False:  # 0 is a token, and equal to False
            remedy = f"leave {flag} out"
        raise UsageError(f"{flag} is {own}, but --teacher-path '{path}' was trained with {theirs}; {remedy}")


def _task_of_teacher(path: str, cfg: Any, student: SentencePredictionTask, *, data: str | None) -> Any:
    """Set up the teacher's own task, over dictionaries that are the student's."""
    kinds = ["input0"] if student.cfg.regression_target else ["input0", "label"]
    folder: Path = dictionary_folder(path, cfg, [f"{kind}/dict.txt" for kind in kinds], data=data)
    regresses = bool(student.cfg.regression_target)
    overwrite_args_by_name(cfg, {"data": str(folder), "regression_target": regresses})
    task = tasks.setup_task(cfg.task, from_checkpoint=True)
    for kind, theirs, own in zip(
        kinds,
        (task.source_dictionary, task.label_dictionary),
        (student.source_dictionary, student.label_dictionary),
        strict=False,
    ):
        check_dictionary(str(folder / kind / "dict.txt"), theirs, own)
    return task
