"""``translation_multi_simple_epoch_with_teacher``: one student of several language pairs, with one
frozen teacher beside it.

A language tag tells both the target language of each sentence, and rollouts are forced to begin with it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from fairseq.models import BaseFairseqModel
from fairseq.tasks import register_task
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask
from torch import Tensor

from fairseq_imitkd.checkpoints.tags import language_tags
from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.data.pair_flags import check_pairs
from fairseq_imitkd.method.method import Method
from fairseq_imitkd.mixing import BatchLayout
from fairseq_imitkd.models.access import as_logits, unwrapped
from fairseq_imitkd.models.logits import full_precision
from fairseq_imitkd.models.tagged import reading_eos_first
from fairseq_imitkd.rollout import SpecialSymbols
from fairseq_imitkd.tasks.writing_teacher import WithWritingTeacher
from fairseq_imitkd.teacher.config import WriterTeacherConfig
from fairseq_imitkd.teacher.language_pairs import load_teacher_of_pairs
from fairseq_imitkd.teacher.source import TeacherSource, check_files
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.training import checks
from fairseq_imitkd.training.language_pairs import LanguagePairsConfig, WithLanguagePairs
from fairseq_imitkd.training.plain_errors import WithPlainErrors, check_run
from fairseq_imitkd.training.validation import WithScores, WriterValidationConfig, check_validation


@dataclass
class TranslationMultiWithTeacherConfig(WriterTeacherConfig, WriterValidationConfig, LanguagePairsConfig):
    """The flags of ``translation_multi_simple_epoch``, of the teacher, and of the validation's scores."""


@register_task("translation_multi_simple_epoch_with_teacher", dataclass=TranslationMultiWithTeacherConfig)
class TranslationMultiWithTeacherTask(
    WithWritingTeacher, WithScores, WithPlainErrors, WithLanguagePairs, TranslationMultiSimpleEpochTask
):
    """Translation of several pairs with a teacher. The student's targets can be written by the student."""

    cfg: TranslationMultiWithTeacherConfig

    @classmethod
    def setup_task(
        cls, cfg: TranslationMultiWithTeacherConfig, **kwargs: Any
    ) -> "TranslationMultiWithTeacherTask":
        """Load the dictionaries. A task rebuilt from a checkpoint needs no teacher."""
        if not kwargs.get("from_checkpoint", False):
            check_run(cfg)
            check_validation(cfg)
        check_pairs(cfg)
        return super().setup_task(cfg, **kwargs)

    @property
    def layout(self) -> BatchLayout:
        """How the task's batches are padded."""
        symbols = SpecialSymbols.from_dictionary(self.target_dictionary)
        return BatchLayout(self.source_dictionary.pad(), symbols, left_pad_source=self.cfg.left_pad_source)

    @property
    def language_pairs(self) -> list[LanguagePair]:
        """The language pairs with their dictionaries, which all share."""
        both, names = (self.source_dictionary, self.target_dictionary), self.lang_pairs
        return [LanguagePair(name.partition("-")[0], name.partition("-")[2], *both) for name in names]

    def writer(self, student: BaseFairseqModel) -> BaseFairseqModel:
        """Return the student as it reads batches whose first decoder inputs are tags."""
        return reading_eos_first(student) if self.data_manager.tag_is_written else student

    def run_student(self, model: torch.nn.Module, sample: Batch) -> Tensor:
        """Return the student's logits, or hidden states, at all target positions, without those of tags.

        In training the loss of a tag is kept for :meth:`train_on`: fairseq's search scores tags, too.
        """
        if not self.data_manager.tag_is_written or not self.data_manager.distils:
            return super().run_student(model, sample)
        inputs = sample["net_input"]["prev_output_tokens"]
        eos = inputs.new_full((inputs.size(0), 1), self.target_dictionary.eos())
        net_input = {**sample["net_input"], "prev_output_tokens": torch.cat([eos, inputs], dim=1)}
        output: Tensor = model(**net_input)[0]
        if model.training:
            logits = as_logits(cast(Any, unwrapped(model)).decoder, output[:, 0])
            self._tag_loss = F.cross_entropy(full_precision(logits), inputs[:, 0], reduction="sum")
        return output[:, 1:].flatten(0, 1)

    def train_on(self, sample: Batch, model: torch.nn.Module, **arguments: Any) -> tuple[Tensor, int, Any]:
        """Run fairseq's own training step, with the loss of tags, which is not logged or counted."""
        criterion = arguments["criterion"]
        if not self.data_manager.tag_is_written or criterion.method.cfg.hidden_match_only:
            return super().train_on(sample, model, **arguments)

        def with_tags(model: torch.nn.Module, sample: Batch) -> tuple[Tensor, int, Any]:
            loss, count, logs = criterion(model, sample)
            return loss + self._tag_loss.to(loss), count, logs

        return super().train_on(sample, model, **{**arguments, "criterion": with_tags})

    def check_method(self, method: Method) -> None:
        """Refuse ``--teacher-topk`` as large as the vocabulary."""
        checks.check_topk(method, len(self.target_dictionary))

    def check_training(self, method: Method) -> None:
        """Refuse flags, files and students that can't be trained, before the teacher is loaded."""
        check_files(self.cfg.teacher_path)
        checks.check_device(self.cfg, method)
        checks.check_selection(self.cfg, method)
        checks.check_student(self.student, method)

    def load_teacher(self) -> Teacher:
        """Load the teacher."""
        return load_teacher_of_pairs(
            TeacherSource.from_flags(self.cfg),
            self.language_pairs,
            lambda pair: language_tags(self.tag_settings, pair),
            reads_eos_first=self.data_manager.tag_is_written,
        )

    def teacher_checks(self) -> Iterator[tuple[str, Any]]:
        """Yield the training sentences of each pair."""
        dataset = self.datasets[self.cfg.train_subset]
        names = [key.split(":")[-1] for key in dataset.keys]
        yield from zip(names, dataset.datasets, strict=True)
