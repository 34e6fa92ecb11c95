"""The CTranslate2 engine, which is faster than fairseq on a CPU, above all in int8."""

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.engines import ctranslate2_convert
from fairseq_imitkd.engines.base import Hypothesis, SearchSettings

AS_STORED = (
    "default"  # CTranslate2's name for the type of the stored weights, or the nearest type of this device
)


class CTranslate2Engine:
    """CTranslate2's beam search.

    Its scores differ from fairseq's where a token is forbidden: CTranslate2 normalises over the allowed
    tokens only.

    Args:
        folder: model that :func:`~fairseq_imitkd.engines.ctranslate2_convert.convert` wrote.
        languages: the language pair with its dictionaries.
        settings: how to search; ``select`` is ``first`` or ``best``.
        longest_target: maximum number of target tokens that the model can represent, EOS included.
        device: where to compute.
        compute_type: CTranslate2's name of the type to compute in.
    """

    def __init__(
        self,
        folder: Path,
        languages: LanguagePair,
        settings: SearchSettings,
        *,
        longest_target: int,
        device: torch.device,
        compute_type: str = AS_STORED,
    ):
        self.settings, self.longest_target = settings, longest_target
        self._source_symbols = languages.source_dictionary.symbols
        self._target_symbols = ctranslate2_convert.vocabulary(languages.target_dictionary)
        self._target_indices = {symbol: index for index, symbol in enumerate(self._target_symbols)}
        self._eos = languages.target_dictionary.eos()
        library = ctranslate2_convert.library()
        with _without_warnings(library):
            self._translator = library.Translator(
                str(folder),
                device=device.type,
                device_index=device.index or 0,
                compute_type=compute_type,
                inter_threads=1,
                intra_threads=torch.get_num_threads(),
            )

    @property
    def compute_type(self) -> str:
        """CTranslate2's name of the type that the device computes in."""
        return str(self._translator.compute_type)

    def with_settings(self, settings: SearchSettings) -> Self:
        """See :class:`~fairseq_imitkd.engines.base.Engine`."""
        other = copy.copy(self)
        other.settings = settings
        return other

    def translate(self, ids: Sequence[int], sources: Sequence[Tensor], nbest: int) -> list[list[Hypothesis]]:
        """See :class:`~fairseq_imitkd.engines.base.Engine`; ``ids`` are not used."""
        limits = [self.settings.max_length(source.numel(), self.longest_target) for source in sources]
        words = self._source_words(sources)
        found = self._search(words, max(limits), nbest)
        # CTranslate2 has one limit per call. Those beyond their own are translated again.
        beyond = [
            number
            for number, limit in enumerate(limits)
            if any(hypothesis.tokens.numel() - 1 > limit for hypothesis in found[number])
        ]
        for limit in {limits[number] for number in beyond}:
            numbers = [number for number in beyond if limits[number] == limit]
            again = self._search([words[number] for number in numbers], limit, nbest)
            for number, hypotheses in zip(numbers, again, strict=True):
                found[number] = hypotheses
        return found

    def _search(self, words: list[list[str]], limit: int, nbest: int) -> list[list[Hypothesis]]:
        """Translate sentences with a limit of tokens before the EOS."""
        results = self._translator.translate_batch(
            words,
            beam_size=self.settings.beam,
            num_hypotheses=nbest,
            length_penalty=self.settings.lenpen,
            no_repeat_ngram_size=self.settings.no_repeat_ngram_size,
            min_decoding_length=self.settings.min_len,
            max_decoding_length=limit + 1,  # CTranslate2 counts the EOS
            max_input_length=0,
            suppress_sequences=[[ctranslate2_convert.PAD]],
            return_end_token=True,
            return_scores=True,
        )
        return [
            [
                self._hypothesis(hypothesis, score, limit)
                for hypothesis, score in zip(result.hypotheses, result.scores, strict=True)
            ]
            for result in results
        ]

    def score(self, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
        """See :class:`~fairseq_imitkd.engines.base.Engine`."""
        target_words = [[self._target_symbols[token] for token in target.tolist()[:-1]] for target in targets]
        scored = self._translator.score_batch(self._source_words(sources), target_words, max_input_length=0)
        return [torch.tensor(each.log_probs) for each in scored]

    def _source_words(self, sources: Sequence[Tensor]) -> list[list[str]]:
        """Return the symbols of each source without its EOS, which CTranslate2 adds."""
        return [[self._source_symbols[token] for token in source.tolist()[:-1]] for source in sources]

    def _hypothesis(self, words: Sequence[str], score: float, limit: int) -> Hypothesis:
        """Return a hypothesis; like fairseq's, it ends in an EOS where the length limit cuts it."""
        tokens = [self._target_indices[word] for word in words]
        cut = tokens[-1:] != [self._eos]
        return Hypothesis(torch.tensor([*tokens[:limit], self._eos] if cut else tokens), score, cut)


@contextmanager
def _without_warnings(library: Any) -> Iterator[None]:
    """Silence CTranslate2's warning, at each start, that a device computes in another type than the stored
    one. imitkd-export says this once. If CT2_VERBOSE asks for more messages, they are shown.
    """
    before = library.get_log_level()
    library.set_log_level(logging.ERROR if before == logging.WARNING else before)
    try:
        yield
    finally:
        library.set_log_level(before)
