"""``speech_to_text_with_teacher``: fairseq's recognition and translation of speech with a frozen teacher.

The teacher reads the speech too, or it is a text model that reads the transcript.
"""

from dataclasses import dataclass, field
from typing import Any

from fairseq.data import Dictionary
from fairseq.tasks import register_task
from omegaconf import II, MISSING

from fairseq_imitkd.data.speech import (
    SpokenSentences,
    TranscriptEncoder,
    check_manifests,
    check_transcripts,
)
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.method.method import Method
from fairseq_imitkd.mixing import BatchLayout
from fairseq_imitkd.models.ctc import SpeechCTC
from fairseq_imitkd.rollout import SpecialSymbols
from fairseq_imitkd.tasks.writing_teacher import WithWritingTeacher
from fairseq_imitkd.teacher.config import WriterTeacherConfig
from fairseq_imitkd.teacher.source import TeacherSource, check_files
from fairseq_imitkd.teacher.speech import load_speech_teacher
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.training.adapter import AnyTeacher
from fairseq_imitkd.training.checks import check_device, check_selection, check_topk
from fairseq_imitkd.training.plain_errors import WithPlainErrors, check_run
from fairseq_imitkd.training.speech import ConfiguredSpeechToText
from fairseq_imitkd.training.validation import WithScores, WriterValidationConfig, check_validation


@dataclass
class SpeechToTextWithTeacherConfig(WriterTeacherConfig, WriterValidationConfig):
    """The flags of ``speech_to_text``, of the teacher, and of the validation's scores."""

    data: str = field(default=MISSING, metadata={"help": "folder of the manifests, such as train.tsv"})
    config_yaml: str = field(
        default="config.yaml",
        metadata={"help": "configuration of the data, a file in the folder of the manifests"},
    )
    max_source_positions: int = field(
        default=6000, metadata={"help": "leave out sentences with more frames than this"}
    )
    max_target_positions: int = field(
        default=1024, metadata={"help": "leave out sentences whose target has more tokens than this"}
    )
    seed: int = II("common.seed")


@register_task("speech_to_text_with_teacher", dataclass=SpeechToTextWithTeacherConfig)
class SpeechToTextWithTeacherTask(WithWritingTeacher, WithScores, WithPlainErrors, ConfiguredSpeechToText):
    """Speech recognition or translation with a teacher. The student's targets can be written by itself."""

    compares_sizes = False  # a teacher that reads text needs fewer weights than a student that hears
    cfg: SpeechToTextWithTeacherConfig
    _transcripts: TranscriptEncoder | None = None  # of a teacher that reads text

    @classmethod
    def setup_task(cls, cfg: SpeechToTextWithTeacherConfig, **kwargs: Any) -> "SpeechToTextWithTeacherTask":
        """Load the dictionary. A task rebuilt from a checkpoint needs no teacher."""
        if not kwargs.get("from_checkpoint", False):
            check_run(cfg)
            check_validation(cfg)
        check_manifests(cfg.data, cfg.config_yaml, [])
        return super().setup_task(cfg, **kwargs)

    @property
    def layout(self) -> BatchLayout:
        """How the task's batches are padded."""
        return BatchLayout(
            None, SpecialSymbols.from_dictionary(self.target_dictionary), left_pad_source=False
        )

    @property
    def transcript_dictionary(self) -> Dictionary | None:
        """The source dictionary of a teacher that reads transcripts; None for other teachers."""
        return self._transcripts.dictionary if self._transcripts else None

    def check_method(self, method: Method) -> None:
        """Refuse a ``--teacher-topk`` as large as the vocabulary, and replayed rollouts."""
        check_topk(method, len(self.target_dictionary))
        if method.rolls_out and method.rollout_policy.max_len_a > 1.0:
            raise UsageError(
                f"--rollout-max-len-a {method.rollout_policy.max_len_a} would allow more tokens than a "
                "sentence has frames: add --rollout-max-len-a 0, and --rollout-max-len-b with the most tokens"
            )
        if method.replay_capacity:
            raise UsageError(
                f"--rollout-replay {method.replay_capacity} can't be used here, because it would keep the "
                "speech of each rollout: add --rollout-replay 0"
            )

    def check_training(self, method: Method) -> None:
        """Refuse flags, files and students that can't be trained, before the teacher is loaded."""
        if isinstance(self.student, SpeechCTC):  # it has no decoder to check
            check_files(self.cfg.teacher_path)
        else:
            super().check_training(method)
        check_device(self.cfg, method)
        check_selection(self.cfg, method)

    def load_teacher(self) -> Teacher:
        """Load the teacher, which reads the speech or its transcripts."""
        teacher, dictionary = load_speech_teacher(TeacherSource.from_flags(self.cfg), self)
        if dictionary is not None:
            check_transcripts(self.cfg.data, self.cfg.train_subset)
            self._transcripts = TranscriptEncoder(self.data_cfg, dictionary, teacher.max_positions[0])
        return teacher

    def limits_of(self, teacher: AnyTeacher) -> tuple[int, int]:
        """Return the teacher's limits. Transcripts have one of their own (see :class:`SpokenSentences`)."""
        source, target = teacher.max_positions
        return (source if self._transcripts is None else self.cfg.max_source_positions), target

    def load_dataset(self, split: str, *args: Any, **kwargs: Any) -> None:
        """Read a manifest; that of a training with a teacher also has what the teacher reads.

        Raises:
            UsageError: it can't be read, or a sentence has no transcript.
        """
        super().load_dataset(split, *args, **kwargs)
        if self._distiller is not None and split == self.cfg.train_subset:
            self.datasets[split] = SpokenSentences(self.datasets[split], self._transcripts)
