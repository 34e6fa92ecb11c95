"""Decoding inside training: what the student writes, greedily or sampled.

Differs from fairseq's ``SequenceGenerator`` where training asks for it: it stops a sentence at a length of its own,
never forces an EOS, leaves the student's mode as it was, and forgets finished sentences.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.models import BaseFairseqModel
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn

from fairseq_imitkd.rollout.keyed_random import Uniforms
from fairseq_imitkd.rollout.policy import RolloutPolicy
from fairseq_imitkd.rollout.steps import Ensemble, begin

# Dropping finished rows copies every cache, so it waits until this share of the rows is done.
COMPACT_SHARE = 0.1
# On a GPU, to ask how many rows are left makes the host wait for the device: every so many steps.
STEPS_BETWEEN_CHECKS = {"cpu": 1}
STEPS_BETWEEN_CHECKS_ELSEWHERE = 4


@dataclass(frozen=True)
class Rollout:
    """What the student wrote.

    Args:
        tokens: ``(B, T)`` int64, padded on the right; EOS is there only where the student chose it.
        truncated: ``(B,)`` bool, true where the length cap cut the sentence.
        rows_computed: decoder rows computed, over all steps: the work done, beside the tokens written.
        lprobs: ``(B, T + 1)`` or wider: log-probabilities, at the policy's temperature, of the tokens, and of the EOS at
            which a truncated row was cut; 0 beyond a row's end. Only when asked for.
    """

    tokens: Tensor
    truncated: Tensor
    rows_computed: int = 0
    lprobs: Tensor | None = None

    def part(self, rows: Tensor, pad: int, rows_computed: int) -> "Rollout":
        """Some rows, in the order given, as a rollout that was computed by itself with that much work."""
        tokens = self.tokens[rows]
        width = int(tokens.ne(pad).sum(dim=-1).max())
        return Rollout(tokens[:, :width], self.truncated[rows], rows_computed)


@dataclass(frozen=True)
class Corrector:
    """Who corrects a speculative rollout: a teacher, and the randomness of its samples."""

    teacher: Ensemble
    uniforms: Uniforms


@torch.no_grad()
def decode(
    author: BaseFairseqModel | Ensemble,
    net_input: dict[str, Any],
    first_tokens: Tensor,
    max_lengths: Tensor,
    policy: RolloutPolicy,
    pad: int,
    eos: int,
    uniforms: Uniforms | None = None,
    samples: int = 1,
    min_length: int = 0,
    score: bool = False,
    corrector: Corrector | None = None,
    cuda_graphs: bool = False,
) -> Rollout:
    """Let the student, or a teacher, translate a batch.

    Args:
        author: an unwrapped encoder-decoder whose decoder is incremental, or an ensemble of them. Their modes are
            restored, whatever happens.
        net_input: the encoder's arguments, ``src_tokens`` and ``src_lengths`` of ``B / samples`` sentences among them,
            sorted by falling source length as fairseq's batches are (LSTM encoders need it).
        first_tokens: ``(B,)`` the first decoder input, EOS or a language tag.
        max_lengths: ``(B,)`` int64, the most tokens of each row before its EOS.
        policy: how to choose a token.
        pad, eos: of the target dictionary.
        uniforms: the randomness of sampling; unused by greedy decoding.
        samples: rows of each sentence, one after another.
        min_length: the fewest tokens before the EOS.
        score: also give the tokens' log-probabilities.
        corrector: who corrects the choices of a speculative policy.
        cuda_graphs: on a GPU, replay the steps of a stock transformer as CUDA graphs.

    Returns:
        a :class:`Rollout` of ``B`` rows in the order given.
    """
    longest = int(max_lengths.max())
    tokens = first_tokens.new_full((first_tokens.size(0), longest + 2), pad)
    tokens[:, 0] = first_tokens
    truncated = torch.zeros_like(first_tokens, dtype=torch.bool)
    lprobs = torch.zeros(tokens.size(0), longest + 2, device=tokens.device) if score else None
    check_every = STEPS_BETWEEN_CHECKS.get(tokens.device.type, STEPS_BETWEEN_CHECKS_ELSEWHERE)

    rows = torch.arange(tokens.size(0), device=tokens.device)  # still in the batch, as indices into tokens
    alive = torch.ones_like(truncated)  # of these, the ones that are not finished
    prefixes, caps = tokens[:, :1], max_lengths
    with evaluating(author):
        steps = begin(author, net_input, longest + 1, samples, cuda_graphs)
        corrections = (
            begin(corrector.teacher, net_input, longest + 1, samples, cuda_graphs) if corrector else None
        )
        # One step beyond the cap: there the student may still choose to end, which is a choice and not a cut.
        for step in range(longest + 1):
            logits = steps.logits(prefixes)
            if lprobs is not None:
                normaliser = policy.tempered(logits).logsumexp(dim=-1)
            logits[:, pad] = float("-inf")
            if step < min_length:
                logits[:, eos] = float("-inf")
            chosen = policy.choose(logits, uniforms(step, rows) if uniforms else None)
            if corrector and corrections:
                teacher_logits = corrections.logits(prefixes)
                teacher_logits[:, pad] = float("-inf")
                chosen = policy.corrected(chosen, teacher_logits, corrector.uniforms(step, rows))
            cut = alive & (caps <= step) & (chosen != eos)
            truncated[rows] |= cut
            alive = alive & ~cut
            # A finished row is fed EOS until it leaves: pad would upset decoders that count positions.
            chosen = torch.where(alive, chosen, eos)
            if lprobs is not None:
                lprobs[rows, step] = (
                    policy.tempered(logits.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)) - normaliser
                )
            tokens[rows, step + 1] = chosen
            alive = alive & (chosen != eos)

            if (step + 1) % check_every == 0:
                count = int(alive.sum())
                if count == 0:
                    break
                if count <= (1.0 - COMPACT_SHARE) * rows.numel():
                    kept = alive.nonzero().squeeze(-1)
                    steps.keep(kept)
                    if corrections:
                        corrections.keep(kept)
                    rows, alive, caps = rows[kept], alive[kept], caps[kept]
            prefixes = tokens[rows, : step + 2]
    return _finished(tokens[:, 1:], truncated, max_lengths, steps.rows_computed, lprobs, pad, eos)


def _finished(
    tokens: Tensor,
    truncated: Tensor,
    max_lengths: Tensor,
    rows_computed: int,
    lprobs: Tensor | None,
    pad: int,
    eos: int,
) -> Rollout:
    """Pad everything after the first EOS, and a truncated row from its cap on; trim columns that are all padding."""
    is_eos = tokens.eq(eos)
    after_eos = (is_eos.cumsum(dim=-1) - is_eos.long()) > 0
    positions = torch.arange(tokens.size(1), device=tokens.device)
    beyond_cap = truncated.unsqueeze(-1) & (positions >= max_lengths.unsqueeze(-1))
    padded = tokens.masked_fill(after_eos | beyond_cap, pad)
    width = int(padded.ne(pad).sum(dim=-1).max())
    if lprobs is not None:
        lprobs[:, : tokens.size(1)].masked_fill_(after_eos, 0.0)
    return Rollout(padded[:, :width], truncated, rows_computed, lprobs)


@contextmanager
def evaluating(author: nn.Module | Ensemble) -> Iterator[None]:
    """Evaluation mode and a beam of 1 inside; afterwards every module as it was, also when an error passes through.

    A ``SequenceGenerator`` leaves its beam size in the attention modules of some models (BART), and needs it there.
    """
    models = author.models if isinstance(author, Ensemble) else [author]
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
