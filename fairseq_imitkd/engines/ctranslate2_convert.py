"""Conversion of a loaded fairseq transformer to a CTranslate2 model. CTranslate2 never reads a checkpoint."""

import copy
import json
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
from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.models.layer_drop import layers_of
from fairseq_imitkd.models.tagged import TaggedModel
from fairseq_imitkd.rollout import fast_transformer
from fairseq_imitkd.rollout.beam import has_softmax_output

PACKAGES = ("ctranslate2",)
PAD = "<blank>"  # CTranslate2's name of the padding symbol
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
ACTIVATIONS = {F.relu: "RELU", gelu: "GELU", gelu_accurate: "GELUTanh", F.silu: "SWISH"}


def library() -> Any:
    """Import CTranslate2, an optional dependency.

    Raises:
        ImportError: CTranslate2 is not installed.
    """
    import ctranslate2
    import ctranslate2.converters.fairseq
    import ctranslate2.specs

    return ctranslate2


def unsupported_reason(model: BaseFairseqModel) -> str | None:
    """Return in a few words why CTranslate2 cannot compute a model; None if it can.

    CTranslate2 computes fairseq's transformers, BART among them: post-norm or pre-norm; learned, sinusoidal
    or no positions; tied or untied embeddings of any width; layer-normalised embeddings; any number, width
    and heads of layers on either side.
    """
    parts: Any = model
    if not hasattr(model, "encoder") or not hasattr(model, "decoder"):
        return "it is not an encoder-decoder model"
    if isinstance(model, TaggedModel):
        return "it needs language tags, which are not given to CTranslate2 here"
    reason = fast_transformer.unsupported_reason(model) or _unsupported_encoder_reason(parts.encoder)
    if reason is not None:
        return reason
    if not has_softmax_output(model):
        return "its probabilities are not the softmax of its logits"
    if type(parts.decoder.output_projection) is not nn.Linear:
        return f"its output projection is a {type(parts.decoder.output_projection).__name__}"
    for name, side in (("encoder", parts.encoder), ("decoder", parts.decoder)):
        if len({layer.self_attn.num_heads for layer in layers_of(side)}) != 1:
            return f"its {name} has no layers, or layers with different numbers of heads"
        if any(layer.activation_fn not in ACTIVATIONS for layer in layers_of(side)):
            return "its --activation-fn is not relu, gelu, gelu_accurate or swish"
        if side.layer_norm is not None and not side.layers[0].normalize_before:
            return f"its {name} is post-norm with one more layer norm at the end"
        if type(side.embed_tokens) is not nn.Embedding:
            return f"its {name}'s embedding is a {type(side.embed_tokens).__name__}"
    if any(layer.encoder_attn.num_heads != layer.self_attn.num_heads for layer in layers_of(parts.decoder)):
        return "its decoder's cross-attention and self-attention have different numbers of heads"
    return None


def _unsupported_encoder_reason(encoder: Any) -> str | None:
    """Check the encoder as ``fast_transformer`` checks the decoder."""
    if type(encoder) not in (TransformerEncoderBase, TransformerEncoder):
        return f"its encoder is a {type(encoder).__name__}"
    if encoder.quant_noise is not None:
        return "it has quantisation noise"
    for layer in layers_of(encoder):
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
            return "a projection of its encoder is not a plain linear layer"
    if any(module._forward_hooks or module._forward_pre_hooks for module in encoder.modules()):
        return "its modules have hooks"
    return None


def convert(model: BaseFairseqModel, languages: LanguagePair, folder: Path, *, quantization: str) -> None:
    """Write a model for which :func:`unsupported_reason` is None.

    The folder appears whole or not at all, even if the process is killed. If another process has made it in
    the meantime, it stays as it is.

    Args:
        model: model on the CPU, in float32.
        languages: the language pair with its dictionaries.
        folder: folder to create.
        quantization: type of the stored weights, one of :data:`QUANTIZATIONS`.
    """
    spec = _spec(copy.deepcopy(model))  # quantisation overwrites the weights
    spec.register_source_vocabulary(vocabulary(languages.source_dictionary))
    spec.register_target_vocabulary(vocabulary(languages.target_dictionary))
    spec.config.decoder_start_token = spec.config.eos_token
    spec.config.add_source_eos = True
    spec.validate()
    spec.optimize(quantization=quantization)
    unfinished = partial(folder)
    unfinished.mkdir(parents=True)
    spec.save(str(unfinished))
    try:
        unfinished.rename(folder)
    except OSError:
        shutil.rmtree(unfinished)
        if not folder.is_dir():
            raise


def _spec(model: Any) -> Any:
    """Return CTranslate2's description of the model, which shares the model's weights."""
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
            if side.embed_positions is None:  # without a table, CTranslate2 adds sinusoidal positions
                side.embed_positions = _zero_positions(side)
        if projected:  # CTranslate2 has both projections or neither
            model.decoder.project_in_dim, model.decoder.project_out_dim = (
                each or _identity(model.decoder) for each in projections
            )
        fill.set_transformer_encoder(spec.encoder, model.encoder)
        fill.set_transformer_decoder(spec.decoder, model.decoder)
    return spec


def _zero_positions(side: Any) -> nn.Embedding:
    table = torch.zeros(side.max_positions() + 1, side.layers[0].self_attn.embed_dim)
    return nn.Embedding.from_pretrained(table, padding_idx=0)


def _identity(decoder: Any) -> nn.Linear:
    linear = nn.Linear(decoder.embed_dim, decoder.embed_dim, bias=False)
    nn.init.eye_(linear.weight)
    return linear


def check_vocabulary(folder: Path, pair: LanguagePair) -> None:
    """Refuse dictionaries that are not those of a converted model, which would read other words.

    Args:
        folder: folder that :func:`convert` wrote.
        pair: the language pair with its dictionaries.

    Raises:
        ValueError: the model has other symbols.
    """
    for side, language, dictionary in (
        ("source", pair.source, pair.source_dictionary),
        ("target", pair.target, pair.target_dictionary),
    ):
        names = (f"{side}_vocabulary.json", "shared_vocabulary.json")
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        if path is not None and json.loads(path.read_text("utf-8")) != vocabulary(dictionary):
            raise ValueError(f"its {path.name} has other symbols than dict.{language}.txt")


def vocabulary(dictionary: Dictionary) -> list[str]:
    """Return CTranslate2's symbols, in the order of the dictionary's indices.

    Raises:
        UsageError: two symbols have the same name in CTranslate2.
    """
    symbols = [
        PAD if index == dictionary.pad() else symbol for index, symbol in enumerate(dictionary.symbols)
    ]
    [symbol, times] = Counter(symbols).most_common(1)[0]
    if times > 1:
        raise UsageError(
            f"a dictionary holds the symbol '{symbol}' twice, so CTranslate2 can't tell the two apart"
        )
    return symbols
