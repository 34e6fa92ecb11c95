"""BLEU of ``imitkd-generate``: the number that validation and imitkd-evaluate have for the same translations.

fairseq's scorer of ``--scoring sacrebleu`` takes an unknown word for several words, some of which match, and
its ``--scoring bleu`` compares tokens without sacreBLEU's tokenizer.
"""

import re
from typing import Any

from fairseq.scoring import BaseScorer, register_scorer
from fairseq.scoring.bleu import SacrebleuConfig
from sacrebleu.metrics import BLEU

from fairseq_imitkd.text.scored import UNKNOWN_IN_HYPOTHESIS, UNKNOWN_IN_REFERENCE

NAME = "sacrebleu_of_words"
# fairseq-generate's texts of an unknown word; GPT-2's subwords take away the brackets' spaces.
_REFERENCES, _HYPOTHESES = re.compile("<<unk>>"), re.compile("<unk>")


@register_scorer(NAME, dataclass=SacrebleuConfig)
class WordScorer(BaseScorer):
    """sacreBLEU, for which an unknown word is one word that matches nothing.

    Args:
        cfg: the flags of ``--scoring sacrebleu``.
    """

    def __init__(self, cfg: Any):
        super().__init__(cfg)
        tokenizer = "char" if cfg.sacrebleu_char_level else str(cfg.sacrebleu_tokenizer)
        self._bleu = BLEU(tokenize=tokenizer, lowercase=cfg.sacrebleu_lowercase, references=[[""]])

    def add_string(self, ref: str, pred: str) -> None:
        """Add a sentence: its reference and its translation, as fairseq-generate writes them."""
        self.ref.append(_REFERENCES.sub(UNKNOWN_IN_REFERENCE, ref))
        self.pred.append(_HYPOTHESES.sub(UNKNOWN_IN_HYPOTHESIS, pred))

    def score(self, order: int = 4) -> float:
        """Return BLEU in per cent; ``order`` is always 4."""
        return float(self._bleu.corpus_score(self.pred, [self.ref]).score)

    def result_string(self, order: int = 4) -> str:
        """Return BLEU with its signature, as fairseq prints it."""
        found = self._bleu.corpus_score(self.pred, [self.ref])
        return f"{found.format(width=2)} ({self._bleu.get_signature()})"
