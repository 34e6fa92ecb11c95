"""Access to the parts of fairseq's models that distillation needs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from fairseq.models import BaseFairseqModel, FairseqIncrementalDecoder
from fairseq.models.lstm import LSTMDecoder
from fairseq.models.nat import FairseqNATModel
from fairseq.models.transformer import TransformerDecoderBase
from torch import Tensor, nn

from fairseq_imitkd.models.recurrent import RecurrentDecoder
from fairseq_imitkd.models.tagged import own_decoder


def unwrapped(model: torch.nn.Module) -> BaseFairseqModel:
    """Return the student without its distributed wrappers, which allow only one forward pass per step."""
    while not isinstance(model, BaseFairseqModel) and hasattr(model, "module"):
        model = cast(torch.nn.Module, model.module)
    return cast(BaseFairseqModel, model)


def unsupported_reason(model: BaseFairseqModel) -> str | None:
    """Return why a model can't be a student, as one line, or None if it can."""
    name = type(model).__name__
    if isinstance(model, FairseqNATModel):
        return (
            f"--arch builds a {name}, which does not decode from left to right: choose another "
            "encoder-decoder"
        )
    if not hasattr(model, "encoder") or not isinstance(
        getattr(model, "decoder", None), FairseqIncrementalDecoder
    ):
        return (
            f"--arch builds a {name}, which has no incremental decoder to write rollouts: "
            "choose another encoder-decoder"
        )
    if getattr(model.decoder, "adaptive_softmax", None) is not None:
        return (
            "--adaptive-softmax-cutoff leaves no logits over the whole vocabulary to compare with the "
            "teacher: leave it out"
        )
    return None


def placement(student: BaseFairseqModel) -> tuple[torch.device, torch.dtype]:
    """Return the student's device and the precision of its computations."""
    weights = next(student.parameters())
    half_by_autocast = torch.is_autocast_enabled("cuda") and weights.is_cuda
    return weights.device, torch.get_autocast_dtype("cuda") if half_by_autocast else weights.dtype


def output_projection(decoder: Any) -> tuple[Tensor, Tensor | None] | None:
    """Return the matrix ``(V, D)`` and bias ``(V,)`` that turn a decoder's hidden states into logits.

    Return None if the decoder may compute its logits in another way. Then they are available only as a whole.
    """
    decoder = own_decoder(decoder)
    own = type(decoder)
    is_stock = any(
        getattr(own, "output_layer", None) is kind.output_layer and own.forward is kind.forward
        for kind in (TransformerDecoderBase, LSTMDecoder, RecurrentDecoder)
    )
    is_replaced = {"output_layer", "forward"} & vars(decoder).keys()
    if not is_stock or is_replaced or decoder.adaptive_softmax is not None:
        return None
    if isinstance(decoder, LSTMDecoder):
        layer = decoder.embed_tokens if decoder.share_input_output_embed else decoder.fc_out
    else:
        layer = decoder.output_projection
    if (
        type(layer) not in (nn.Linear, nn.Embedding)
        or layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
    ):
        return None
    return layer.weight, getattr(layer, "bias", None)


@contextmanager
def features_for_logits(decoder: Any) -> Iterator[None]:
    """Make a decoder that has an :func:`output_projection` return hidden states instead of logits.

    So the whole model can run as usual, including distributed wrappers, which offer no other way to get
    hidden states.
    """
    decoder = own_decoder(decoder)
    decoder.output_layer = _unchanged
    try:
        yield
    finally:
        del decoder.output_layer


def as_logits(decoder: Any, output: Tensor) -> Tensor:
    """Return logits ``(..., V)`` for a decoder's output, which is hidden states in
    :func:`features_for_logits`.
    """
    decoder = own_decoder(decoder)
    if vars(decoder).get("output_layer") is not _unchanged:
        return output
    logits: Tensor = type(decoder).output_layer(decoder, output)
    return logits


def _unchanged(features: Tensor) -> Tensor:
    return features
