"""Which of several teachers teaches a sentence, learnt by reinforcement (Yuan et al., AAAI 2021).

A policy looks at how probable each teacher finds the reference, and draws one teacher for the sentence. Its reward is what
the student has learnt: how much more probable the student finds the reference after the update than before. So the policy
also finds out that a teacher which agrees with the references may be a bad one to learn from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from fairseq.models import BaseFairseqModel
from torch import Tensor

from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.rollout import RandomKey
from fairseq_imitkd.rollout.engine import evaluating
from fairseq_imitkd.rollout.keyed_random import SELECTING
from fairseq_imitkd.teacher.teacher import mean_lprobs, scores_of
from fairseq_imitkd.vocab_ops import drawn

RATE = 0.05  # of the policy's gradient ascent, on rewards of unit spread


def several_processes() -> bool:
    """Whether others train with this process."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@dataclass(frozen=True)
class _Lesson:
    """A batch whose update is under way: what was chosen, from what, and how well the student knew its references."""

    sample: Batch
    chosen: Tensor  # (B,)
    agreement: Tensor  # (B, M)
    before: Tensor  # (B,)
    chunk: int


class TeacherSelector:
    """A policy over ``M`` teachers: ``softmax(bias_m + weight * agreement_m)``, of which one is drawn for each sentence.

    It starts as the teachers' agreement with the reference alone (all biases 0, a weight of 1). All processes have the same
    one: they add up their gradients, so each must call :meth:`learn` as often as the others.

    Args:
        log_weights: ``(M,)`` the teachers' own weights, to begin with.
        pad: of the target dictionary.
        seed: ``--seed``.
    """

    def __init__(self, log_weights: Tensor, pad: int, seed: int):
        self.bias, self.weight = log_weights.double().cpu().clone(), torch.ones((), dtype=torch.float64)
        self.pad, self.seed = pad, seed
        self._lessons: dict[
            tuple[int, ...], _Lesson
        ] = {}  # by sentences: one that is tried again (--amp) is one lesson

    def choose(
        self, sample: Batch, agreement: Tensor, student: BaseFairseqModel, update_num: int, chunk: int
    ) -> Tensor:
        """Draw a teacher for each sentence of a batch, and remember the lesson.

        Args:
            sample: with its references.
            agreement: ``(B, M)``, the mean log-probability that each teacher gives the reference's tokens.
            student: unwrapped.
            update_num: 0 = first.
            chunk: positions at a time, 0 is all.

        Returns:
            ``(B, M)`` logarithms of weights: 0 for the teacher drawn, ``-inf`` for the others.
        """
        agreement = agreement.double()
        uniforms = RandomKey(self.seed, update_num, SELECTING).uniforms(sample["id"])
        chosen = drawn(self._logits(agreement), uniforms)
        known = self._known(sample, student, chunk)
        self._lessons[tuple(sample["id"].tolist())] = _Lesson(sample, chosen, agreement, known, chunk)
        return torch.full_like(agreement, float("-inf"), dtype=torch.float32).scatter(
            -1, chosen.unsqueeze(-1), 0.0
        )

    def learn(self, student: BaseFairseqModel) -> None:
        """Reward the choices of the last update, now that the student has made it. All processes must call this together."""
        gradient = torch.zeros(self.bias.numel() + 2, dtype=torch.float64)
        for lesson in self._lessons.values():
            gain = (self._known(lesson.sample, student, lesson.chunk) - lesson.before).double()
            spread = gain.std(unbiased=False)
            if gain.numel() > 1 and bool(spread > 0.0):
                better = (gain - gain.mean()) / spread
                # REINFORCE: d log softmax(z)_chosen / dz = one-hot(chosen) - softmax(z), and z = bias + weight * agreement.
                score = -self._logits(lesson.agreement).softmax(dim=-1)
                score[torch.arange(gain.numel(), device=score.device), lesson.chosen] += 1.0
                of_bias = (better.unsqueeze(-1) * score).sum(dim=0)
                of_weight = (better.unsqueeze(-1) * score * lesson.agreement).sum()
                gradient += torch.cat(
                    [of_bias, of_weight.view(1), of_weight.new_full((1,), gain.numel())]
                ).cpu()
        if several_processes():
            shared = gradient.to(next(student.parameters()).device)
            torch.distributed.all_reduce(shared)
            gradient = shared.cpu()
        if gradient[-1] > 0:
            self.bias += RATE * gradient[:-2] / gradient[-1]
            self.weight += RATE * gradient[-2] / gradient[-1]
        self._lessons.clear()

    def state(self) -> list[float]:
        """What a checkpoint keeps."""
        return [*self.bias.tolist(), float(self.weight)]

    def restore(self, state: Sequence[float]) -> None:
        """Go on from a :meth:`state`, of as many teachers."""
        if len(state) == self.bias.numel() + 1:
            self.bias = torch.tensor([float(number) for number in state[:-1]], dtype=torch.float64)
            self.weight = torch.tensor(float(state[-1]), dtype=torch.float64)

    def _logits(self, agreement: Tensor) -> Tensor:
        return self.bias.to(agreement.device) + self.weight.to(agreement.device) * agreement

    def _known(self, sample: Batch, student: BaseFairseqModel, chunk: int) -> Tensor:
        """The mean log-probability that the student gives each reference's tokens, ``(B,)``.

        Without ``--amp``'s autocast: gains are small, and would be the rounding's.
        """
        with (
            torch.autocast(sample["target"].device.type, enabled=False),
            torch.no_grad(),
            evaluating(student),
        ):
            return mean_lprobs(
                scores_of(student, sample, whole=chunk == 0), sample["target"], self.pad, chunk
            )
