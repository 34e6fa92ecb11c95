"""Random numbers that belong to a sentence, not to a batch.

Each number is a hash of (seed, stream, update, step, sentence id). So it does not depend on the sentence's
batch, on the process or on earlier numbers. No generator state has to be saved, and resumed runs, retries
and several processes get the same numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # SplitMix64 (Steele, Lea & Flood 2014)

# Decoding steps whose numbers are computed together: a hash takes about 35 small operations.
STEPS_AT_ONCE = 32

# Streams. MIXING: which sentences the student writes. SAMPLING and TEACHER_SAMPLING: the tokens that student
# and teacher sample. REPLAYING: which sentences become old rollouts. REPLAYED: which rollouts these are.
# SELECTING: which teacher teaches a sentence. MIXING_GOLD: which references imitkd-seqkd adds.
MIXING, SAMPLING, TEACHER_SAMPLING, REPLAYING, REPLAYED, SELECTING, MIXING_GOLD = 1, 2, 3, 4, 5, 6, 7


@dataclass(frozen=True)
class RandomKey:
    """The key of one random number per sentence.

    Args:
        seed: value of ``--seed``.
        update: update number.
        stream: purpose of the numbers, so that two purposes never share them.
        step: decoding step within the stream.
    """

    seed: int
    update: int
    stream: int = MIXING
    step: int = 0

    def at(self, stream: int, step: int = 0) -> "RandomKey":
        """Return the key with the same seed and update for another purpose."""
        return replace(self, stream=stream, step=step)

    def uniforms(self, sentence_ids: Tensor) -> Tensor:
        """Return one number in ``[0, 1)`` per sentence.

        Args:
            sentence_ids: ``(B,)`` int64, indices in the data set (``sample["id"]``).

        Returns:
            ``(B,)`` float64 on the device of the ids, with 53 random bits each.
        """
        return self.uniforms_by_step(sentence_ids, 1)[0]

    def uniforms_by_step(self, sentence_ids: Tensor, steps: int) -> Tensor:
        """Return the numbers of :meth:`uniforms` for this step and the following ones, ``(steps, B)``."""
        keys = []
        for step in range(self.step, self.step + steps):
            key = 0
            for part in (self.seed, self.stream, self.update, step):
                key = _mix((key + part * _GOLDEN + _GOLDEN) & _MASK)
            keys.append(_signed(key))
        bits = _mix_tensor(
            sentence_ids * _signed(_GOLDEN) + torch.tensor(keys, device=sentence_ids.device).unsqueeze(-1)
        )
        bits = _mix_tensor(bits + _signed(_GOLDEN))
        return _shift_right(bits, 11).double() * 2.0**-53


@dataclass
class Uniforms:
    """The random numbers of a sampled rollout of ``B`` rows, which may belong to several updates.

    Args:
        sentences: keys, each with the ids ``(B_i,)`` of its sentences.
        order: index of each row's sentence in the concatenated ids, ``(B,)``; None: the rows are in that
            order.
    """

    sentences: Sequence[tuple[RandomKey, Tensor]]
    order: Tensor | None = None
    _block: tuple[int, Tensor] | None = field(default=None, init=False)  # number, (STEPS_AT_ONCE, B)

    def __call__(self, step: int, rows: Tensor) -> Tensor:
        """Return the numbers ``(R,)`` of some rows ``(R,)`` at a decoding step, float64 in ``[0, 1)``."""
        number, offset = divmod(step, STEPS_AT_ONCE)
        if self._block is None or self._block[0] != number:
            self._block = number, self.table(STEPS_AT_ONCE, first=number * STEPS_AT_ONCE)
        return self._block[1][offset, rows]

    def table(self, steps: int, *, first: int = 0) -> Tensor:
        """Return the numbers of all rows at some steps, ``(steps, B)``."""
        numbers = [replace(key, step=first).uniforms_by_step(ids, steps) for key, ids in self.sentences]
        together = torch.cat(numbers, dim=-1)
        return together if self.order is None else together[:, self.order]


def sampling_uniforms(
    sentences: Sequence[tuple[RandomKey, Tensor]], order: Tensor | None = None, stream: int = SAMPLING
) -> Uniforms:
    """Return the random numbers of a rollout for one purpose; see :class:`Uniforms`."""
    return Uniforms([(key.at(stream), ids) for key, ids in sentences], order)


def _mix(value: int) -> int:
    """Apply SplitMix64's output function to an unsigned 64-bit integer."""
    value = ((value ^ (value >> 30)) * _MULTIPLIERS[0]) & _MASK
    value = ((value ^ (value >> 27)) * _MULTIPLIERS[1]) & _MASK
    return value ^ (value >> 31)


def _mix_tensor(values: Tensor) -> Tensor:
    """Apply SplitMix64's output function to an int64 tensor, whose products wrap around."""
    values = (values ^ _shift_right(values, 30)) * _signed(_MULTIPLIERS[0])
    values = (values ^ _shift_right(values, 27)) * _signed(_MULTIPLIERS[1])
    return values ^ _shift_right(values, 31)


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros; torch's shift of int64 fills with the sign."""
    return torch.bitwise_and(values >> bits, (1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
