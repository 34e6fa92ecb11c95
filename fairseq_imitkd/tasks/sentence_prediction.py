"""``sentence_prediction_with_teacher``: fairseq's classification or regression of sentences, with a teacher.

A sentence is a target of one symbol, its class, or of one number, its score. There is nothing to decode, so
methods train on the data alone.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.tasks import register_task
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask
from torch import Tensor

from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.method.method import Method
from fairseq_imitkd.mixing import BatchLayout
from fairseq_imitkd.models.access import placement
from fairseq_imitkd.rollout import SpecialSymbols
from fairseq_imitkd.tasks.with_teacher import WithTeacher
from fairseq_imitkd.teacher.classifier import ClassifyingTeacher, class_logits, load_classifier
from fairseq_imitkd.teacher.config import TeacherConfig
from fairseq_imitkd.teacher.score_check import check_scores
from fairseq_imitkd.teacher.source import TeacherSource
from fairseq_imitkd.training.adapter import AnyTeacher
from fairseq_imitkd.training.classification import LabelConfig, check_classification, check_num_classes
from fairseq_imitkd.training.distiller import Distiller, Learner, autocast
from fairseq_imitkd.training.plain_errors import WithPlainErrors, check_run
from fairseq_imitkd.training.regression import Correlations, check_regression, give_exact_labels
from fairseq_imitkd.training.validation import check_direction


@dataclass
class SentencePredictionWithTeacherConfig(LabelConfig, TeacherConfig, SentencePredictionConfig):
    """The flags of ``sentence_prediction`` and of the teacher."""


@register_task("sentence_prediction_with_teacher", dataclass=SentencePredictionWithTeacherConfig)
class SentencePredictionWithTeacherTask(WithTeacher, WithPlainErrors, SentencePredictionTask):
    """Classification or regression of sentences with a teacher, without rollouts."""

    decodes = False
    uncounted = -100  # a class is never padding
    cfg: SentencePredictionWithTeacherConfig

    def __init__(self, cfg: SentencePredictionWithTeacherConfig, *dictionaries: Dictionary):
        super().__init__(cfg, *dictionaries)
        self._correlations = Correlations()

    @property
    def regresses(self) -> bool:
        """Whether labels are numbers."""
        return bool(self.cfg.regression_target)

    @property
    def logs_accuracy(self) -> bool:
        """Whether labels are classes."""
        return not self.regresses

    @classmethod
    def setup_task(
        cls, cfg: SentencePredictionWithTeacherConfig, **kwargs: Any
    ) -> "SentencePredictionWithTeacherTask":
        """Load the dictionaries. A task rebuilt from a checkpoint needs no teacher.

        Raises:
            UsageError: --num-classes is not that of the labels, or the worst checkpoint would be kept.
        """
        if not kwargs.get("from_checkpoint", False):
            check_run(cfg)
            check_direction(cfg.best_checkpoint_metric, cfg.maximize_best_checkpoint_metric)
        if cfg.regression_target and cfg.num_classes != 1:
            raise UsageError(f"--regression-target needs --num-classes 1, but it is {cfg.num_classes}")
        if cfg.num_classes < 2 and not cfg.regression_target:
            raise UsageError(f"--num-classes must be 2 or more, but is {cfg.num_classes}")
        task = super().setup_task(cfg, **kwargs)
        if not cfg.regression_target:
            check_num_classes(cfg.num_classes, task.label_dictionary, cfg.data)
        return task

    @property
    def layout(self) -> BatchLayout:
        """How the task's batches are padded."""
        symbols = SpecialSymbols(pad=self.uncounted, eos=self.label_dictionary.eos())
        return BatchLayout(self.source_dictionary.pad(), symbols, left_pad_source=False)

    def run_student(self, model: torch.nn.Module, sample: Batch) -> Tensor:
        """Return the student's logits for ``B`` sentences over ``C`` classes, ``(B, C)``."""
        return class_logits(model, sample, self.cfg.classification_head_name)

    def check_method(self, method: Method) -> None:
        """Refuse methods that write sentences, and settings that change nothing here."""
        if self.regresses:
            check_regression(method)
        if method.writes:
            remedy = "a method without --teacher-samples" if method.teacher_samples else "--student-share 0"
            also = "" if self.regresses else " or atkd"
            raise UsageError(
                f"--criterion {method.name} writes sentences, but --task sentence_prediction_with_teacher "
                f"classifies: use word_kd, annealing_kd, continuation_kd{also}, or {remedy}"
            )
        if not self.regresses:
            check_classification(method, self.cfg.num_classes)

    def load_dataset(self, split: str, *args: Any, **kwargs: Any) -> None:
        """Read a data set.

        Raises:
            UsageError: its files can't be read, or its labels are not one number for each sentence.
        """
        labels = os.path.join(self.cfg.data, "label", f"{split}.label")
        if self.regresses and not os.path.isfile(labels):
            raise UsageError(f"--regression-target needs a number for each sentence of '{split}' in {labels}")
        super().load_dataset(split, *args, **kwargs)
        if self.regresses:
            give_exact_labels(self.datasets[split], labels)

    def valid_step(
        self, sample: Batch, model: torch.nn.Module, criterion: Any
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """fairseq's own validation step; scores are kept for their correlation with the labels."""
        result: tuple[Tensor, int, dict[str, Any]] = super().valid_step(sample, model, criterion)
        if self.regresses:
            with torch.no_grad():
                scores = self.run_student(model, sample).flatten()
            self._correlations.add(sample["id"], scores, sample["target"].flatten())
        return result

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Log the values of all processes, and the correlations of a validation's scores with its labels."""
        super().reduce_metrics(logging_outputs, criterion)
        self._correlations.log()

    def _check_teacher(self, distiller: Distiller, learner: Learner) -> None:
        if not self.regresses:
            return super()._check_teacher(distiller, learner)
        self._teacher_is_checked = True
        teacher = distiller.teacher
        assert isinstance(teacher, ClassifyingTeacher)
        with autocast(learner.optimizer):
            teacher.place(*placement(learner.student))
            paths, poor = (self.cfg.teacher_path or "").split(os.pathsep), self.cfg.teacher_allow_poor
            check_scores(teacher, self.datasets[self.cfg.train_subset], paths=paths, allow_poor=poor)

    def open_teacher(self, method: Method) -> AnyTeacher:
        """Load the classifiers and check that their classes are the student's."""
        return load_classifier(TeacherSource.from_flags(self.cfg), self)
