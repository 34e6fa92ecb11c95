"""CTranslate2 as what translates: faster than fairseq on a CPU, above all in int8. Its outputs are held against fairseq's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sacrebleu.metrics import CHRF
from torch import Tensor

from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.engines import ctranslate2_convert
from fairseq_imitkd.engines.base import Decoding, Hypothesis, Translated, Translator
from fairseq_imitkd.errors import UsageError

COMPARED = 100  # sentences


class CTranslateBackend:
    """CTranslate2's beam search. In its scores, the probability of tokens that are forbidden is shared out among the others.

    Args:
        folder: its model, as :func:`fairseq_imitkd.engines.ctranslate2_convert.convert` writes it.
        languages: the dictionaries.
        decoding: without samples.
        longest: the most tokens of a target, its EOS included, that the model can represent.
        device: where to decode.
        quantization: what it computes in; ``default`` is what it was stored in.
    """

    def __init__(
        self,
        folder: Path,
        languages: Languages,
        decoding: Decoding,
        longest: int,
        device: torch.device,
        quantization: str,
    ):
        self.decoding, self.longest = decoding, longest
        self.symbols = languages.source_dictionary.symbols
        self.eos = languages.target_dictionary.eos()
        self.words = ctranslate2_convert.vocabulary(languages.target_dictionary)
        self.number = {symbol: number for number, symbol in enumerate(self.words)}
        self.translator = ctranslate2_convert.library().Translator(
            str(folder),
            device=device.type,
            device_index=device.index or 0,
            compute_type=quantization,
            inter_threads=1,
            intra_threads=torch.get_num_threads(),
        )

    def translate(self, ids: Sequence[int], sources: Sequence[Tensor], nbest: int) -> list[list[Hypothesis]]:
        """See :class:`~fairseq_imitkd.engines.base.Backend`."""
        width = max(source.numel() for source in sources)
        cap = min(int(self.decoding.max_len_a * width + self.decoding.max_len_b), self.longest - 1)
        results = self.translator.translate_batch(
            [[self.symbols[token] for token in source.tolist()[:-1]] for source in sources],
            beam_size=self.decoding.beam,
            num_hypotheses=nbest,
            length_penalty=self.decoding.lenpen,
            no_repeat_ngram_size=self.decoding.no_repeat_ngram_size,
            min_decoding_length=self.decoding.min_len,
            max_decoding_length=cap + 1,  # it counts the EOS
            max_input_length=0,
            suppress_sequences=[[ctranslate2_convert.PAD]],
            return_end_token=True,
            return_scores=True,
        )
        return [
            [
                self._hypothesis(words, score, cap)
                for words, score in zip(result.hypotheses, result.scores, strict=True)
            ]
            for result in results
        ]

    def score(self, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
        """Log-probabilities ``(T,)`` of each target's tokens; see :class:`~fairseq_imitkd.engines.exported.Engine`."""
        scored = self.translator.score_batch(
            [[self.symbols[token] for token in source.tolist()[:-1]] for source in sources],
            [[self.words[token] for token in target.tolist()[:-1]] for target in targets],
            max_input_length=0,
        )
        return [torch.tensor(each.log_probs) for each in scored]

    def _hypothesis(self, words: Sequence[str], score: float, cap: int) -> Hypothesis:
        """With an EOS where the cap cuts, as fairseq has it."""
        tokens = [self.number[word] for word in words]
        cut = tokens[-1:] != [self.eos]
        return Hypothesis(torch.tensor([*tokens[:cap], self.eos] if cut else tokens), score, cut)


def check_quantization(quantization: str, device: str) -> None:
    """Whether CTranslate2 is there and computes in it on this machine.

    Raises:
        UsageError: one of them is not so.
    """
    try:
        known = ctranslate2_convert.library().get_supported_compute_types(device)
    except ImportError as error:
        raise UsageError(f"--backend ctranslate2 {ctranslate2_convert.MISSING}") from error
    if quantization not in known:
        raise UsageError(
            f"--quantization must be one of {', '.join(sorted(known))} on this {device}, but is {quantization}"
        )


def agreement(
    ours: Translator, fairseqs: Translator, batches: Sequence[Any], languages: Languages
) -> dict[str, Any]:
    """How far one's translations, those that are kept, are another's.

    Args:
        ours, fairseqs: the two that translate, with the same settings.
        batches: arguments of :meth:`~fairseq_imitkd.engines.base.Translator.translate`.
        languages: whose target dictionary makes text of tokens.

    Returns:
        ``sentences``, how many of them are ``identical``, and ``chrf``, the chrF of ours with fairseq's as references.
    """
    own, theirs = (
        [tokens for batch in batches for tokens in _each(translator.translate(*batch))]
        for translator in (ours, fairseqs)
    )
    marks = ours.decoding.remove_bpe
    texts = [[languages.target_dictionary.string(tokens, marks) for tokens in some] for some in (own, theirs)]
    return {
        "sentences": len(own),
        "identical": sum(torch.equal(a, b) for a, b in zip(own, theirs, strict=True)),
        "chrf": round(CHRF().corpus_score(texts[0], [texts[1]]).score, 2),
    }


def _each(translated: Translated) -> list[Tensor]:
    return list(torch.from_numpy(translated.tokens.astype(np.int64)).split(translated.lengths.tolist()))
