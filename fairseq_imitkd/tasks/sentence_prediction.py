"""``sentence_prediction_with_teacher``: fairseq's classification of sentences with a frozen teacher beside
the student.

A sentence is a target of one symbol, its class. There is nothing to decode, so methods train on the data
alone.
"""

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.tasks import register_task
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask
from omegaconf import II
from torch import Tensor

from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.method.method import Method
from fairseq_imitkd.mixing import BatchLayout
from fairseq_imitkd.rollout import SpecialSymbols
from fairseq_imitkd.tasks.with_teacher import WithTeacher
from fairseq_imitkd.teacher.classifier import class_logits, load_classifier
from fairseq_imitkd.teacher.config import TeacherConfig
from fairseq_imitkd.teacher.source import TeacherSource, check_files
from fairseq_imitkd.training.adapter import AnyTeacher
from fairseq_imitkd.training.plain_errors import WithPlainErrors, check_run
from fairseq_imitkd.training.validation import check_direction


@dataclass
class SentencePredictionWithTeacherConfig(TeacherConfig, SentencePredictionConfig):
    """The flags of ``sentence_prediction`` and of the teacher."""

    # fairseq reads these two from its own criterion's settings; here they belong to the task:
    # https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/tasks/sentence_prediction.py#L83-L84
    regression_target: bool = field(
        default=False, metadata={"help": "not supported: distillation needs classes"}
    )
    classification_head_name: str = field(
        default="sentence_classification_head",
        metadata={"help": "name of the classification head of the student and of the teacher"},
    )
    best_checkpoint_metric: str = II("checkpoint.best_checkpoint_metric")
    maximize_best_checkpoint_metric: bool = II("checkpoint.maximize_best_checkpoint_metric")


@register_task("sentence_prediction_with_teacher", dataclass=SentencePredictionWithTeacherConfig)
class SentencePredictionWithTeacherTask(WithTeacher, WithPlainErrors, SentencePredictionTask):
    """Classification of sentences with a teacher, without rollouts."""

    decodes = False
    logs_accuracy = True
    uncounted = -100  # a class is never padding
    cfg: SentencePredictionWithTeacherConfig

    @classmethod
    def setup_task(
        cls, cfg: SentencePredictionWithTeacherConfig, **kwargs: Any
    ) -> "SentencePredictionWithTeacherTask":
        """Load the dictionaries. A task rebuilt from a checkpoint needs no teacher.

        Raises:
            UsageError: --num-classes is missing or is not the number of labels, or the worst checkpoint would
                be kept.
        """
        if not kwargs.get("from_checkpoint", False):
            check_run(cfg)
            check_direction(cfg.best_checkpoint_metric, cfg.maximize_best_checkpoint_metric)
        if cfg.num_classes < 2:
            raise UsageError(f"--num-classes must be 2 or more, but is {cfg.num_classes}")
        if cfg.regression_target:
            raise UsageError(
                "--regression-target can't be distilled here, because a teacher scores classes: leave it out"
            )
        task = super().setup_task(cfg, **kwargs)
        labels = _count_labels(task.label_dictionary)
        if labels != cfg.num_classes:
            file = os.path.join(cfg.data, "label", "dict.txt")
            raise UsageError(
                f"--num-classes {cfg.num_classes} is not the number of labels in {file}: give --num-classes "
                f"{labels}"
            )
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
        """Refuse methods that write sentences, and settings that change nothing for classes."""
        cfg = method.cfg
        if method.writes:
            remedy = "a method without --teacher-samples" if method.teacher_samples else "--student-share 0"
            raise UsageError(
                f"--criterion {method.name} writes sentences, but --task sentence_prediction_with_teacher "
                f"classifies: use word_kd, annealing_kd, continuation_kd or atkd, or {remedy}"
            )
        if cfg.loss_chunk > 0:
            raise UsageError(
                f"--loss-chunk {cfg.loss_chunk} changes nothing, because there are few classes: leave it out"
            )
        if cfg.teacher_topk >= self.cfg.num_classes:
            raise UsageError(
                f"--teacher-topk {cfg.teacher_topk} changes nothing, because there are "
                f"{self.cfg.num_classes} classes (--num-classes): lower it or leave it out"
            )

    def check_training(self, method: Method) -> None:
        """Refuse missing files before anything slow happens."""
        check_files(self.cfg.teacher_path)

    def open_teacher(self, method: Method) -> AnyTeacher:
        """Load the classifiers and check that their classes are the student's."""
        return load_classifier(TeacherSource.from_flags(self.cfg), self)


def _count_labels(dictionary: Dictionary) -> int:
    """Return the number of labels in a dictionary.

    fairseq's own symbols do not count, nor those that it adds to reach a multiple of eight.
    """
    symbols = dictionary.symbols[dictionary.nspecial :]
    return sum(symbol != "<mask>" and not symbol.startswith("madeupword") for symbol in symbols)
