"""SRUs follow their definition; recurrent students handle padding at either end; bad sizes are refused."""

import math
from argparse import Namespace
from typing import Any

import pytest
import torch
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from torch import Tensor

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.models.access import features_for_logits, output_projection, unsupported_reason
from fairseq_imitkd.models.recurrent import SIZES
from fairseq_imitkd.models.sru import SRU, SRULayer, recurrence
from fairseq_imitkd.models.transformer_sizes import SIZES as TRANSFORMER_SIZES
from tests.helpers.fairseq_models import build_student, make_batch, reversed_pairs, tiny_task

STEPS, ROWS = 6, 3


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def states(candidates: Tensor, forget: Tensor, weight: Tensor, initial: Tensor) -> Tensor:
    return recurrence(candidates, forget, weight=weight, initial=initial)


def test_recurrence_is_the_definition() -> None:
    """Compare with equations 3 and 4 step by step, and gradients with autograd and finite differences."""
    given = [
        each.requires_grad_()
        for each in (
            numbers(STEPS, ROWS, 4),
            numbers(STEPS, ROWS, 4, seed=2),
            numbers(4, seed=3),
            numbers(ROWS, 4, seed=4),
        )
    ]
    candidates, forget, weight, state = given
    expected = []
    for candidate, bias in zip(candidates, forget, strict=True):
        gate = 1.0 / (1.0 + torch.exp(-(bias + weight * state)))
        state = gate * state + (1.0 - gate) * candidate
        expected.append(state)
    found = states(*given)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=1e-12)
    upstream = numbers(STEPS, ROWS, 4, seed=5)
    for mine, theirs in zip(
        torch.autograd.grad((found * upstream).sum(), given),
        torch.autograd.grad((torch.stack(expected) * upstream).sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(states, given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_recurrence_in_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    given = [
        each.to(dtype)
        for each in (numbers(40, ROWS, 4), numbers(40, ROWS, 4, seed=2), numbers(4, seed=3), numbers(ROWS, 4))
    ]
    found = states(*given)
    assert found.dtype == dtype
    torch.testing.assert_close(found, states(*(each.float() for each in given)).to(dtype), rtol=0, atol=0)


def one_by_one(layer: SRULayer, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's outputs and last state in one direction, by equations 3 to 6."""
    width, outputs = layer.hidden_size, []
    matrix = (
        layer.transform.weight if layer.project is None else layer.transform.weight @ layer.project.weight
    )
    for inputs in x:
        if layer.norm is not None:
            inputs = torch.nn.functional.layer_norm(
                inputs, inputs.shape[-1:], layer.norm.weight, layer.norm.bias
            )
        parts = (inputs @ matrix.t()).view(-1, layer.parts, width)
        forget = torch.sigmoid(parts[:, 1] + layer.state_weights[0] * state + layer.biases[0])
        reset = torch.sigmoid(parts[:, 2] + layer.state_weights[1] * state + layer.biases[1])
        state = forget * state + (1.0 - forget) * parts[:, 0]
        highway = inputs * layer.scale if layer.parts == 3 else parts[:, 3]
        outputs.append(reset * state + (1.0 - reset) * highway)
    return torch.stack(outputs), state


@pytest.mark.parametrize(
    "settings",
    [{}, {"input_size": 5}, {"projection_size": 2}, {"layer_norm": True}, {"highway_bias": -2.0}],
    ids=str,
)
def test_layer_is_the_definition(settings: dict[str, Any]) -> None:
    torch.manual_seed(1)
    layer = SRULayer(**{"input_size": 4, "hidden_size": 4, **settings}).double()
    x, first = numbers(STEPS, ROWS, settings.get("input_size", 4)), numbers(ROWS, 4, seed=2)
    for found, expected in zip(layer(x, first), one_by_one(layer, x, first), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert layer.scale == (
        math.sqrt(1 + 2 * math.exp(settings.get("highway_bias", 0.0))) if layer.parts == 3 else 1.0
    )


def test_second_direction_reads_from_the_end() -> None:
    """With equal weights of both directions, reversed inputs give reversed outputs."""
    torch.manual_seed(1)
    layer = SRULayer(6, 3, bidirectional=True).double()
    with torch.no_grad():
        for weights in (layer.state_weights, layer.biases):
            weights[:, 3:] = weights[:, :3]
        matrix = layer.transform.weight.view(3, 6, 6)
        matrix[:, 3:] = matrix[:, :3]
    x = numbers(STEPS, ROWS, 3).repeat(1, 1, 2)
    outputs, last = layer(x)
    backwards, ends = layer(x.flip(0))
    torch.testing.assert_close(outputs[..., :3], backwards.flip(0)[..., 3:])
    torch.testing.assert_close(last[:, :3], ends[:, 3:])
    assert not torch.allclose(outputs[..., :3], outputs[..., 3:])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_is_not_read(bidirectional: bool) -> None:
    """With padding at either end, outputs, states and gradients are those of the sentence alone."""
    torch.manual_seed(1)
    layers = SRU(4, 3, 2, bidirectional=bidirectional).double()
    x = numbers(STEPS, 1, 4).requires_grad_()
    alone, last = layers(x[:4])
    [grad] = torch.autograd.grad(alone.square().sum(), x)
    padding = torch.tensor([False] * 4 + [True] * 2).unsqueeze(-1)
    for shift in (0, 2):
        outputs, state = layers(x.roll(shift, 0), padding=padding.roll(shift, 0))
        torch.testing.assert_close(outputs[shift : shift + 4], alone)
        torch.testing.assert_close(state, last)
        [found] = torch.autograd.grad(outputs[shift : shift + 4].square().sum(), x)
        torch.testing.assert_close(found, grad)


@pytest.mark.parametrize("name", ["gru", "sru", "sru-projected"])
def test_students_read_and_write_alike_in_any_batch(name: str) -> None:
    """Padding at either end, sentences alone or with longer ones, all steps at once or one by one."""
    model = build_student(name).eval()
    left, right = (make_batch(reversed_pairs(9, seed=3), left_pad_source=pad) for pad in (True, False))
    with torch.no_grad():
        logits = model(**left["net_input"])[0]
        torch.testing.assert_close(model(**right["net_input"])[0], logits, rtol=1e-4, atol=1e-5)
        tokens, state = left["net_input"]["prev_output_tokens"], {}
        encoded = model.encoder(left["net_input"]["src_tokens"])
        for step in range(tokens.size(1)):
            [found] = model.decoder(tokens[:, : step + 1], encoded, incremental_state=state)[0].unbind(1)
            torch.testing.assert_close(found, logits[:, step], rtol=1e-4, atol=1e-5)
        for row in range(9):
            source = right["net_input"]["src_tokens"][row : row + 1]
            alone = model(source[source.ne(1)].unsqueeze(0), None, tokens[row : row + 1])[0]
            real = left["target"][row].ne(1)
            torch.testing.assert_close(alone[0, real], logits[row, real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gru", "sru-projected"])
def test_losses_can_be_taken_in_chunks(name: str) -> None:
    """The logits are the product of hidden states and matrix."""
    model, sample = build_student(name).eval(), make_batch(reversed_pairs(4, seed=3))
    assert unsupported_reason(model) is None
    matrix, bias = output_projection(model.decoder)
    assert bias is None
    assert matrix is model.decoder.embed_tokens.weight
    logits = model(**sample["net_input"])[0]
    with features_for_logits(model.decoder):
        features = model(**sample["net_input"])[0]
    torch.testing.assert_close(features @ matrix.t(), logits)


def built(name: str, **settings: Any) -> Any:
    args = Namespace(arch=name, criterion="imitkd", **settings)
    ARCH_CONFIG_REGISTRY[name](args)
    return tiny_task().build_model(args)


@pytest.mark.parametrize("name", SIZES)
def test_named_sizes(name: str) -> None:
    """Models have the sizes of their names, and flags override them."""
    model, settings = built(name), SIZES[name][1]
    assert type(model) is ARCH_MODEL_REGISTRY[SIZES[name][0]]
    layers = len(model.decoder.writer.layers) if name.startswith("sru") else model.decoder.writer.num_layers
    assert layers == settings.get("decoder_layers", 2)
    assert model.decoder.mix.out_features == settings.get("decoder_hidden_size", 512)
    assert model.encoder.widen is None, "the paper's encoders are as wide as their decoders"
    assert (model.encoder.embed_tokens is model.decoder.embed_tokens) == settings.get(
        "share_all_embeddings", False
    )
    smaller = built(name, decoder_layers=1, encoder_hidden_size=8)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    assert smaller.encoder.widen is not None


@pytest.mark.parametrize("name", TRANSFORMER_SIZES)
def test_named_transformers(name: str) -> None:
    encoder, decoder, width, feed_forward, heads = TRANSFORMER_SIZES[name]
    model = built(name)
    assert (len(model.encoder.layers), len(model.decoder.layers)) == (encoder, decoder)
    assert model.decoder.layers[0].fc1.weight.shape == (feed_forward, width)
    assert model.encoder.layers[0].self_attn.num_heads == heads
    assert model.decoder.output_projection.weight is model.decoder.embed_tokens.weight
    assert len(built(name, encoder_layers=3).encoder.layers) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder_layers": 0}, "--encoder-layers must be 1 or more, but is 0"),
        ({"decoder_hidden_size": -5}, "--decoder-hidden-size must be 1 or more, but is -5"),
        ({"projection_size": -1}, "--projection-size must be 0 or more, but is -1"),
        ({"dropout": 1.0}, "--dropout must be at least 0 and below 1, but is 1.0"),
    ],
    ids=str,
)
def test_sizes_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        built("sru_2", **settings)
    assert str(error.value) == message
