"""The interface between distillation and a fairseq task: what a task must provide."""

from typing import Any, Protocol

import torch
from fairseq.models import BaseFairseqModel
from torch import Tensor

from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.method.method import Method
from fairseq_imitkd.mixing import BatchLayout
from fairseq_imitkd.teacher.cache.reader import CachedTeacher
from fairseq_imitkd.teacher.teacher import Teacher

AnyTeacher = Teacher | CachedTeacher


class TaskAdapter(Protocol):
    """A task with a teacher.

    A task class implements this protocol and inherits
    :class:`~fairseq_imitkd.tasks.with_teacher.WithTeacher`, which loads the teacher and calls the training
    step.

    Attributes:
        decodes: whether the task's models write sentences, token by token. Without it there are no rollouts,
            and batches are not divided by target length.
    """

    decodes: bool

    @property
    def logs_accuracy(self) -> bool:
        """Whether the share of targets that the student finds most probable is logged."""

    @property
    def regresses(self) -> bool:
        """Whether a sentence's target is a number, ``(B, 1)``, and NaN if it has no label."""

    @property
    def uncounted(self) -> int:
        """The target value of positions that do not count in the loss (padding)."""

    @property
    def layout(self) -> BatchLayout:
        """How the task's batches are padded."""

    def writer(self, student: BaseFairseqModel) -> BaseFairseqModel:
        """Return the model that reads the task's batches: the student, or a view of it without weights."""

    def run_student(self, model: torch.nn.Module, sample: Batch) -> Tensor:
        """Run the student once on a batch.

        Returns:
            its logits, or its hidden states within ``features_for_logits``, at all target positions, ``(B *
            T, V)`` or ``(B * T, D)``, row by row.
        """

    def check_method(self, method: Method) -> None:
        """Check that the task can train with a method. This is called before any data is read.

        Raises:
            UsageError: it can't.
        """

    def check_training(self, method: Method) -> None:
        """Check the flags, the files and the student. This is called before the teacher is loaded.

        Raises:
            UsageError: a flag can't be used, a file is missing, or the student can't be trained.
        """

    def open_teacher(self, method: Method) -> AnyTeacher:
        """Load the teacher, or open the cache of its answers, and check that it fits the student.

        Raises:
            UsageError: the teacher can't be loaded, or its dictionaries are not the student's.
        """

    def train_on(
        self, sample: Batch, model: torch.nn.Module, **arguments: Any
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Run fairseq's own ``train_step``: forward pass, loss, backward pass. ``WithTeacher`` provides it.

        Args:
            sample: a batch with a :class:`~fairseq_imitkd.criterion.Distillation`, or a filler batch.
            model: the student, wrapped or not.
            arguments: the other arguments of fairseq's ``train_step``, by name.
        """
