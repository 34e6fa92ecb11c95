"""The text of token ids that every score reads: in validation, imitkd-evaluate, imitkd-seqkd, imitkd-export
and rewards.

One class makes it, so one model has one score. An unknown word of a reference matches nothing, as in
fairseq's ``--eval-bleu``. It is one word on each side, so it counts in lengths as any other word does:
https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/tasks/translation.py#L460-L472
``fairseq-generate --scoring sacrebleu`` writes ``<<unk>>`` and ``<unk>`` instead. sacreBLEU splits these at
the brackets, which then match each other.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fairseq.data import Dictionary
from torch import Tensor

# What stands for an unknown word. The two share no letter, and these capitals are rare in real words, so they
# match nothing in chrF either, which compares letters. ROUGE drops everything but Latin letters and digits.
UNKNOWN_IN_HYPOTHESIS, UNKNOWN_IN_REFERENCE = "ZJZJZ", "QXQXQ"


@dataclass(frozen=True)
class ScoredText:
    """Turns token ids into text, one line a sentence.

    Start and end of sentence and padding are not words.

    Args:
        dictionary: names the tokens.
        remove_bpe: subword marks to remove first, by fairseq's names; None keeps them.
        decode: then undoes subwords and tokenisation of a line; None leaves it unchanged.
    """

    dictionary: Dictionary
    remove_bpe: str | None = None
    decode: Callable[[str], str] | None = None

    def hypotheses(self, sentences: Iterable[Tensor]) -> list[str]:
        """Return translations, ``(T,)`` token ids each, as a score reads them."""
        return [self._line(tokens, UNKNOWN_IN_HYPOTHESIS) for tokens in sentences]

    def references(self, sentences: Iterable[Tensor]) -> list[str]:
        """Return references, ``(T,)`` token ids each, as a score reads them."""
        return [self._line(tokens, UNKNOWN_IN_REFERENCE) for tokens in sentences]

    def sources(self, sentences: Iterable[Tensor]) -> list[str]:
        """Return sentences that no score compares, ``(S,)`` token ids each; an unknown word is ``<unk>``."""
        return [self._line(tokens, self.dictionary.unk_string()) for tokens in sentences]

    def unknown(self, sentences: Iterable[Tensor]) -> int:
        """Return the number of unknown words (with subwords: of unknown pieces) of ``(T,)`` sentences."""
        return sum(int(tokens.eq(self.dictionary.unk()).sum()) for tokens in sentences)

    def _line(self, tokens: Tensor, unknown: str) -> str:
        text = self.dictionary.string(
            tokens.tolist(),
            self.remove_bpe,
            extra_symbols_to_ignore=[self.dictionary.pad()],
            unk_string=unknown,
        )
        return one_line(text if self.decode is None else self.decode(text))


def one_line(text: str) -> str:
    """Return a text without line breaks, for tools that read one sentence a line."""
    return re.sub(r"[\r\n]+", " ", text).strip()


def readable(text: str) -> str:
    """Return scored text for readers: unknown words are ``<unk>`` again."""
    return text.replace(UNKNOWN_IN_HYPOTHESIS, "<unk>").replace(UNKNOWN_IN_REFERENCE, "<unk>")
