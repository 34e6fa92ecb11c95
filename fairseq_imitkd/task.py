"""``translation_with_teacher``: fairseq's translation with a frozen teacher beside the student. Wiring only."""

import contextlib
import logging
from dataclasses import dataclass, field
from typing import Any, Optional, cast

import torch
from fairseq import utils
from fairseq.dataclass import ChoiceEnum
from fairseq.models import BaseFairseqModel, FairseqIncrementalDecoder
from fairseq.models.nat import FairseqNATModel
from fairseq.optim.amp_optimizer import AMPOptimizer
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from torch import Tensor

from fairseq_imitkd.batch import Batch, parts_by_length, take
from fairseq_imitkd.clock import StageClock
from fairseq_imitkd.criterion import DISTILLATION, Distillation, DistillationCriterion
from fairseq_imitkd.encoder_cache import parse_bytes
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.mixing import NO_WORK, Mixed, Mixer
from fairseq_imitkd.pool import RolloutPool
from fairseq_imitkd.rollout import RolloutGenerator
from fairseq_imitkd.teacher import StudentSide, Teacher, check_files, load_teacher

logger = logging.getLogger(__name__)

Precision: Any = ChoiceEnum(["auto", "fp32", "fp16", "bf16"])


@dataclass
class TranslationWithTeacherConfig(TranslationConfig):
    """Everything of ``translation``, and where the teacher is."""

    teacher_path: Optional[str] = field(
        default=None, metadata={"help": "the teacher's checkpoint, or several joined by ':' whose probabilities are averaged"}
    )
    teacher_dtype: Precision = field(default="auto", metadata={"help": "the teacher's precision (auto: the student's)"})
    teacher_data: Optional[str] = field(
        default=None,
        metadata={
            "help": "folder with the dictionaries that the teacher was trained with "
            "(default: looked for beside the checkpoint, then in the folder that it names)"
        },
    )
    teacher_allow_globals: Optional[str] = field(
        default=None,
        metadata={"help": "types that the teacher's checkpoint may hold beside fairseq's own: module.name,… (files you trust)"},
    )
    teacher_encoder_cache: str = field(
        default="0",
        metadata={
            "help": "memory for the teacher's encoder outputs, which are the same every epoch, on its device: 512MB, 2GB, … "
            "(0: none)"
        },
    )


# A part of a batch with a forward and backward pass of its own costs, beside its target positions, as much as this many
# more (see benchmarks/NOTES.md). On a GPU, small kernels cost more than padding does: there a batch stays whole.
PART_COST = {"cpu": 32}


@register_task("translation_with_teacher", dataclass=TranslationWithTeacherConfig)
class TranslationWithTeacherTask(TranslationTask):
    """Translation, trained by a :class:`DistillationCriterion` (or by any other criterion, without the teacher).

    Decoding never touches the teacher: it is loaded when a distilling criterion is built for training.
    """

    has_teacher = True
    cfg: TranslationWithTeacherConfig

    def __init__(self, cfg: TranslationWithTeacherConfig, src_dict: Any, tgt_dict: Any):
        super().__init__(cfg, src_dict, tgt_dict)
        self.for_training = True
        self._teacher: Teacher | None = None
        self._student_refusal: str | None = None
        self._clock: StageClock | None = None
        self._mixer: Mixer | None = None

    @classmethod
    def setup_task(cls, cfg: TranslationWithTeacherConfig, **kwargs: Any) -> "TranslationWithTeacherTask":
        """Load the dictionaries. A task rebuilt from a checkpoint, to decode or validate, needs no teacher."""
        task = super().setup_task(cfg, **kwargs)
        task.for_training = not kwargs.get("from_checkpoint", False)
        return task

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> BaseFairseqModel:
        """Build the student, and remember whether it can be distilled into."""
        model = super().build_model(cfg, from_checkpoint)
        self._student_refusal = _why_not_student(model)
        return model

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion and, for one that distils, load the teacher: a mistake ends the run here, before any data.

        Raises:
            UsageError: the teacher, the student's architecture or a flag does not fit.
        """
        criterion = super().build_criterion(cfg, from_checkpoint)
        if self.cfg.teacher_path and not isinstance(criterion, DistillationCriterion):
            logger.warning("--teacher-path is not used: this --criterion does not distil; use --criterion imitkd")
        if isinstance(criterion, DistillationCriterion) and self.for_training and not from_checkpoint:
            check_files(self.cfg.teacher_path)
            if self.cfg.left_pad_target:
                raise UsageError("--left-pad-target can't be used here: rollouts are padded on the right; leave it out")
            if self._student_refusal:
                raise UsageError(self._student_refusal)
            self._teacher = self._load_teacher()
            self._mixer = self._new_mixer(criterion)
        return criterion

    def build_generator(
        self,
        models: Any,
        args: Any,
        seq_gen_cls: Any = None,
        extra_gen_cls_kwargs: Any = None,
        prefix_allowed_tokens_fn: Any = None,
    ) -> Any:
        """fairseq's generator; greedy and sampled decoding take the rollouts' engine where it computes the same."""
        if seq_gen_cls is None and not getattr(args, "print_alignment", False):
            seq_gen_cls = RolloutGenerator
        return super().build_generator(models, args, seq_gen_cls, extra_gen_cls_kwargs, prefix_allowed_tokens_fn)

    def get_batch_iterator(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """fairseq's batches. A sentence too long for the teacher is not trained on; validation stays stock."""
        if self._teacher is not None and dataset is self.datasets.get(self.cfg.train_subset):
            kwargs["max_positions"] = utils.resolve_max_positions(kwargs.get("max_positions"), self._teacher.max_positions)
        batches = super().get_batch_iterator(dataset, *args, **kwargs)
        pool = self._mixer.pool if self._mixer is not None else None
        return pool.watch(batches) if pool is not None and dataset is self.datasets.get(self.cfg.train_subset) else batches

    def _load_teacher(self) -> Teacher:
        cfg = self.cfg
        student = StudentSide(cfg.source_lang, cfg.target_lang, self.source_dictionary, self.target_dictionary)
        room = parse_bytes(cfg.teacher_encoder_cache, "--teacher-encoder-cache")
        return load_teacher(
            cfg.teacher_path or "", student, str(cfg.teacher_dtype), cfg.teacher_data, cfg.teacher_allow_globals, room
        )

    def _new_mixer(self, criterion: DistillationCriterion) -> Mixer:
        return Mixer(self, RolloutPool(criterion.rollout_pool_updates) if criterion.rollout_pool else None)

    def train_step(
        self,
        sample: Batch,
        model: torch.nn.Module,
        criterion: Any,
        optimizer: Any,
        update_num: int,
        ignore_grad: bool = False,
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """One micro-batch: roll out, ask the teacher, then fairseq's own forward, loss and backward.

        Args, returns: as in :meth:`fairseq.tasks.FairseqTask.train_step`. A batch with ``ignore_grad`` (fairseq's
        filler for uneven shards) is neither rolled out nor scored.
        """
        if not isinstance(criterion, DistillationCriterion):
            return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)
        clock = self._clock = self._clock or StageClock(sample["target"].device)
        work = NO_WORK
        with clock.stage("step_seconds"):
            if ignore_grad:
                loss, sample_size, figures = super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)
            else:
                rolls_out = criterion.student_share(update_num) > 0.0
                # A context of its own: autocast remembers casts made without gradients until it is left.
                with clock.stage("rollout_seconds") if rolls_out else contextlib.nullcontext(), _autocast(optimizer):
                    mixed = self._mixed(sample, _unwrapped(model), criterion, update_num)
                work = mixed.work
                loss, sample_size, figures = self._learn(mixed, model, criterion, optimizer, update_num, clock)
        seconds = clock.read()
        stages = {stage: seconds.get(stage, 0.0) for stage in ("rollout_seconds", "teacher_seconds", "step_seconds")}
        return loss, sample_size, {**figures, **work, **stages}

    def _mixed(self, sample: Batch, student: BaseFairseqModel, criterion: DistillationCriterion, update_num: int) -> Mixed:
        """The batch to train on, some of its targets written by the student."""
        if self._teacher is None:  # a task rebuilt from a checkpoint, trained after all
            self._teacher = self._load_teacher()
        if self._mixer is None:
            self._mixer = self._new_mixer(criterion)
        max_target = min(student.max_decoder_positions(), self._teacher.max_positions[1])
        return self._mixer.mix(sample, student, criterion, update_num, max_target)

    def _learn(
        self, batch: Mixed, model: torch.nn.Module, criterion: Any, optimizer: Any, update_num: int, clock: StageClock
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """The teacher's logits, the loss and its backward, part by part where lengths differ.

        All of them are sums, so the parts' add up to the batch's; only dropout draws otherwise than for the whole.
        """
        assert self._teacher is not None
        sample, teacher = batch.sample, self._teacher
        source_pad, target_pad = self.source_dictionary.pad(), self.target_dictionary.pad()
        with clock.stage("teacher_seconds"), _autocast(optimizer):
            teacher.place(*_placement(_unwrapped(model)))
            encoded = teacher.encode(sample)
        parts: list[Tensor | None] = [None]
        cost = PART_COST.get(sample["target"].device.type)
        if cost is not None:
            divided = parts_by_length(sample["target"], target_pad, cost)
            parts = [*divided] if len(divided) > 1 else parts
        total: tuple[Tensor, int, dict[str, Any]] | None = None
        for number, rows in enumerate(parts, start=1):
            part = sample if rows is None else take(sample, rows, source_pad, target_pad)
            with clock.stage("teacher_seconds"), _autocast(optimizer):
                logits = teacher.score(part, encoded, rows)
            flags = [flag if rows is None else flag[rows] for flag in (batch.is_rollout, batch.truncated)]
            part = {**part, DISTILLATION: Distillation(logits, *flags)}
            del logits
            with _gradients_kept_here(model) if number < len(parts) else contextlib.nullcontext():
                step = super().train_step(part, model, criterion, optimizer, update_num)
            total = step if total is None else _added(total, step)
        assert total is not None
        return total


def _why_not_student(model: BaseFairseqModel) -> str | None:
    """Why a model can't be distilled into, as one line; None when it can."""
    name = type(model).__name__
    if isinstance(model, FairseqNATModel):
        return f"--arch builds a {name}, which does not write from left to right: choose another encoder-decoder"
    if not hasattr(model, "encoder") or not isinstance(getattr(model, "decoder", None), FairseqIncrementalDecoder):
        return f"--arch builds a {name}, which has no incremental decoder to write rollouts: choose another encoder-decoder"
    if getattr(model.decoder, "adaptive_softmax", None) is not None:
        return "--adaptive-softmax-cutoff leaves no logits over the whole vocabulary to compare with the teacher: leave it out"
    return None


def _placement(student: BaseFairseqModel) -> tuple[torch.device, torch.dtype]:
    """Where the student is, and the precision in which it computes."""
    weights = next(student.parameters())
    half_by_autocast = torch.is_autocast_enabled("cuda") and weights.is_cuda
    return weights.device, torch.get_autocast_dtype("cuda") if half_by_autocast else weights.dtype


def _gradients_kept_here(model: torch.nn.Module) -> contextlib.AbstractContextManager:
    """Processes exchange gradients in the last backward of an update, and only there."""
    return cast(Any, model).no_sync() if hasattr(model, "no_sync") else contextlib.nullcontext()


def _added(one: tuple[Tensor, int, dict[str, Any]], other: tuple[Tensor, int, dict[str, Any]]) -> Any:
    """The losses, counts and figures of two parts of a batch, which are sums, as those of both."""
    figures = {name: value + other[2][name] for name, value in one[2].items()}
    return one[0] + other[0], one[1] + other[1], figures


def _autocast(optimizer: Any) -> contextlib.AbstractContextManager:
    """The precision that fairseq's own forward will use under ``--amp``."""
    if isinstance(optimizer, AMPOptimizer) and torch.cuda.is_available():
        return torch.autocast("cuda")
    return contextlib.nullcontext()


def _unwrapped(model: torch.nn.Module) -> BaseFairseqModel:
    """The student inside its distributed wrappers: the wrapped one may run only once a step."""
    while not isinstance(model, BaseFairseqModel):
        model = cast(torch.nn.Module, model.module)
    return model
