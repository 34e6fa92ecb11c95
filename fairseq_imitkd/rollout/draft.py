"""What is decoded, and what has been written of it."""

from dataclasses import dataclass
from typing import Any

import torch
from fairseq.data import Dictionary
from torch import Tensor

from fairseq_imitkd.rollout.keyed_random import Uniforms
from fairseq_imitkd.rollout.steps import Ensemble

# Counting the unfinished rows makes the host wait for a GPU. So on a GPU, the engine counts only every few
# steps.
STEPS_BETWEEN_CHECKS = {"cpu": 1}
STEPS_BETWEEN_CHECKS_ELSEWHERE = 4


@dataclass(frozen=True)
class SpecialSymbols:
    """The symbols of the target dictionary that decoding treats specially.

    Args:
        pad: index of the padding symbol.
        eos: index of the end-of-sentence symbol.
    """

    pad: int
    eos: int

    @classmethod
    def from_dictionary(cls, dictionary: Dictionary) -> "SpecialSymbols":
        """Return the special symbols of a dictionary."""
        return cls(pad=dictionary.pad(), eos=dictionary.eos())


@dataclass(frozen=True)
class Prompt:
    """A batch to translate. Each of its ``B / samples`` sentences has ``samples`` adjacent rows.

    Args:
        net_input: the encoder's arguments, among them ``src_tokens`` and ``src_lengths`` of ``B / samples``
            sentences. They are sorted by decreasing source length as in fairseq's batches, because LSTM
            encoders require it.
        first_tokens: first decoder input of each row, ``(B,)`` int64: EOS or a language tag.
        max_lengths: maximum number of tokens of each row before its EOS, ``(B,)`` int64.
        samples: number of rows per sentence.
        longest: upper bound of the maximum lengths. Without it, the host waits for a GPU to tell it.
    """

    net_input: dict[str, Any]
    first_tokens: Tensor
    max_lengths: Tensor
    samples: int = 1
    longest: int | None = None


@dataclass(frozen=True)
class Rollout:
    """What a model wrote.

    Args:
        tokens: ``(B, T)`` int64, padded on the right. A row holds an EOS only if the model chose it.
        truncated: ``(B,)`` bool, true if the maximum length cut the row.
        rows_computed: number of decoder rows computed, summed over all steps: the work done.
        ntokens: number of tokens of all rows, with their EOS; None if it was not counted.
        lprobs: ``(B, T + 1)`` or wider, None unless requested: log-probabilities, at the policy's
            temperature, of the tokens and of the EOS at which a truncated row was cut; 0 after the end of a
            row.
    """

    tokens: Tensor
    truncated: Tensor
    rows_computed: int = 0
    ntokens: int | None = None
    lprobs: Tensor | None = None

    def tokens_written(self, pad: int) -> int:
        """Return the number of tokens of all rows, with their EOS."""
        return int(self.tokens.ne(pad).sum()) if self.ntokens is None else self.ntokens

    def part(self, rows: Tensor, pad: int, rows_computed: int) -> "Rollout":
        """Return some rows, in the given order, as if they had been decoded alone at the given cost."""
        tokens = self.tokens[rows]
        width, ntokens = _size(tokens, pad)
        return Rollout(tokens[:, :width], self.truncated[rows], rows_computed, ntokens)

    def to(self, device: torch.device) -> "Rollout":
        """Return the same rollout on a device, without log-probabilities."""
        return Rollout(self.tokens.to(device), self.truncated.to(device), self.rows_computed, self.ntokens)

    def state(self) -> dict[str, Any]:
        """Return the arguments of an equal rollout on the CPU, without log-probabilities.

        The tensors are contiguous, because fairseq broadcasts others wrongly when several processes resume:
        https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/distributed/utils.py#L743-L755
        """
        on_cpu = self.to(torch.device("cpu"))
        tokens, truncated = on_cpu.tokens.contiguous(), on_cpu.truncated.contiguous()
        numbers = {"rows_computed": self.rows_computed, "ntokens": self.ntokens}
        return {"tokens": tokens, "truncated": truncated, **numbers}


@dataclass(frozen=True)
class Corrector:
    """The teacher that corrects a speculative rollout.

    Args:
        teacher: ensemble in evaluation mode.
        uniforms: random numbers for the teacher's samples.
        net_input: the teacher's encoder arguments; None if it reads what the student reads.
    """

    teacher: Ensemble
    uniforms: Uniforms
    net_input: dict[str, Any] | None = None


def advance(
    chosen: Tensor, unfinished: Tensor, at_limit: Tensor, *, eos: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Decide what ``R`` rows write.

    Args:
        chosen: the writer's choices, ``(R,)``.
        unfinished: whether a row is unfinished, ``(R,)``.
        at_limit: whether a row has its maximum number of tokens, ``(R,)``. If it goes on, it is truncated.
        eos: index of the end-of-sentence symbol.

    Returns:
        the tokens that are written, ``(R,)``: the choice, or EOS in a row that is finished; whether a row is
        still unfinished; and whether it is truncated here.
    """
    cut = unfinished & at_limit & (chosen != eos)
    # A finished row gets EOS until it is dropped: padding would upset decoders that count positions.
    written = torch.where(unfinished & ~cut, chosen, eos)
    return written, unfinished & (written != eos), cut


def finish(
    tokens: Tensor,
    truncated: Tensor,
    max_lengths: Tensor,
    *,
    symbols: SpecialSymbols,
    rows_computed: int,
    lprobs: Tensor | None,
) -> Rollout:
    """Return all rows, padded after the first EOS, or in truncated rows after the maximum length.

    Args:
        tokens: ``(B, T)`` tokens; each row holds an EOS, and after it anything.
        truncated: ``(B,)`` bool.
        max_lengths: ``(B,)``.
        symbols: special symbols of the target dictionary.
        rows_computed: number of decoder rows computed.
        lprobs: ``(B, T)`` or wider: log-probabilities, and anything after a row's EOS, or None.
    """
    is_eos = tokens.eq(symbols.eos)
    after_eos = (is_eos.cumsum(dim=-1) - is_eos.long()) > 0
    positions = torch.arange(tokens.size(1), device=tokens.device)
    cut = truncated.unsqueeze(-1) & (positions >= max_lengths.unsqueeze(-1))
    padded = tokens.masked_fill(after_eos | cut, symbols.pad)
    width, ntokens = _size(padded, symbols.pad)
    if lprobs is not None:
        lprobs[:, : tokens.size(1)].masked_fill_(after_eos, 0.0)
    return Rollout(padded[:, :width], truncated, rows_computed, ntokens, lprobs)


def _size(tokens: Tensor, pad: int) -> tuple[int, int]:
    """Return the greatest length of ``(B, T)`` padded rows, and the sum of the lengths."""
    lengths = tokens.ne(pad).sum(dim=-1)
    width, ntokens = torch.stack([lengths.max(), lengths.sum()]).tolist()  # on a GPU, one wait for both
    return width, ntokens


class Draft:
    """The tokens written so far in ``B`` rows, and the ``R`` rows that are still in the decoder's batch.

    Attributes:
        longest: greatest maximum length of all rows.
        rows: indices of the rows in the decoder's batch, ``(R,)``. A finished row stays until
            :meth:`drop_finished`.
        steps_between_checks: number of steps from one call of :meth:`count_unfinished` to the next.
    """

    def __init__(self, prompt: Prompt, symbols: SpecialSymbols, *, score: bool):
        count, device = prompt.first_tokens.size(0), prompt.first_tokens.device
        self.longest = prompt.longest or int(prompt.max_lengths.max())
        self.rows = torch.arange(count, device=device)
        self.steps_between_checks = STEPS_BETWEEN_CHECKS.get(device.type, STEPS_BETWEEN_CHECKS_ELSEWHERE)
        self._symbols, self._max_lengths = symbols, prompt.max_lengths
        self._tokens = prompt.first_tokens.new_full((count, self.longest + 2), symbols.pad)
        self._tokens[:, 0] = prompt.first_tokens
        self._truncated = torch.zeros_like(prompt.first_tokens, dtype=torch.bool)
        self._lprobs = torch.zeros(count, self.longest + 2, device=device) if score else None
        self._unfinished = torch.ones_like(self._truncated)  # (R,)
        self._row_max_lengths = prompt.max_lengths  # (R,)

    def prefixes(self, length: int) -> Tensor:
        """Return the prefixes of ``length`` tokens after the first decoder input, ``(R, length + 1)``."""
        return self._tokens[self.rows, : length + 1]

    def append(self, step: int, chosen: Tensor) -> Tensor:
        """Append a token to each row in the decoder's batch.

        Args:
            step: number of tokens that the rows already have.
            chosen: the writer's choices, ``(R,)``. A row that goes on beyond its maximum length is truncated.

        Returns:
            the tokens that were appended, ``(R,)``: the choice, or EOS in a row that is finished.
        """
        written, self._unfinished, cut = advance(
            chosen, self._unfinished, self._row_max_lengths <= step, eos=self._symbols.eos
        )
        self._truncated[self.rows] |= cut
        self._tokens[self.rows, step + 1] = written
        return written

    def score(self, step: int, lprobs: Tensor) -> None:
        """Record the log-probabilities ``(R,)`` of the tokens that :meth:`append` added at this step."""
        assert self._lprobs is not None
        self._lprobs[self.rows, step] = lprobs

    def count_unfinished(self) -> int:
        """Return how many rows are unfinished. On a GPU, the host waits for the device."""
        return int(self._unfinished.sum())

    def drop_finished(self) -> Tensor:
        """Keep only the unfinished rows in the batch; return their indices within it."""
        kept = self._unfinished.nonzero().squeeze(-1)
        self.rows, self._row_max_lengths = self.rows[kept], self._row_max_lengths[kept]
        self._unfinished = self._unfinished[kept]
        return kept

    def rollout(self, rows_computed: int) -> Rollout:
        """Return all rows, padded after the first EOS, or in truncated rows after the maximum length."""
        return finish(
            self._tokens[:, 1:],
            self._truncated,
            self._max_lengths,
            symbols=self._symbols,
            rows_computed=rows_computed,
            lprobs=self._lprobs,
        )
