"""fairseq batches: take rows out, put rollouts in. Every function returns a new batch and leaves the given one alone.

On the CPU the batch is the data iterator's own object, and fairseq stores one as its dummy batch, so an edit in place
would train on stale rollouts later.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.mixing.replay import PastRollout
from fairseq_imitkd.rollout import Rollout

# Word alignments between a source and its reference: they have no row a sentence, and no meaning for a rollout.
ALIGNMENTS = ("alignments", "align_weights")


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
    net_input = {name: value for name, value in sample["net_input"].items() if name != "prev_output_tokens"}
    chosen = _rows(net_input, rows, sample["target"].size(0))
    chosen["src_tokens"] = _without_empty_columns(chosen["src_tokens"], pad)
    return chosen


def joined_encoder_inputs(
    parts: Sequence[dict[str, Any]], pad: int, left_pad: bool
) -> tuple[dict[str, Any], Tensor]:
    """The encoder's arguments for the sentences of several batches, sorted by falling source length (LSTMs need it).

    Args:
        parts: of :func:`encoder_inputs`, with ``src_tokens`` and ``src_lengths`` alone.
        pad: of the source dictionary.
        left_pad: whether sources are padded on the left.

    Returns:
        the arguments for all ``B`` sentences, and ``(B,)`` their places in the order of the parts.
    """
    width = max(part["src_tokens"].size(1) for part in parts)
    sources = []
    for part in parts:
        missing = width - part["src_tokens"].size(1)
        sources.append(F.pad(part["src_tokens"], (missing, 0) if left_pad else (0, missing), value=pad))
    lengths = torch.cat([part["src_lengths"] for part in parts])
    order = lengths.argsort(descending=True, stable=True)
    return {"src_tokens": torch.cat(sources)[order], "src_lengths": lengths[order]}, order


def take(sample: Batch, rows: Tensor, source_pad: int, target_pad: int) -> Batch:
    """Some sentences of a batch, as a batch without columns that hold only padding.

    Args:
        sample: a batch of ``B`` sentences, targets padded on the right.
        rows: ``(R,)`` int64, rising.
        source_pad, target_pad: of the two dictionaries.
    """
    size = sample["target"].size(0)
    net_input = sample["net_input"]
    part = _rows(
        {name: value for name, value in sample.items() if name not in ("net_input", *ALIGNMENTS)}, rows, size
    )
    part["target"] = _without_empty_columns(part["target"], target_pad)
    inputs = net_input["prev_output_tokens"].index_select(0, rows)[:, : part["target"].size(1)]
    part["net_input"] = {**encoder_inputs(sample, rows, source_pad), "prev_output_tokens": inputs}
    part["ntokens"] = int(part["target"].ne(target_pad).sum())
    part["nsentences"] = rows.numel()
    return part


def parts_by_length(target: Tensor, pad: int, cost: int) -> list[Tensor]:
    """Divide a batch into parts of like target length, so that little of the work goes to padding.

    The division has the least work, counted in target positions: of all positions, padding included, and of ``cost``
    more for each part. Exact, by dynamic programming over the sentences in order of length.

    Args:
        target: ``(B, T)``.
        pad: of the target dictionary.
        cost: what a part costs beside its positions: a forward and a backward pass have work that no position adds to.

    Returns:
        for each part its rows, rising.
    """
    lengths, order = target.ne(pad).sum(dim=-1).sort(stable=True)
    values, counts = lengths.unique_consecutive(return_counts=True)
    widths, ends = values.tolist(), counts.cumsum(dim=0).tolist()  # of the sentences up to each length
    least, cut_before = [0.0], [0]
    for stop, width in enumerate(widths):
        work = [
            least[start] + width * (ends[stop] - (ends[start - 1] if start else 0)) + cost
            for start in range(stop + 1)
        ]
        start = min(range(stop + 1), key=work.__getitem__)
        least.append(work[start])
        cut_before.append(start)
    parts, stop = [], len(widths)
    while stop > 0:
        start = cut_before[stop]
        parts.append(order[(ends[start - 1] if start else 0) : ends[stop - 1]].sort().values)
        stop = start
    return parts


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

    without_alignments = {name: value for name, value in sample.items() if name not in ALIGNMENTS}
    return {
        **without_alignments,
        "net_input": {**sample["net_input"], "prev_output_tokens": new_inputs},
        "target": new_target,
        "ntokens": int(new_target.ne(pad).sum()),
    }


def with_past_rollouts(
    sample: Batch, rows: Tensor, past: Sequence[PastRollout], source_pad: int, target_pad: int, left_pad: bool
) -> tuple[Batch, Tensor]:
    """The batch with some sentences, sources included, replaced by rollouts of earlier updates.

    Args:
        sample: a batch of ``B`` sentences with ``src_tokens`` and ``src_lengths`` alone for its encoder.
        rows: ``(R,)`` int64, the sentences to replace.
        past: what takes their places, ``R`` of them.
        source_pad, target_pad: of the two dictionaries.
        left_pad: whether sources are padded on the left.

    Returns:
        a new batch, sorted by falling source length (LSTMs need it), and ``(B,)`` where each of its rows was before.
    """
    target, net_input = sample["target"], sample["net_input"]
    # Put together by the host, which would otherwise wait for the device at every sentence.
    parts = (
        net_input["src_tokens"],
        net_input["prev_output_tokens"],
        target,
        sample["id"],
        target.ne(target_pad).sum(dim=-1),
    )
    sentences = [
        (source[source.ne(source_pad)], inputs[:kept], written[:kept], number)
        for source, inputs, written, number, kept in zip(
            *(part.cpu() for part in parts[:3]), *(part.tolist() for part in parts[3:]), strict=True
        )
    ]
    for row, old in zip(rows.tolist(), past, strict=True):
        sentences[row] = (old.source, old.inputs, old.target, old.number)
    order = sorted(range(len(sentences)), key=lambda row: -sentences[row][0].numel())
    sources, inputs, targets, numbers = zip(*(sentences[row] for row in order), strict=True)
    new_target = _padded(targets, target_pad, left=False)
    new = {
        **{name: value for name, value in sample.items() if name not in ALIGNMENTS},
        "id": torch.tensor(numbers).to(sample["id"]),
        "net_input": {
            "src_tokens": _padded(sources, source_pad, left_pad).to(target),
            "src_lengths": torch.tensor([source.numel() for source in sources]).to(net_input["src_lengths"]),
            "prev_output_tokens": _padded(inputs, target_pad, left=False).to(target),
        },
        "target": new_target.to(target),
        "ntokens": int(new_target.ne(target_pad).sum()),
    }
    return new, torch.tensor(order, device=target.device)


def _padded(sentences: Sequence[Tensor], pad: int, left: bool) -> Tensor:
    """Sentences of any length as one tensor."""
    width = max(sentence.numel() for sentence in sentences)
    return torch.stack(
        [
            F.pad(
                sentence, (width - sentence.numel(), 0) if left else (0, width - sentence.numel()), value=pad
            )
            for sentence in sentences
        ]
    )


def _rows(values: Batch, rows: Tensor, batch_size: int) -> Batch:
    """The same with only some rows of every tensor that has one a sentence."""
    return {
        name: value.index_select(0, rows)
        if isinstance(value, Tensor) and value.shape[:1] == (batch_size,)
        else value
        for name, value in values.items()
    }


def _without_empty_columns(tokens: Tensor, pad: int) -> Tensor:
    used = tokens.ne(pad).any(dim=0).nonzero()
    return tokens[:, int(used[0]) : int(used[-1]) + 1]
