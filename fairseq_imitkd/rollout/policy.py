"""How a rollout chooses its next token, and how long it may become."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.rollout.kernels import nucleus
from fairseq_imitkd.vocab_ops import most_probable, sample_categorical

MAX_LEN_A, MAX_LEN_B = 1.2, 10  # the length limit of rollouts, and of every search that is given none
FAIRSEQ_MAX_LEN_A, FAIRSEQ_MAX_LEN_B = 0.0, 200


def length_limit(max_len_a: float | None, max_len_b: int | None) -> tuple[float, int]:
    """Return the two numbers that limit the length of a search.

    Without both flags they are those of rollouts. If one is given, the other is fairseq's, so a limit of
    ``--max-len-b`` tokens does not grow with the source.

    Args:
        max_len_a, max_len_b: the flags; None if they are not given.
    """
    if max_len_a is None and max_len_b is None:
        return MAX_LEN_A, MAX_LEN_B
    return (
        FAIRSEQ_MAX_LEN_A if max_len_a is None else max_len_a,
        FAIRSEQ_MAX_LEN_B if max_len_b is None else max_len_b,
    )


def max_lengths(
    source_lengths: Tensor,
    max_len_a: float,
    max_len_b: float,
    *,
    longest: int,
    shares_positions: bool = False,
) -> Tensor:
    """Return the maximum number of tokens of each translation before its EOS.

    Args:
        source_lengths: ``(B,)`` numbers of source tokens, including the EOS.
        max_len_a, max_len_b: a translation has at most ``max_len_a * source length + max_len_b`` tokens.
        longest: maximum number of tokens that the models can represent before an EOS.
        shares_positions: whether a source takes up positions of its target, as prompts do.

    Returns:
        ``(B,)`` int64, at least 1.
    """
    # float64 gives the same result as Python's int(a * length + b). Clamp before an int64 can overflow.
    lengths = source_lengths.double() * max_len_a + max_len_b
    lengths = lengths.clamp(min=1, max=max(1, longest)).long()
    if shares_positions:
        lengths = lengths.minimum((longest + 1 - source_lengths).clamp(min=1))
    return lengths


@dataclass(frozen=True)
class RolloutPolicy:
    """How a model decodes.

    Args:
        name: ``greedy`` takes the most probable token; ``sampling`` samples; ``speculative`` samples, and a
            teacher corrects the samples.
        topk: sample among the ``topk`` most probable tokens (0: all).
        topp: sample among the smallest set of tokens whose total probability reaches ``topp`` (1: all).
        temperature: sample from ``softmax(logits / temperature)``.
        teacher_topk: a speculative token that is not among the teacher's ``teacher_topk`` most probable
            tokens is replaced by a sample from the teacher.
        max_len_a, max_len_b: a rollout has at most ``max_len_a * source length + max_len_b`` tokens before
            its EOS.
        cuda_graphs: on a GPU, decode with CUDA graphs, if the models are stock transformers.

    Raises:
        UsageError: a value is out of range.
    """

    name: str = "greedy"
    topk: int = 0
    topp: float = 1.0
    temperature: float = 1.0
    teacher_topk: int = 25
    max_len_a: float = MAX_LEN_A
    max_len_b: int = MAX_LEN_B
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        for flag, value, valid, must in (
            (
                "policy",
                self.name,
                self.name in ("greedy", "sampling", "speculative"),
                "greedy, sampling or speculative",
            ),
            ("topk", self.topk, self.topk >= 0, "0 (all tokens) or more"),
            ("topp", self.topp, 0.0 < self.topp <= 1.0, "above 0 and at most 1 (all tokens)"),
            ("temperature", self.temperature, 0.0 < self.temperature < math.inf, "a finite number above 0"),
            ("teacher-topk", self.teacher_topk, self.teacher_topk >= 1, "1 or more"),
            ("max-len-a", self.max_len_a, 0.0 <= self.max_len_a < math.inf, "a finite number, 0 or more"),
            ("max-len-b", self.max_len_b, self.max_len_b >= 0, "0 or more"),
        ):
            if not valid:
                raise UsageError(f"--rollout-{flag} must be {must}, but is {value}")
        if self.max_len_a == 0.0 and self.max_len_b == 0:
            raise UsageError(
                "--rollout-max-len-a and --rollout-max-len-b must not both be 0: no rollout would hold a "
                "token; raise one of them"
            )
        if self.name == "greedy" and (self.topk or self.topp < 1.0 or self.temperature != 1.0):
            raise UsageError(
                "--rollout-topk, --rollout-topp and --rollout-temperature have no effect on "
                "--rollout-policy greedy: add --rollout-policy sampling"
            )

    def max_lengths(
        self, source_lengths: Tensor, max_positions: int, *, shares_positions: bool = False
    ) -> Tensor:
        """Return the maximum number of tokens of each rollout before its EOS.

        Args:
            source_lengths: ``(B,)`` numbers of source tokens, including the EOS as in fairseq.
            max_positions: length of the longest target that the models can represent, including its EOS.
            shares_positions: whether a source takes up positions of its target, as prompts do.

        Returns:
            ``(B,)`` int64, at least 1.
        """
        return max_lengths(
            source_lengths,
            self.max_len_a,
            self.max_len_b,
            longest=int(max_positions) - 1,
            shares_positions=shares_positions,
        )

    def longest(self, source_width: int, max_positions: int) -> int:
        """Return the maximum length of a rollout whose source has all positions of a padded batch."""
        return int(self.max_lengths(torch.tensor([source_width]), max_positions))

    @property
    def samples(self) -> bool:
        """Whether choosing a token needs random numbers."""
        return self.name != "greedy"

    @property
    def speculates(self) -> bool:
        """Whether a teacher corrects the chosen tokens."""
        return self.name == "speculative"

    def tempered(self, logits: Tensor) -> Tensor:
        """Return logits of any shape divided by the temperature, in float32."""
        return logits.float() if self.temperature == 1.0 else logits.float() / self.temperature

    def choose(self, logits: Tensor, uniforms: Tensor | None) -> Tensor:
        """Choose the next token of each row.

        Args:
            logits: ``(B, V)``; ``-inf`` forbids a token.
            uniforms: ``(B,)`` random numbers in ``[0, 1)``; ``greedy`` ignores them.

        Returns:
            ``(B,)`` int64.
        """
        if self.name == "greedy":
            return most_probable(logits)
        assert uniforms is not None
        logits = self.tempered(logits)
        if not self.topk and self.topp == 1.0:
            return sample_categorical(logits, uniforms)
        if not self.topk:
            return sample_categorical(self._nucleus(logits), uniforms)
        logits, tokens = logits.topk(min(self.topk, logits.size(-1)), dim=-1)
        if self.topp < 1.0:
            logits = self._nucleus(logits)
        return tokens.gather(-1, sample_categorical(logits, uniforms).unsqueeze(-1)).squeeze(-1)

    def _nucleus(self, logits: Tensor) -> Tensor:
        """Return logits with ``-inf`` at the tokens outside the set of ``topp``."""
        return logits.masked_fill(~nucleus(logits.softmax(dim=-1), self.topp), float("-inf"))

    def corrected(self, chosen: Tensor, teacher_logits: Tensor, uniforms: Tensor) -> Tensor:
        """Replace choices that the teacher finds improbable by its own samples (Xu et al. 2025, algorithm 1).

        Args:
            chosen: ``(B,)`` int64 tokens that the student chose.
            teacher_logits: ``(B, V)``; ``-inf`` forbids a token.
            uniforms: ``(B,)`` random numbers in ``[0, 1)`` for the teacher's samples.

        Returns:
            ``(B,)`` int64.
        """
        least = teacher_logits.topk(min(self.teacher_topk, teacher_logits.size(-1)), dim=-1).values[:, -1:]
        accepted = teacher_logits.gather(-1, chosen.unsqueeze(-1)) >= least
        return torch.where(accepted.squeeze(-1), chosen, sample_categorical(teacher_logits, uniforms))
