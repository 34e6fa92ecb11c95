"""Describes a fairseq model as a model of ``transformers``: its family, its configuration, its weights."""

from dataclasses import dataclass
from typing import Any

from fairseq import utils
from fairseq.models import BaseFairseqModel
from fairseq.modules import LearnedPositionalEmbedding, SinusoidalPositionalEmbedding
from torch import Tensor

from fairseq_imitkd.engines import ctranslate2_convert
from fairseq_imitkd.huggingface.config import ModelConfig, Side
from fairseq_imitkd.huggingface.convert import marian_sinusoids
from fairseq_imitkd.huggingface.families import ACTIVATIONS, FAMILIES
from fairseq_imitkd.huggingface.vocabulary import BOS, EOS, PAD
from fairseq_imitkd.models.layer_drop import layers_of

_OFFSET = PAD + 1  # rows of a table before the first position
_SAME = 1e-5  # difference of positions that are the same


class Inexpressible(Exception):
    """No model of ``transformers`` computes what a student computes. The message says why, in a few words."""


@dataclass(frozen=True)
class Described:
    """A fairseq model as a model of ``transformers``.

    Args:
        config: its configuration.
        state: its weights by fairseq's names, with the tables of positions that the family has.
        notes: what the user should know.
    """

    config: ModelConfig
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def describe(model: BaseFairseqModel, pair: tuple[str, str], forced_first: int | None) -> Described:
    """Describe a model on the CPU and in evaluation mode.

    Args:
        model: the model.
        pair: its languages.
        forced_first: index of the tag that each target begins with; None if it is none.

    Raises:
        Inexpressible: ``transformers`` has no such model.
    """
    reason = ctranslate2_convert.unsupported_reason(model)
    if reason is not None:
        raise Inexpressible(reason)
    parts: Any = model
    encoder, decoder = parts.encoder, parts.decoder
    width = _width(encoder, decoder)
    sides = [_side(name, part) for name, part in (("encoder", encoder), ("decoder", decoder))]
    longest = min(model.max_positions())
    state = {key: value.detach().float() for key, value in model.state_dict().items()}
    kind, tables = _family(encoder, decoder, longest=longest, width=width)
    family = FAMILIES[kind]
    if family.vocabularies[1] is None and sides[0].vocabulary != sides[1].vocabulary:
        raise Inexpressible(
            f"{family.title} has one vocabulary, but the student has two (train with --joined-dictionary)"
        )
    for name, table in zip(("encoder", "decoder"), tables, strict=True):
        state.pop(f"{name}.embed_positions.weight", None)
        if family.positions != "fairseq":
            state[f"{name}.embed_positions.weight"] = table
    limits = model.max_positions()
    notes = (
        (f"sources and targets have at most {longest} tokens, as the shorter side of the student",)
        if limits[0] != limits[1]
        else ()
    )
    config = ModelConfig(
        kind=kind,
        family=family,
        width=width,
        encoder=sides[0],
        decoder=sides[1],
        positions=longest,
        activation=_activation(encoder, decoder),
        scale=_scale(encoder, decoder, width=width),
        tied=False,
        dropouts=_dropouts(encoder),
        pad=PAD,
        eos=EOS,
        bos=BOS,
        start=EOS,
        forced_first=forced_first,
        languages=pair,
    )
    return Described(config, state, notes)


def _width(encoder: Any, decoder: Any) -> int:
    """Return the width that all parts have."""
    width = encoder.embed_tokens.embedding_dim
    widths = {
        width,
        decoder.embed_tokens.embedding_dim,
        decoder.output_projection.in_features,
        *(layer.self_attn.embed_dim for side in (encoder, decoder) for layer in layers_of(side)),
    }
    if len(widths) > 1:
        raise Inexpressible(f"its parts have different widths, {', '.join(map(str, sorted(widths)))}")
    if width % 2:
        raise Inexpressible(f"its width, {width}, is odd")
    return int(width)


def _side(name: str, part: Any) -> Side:
    layers = layers_of(part)
    ffns = {layer.fc1.out_features for layer in layers}
    if len(ffns) > 1:
        raise Inexpressible(f"the layers of its {name} have different sizes")
    return Side(len(layers), layers[0].self_attn.num_heads, ffns.pop(), part.embed_tokens.num_embeddings)


def _activation(encoder: Any, decoder: Any) -> str:
    """Return the name of the activation that all layers have."""
    names = {utils.get_activation_fn(name): name for name in dict.fromkeys(ACTIVATIONS.values())}
    found = {names.get(layer.activation_fn) for side in (encoder, decoder) for layer in layers_of(side)}
    name = found.pop()
    if name is None or found:
        raise Inexpressible("its sides have different activations")
    return name


def _scale(encoder: Any, decoder: Any, *, width: int) -> bool:
    """Return whether embeddings are multiplied with the square root of their size."""
    scales = {float(side.embed_scale) for side in (encoder, decoder)}
    scale = scales.pop()
    if scales:
        raise Inexpressible("its sides scale their embeddings differently")
    return scale != 1.0 or width == 1


def _dropouts(encoder: Any) -> dict[str, float]:
    layer = layers_of(encoder)[0]
    rates = {
        "dropout": layer.dropout_module.p,
        "attention_dropout": layer.self_attn.dropout_module.p,
        "activation_dropout": layer.activation_dropout_module.p,
    }
    return {name: float(rate) for name, rate in rates.items()}


def _family(encoder: Any, decoder: Any, *, longest: int, width: int) -> tuple[str, list[Tensor]]:
    """Return the family whose structure a model has, and the tables of positions of both sides."""
    structures = {
        (
            layers_of(side)[0].normalize_before,
            side.layernorm_embedding is not None,
            side.layer_norm is not None,
        )
        for side in (encoder, decoder)
    }
    if len(structures) > 1:
        raise Inexpressible("its encoder and its decoder normalise at different places")
    [(pre_norm, embedding_norm, final_norm)] = structures
    if pre_norm != final_norm:
        raise Inexpressible("it is pre-norm without a layer norm at the end")
    kinds, tables = zip(*(_positions(side, longest, width) for side in (encoder, decoder)), strict=True)
    kind = kinds[0] if len(set(kinds)) == 1 else "learned"
    for name, family in FAMILIES.items():
        # Learned positions can hold any table.
        if (family.pre_norm, family.embedding_norm) == (pre_norm, embedding_norm) and (
            family.positions in (kind, "learned")
        ):
            return name, list(tables)
    raise Inexpressible("it learns its positions, but does not normalise its embeddings")


def _positions(side: Any, longest: int, width: int) -> tuple[str, Tensor]:
    """Return the kind of a side's positions, as of :class:`~.families.Family`, and their table."""
    module = side.embed_positions
    if isinstance(module, SinusoidalPositionalEmbedding):
        return "fairseq", module.get_embedding(longest + _OFFSET, width, PAD)
    if not isinstance(module, LearnedPositionalEmbedding):
        raise Inexpressible("it has no positions" if module is None else f"it has a {type(module).__name__}")
    table = module.weight.detach().float()[: longest + _OFFSET]
    difference = (table[_OFFSET:] - marian_sinusoids(longest, width)).abs().max()
    return "marian" if bool(difference < _SAME) else "learned", table.clone()
