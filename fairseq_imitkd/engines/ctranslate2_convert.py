"""A fairseq transformer as a CTranslate2 model, made from the loaded model: no checkpoint is read by another package."""

import copy
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from fairseq.models import BaseFairseqModel
from fairseq.models.transformer import TransformerEncoder, TransformerEncoderBase
from fairseq.modules import MultiheadAttention, gelu, gelu_accurate
from fairseq.modules.transformer_layer import TransformerEncoderLayer, TransformerEncoderLayerBase
from torch import nn

from fairseq_imitkd.data.files import partial
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.rollout import fast_transformer
from fairseq_imitkd.rollout.beam import softmax_of_its_logits

PACKAGES = ("ctranslate2",)
MISSING = "needs CTranslate2: pip install 'fairseq-imitkd[fast]'"
PAD = "<blank>"  # CTranslate2's name for it
QUANTIZATIONS = (
    "float32",
    "int8",
    "int8_float32",
    "int8_float16",
    "int8_bfloat16",
    "int16",
    "float16",
    "bfloat16",
)
ACTIVATIONS = {F.relu: "RELU", gelu: "GELU", gelu_accurate: "GELUTanh"}


def library() -> Any:
    """The package, which is not installed unless asked for.

    Raises:
        ImportError: it is not there.
    """
    import ctranslate2
    import ctranslate2.converters.fairseq
    import ctranslate2.specs

    return ctranslate2


def why_not(model: BaseFairseqModel) -> str | None:
    """Why a model is none that CTranslate2 computes, in a few words; None when it is.

    It computes stock transformers, BART among them: post-norm or pre-norm, learned, sinusoidal or no positions, tied or untied
    embeddings of any width, layer-norm embeddings, layers of any number, width and heads on either side.
    """
    parts: Any = model
    if not hasattr(model, "encoder") or not hasattr(model, "decoder"):
        return "it is no encoder-decoder model"
    reason = fast_transformer.why_not(model) or _why_not_encoder(parts.encoder)
    if reason is not None:
        return reason
    if not softmax_of_its_logits(model):
        return "its probabilities are not the softmax of its logits"
    if type(parts.decoder.output_projection) is not nn.Linear:
        return f"its output projection is a {type(parts.decoder.output_projection).__name__}"
    for name, side in (("encoder", parts.encoder), ("decoder", parts.decoder)):
        if len({layer.self_attn.num_heads for layer in side.layers}) != 1:
            return f"its {name} has layers of different heads, or none"
        if any(layer.activation_fn not in ACTIVATIONS for layer in side.layers):
            return "its --activation-fn is not relu, gelu or gelu_accurate"
        if side.layer_norm is not None and not side.layers[0].normalize_before:
            return f"its {name} is post-norm with one more layer norm at the end"
        if type(side.embed_tokens) is not nn.Embedding:
            return f"its {name}'s embedding is a {type(side.embed_tokens).__name__}"
    if any(layer.encoder_attn.num_heads != layer.self_attn.num_heads for layer in parts.decoder.layers):
        return "its decoder's cross-attention has other heads than its self-attention"
    return None


def _why_not_encoder(encoder: Any) -> str | None:
    """As :func:`~fairseq_imitkd.rollout.fast_transformer.why_not` of the decoder."""
    if type(encoder) not in (TransformerEncoderBase, TransformerEncoder):
        return f"its encoder is a {type(encoder).__name__}"
    if encoder.quant_noise is not None:
        return "it has quantisation noise"
    for layer in encoder.layers:
        if type(layer) not in (TransformerEncoderLayerBase, TransformerEncoderLayer):
            return f"an encoder layer is a {type(layer).__name__}"
        attention = layer.self_attn
        if (
            type(attention) is not MultiheadAttention
            or attention.bias_k is not None
            or attention.add_zero_attn
        ):
            return "its encoder's attention is not fairseq's own"
        projections = (
            attention.q_proj,
            attention.k_proj,
            attention.v_proj,
            attention.out_proj,
            layer.fc1,
            layer.fc2,
        )
        if any(type(projection) is not nn.Linear for projection in projections):
            return "an encoder's projection is no plain linear layer"
    if any(module._forward_hooks or module._forward_pre_hooks for module in encoder.modules()):
        return "something is hooked to its modules"
    return None


def convert(
    model: BaseFairseqModel, source: Dictionary, target: Dictionary, folder: Path, quantization: str
) -> None:
    """Write a model that :func:`why_not` has no objection to: whole or not at all, also when it is killed.

    Args:
        model: on the CPU, in float32.
        source, target: its dictionaries.
        folder: to make. If another process has made it meanwhile, it is left as it is.
        quantization: of its weights, one of :data:`QUANTIZATIONS`.
    """
    spec = _spec(copy.deepcopy(model))  # quantising writes into the weights that it is given
    spec.register_source_vocabulary(vocabulary(source))
    spec.register_target_vocabulary(vocabulary(target))
    spec.config.decoder_start_token = spec.config.eos_token
    spec.config.add_source_eos = True
    spec.validate()
    spec.optimize(quantization=quantization)
    begun = partial(folder)
    begun.mkdir(parents=True)
    spec.save(str(begun))
    try:
        begun.rename(folder)
    except OSError:
        shutil.rmtree(begun)
        if not folder.is_dir():
            raise


def _spec(model: Any) -> Any:
    ctranslate2 = library()
    specs, fill = ctranslate2.specs.transformer_spec, ctranslate2.converters.fairseq

    def settings(side: Any) -> dict[str, Any]:
        first = side.layers[0]
        return {
            "num_layers": len(side.layers),
            "num_heads": first.self_attn.num_heads,
            "pre_norm": first.normalize_before,
            "no_final_norm": side.layer_norm is None,
            "activation": ctranslate2.specs.Activation[ACTIVATIONS[first.activation_fn]],
            "layernorm_embedding": side.layernorm_embedding is not None,
        }

    projections = (model.decoder.project_in_dim, model.decoder.project_out_dim)
    projected = projections != (None, None)
    encoder = specs.TransformerEncoderSpec(**settings(model.encoder))
    decoder = specs.TransformerDecoderSpec(**settings(model.decoder), project_in_out=projected)
    spec = specs.TransformerSpec(encoder, decoder)
    with torch.no_grad():
        for side in (model.encoder, model.decoder):
            if side.embed_positions is None:  # CTranslate2 would make sinusoids of its own
                width = side.layers[0].self_attn.embed_dim
                side.embed_positions = nn.Embedding.from_pretrained(
                    torch.zeros(side.max_positions() + 1, width), padding_idx=0
                )
        if projected:  # CTranslate2 has both or none
            model.decoder.project_in_dim, model.decoder.project_out_dim = (
                each or _identity(model.decoder) for each in projections
            )
        fill.set_transformer_encoder(spec.encoder, model.encoder)
        fill.set_transformer_decoder(spec.decoder, model.decoder)
    return spec


def _identity(decoder: Any) -> nn.Linear:
    linear = nn.Linear(decoder.embed_dim, decoder.embed_dim, bias=False)
    nn.init.eye_(linear.weight)
    return linear


def vocabulary(dictionary: Dictionary) -> list[str]:
    """Each symbol, by number.

    Raises:
        UsageError: two are the same to CTranslate2.
    """
    symbols = [
        PAD if number == dictionary.pad() else symbol for number, symbol in enumerate(dictionary.symbols)
    ]
    [symbol, times] = Counter(symbols).most_common(1)[0]
    if times > 1:
        raise UsageError(
            f"a dictionary holds the symbol '{symbol}' twice, which CTranslate2 can't tell apart"
        )
    return symbols
