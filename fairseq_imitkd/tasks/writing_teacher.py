"""What the tasks share whose teacher writes sentences."""

from typing import Any, cast

from fairseq_imitkd.method.method import Method
from fairseq_imitkd.models.tagged import untagged
from fairseq_imitkd.tasks.with_teacher import WithTeacher
from fairseq_imitkd.teacher.initialise import initialise
from fairseq_imitkd.teacher.sentence_weights import SentenceWeights, select_teachers
from fairseq_imitkd.teacher.teacher import Teacher
from fairseq_imitkd.training.adapter import AnyTeacher
from fairseq_imitkd.training.checks import parts_to_copy


class WithWritingTeacher(WithTeacher):
    """A task with ``--teacher-selection`` and ``--init-from-teacher``."""

    cfg: Any

    def select_teachers(self, teacher: AnyTeacher, method: Method) -> SentenceWeights | None:
        """Return the weights that ``--teacher-selection`` asks for."""
        return select_teachers(str(self.cfg.teacher_selection), teacher, self.uncounted, seed=method.seed)

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion as in :class:`WithTeacher`, then copy the parts of ``--init-from-teacher``.

        A resumed run reads its checkpoint later, which overwrites these weights.
        """
        parts = parts_to_copy(self.cfg) if self.for_training and not from_checkpoint else {}
        criterion = super().build_criterion(cfg, from_checkpoint)
        if parts:
            teacher = cast(Teacher, self._distiller.teacher) if self._distiller else self.load_teacher()
            initialise(self.student, untagged(teacher.models[0]), parts)
        return criterion
