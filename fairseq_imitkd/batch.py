"""fairseq batches: take rows out, put rollouts in. Every function returns a new batch and leaves the given one alone.

On the CPU the batch is the data iterator's own object, and fairseq stores one as its dummy batch, so an edit in place
would train on stale rollouts later.
"""

from typing import Any

from torch import Tensor

from fairseq_imitkd.rollout import Rollout

Batch = dict[str, Any]


def first_decoder_inputs(sample: Batch) -> Tensor:
    """What the decoder reads first, ``(B,)``: EOS, or a language tag. Targets are padded on the right."""
    return sample["net_input"]["prev_output_tokens"][:, 0]


def encoder_inputs(sample: Batch, rows: Tensor, pad: int) -> dict[str, Any]:
    """The encoder's arguments for some sentences, without source columns that hold only padding.

    Args:
        sample: a batch of ``B`` sentences.
        rows: ``(R,)`` int64, the sentences wanted, rising, so that source lengths stay sorted.
        pad: of the source dictionary.

    Returns:
        ``net_input`` without ``prev_output_tokens``; each tensor with ``B`` rows has ``R``.
    """
    net_input = sample["net_input"]
    batch_size = net_input["src_tokens"].size(0)
    chosen = {
        name: value.index_select(0, rows) if isinstance(value, Tensor) and value.shape[:1] == (batch_size,) else value
        for name, value in net_input.items()
        if name != "prev_output_tokens"
    }
    used = chosen["src_tokens"].ne(pad).any(dim=0).nonzero()
    chosen["src_tokens"] = chosen["src_tokens"][:, int(used[0]) : int(used[-1]) + 1]
    return chosen


def with_rollouts(sample: Batch, rows: Tensor, rollout: Rollout, pad: int) -> Batch:
    """The batch with some targets replaced by what the student wrote there.

    Args:
        sample: a batch of ``B`` sentences, targets padded on the right.
        rows: ``(R,)`` int64, the sentences that were rolled out.
        rollout: of ``R`` rows, in the order of ``rows``.
        pad: of the target dictionary.

    Returns:
        a new batch: ``target`` and ``net_input.prev_output_tokens`` ``(B, T)`` with ``T`` as long as needed, and
        ``ntokens`` counted anew. A truncated rollout's target ends where it was cut, without an EOS.
    """
    target, inputs = sample["target"], sample["net_input"]["prev_output_tokens"]
    is_data = target.new_ones(target.size(0), dtype=bool)
    is_data[rows] = False
    longest_data = int((target.ne(pad) & is_data.unsqueeze(-1)).sum(dim=-1).max())
    width = max(longest_data, rollout.tokens.size(1))

    new_target = target.new_full((target.size(0), width), pad)
    new_target[:, :longest_data] = target[:, :longest_data]
    new_target[rows] = pad
    new_target[rows, : rollout.tokens.size(1)] = rollout.tokens

    new_inputs = inputs.new_full((inputs.size(0), width), pad)
    new_inputs[:, :longest_data] = inputs[:, :longest_data]
    new_inputs[rows, 0] = inputs[rows, 0]
    shifted = new_target[rows, :-1]
    new_inputs[rows, 1:] = shifted.masked_fill(new_target[rows, 1:].eq(pad), pad)

    without_alignments = {name: value for name, value in sample.items() if name != "alignments"}
    return {
        **without_alignments,
        "net_input": {**sample["net_input"], "prev_output_tokens": new_inputs},
        "target": new_target,
        "ntokens": int(new_target.ne(pad).sum()),
    }
