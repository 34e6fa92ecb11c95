"""Encode a batch for decoding or scoring."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from fairseq.models import FairseqEncoderDecoderModel
from fairseq.models.transformer import TransformerEncoder, TransformerEncoderBase
from torch import Tensor

from fairseq_imitkd.models.logits import full_precision
from fairseq_imitkd.models.tagged import TaggedModel, untagged


def encode(model: Any, net_input: dict[str, Any], *, samples: int = 1) -> dict[str, list[Tensor]]:
    """Return fairseq's encoder output, as ``encoder.forward_torchscript`` does.

    Before each layer, fairseq's transformer asks a GPU whether any sentence is padded, and waits for the
    answer:
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/models/transformer/transformer_encoder.py#L222-L234
    On a GPU, this function always passes the mask instead.

    Args:
        model: encoder-decoder in evaluation mode.
        net_input: the encoder's arguments for ``B`` sentences.
        samples: number of adjacent rows per sentence in the result.
    """
    if isinstance(model, TaggedModel):
        tagged = model.tags.sources(net_input, model.encoder.dictionary.pad())
        return encode(model.inner, tagged, samples=samples)
    encoder, tokens = model.encoder, net_input["src_tokens"]
    if tokens.is_cuda and type(encoder) in (TransformerEncoderBase, TransformerEncoder):
        encoded = _without_waits(encoder, tokens)
    else:
        encoded = encoder.forward_torchscript(net_input)
    if samples > 1:
        sentences = torch.arange(tokens.size(0), device=tokens.device)
        rows = sentences.view(-1, 1).expand(-1, samples).reshape(-1)
        encoded = encoder.reorder_encoder_out(encoded, rows)
    return encoded


def _without_waits(encoder: Any, tokens: Tensor) -> dict[str, list[Tensor]]:
    padding = tokens.eq(encoder.padding_idx)  # (B, S)
    x, embedding = encoder.forward_embedding(tokens, None)
    x = x.masked_fill(padding.unsqueeze(-1), 0.0).transpose(0, 1)  # (S, B, D)
    for layer in encoder.layers:
        x = layer(x, encoder_padding_mask=padding)
        if isinstance(x, tuple):
            x = x[0]
    if encoder.layer_norm is not None:
        x = encoder.layer_norm(x)
    lengths = padding.logical_not().sum(dim=1, dtype=torch.int32).reshape(-1, 1).contiguous()
    return {
        "encoder_out": [x],
        "encoder_padding_mask": [padding],
        "encoder_embedding": [embedding],
        "encoder_states": [],
        "fc_results": [],
        "src_tokens": [],
        "src_lengths": [lengths],
    }


def encoder_width(model: Any) -> int | None:
    """Return the number of features ``D`` of an encoder's outputs.

    Return None for a model without such outputs, as a language model, or with others, as a convolutional one.
    """
    model = untagged(model)
    layers = getattr(getattr(model, "decoder", None), "layers", None) or [None]
    of_attention = getattr(getattr(layers[0], "encoder_attn", None), "kdim", None)
    if of_attention is not None:
        return int(of_attention)
    if not isinstance(model, FairseqEncoderDecoderModel):
        return None
    found = [getattr(model.encoder, name, None) for name in ("output_units", "output_dim")]
    return next((int(width) for width in found if isinstance(width, int)), None)


@contextmanager
def kept_outputs(module: torch.nn.Module | None) -> Iterator[list[Any]]:
    """Yield a list that gets what a part of a model returns whenever it runs; None keeps nothing.

    So the outputs are those of the one forward pass that distributed wrappers allow.
    """
    found: list[Any] = []
    if module is None:
        yield found
        return
    hook = module.register_forward_hook(lambda _module, _inputs, output: found.append(output))
    try:
        yield found
    finally:
        hook.remove()


def mean_over_time(encoder_out: Any) -> Tensor:
    """Return sentence vectors: the mean of an encoder's outputs over time, without padding.

    Args:
        encoder_out: what a fairseq encoder returns for ``B`` sentences of ``S`` positions.

    Returns:
        ``(B, D)``, in float32 or, for outputs in float64, in float64.
    """
    if not isinstance(encoder_out, Mapping):  # LSTMs: outputs, states, cells, padding
        outputs, padding = encoder_out[0], encoder_out[3]
    elif isinstance(encoder_out["encoder_out"], Tensor):  # s2t_berard
        outputs, padding = encoder_out["encoder_out"], encoder_out["encoder_padding_mask"]
    else:
        masks = encoder_out["encoder_padding_mask"]
        outputs, padding = encoder_out["encoder_out"][0], masks[0].t() if masks else None
    outputs = full_precision(outputs)  # (S, B, D)
    if padding is None:
        return outputs.mean(dim=0)
    counted = ~padding.to(torch.bool).unsqueeze(-1)  # (S, B, 1)
    return outputs.masked_fill(~counted, 0.0).sum(dim=0) / counted.sum(dim=0).clamp(min=1)
