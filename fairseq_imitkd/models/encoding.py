"""Encode a batch for decoding or scoring."""

from typing import Any

import torch
from fairseq.models.transformer import TransformerEncoder, TransformerEncoderBase
from torch import Tensor

from fairseq_imitkd.models.tagged import TaggedModel


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
