"""Decoding during training: what the student writes, greedily or by sampling.

The engine differs from fairseq's ``SequenceGenerator`` in four ways. Each sentence has its own maximum
length, no EOS is forced, the models' modes are restored, and finished sentences leave the batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import BaseFairseqModel
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn

from fairseq_imitkd.rollout.keyed_random import Uniforms
from fairseq_imitkd.rollout.policy import RolloutPolicy
from fairseq_imitkd.rollout.steps import Ensemble, Steps, begin_decoding

# Dropping finished rows copies every cache, so the engine waits until this share of the rows is finished.
COMPACT_SHARE = 0.1
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
    """

    net_input: dict[str, Any]
    first_tokens: Tensor
    max_lengths: Tensor
    samples: int = 1


@dataclass(frozen=True)
class Rollout:
    """What a model wrote.

    Args:
        tokens: ``(B, T)`` int64, padded on the right. A row holds an EOS only if the model chose it.
        truncated: ``(B,)`` bool, true if the maximum length cut the row.
        rows_computed: number of decoder rows computed, summed over all steps: the work done.
        lprobs: ``(B, T + 1)`` or wider, None unless requested: log-probabilities, at the policy's
            temperature, of the tokens and of the EOS at which a truncated row was cut; 0 after the end of a
            row.
    """

    tokens: Tensor
    truncated: Tensor
    rows_computed: int = 0
    lprobs: Tensor | None = None

    def part(self, rows: Tensor, pad: int, rows_computed: int) -> "Rollout":
        """Return some rows, in the given order, as if they had been decoded alone at the given cost."""
        tokens = self.tokens[rows]
        width = int(tokens.ne(pad).sum(dim=-1).max())
        return Rollout(tokens[:, :width], self.truncated[rows], rows_computed)

    def to(self, device: torch.device) -> "Rollout":
        """Return the same rollout on a device, without log-probabilities."""
        return Rollout(self.tokens.to(device), self.truncated.to(device), self.rows_computed)

    def state(self) -> dict[str, Any]:
        """Return the arguments of an equal rollout on the CPU, without log-probabilities.

        The tensors are contiguous, because fairseq broadcasts others wrongly when several processes resume:
        https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/distributed/utils.py#L743-L755
        """
        on_cpu = self.to(torch.device("cpu"))
        tokens, truncated = on_cpu.tokens.contiguous(), on_cpu.truncated.contiguous()
        return {"tokens": tokens, "truncated": truncated, "rows_computed": self.rows_computed}


@dataclass(frozen=True)
class Corrector:
    """The teacher that corrects a speculative rollout.

    Args:
        teacher: ensemble in evaluation mode.
        uniforms: random numbers for the teacher's samples.
    """

    teacher: Ensemble
    uniforms: Uniforms


@torch.no_grad()
def decode(
    writer: BaseFairseqModel | Ensemble,
    prompt: Prompt,
    policy: RolloutPolicy,
    *,
    symbols: SpecialSymbols,
    uniforms: Uniforms | None = None,
    min_length: int = 0,
    score: bool = False,
    corrector: Corrector | None = None,
) -> Rollout:
    """Let a student or a teacher translate a batch.

    Args:
        writer: unwrapped encoder-decoder with an incremental decoder, or an ensemble of such models. Their
            modes are restored, also after an error.
        prompt: batch to translate.
        policy: how to choose a token.
        symbols: special symbols of the target dictionary.
        uniforms: random numbers for sampling; a greedy policy ignores them.
        min_length: minimum number of tokens before the EOS.
        score: also return the log-probabilities of the tokens.
        corrector: teacher that corrects the choices of a speculative policy.

    Returns:
        a :class:`Rollout` of ``B`` rows in the order of the prompt.
    """
    draft = _Draft(prompt, symbols, score=score)
    with evaluating(writer):
        begin = partial(
            begin_decoding,
            net_input=prompt.net_input,
            longest=draft.longest + 1,
            samples=prompt.samples,
            cuda_graphs=policy.cuda_graphs,
        )
        steps = begin(writer)
        teacher_steps = begin(corrector.teacher) if corrector else None
        prefixes = prompt.first_tokens.unsqueeze(-1)
        # One step beyond the maximum length: a row that chooses the EOS there is complete, not truncated.
        for step in range(draft.longest + 1):
            logits = steps.logits(prefixes)
            normaliser = policy.tempered(logits).logsumexp(dim=-1) if score else None
            logits[:, symbols.pad] = float("-inf")
            if step < min_length:
                logits[:, symbols.eos] = float("-inf")
            chosen = policy.choose(logits, uniforms(step, draft.rows) if uniforms else None)
            if corrector and teacher_steps:
                teacher_logits = teacher_steps.logits(prefixes)
                teacher_logits[:, symbols.pad] = float("-inf")
                chosen = policy.corrected(chosen, teacher_logits, corrector.uniforms(step, draft.rows))
            written = draft.append(step, chosen)
            if normaliser is not None:
                draft.score(step, policy.tempered(_at(logits, written)) - normaliser)
            if (step + 1) % draft.steps_between_checks == 0:
                unfinished = _drop_finished(draft, steps, teacher_steps)
                if unfinished == 0:
                    break
            prefixes = draft.prefixes(step + 1)
    return draft.rollout(steps.rows_computed)


def _drop_finished(draft: "_Draft", *decoders: Steps | None) -> int:
    """Drop the finished rows if they are many enough to be worth it. Return the number of unfinished rows."""
    unfinished = draft.count_unfinished()
    if 0 < unfinished <= (1.0 - COMPACT_SHARE) * draft.rows.numel():
        kept = draft.drop_finished()
        for steps in filter(None, decoders):
            steps.keep(kept)
    return unfinished


class _Draft:
    """The tokens written so far in ``B`` rows, and the ``R`` rows that are still in the decoder's batch.

    Attributes:
        longest: greatest maximum length of all rows.
        rows: indices of the rows in the decoder's batch, ``(R,)``. A finished row stays until
            :meth:`drop_finished`.
        steps_between_checks: number of steps from one call of :meth:`count_unfinished` to the next.
    """

    def __init__(self, prompt: Prompt, symbols: SpecialSymbols, *, score: bool):
        count, device = prompt.first_tokens.size(0), prompt.first_tokens.device
        self.longest = int(prompt.max_lengths.max())
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
        eos = self._symbols.eos
        cut = self._unfinished & (self._row_max_lengths <= step) & (chosen != eos)
        self._truncated[self.rows] |= cut
        self._unfinished = self._unfinished & ~cut
        # A finished row gets EOS until it is dropped: padding would upset decoders that count positions.
        written = torch.where(self._unfinished, chosen, eos)
        self._tokens[self.rows, step + 1] = written
        self._unfinished = self._unfinished & (written != eos)
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
        tokens = self._tokens[:, 1:]
        is_eos = tokens.eq(self._symbols.eos)
        after_eos = (is_eos.cumsum(dim=-1) - is_eos.long()) > 0
        positions = torch.arange(tokens.size(1), device=tokens.device)
        cut = self._truncated.unsqueeze(-1) & (positions >= self._max_lengths.unsqueeze(-1))
        padded = tokens.masked_fill(after_eos | cut, self._symbols.pad)
        width = int(padded.ne(self._symbols.pad).sum(dim=-1).max())
        if self._lprobs is not None:
            self._lprobs[:, : tokens.size(1)].masked_fill_(after_eos, 0.0)
        return Rollout(padded[:, :width], self._truncated, rows_computed, self._lprobs)


def _at(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the logit of one token per row, ``(R, V), (R,) -> (R,)``."""
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


@contextmanager
def evaluating(writer: nn.Module | Ensemble) -> Iterator[None]:
    """Put models into evaluation mode with a beam of 1; restore each module's mode and beam, even on errors.

    A ``SequenceGenerator`` writes its beam size into BART's attention modules, which then expect that many
    rows per sentence, and relies on finding it there later. See
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/models/bart/model.py#L282-L291
    """
    models = writer.models if isinstance(writer, Ensemble) else [writer]
    modes = [(module, module.training) for model in models for module in model.modules()]
    beams = [(module, module.beam_size) for module, _ in modes if isinstance(module, MultiheadAttention)]
    for model in models:
        model.eval()
    for attention, _ in beams:
        attention.beam_size = 1
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for attention, beam_size in beams:
            attention.beam_size = beam_size
