"""The ONNX engine: a recurrent student whose encoder and decoder step are computed by onnxruntime."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary, data_utils
from fairseq.models import FairseqEncoder, FairseqEncoderDecoderModel, FairseqIncrementalDecoder
from torch import Tensor

from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.engines.base import Hypothesis
from fairseq_imitkd.engines.fairseq import FairseqEngine
from fairseq_imitkd.engines.onnx_convert import DECODER, ENCODER
from fairseq_imitkd.models.recurrent import RecurrentDecoder, RecurrentEncoder, padded_at_end
from fairseq_imitkd.rollout.engine import COMPACT_SHARE


class OnnxEngine(FairseqEngine):
    """A model from :func:`load`: greedy decoding by :func:`greedy`, beam search by fairseq."""

    def translate(self, ids: Sequence[int], sources: Sequence[Tensor], nbest: int) -> list[list[Hypothesis]]:
        """See :class:`~fairseq_imitkd.engines.base.Engine`."""
        if self.settings.beam > 1 or self.settings.no_repeat_ngram_size:
            return super().translate(ids, sources, nbest)
        limits = [self._max_length(source.numel()) for source in sources]
        [model] = self.writer.models
        found = greedy(model, sources, max_lengths=limits, min_length=self.settings.min_len)
        return [[hypothesis] for hypothesis in found]


def load(folder: Path, languages: LanguagePair, longest: tuple[int, int]) -> FairseqEncoderDecoderModel:
    """Return a model that fairseq can decode with; onnxruntime computes it on as many threads as torch has.

    Args:
        folder: folder that :func:`~fairseq_imitkd.engines.onnx_convert.convert` wrote.
        languages: the language pair with its dictionaries.
        longest: maximum numbers of tokens of a source and of a target.
    """
    encoder = OnnxEncoder(languages.source_dictionary, _session(folder / ENCODER), longest[0])
    decoder = OnnxDecoder(languages.target_dictionary, _session(folder / DECODER), longest[1])
    return FairseqEncoderDecoderModel(encoder, decoder).eval()


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only: its warnings at each start concern its own optimiser
    # Threads that spin between two steps would take the processor from the others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def greedy(
    model: FairseqEncoderDecoderModel,
    sources: Sequence[Tensor],
    *,
    max_lengths: Sequence[int],
    min_length: int,
) -> list[Hypothesis]:
    """Decode a batch greedily in numpy.

    With small models, fairseq's work between two steps takes most of the time; numpy's takes little.

    Args:
        model: model from :func:`load`.
        sources: ``B`` tensors ``(S,)`` int64 with an EOS.
        max_lengths: maximum number of tokens of each sentence before its EOS, which is forced there.
        min_length: minimum number of tokens before the EOS.

    Returns:
        one hypothesis per sentence, scored by its mean log-probability per token.
    """
    encoder, decoder, dictionary = model.encoder, model.decoder, model.decoder.dictionary
    pad, eos, count = dictionary.pad(), dictionary.eos(), len(sources)
    source_tokens = data_utils.collate_tokens(sources, encoder.dictionary.pad()).numpy()
    memory, padding = encoder.session.run(None, {"tokens": source_tokens})
    limits, longest = np.array(max_lengths), max(max_lengths)
    tokens = np.full((count, longest + 1), pad)
    scores, cut = np.zeros(count), np.zeros(count, dtype=bool)
    # Sentences in the batch, their last tokens, and whether each is still unfinished.
    rows, last, alive = np.arange(count), np.full(count, eos), np.ones(count, dtype=bool)
    state = np.zeros((decoder.layers, count, decoder.width), dtype=np.float32)
    for step in range(longest + 1):
        inputs = {"tokens": last, "memory": memory, "padding": padding, "state": state}
        logits, state = decoder.session.run(None, inputs)
        highest = logits.max(axis=-1)
        normaliser = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=-1))
        logits[:, pad] = -np.inf
        if step < min_length:
            logits[:, eos] = -np.inf
        at_limit = limits[rows] <= step
        last = np.where(at_limit, eos, logits.argmax(axis=-1))
        scores[rows] += alive * (logits[np.arange(len(rows)), last] - normaliser)
        cut[rows] |= alive & at_limit
        tokens[rows, step] = np.where(alive, last, pad)
        alive &= last != eos
        left = int(alive.sum())
        if left == 0:
            break
        if left <= (1.0 - COMPACT_SHARE) * len(rows):
            rows, last, state = rows[alive], last[alive], state[:, alive]
            memory, padding = memory[:, alive], padding[alive]
            alive = alive[alive]
    written = [row[row.ne(pad)] for row in torch.from_numpy(tokens)]
    return [
        Hypothesis(own, score / own.numel(), was_cut)
        for own, score, was_cut in zip(written, scores.tolist(), cut.tolist(), strict=True)
    ]


class OnnxEncoder(FairseqEncoder):
    """The encoder's graph behind fairseq's interface.

    Args:
        dictionary: source dictionary.
        session: onnxruntime's session of the graph.
        longest: maximum number of source tokens.
    """

    def __init__(self, dictionary: Dictionary, session: Any, longest: int):
        super().__init__(dictionary)
        self.session, self.longest = session, longest

    def forward(
        self, src_tokens: Tensor, src_lengths: Tensor | None = None, **_: Any
    ) -> dict[str, list[Tensor]]:
        """Encode a batch as :class:`~fairseq_imitkd.models.recurrent.RecurrentEncoder` does."""
        tokens = padded_at_end(src_tokens, self.dictionary.pad())
        memory, padding = self.session.run(None, {"tokens": tokens.numpy()})
        return {
            "encoder_out": [torch.from_numpy(memory)],
            "encoder_padding_mask": [torch.from_numpy(padding)],
        }

    reorder_encoder_out = RecurrentEncoder.reorder_encoder_out

    def max_positions(self) -> int:
        """Return the maximum number of source tokens."""
        return self.longest


class OnnxDecoder(FairseqIncrementalDecoder):
    """The graph of a decoder step behind fairseq's interface.

    Args:
        dictionary: target dictionary.
        session: onnxruntime's session of the graph.
        longest: maximum number of target tokens.
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
        """Return logits ``(B, T, V)``; with an incremental state, those of the last token only."""
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
        """Return the maximum number of target tokens."""
        return self.longest
