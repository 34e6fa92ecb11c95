"""Operations on fairseq batches: take rows out, put rollouts in. Each returns a new batch and leaves the
given one alone.

On the CPU a batch is the data iterator's own object, and fairseq keeps one as its filler batch. A batch that
was changed in place would come back with old rollouts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fairseq_imitkd.data.batch_type import TEACHER_INPUT, Batch
from fairseq_imitkd.mixing.replay import PastRollout
from fairseq_imitkd.rollout import Rollout, SpecialSymbols

# Keys of the word alignments between sources and references. They do not have one row per sentence, and do
# not fit a rollout.
ALIGNMENTS = ("alignments", "align_weights")


@dataclass(frozen=True)
class BatchLayout:
    """How the batches of a task are padded.

    Args:
        source_pad: index of the padding symbol in the source dictionary; None if sources are not symbols but
            frames of speech. Such batches stay whole, because what a model reads of the last frames depends
            on the padding after them.
        target: padding and EOS of the target. Targets are padded on the right.
        left_pad_source: whether sources are padded on the left.
        shares_positions: whether a source takes up positions of its target: a language model's prompt does.
    """

    source_pad: int | None
    target: SpecialSymbols
    left_pad_source: bool
    shares_positions: bool = False


def first_decoder_inputs(sample: Batch) -> Tensor:
    """Return the decoder's first inputs, ``(B,)``: EOS or a language tag."""
    return sample["net_input"]["prev_output_tokens"][:, 0]


def teacher_inputs(sample: Batch, rows: Tensor, pad: int | None) -> dict[str, Any]:
    """Return the arguments of the teacher's encoder for some sentences.

    The arguments are those of :func:`encoder_inputs`. Transcripts keep their columns of padding.
    """
    if TEACHER_INPUT not in sample:
        return encoder_inputs(sample, rows, pad)
    return _select_rows(sample[TEACHER_INPUT], rows, sample["target"].size(0))


def encoder_inputs(sample: Batch, rows: Tensor, pad: int | None) -> dict[str, Any]:
    """Return the encoder's arguments for some sentences, without columns of padding only.

    Args:
        sample: a batch of ``B`` sentences.
        rows: ``(R,)`` int64, the sentences, rising, so that source lengths stay sorted.
        pad: index of the padding symbol in the source dictionary; None for frames of speech.

    Returns:
        ``net_input`` without ``prev_output_tokens``; each tensor that had ``B`` rows has ``R``.
    """
    net_input = {name: value for name, value in sample["net_input"].items() if name != "prev_output_tokens"}
    chosen = _select_rows(net_input, rows, sample["target"].size(0))
    if rows.numel() < sample["target"].size(0):
        tokens = chosen["src_tokens"]
        if pad is None:  # speech models expect the width of the longest sentence
            chosen["src_tokens"] = tokens[:, : int(chosen["src_lengths"].max())]
        else:
            chosen["src_tokens"] = _without_empty_columns(tokens, pad)
    return chosen


def join_encoder_inputs(
    parts: Sequence[dict[str, Any]], *, layout: BatchLayout
) -> tuple[dict[str, Any], Tensor]:
    """Join the encoder's arguments for several batches.

    The result is sorted by falling source length, because LSTM encoders need that.

    Args:
        parts: results of :func:`encoder_inputs` with ``src_tokens`` and ``src_lengths`` alone.
        layout: how sources are padded.

    Returns:
        the arguments for all ``B`` sentences; and ``(B,)``, the index that each of them had in the
        concatenated parts.
    """
    assert layout.source_pad is not None
    width = max(part["src_tokens"].size(1) for part in parts)
    sources = [
        _padded_to(part["src_tokens"], width, layout.source_pad, left=layout.left_pad_source)
        for part in parts
    ]
    lengths = torch.cat([part["src_lengths"] for part in parts])
    order = lengths.argsort(descending=True, stable=True)
    return {"src_tokens": torch.cat(sources)[order], "src_lengths": lengths[order]}, order


def take(sample: Batch, rows: Tensor, *, layout: BatchLayout) -> Batch:
    """Return some sentences of a batch as a batch, without columns of padding only.

    Args:
        sample: a batch of ``B`` sentences.
        rows: ``(R,)`` int64, rising.
        layout: how the batch is padded.
    """
    size, net_input = sample["target"].size(0), sample["net_input"]
    others = {name: value for name, value in sample.items() if name not in ("net_input", *ALIGNMENTS)}
    part = _select_rows(others, rows, size)
    part["target"] = _without_empty_columns(part["target"], layout.target.pad)
    inputs = net_input["prev_output_tokens"].index_select(0, rows)[:, : part["target"].size(1)]
    part["net_input"] = {**encoder_inputs(sample, rows, layout.source_pad), "prev_output_tokens": inputs}
    part["ntokens"] = int(part["target"].ne(layout.target.pad).sum())
    part["nsentences"] = rows.numel()
    return part


def split_by_length(target: Tensor, pad: int, cost: int) -> list[Tensor]:
    """Divide a batch into parts of similar target length, so that little work goes to padding.

    The division minimises the number of target positions, padding included, plus ``cost`` for each part. It
    is exact, by dynamic programming over the sentences in order of length.

    Args:
        target: ``(B, T)``.
        pad: index of the padding symbol in the target dictionary.
        cost: the fixed cost of a part, in target positions: each has a forward and a backward pass of its
            own.

    Returns:
        the rows of each part, rising.
    """
    # A sentence without a target takes a column too.
    lengths, order = target.ne(pad).sum(dim=-1).clamp(min=1).sort(stable=True)
    values, counts = lengths.unique_consecutive(return_counts=True)
    widths, ends = values.tolist(), counts.cumsum(dim=0).tolist()  # the number of sentences up to each length
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


def with_rollouts(sample: Batch, rows: Tensor, rollout: Rollout, *, pad: int) -> Batch:
    """Replace some targets by rollouts.

    Args:
        sample: a batch of ``B`` sentences, targets padded on the right.
        rows: ``(R,)`` int64, the sentences that were rolled out.
        rollout: ``R`` rollouts in the order of ``rows``.
        pad: index of the padding symbol in the target dictionary.

    Returns:
        a new batch: ``target`` and ``net_input.prev_output_tokens`` are ``(B, T)`` with ``T`` as long as
        needed, and ``ntokens`` is counted again. A truncated rollout ends where it was cut, without an EOS.
    """
    target, inputs = sample["target"], sample["net_input"]["prev_output_tokens"]
    is_data = target.new_ones(target.size(0), dtype=bool).index_fill_(0, rows, False)
    longest_data, ntokens = 0, 0
    if rows.numel() < target.size(0):
        lengths = (target.ne(pad) & is_data.unsqueeze(-1)).sum(dim=-1)
        # A sentence without a target keeps its first decoder input.
        longest_data, ntokens = torch.stack([lengths.max().clamp(min=1), lengths.sum()]).tolist()
    width = max(longest_data, rollout.tokens.size(1))

    new_target = target.new_full((target.size(0), width), pad)
    new_target[:, :longest_data] = target[:, :longest_data]
    new_target.index_fill_(0, rows, pad)
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
        "ntokens": ntokens + rollout.tokens_written(pad),
    }


def with_past_rollouts(
    sample: Batch, rows: Tensor, past: Sequence[PastRollout], *, layout: BatchLayout
) -> tuple[Batch, Tensor]:
    """Replace some sentences, sources included, by rollouts of earlier updates.

    Args:
        sample: a batch of ``B`` sentences whose encoder reads ``src_tokens`` and ``src_lengths`` alone.
        rows: ``(R,)`` int64, the sentences to replace.
        past: the ``R`` earlier rollouts.
        layout: how the batch is padded.

    Returns:
        a new batch, sorted by falling source length (LSTM encoders need it); and ``(B,)``, the index that
        each of its rows had in ``sample``.
    """
    target, net_input = sample["target"], sample["net_input"]
    source_pad, target_pad = layout.source_pad, layout.target.pad
    assert source_pad is not None
    # This runs on the CPU: on a GPU, the host would wait for every sentence.
    sources, inputs, targets = map(list, sentences_of(sample, torch.arange(target.size(0)), layout=layout))
    ids = sample["id"].tolist()
    for row, old in zip(rows.tolist(), past, strict=True):
        sources[row], inputs[row], targets[row], ids[row] = (
            old.source,
            old.inputs,
            old.target,
            old.sentence_id,
        )
    lengths = torch.tensor([source.numel() for source in sources])
    order = lengths.argsort(descending=True, stable=True)
    rows_in_order = order.tolist()

    def padded(sentences: list[Tensor], pad: int, *, left: bool = False) -> Tensor:
        side = "left" if left else "right"
        in_order = [sentences[row] for row in rows_in_order]
        return pad_sequence(in_order, batch_first=True, padding_value=pad, padding_side=side)

    new_target = padded(targets, target_pad)
    new = {
        **{name: value for name, value in sample.items() if name not in ALIGNMENTS},
        "id": torch.tensor(ids)[order].to(sample["id"]),
        "net_input": {
            "src_tokens": padded(sources, source_pad, left=layout.left_pad_source).to(target),
            "src_lengths": lengths[order].to(net_input["src_lengths"]),
            "prev_output_tokens": padded(inputs, target_pad).to(target),
        },
        "target": new_target.to(target),
        "ntokens": int(new_target.ne(target_pad).sum()),
    }
    return new, order.to(target.device)


def sentences_of(sample: Batch, rows: Tensor, *, layout: BatchLayout) -> tuple[Sequence[Tensor], ...]:
    """Return sources, decoder inputs and targets of some sentences, on the CPU and without padding. The
    target of a sentence without a reference is one padding symbol.

    The sentences share memory, so the number of operations does not depend on their number.

    Args:
        sample: a batch.
        rows: ``(R,)`` int64 on the CPU, the sentences.
        layout: how the batch is padded.

    Returns:
        three sequences of ``R`` tensors of any lengths.
    """
    tensors = (sample["net_input"]["src_tokens"], sample["net_input"]["prev_output_tokens"], sample["target"])
    sources, inputs, targets = (tensor.cpu()[rows] for tensor in tensors)
    assert layout.source_pad is not None
    is_source, is_target = sources.ne(layout.source_pad), targets.ne(layout.target.pad)
    is_target[:, 0] = True  # a sentence without a reference keeps its first decoder input
    lengths = is_target.sum(dim=-1).tolist()
    return (
        sources[is_source].split(is_source.sum(dim=-1).tolist()),
        inputs[is_target].split(lengths),
        targets[is_target].split(lengths),
    )


def _padded_to(tokens: Tensor, width: int, pad: int, *, left: bool) -> Tensor:
    missing = width - tokens.size(-1)
    return F.pad(tokens, (missing, 0) if left else (0, missing), value=pad)


def _select_rows(values: Batch, rows: Tensor, batch_size: int) -> Batch:
    """Select rows of every tensor that has one row per sentence."""
    return {
        name: value.index_select(0, rows)
        if isinstance(value, Tensor) and value.shape[:1] == (batch_size,)
        else value
        for name, value in values.items()
    }


def _without_empty_columns(tokens: Tensor, pad: int) -> Tensor:
    """Cut the columns of padding before the first token and after the last one; one column stays at least."""
    used = tokens.ne(pad).any(dim=0)
    columns = torch.arange(used.numel(), device=used.device)
    bounds = torch.stack(
        [columns.masked_fill(~used, used.numel()).min(), columns.masked_fill(~used, 0).max()]
    )
    first, last = bounds.tolist()  # on a GPU, one wait for both
    return tokens[:, min(first, last) : last + 1]
