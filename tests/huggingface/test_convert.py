"""Models with random weights, biases and norms give the same logits after the conversion, at any size."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, BaseFairseqModel
from fairseq.models.transformer import TransformerModel

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.huggingface.check import both_logits
from fairseq_imitkd.huggingface.config import ModelConfig, fairseq_settings, read_config
from fairseq_imitkd.huggingface.convert import _constant_direction, convert, marian_sinusoids
from fairseq_imitkd.huggingface.vocabulary import ABSENT, EOS, Rows, rows_of, vocabulary
from tests.helpers.huggingface_models import built

V = 45  # symbols
LAST = {"vocab_size": V, "pad_token_id": V - 1, "decoder_start_token_id": V - 1, "eos_token_id": 0}
DEEP = {"encoder_layers": 1, "decoder_layers": 3, "encoder_attention_heads": 2, "decoder_attention_heads": 8}
WIDE = {
    "d_model": 24,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 8,
    "decoder_layers": 1,
    "scale_embedding": False,
}
TWO = {"src_vocab_size": V, "tgt_vocab_size": V + 9}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "marian": ("marian", LAST),
    "marian deep": ("marian", {**LAST, **DEEP, "activation_function": "relu"}),
    "marian wide": ("marian", {**LAST, **WIDE}),
    "marian untied": ("marian", {**LAST, "tie_word_embeddings": False}),
    "marian two vocabularies": (
        "marian",
        {**LAST, "decoder_vocab_size": V, "vocab_size": V + 7, "share_encoder_decoder_embeddings": False},
    ),
    "m2m_100": ("m2m_100", {"vocab_size": V}),
    "m2m_100 deep": ("m2m_100", {"vocab_size": V, **DEEP, "activation_function": "gelu"}),
    "m2m_100 wide": ("m2m_100", {"vocab_size": V, **WIDE}),
    "m2m_100 untied": ("m2m_100", {"vocab_size": V, "tie_word_embeddings": False}),
    "mbart": ("mbart", {"vocab_size": V}),
    "mbart deep": ("mbart", {"vocab_size": V, **DEEP, "activation_function": "gelu_new"}),
    "mbart untied": ("mbart", {"vocab_size": V, "tie_word_embeddings": False}),
    "bart": ("bart", {"vocab_size": V}),
    "bart wide": ("bart", {"vocab_size": V, **WIDE, "scale_embedding": True}),
    "bart untied": ("bart", {"vocab_size": V, "tie_word_embeddings": False}),
    "pegasus": ("pegasus", {"vocab_size": V, "pad_token_id": 0, "eos_token_id": 1}),
    "pegasus deep": ("pegasus", {"vocab_size": V, **DEEP}),
    "fsmt": ("fsmt", TWO),
    "fsmt deep": ("fsmt", {**TWO, **DEEP}),
    "fsmt tied": ("fsmt", {"src_vocab_size": V, "tgt_vocab_size": V, "tie_word_embeddings": True}),
}
# The tables that are one: fairseq's flags follow from them.
SHARED = {"m2m_100": "all", "m2m_100 deep": "all", "m2m_100 wide": "all", "fsmt tied": "all"}


def taken(model: Any, **changes: Any) -> tuple[ModelConfig, Rows, dict[str, torch.Tensor]]:
    """Return the configuration of a model, the rows of its tables, and its weights."""
    content = {**model.config.to_dict(), "model_type": model.config.model_type, **changes}
    config = read_config(content, "M")
    sides = [
        vocabulary(config, side.vocabulary, tokens={}, unknown=None)
        for side in (config.encoder, config.decoder)
    ]
    start = config.start if config.start is not None else config.eos
    return config, rows_of(*sides, start=start, source_ends=(config.eos,)), dict(model.state_dict())


def as_fairseq(config: ModelConfig, rows: Rows, weights: dict[str, torch.Tensor]) -> BaseFairseqModel:
    """Return the converted model."""
    converted = convert(weights, config, rows=rows, name="M")
    args = fairseq_settings(config, pair=("de", "en"), shared=converted.shared)
    ARCH_CONFIG_REGISTRY["transformer"](args)

    class Task:
        source_dictionary, target_dictionary = (numbered(len(side)) for side in (rows.encoder, rows.output))

    if converted.shared == "all":
        Task.target_dictionary = Task.source_dictionary
    model = TransformerModel.build_model(args, Task)
    model.load_state_dict(converted.state, strict=True)
    return model.eval()


def numbered(size: int) -> Dictionary:
    """Return a dictionary of this size."""
    dictionary = Dictionary()
    for number in range(4, size):
        dictionary.add_symbol(f"w{number}")
    return dictionary


def difference(model: Any, other: Any, rows: Rows) -> float:
    """Return the greatest difference of logits, relative to the greatest logit, of a padded batch."""
    sources, targets = [[5, 7, 9, 4], [6], [8, 5, 5, 10, 11, 12]], [[4, 9, 6], [7, 7, 8, 5, 6], [10]]
    own, theirs, kept = both_logits(model, other, sources, targets=targets, rows=rows)
    assert kept.any(-1).sum() == 12
    return float((own - theirs)[kept].abs().max() / theirs[kept].abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_equal(name: str) -> None:
    """With the bias of the output matrix too, where the family has one."""
    kind, settings = MODELS[name]
    model = built(kind, **settings)
    config, rows, weights = taken(model)
    fairseq = as_fairseq(config, rows, weights)
    assert difference(fairseq, model, rows) < 2e-6
    assert (name in SHARED) == (fairseq.encoder.embed_tokens is fairseq.decoder.embed_tokens)


@pytest.mark.parametrize("name", ["bart", "mbart"])
def test_released_models_share_their_tables(name: str) -> None:
    """Their output has no bias, so all three tables stay one."""
    kind, settings = MODELS[name]
    model = built(kind, **settings)
    model.final_logits_bias.zero_()
    config, rows, weights = taken(model)
    fairseq = as_fairseq(config, rows, weights)
    assert fairseq.decoder.output_projection.weight is fairseq.encoder.embed_tokens.weight
    assert difference(fairseq, model, rows) < 2e-6


def _scale(state: dict[str, torch.Tensor], end: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    name = next(key for key in state if key.endswith(f"decoder.layers.1.final_layer_norm.{end}"))
    state[name].copy_(change(state[name]))


HARD: dict[str, Callable[[dict[str, torch.Tensor]], None]] = {
    "a weight is zero": lambda state: _scale(
        state, "weight", lambda values: values * (torch.arange(32) != 5)
    ),
    "weights are zero": lambda state: _scale(state, "weight", lambda values: values * (torch.arange(32) > 5)),
    "no bias of the norm": lambda state: _scale(state, "bias", torch.zeros_like),
    "a large bias": lambda state: state["final_logits_bias"].mul_(30),
}


@pytest.mark.parametrize("case", HARD)
def test_bias_of_the_output_is_exact_whatever_the_norm(case: str) -> None:
    model = built("marian", **LAST)
    HARD[case](model.state_dict())
    config, rows, weights = taken(model)
    assert difference(as_fairseq(config, rows, weights), model, rows) < 2e-6


def test_absent_symbols_are_never_chosen() -> None:
    """Marian has no ``<s>``: its probability is below exp(-60), wherever the logits lie."""
    model = built("marian", **LAST)
    model.final_logits_bias.sub_(300)
    config, rows, weights = taken(model)
    assert rows.output[0] == ABSENT
    fairseq = as_fairseq(config, rows, weights)
    source, previous = torch.tensor([[5, 6, 2]]), torch.tensor([[2, 7, 8]])
    with torch.no_grad():
        lprobs = fairseq(source, torch.tensor([3]), previous)[0].log_softmax(-1)
    assert float(lprobs[..., 0].max()) < -60
    assert float(lprobs.exp().sum(-1).sub(1).abs().max()) < 1e-5


def test_direction_is_constant() -> None:
    """The output of a layer norm has no variance there."""
    generator = torch.Generator().manual_seed(1)
    gamma = torch.randn(16, dtype=torch.float64, generator=generator)
    normed = torch.nn.functional.layer_norm(
        torch.randn(50, 16, dtype=torch.float64, generator=generator), (16,)
    )
    assert float((normed * gamma @ _constant_direction(gamma)).abs().max()) < 1e-12


def test_positions_are_marians() -> None:
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

    theirs = MarianSinusoidalPositionalEmbedding(50, 16).create_weight()
    assert float((marian_sinusoids(50, 16) - theirs).abs().max()) < 1e-6


def test_positions_of_the_file_are_used() -> None:
    """A file may hold other ones than the sinusoids; transformers then computes with these."""
    model = built("marian", **LAST)
    model.model.encoder.embed_positions.weight.data.mul_(0.5)
    config, rows, weights = taken(model)
    assert difference(as_fairseq(config, rows, weights), model, rows) < 2e-6
    model = built("fsmt", **TWO)
    config, rows, weights = taken(model)
    weights["model.encoder.embed_positions.weight"] = weights["model.encoder.embed_positions.weight"] * 0.5
    with pytest.raises(UsageError, match=r"^M holds encoder.embed_positions.weight, which must be fairseq's"):
        convert(weights, config, rows=rows, name="M")


@pytest.mark.parametrize("name", ["marian", "m2m_100", "bart", "mbart", "pegasus", "fsmt"])
def test_every_weight_is_used_once(name: str) -> None:
    """Without any of them, or with one more, the model is refused; tied copies may be missing."""
    kind, settings = MODELS[name]
    config, rows, weights = taken(built(kind, **settings))
    tied = {
        key
        for key in weights
        if key.endswith(("embed_tokens.weight", "lm_head.weight", "embed_positions.weight"))
    }
    optional = tied | {"final_logits_bias", "model.decoder.output_projection.weight"}
    if kind in ("bart", "mbart"):
        optional -= {key for key in weights if "embed_positions" in key}
    if kind == "fsmt":
        optional -= {"model.encoder.embed_tokens.weight", "model.decoder.output_projection.weight"}
        optional -= {"model.decoder.embed_tokens.weight"}
    for key in weights:
        fewer = {other: value for other, value in weights.items() if other != key}
        if key in optional or key == "model.shared.weight":
            convert(fewer, config, rows=rows, name="M")
            continue
        with pytest.raises(UsageError, match=r"^M lacks the weight .*; copy the model again$"):
            convert(fewer, config, rows=rows, name="M")
    for key in ("model.encoder.layers.7.fc1.weight", "classification_head.dense.weight"):
        with pytest.raises(
            UsageError, match=r"^M holds the weight .*, which fairseq's transformer lacks; use a model"
        ):
            convert({**weights, key: torch.zeros(2)}, config, rows=rows, name="M")


def test_wrong_shapes_and_values_are_refused() -> None:
    kind, settings = MODELS["m2m_100"]
    config, rows, weights = taken(built(kind, **settings))
    key = "model.encoder.layers.0.fc1.weight"
    with pytest.raises(
        UsageError, match=r"of shape \(3,\), but its config.json asks for \(48, 32\); use the files"
    ):
        convert({**weights, key: torch.zeros(3)}, config, rows=rows, name="M")
    other = {**weights, "lm_head.weight": weights["lm_head.weight"] + 1}
    with pytest.raises(UsageError, match=r"^M has two values of one weight: its config.json ties"):
        convert(other, config, rows=rows, name="M")
    convert(other, replace(config, tied=False), rows=rows, name="M")
    with pytest.raises(UsageError, match=r"^M holds the weight encoder.layers.0.fc1.weight twice"):
        convert({**weights, key.removeprefix("model."): weights[key]}, config, rows=rows, name="M")


def test_first_inputs_and_tags_are_rows() -> None:
    """The decoder's EOS is what the model begins with; a source's EOS is its tag, and ``<s>`` its EOS."""
    config, _, _ = taken(built("mbart", vocab_size=V))
    side = vocabulary(config, V, tokens={}, unknown=None)
    assert side.ids == tuple(range(V))
    rows = rows_of(side, side, start=40, source_ends=(2, 41))
    assert (rows.encoder[0], rows.encoder[EOS], rows.decoder[EOS], rows.output[EOS]) == (2, 41, 40, 2)
