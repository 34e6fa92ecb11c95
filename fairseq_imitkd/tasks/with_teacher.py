"""The mixin that turns a fairseq task into one with a teacher."""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from fairseq import utils
from fairseq.models import BaseFairseqModel
from torch import Tensor

from fairseq_imitkd.checkpoints.build import build_model
from fairseq_imitkd.criterion import DistillationCriterion, unwrapped_criterion
from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.data.dictionaries import check_fingerprints, dictionaries_of
from fairseq_imitkd.data.source_only import with_references
from fairseq_imitkd.errors import RefusedStart, UsageError
from fairseq_imitkd.losses.metrics import totals
from fairseq_imitkd.method.method import Method
from fairseq_imitkd.mixing import BatchLayout
from fairseq_imitkd.models.access import placement
from fairseq_imitkd.rollout import SpecialSymbols
from fairseq_imitkd.teacher.cache.reader import CachedTeacher
from fairseq_imitkd.teacher.likelihood import check_likelihood
from fairseq_imitkd.teacher.loading import load_members
from fairseq_imitkd.teacher.sentence_weights import SentenceWeights
from fairseq_imitkd.teacher.source import TeacherSource, check_files
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.training import fairseq_state
from fairseq_imitkd.training.adapter import AnyTeacher
from fairseq_imitkd.training.checks import check_student, widths_to_match
from fairseq_imitkd.training.continued import check_projection
from fairseq_imitkd.training.distiller import Distiller, Learner, autocast
from fairseq_imitkd.training.finite_gradients import refuse_broken_gradients
from fairseq_imitkd.training.ranks import memory_for
from fairseq_imitkd.training.rollout_log import RolloutLog
from fairseq_imitkd.training.run_files import RunFiles, whole_config

if TYPE_CHECKING:
    from fairseq.tasks import FairseqTask as _Task
else:
    _Task = object  # a mixin: the fairseq task class comes after it


logger = logging.getLogger(__name__)


class WithTeacher(_Task):
    """A fairseq task with a frozen teacher beside the student.

    Inherit it before the fairseq task class. It implements
    :class:`~fairseq_imitkd.training.adapter.TaskAdapter` for encoder-decoder models that write from left to
    right; a task overrides what differs. With a criterion that distils, a
    :class:`~fairseq_imitkd.training.distiller.Distiller` runs the training steps. The teacher is loaded when
    this criterion is built for training. Any other criterion trains as in the fairseq task, without a
    teacher. Decoding needs no teacher either.
    """

    has_teacher = True  # criteria that distil check it
    for_training = True  # False for a task rebuilt from a checkpoint, to decode or validate
    cfg: Any
    datasets: Any
    source_dictionary: Any
    target_dictionary: Any
    student: BaseFairseqModel

    decodes = True
    compares_sizes = True  # whether a student that is larger than its teacher is odd
    logs_accuracy: Any = False  # may be a property, as may the next one
    regresses: Any = False

    def __init__(self, cfg: Any, *dictionaries: Any, **more: Any):
        super().__init__(cfg, *dictionaries, **more)
        self._distiller: Distiller | None = None  # built with a criterion that distils
        self._teacher_is_checked = False
        self._run_files = RunFiles(cfg)
        self._epoch = 1
        self._fairseq_state: dict[str, Any] = {}

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> Any:
        """Set up fairseq's task. One that is rebuilt from a checkpoint needs no teacher."""
        task: Any = super().setup_task(cfg, **kwargs)
        task.for_training = not kwargs.get("from_checkpoint", False)
        return task

    @property
    def layout(self) -> BatchLayout:
        """How the task's batches are padded: as its ``left_pad_source`` says, else on the right."""
        return BatchLayout(
            source_pad=self.source_dictionary.pad(),
            target=SpecialSymbols.from_dictionary(self.target_dictionary),
            left_pad_source=getattr(self.cfg, "left_pad_source", False),
        )

    @property
    def uncounted(self) -> int:
        """The index of the padding symbol in the target dictionary."""
        return int(self.target_dictionary.pad())

    def writer(self, student: BaseFairseqModel) -> BaseFairseqModel:
        """Return the student, which reads the task's batches as they are."""
        return student

    def run_student(self, model: torch.nn.Module, sample: Batch) -> Tensor:
        """Return the student's logits, or its hidden states, at all target positions, ``(B * T, V)``."""
        return model(**sample["net_input"])[0].flatten(0, 1)

    def check_method(self, method: Method) -> None:
        """Accept every method."""

    def check_training(self, method: Method) -> None:
        """Refuse missing files and students that can't write, before the teacher is loaded."""
        check_files(self.cfg.teacher_path)
        if self.decodes and hasattr(self, "student"):
            check_student(self.student, method)

    def open_teacher(self, method: Method) -> AnyTeacher:
        """Load the teacher."""
        return self.load_teacher()

    def load_teacher(self) -> Teacher:
        """Load a teacher that was trained with fairseq's task of the same dictionaries."""

        def build(path: str, state: dict[str, Any], cfg: Any) -> BaseFairseqModel:
            check_fingerprints(state, dictionaries_of(self))
            return build_model(state, cfg, self)

        source = TeacherSource.from_flags(self.cfg)
        return Teacher(
            load_members(source, build), dtype=source.dtype, weights=source.weights, device=source.device
        )

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> BaseFairseqModel:
        """Build the student, or the model of a checkpoint, such as the teacher."""
        model: BaseFairseqModel = super().build_model(cfg, from_checkpoint)
        if not from_checkpoint:
            self.student = model
        return model

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion. If it distils, also check the flags and load the teacher.

        So a mistake ends the run before any data is read.

        Raises:
            UsageError: the teacher, the student's architecture or a flag does not fit.
        """
        criterion = super().build_criterion(cfg, from_checkpoint)
        if from_checkpoint or not self.for_training:
            return criterion
        if not isinstance(criterion, DistillationCriterion):
            self._refuse_unused_flags(str(getattr(cfg, "_name", None) or type(criterion).__name__))
        else:
            self.check_training(criterion.method)
            teacher = self.distiller_of(criterion).teacher
            if criterion.method.matches_hidden:
                criterion.begin_matching(*widths_to_match(self.student, teacher, criterion.method))
                if (config := whole_config(self.cfg)) is not None:
                    check_projection(config, criterion)
        return criterion

    def distiller_of(self, criterion: DistillationCriterion) -> Distiller:
        """Return the distiller of a criterion's method; the first call loads the teacher."""
        if self._distiller is None or self._distiller.method is not criterion.method:
            teacher = self.open_teacher(criterion.method)
            self._distiller = Distiller(
                criterion.method,
                self,
                teacher,
                sentence_weights=self.select_teachers(teacher, criterion.method),
                dictionary=self.target_dictionary,
                warm_up=_warm_up(self.cfg),
                rollout_log=RolloutLog.of(self, criterion.method.cfg),
            )
        return self._distiller

    def select_teachers(self, teacher: AnyTeacher, method: Method) -> SentenceWeights | None:
        """Return weights of several teachers that differ between sentences; None if they are the same for all
        sentences.
        """
        return None

    def limits_of(self, teacher: AnyTeacher) -> tuple[int, int]:
        """Return the longest source and target, as the data set counts them, that a teacher accepts."""
        return teacher.max_positions

    def _refuse_unused_flags(self, criterion: str) -> None:
        for name in ("teacher_path", "teacher_cache"):
            if getattr(self.cfg, name, None) and not getattr(self.cfg, "init_from_teacher", None):
                flag = "--" + name.replace("_", "-")
                raise UsageError(
                    f"{flag} is not used, because --criterion {criterion} does not distil: use a method "
                    "such as imitkd, gkd or word_kd, or leave it out"
                )

    def get_batch_iterator(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Return fairseq's iterator over the batches of a data set.

        In training it skips sentences that are too long for the teacher, and a rollout pool watches it. A
        validation on the student's own translations skips them too.
        """
        distiller = self._distiller
        trains = dataset is self.datasets.get(self.cfg.train_subset)
        if distiller is None or not self.decodes or not (trains or with_references(dataset) is None):
            return super().get_batch_iterator(dataset, *args, **kwargs)
        limits = kwargs.get("max_positions")
        kwargs["max_positions"] = utils.resolve_max_positions(limits, self.limits_of(distiller.teacher))
        batches = super().get_batch_iterator(dataset, *args, **kwargs)
        if not trains:
            return batches
        pool = distiller.mixer.pool
        return pool.watch(batches) if pool is not None else batches

    def begin_epoch(self, epoch: int, model: Any) -> None:
        """Remember the epoch, because schedules may depend on it."""
        super().begin_epoch(epoch, model)
        self._epoch = epoch
        if self._distiller is not None and isinstance(self._distiller.teacher, CachedTeacher):
            self._distiller.teacher.begin_epoch(epoch)
        self._run_files.begin_epoch(epoch, model)

    def train_step(
        self,
        sample: Batch,
        model: torch.nn.Module,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Train on one micro-batch, with the distiller if the criterion distils.

        The arguments and results are those of :meth:`fairseq.tasks.FairseqTask.train_step`. ``ignore_grad``
        marks a filler batch, which fairseq gives to a process that has run out of batches.

        Raises:
            RefusedStart: the teacher does not know the training data.
            RefusedUpdate: one of several processes has too little memory.
        """
        with memory_for(update_num):
            if not isinstance(unwrapped_criterion(criterion), DistillationCriterion):
                return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)
            learner = Learner(model, criterion, optimizer, update_num)
            distiller = self.distiller_of(criterion)
            distiller.epoch = self._epoch
            if not self._teacher_is_checked:
                try:
                    self._check_teacher(distiller, learner)
                except UsageError as error:
                    raise RefusedStart(str(error)) from error
            return distiller.skip(sample, learner) if ignore_grad else distiller.step(sample, learner)

    def _check_teacher(self, distiller: Distiller, learner: Learner) -> None:
        """Refuse a teacher that does not know the training data, before the first update.

        All processes do this, with a filler batch too, and get the same result. The answers of a cache were
        checked when it was written.
        """
        self._teacher_is_checked = True
        teacher = distiller.teacher
        if not isinstance(teacher, Teacher):
            return
        if self.compares_sizes:
            _warn_of_size(learner.student, teacher.models)
        for name, dataset in self.teacher_checks():
            with autocast(learner.optimizer), naming(name):
                teacher.place(*placement(learner.student))
                check_likelihood(
                    teacher,
                    dataset,
                    paths=self.cfg.teacher_path.split(os.pathsep),
                    pad=distiller.task.uncounted,
                    symbols=len(self.target_dictionary),
                    writes=self.decodes,
                    selects=str(getattr(self.cfg, "teacher_selection", "fixed")) != "fixed",
                    allow_poor=self.cfg.teacher_allow_poor,
                )

    def teacher_checks(self) -> Iterator[tuple[str, Any]]:
        """Yield the data sets that the teacher must know, with their names; empty is all data."""
        dataset = with_references(self.datasets.get(self.cfg.train_subset))
        if dataset is not None:
            yield "", dataset

    def train_on(
        self, sample: Batch, model: torch.nn.Module, **arguments: Any
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Run fairseq's own training step on a batch that the distiller has prepared."""
        return super().train_step(sample, model, **arguments)

    def begin_valid_epoch(self, epoch: int, model: Any) -> None:
        """Tell the training state and the run's files that a validation begins."""
        super().begin_valid_epoch(epoch, model)
        if self._distiller is not None:
            self._distiller.state.validation_begins()
        self._run_files.begin_valid_epoch()

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Log the values of all processes, and pass them to the training state.

        They are fetched from the device once.
        """
        if self._distiller is None or not logging_outputs:
            return super().reduce_metrics(logging_outputs, criterion)
        total = totals(logging_outputs)
        super().reduce_metrics([total], criterion)
        self._distiller.state.logged(total, criterion.training)

    def post_validate(self, model: Any, stats: Any, agg: Any) -> None:
        """Tell the training state and the run's files that one of the validation sets is done."""
        if self._distiller is not None:
            self._distiller.state.validated()
        self._run_files.post_validate(stats)

    def prepare_checkpoint(self, trainer: Any, epoch_loss: float | None) -> None:
        """Collect what a checkpoint must hold beside fairseq's own state. All processes call this together.

        Args:
            trainer: fairseq's trainer.
            epoch_loss: the validation loss of the epoch that ends with this checkpoint, if one does.
        """
        self._fairseq_state = fairseq_state.read(trainer, epoch_loss)
        if self._distiller is not None:
            self._distiller.prepare_checkpoint(self.student)

    def get_checkpoint_dict(self) -> dict[str, Any]:
        """Return the training state, which fairseq puts into its checkpoints; empty for most methods."""
        saved = self._distiller.state.saved() if self._distiller is not None else {}
        if self._fairseq_state:
            saved["fairseq"] = self._fairseq_state
        return {type(self).__name__: saved} if saved else {}

    def set_checkpoint_dict(self, saved: dict[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        self._fairseq_state = saved.get("fairseq", {})
        if self._distiller is not None:
            self._distiller.state.restore(saved)

    def checkpoint_loaded(self, trainer: Any, epoch: int) -> None:
        """Continue fairseq's own state, when the trainer has loaded a checkpoint or found none.

        From here on the trainer refuses an update whose gradient is not finite.

        Args:
            trainer: fairseq's trainer.
            epoch: the epoch that follows.
        """
        fairseq_state.restore(trainer, epoch, self._fairseq_state)
        refuse_broken_gradients(trainer, self._distiller.method if self._distiller is not None else None)


@contextlib.contextmanager
def naming(part: str) -> Iterator[None]:
    """Name the part of the data that an error is about, if it is not all."""
    if part:
        logger.info("%s:", part)
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{part}: {error}" if part else str(error)) from error


def _warm_up(task_config: Any) -> int:
    """Return the number of updates of the learning rate's warm-up; 0 without one."""
    config = whole_config(task_config)
    scheduler = None if config is None else config.get("lr_scheduler")
    return int(getattr(scheduler, "warmup_updates", None) or 0)


def _warn_of_size(student: torch.nn.Module, teacher: Sequence[torch.nn.Module]) -> None:
    """Warn of a student that is larger than its teacher.

    Args:
        student: the student.
        teacher: the teacher's models.
    """
    own, theirs = (
        # The weights of a teacher in int8 are buffers.
        sum(each.numel() for model in models for each in chain(model.parameters(), model.buffers()))
        for models in ([student], teacher)
    )
    if own > theirs:
        logger.warning(
            "the student has %s parameters and its teacher %s: a smaller student (--arch and its dimensions) "
            "would be faster",
            f"{own:,}",
            f"{theirs:,}",
        )
