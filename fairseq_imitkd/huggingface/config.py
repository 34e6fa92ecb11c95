"""Reads and checks a model's ``config.json``, and derives fairseq's settings from it."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.huggingface.families import ACTIVATIONS, FAMILIES, UNSUPPORTED, Family

TEXT_ONLY = "train on its translations instead: docs/huggingface.md of the repository"
# A side's sizes: their names in config.json, and in fairseq's settings. {} is encoder or decoder.
_SIZES = {
    "layers": ("{}_layers", "{}_layers"),
    "heads": ("{}_attention_heads", "{}_attention_heads"),
    "ffn": ("{}_ffn_dim", "{}_ffn_embed_dim"),
}
# The largest values, so that nothing of an absurd size is made before the weights are compared with it.
_MOST = {"layers": 1000, "heads": 1000, "ffn": 1_000_000}
_MOST_WIDTH, _MOST_POSITIONS, _MOST_SYMBOLS = 100_000, 100_000, 10_000_000
_PARTS = ("encoder", "decoder")
_RATES = ("dropout", "attention_dropout", "activation_dropout")  # as in fairseq
_SYMBOLS = {"pad": "pad_token_id", "eos": "eos_token_id", "bos": "bos_token_id"}


@dataclass(frozen=True)
class Side:
    """The sizes of an encoder or a decoder.

    Args:
        layers: number of layers.
        heads: number of attention heads.
        ffn: width of the feed-forward part.
        vocabulary: number of symbols.
    """

    layers: int
    heads: int
    ffn: int
    vocabulary: int


@dataclass(frozen=True)
class ModelConfig:
    """What decides on the parameters and the computation of a model.

    Args:
        kind: its type in ``transformers``, a key of :data:`~fairseq_imitkd.huggingface.families.FAMILIES`.
        family: its family.
        width: size of the embeddings.
        encoder, decoder: sizes of the two sides.
        positions: most tokens of a sentence.
        activation: fairseq's name of the activation.
        scale: whether embeddings are multiplied with the square root of their size.
        tied: whether the output matrix is the decoder's embedding, if the file does not hold both.
        dropouts: rates of dropout in training, by fairseq's name.
        pad, eos, bos, start: ids of special symbols; ``start`` is the decoder's first input. None: the
            configuration does not tell.
        forced_first: id of the symbol that ``generate`` writes first; None is none.
        languages: names of source and target language, if the configuration tells them.
    """

    kind: str
    family: Family
    width: int
    encoder: Side
    decoder: Side
    positions: int
    activation: str
    scale: bool
    tied: bool
    dropouts: Mapping[str, float]
    pad: int
    eos: int
    bos: int | None
    start: int | None
    forced_first: int | None
    languages: tuple[str, str] | None


def read_config(content: Mapping[str, Any], name: str) -> ModelConfig:
    """Check the content of a ``config.json``.

    Args:
        content: the content.
        name: what messages call the model.

    Raises:
        UsageError: the model is of another family, is quantised, or a setting is missing or impossible.
    """
    family = _family(content, name)
    if content.get("quantization_config"):
        raise UsageError(
            f"{name} is quantised, which can't be undone exactly; import the model in float32 or float16"
        )
    reader = _Reader(content, name)
    source, target = family.vocabularies
    vocabulary = reader.size(source, most=_MOST_SYMBOLS)
    width = reader.size("d_model", most=_MOST_WIDTH)
    sides = [
        Side(
            **{
                size: reader.size(theirs.format(part), most=_MOST[size])
                for size, (theirs, _) in _SIZES.items()
            },
            vocabulary=reader.size(target, vocabulary, most=_MOST_SYMBOLS)
            if part == "decoder" and target
            else vocabulary,
        )
        for part in _PARTS
    ]
    for side in sides:
        if width % side.heads or width % 2:
            raise UsageError(
                f"{name} has d_model {width}, which must be even and a multiple of {side.heads} heads"
            )
    special = {name: reader.symbol(setting, vocabulary) for name, setting in _SYMBOLS.items()}
    ends, pads = special["eos"], special["pad"]
    if ends is None or pads is None or ends == pads:
        raise UsageError(
            f"{name} must have eos_token_id and pad_token_id in its config.json, and they must differ"
        )
    return ModelConfig(
        kind=str(content["model_type"]),
        family=family,
        width=width,
        encoder=sides[0],
        decoder=sides[1],
        positions=reader.size("max_position_embeddings", most=_MOST_POSITIONS),
        activation=_activation(content, name),
        scale=content.get("scale_embedding", content.get("model_type") == "fsmt") is True,
        tied=content.get("tie_word_embeddings", True) is not False,
        dropouts={rate: reader.rate(rate) for rate in _RATES},
        pad=pads,
        eos=ends,
        bos=special["bos"],
        start=reader.symbol("decoder_start_token_id", sides[1].vocabulary),
        forced_first=reader.symbol("forced_bos_token_id", sides[1].vocabulary),
        languages=_languages(content),
    )


def _family(content: Mapping[str, Any], name: str) -> Family:
    kind = content.get("model_type")
    if not isinstance(kind, str):
        raise UsageError(
            f"{name} has a config.json without a model_type; use a folder that transformers has saved"
        )
    kind = kind[:40]
    if kind in UNSUPPORTED:
        raise UsageError(f"{name} is a model of type {kind!r}: {UNSUPPORTED[kind]}; {TEXT_ONLY}")
    if kind not in FAMILIES:
        what = (
            "is not one of " + ", ".join(FAMILIES)
            if content.get("is_encoder_decoder")
            else "is not an encoder-decoder model"
        )
        raise UsageError(f"{name} is a model of type {kind!r}, which {what}; {TEXT_ONLY}")
    heads = content.get("architectures") or []
    for head in heads if isinstance(heads, list) else []:
        if isinstance(head, str) and head.endswith(("Classification", "Answering", "ForCausalLM")):
            raise UsageError(
                f"{name} is a {head[:60]}, not a model that translates or summarises; use another"
            )
    return FAMILIES[kind]


def _activation(content: Mapping[str, Any], name: str) -> str:
    activation = content.get("activation_function", "relu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise UsageError(f"{name} has the activation {activation!r:.40}, which fairseq lacks; {TEXT_ONLY}")
    return ACTIVATIONS[activation]


def _languages(content: Mapping[str, Any]) -> tuple[str, str] | None:
    languages = content.get("langs")
    if not isinstance(languages, list | tuple) or len(languages) != 2:
        return None
    return str(languages[0]), str(languages[1])


class _Reader:
    """Reads single settings.

    Args:
        content: the settings.
        name: what messages call the model.
    """

    def __init__(self, content: Mapping[str, Any], name: str):
        self.content, self.name = content, name

    def size(self, setting: str, default: int | None = None, *, most: int) -> int:
        """Return a whole number from 1 to ``most``."""
        value = self.content.get(setting)
        value = default if value is None else value
        if type(value) is not int or not 1 <= value <= most:
            raise UsageError(
                f"{self.name} needs a number in 1..{most} as {setting} in config.json, but it is "
                f"{value!r:.40}"
            )
        return value

    def symbol(self, setting: str, vocabulary: int) -> int | None:
        """Return the id of a symbol, or None if there is none."""
        value = self.content.get(setting)
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if value is None:
            return None
        if type(value) is not int or not 0 <= value < vocabulary:
            raise UsageError(
                f"{self.name} has {setting} {value!r:.40}, which must be below the {vocabulary:,} symbols"
            )
        return value

    def rate(self, setting: str) -> float:
        """Return a rate of dropout."""
        value = self.content.get(setting, 0.0)
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise UsageError(f"{self.name} has {setting} {value!r:.40}, which must be at least 0 and below 1")
        return float(value)


def fairseq_settings(config: ModelConfig, *, pair: tuple[str, str], shared: str) -> Namespace:
    """Return the settings of fairseq's transformer that computes what the model computes.

    Args:
        config: the model's configuration.
        pair: source and target language.
        shared: which of the three tables of symbols are one: ``all``, ``decoder`` (its embedding and the
            output matrix) or ``none``.
    """
    family = config.family
    settings: dict[str, Any] = {
        "task": "translation",
        "source_lang": pair[0],
        "target_lang": pair[1],
        "criterion": "cross_entropy",
        "arch": "transformer",
        "activation_fn": config.activation,
        "no_scale_embedding": not config.scale,
        "layernorm_embedding": family.embedding_norm,
        "share_all_embeddings": shared == "all",
        "share_decoder_input_output_embed": shared != "none",
        "max_source_positions": config.positions,
        "max_target_positions": config.positions,
        "decoder_input_dim": config.width,
        "decoder_output_dim": config.width,
        **config.dropouts,
    }
    for part, side in zip(_PARTS, (config.encoder, config.decoder), strict=True):
        settings |= {
            **{own.format(part): getattr(side, size) for size, (_, own) in _SIZES.items()},
            f"{part}_embed_dim": config.width,
            f"{part}_normalize_before": family.pre_norm,
            f"{part}_learned_pos": family.positions != "fairseq",
        }
    return Namespace(**settings)


def config_json(config: ModelConfig, shared: str) -> dict[str, Any]:
    """Return the ``config.json`` that :func:`read_config` reads as this configuration.

    Args:
        config: the configuration.
        shared: which of the three tables of symbols are one, as in :func:`fairseq_settings`.
    """
    family = config.family
    ties = {"tie_word_embeddings": shared == "all"}
    if config.kind == "marian":
        ties = {
            "tie_word_embeddings": shared != "none",
            "share_encoder_decoder_embeddings": shared == "all",
        }
    source, target = family.vocabularies
    sizes = {source: config.encoder.vocabulary, **({target: config.decoder.vocabulary} if target else {})}
    for part, side in zip(_PARTS, (config.encoder, config.decoder), strict=True):
        sizes |= {theirs.format(part): getattr(side, size) for size, (theirs, _) in _SIZES.items()}
    return {
        "model_type": config.kind,
        "architectures": [family.model],
        "is_encoder_decoder": True,
        "d_model": config.width,
        **sizes,
        "max_position_embeddings": config.positions,
        "activation_function": next(name for name, own in ACTIVATIONS.items() if own == config.activation),
        "scale_embedding": config.scale,
        **ties,
        **config.dropouts,
        **{setting: getattr(config, name) for name, setting in _SYMBOLS.items()},
        "decoder_start_token_id": config.start,
        "forced_bos_token_id": config.forced_first,
        "forced_eos_token_id": config.eos,
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
        **({"langs": list(config.languages)} if config.languages else {}),
        "dtype": "float32",
    }
