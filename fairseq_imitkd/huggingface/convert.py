"""Converts a model's weights to those of fairseq's transformer and back, exactly.

Layers have the same names in both libraries (:func:`layer_shapes`). An import gives embeddings and the output
matrix fairseq's order of symbols; an export leaves it, since ids are free in ``transformers``. Each weight
is used once, or the model is refused.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from fairseq.modules import SinusoidalPositionalEmbedding
from torch import Tensor

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.huggingface.config import ModelConfig, Side
from fairseq_imitkd.huggingface.vocabulary import ABSENT, Rows

_PREFIX = "model."
# The tables of symbols: embeddings of both sides, and the output matrix.
_ENCODER, _DECODER = "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"
_OUTPUT = "decoder.output_projection.weight"  # as in FSMT
_SHARED, _HEAD = "shared.weight", "lm_head.weight"  # in the other families
# An absent symbol's logit lies this far below the mean of all logits, so its probability is below exp(-60).
_NEVER = 60.0
_OFFSET = 2  # rows before the first position: fairseq counts positions from its index of padding + 1
# Buffers that old versions of transformers have saved.
_BUFFERS = ("encoder.version", "decoder.version")


@dataclass(frozen=True)
class Converted:
    """Weights for fairseq.

    Args:
        state: weights by fairseq's names.
        shared: which tables of symbols are one; see
            :func:`~fairseq_imitkd.huggingface.config.fairseq_settings`.
    """

    state: dict[str, Tensor]
    shared: str


def convert(weights: Mapping[str, Tensor], config: ModelConfig, *, rows: Rows, name: str) -> Converted:
    """Convert a model's weights.

    Args:
        weights: the model's weights by name, in float32.
        config: its configuration.
        rows: rows of its tables at fairseq's indices.
        name: what messages call the model.

    Raises:
        UsageError: a weight is missing, unused, has another shape than the configuration says, or has two
            values.
    """
    given = _Given(weights, name)
    state = {key: given.take(key, shape) for key, shape in layer_shapes(config).items()}
    tables = _tables(given, config)
    bias = given.take_optional("final_logits_bias", (1, config.decoder.vocabulary))
    state |= _positions(given, config)
    given.refuse_others()
    encoder, decoder, output = (
        _pick(table, index)
        for table, index in zip(tables, (rows.encoder, rows.decoder, rows.output), strict=True)
    )
    if (bias is not None and bool(bias.any())) or ABSENT in rows.output:
        output = _with_bias(tables[2], bias, state, config=config, rows=rows.output)
        shared = "none"
    else:
        same = tables[1] is tables[2] and rows.decoder == rows.output
        decoder = output if same else decoder
        joined = same and tables[0] is tables[1] and rows.encoder == rows.decoder
        encoder = output if joined else encoder
        shared = "all" if joined else "decoder" if same else "none"
    state |= {_ENCODER: encoder, _DECODER: decoder, _OUTPUT: output}
    # Without versions, fairseq would take a pre-norm model for one of 2017 and leave out its last norms.
    state |= {buffer: torch.tensor([3.0]) for buffer in _BUFFERS}
    return Converted(state, shared)


def shared_tables(state: Mapping[str, Tensor]) -> str:
    """Return which tables of a fairseq model are one: ``all``, ``decoder`` or ``none``."""
    encoder, decoder, output = (state[key] for key in (_ENCODER, _DECODER, _OUTPUT))
    if _one(decoder, output) is not decoder:
        return "none"
    return "all" if _one(encoder, decoder) is encoder else "decoder"


def revert(state: Mapping[str, Tensor], config: ModelConfig, *, name: str) -> dict[str, Tensor]:
    """Return the weights that :func:`convert` makes a fairseq model's weights of.

    Args:
        state: the model's weights by fairseq's names. A family with positions in its files has them here, in
            a table.
        config: the configuration to write them for, in whose order of symbols they are.
        name: what messages call the model.

    Raises:
        UsageError: a weight is missing, unused, or has another shape than the configuration says.
    """
    given = _Given(
        {key: value for key, value in state.items() if not key.endswith(("version", "_float_tensor"))}, name
    )
    weights = {key: given.take(key, shape) for key, shape in layer_shapes(config).items()}
    for key in position_names(config):
        table = given.take(key, (config.positions + _OFFSET, config.width))
        weights[key] = table[_OFFSET:] if config.family.positions == "marian" else table
    source, target = ((side.vocabulary, config.width) for side in (config.encoder, config.decoder))
    encoder, decoder, output = (
        given.take(key, shape) for key, shape in ((_ENCODER, source), (_DECODER, target), (_OUTPUT, target))
    )
    given.refuse_others(config.family.title)
    shared, fsmt = shared_tables(state), config.kind == "fsmt"
    if shared == "all":
        weights[_DECODER if fsmt else _SHARED] = decoder
    else:
        weights |= {_ENCODER: encoder, _DECODER: decoder}
        if config.kind not in ("fsmt", "marian"):
            weights[_SHARED] = encoder  # not used, but transformers would miss it
        if shared == "none" or config.kind != "marian":
            weights[_OUTPUT if fsmt else _HEAD] = output
    return {key if key == _HEAD else _PREFIX + key: value for key, value in weights.items()}


def position_names(config: ModelConfig) -> list[str]:
    """Return the names of the tables of positions that the family's files hold."""
    if config.family.positions == "fairseq":
        return []
    return [f"{part}.embed_positions.weight" for part in ("encoder", "decoder")]


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each parameter that both libraries have, in fairseq's names."""
    width, shapes = config.width, dict[str, tuple[int, ...]]()
    for part, side in (("encoder", config.encoder), ("decoder", config.decoder)):
        norms = ["layernorm_embedding"] * config.family.embedding_norm + [
            "layer_norm"
        ] * config.family.pre_norm
        for number in range(side.layers):
            layer = f"{part}.layers.{number}"
            shapes |= {f"{layer}.{key}": shape for key, shape in _layer(part, side, width)}
        for norm in norms:
            shapes |= {f"{part}.{norm}.weight": (width,), f"{part}.{norm}.bias": (width,)}
    return shapes


def _layer(part: str, side: Side, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of each parameter of a layer."""
    attentions = ["self_attn", "encoder_attn"] if part == "decoder" else ["self_attn"]
    linear = {
        f"{attention}.{end}_proj": (width, width)
        for attention in attentions
        for end in ("q", "k", "v", "out")
    }
    linear |= {"fc1": (side.ffn, width), "fc2": (width, side.ffn)}
    for key, shape in linear.items():
        yield f"{key}.weight", shape
        yield f"{key}.bias", shape[:1]
    for norm in (*(f"{attention}_layer_norm" for attention in attentions), "final_layer_norm"):
        yield f"{norm}.weight", (width,)
        yield f"{norm}.bias", (width,)


class _Given:
    """The weights of a file. Each of them is taken once.

    Args:
        weights: the weights by name.
        name: what messages call the model.
    """

    def __init__(self, weights: Mapping[str, Tensor], name: str):
        self.name = name
        self.left: dict[str, Tensor] = {}
        for key, value in weights.items():
            short = key.removeprefix(_PREFIX)
            if short in self.left:
                raise UsageError(f"{name} holds the weight {short:.80} twice; copy the model again")
            if short not in _BUFFERS:
                self.left[short] = value

    def take(self, key: str, shape: tuple[int, ...]) -> Tensor:
        """Return a weight of this shape."""
        value = self.left.pop(key, None)
        return self.found(key, value, shape)

    def take_optional(self, key: str, shape: tuple[int, ...]) -> Tensor | None:
        """Return a weight of this shape; None if it is missing."""
        return self.take(key, shape) if key in self.left else None

    def found(self, key: str, value: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        """Return a weight that is there and has this shape."""
        if value is None:
            raise UsageError(f"{self.name} lacks the weight {key:.80}; copy the model again")
        if tuple(value.shape) != shape:
            raise UsageError(
                f"{self.name} holds {key:.80} of shape {tuple(value.shape)}, but its config.json asks for "
                f"{shape}; use the files of one model"
            )
        return value

    def refuse_others(self, where: str = "fairseq's transformer") -> None:
        """Refuse a file with weights that nothing uses."""
        if self.left:
            key = sorted(self.left)[0]
            raise UsageError(
                f"{self.name} holds the weight {key:.80}, which {where} lacks; use a model without additions"
            )


def _tables(given: _Given, config: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return the embeddings of both sides and the output matrix; equal ones are one tensor.

    A file may hold one table under several names, or leave names out whose tables are tied.
    """
    source, target = ((side.vocabulary, config.width) for side in (config.encoder, config.decoder))
    common = given.take_optional(_SHARED, source)
    decoder = given.take_optional(_DECODER, target)
    encoder = given.take_optional(_ENCODER, source)
    outputs = [given.take_optional(key, target) for key in (_HEAD, _OUTPUT)]
    output = next((value for value in outputs if value is not None), None)
    if decoder is None:
        decoder = common if common is not None else output if config.tied else None
    if encoder is None:
        encoder = common if common is not None else decoder if config.tied else None
    if output is None:
        output = decoder if config.tied else None
    encoder = given.found(_ENCODER, encoder, source)
    decoder = given.found(_DECODER, decoder, target)
    output = given.found(_HEAD, output, target)
    decoder = _one(encoder, decoder)
    output = _one(encoder, _one(decoder, output))
    if config.tied and output is not decoder:
        raise UsageError(
            f"{given.name} has two values of one weight: its config.json ties the output matrix to the "
            "decoder's embedding, but they differ; set tie_word_embeddings to what is true"
        )
    return encoder, decoder, output


def _one(first: Tensor, second: Tensor) -> Tensor:
    """Return the first tensor if both are equal, else the second."""
    return first if first is second or torch.equal(first, second) else second


def _positions(given: _Given, config: ModelConfig) -> dict[str, Tensor]:
    """Return the tables of positions. fairseq computes its own sinusoids; they are not in its files."""
    state = {}
    for part in ("encoder", "decoder"):
        key = f"{part}.embed_positions"
        if config.family.positions == "learned":
            state[f"{key}.weight"] = given.take(f"{key}.weight", (config.positions + _OFFSET, config.width))
        elif config.family.positions == "marian":
            sinusoids = marian_sinusoids(config.positions, config.width)
            saved = given.take_optional(f"{key}.weight", tuple(sinusoids.shape))
            state[f"{key}.weight"] = torch.cat(
                [sinusoids.new_zeros(_OFFSET, config.width), sinusoids if saved is None else saved]
            )
        else:
            for name in ("weight", "weights"):  # old versions of transformers have saved them
                _check_sinusoids(given, f"{key}.{name}", config.width)
    return state


def _check_sinusoids(given: _Given, key: str, width: int) -> None:
    """Take a table of positions, and refuse it if it does not hold fairseq's sinusoids."""
    saved = given.left.pop(key, None)
    if saved is None:
        return
    own = SinusoidalPositionalEmbedding.get_embedding(saved.size(0), width, 1)
    if saved.shape != own.shape or float((saved - own).abs().max()) > 1e-3:
        raise UsageError(
            f"{given.name} holds {key}, which must be fairseq's sinusoids; use a model without changes"
        )


def marian_sinusoids(positions: int, width: int) -> Tensor:
    """Return Marian's embeddings of positions, ``(positions, width)``: first all sines, then all cosines.

    Their frequencies are 10000^(-2i/width); those of fairseq are 10000^(-i/(width/2 - 1)).
    """
    steps = torch.arange(positions, dtype=torch.float64).unsqueeze(1)
    frequencies = 10000 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.cat([torch.sin(steps * frequencies), torch.cos(steps * frequencies)], dim=1).float()


def _pick(table: Tensor, rows: Sequence[int]) -> Tensor:
    """Return rows of a table; zeros for absent symbols."""
    index = torch.tensor(rows)
    picked = table.index_select(0, index.clamp(min=0))
    return picked.masked_fill_(index.eq(ABSENT).unsqueeze(1), 0.0)


def _with_bias(
    table: Tensor, bias: Tensor | None, state: dict[str, Tensor], *, config: ModelConfig, rows: Sequence[int]
) -> Tensor:
    """Return an output matrix that adds a bias to the logits. fairseq's decoder has no bias.

    The decoder ends with a layer norm, ``x = gamma * n + beta``, and the parts of ``n`` add up to zero. So
    the component of ``x`` in the direction ``u = (1 / gamma) / |1 / gamma|`` is the same for all inputs:
    ``u · x = u · beta``. Nothing but the output matrix reads ``x``, so ``beta`` can be moved along ``u``
    until this component is ``|gamma|``, the size of ``x`` itself. With ``c = u · beta`` and ``k = |gamma|``::

        beta' = beta + (k - c) u,    W' = W + (b - (k - c) W u) u^T / k,    W' x' = W x + b

    Args:
        table: the output matrix, ``(V, D)``.
        bias: the bias, ``(1, V)``; None is zero.
        state: weights of the layers; the bias of the last layer norm is replaced.
        config: the model's configuration.
        rows: rows of the new matrix.

    Returns:
        the matrix with these rows.
    """
    norm = (
        "decoder.layer_norm"
        if config.family.pre_norm
        else (f"decoder.layers.{config.decoder.layers - 1}.final_layer_norm")
    )
    gamma, beta = (state[f"{norm}.{end}"].double() for end in ("weight", "bias"))
    direction = _constant_direction(gamma)
    size = max(float(gamma.norm()), 1e-3 * math.sqrt(config.width))
    moved = size - float(direction @ beta)
    matrix = table.double()
    offset = matrix.new_zeros(matrix.size(0)) if bias is None else bias.double().flatten()
    absent = [(matrix.mean(0, keepdim=True)), (offset.mean() - _NEVER).reshape(1)]
    matrix, offset = torch.cat([matrix, absent[0]]), torch.cat([offset, absent[1]])
    folded = matrix + torch.outer((offset - moved * (matrix @ direction)) / size, direction)
    state[f"{norm}.bias"] = (beta + moved * direction).float()
    index = torch.tensor(rows)  # ABSENT is the last row
    return folded.index_select(0, index.where(index.ne(ABSENT), table.size(0))).float()


def _constant_direction(gamma: Tensor) -> Tensor:
    """Return the unit vector in whose direction the output of a layer norm with this weight never varies."""
    smallest = int(gamma.abs().argmin())
    ratio = torch.where(gamma == 0, 0.0, gamma[smallest] / gamma.where(gamma != 0, 1.0))
    ratio[smallest] = 1.0
    return ratio / ratio.norm()
