"""How good a translation or a summary is, as a number in 0..1: what REINFORCE maximises beside the divergence.

The scores are sacrebleu's and rouge-score's own, of one sentence against its reference.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from fairseq.data import Dictionary
from torch import Tensor

from fairseq_imitkd.text.scores import UNKNOWN_IN_HYPOTHESIS, UNKNOWN_IN_REFERENCE, rouge_scorer

logger = logging.getLogger(__name__)

EQUAL_BEFORE_WARNING = 20  # batches in a row whose rewards are all the same


def sentence_bleu(hypothesis: str, reference: str) -> float:
    """sacrebleu's sentence BLEU (13a tokens, exponential smoothing, effective order), in 0..1."""
    return _sentence_bleu().sentence_score(hypothesis, [reference]).score / 100.0


def chrf(hypothesis: str, reference: str) -> float:
    """sacrebleu's chrF2 of one sentence, in 0..1."""
    return _chrf().sentence_score(hypothesis, [reference]).score / 100.0


def rouge_l(hypothesis: str, reference: str) -> float:
    """rouge-score's ROUGE-L F1 with stemming, in 0..1."""
    return rouge_scorer(("rougeL",)).score(reference, hypothesis)["rougeL"].fmeasure


REWARDS: dict[str, Callable[[str, str], float]] = {
    "sentence-bleu": sentence_bleu,
    "chrf": chrf,
    "rouge-l": rouge_l,
}


# Made when first asked for.
@cache
def _sentence_bleu() -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)


@cache
def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


def leave_one_out(values: Tensor) -> Tensor:
    """Each reward less the mean of the others, ``(R,) -> (R,)``: a baseline that no sample has a part in (Kool et al. 2019).

    One reward alone has nothing to be compared with, and gets 0.
    """
    others = values.numel() - 1
    return torch.zeros_like(values) if others == 0 else values - (values.sum() - values) / others


class RunningMean:
    """The mean of all rewards so far, recent ones counting more. Every process must be told the same figures.

    Args:
        memory: how much of the old mean is left after an update.
    """

    def __init__(self, memory: float = 0.99):
        self.memory = memory
        self.weighted, self.weight = 0.0, 0.0

    @property
    def mean(self) -> float:
        """0 before the first reward."""
        return self.weighted / self.weight if self.weight > 0.0 else 0.0

    def add(self, mean: float) -> None:
        """Take in the mean reward of an update."""
        self.weighted = self.memory * self.weighted + (1.0 - self.memory) * mean
        self.weight = self.memory * self.weight + (1.0 - self.memory)

    def state(self) -> list[float]:
        """What a checkpoint keeps."""
        return [self.weighted, self.weight]

    def restore(self, state: Sequence[float]) -> None:
        """Go on from a :meth:`state`."""
        self.weighted, self.weight = map(float, state)


class Rewarder:
    """Rewards of rollouts against their references, less a baseline.

    Args:
        name: one of :data:`REWARDS`.
        dictionary: of the target language.
        remove_bpe: subword marks to undo, as fairseq names them; None leaves the text as it is.
        baseline: the running mean; None takes the mean of the batch's other rollouts.
    """

    def __init__(
        self, name: str, dictionary: Dictionary, remove_bpe: str | None, baseline: RunningMean | None
    ):
        self.name, self.score = name, REWARDS[name]
        self.dictionary, self.remove_bpe, self.baseline = dictionary, remove_bpe, baseline
        self._equal = 0

    def advantages(
        self, references: Tensor, written: Tensor, is_rollout: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """How much better than the baseline each rollout is.

        Args:
            references, written: ``(B, T)`` token ids, of two widths, padded.
            is_rollout: ``(B,)`` bool, which of them the student wrote.

        Returns:
            ``(B,)`` float32, 0 elsewhere, and sums for the log.
        """
        rows = is_rollout.nonzero().squeeze(-1)
        hypotheses = self._texts(written[rows], UNKNOWN_IN_HYPOTHESIS)
        texts = self._texts(references[rows], UNKNOWN_IN_REFERENCE)
        rewards = torch.tensor(
            [self.score(*pair) for pair in zip(hypotheses, texts, strict=True)], dtype=torch.float64
        )
        self._watch(rewards)
        better = rewards - self.baseline.mean if self.baseline else leave_one_out(rewards)
        advantages = torch.zeros(is_rollout.numel(), device=is_rollout.device)
        advantages[rows] = better.float().to(is_rollout.device)
        figures = {
            "rewarded": rewards.numel(),
            "reward": float(rewards.sum()),
            "reward_squared": float(rewards.square().sum()),
        }
        return advantages, figures

    def _texts(self, sentences: Tensor, unknown: str) -> list[str]:
        """The sentences without padding, which fairseq would spell out."""
        rows = (sentence[sentence.ne(self.dictionary.pad())] for sentence in sentences.cpu())
        return [self.dictionary.string(row, self.remove_bpe, unk_string=unknown) for row in rows]

    def _watch(self, rewards: Tensor) -> None:
        """Say so, once, when there is nothing to learn from the rewards."""
        if rewards.numel() > 1 or (rewards.numel() == 1 and self.baseline is None):
            self._equal = self._equal + 1 if bool(rewards.eq(rewards[0]).all()) else 0
            if self._equal == EQUAL_BEFORE_WARNING:
                logger.warning(
                    "--reward %s was the same for all rollouts of a batch, %d batches in a row (last: %.4f): equal rewards "
                    "teach nothing", self.name, EQUAL_BEFORE_WARNING, float(rewards[0]),
                )  # fmt: skip


NO_REWARDS: dict[str, float] = {"rewarded": 0, "reward": 0.0, "reward_squared": 0.0}
