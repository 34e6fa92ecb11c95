"""Incremental decoding of a fairseq student, through fairseq's own incremental API.

Works for every ``FairseqIncrementalDecoder`` (transformer, LSTM, convolutional, …). Differs from fairseq's
``SequenceGenerator`` where training asks for it: it stops a sentence at a length taken from that sentence's own
source, never forces an EOS, leaves the student's mode as it was, and forgets finished sentences.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.models import BaseFairseqModel
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn

from fairseq_imitkd.rollout.policy import RolloutPolicy
from fairseq_imitkd.rollout.randomness import SAMPLING, RandomKey

# Dropping finished rows copies every cache, so it waits until this share of the rows is done.
COMPACT_SHARE = 0.125


@dataclass(frozen=True)
class Rollout:
    """What the student wrote.

    Args:
        tokens: ``(B, T)`` int64, padded on the right; EOS is there only where the student chose it.
        truncated: ``(B,)`` bool, true where the length cap cut the sentence.
    """

    tokens: Tensor
    truncated: Tensor


@torch.no_grad()
def decode(
    student: BaseFairseqModel,
    net_input: dict[str, Any],
    first_tokens: Tensor,
    sentence_ids: Tensor,
    policy: RolloutPolicy,
    random_key: RandomKey,
    max_positions: int,
    pad: int,
    eos: int,
) -> Rollout:
    """Let the student translate a batch.

    Args:
        student: an unwrapped encoder-decoder whose decoder is incremental. Its mode is restored, whatever happens.
        net_input: the encoder's arguments, ``src_tokens`` ``(B, S)`` and ``src_lengths`` ``(B,)`` among them, sorted
            by falling source length as fairseq's batches are (LSTM encoders need it).
        first_tokens: ``(B,)`` the first decoder input, EOS or a language tag.
        sentence_ids: ``(B,)`` the sentences' indices in the data set; they key the randomness.
        policy: how to choose a token, and the length cap.
        random_key: seed and update.
        max_positions: the longest target, EOS included, that student and teacher can represent.
        pad, eos: of the target dictionary.

    Returns:
        a :class:`Rollout` of ``B`` rows in the order given.
    """
    batch_size = first_tokens.size(0)
    max_lengths = policy.max_lengths(net_input["src_lengths"], max_positions)
    longest = int(max_lengths.max())
    tokens = first_tokens.new_full((batch_size, longest + 2), pad)
    tokens[:, 0] = first_tokens
    truncated = torch.zeros(batch_size, dtype=torch.bool, device=tokens.device)

    rows = torch.arange(batch_size, device=tokens.device)  # still in the batch, as indices into tokens
    alive = torch.ones_like(rows, dtype=torch.bool)  # of these, the ones that are not finished
    state: dict[str, dict[str, Tensor | None]] = {}
    with evaluating(student):
        encoder_out = student.encoder.forward_torchscript(net_input)
        # One step beyond the cap: there the student may still choose to end, which is a choice and not a cut.
        for step in range(longest + 1):
            logits = student.decoder(tokens[rows, : step + 1], encoder_out=encoder_out, incremental_state=state)[0][:, -1]
            logits[:, pad] = float("-inf")
            uniforms = None
            if policy.name == "sampling":
                uniforms = random_key.at(SAMPLING, step).uniforms(sentence_ids[rows])
            chosen = policy.choose(logits, uniforms)

            cut = alive & (step >= max_lengths[rows]) & (chosen != eos)
            truncated[rows] |= cut
            alive = alive & ~cut
            # A finished row is fed EOS until it leaves: pad would upset decoders that count positions.
            tokens[rows, step + 1] = torch.where(alive, chosen, eos)
            alive = alive & (chosen != eos)

            count = int(alive.sum())
            if count == 0:
                break
            if count <= (1.0 - COMPACT_SHARE) * rows.numel():
                kept = alive.nonzero().squeeze(-1)
                student.decoder.reorder_incremental_state_scripting(state, kept)
                encoder_out = student.encoder.reorder_encoder_out(encoder_out, kept)
                rows, alive = rows[kept], alive[kept]
    return Rollout(_without_filler(tokens[:, 1:], truncated, max_lengths, pad, eos), truncated)


def _without_filler(tokens: Tensor, truncated: Tensor, max_lengths: Tensor, pad: int, eos: int) -> Tensor:
    """Pad everything after the first EOS, and a truncated row from its cap on; trim columns that are all padding."""
    is_eos = tokens.eq(eos)
    after_eos = (is_eos.cumsum(dim=-1) - is_eos.long()) > 0
    positions = torch.arange(tokens.size(1), device=tokens.device)
    beyond_cap = truncated.unsqueeze(-1) & (positions >= max_lengths.unsqueeze(-1))
    tokens = tokens.masked_fill(after_eos | beyond_cap, pad)
    return tokens[:, : int(tokens.ne(pad).sum(dim=-1).max())]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and a beam of 1 inside; afterwards every module as it was, also when an error passes through.

    A ``SequenceGenerator`` leaves its beam size in the attention modules of some models (BART), and needs it there.
    """
    modes = [(module, module.training) for module in model.modules()]
    beams = [(module, module.beam_size) for module in model.modules() if isinstance(module, MultiheadAttention)]
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
