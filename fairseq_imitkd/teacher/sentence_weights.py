"""Weights of several teachers that differ between sentences (``--teacher-selection``)."""

from typing import Any

from fairseq.models import BaseFairseqModel
from torch import Tensor

from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.teacher.selection import TeacherSelector
from fairseq_imitkd.teacher.teacher import Teacher


class SentenceWeights:
    """Weights of ``M`` teachers that differ from sentence to sentence.

    Without a selector, a teacher's weight grows with the probability that it gives the reference
    (``agreement``). With one, a learned policy draws one teacher for each sentence (``reinforced``).

    Args:
        teacher: the ensemble of ``M`` members.
        pad: index of the padding symbol in the target dictionary.
        selector: the learned policy, or None.
    """

    def __init__(self, teacher: Teacher, pad: int, selector: TeacherSelector | None = None):
        self.teacher, self.pad, self.selector = teacher, pad, selector

    def log_weights(
        self, references: Batch, encoded: Any, student: BaseFairseqModel, *, update_num: int, chunk: int
    ) -> Tensor:
        """Return the logarithms of the teachers' weights for each of ``B`` sentences, ``(B, M)``.

        Args:
            references: the batch with its references.
            encoded: the teacher's encoder outputs for it.
            student: the student, without its distributed wrappers.
            update_num: number of the update (0 = first).
            chunk: number of positions whose logits are in memory at once; 0 means all.
        """
        agreement = self.teacher.agreement(references, encoded, pad=self.pad, chunk=chunk)
        if self.selector is None:
            return (agreement + self.teacher.log_weights).log_softmax(dim=-1)
        return self.selector.choose(references, agreement, student, update_num=update_num, chunk=chunk)

    def learn(self, student: BaseFairseqModel) -> None:
        """Reward the choices of the last update. All processes must call this together."""
        if self.selector is not None:
            self.selector.learn(student)


def select_teachers(name: str, teacher: Any, pad: int, *, seed: int) -> SentenceWeights | None:
    """Return the weights that ``--teacher-selection`` asks for; None if they are the same for all sentences.

    Args:
        name: the flag's value: ``fixed``, ``agreement`` or ``reinforced``.
        teacher: the ensemble.
        pad: index of the padding symbol in the target dictionary.
        seed: ``--seed``.
    """
    if name == "fixed":
        return None
    selector = TeacherSelector(teacher.log_weights, pad, seed) if name == "reinforced" else None
    return SentenceWeights(teacher, pad, selector)
