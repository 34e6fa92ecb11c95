"""A model with language tags that reads and writes sentences without tags.

A multilingual model was trained on sentences with symbols that tell the languages. :class:`TaggedModel` adds
them where such a model reads, and leaves out what it writes where a tag is forced. So it is used as any other
model: the data, the student and all translations are without tags, and each position of a target means the
same for student and teacher.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.models import (
    BaseFairseqModel,
    FairseqDecoder,
    FairseqEncoder,
    FairseqEncoderDecoderModel,
    FairseqIncrementalDecoder,
)
from torch import Tensor

from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.errors import UsageError


@dataclass(frozen=True)
class Tags:
    """Where a model's tags stand, in indices of its dictionaries.

    Args:
        source_before: symbols before each source.
        source_end: symbols in place of a source's EOS: the EOS alone, with a tag, or replaced by a tag.
        target_start: the decoder's first inputs in place of the EOS, one or more. The model chooses the
            symbols that follow them.
    """

    source_before: tuple[int, ...]
    source_end: tuple[int, ...]
    target_start: tuple[int, ...]

    @property
    def added(self) -> tuple[int, int]:
        """How much longer a source and a target become."""
        return len(self.source_before) + len(self.source_end) - 1, len(self.target_start) - 1

    def sources(self, net_input: dict[str, Any], pad: int) -> dict[str, Any]:
        """Add the tags to sources.

        Args:
            net_input: the encoder's arguments for ``B`` sentences that end in an EOS, padded on either side.
            pad: index of the padding symbol.
        """
        tokens: Tensor = net_input["src_tokens"]  # (B, S)
        before, end = (tokens.new_tensor(part) for part in (self.source_before, self.source_end))
        is_token = tokens.ne(pad)
        lengths = is_token.sum(dim=-1, keepdim=True)
        first = is_token.int().argmax(dim=-1, keepdim=True)
        tagged = tokens.new_full((tokens.size(0), tokens.size(1) + self.added[0]), pad)
        tagged[:, len(before) : len(before) + tokens.size(1)] = tokens
        for start, part in ((first, before), (first + len(before) + lengths - 1, end)):
            places = start + torch.arange(len(part), device=tokens.device)
            tagged.scatter_(1, places, part.expand(tokens.size(0), -1))
        longer = {**net_input, "src_tokens": tagged}
        if net_input.get("src_lengths") is not None:
            longer["src_lengths"] = net_input["src_lengths"] + self.added[0]
        return longer

    def prefixes(self, prev_output_tokens: Tensor) -> Tensor:
        """Replace the EOS that decoder inputs ``(B, T)`` begin with, ``(B, T + added)``."""
        start = prev_output_tokens.new_tensor(self.target_start).expand(prev_output_tokens.size(0), -1)
        return torch.cat([start, prev_output_tokens[:, 1:]], dim=1)


class FirstInputTags(Tags):
    """The batches themselves have tags: each sentence's is its first decoder input, and may differ.

    The model reads ``target_start`` before it.
    """

    @property
    def added(self) -> tuple[int, int]:
        """How much longer a source and a target become."""
        return 0, len(self.target_start)

    def sources(self, net_input: dict[str, Any], pad: int) -> dict[str, Any]:
        """Return sources as they are; they have their tags."""
        return net_input

    def prefixes(self, prev_output_tokens: Tensor) -> Tensor:
        """Put the start before decoder inputs ``(B, T)``, ``(B, added + T)``."""
        start = prev_output_tokens.new_tensor(self.target_start).expand(prev_output_tokens.size(0), -1)
        return torch.cat([start, prev_output_tokens], dim=1)


def check_without_tags(
    tags: Tags, pair: LanguagePair, *, sources: Sequence[Tensor], targets: Sequence[Tensor]
) -> None:
    """Refuse sentences with language tags, which a :class:`TaggedModel` would then read twice.

    Args:
        tags: the model's.
        pair: the dictionaries of the sentences.
        sources, targets: ``(S,)`` and ``(T,)`` tokens each, with or without padding.

    Raises:
        UsageError: each source, or each target, holds one of the tags.
    """
    for side, dictionary, sentences, added in (
        ("source", pair.source_dictionary, sources, tags.source_before + tags.source_end),
        ("target", pair.target_dictionary, targets, tags.target_start),
    ):
        for tag in added:
            if tag == dictionary.eos() or not len(sentences):
                continue
            if all(bool(sentence.eq(tag).any()) for sentence in sentences):
                raise UsageError(
                    f"the {side}s of DATA hold the language tag {dictionary[tag]}, which the model adds "
                    "itself; binarise text without it (imitkd-encode without --tags)"
                )


class TaggedEncoder(FairseqEncoder):
    """An encoder that gets sources without tags.

    Args:
        encoder: the model's own encoder, over a dictionary with the tags.
        tags: where the tags stand.
    """

    def __init__(self, encoder: FairseqEncoder, tags: Tags):
        super().__init__(encoder.dictionary)
        self.inner, self.tags = encoder, tags

    def forward(self, src_tokens: Tensor, src_lengths: Tensor | None = None, **others: Any) -> Any:
        """Encode sources ``(B, S)`` with their tags."""
        net_input = {"src_tokens": src_tokens, "src_lengths": src_lengths}
        tagged = self.tags.sources(net_input, self.dictionary.pad())
        return self.inner(tagged["src_tokens"], src_lengths=tagged["src_lengths"], **others)

    def reorder_encoder_out(self, encoder_out: Any, new_order: Tensor) -> Any:
        """See :class:`fairseq.models.FairseqEncoder`."""
        return self.inner.reorder_encoder_out(encoder_out, new_order)

    def max_positions(self) -> int:
        """The longest source without its tags."""
        return self.inner.max_positions() - self.tags.added[0]


class TaggedDecoder(FairseqIncrementalDecoder):
    """A decoder that gets prefixes without tags, and returns logits for the positions of these.

    Args:
        decoder: the model's own decoder, over a dictionary with the tags.
        tags: where the tags stand.
    """

    def __init__(self, decoder: FairseqDecoder, tags: Tags):
        super().__init__(decoder.dictionary)
        self.inner, self.tags = decoder, tags

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Any = None,
        incremental_state: Any = None,
        **others: Any,
    ) -> Any:
        """Return logits, or features, at all positions ``(B, T)``; with incremental state, at the last."""
        tokens, forced = self.tags.prefixes(prev_output_tokens), self.tags.added[1]
        if incremental_state is None:
            output, *more = self.inner(tokens, encoder_out=encoder_out, **others)
            return output[:, forced:], *more
        read = range(1, forced + 1) if prev_output_tokens.size(1) == 1 else ()
        for width in (*read, tokens.size(1)):  # a transformer reads one position at a time
            result = self.inner(
                tokens[:, :width], encoder_out=encoder_out, incremental_state=incremental_state, **others
            )
        return result

    def max_positions(self) -> int:
        """The longest target without its forced symbols."""
        return self.inner.max_positions() - self.tags.added[1]


class TaggedModel(FairseqEncoderDecoderModel):
    """An encoder-decoder model with language tags, which gets and writes sentences without them.

    Args:
        model: the model, over dictionaries with the tags.
        tags: where the tags stand.
    """

    def __init__(self, model: Any, tags: Tags):
        super().__init__(TaggedEncoder(model.encoder, tags), TaggedDecoder(model.decoder, tags))
        self.inner, self.tags = model, tags


def reading_eos_first(model: Any) -> TaggedModel:
    """Return a model that reads an EOS before the first decoder input of a batch, which is a language tag.

    So fairseq's multilingual models read targets that begin with their tag (``--decoder-langtok``).
    """
    eos = model.decoder.dictionary.eos()
    return TaggedModel(model, FirstInputTags((), (model.encoder.dictionary.eos(),), (eos,)))


def untagged(model: Any) -> Any:
    """Return the model inside a :class:`TaggedModel`, or the model itself if there is none."""
    return model.inner if isinstance(model, TaggedModel) else model


def own_decoder(decoder: Any) -> Any:
    """Return the decoder that computes logits: the model's own, without the addition of tags."""
    return decoder.inner if isinstance(decoder, TaggedDecoder) else decoder


def tags_of(model: BaseFairseqModel) -> Tags | None:
    """Return the tags that are added around a model; None without any."""
    return model.tags if isinstance(model, TaggedModel) else None
