"""The fast path computes the same as fairseq's decoder, and refuses decoders that it does not support."""

import copy

import pytest
import torch
from fairseq import utils as fairseq_utils
from fairseq.modules import MultiheadAttention
from torch import nn

from fairseq_imitkd.rollout import steps
from fairseq_imitkd.rollout.fast_transformer import TransformerSteps, unsupported_reason
from fairseq_imitkd.rollout.steps import IncrementalSteps, begin_decoding
from tests.helpers.fairseq_models import STUDENTS, WIDTHS, build_student, letters, make_batch, reversed_pairs

FAST: dict[str, dict] = {
    "post-norm": {},
    "pre-norm": {"encoder_normalize_before": True, "decoder_normalize_before": True},
    "pre-norm, no final norm": {"decoder_normalize_before": True, "no_decoder_final_norm": True},
    "shared embeddings": {"share_all_embeddings": True},
    "learned positions": {"encoder_learned_pos": True, "decoder_learned_pos": True},
    "no positions": {"no_token_positional_embeddings": True},
    "layer-norm embeddings": {"layernorm_embedding": True},
    "unscaled embeddings": {"no_scale_embedding": True},
    "LayerDrop": {"decoder_layers": 3, "decoder_layerdrop": 0.5},
    "other sizes than the encoder": {
        "encoder_embed_dim": 16, "encoder_layers": 2, "decoder_layers": 3, "decoder_ffn_embed_dim": 48,
        "decoder_attention_heads": 4,
    },
    "other input and output widths": {"decoder_input_dim": 16, "decoder_output_dim": 24},
    "gelu": {"activation_fn": "gelu"},
    "swish": {"activation_fn": "swish"},
}  # fmt: skip
SLOW: dict[str, dict] = {
    "adaptive softmax": {"adaptive_softmax_cutoff": "8", "share_decoder_input_output_embed": False},
    "cross-self-attention": {"cross_self_attention": True, "no_cross_attention": True},
    "no cross-attention": {"no_cross_attention": True},
    "scaled heads": {"scale_heads": True},
    "scaled attention": {"scale_attn": True},
    "scaled feed-forward": {"scale_fc": True},
    "scaled residuals": {"scale_resids": True},
    "quantisation noise": {"quant_noise_pq": 0.1, "quant_noise_pq_block_size": 4},
}


def student(settings: dict, seed: int = 1):
    return build_student("transformer", seed, **{**WIDTHS, "decoder_layers": 2, **settings}).eval()


@pytest.mark.parametrize("settings", FAST.values(), ids=FAST)
def test_logits_equal_a_full_decoding_in_float64(settings: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """To 1e-10, at every position, while rows are dropped."""
    # fairseq's attention computes its softmax in float32, whatever the model's precision.
    monkeypatch.setattr(fairseq_utils, "softmax", lambda x, dim, onnx_trace=False: x.softmax(dim))
    model, sample = student(settings).double(), make_batch(reversed_pairs(9, seed=41))
    assert unsupported_reason(model) is None
    net_input = {name: value for name, value in sample["net_input"].items() if name != "prev_output_tokens"}
    tokens = torch.randint(4, 20, (9, 12), generator=torch.Generator().manual_seed(2))
    tokens[:, 0] = letters().eos()
    with torch.no_grad():
        expected = model(**net_input, prev_output_tokens=tokens)[0]
        state = begin_decoding(model, net_input, longest=12)
        assert type(state) is TransformerSteps
        rows = torch.arange(9)
        for step in range(12):
            found = state.logits(tokens[rows, : step + 1])
            torch.testing.assert_close(found, expected[rows, step], rtol=1e-10, atol=1e-10)
            if step in (2, 3, 8):
                kept = torch.tensor([number for number in range(rows.numel()) if number % 3 != 1])
                state.keep(kept)
                rows = rows[kept]
    assert rows.numel() == 3


@pytest.mark.parametrize("settings", SLOW.values(), ids=SLOW)
def test_unsupported_decoders_use_fairseqs_steps(settings: dict) -> None:
    """Each of these settings changes the decoder's arithmetic."""
    model = student(settings)
    assert unsupported_reason(model) is not None
    net_input = {
        name: value
        for name, value in make_batch(reversed_pairs(2, seed=1))["net_input"].items()
        if name != "prev_output_tokens"
    }
    assert type(begin_decoding(model, net_input, longest=3)) is IncrementalSteps


@pytest.mark.parametrize("name", STUDENTS)
def test_which_students_are_supported(name: str) -> None:
    """Stock transformers, including BART, and no others."""
    assert (unsupported_reason(build_student(name)) is None) == (
        name.startswith("transformer") or name == "bart"
    )


def test_changed_modules_are_detected() -> None:
    """Another attention, another projection, a hook, and dropout that stays on."""

    class OwnAttention(MultiheadAttention):
        pass

    def other_attention(model) -> None:
        model.decoder.layers[0].self_attn.__class__ = OwnAttention

    def other_projection(model) -> None:
        model.decoder.layers[1].encoder_attn.v_proj = nn.Sequential(
            model.decoder.layers[1].encoder_attn.v_proj
        )

    def hook(model) -> None:
        model.decoder.layers[0].fc1.register_forward_hook(lambda *_: None)

    def dropout(model) -> None:
        model.decoder.layers[0].dropout_module.apply_during_inference = True

    for change in (other_attention, other_projection, hook, dropout):
        model = copy.deepcopy(student({}))
        assert unsupported_reason(model) is None
        change(model)
        assert unsupported_reason(model) is not None, change.__name__


def test_engines_agree_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """With bfloat16 weights, the fast path's logits are as close to float32's as fairseq's are."""
    model, sample = student({}), make_batch(reversed_pairs(9, seed=42))
    net_input = {name: value for name, value in sample["net_input"].items() if name != "prev_output_tokens"}
    tokens = torch.full((9, 1), letters().eos())
    with torch.no_grad():
        exact = begin_decoding(model, net_input, longest=2).logits(tokens)
        half = copy.deepcopy(model).bfloat16()
        fast = begin_decoding(half, net_input, longest=2).logits(tokens).float()
        monkeypatch.setattr(steps, "unsupported_reason", lambda _: "the test asks for it")
        plain = begin_decoding(half, net_input, longest=2).logits(tokens).float()
    assert float((fast - exact).abs().max()) < 2.0 * float((plain - exact).abs().max()) + 1e-3
