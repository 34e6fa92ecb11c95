"""``sentence_prediction_with_teacher``: fairseq's classification of sentences with a frozen teacher beside the student.

The criterion and its methods are those of translation; a sentence is a target of one symbol, its class. There is nothing
to roll out, so methods work on the data alone.
"""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq import tasks
from fairseq.data import Dictionary
from fairseq.dataclass.utils import overwrite_args_by_name
from fairseq.models import BaseFairseqModel
from fairseq.tasks import register_task
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask
from omegaconf import II
from torch import Tensor

from fairseq_imitkd.checkpoints.safe_load import (
    check_dictionary,
    check_files,
    configuration,
    parse_weights,
    read_checkpoint,
    refuse_expressions,
    reported,
)
from fairseq_imitkd.criterion import DISTILLATION, Distillation, DistillationCriterion
from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.method.config import TeacherConfig
from fairseq_imitkd.models.access import placement, unwrapped
from fairseq_imitkd.models.logits import AveragedLogits, TokenLogits, WholeLogits
from fairseq_imitkd.tasks.translation import autocast
from fairseq_imitkd.teacher.loading import dictionary_folder
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.training.validation import check_direction

logger = logging.getLogger(__name__)


@dataclass
class SentencePredictionWithTeacherConfig(TeacherConfig, SentencePredictionConfig):
    """Everything of ``sentence_prediction``, and where the teacher is."""

    # fairseq reads these two from its own criterion's settings; here they are the task's.
    regression_target: bool = field(
        default=False, metadata={"help": "not for distillation, which needs classes"}
    )
    classification_head_name: str = field(
        default="sentence_classification_head", metadata={"help": "the student's head, and the teacher's"}
    )
    best_checkpoint_metric: str = II("checkpoint.best_checkpoint_metric")
    maximize_best_checkpoint_metric: bool = II("checkpoint.maximize_best_checkpoint_metric")


class ClassifyingTeacher(Teacher):
    """One frozen classifier, or an ensemble whose probabilities are averaged.

    Args:
        models: with a classification head over the student's classes.
        head: its name.
        dtype, weights: as of :class:`~fairseq_imitkd.teacher.teacher.Teacher`.
    """

    def __init__(
        self, models: Sequence[BaseFairseqModel], head: str, dtype: str, weights: Sequence[float] | None
    ):
        super().__init__(models, dtype, weights=weights)
        self.head = head

    @torch.no_grad()
    def classify(self, sample: Batch, of_logits: bool = False) -> TokenLogits:
        """The teacher's scores of ``B`` sentences over ``C`` classes: of probabilities' means, or of logits'."""
        members = [WholeLogits(_classes(model, sample, self.head)) for model in self.models]
        return members[0] if len(members) == 1 else AveragedLogits(members, self.log_weights, of_logits)


@register_task("sentence_prediction_with_teacher", dataclass=SentencePredictionWithTeacherConfig)
class SentencePredictionWithTeacherTask(SentencePredictionTask):
    """Classification of sentences, trained by a :class:`DistillationCriterion` without rollouts."""

    has_teacher = True
    classifies = True
    cfg: SentencePredictionWithTeacherConfig

    def __init__(self, cfg: SentencePredictionWithTeacherConfig, data_dictionary: Any, label_dictionary: Any):
        super().__init__(cfg, data_dictionary, label_dictionary)
        self.for_training = True
        self._teacher: ClassifyingTeacher | None = None
        self._epoch = 1

    @classmethod
    def setup_task(
        cls, cfg: SentencePredictionWithTeacherConfig, **kwargs: Any
    ) -> "SentencePredictionWithTeacherTask":
        """Load the dictionaries. A task rebuilt from a checkpoint needs no teacher.

        Raises:
            UsageError: the classes are not said, their number is not that of the labels, or the worst checkpoint would be kept.
        """
        if not kwargs.get("from_checkpoint", False):
            check_direction(cfg.best_checkpoint_metric, cfg.maximize_best_checkpoint_metric)
        if cfg.num_classes < 2:
            raise UsageError(f"--num-classes must be 2 or more, but is {cfg.num_classes}")
        if cfg.regression_target:
            raise UsageError(
                "--regression-target can't be distilled here: a teacher's opinion is about classes; leave it out"
            )
        task = super().setup_task(cfg, **kwargs)
        labels = _labels(task.label_dictionary)
        if labels != cfg.num_classes:
            file = os.path.join(cfg.data, "label", "dict.txt")
            raise UsageError(
                f"--num-classes {cfg.num_classes} is not the number of labels in {file}: give --num-classes {labels}"
            )
        task.for_training = not kwargs.get("from_checkpoint", False)
        return task

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion and, for one that distils, load the teacher: a mistake ends the run here, before any data.

        Raises:
            UsageError: the teacher or a flag does not fit.
        """
        criterion = super().build_criterion(cfg, from_checkpoint)
        if self.cfg.teacher_path and not isinstance(criterion, DistillationCriterion):
            logger.warning(
                "--teacher-path is not used: this --criterion does not distil; use --criterion annealing_kd"
            )
        if isinstance(criterion, DistillationCriterion):
            if criterion.writes:
                raise UsageError(
                    f"--criterion {cfg._name} has the student or the teacher write sentences, but --task "
                    "sentence_prediction_with_teacher only classifies them: use word_kd, annealing_kd, continuation_kd or "
                    "atkd, or --student-share 0"
                )
            if criterion.loss_chunk > 0:
                raise UsageError(
                    f"--loss-chunk {criterion.loss_chunk} changes nothing with classes, which are few: leave it out"
                )
            if cfg.teacher_topk >= self.cfg.num_classes:
                raise UsageError(
                    f"--teacher-topk {cfg.teacher_topk} changes nothing, of {self.cfg.num_classes} classes (--num-classes): "
                    "lower it or leave it out"
                )
            if self.for_training and not from_checkpoint:
                check_files(self.cfg.teacher_path)
                self._teacher = self._load_teacher()
        return criterion

    def begin_epoch(self, epoch: int, model: Any) -> None:
        """Remember which epoch it is, by which schedules may move."""
        super().begin_epoch(epoch, model)
        self._epoch = epoch

    def run_student(self, model: torch.nn.Module, sample: Batch) -> Tensor:
        """The student's logits of ``B`` sentences, ``(B, C)``."""
        return _classes(model, sample, self.cfg.classification_head_name)

    def train_step(
        self,
        sample: Batch,
        model: torch.nn.Module,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """One micro-batch: ask the teacher, then fairseq's own forward, loss and backward."""
        if isinstance(criterion, DistillationCriterion) and not ignore_grad:
            criterion.epoch = self._epoch
            scores = None
            if criterion.needs_teacher(update_num):
                self._teacher = self._teacher or self._load_teacher()
                with autocast(optimizer):
                    self._teacher.place(*placement(unwrapped(model)))
                    scores = self._teacher.classify(sample, criterion.of_logits)
            none = torch.zeros(sample["target"].size(0), dtype=torch.bool, device=sample["target"].device)
            sample = {**sample, DISTILLATION: Distillation(scores, none, none, update_num)}
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)

    def _load_teacher(self) -> ClassifyingTeacher:
        cfg, models = self.cfg, []
        for path in (cfg.teacher_path or "").split(os.pathsep):
            state = read_checkpoint(path, cfg.teacher_allow_globals)
            with reported(path):
                models.append(self._built(path, state))
            logger.info(
                "teacher %s: %s parameters", path, f"{sum(p.numel() for p in models[-1].parameters()):,}"
            )
        weights = parse_weights(cfg.teacher_weights, cfg.teacher_path)
        return ClassifyingTeacher(models, cfg.classification_head_name, str(cfg.teacher_dtype), weights)

    def _built(self, path: str, state: dict[str, Any]) -> BaseFairseqModel:
        """A teacher's model, built by its own task, with the head and the dictionaries that the student has."""
        cfg = configuration(state)
        refuse_expressions(cfg)
        head = self.cfg.classification_head_name
        matrix = state["model"].get(f"classification_heads.{head}.out_proj.weight")
        if matrix is None:  # fairseq would go on with random weights
            heads = sorted(
                {
                    name.split(".")[1]
                    for name in state["model"]
                    if re.fullmatch(r"classification_heads\.\w+\.[\w.]+", name)
                }
            )
            remedy = (
                f"--classification-head-name must name one that it has: {', '.join(heads)}"
                if heads
                else "give a teacher that was trained with --task sentence_prediction"
            )
            raise UsageError(f"--teacher-path '{path}' has no classification head '{head}': {remedy}")
        if matrix.size(0) != self.cfg.num_classes:
            raise UsageError(
                f"--teacher-path '{path}' tells {matrix.size(0)} classes apart, the student {self.cfg.num_classes} "
                "(--num-classes): give a teacher of the same classes"
            )
        for name in ("init_token", "separator_token", "add_prev_output_tokens"):
            theirs, own = getattr(cfg.task, name, None), getattr(self.cfg, name)
            if (theirs, own) != (
                None,
                False,
            ) and theirs != own:  # it would score sentences such as it never saw
                flag = "--" + name.replace("_", "-")
                remedy = (
                    f"leave {flag} out"
                    if theirs in (None, False)
                    else f"give {flag} {'' if theirs is True else theirs}".rstrip()
                )
                raise UsageError(
                    f"{flag} is {own}, but --teacher-path '{path}' was trained with {theirs}: {remedy}"
                )
        folder = dictionary_folder(path, cfg, ["input0/dict.txt", "label/dict.txt"], self.cfg.teacher_data)
        overwrite_args_by_name(cfg, {"data": str(folder)})
        task = tasks.setup_task(cfg.task, from_checkpoint=True)
        for kind, theirs, own in (
            ("input0", task.source_dictionary, self.source_dictionary),
            ("label", task.label_dictionary, self.label_dictionary),
        ):
            check_dictionary(str(folder / kind / "dict.txt"), theirs, own)
        model = task.build_model(cfg.model, from_checkpoint=True)
        model.load_state_dict(state["model"], strict=True, model_cfg=cfg.model)
        limit = model.max_positions()
        limit = min(limit) if isinstance(limit, tuple) else limit
        if limit < self.cfg.max_positions:
            raise UsageError(
                f"--max-positions {self.cfg.max_positions} is more than --teacher-path '{path}' can read: "
                f"give --max-positions {limit}, with --shorten-method truncate for longer sentences"
            )
        return model


def _labels(dictionary: Dictionary) -> int:
    """How many labels a dictionary holds, without fairseq's own symbols and its padding to a multiple of eight."""
    symbols = dictionary.symbols[dictionary.nspecial :]
    return sum(symbol != "<mask>" and not symbol.startswith("madeupword") for symbol in symbols)


def _classes(model: torch.nn.Module, sample: Batch, head: str) -> Tensor:
    """A classifier's logits, ``(B, C)``."""
    return model(**sample["net_input"], features_only=True, classification_head_name=head)[0]
