"""``translation_with_teacher``: fairseq's translation with a frozen teacher beside the student. Wiring only."""

import contextlib
import json
import logging
import os
from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any, Optional, cast

import torch
from fairseq import utils
from fairseq.data import encoders
from fairseq.dataclass import ChoiceEnum
from fairseq.models import BaseFairseqModel
from fairseq.optim.amp_optimizer import AMPOptimizer
from fairseq.tasks import FairseqTask, register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from omegaconf import II
from torch import Tensor

from fairseq_imitkd.checkpoints.safe_load import check_files, parse_weights
from fairseq_imitkd.criterion import DISTILLATION, Distillation, DistillationCriterion
from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.data.directory import check_data, dictionaries_read
from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.method.config import TeacherConfig
from fairseq_imitkd.method.schedules import AdaptiveShare
from fairseq_imitkd.mixing.batch import parts_by_length, take
from fairseq_imitkd.mixing.mixer import NO_WORK, Authors, Mixed, Mixer
from fairseq_imitkd.mixing.pool import RolloutPool
from fairseq_imitkd.mixing.replay import ReplayBuffer
from fairseq_imitkd.models.access import output_projection, placement, unwrapped, why_not_student
from fairseq_imitkd.models.pruning import Pruner, PruningConfig, check_pruning
from fairseq_imitkd.rollout import RolloutGenerator
from fairseq_imitkd.teacher.cache.reader import CachedTeacher, open_cache, refuse_teacher_flags
from fairseq_imitkd.teacher.encoder_cache import parse_bytes
from fairseq_imitkd.teacher.initialise import initialise, parse_parts
from fairseq_imitkd.teacher.loading import load_teacher
from fairseq_imitkd.teacher.selection import TeacherSelector, several_processes
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.text.rewards import NO_REWARDS, Rewarder, RunningMean
from fairseq_imitkd.training.metrics import totals
from fairseq_imitkd.training.stage_timer import StageClock
from fairseq_imitkd.training.state import TrainingState
from fairseq_imitkd.training.validation import (
    ValidationConfig,
    ValidationScores,
    check_validation,
    score_names,
)

logger = logging.getLogger(__name__)

Selection: Any = ChoiceEnum(["fixed", "agreement", "reinforced"])


@dataclass
class TranslationWithTeacherConfig(TeacherConfig, PruningConfig, ValidationConfig, TranslationConfig):
    """Everything of ``translation``, where the teacher is, what is pruned, and what validation scores."""

    teacher_selection: Selection = field(
        default="fixed",
        metadata={
            "help": "fixed: these weights for every sentence; agreement: times how probable each teacher finds the reference; "
            "reinforced: one teacher for each sentence, by a policy that learns which makes the student know it better"
        },
    )
    teacher_encoder_cache: str = field(
        default="0",
        metadata={
            "help": "memory for the teacher's encoder outputs, which are the same every epoch, on its device: 512MB, 2GB, … "
            "(0: none)"
        },
    )
    teacher_cache: Optional[str] = field(
        default=None,
        metadata={
            "help": "folder that imitkd-cache wrote: the teacher's answers on this training data, in place of a teacher"
        },
    )
    init_from_teacher: Optional[str] = field(
        default=None,
        metadata={
            "help": "the student begins as parts of the (first) teacher, and must be built alike (widths, heads, norms, "
            "activation): 'embeddings', 'encoder' and 'decoder', joined by commas; a side's layers are spread evenly over the "
            "teacher's, or named: 'encoder:0.2.5'"
        },
    )
    finetune_from_model: Optional[str] = II("checkpoint.finetune_from_model")


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
        self._teacher: Teacher | CachedTeacher | None = None
        self._student_refusal: str | None = None
        self._chunks = False
        self._clock: StageClock | None = None
        self._mixer: Mixer | None = None
        self._rewarder: Rewarder | None = None
        self._state = TrainingState()
        self._student: BaseFairseqModel | None = None
        self._epoch, self._update = 1, -1
        self._pruner = Pruner(cfg) if cfg.prune_sparsity else None
        names = score_names(cfg.eval_metrics, cfg.eval_bleu)
        settings = (cfg.eval_bleu_remove_bpe, cfg.eval_tokenized_bleu, cfg.eval_bleu_print_samples)
        self._scores = ValidationScores(names, tgt_dict, *settings) if names else None

    @classmethod
    def setup_task(cls, cfg: TranslationWithTeacherConfig, **kwargs: Any) -> "TranslationWithTeacherTask":
        """Load the dictionaries. A task rebuilt from a checkpoint, to decode or validate, needs no teacher."""
        for_training = not kwargs.get("from_checkpoint", False)
        if for_training:
            check_pruning(cfg)
            check_validation(cfg)
        if "://" not in (cfg.data or ""):
            check_data(cfg.data, cfg.source_lang, cfg.target_lang)
        with dictionaries_read(cfg.data):
            task = super().setup_task(cfg, **kwargs)
        task.for_training = for_training
        return task

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> BaseFairseqModel:
        """Build the student, and remember whether it can be distilled into."""
        model = super().build_model(cfg, from_checkpoint)
        if self._scores is not None and not self.cfg.eval_bleu:  # as fairseq has done it for BLEU
            detokenizer = {
                "tokenizer": self.cfg.eval_bleu_detok,
                **json.loads(self.cfg.eval_bleu_detok_args or "{}"),
            }
            self.tokenizer = encoders.build_tokenizer(Namespace(**detokenizer))
            search = Namespace(**json.loads(self.cfg.eval_bleu_args or "{}"))
            self.sequence_generator = self.build_generator([model], search)
        self._student = model
        self._student_refusal = why_not_student(model)
        self._chunks = self._student_refusal is None and output_projection(model.decoder) is not None
        return model

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion and, for one that distils, load the teacher: a mistake ends the run here, before any data.

        Raises:
            UsageError: the teacher, the student's architecture or a flag does not fit.
        """
        parts = self._parts_of_teacher() if self.for_training and not from_checkpoint else {}
        criterion = super().build_criterion(cfg, from_checkpoint)
        if self.cfg.teacher_path and not parts and not isinstance(criterion, DistillationCriterion):
            logger.warning(
                "--teacher-path is not used: this --criterion does not distil; use --criterion imitkd"
            )
        if self.cfg.teacher_cache and not isinstance(criterion, DistillationCriterion):
            logger.warning(
                "--teacher-cache is not used: this --criterion does not distil; use --criterion word_kd"
            )
        if isinstance(criterion, DistillationCriterion) and self.for_training and not from_checkpoint:
            if self.cfg.teacher_cache:
                refuse_teacher_flags(self.cfg, TranslationWithTeacherConfig())
            else:
                check_files(self.cfg.teacher_path)
            if self.cfg.left_pad_target:
                raise UsageError(
                    "--left-pad-target can't be used here: rollouts are padded on the right; leave it out"
                )
            if str(self.cfg.teacher_selection) != "fixed":
                self._check_selection(criterion)
            if self._student_refusal:
                raise UsageError(self._student_refusal)
            if criterion.loss_chunk > 0 and not self._chunks:
                raise UsageError(
                    f"--loss-chunk {criterion.loss_chunk} can't be used with this --arch, whose logits are no product of "
                    "hidden states and one matrix: leave it out"
                )
            self._teacher = self._load_teacher(criterion)
            self._prepare(criterion)
        if parts:
            teacher = self._teacher if isinstance(self._teacher, Teacher) else self._load_teacher(None)
            assert self._student is not None
            assert isinstance(teacher, Teacher)
            initialise(self._student, teacher.models[0], parts)
        return criterion

    def _parts_of_teacher(self) -> dict[str, list[int] | None]:
        """With which the student begins. A run that is resumed reads its checkpoint afterwards."""
        if not self.cfg.init_from_teacher:
            return {}
        parts = parse_parts(self.cfg.init_from_teacher)
        if self.cfg.finetune_from_model:
            raise UsageError(
                "--init-from-teacher changes nothing with --finetune-from-model, whose weights win: leave one out"
            )
        if self.cfg.teacher_cache:
            raise UsageError(
                "--init-from-teacher needs --teacher-path, not --teacher-cache, which holds no weights"
            )
        return parts

    def _check_selection(self, criterion: DistillationCriterion) -> None:
        flag = f"--teacher-selection {self.cfg.teacher_selection}"
        if os.pathsep not in (self.cfg.teacher_path or ""):
            raise UsageError(
                f"{flag} chooses among teachers: give --teacher-path several, joined by ':', or leave it out"
            )
        if criterion.rollout_replay:
            raise UsageError(
                f"{flag} can't be used with rollouts of before, which have no reference: add --rollout-replay 0"
            )

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
        return super().build_generator(
            models, args, seq_gen_cls, extra_gen_cls_kwargs, prefix_allowed_tokens_fn
        )

    def get_batch_iterator(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """fairseq's batches. A sentence too long for the teacher is not trained on; validation stays stock."""
        if self._teacher is not None and dataset is self.datasets.get(self.cfg.train_subset):
            kwargs["max_positions"] = utils.resolve_max_positions(
                kwargs.get("max_positions"), self._teacher.max_positions
            )
        batches = super().get_batch_iterator(dataset, *args, **kwargs)
        pool = self._mixer.pool if self._mixer is not None else None
        return (
            pool.watch(batches)
            if pool is not None and dataset is self.datasets.get(self.cfg.train_subset)
            else batches
        )

    def begin_epoch(self, epoch: int, model: Any) -> None:
        """Remember which epoch it is, by which schedules may move."""
        super().begin_epoch(epoch, model)
        self._epoch = epoch

    def begin_valid_epoch(self, epoch: int, model: Any) -> None:
        """The figures of a validation follow."""
        super().begin_valid_epoch(epoch, model)
        self._state.validation_begins()

    def valid_step(
        self, sample: Batch, model: torch.nn.Module, criterion: Any
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """fairseq's own; where scores are asked for, BLEU or others, the batch is decoded once for all of them."""
        if self._scores is None:
            return super().valid_step(sample, model, criterion)
        # Without TranslationTask's part, which decodes for BLEU alone.
        loss, sample_size, figures = FairseqTask.valid_step(self, sample, model, criterion)
        found = self.inference_step(self.sequence_generator, [model], sample)
        written = [hypotheses[0]["tokens"] for hypotheses in found]
        return (
            loss,
            sample_size,
            {**figures, **self._scores.of_batch(written, sample["target"], self.tokenizer)},
        )

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: Any) -> None:
        """Log the figures of all processes, and let the method's memory have them."""
        super().reduce_metrics(logging_outputs, criterion)
        if self._scores is not None:
            self._scores.log(logging_outputs)
        if isinstance(criterion, DistillationCriterion) and logging_outputs and self._state.listens:
            self._state.logged(totals(logging_outputs), criterion.training)

    def post_validate(self, model: Any, stats: Any, agg: Any) -> None:
        """One of the validation sets is through."""
        self._state.validated()

    def get_checkpoint_dict(self) -> dict[str, Any]:
        """What fairseq puts into a checkpoint beside its own; nothing for most methods."""
        if self._state.selector is not None and self._student is not None and not several_processes():
            # A checkpoint can't hold a lesson that is half done. Of several processes only the first saves, and the others
            # would not learn with it: there a resumed run goes on without the last lesson.
            self._state.selector.learn(self._student)
        saved = self._state.saved()
        return {type(self).__name__: saved} if saved else {}

    def set_checkpoint_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._state.restore(saved)

    def _load_teacher(self, criterion: DistillationCriterion | None) -> Teacher | CachedTeacher:
        cfg = self.cfg
        if cfg.teacher_cache:
            assert criterion is not None
            return open_cache(cfg.teacher_cache, self, criterion)
        student = LanguagePair.of_task(self)
        return load_teacher(
            cfg.teacher_path or "",
            student,
            str(cfg.teacher_dtype),
            cfg.teacher_data,
            cfg.teacher_allow_globals,
            parse_bytes(cfg.teacher_encoder_cache, "--teacher-encoder-cache"),
            parse_weights(cfg.teacher_weights, cfg.teacher_path),
        )

    def _prepare(self, criterion: DistillationCriterion) -> None:
        """What the method needs beside the teacher."""
        share = criterion.share_schedule if isinstance(criterion.share_schedule, AdaptiveShare) else None
        baseline = RunningMean() if criterion.reward and criterion.reward_baseline == "running" else None
        replay = ReplayBuffer(criterion.rollout_replay) if criterion.rollout_replay else None
        selector = None
        if str(self.cfg.teacher_selection) == "reinforced":
            assert isinstance(self._teacher, Teacher)
            selector = TeacherSelector(
                self._teacher.log_weights, self.target_dictionary.pad(), criterion.seed
            )
        self._state = TrainingState(share, baseline, replay, selector)
        self._mixer = Mixer(
            self, RolloutPool(criterion.rollout_pool_updates) if criterion.rollout_pool else None, replay
        )
        if criterion.reward:
            self._rewarder = Rewarder(
                criterion.reward, self.target_dictionary, criterion.reward_remove_bpe, baseline
            )

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
        work = {**NO_WORK, **NO_REWARDS}
        criterion.epoch = self._epoch
        with clock.stage("step_seconds"):
            if self._state.selector is not None and not self._same_update(update_num):
                self._student = unwrapped(model)
                self._state.selector.learn(self._student)
            self._state.update_begins()  # fillers too: all processes do the same
            if ignore_grad:
                loss, sample_size, figures = super().train_step(
                    sample, model, criterion, optimizer, update_num, ignore_grad
                )
            else:
                rolls_out = criterion.student_share(update_num) > 0.0 or criterion.teacher_samples
                # A context of its own: autocast remembers casts made without gradients until it is left.
                with (
                    clock.stage("rollout_seconds") if rolls_out else contextlib.nullcontext(),
                    autocast(optimizer),
                ):
                    mixed = self._mixed(sample, unwrapped(model), criterion, update_num)
                work.update(mixed.work)
                advantages = None
                if self._rewarder is not None:
                    advantages, rewards = self._rewarder.advantages(
                        sample["target"], mixed.sample["target"], mixed.is_rollout
                    )
                    work.update(rewards)
                learnt = self._learn(
                    sample, mixed, advantages, model, criterion, optimizer, update_num, clock
                )
                loss, sample_size, figures = learnt
        seconds = clock.read()
        stages = {
            stage: seconds.get(stage, 0.0) for stage in ("rollout_seconds", "teacher_seconds", "step_seconds")
        }
        return loss, sample_size, {**figures, **work, **stages}

    def optimizer_step(self, optimizer: Any, model: torch.nn.Module, update_num: int) -> None:
        """fairseq's own; pruned weights are zero after it as before."""
        if self._pruner is None:
            return super().optimizer_step(optimizer, model, update_num)
        with self._pruner.holding(model, optimizer, update_num + 1):
            super().optimizer_step(optimizer, model, update_num)

    def _mixed(
        self, sample: Batch, student: BaseFairseqModel, criterion: DistillationCriterion, update_num: int
    ) -> Mixed:
        """The batch to train on, some of its targets written by the student."""
        if self._teacher is None:  # a task rebuilt from a checkpoint, trained after all
            self._teacher = self._load_teacher(criterion)
        if self._mixer is None:
            self._prepare(criterion)
        assert self._mixer is not None
        self._teacher.place(*placement(student))
        max_target = min(student.max_decoder_positions(), self._teacher.max_positions[1])
        return self._mixer.mix(
            sample, Authors(student, self._teacher.writer, max_target), criterion, update_num
        )

    def _learn(
        self,
        references: Batch,
        batch: Mixed,
        advantages: Tensor | None,
        model: torch.nn.Module,
        criterion: DistillationCriterion,
        optimizer: Any,
        update_num: int,
        clock: StageClock,
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """The teacher's scores, the loss and its backward, part by part where lengths differ.

        All of them are sums, so the parts' add up to the batch's; only dropout draws otherwise than for the whole.
        """
        assert self._teacher is not None
        sample, teacher = batch.sample, self._teacher
        source_pad, target_pad = self.source_dictionary.pad(), self.target_dictionary.pad()
        asked = criterion.needs_teacher(update_num)
        encoded, log_weights = None, None
        if asked:
            with clock.stage("teacher_seconds"), autocast(optimizer):
                encoded = teacher.encode(sample, comes_back=batch.work["rollouts_replayed"] == 0)
                log_weights = self._member_weights(references, encoded, model, criterion, update_num)
        parts: list[Tensor | None] = [None]
        cost = PART_COST.get(sample["target"].device.type)
        if cost is not None and not criterion.needs_whole_batches:
            divided = parts_by_length(sample["target"], target_pad, cost)
            parts = [*divided] if len(divided) > 1 else parts
        total: tuple[Tensor, int, dict[str, Any]] | None = None
        for number, rows in enumerate(parts, start=1):
            part = sample if rows is None else take(sample, rows, source_pad, target_pad)
            scores = None
            if asked:
                whole = criterion.chunk(model, part["target"]) == 0
                weights = log_weights if log_weights is None or rows is None else log_weights[rows]
                with clock.stage("teacher_seconds"), autocast(optimizer):
                    scores = teacher.score(part, encoded, rows, whole, weights, criterion.of_logits)
            of_rows = [batch.is_rollout, batch.truncated, advantages]
            is_rollout, truncated, better = (
                flag if rows is None or flag is None else flag[rows] for flag in of_rows
            )
            assert is_rollout is not None
            assert truncated is not None
            part = {**part, DISTILLATION: Distillation(scores, is_rollout, truncated, update_num, better)}
            del scores
            with _gradients_kept_here(model) if number < len(parts) else contextlib.nullcontext():
                step = super().train_step(part, model, criterion, optimizer, update_num)
            total = step if total is None else _added(total, step)
        assert total is not None
        return total

    def _member_weights(
        self,
        references: Batch,
        encoded: Any,
        model: torch.nn.Module,
        criterion: DistillationCriterion,
        update_num: int,
    ) -> Tensor | None:
        """The teachers' weights for each sentence, ``(B, M)`` logarithms; None where all have the same."""
        if str(self.cfg.teacher_selection) == "fixed":
            return None
        assert isinstance(self._teacher, Teacher)
        chunk = criterion.chunk(model, references["target"])
        agreement = self._teacher.agreement(references, encoded, self.target_dictionary.pad(), chunk)
        if self._state.selector is not None:
            return self._state.selector.choose(references, agreement, unwrapped(model), update_num, chunk)
        return (agreement + self._teacher.log_weights).log_softmax(dim=-1)

    def _same_update(self, update_num: int) -> bool:
        """Whether this is another micro-batch of the update that is under way."""
        same, self._update = update_num == self._update, update_num
        return same


def _gradients_kept_here(model: torch.nn.Module) -> contextlib.AbstractContextManager:
    """Processes exchange gradients in the last backward of an update, and only there."""
    return cast(Any, model).no_sync() if hasattr(model, "no_sync") else contextlib.nullcontext()


def _added(one: tuple[Tensor, int, dict[str, Any]], other: tuple[Tensor, int, dict[str, Any]]) -> Any:
    """The losses, counts and figures of two parts of a batch, which are sums, as those of both."""
    figures = {name: value + other[2][name] for name, value in one[2].items()}
    return one[0] + other[0], one[1] + other[1], figures


def autocast(optimizer: Any) -> contextlib.AbstractContextManager:
    """The precision that fairseq's own forward will use under ``--amp``."""
    if isinstance(optimizer, AMPOptimizer) and torch.cuda.is_available():
        return torch.autocast("cuda")
    return contextlib.nullcontext()
