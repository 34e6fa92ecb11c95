"""What fairseq's models let a student or a teacher do, and under which names."""

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


def unwrapped(model: torch.nn.Module) -> BaseFairseqModel:
    """The student inside its distributed wrappers: the wrapped one may run only once a step."""
    while not isinstance(model, BaseFairseqModel) and hasattr(model, "module"):
        model = cast(torch.nn.Module, model.module)
    return cast(BaseFairseqModel, model)


def why_not_student(model: BaseFairseqModel) -> str | None:
    """Why a model can't be distilled into, as one line; None when it can."""
    name = type(model).__name__
    if isinstance(model, FairseqNATModel):
        return (
            f"--arch builds a {name}, which does not write from left to right: choose another encoder-decoder"
        )
    if not hasattr(model, "encoder") or not isinstance(
        getattr(model, "decoder", None), FairseqIncrementalDecoder
    ):
        return f"--arch builds a {name}, which has no incremental decoder to write rollouts: choose another encoder-decoder"
    if getattr(model.decoder, "adaptive_softmax", None) is not None:
        return "--adaptive-softmax-cutoff leaves no logits over the whole vocabulary to compare with the teacher: leave it out"
    return None


def placement(student: BaseFairseqModel) -> tuple[torch.device, torch.dtype]:
    """Where the student is, and the precision in which it computes."""
    weights = next(student.parameters())
    half_by_autocast = torch.is_autocast_enabled("cuda") and weights.is_cuda
    return weights.device, torch.get_autocast_dtype("cuda") if half_by_autocast else weights.dtype


def output_projection(decoder: Any) -> tuple[Tensor, Tensor | None] | None:
    """The matrix ``(V, D)`` and bias ``(V,)`` with which a decoder makes logits of its hidden states.

    None when it is not known to be such a matrix and nothing else: then its logits can only be had whole.
    """
    own = type(decoder)
    stock = (
        getattr(own, "output_layer", None) is kind.output_layer and own.forward is kind.forward
        for kind in (TransformerDecoderBase, LSTMDecoder, RecurrentDecoder)
    )
    if (
        not any(stock)
        or decoder.adaptive_softmax is not None
        or {"output_layer", "forward"} & vars(decoder).keys()
    ):
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
    """Inside, a decoder with an :func:`output_projection` gives its hidden states in place of logits.

    So the model around it runs as ever, distributed wrappers included: they allow no other way in.
    """
    decoder.output_layer = _unchanged
    try:
        yield
    finally:
        del decoder.output_layer


def _unchanged(features: Tensor) -> Tensor:
    return features
