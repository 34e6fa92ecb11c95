"""Reinforced selection of one of several teachers for each sentence (Yuan et al., AAAI 2021).

A policy looks at how probable each teacher finds the reference, and draws one teacher for the sentence. Its
reward is the student's progress: how much more probable the student finds the reference after the update than
before. So the policy can also learn that the student learns little from a teacher that agrees with the
references.
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
from fairseq_imitkd.teacher.teacher import mean_lprobs, token_logits
from fairseq_imitkd.vocab_ops import sample_categorical

RATE = 0.05  # learning rate of the policy; rewards have unit variance


def several_processes() -> bool:
    """Return whether the training runs in several processes."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@dataclass(frozen=True)
class _Choice:
    """A batch with the teachers that were chosen for it, kept until the student has made its update.

    Args:
        sample: batch of ``B`` sentences with their references.
        chosen: ``(B,)``, indices of the chosen teachers.
        agreement: ``(B, M)``, the mean log-probability that each teacher gives the reference's tokens.
        before: ``(B,)``, the mean log-probability that the student gave them before the update.
        chunk: number of positions whose logits exist at the same time; 0 means all.
    """

    sample: Batch
    chosen: Tensor
    agreement: Tensor
    before: Tensor
    chunk: int


class TeacherSelector:
    """A policy over ``M`` teachers, which draws teacher ``m`` for a sentence.

    The probabilities are ``softmax(bias_m + weight * agreement_m)``.
    At first the weight is 1 and the biases are the logarithms of the teachers' own weights. All processes
    hold the same policy. They add up their gradients, so each must call :meth:`learn` equally often.

    Args:
        log_weights: ``(M,)`` logarithms of the teachers' own weights.
        pad: index of the padding symbol in the target dictionary.
        seed: ``--seed``.
    """

    def __init__(self, log_weights: Tensor, pad: int, seed: int):
        self.bias, self.weight = log_weights.double().cpu().clone(), torch.ones((), dtype=torch.float64)
        self.pad, self.seed = pad, seed
        # The key is the sentences' ids, so a batch that is tried again (--amp) counts once.
        self._choices: dict[tuple[int, ...], _Choice] = {}

    def choose(
        self, sample: Batch, agreement: Tensor, student: BaseFairseqModel, *, update_num: int, chunk: int
    ) -> Tensor:
        """Draw a teacher for each sentence of a batch, and remember the choice for :meth:`learn`.

        Args:
            sample: batch of ``B`` sentences with their references.
            agreement: ``(B, M)`` mean log-probability that each teacher gives the reference's tokens.
            student: model without its distributed wrappers.
            update_num: number of the update, from 0.
            chunk: number of positions whose logits exist at the same time; 0 means all.

        Returns:
            ``(B, M)`` logarithms of the teachers' weights: 0 for the drawn teacher, ``-inf`` for the others.
        """
        agreement = agreement.double()
        uniforms = RandomKey(self.seed, update_num, SELECTING).uniforms(sample["id"])
        chosen = sample_categorical(self._logits(agreement), uniforms)
        before = self._reference_lprobs(sample, student, chunk)
        self._choices[tuple(sample["id"].tolist())] = _Choice(sample, chosen, agreement, before, chunk)
        log_weights = torch.full_like(agreement, float("-inf"), dtype=torch.float32)
        return log_weights.scatter(-1, chosen.unsqueeze(-1), 0.0)

    def learn(self, student: BaseFairseqModel) -> None:
        """Update the policy after the student's update. All processes must call this together.

        Args:
            student: the updated model, without its distributed wrappers.
        """
        gradient = sum(
            (self._gradient(choice, student) for choice in self._choices.values()),
            start=torch.zeros(self.bias.numel() + 2, dtype=torch.float64),
        )
        if several_processes():
            shared = gradient.to(next(student.parameters()).device)
            torch.distributed.all_reduce(shared)
            gradient = shared.cpu()
        if gradient[-1] > 0:
            self.bias += RATE * gradient[:-2] / gradient[-1]
            self.weight += RATE * gradient[-2] / gradient[-1]
        self._choices.clear()

    def state(self) -> list[float]:
        """Return what a checkpoint keeps."""
        return [*self.bias.tolist(), float(self.weight)]

    def restore(self, state: Sequence[float]) -> None:
        """Continue from the result of :meth:`state`. A state with another number of teachers is ignored."""
        if len(state) == self.bias.numel() + 1:
            self.bias = torch.tensor([float(number) for number in state[:-1]], dtype=torch.float64)
            self.weight = torch.tensor(float(state[-1]), dtype=torch.float64)

    def _gradient(self, choice: _Choice, student: BaseFairseqModel) -> Tensor:
        """Return the policy gradient of a batch (REINFORCE).

        Rewards are the student's gains, less their mean and divided by their standard deviation. With logits
        ``z = bias + weight * agreement``, ``d log softmax(z)_chosen / dz = one_hot(chosen) - softmax(z)``.

        Returns:
            ``(M + 2,)`` sums over sentences: the biases' gradient, the weight's, and the number of sentences.
            All are 0 if the gains are all equal.
        """
        after = self._reference_lprobs(choice.sample, student, choice.chunk)
        gain = (after - choice.before).double()
        deviation = gain.std(unbiased=False)
        if gain.numel() < 2 or not bool(deviation > 0.0):
            return torch.zeros(self.bias.numel() + 2, dtype=torch.float64)
        reward = (gain - gain.mean()) / deviation
        score = -self._logits(choice.agreement).softmax(dim=-1)
        score[torch.arange(gain.numel(), device=score.device), choice.chosen] += 1.0
        bias = (reward.unsqueeze(-1) * score).sum(dim=0)
        weight = (reward.unsqueeze(-1) * score * choice.agreement).sum()
        return torch.cat([bias, weight.view(1), weight.new_full((1,), gain.numel())]).cpu()

    def _logits(self, agreement: Tensor) -> Tensor:
        return self.bias.to(agreement.device) + self.weight.to(agreement.device) * agreement

    def _reference_lprobs(self, sample: Batch, student: BaseFairseqModel, chunk: int) -> Tensor:
        """Return the mean log-probability that the student gives each reference's tokens, ``(B,)``.

        Autocast is off: the gains are so small that rounding would hide them.
        """
        with (
            torch.autocast(sample["target"].device.type, enabled=False),
            torch.no_grad(),
            evaluating(student),
        ):
            logits = token_logits(student, sample, materialise=chunk == 0)
            return mean_lprobs(logits, sample["target"], pad=self.pad, chunk=chunk)
