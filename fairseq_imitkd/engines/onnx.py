"""A recurrent student as two ONNX graphs, its encoder and a step of its decoder, and onnxruntime as what computes them.

CTranslate2 has no recurrent models. The graphs are torch's own export of the modules that train.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary, data_utils
from fairseq.models import (
    BaseFairseqModel,
    FairseqEncoder,
    FairseqEncoderDecoderModel,
    FairseqIncrementalDecoder,
)
from torch import Tensor, nn

from fairseq_imitkd.models.recurrent import (
    GRUModel,
    RecurrentDecoder,
    RecurrentEncoder,
    SRUModel,
    padded_at_end,
)
from fairseq_imitkd.rollout.engine import COMPACT_SHARE

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
QUANTIZATIONS = ("float32", "int8")
ENCODER, DECODER = "encoder.onnx", "decoder.onnx"


def why_not(model: BaseFairseqModel) -> str | None:
    """Why a model is none that is exported so, in a few words; None when it is."""
    if type(model) not in (SRUModel, GRUModel):
        return f"it is a {type(model).__name__}, and neither an SRU nor a GRU of this package"
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return "something is hooked to its modules"
    return None


def convert(
    model: BaseFairseqModel, source: Dictionary, target: Dictionary, folder: Path, quantization: str
) -> None:
    """Write a model that :func:`why_not` has no objection to.

    Args:
        model: on the CPU, in float32 and evaluation mode.
        source, target: its dictionaries.
        folder: to make.
        quantization: of its matrices, one of :data:`QUANTIZATIONS`; what they are multiplied with is then quantised as it
            comes (dynamic quantisation).
    """
    folder.mkdir(parents=True)
    encoder, decoder = _Encoder(model.encoder), _Step(model.decoder)
    # Sizes of the example mean nothing: but for 0 and 1, every one is computed alike.
    tokens = torch.tensor([[target.nspecial] * 3] * 2)
    sentences, length = torch.export.Dim("sentences"), torch.export.Dim("length")
    with _quietly(), torch.no_grad():
        memory, padding = encoder(tokens)
        _, state = model.decoder.write(tokens[:, :1], memory, padding, None)
        _save(
            folder / ENCODER, encoder, {"tokens": (tokens, {0: sentences, 1: length})}, ["memory", "padding"]
        )
        inputs = {
            "tokens": (tokens[:, 0], {0: sentences}),
            "memory": (memory, {0: length, 1: sentences}),
            "padding": (padding, {0: sentences, 1: length}),
            "state": (state, {1: sentences}),
        }
        _save(folder / DECODER, decoder, inputs, ["logits", "next"])
        if quantization == "int8":
            for name in (ENCODER, DECODER):
                _quantize(folder / name)


class _Encoder(nn.Module):
    """``(B, S)`` tokens, padded at the end, to what the decoder attends to and where it is padding."""

    def __init__(self, encoder: RecurrentEncoder):
        super().__init__()
        self.encoder, self.pad = encoder, encoder.dictionary.pad()

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        padding = tokens.eq(self.pad)
        return self.encoder.read(tokens, padding), padding


class _Step(nn.Module):
    """``(B,)`` tokens and the layers' states to ``(B, V)`` logits and the states after them."""

    def __init__(self, decoder: RecurrentDecoder):
        super().__init__()
        self.decoder = decoder

    def forward(
        self, tokens: Tensor, memory: Tensor, padding: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        features, state = self.decoder.write(tokens.unsqueeze(1), memory, padding, state)
        return self.decoder.output_layer(features).squeeze(1), state


def _save(
    path: Path, module: nn.Module, inputs: dict[str, tuple[Tensor, dict[int, Any]]], outputs: list[str]
) -> None:
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
    # Where in whose files each line of the model's code stands.
    onnx_ir.passes.common.ClearMetadataAndDocStringPass()(program.model)
    program.save(path)


def _quantize(path: Path) -> None:
    """Also the matrices inside a loop over time.

    To unsigned integers: onnxruntime's products of signed ones overflow on processors without VNNI, and the same file would say
    other things there.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        path, path, weight_type=QuantType.QUInt8, per_channel=True, extra_options={"EnableSubgraph": True}
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the pages that the packages log about things that are as they should be."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def load(
    folder: Path, source: Dictionary, target: Dictionary, longest: tuple[int, int]
) -> FairseqEncoderDecoderModel:
    """A model that fairseq can decode with, computed by onnxruntime on as many threads as torch has.

    Args:
        folder: as :func:`convert` writes it.
        source, target: its dictionaries.
        longest: the most tokens of a source and of a target.
    """
    encoder = OnnxEncoder(source, _session(folder / ENCODER), longest[0])
    return FairseqEncoderDecoderModel(
        encoder, OnnxDecoder(target, _session(folder / DECODER), longest[1])
    ).eval()


def greedy(
    model: FairseqEncoderDecoderModel, sources: Sequence[Tensor], cap: int, min_length: int
) -> list[tuple[Tensor, float, bool]]:
    """Translate a batch with nothing between two steps but the choice of a token: for small models that is most of the time.

    Args:
        model: of :func:`load`.
        sources: ``(S,)`` int64 each, with an EOS.
        cap: the most tokens before the EOS, which is forced there.
        min_length: the fewest.

    Returns:
        of each sentence its tokens ``(T,)`` with an EOS, their mean log-probability in nats, and whether the cap cut it.
    """
    encoder, decoder, dictionary = model.encoder, model.decoder, model.decoder.dictionary
    pad, eos = dictionary.pad(), dictionary.eos()
    tokens = data_utils.collate_tokens(sources, encoder.dictionary.pad()).numpy()
    memory, padding = encoder.session.run(None, {"tokens": tokens})
    written = np.full((len(sources), cap + 1), pad)
    scores, cut = np.zeros(len(sources)), np.zeros(len(sources), dtype=bool)
    rows, last = (
        np.arange(len(sources)),
        np.full(len(sources), eos),
    )  # still in the batch, and their last tokens
    alive = np.ones(len(sources), dtype=bool)
    state = np.zeros((decoder.layers, len(sources), decoder.width), dtype=np.float32)
    for step in range(cap + 1):
        inputs = {"tokens": last, "memory": memory, "padding": padding, "state": state}
        logits, state = decoder.session.run(None, inputs)
        highest = logits.max(axis=-1)
        normaliser = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=-1))
        logits[:, pad] = -np.inf
        if step < min_length:
            logits[:, eos] = -np.inf
        last = logits.argmax(axis=-1) if step < cap else np.full(len(rows), eos)
        scores[rows] += alive * (logits[np.arange(len(rows)), last] - normaliser)
        cut[rows] = alive & (step == cap)
        written[rows, step] = np.where(alive, last, pad)
        alive &= last != eos
        left = int(alive.sum())
        if left == 0:
            break
        if left <= (1.0 - COMPACT_SHARE) * len(rows):
            rows, last, state = rows[alive], last[alive], state[:, alive]
            memory, padding = memory[:, alive], padding[alive]
            alive = alive[alive]
    found = []
    for row, score, was_cut in zip(torch.from_numpy(written), scores.tolist(), cut.tolist(), strict=True):
        own = row[row.ne(pad)]
        found.append((own, score / own.numel(), was_cut))
    return found


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Threads that wait for the next step would take the processor from the others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class OnnxEncoder(FairseqEncoder):
    """The encoder's graph behind fairseq's interface.

    Args:
        dictionary: of the source.
        session: of the graph.
        longest: the most tokens of a source.
    """

    def __init__(self, dictionary: Dictionary, session: Any, longest: int):
        super().__init__(dictionary)
        self.session, self.longest = session, longest

    def forward(
        self, src_tokens: Tensor, src_lengths: Tensor | None = None, **_: Any
    ) -> dict[str, list[Tensor]]:
        """As :class:`~fairseq_imitkd.models.recurrent.RecurrentEncoder` has it."""
        tokens = padded_at_end(src_tokens, self.dictionary.pad())
        memory, padding = self.session.run(None, {"tokens": tokens.numpy()})
        return {
            "encoder_out": [torch.from_numpy(memory)],
            "encoder_padding_mask": [torch.from_numpy(padding)],
        }

    reorder_encoder_out = RecurrentEncoder.reorder_encoder_out

    def max_positions(self) -> int:
        """The longest source, in tokens."""
        return self.longest


class OnnxDecoder(FairseqIncrementalDecoder):
    """The graph of a decoder's step behind fairseq's interface.

    Args:
        dictionary: of the target.
        session: of the graph.
        longest: the most tokens of a target.
    """

    adaptive_softmax = None

    def __init__(self, dictionary: Dictionary, session: Any, longest: int):
        super().__init__(dictionary)
        self.session, self.longest = session, longest
        [state] = [each.shape for each in session.get_inputs() if each.name == "state"]
        self.layers, self.width = state[0], state[2]

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Tensor]],
        incremental_state: dict[str, dict[str, Tensor | None]] | None = None,
        **_: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Logits ``(B, T, V)``; with an incremental state of the last token alone."""
        memory, padding = encoder_out["encoder_out"][0], encoder_out["encoder_padding_mask"][0]
        state = torch.zeros(self.layers, prev_output_tokens.size(0), self.width)
        if incremental_state is not None:
            cached = self.get_incremental_state(incremental_state, "state")
            if cached is not None and cached["state"] is not None:
                state, prev_output_tokens = cached["state"], prev_output_tokens[:, -1:]
        inputs = {"memory": memory.numpy(), "padding": padding.numpy(), "state": state.numpy()}
        logits = []
        for tokens in prev_output_tokens.unbind(dim=1):
            step, inputs["state"] = self.session.run(None, {"tokens": tokens.numpy(), **inputs})
            logits.append(torch.from_numpy(step))
        if incremental_state is not None:
            self.set_incremental_state(
                incremental_state, "state", {"state": torch.from_numpy(inputs["state"])}
            )
        return torch.stack(logits, dim=1), {"attn": [None], "inner_states": None}

    reorder_incremental_state = RecurrentDecoder.reorder_incremental_state

    def max_positions(self) -> int:
        """The longest target, in tokens."""
        return self.longest
