"""The check that raw text becomes the subwords that a student was trained on."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.huggingface.subwords import dictionary_of
from fairseq_imitkd.text.imported import DESCRIPTION, SIDES
from fairseq_imitkd.text.subwords import IMPORTED, TextSettings

logger = logging.getLogger(__name__)
MOST_UNKNOWN = 0.01  # share of symbols
# Shares of sentences. Subwords are always restored; Moses' tokens are restored in about nine of ten sentences
# of a noisy corpus. With a tokeniser that the data never saw, hardly any sentence with a punctuation mark is
# restored. Other subwords have few sentences in common.
WARN_OTHER_SYMBOLS, MOST_OTHER_SYMBOLS, MOST_OTHER_WORDS = 0.05, 0.5, 0.5
OF_IMPORT = "encode the data again by imitkd-encode with the folder of --subwords, without --tags"


@dataclass
class _Counts:
    """Counts over sentences that were decoded to text and encoded again.

    Args:
        of_import: whether an imported model's subwords encoded them.
        symbols: symbols after encoding again.
        unknown: unknown symbols that the sentences did not have before.
        sentences: sentences without unknown symbols, whose text is complete.
        other_symbols: those of them that have other symbols now.
        other_words: those of them that have other words now.
    """

    of_import: bool = False
    symbols: int = 0
    unknown: int = 0
    sentences: int = 0
    other_symbols: int = 0
    other_words: int = 0

    @property
    def share(self) -> float:
        """The share of sentences that have other symbols."""
        return self.other_symbols / max(1, self.sentences)

    def problem(self, split: str, *, is_sampled: bool = False) -> str:
        """Return what shows that the text is not the data's, with the remedy; empty if nothing does.

        Args:
            split: name of the split of the sentences.
            is_sampled: whether it may have BPE dropout, so other subwords show nothing.
        """
        what, remedy = self._found(split, is_sampled=is_sampled)
        return f"{what}; {OF_IMPORT if self.of_import else remedy}" if what else ""

    def _found(self, split: str, *, is_sampled: bool) -> tuple[str, str]:
        """Return what shows it, and the remedy if flags describe the text."""
        if self.unknown > MOST_UNKNOWN * self.symbols:
            return (
                f"{self.unknown / self.symbols:.1%} of the symbols of raw text would be unknown to the model",
                "use the --bpe, its file and the --tokenizer that its data was made with",
            )
        # Words tell a tokenizer that is missing. BPE dropout changes no word.
        if self.other_words > MOST_OTHER_WORDS * self.sentences:
            return (
                f"{self.other_words / self.sentences:.1%} of the sentences of '{split}' change their words "
                "when decoded and encoded again",
                "use the --tokenizer that the data was made with, or none",
            )
        if self.share > MOST_OTHER_SYMBOLS and not is_sampled:
            return (
                f"{self.share:.1%} of the sentences of '{split}' change their subwords when decoded and "
                "encoded again",
                "use the --bpe and file of the data, or a split without BPE dropout",
            )
        return "", ""


def check_dictionaries(settings: TextSettings, languages: LanguagePair) -> None:
    """Refuse an imported model whose dictionaries are not those of the data; other settings have none.

    Raises:
        UsageError: the dictionaries of a side differ.
    """
    if settings.bpe != IMPORTED:
        return
    folder = settings.files[DESCRIPTION].parent
    dictionaries = languages.source_dictionary, languages.target_dictionary
    for side, dictionary in zip(SIDES, dictionaries, strict=True):
        if dictionary_of(folder, side).symbols != dictionary.symbols:
            raise UsageError(
                f"--subwords '{folder}' has another {side} dictionary than --data; use the folder whose "
                "dictionaries the data was made with"
            )


def share_encoded_otherwise(
    settings: TextSettings,
    languages: LanguagePair,
    sources: Sequence[Tensor],
    *,
    split: str,
    is_sampled: bool = False,
) -> float:
    """Decode sentences to text, encode them again, and compare.

    Args:
        settings: how raw text becomes subwords.
        languages: the language pair with its dictionaries.
        sources: ``N`` tensors ``(S,)`` int64 with an EOS.
        split: name of their split, for messages.
        is_sampled: whether the split may have BPE dropout; sentences that become other subwords are then
            warned of, and not refused.

    Returns:
        the share of sentences whose text becomes other symbols than those of the data.

    Raises:
        UsageError: too many symbols become unknown, or too many sentences become other words or subwords.
    """
    counts = _count(settings, languages, sources)
    problem = counts.problem(split, is_sampled=is_sampled)
    if problem:
        raise UsageError(problem)
    if counts.share > WARN_OTHER_SYMBOLS:
        logger.warning(
            "%.1f%% of the sentences of '%s' change their symbols when decoded and encoded again: %s",
            *(100.0 * counts.share, split),
            OF_IMPORT
            if settings.bpe == IMPORTED
            else "check --bpe, its file and --tokenizer (BPE dropout has this effect too)",
        )
    _warn_without_bpe(settings, languages)
    return counts.share


def warn_if_encoded_otherwise(
    settings: TextSettings, languages: LanguagePair, sources: Sequence[Tensor], *, split: str
) -> None:
    """Warn of what :func:`share_encoded_otherwise` refuses, for a user of the text who encodes none.

    The arguments are those of :func:`share_encoded_otherwise`.
    """
    if settings != TextSettings():
        problem = _count(settings, languages, sources).problem(split)
        if problem:
            logger.warning("%s", problem)


def _count(settings: TextSettings, languages: LanguagePair, sources: Sequence[Tensor]) -> _Counts:
    dictionary, counts = languages.source_dictionary, _Counts(settings.bpe == IMPORTED)
    text = languages.text(settings)
    for source in sources:
        symbols = dictionary.string(source)
        encoded = text.encode(text.decode_source(symbols))
        again = dictionary.encode_line(encoded, add_if_not_exist=False).long()
        unknown_before, unknown_now = (int(each.eq(dictionary.unk()).sum()) for each in (source, again))
        counts.symbols += again.numel()
        counts.unknown += max(0, unknown_now - unknown_before)
        if not unknown_before:
            counts.sentences += 1
            counts.other_symbols += not torch.equal(again, source)
            counts.other_words += text.words(encoded).split() != text.words(symbols).split()
    return counts


def _warn_without_bpe(settings: TextSettings, languages: LanguagePair) -> None:
    dictionary = languages.source_dictionary
    marked = sum(symbol.startswith("\u2581") or symbol.endswith("@@") for symbol in dictionary.symbols)
    if settings.bpe is None and marked > 0.1 * len(dictionary):
        logger.warning(
            "the student's dictionary holds subwords, but --bpe is not given: text to translate must already "
            "be in subwords"
        )
