"""``language_modeling_with_teacher``: fairseq's language models with a frozen teacher beside the student.

A sentence is a prompt and its continuation. Rollouts continue the prompt, and only continuations count.
"""

from dataclasses import dataclass, field
from typing import Any

from fairseq.tasks import register_task
from fairseq.tasks.language_modeling import (
    SAMPLE_BREAK_MODE_CHOICES,
    LanguageModelingConfig,
    LanguageModelingTask,
)

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.method.method import Method
from fairseq_imitkd.mixing import BatchLayout
from fairseq_imitkd.models.prompted import PromptedModel
from fairseq_imitkd.rollout import RolloutGenerator, SpecialSymbols
from fairseq_imitkd.tasks.writing_teacher import WithWritingTeacher
from fairseq_imitkd.teacher.config import WriterTeacherConfig
from fairseq_imitkd.teacher.language_model import load_language_models
from fairseq_imitkd.teacher.source import TeacherSource, check_files
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.training.checks import (
    check_device,
    check_selection,
    check_student,
    check_topk,
)
from fairseq_imitkd.training.plain_errors import WithPlainErrors, check_run
from fairseq_imitkd.training.prompts import PromptConfig, WithPrompts, check_prompts
from fairseq_imitkd.training.validation import WithScores, WriterValidationConfig, check_validation


@dataclass
class LanguageModelingWithTeacherConfig(
    WriterTeacherConfig, WriterValidationConfig, PromptConfig, LanguageModelingConfig
):
    """The flags of ``language_modeling``, of the teacher, of the validation's scores, and of prompts."""

    sample_break_mode: SAMPLE_BREAK_MODE_CHOICES = field(
        default="eos",
        metadata={"help": "must be eos: a sequence is one sentence"},
    )


@register_task("language_modeling_with_teacher", dataclass=LanguageModelingWithTeacherConfig)
class LanguageModelingWithTeacherTask(
    WithWritingTeacher, WithScores, WithPlainErrors, WithPrompts, LanguageModelingTask
):
    """Language modelling with a teacher. The student can continue the prompts itself."""

    cfg: LanguageModelingWithTeacherConfig

    @classmethod
    def setup_task(
        cls, cfg: LanguageModelingWithTeacherConfig, **kwargs: Any
    ) -> "LanguageModelingWithTeacherTask":
        """Load the dictionary. A task rebuilt from a checkpoint needs no teacher."""
        check_prompts(cfg)
        if not kwargs.get("from_checkpoint", False):
            check_run(cfg)
            check_validation(cfg)
        return super().setup_task(cfg, **kwargs)

    @property
    def layout(self) -> BatchLayout:
        """How the task's batches are padded."""
        symbols = SpecialSymbols.from_dictionary(self.dictionary)
        return BatchLayout(self.dictionary.pad(), symbols, left_pad_source=False, shares_positions=True)

    def check_method(self, method: Method) -> None:
        """Refuse ``--teacher-topk`` as large as the vocabulary."""
        check_topk(method, len(self.dictionary))

    def check_training(self, method: Method) -> None:
        """Refuse flags, files and students that can't be trained, before the teacher is loaded."""
        check_files(self.cfg.teacher_path)
        check_device(self.cfg, method)
        check_selection(self.cfg, method)
        if not isinstance(self.student, PromptedModel):
            raise UsageError(
                f"--arch builds a {type(self.student).__name__}, which is not a language model that writes "
                "from left to right: use one, such as transformer_lm"
            )
        check_student(self.student, method)

    def load_teacher(self) -> Teacher:
        """Load the teacher."""
        return load_language_models(TeacherSource.from_flags(self.cfg), self.dictionary)

    def build_generator(
        self, models: Any, args: Any, seq_gen_cls: Any = None, *more: Any, **kwargs: Any
    ) -> Any:
        """Build fairseq's generator, on top of the rollout engine's steps."""
        return super().build_generator(models, args, seq_gen_cls or RolloutGenerator, *more, **kwargs)
