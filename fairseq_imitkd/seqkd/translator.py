"""Translation of batches for a data set: which hypotheses are kept, and the agreement of two engines."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from fairseq.data import Dictionary
from sacrebleu.metrics import CHRF
from torch import Tensor

from fairseq_imitkd.checkpoints.comet import CometSimilarity
from fairseq_imitkd.engines import ctranslate2_convert
from fairseq_imitkd.engines.base import Hypothesis, SearchSettings
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.text.expected_utility import expected_utilities, pairwise_utilities
from fairseq_imitkd.text.rewards import REWARDS
from fairseq_imitkd.text.scored import ScoredText

COMPARED = 100  # sentences that two engines are compared on
NO_NUMBERS = (
    "the teacher's scores are not finite: its --teacher-path is damaged, or it needs --teacher-dtype fp32"
)
OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "failed to allocate memory")
Decoders = tuple[Callable[[str], str] | None, Callable[[str], str] | None]  # of sources and of targets
TYPES = {  # dimensions and types of the arrays of a TranslatedBatch
    "ids": (1, np.int64),
    "counts": (1, np.int32),
    "lengths": (1, np.int32),
    "scores": (1, np.float32),
    "cut": (1, np.uint8),
    "tokens": (1, np.int32),
}


@dataclass(frozen=True)
class TranslatedBatch:
    """The hypotheses of a batch of ``B`` sentences: ``H`` hypotheses with ``T`` tokens in all.

    Args:
        ids: ``(B,)`` int64, numbers of the sentences.
        counts: ``(B,)`` int32, number of hypotheses per sentence; they are stored best first.
        lengths: ``(H,)`` int32, number of tokens per hypothesis, EOS included.
        scores: ``(H,)`` float32, mean log-probability per token as fairseq reports it, in nats.
        cut: ``(H,)`` uint8, 1 where the length limit ended the hypothesis.
        tokens: ``(T,)`` int32.
    """

    ids: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray
    cut: np.ndarray
    tokens: np.ndarray

    @classmethod
    def of(cls, ids: Sequence[int], hypotheses: Sequence[Sequence[Hypothesis]]) -> "TranslatedBatch":
        """Pack the hypotheses of each sentence."""
        flat = [hypothesis for some in hypotheses for hypothesis in some]
        return cls(
            ids=np.asarray(ids, dtype=np.int64),
            counts=np.asarray([len(some) for some in hypotheses], dtype=np.int32),
            lengths=np.asarray([hypothesis.tokens.numel() for hypothesis in flat], dtype=np.int32),
            scores=np.asarray([hypothesis.score for hypothesis in flat], dtype=np.float32),
            cut=np.asarray([hypothesis.cut for hypothesis in flat], dtype=np.uint8),
            tokens=torch.cat([hypothesis.tokens for hypothesis in flat]).numpy().astype(np.int32),
        )

    @classmethod
    def checked(cls, arrays: Mapping[str, np.ndarray]) -> "TranslatedBatch":
        """Return a batch of arrays that were read from a file.

        Raises:
            ValueError: the arrays do not fit together.
        """
        if {name: (array.ndim, array.dtype) for name, array in arrays.items()} != TYPES:
            raise ValueError("the arrays are not those of a batch")
        batch = cls(**arrays)
        hypotheses = batch.lengths.size
        sizes = (
            batch.counts.size,
            batch.counts.sum(),
            batch.scores.size,
            batch.cut.size,
            batch.lengths.sum(),
        )
        if sizes != (batch.ids.size, hypotheses, hypotheses, hypotheses, batch.tokens.size):
            raise ValueError("the sizes of the arrays do not fit together")
        return batch

    def token_tensors(self) -> list[Tensor]:
        """Return the tokens of each hypothesis, ``H`` int64 tensors."""
        return list(torch.from_numpy(self.tokens.astype(np.int64)).split(self.lengths.tolist()))

    def first_tensors(self) -> list[Tensor]:
        """Return the tokens of each sentence's first hypothesis, ``B`` int64 tensors."""
        tensors = self.token_tensors()
        return [tensors[at] for at in np.cumsum(self.counts) - self.counts]


class Candidates(Protocol):
    """What offers hypotheses: an :class:`~fairseq_imitkd.engines.base.Engine`, or translations of others."""

    settings: SearchSettings

    def translate(self, ids: Sequence[int], sources: Sequence[Tensor], nbest: int) -> list[list[Hypothesis]]:
        """See :class:`~fairseq_imitkd.engines.base.Engine`."""


class Translator:
    """Translates batches with an engine and keeps the hypotheses that the engine's settings ask for.

    Args:
        engine: what translates.
        dictionary: target dictionary.
        decode: join the subwords of a line of sources and of targets; None leaves it to the settings.
        sources: source dictionary; with ``comet`` alone.
        comet: what the metric ``comet`` asks; None with another metric.
        needs_scores: whether a score that is not a number is an error; else it is the lack of one.
    """

    def __init__(
        self,
        engine: Candidates,
        dictionary: Dictionary,
        *,
        decode: Decoders = (None, None),
        sources: Dictionary | None = None,
        comet: CometSimilarity | None = None,
        needs_scores: bool = True,
    ):
        self.engine, self.settings, self.needs_scores = engine, engine.settings, needs_scores
        self.source, self.text = (
            ScoredText(side, None if joined else self.settings.remove_bpe, joined)
            for side, joined in zip((sources or dictionary, dictionary), decode, strict=True)
        )
        self.comet = comet

    def translate(
        self, ids: Sequence[int], sources: Sequence[Tensor], references: Sequence[Tensor] | None
    ) -> TranslatedBatch:
        """Translate a batch of ``B`` sentences.

        Args:
            ids, sources: as for :meth:`~fairseq_imitkd.engines.base.Engine.translate`.
            references: ``B`` tensors ``(T,)``, which ``select="best"`` compares with; None if there are none.

        Raises:
            UsageError: a score is not finite, or the batch does not fit in memory.
        """
        try:
            hypotheses = self.engine.translate(ids, sources, max(self.settings.nbest, self.settings.keep))
        except AssertionError as error:  # fairseq's search asserts that some score is a number
            raise UsageError(NO_NUMBERS) from error
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            raise UsageError(
                f"a batch of {len(ids)} sentences does not fit in memory: lower --max-tokens, --batch-size "
                "or --beam, and give another --out"
            ) from error
        scores = [hypothesis.score for some in hypotheses for hypothesis in some]
        if (self.needs_scores and not all(map(math.isfinite, scores))) or not all(hypotheses):
            raise UsageError(NO_NUMBERS)
        if self.settings.metric is not None:
            some_references = references if self.settings.select == "best" else [None] * len(ids)
            assert some_references is not None
            texts = self.source.sources(sources) if self.comet else [""] * len(ids)
            every = zip(texts, hypotheses, some_references, strict=True)
            hypotheses = [self._best(*each) for each in every]
        return TranslatedBatch.of(ids, hypotheses)

    def _best(
        self, source: str, hypotheses: Sequence[Hypothesis], reference: Tensor | None
    ) -> list[Hypothesis]:
        """Return the hypotheses that are most similar to the reference, or without one to all hypotheses.

        The first is sequence-level interpolation (Kim & Rush 2016, section 3.3), the second minimum Bayes
        risk (see :mod:`~fairseq_imitkd.text.expected_utility`). Ties go to the more probable hypothesis. Of
        equal texts one is kept.
        """
        texts = self.text.hypotheses(each.tokens for each in hypotheses)
        if reference is None:
            utilities = expected_utilities(texts, partial(self._pairwise, source)).tolist()
        else:
            utilities = self._similarities(source, texts, self.text.references([reference])[0])
        scores = [each.score if math.isfinite(each.score) else 0.0 for each in hypotheses]
        order = sorted(range(len(texts)), key=lambda at: (-utilities[at], -scores[at], at))
        first_of_text = {texts[at]: at for at in reversed(order)}
        different = [at for at in order if first_of_text[texts[at]] == at]
        return [hypotheses[at] for at in different[: self.settings.keep]]

    def _pairwise(self, source: str, texts: list[str]) -> np.ndarray:
        """Return the similarity of each text with each, ``(N, N)``."""
        if self.comet is not None:
            return self.comet.scores(source, texts, texts)
        return pairwise_utilities(texts, self.settings.metric or "")

    def _similarities(self, source: str, texts: list[str], reference: str) -> list[float]:
        """Return the similarity of each text with a reference."""
        if self.comet is not None:
            found: list[float] = self.comet.scores(source, texts, [reference])[:, 0].tolist()
            return found
        return [REWARDS[self.settings.metric or ""](text, reference) for text in texts]


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def agreement(ours: Translator, fairseqs: Translator, batches: Sequence[Any]) -> dict[str, Any]:
    """Compare the first translations that two engines keep of each sentence, with the same settings.

    Args:
        ours: translator that is checked.
        fairseqs: translator that it is compared with.
        batches: arguments of :meth:`Translator.translate`.

    Returns:
        the number of ``sentences``, how many of them are ``identical``, and ``chrf``, the chrF of ours
        against fairseq's.
    """
    own, theirs = (
        [tokens for batch in batches for tokens in translator.translate(*batch).first_tensors()]
        for translator in (ours, fairseqs)
    )
    # Both are outputs, so an unknown word of one is that of the other.
    texts = [ours.text.hypotheses(some) for some in (own, theirs)]
    return {
        "sentences": len(own),
        "identical": sum(torch.equal(a, b) for a, b in zip(own, theirs, strict=True)),
        "chrf": round(CHRF().corpus_score(texts[0], [texts[1]]).score, 2),
    }


def check_ctranslate2(quantization: str, device: str) -> None:
    """Check that CTranslate2 is installed and computes in a type on this device.

    Raises:
        UsageError: one of the two is not the case.
    """
    try:
        known = ctranslate2_convert.library().get_supported_compute_types(device)
    except ImportError as error:
        raise UsageError(
            "--backend ctranslate2 needs CTranslate2: pip install 'fairseq-imitkd[fast]'"
        ) from error
    if quantization not in known:
        raise UsageError(
            f"--quantization must be one of {', '.join(sorted(known))} on this {device}, but is "
            f"{quantization}"
        )
