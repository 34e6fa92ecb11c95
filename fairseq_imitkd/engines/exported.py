"""What translates and scores: the student itself, and each form that it can be exported to."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from fairseq.data import data_utils
from fairseq.models import BaseFairseqModel
from torch import Tensor

from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.engines import ctranslate2_convert, onnx
from fairseq_imitkd.engines.base import Backend, Decoding, FairseqBackend, Hypothesis
from fairseq_imitkd.engines.ctranslate2 import CTranslateBackend
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.rollout import Ensemble

AS_STORED = "default"  # CTranslate2's word for computing in what the weights are stored in, or in what is next to it here


class Engine(Backend, Protocol):
    """Translates, and says how probable a translation is."""

    def score(self, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
        """Log-probabilities ``(T,)`` in nats of each target's tokens.

        Args:
            sources: ``(S,)`` int64 each, with an EOS, by falling length.
            targets: ``(T,)`` int64 each, with an EOS.
        """


class ModelEngine(FairseqBackend):
    """A model that fairseq decodes with, on the CPU.

    Args:
        model: in evaluation mode.
        languages: the dictionaries.
        decoding: how it translates.
    """

    def __init__(self, model: BaseFairseqModel, languages: Languages, decoding: Decoding):
        super().__init__(Ensemble([model], torch.zeros(1)), languages, decoding, model.max_positions()[1])
        self.model = model

    @torch.no_grad()
    def score(self, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
        """See :class:`Engine`."""
        tokens = data_utils.collate_tokens(sources, self.source_pad, self.source_eos, left_pad=True)
        lengths = torch.tensor([source.numel() for source in sources])
        wanted = data_utils.collate_tokens(targets, self.pad, self.eos)
        previous = data_utils.collate_tokens(targets, self.pad, self.eos, move_eos_to_beginning=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of how fairseq makes its masks
            net_output = self.model(tokens, lengths, previous)
        lprobs = (
            self.model.get_normalized_probs(net_output, log_probs=True)
            .gather(-1, wanted.unsqueeze(-1))
            .squeeze(-1)
        )
        return [row[: target.numel()].clone() for row, target in zip(lprobs, targets, strict=True)]


class OnnxEngine(ModelEngine):
    """A recurrent student computed by onnxruntime: its own greedy decoding, fairseq's beam search."""

    def translate(self, ids: Sequence[int], sources: Sequence[Tensor], nbest: int) -> list[list[Hypothesis]]:
        """See :class:`~fairseq_imitkd.engines.base.Backend`."""
        if self.decoding.beam > 1 or self.decoding.no_repeat_ngram_size:
            return super().translate(ids, sources, nbest)
        cap = self._cap(max(source.numel() for source in sources))
        return [
            [Hypothesis(*found)] for found in onnx.greedy(self.model, sources, cap, self.decoding.min_len)
        ]


# By name, in the order in which they are tried.
FORMS: dict[str, Any] = {"ctranslate2": ctranslate2_convert, "onnx": onnx}


def form_of(model: BaseFairseqModel) -> str | None:
    """The name of a model's form; None when it has none."""
    return next((name for name, form in FORMS.items() if form.why_not(model) is None), None)


def why_none(model: BaseFairseqModel) -> str:
    """Why a model has no form, in a few words."""
    return f"CTranslate2 can't compute it, for {ctranslate2_convert.why_not(model)}; and only SRU and GRU students go to ONNX"


def open_engine(
    form: str,
    folder: Path,
    languages: Languages,
    decoding: Decoding,
    longest: tuple[int, int],
    device: str = "cpu",
) -> Engine:
    """A model that was exported, ready to translate.

    Args:
        form: one of :data:`FORMS`.
        folder: as its ``convert`` writes it.
        languages: the dictionaries.
        decoding: how it translates.
        longest: the most tokens of a source and of a target.
        device: ``cpu`` or ``cuda``.

    Raises:
        UsageError: its packages are not installed, or it can't be computed there.
    """
    try:
        if form == "ctranslate2":
            return CTranslateBackend(folder, languages, decoding, longest[1], torch.device(device), AS_STORED)
        if device != "cpu":
            raise UsageError(
                f"--device {device} can't be used: a recurrent model is computed on the CPU; leave it out"
            )
        return OnnxEngine(
            onnx.load(folder, languages.source_dictionary, languages.target_dictionary, longest),
            languages,
            decoding,
        )
    except ImportError as error:
        raise UsageError(
            f"an exported model needs {error.name}: pip install 'fairseq-imitkd[fast]'"
        ) from error
    except UsageError:
        raise
    except (
        Exception
    ) as error:  # CTranslate2's and onnxruntime's own, on what is no model of theirs, or no device
        raise UsageError(
            f"{folder} can't be loaded with --device {device}: {' '.join(str(error).split())[:300]}"
        ) from error
