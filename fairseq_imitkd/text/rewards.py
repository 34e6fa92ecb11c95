"""Rewards of translations and summaries, in 0..1, for REINFORCE.

A reward is the score that sacreBLEU or rouge-score gives one sentence against its reference.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from fairseq.data import Dictionary
from torch import Tensor

from fairseq_imitkd.text.scored import ScoredText
from fairseq_imitkd.text.scores import rouge_scorer

logger = logging.getLogger(__name__)

EQUAL_BEFORE_WARNING = 20  # successive batches; in each batch all rewards are equal


def sentence_bleu(hypothesis: str, reference: str) -> float:
    """Return sacreBLEU's sentence BLEU (13a tokens, exponential smoothing, effective order), in 0..1."""
    return sentence_bleu_metric().sentence_score(hypothesis, [reference]).score / 100.0


def chrf(hypothesis: str, reference: str) -> float:
    """Return sacreBLEU's chrF2 of one sentence, in 0..1."""
    return chrf_metric().sentence_score(hypothesis, [reference]).score / 100.0


def rouge_l(hypothesis: str, reference: str) -> float:
    """Return rouge-score's ROUGE-L F1 with stemming, in 0..1."""
    return rouge_scorer(("rougeL",)).score(reference, hypothesis)["rougeL"].fmeasure


REWARDS: dict[str, Callable[[str, str], float]] = {
    "sentence-bleu": sentence_bleu,
    "chrf": chrf,
    "rouge-l": rouge_l,
}


@cache
def sentence_bleu_metric() -> Any:
    """Return sacreBLEU's metric of :func:`sentence_bleu`."""
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)


@cache
def chrf_metric() -> Any:
    """Return sacreBLEU's metric of :func:`chrf`."""
    from sacrebleu.metrics import CHRF

    return CHRF()


def leave_one_out(values: Tensor) -> Tensor:
    """Subtract from each reward the mean of the others: a baseline that does not depend on the sample itself.

    See Kool, van Hoof and Welling, 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!".

    Args:
        values: ``(R,)`` rewards.

    Returns:
        ``(R,)``; 0 for a single reward, which has no others.
    """
    others = values.numel() - 1
    return torch.zeros_like(values) if others == 0 else values - (values.sum() - values) / others


class RunningMean:
    """An exponential moving average of rewards. Every process must add the same values.

    Args:
        memory: weight of the old average in an update.
    """

    def __init__(self, memory: float = 0.99):
        self.memory = memory
        self.weighted, self.weight = 0.0, 0.0

    @property
    def mean(self) -> float:
        """The average; 0 before the first reward."""
        return self.weighted / self.weight if self.weight > 0.0 else 0.0

    def add(self, mean: float) -> None:
        """Add the mean reward of an update."""
        self.weighted = self.memory * self.weighted + (1.0 - self.memory) * mean
        self.weight = self.memory * self.weight + (1.0 - self.memory)

    def state(self) -> list[float]:
        """Return what a checkpoint keeps."""
        return [self.weighted, self.weight]

    def restore(self, state: Sequence[float]) -> None:
        """Continue from the result of :meth:`state`."""
        self.weighted, self.weight = map(float, state)


class Rewarder:
    """Scores rollouts against their references and subtracts a baseline.

    Args:
        name: one of :data:`REWARDS`.
        dictionary: target dictionary.
        remove_bpe: kind of subword marks to remove, by fairseq's name; None leaves the text unchanged.
        baseline: running mean of rewards; None takes the mean of the batch's other rollouts.
    """

    def __init__(
        self, name: str, dictionary: Dictionary, *, remove_bpe: str | None, baseline: RunningMean | None
    ):
        self.name, self.score = name, REWARDS[name]
        self.text, self.baseline = ScoredText(dictionary, remove_bpe), baseline
        self._thread: ThreadPoolExecutor | None = None
        self._equal = 0  # successive batches whose rewards were all equal

    def advantages(
        self, references: Tensor, written: Tensor, is_rollout: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Return how much better than the baseline each rollout is.

        Args:
            references: ``(B, T)`` token ids, padded.
            written: ``(B, U)`` token ids, padded.
            is_rollout: ``(B,)`` bool, the sentences that the student wrote.

        Returns:
            the advantages, ``(B,)`` float32, 0 for other sentences; and sums for the log.
        """
        return self.begin(references, written, is_rollout)()

    def begin(
        self, references: Tensor, written: Tensor, is_rollout: Tensor
    ) -> Callable[[], tuple[Tensor, dict[str, float]]]:
        """Begin to score rollouts in a thread. Return a function that returns :meth:`advantages`."""
        device = is_rollout.device
        references, written, is_rollout = (each.cpu() for each in (references, written, is_rollout))
        rows = is_rollout.nonzero().squeeze(-1)
        self._thread = self._thread or ThreadPoolExecutor(1, "imitkd-rewards")
        scores = self._thread.submit(self._scores, references[rows], written[rows])

        def finish() -> tuple[Tensor, dict[str, float]]:
            rewards = torch.tensor(scores.result(), dtype=torch.float64)
            self._warn_of_equal_rewards(rewards)
            better = rewards - self.baseline.mean if self.baseline else leave_one_out(rewards)
            advantages = torch.zeros(is_rollout.numel()).index_copy(0, rows, better.float())
            sums = {
                "rewarded": rewards.numel(),
                "reward": float(rewards.sum()),
                "reward_squared": float(rewards.square().sum()),
            }
            return advantages.to(device), sums

        return finish

    def _scores(self, references: Tensor, written: Tensor) -> list[float]:
        """Return the score of each of ``R`` rows."""
        pairs = zip(self.text.hypotheses(written), self.text.references(references), strict=True)
        return [self.score(*pair) for pair in pairs]

    def _warn_of_equal_rewards(self, rewards: Tensor) -> None:
        """Warn once if the rewards of many successive batches were all equal."""
        if rewards.numel() > 1 or (rewards.numel() == 1 and self.baseline is None):
            self._equal = self._equal + 1 if bool(rewards.eq(rewards[0]).all()) else 0
            if self._equal == EQUAL_BEFORE_WARNING:
                logger.warning(
                    "--reward %s was the same for all rollouts of a batch, %d batches in a row (last: %.4f); "
                    "the student learns nothing from equal rewards",
                    self.name,
                    EQUAL_BEFORE_WARNING,
                    float(rewards[0]),
                )


NO_REWARDS: dict[str, float] = {"rewarded": 0, "reward": 0.0, "reward_squared": 0.0}
