"""A converted model computes what fairseq's does; models that CTranslate2 can't compute are refused."""

import copy
import math
from pathlib import Path
from typing import Any

import ctranslate2
import pytest
import torch
from fairseq.data import Dictionary
from fairseq.modules import MultiheadAttention
from torch import nn

from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.engines.ctranslate2_convert import QUANTIZATIONS, convert, unsupported_reason
from fairseq_imitkd.errors import UsageError
from tests.helpers.fairseq_models import POSITIONS, STUDENTS, WIDTHS, build_student, letters, trained_student

LANGUAGES = LanguagePair("src", "tgt", letters(), letters())
PRE_NORM = {"encoder_normalize_before": True, "decoder_normalize_before": True}
COMPUTED: dict[str, dict[str, Any]] = {
    "post-norm": {},
    "pre-norm": PRE_NORM,
    "pre-norm, encoder only": {"encoder_normalize_before": True},
    "pre-norm, decoder only": {"decoder_normalize_before": True},
    "pre-norm, no final norm": {**PRE_NORM, "no_decoder_final_norm": True},
    "shared embeddings": {"share_all_embeddings": True},
    "separate output embeddings": {"share_decoder_input_output_embed": False},
    "learned positions": {"encoder_learned_pos": True, "decoder_learned_pos": True},
    "no positions": {"no_token_positional_embeddings": True},
    "layer-norm embeddings": {"layernorm_embedding": True},
    "unscaled embeddings": {"no_scale_embedding": True},
    "LayerDrop": {
        "encoder_layers": 3,
        "decoder_layers": 3,
        "encoder_layerdrop": 0.5,
        "decoder_layerdrop": 0.5,
    },
    "other sizes than the encoder": {
        "encoder_embed_dim": 16,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "decoder_ffn_embed_dim": 48,
    },
    "other heads than the encoder": {"decoder_attention_heads": 4},
    "another output width": {"decoder_output_dim": 24},
    "gelu": {"activation_fn": "gelu"},
    "swish": {"activation_fn": "swish"},
    "gelu_accurate": {"activation_fn": "gelu_accurate"},
}
REFUSED: dict[str, dict[str, Any]] = {
    "tanh": {"activation_fn": "tanh"},
    "adaptive softmax": {"adaptive_softmax_cutoff": "8", "share_decoder_input_output_embed": False},
    "cross-self-attention": {"cross_self_attention": True, "no_cross_attention": True},
    "no cross-attention": {"no_cross_attention": True},
    "scaled heads": {"scale_heads": True},
    "quantisation noise": {"quant_noise_pq": 0.1, "quant_noise_pq_block_size": 4},
}


def student(settings: dict[str, Any]) -> Any:
    """A model whose weights make every module matter for the result."""
    model = build_student("transformer", 1, **{**WIDTHS, **settings}).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(
                0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
            )
    return model


def token_lprobs(model: Any, source: list[int], target: list[int]) -> list[float]:
    """fairseq's log-probabilities of a target with its EOS."""
    eos = letters().eos()
    with torch.no_grad():
        net_output = model(
            torch.tensor([[*source, eos]]), torch.tensor([len(source) + 1]), torch.tensor([[eos, *target]])
        )
        lprobs = model.get_normalized_probs(net_output, log_probs=True)[0]
    return lprobs[range(len(target) + 1), [*target, eos]].tolist()


def scores(folder: Path, source: list[int], target: list[int], quantization: str = "float32") -> list[float]:
    """CTranslate2's log-probabilities of a target with its EOS."""
    translator = ctranslate2.Translator(str(folder), compute_type=quantization, intra_threads=1)
    words = [[letters().symbols[number] for number in side] for side in (source, target)]
    [scored] = translator.score_batch([words[0]], [words[1]])
    return scored.log_probs


def sentence(length: int, seed: int) -> list[int]:
    return torch.randint(4, 20, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("settings", COMPUTED.values(), ids=COMPUTED)
def test_log_probabilities_are_fairseqs(settings: dict[str, Any], tmp_path: Path) -> None:
    """Within 1e-4 up to the longest sentence; the conversion leaves the model's weights unchanged."""
    model = student(settings)
    assert unsupported_reason(model) is None
    before = copy.deepcopy(model.state_dict())
    convert(model, LANGUAGES, tmp_path / "model", quantization="float32")
    convert(model, LANGUAGES, tmp_path / "int8", quantization="int8")
    assert all(torch.equal(values, model.state_dict()[name]) for name, values in before.items())
    assert {path.name for path in tmp_path.iterdir()} == {"model", "int8"}
    for length, seed in ((1, 1), (7, 2), (POSITIONS - 1, 3)):
        source, target = sentence(length, seed), sentence(length, seed + 10)
        expected = token_lprobs(model, source, target)
        assert scores(tmp_path / "model", source, target) == pytest.approx(expected, abs=1e-4)
    assert len(set(expected)) > 40


@pytest.mark.parametrize("name", STUDENTS)
def test_which_students_can_be_converted(name: str, tmp_path: Path) -> None:
    """fairseq's transformers and BART, with fairseq's numbers; no other model."""
    model = trained_student(name)
    assert (unsupported_reason(model) is None) == (name.startswith("transformer") or name == "bart")
    if unsupported_reason(model) is None:
        convert(model, LANGUAGES, tmp_path / "model", quantization="float32")
        expected = token_lprobs(model, sentence(5, 1), sentence(5, 2))
        assert scores(tmp_path / "model", sentence(5, 1), sentence(5, 2)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("settings", REFUSED.values(), ids=REFUSED)
def test_what_it_does_not_compute(settings: dict[str, Any]) -> None:
    """Each of these would fail obscurely or silently be wrong."""
    reason = unsupported_reason(build_student("transformer", 1, **{**WIDTHS, **settings}).eval())
    assert reason is not None
    assert "\n" not in reason


def test_changed_modules_are_noticed() -> None:
    """In the encoder; the fast transformer checks the decoder."""

    class OwnAttention(MultiheadAttention):
        pass

    def other_attention(model: Any) -> None:
        model.encoder.layers[0].self_attn.__class__ = OwnAttention

    def other_layer(model: Any) -> None:
        model.encoder.layers[0] = nn.Sequential(model.encoder.layers[0])

    def other_projection(model: Any) -> None:
        model.encoder.layers[0].fc1 = nn.Sequential(model.encoder.layers[0].fc1)

    def hook(model: Any) -> None:
        model.encoder.layers[0].fc1.register_forward_hook(lambda *_: None)

    def embedding(model: Any) -> None:
        model.encoder.embed_tokens = nn.Sequential(model.encoder.embed_tokens)

    def output(model: Any) -> None:
        model.decoder.output_projection = nn.Sequential(model.decoder.output_projection)

    for change in (other_attention, other_layer, other_projection, hook, embedding, output):
        model = student({"share_decoder_input_output_embed": False})
        assert unsupported_reason(model) is None
        change(model)
        assert unsupported_reason(model) is not None, change.__name__


def test_quantised_models_are_near(tmp_path: Path) -> None:
    """int8 gives other numbers than fairseq, but close ones."""
    model = trained_student("transformer")
    convert(model, LANGUAGES, tmp_path / "model", quantization="int8")
    source = sentence(5, 1)
    expected = token_lprobs(model, source, source[::-1])
    found = scores(tmp_path / "model", source, source[::-1], "int8")
    assert found != pytest.approx(expected, abs=1e-4)
    assert math.fsum(abs(a - b) for a, b in zip(found, expected, strict=True)) / len(found) < 0.3
    assert ctranslate2.get_supported_compute_types("cpu") <= set(QUANTIZATIONS)


def test_a_folder_that_another_process_made_stays(tmp_path: Path) -> None:
    """Two machines that share the work may both convert; the first model may be in use."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.bin").write_text("theirs")
    convert(trained_student("transformer"), LANGUAGES, tmp_path / "model", quantization="float32")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "model.bin").read_text() == "theirs"


def test_symbols_that_are_one_to_it(tmp_path: Path) -> None:
    """A dictionary may hold CTranslate2's name of the padding as a word."""
    with pytest.raises(UsageError, match="a dictionary holds the symbol '<blank>' twice"):
        convert(
            trained_student("transformer"),
            LanguagePair("src", "tgt", letters([*"abcdefghijklmno", "<blank>"]), letters()),
            tmp_path / "m",
            quantization="float32",
        )
    assert not list(tmp_path.iterdir())
    assert isinstance(letters(), Dictionary)
