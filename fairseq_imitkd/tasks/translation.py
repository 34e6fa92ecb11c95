"""``translation_with_teacher``: fairseq's translation with a frozen teacher beside the student."""

from dataclasses import dataclass
from typing import Any

import torch
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from fairseq_imitkd.data.directory import check_data, dictionaries_read
from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.method.method import Method
from fairseq_imitkd.models.pruning import Pruner, PruningConfig, check_pruning
from fairseq_imitkd.rollout import RolloutGenerator
from fairseq_imitkd.tasks.writing_teacher import WithWritingTeacher
from fairseq_imitkd.teacher.cache.reader import open_cache, refuse_teacher_flags
from fairseq_imitkd.teacher.config import SequenceTeacherConfig
from fairseq_imitkd.teacher.loading import load_teacher
from fairseq_imitkd.teacher.source import TeacherSource, check_files, parse_bytes
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.training.adapter import AnyTeacher
from fairseq_imitkd.training.checks import (
    check_device,
    check_selection,
    check_student,
    check_topk,
)
from fairseq_imitkd.training.curriculum import CurriculumConfig, WithCurriculum, check_curriculum
from fairseq_imitkd.training.plain_errors import WithPlainErrors, check_run
from fairseq_imitkd.training.run_files import whole_config
from fairseq_imitkd.training.source_only import SourceOnlyConfig, WithSourceOnlyData
from fairseq_imitkd.training.validation import ValidationConfig, WithScores, check_validation


@dataclass
class TranslationWithTeacherConfig(
    SequenceTeacherConfig,
    PruningConfig,
    ValidationConfig,
    SourceOnlyConfig,
    CurriculumConfig,
    TranslationConfig,
):
    """The flags of ``translation``, of the teacher, of pruning, of the validation's scores, of sentences
    without references, and of a curriculum.
    """


@register_task("translation_with_teacher", dataclass=TranslationWithTeacherConfig)
class TranslationWithTeacherTask(
    WithWritingTeacher, WithScores, WithCurriculum, WithSourceOnlyData, WithPlainErrors, TranslationTask
):
    """Translation with a teacher. The student's targets can be written by the student itself."""

    cfg: TranslationWithTeacherConfig

    def __init__(self, cfg: TranslationWithTeacherConfig, src_dict: Any, tgt_dict: Any):
        super().__init__(cfg, src_dict, tgt_dict)
        self._pruner = Pruner(cfg) if cfg.prune_sparsity else None

    @classmethod
    def setup_task(cls, cfg: TranslationWithTeacherConfig, **kwargs: Any) -> "TranslationWithTeacherTask":
        """Load the dictionaries. A task rebuilt from a checkpoint needs no teacher."""
        if not kwargs.get("from_checkpoint", False):
            check_run(cfg)
            check_pruning(cfg)
            check_validation(cfg)
            check_curriculum(cfg)
        if "://" not in (cfg.data or ""):
            languages = check_data(cfg.data, cfg.source_lang, cfg.target_lang)
            run = whole_config(cfg)
            if run is not None:  # a checkpoint then tells its direction, when its data is gone
                run.task.source_lang, run.task.target_lang = languages
        with dictionaries_read(cfg.data):
            return super().setup_task(cfg, **kwargs)

    def check_method(self, method: Method) -> None:
        """Refuse ``--teacher-topk`` as large as the vocabulary."""
        check_topk(method, len(self.target_dictionary))

    def check_training(self, method: Method) -> None:
        """Refuse flags and students that can't be trained, before the teacher is loaded."""
        if self.cfg.teacher_cache:
            refuse_teacher_flags(self.cfg, TranslationWithTeacherConfig())
        else:
            check_files(self.cfg.teacher_path)
        check_device(self.cfg, method)
        if self.cfg.left_pad_target:
            raise UsageError(
                "--left-pad-target can't be used here, because rollouts are padded on the right: leave it out"
            )
        check_selection(self.cfg, method)
        self.check_sources(method)
        student = getattr(self, "student", None)
        if student is not None:
            check_student(student, method)

    def open_teacher(self, method: Method) -> AnyTeacher:
        """Load the teacher, or open the cache of its answers."""
        if self.cfg.teacher_cache:
            return open_cache(self.cfg.teacher_cache, self, method)
        return self.load_teacher()

    def load_teacher(self) -> Teacher:
        """Load the teacher."""
        size = parse_bytes(self.cfg.teacher_encoder_cache, "--teacher-encoder-cache")
        return load_teacher(
            TeacherSource.from_flags(self.cfg), LanguagePair.from_task(self), encoder_cache=size
        )

    def optimizer_step(self, optimizer: Any, model: torch.nn.Module, update_num: int) -> None:
        """Run fairseq's own optimizer step; pruned weights stay zero."""
        if self._pruner is None:
            return super().optimizer_step(optimizer, model, update_num)
        with self._pruner.holding(model, optimizer, update_num + 1):
            super().optimizer_step(optimizer, model, update_num)

    def build_generator(
        self, models: Any, args: Any, seq_gen_cls: Any = None, *more: Any, **kwargs: Any
    ) -> Any:
        """Build fairseq's generator. Greedy and sampled decoding use the rollout engine where it computes the
        same result.
        """
        if seq_gen_cls is None and not getattr(args, "print_alignment", False):
            seq_gen_cls = RolloutGenerator
        return super().build_generator(models, args, seq_gen_cls, *more, **kwargs)
