"""Random numbers that belong to a sentence, not to a batch.

Each number is a hash of (seed, stream, update, step, sentence id). So a draw does not depend on the batch that the
sentence is in, on its neighbours, on the process that holds it or on what was drawn before; and there is no generator
state to save, so resume, retries and several processes repeat it exactly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of SplitMix64 (Steele, Lea & Flood 2014)

# (decoding step, rows (R,) of a batch) -> (R,) numbers in [0, 1), float64
Uniforms = Callable[[int, Tensor], Tensor]

STEPS_AT_ONCE = 32  # decoding steps whose numbers are made together: a hash is some 35 small operations

# Streams: which sentences are rolled out; which token a sampled rollout takes, and which the teacher's; which sentences
# are old rollouts, and which ones; which teacher teaches a sentence.
MIXING, SAMPLING, TEACHER_SAMPLING, REPLAYING, REPLAYED, SELECTING = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class RandomKey:
    """Names one vector of random numbers, one for each sentence.

    Args:
        seed: ``--seed``.
        update: the update number.
        stream: what the numbers are for, so that two uses never share them.
        step: the decoding step within a stream.
    """

    seed: int
    update: int
    stream: int = MIXING
    step: int = 0

    def at(self, stream: int, step: int = 0) -> "RandomKey":
        """The same seed and update for another use."""
        return replace(self, stream=stream, step=step)

    def uniforms(self, sentence_ids: Tensor) -> Tensor:
        """One number in ``[0, 1)`` for each sentence.

        Args:
            sentence_ids: ``(B,)`` int64, the data set's indices (``sample["id"]``).

        Returns:
            ``(B,)`` float64 on the ids' device, of 53 random bits each.
        """
        return self.uniforms_of_steps(sentence_ids, 1)[0]

    def uniforms_of_steps(self, sentence_ids: Tensor, steps: int) -> Tensor:
        """The numbers of this step and those that follow it, ``(steps, B)``, each as :meth:`uniforms` has it."""
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


def sampling_uniforms(
    sentences: Sequence[tuple[RandomKey, Tensor]], order: Tensor | None = None, stream: int = SAMPLING
) -> Uniforms:
    """The randomness of a sampled rollout, whose rows may belong to several updates.

    Args:
        sentences: keys, and the ids ``(B_i,)`` of the sentences that are drawn with each.
        order: ``(B,)`` for each row of the rollout its place among those sentences; None: they are the rows.
        stream: whose choices they are for.
    """

    made: dict[int, Tensor] = {}  # (STEPS_AT_ONCE, B), under the number of the block

    def uniforms(step: int, rows: Tensor) -> Tensor:
        block, place = divmod(step, STEPS_AT_ONCE)
        if block not in made:
            made.clear()
            first = block * STEPS_AT_ONCE
            numbers = [key.at(stream, first).uniforms_of_steps(ids, STEPS_AT_ONCE) for key, ids in sentences]
            together = torch.cat(numbers, dim=-1)
            made[block] = together if order is None else together[:, order]
        return made[block][place, rows]

    return uniforms


def _mix(value: int) -> int:
    """SplitMix64's output function on one unsigned 64-bit integer."""
    value = ((value ^ (value >> 30)) * _MULTIPLIERS[0]) & _MASK
    value = ((value ^ (value >> 27)) * _MULTIPLIERS[1]) & _MASK
    return value ^ (value >> 31)


def _mix_tensor(values: Tensor) -> Tensor:
    """The same on int64 tensors, whose products wrap around."""
    values = (values ^ _shift_right(values, 30)) * _signed(_MULTIPLIERS[0])
    values = (values ^ _shift_right(values, 27)) * _signed(_MULTIPLIERS[1])
    return values ^ _shift_right(values, 31)


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """A logical shift: torch's own on int64 keeps the sign."""
    return torch.bitwise_and(values >> bits, (1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
