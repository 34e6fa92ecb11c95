"""Conversion of an SRU or GRU student to two ONNX graphs: the encoder, and one step of the decoder.

CTranslate2 has no recurrent models. torch exports the graphs from the modules that were trained.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fairseq.models import BaseFairseqModel
from torch import Tensor, nn

from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.models.recurrent import GRUModel, RecurrentDecoder, RecurrentEncoder, SRUModel

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
QUANTIZATIONS = ("float32", "int8")
ENCODER, DECODER = "encoder.onnx", "decoder.onnx"


def unsupported_reason(model: BaseFairseqModel) -> str | None:
    """Return in a few words why a model cannot be converted to ONNX; None if it can."""
    if type(model) not in (SRUModel, GRUModel):
        return f"it is a {type(model).__name__}, not an SRU or GRU of this package"
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return "its modules have hooks"
    return None


def convert(model: BaseFairseqModel, languages: LanguagePair, folder: Path, *, quantization: str) -> None:
    """Write a model for which :func:`unsupported_reason` is None.

    Args:
        model: model on the CPU, in float32 and evaluation mode.
        languages: the language pair with its dictionaries.
        folder: folder to create.
        quantization: type of the stored matrices, one of :data:`QUANTIZATIONS`. With ``int8``, the
            activations are quantised at run time (dynamic quantisation).
    """
    folder.mkdir(parents=True)
    encoder, decoder = _Encoder(model.encoder), _Step(model.decoder)
    # The export treats every size but 0 and 1 alike, so the sizes of the example don't matter.
    tokens = torch.tensor([[languages.target_dictionary.nspecial] * 3] * 2)
    sentences, length = torch.export.Dim("sentences"), torch.export.Dim("length")
    with _without_warnings(), torch.no_grad():
        memory, padding = encoder(tokens)
        _, state = model.decoder.write(tokens[:, :1], memory, padding=padding, state=None)
        encoder_inputs = {"tokens": (tokens, {0: sentences, 1: length})}
        _save(folder / ENCODER, encoder, encoder_inputs, outputs=["memory", "padding"])
        decoder_inputs = {
            "tokens": (tokens[:, 0], {0: sentences}),
            "memory": (memory, {0: length, 1: sentences}),
            "padding": (padding, {0: sentences, 1: length}),
            "state": (state, {1: sentences}),
        }
        _save(folder / DECODER, decoder, decoder_inputs, outputs=["logits", "next"])
        if quantization == "int8":
            for name in (ENCODER, DECODER):
                _quantize(folder / name)


class _Encoder(nn.Module):
    """Maps ``(B, S)`` tokens, padded at the end, to the decoder's memory and its padding mask."""

    def __init__(self, encoder: RecurrentEncoder):
        super().__init__()
        self.encoder, self.pad = encoder, encoder.dictionary.pad()

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        padding = tokens.eq(self.pad)
        return self.encoder.read(tokens, padding), padding


class _Step(nn.Module):
    """Maps ``(B,)`` tokens and the layers' states to ``(B, V)`` logits and the next states."""

    def __init__(self, decoder: RecurrentDecoder):
        super().__init__()
        self.decoder = decoder

    def forward(
        self, tokens: Tensor, memory: Tensor, padding: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        features, state = self.decoder.write(tokens.unsqueeze(1), memory, padding=padding, state=state)
        return self.decoder.output_layer(features).squeeze(1), state


def _save(
    path: Path, module: nn.Module, inputs: dict[str, tuple[Tensor, dict[int, Any]]], *, outputs: list[str]
) -> None:
    """Export a module.

    Args:
        path: file to write.
        module: what to export.
        inputs: example and dynamic sizes of each input, by name.
        outputs: names of the outputs.
    """
    import onnx_ir.passes.common

    program = torch.onnx.export(
        module,
        tuple(value for value, _ in inputs.values()),
        input_names=list(inputs),
        output_names=outputs,
        dynamic_shapes=tuple(sizes for _, sizes in inputs.values()),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    # The metadata holds file names and line numbers of the machine that exports.
    onnx_ir.passes.common.ClearMetadataAndDocStringPass()(program.model)
    program.save(path)


def _quantize(path: Path) -> None:
    """Quantise a graph's matrices, also those inside loops over time.

    The weights become unsigned integers. onnxruntime's products of signed integers overflow on processors
    without VNNI, so the same file would give other results there.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        path, path, weight_type=QuantType.QUInt8, per_channel=True, extra_options={"EnableSubgraph": True}
    )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence the many harmless warnings and log messages of the export."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
