"""Sentences divided into a prompt and its continuation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary, LanguagePairDataset
from torch import Tensor

from fairseq_imitkd.errors import UsageError


def prompt_lengths(sentences: Any, *, symbol: int | None, length: int, split: str, name: str) -> np.ndarray:
    """Return the number of tokens of each sentence's prompt, ``(N,)``.

    Args:
        sentences: ``N`` sentences, ``(T,)`` token ids each, with an EOS at the end.
        symbol: the prompt ends at the first occurrence of this symbol; None for prompts of a fixed length.
        length: number of tokens of a prompt without ``symbol``. A sentence that is not longer is a prompt as
            a whole, and its continuation is an EOS.
        split, name: what a message calls the data and the symbol.

    Raises:
        UsageError: a sentence lacks the symbol.
    """
    if symbol is None:
        return np.minimum(length, np.asarray(sentences.sizes) - 1)
    found = np.empty(len(sentences), dtype=np.int64)
    for number in range(len(sentences)):
        places = np.flatnonzero(sentences[number].numpy() == symbol)
        if not len(places):
            raise UsageError(
                f"--prompt-symbol {name} is not in sentence {number} of '{split}': its prompt has no end; "
                "add it to the text, or use --prompt-length"
            )
        found[number] = places[0] + 1
    return found


class Part:
    """The prompts, or the continuations, of sentences.

    Args:
        sentences: ``(T,)`` token ids each, with an EOS at the end.
        cuts: number of tokens of each prompt.
        eos: the symbol that ends a prompt, as it ends any source; None for the continuations.
    """

    supports_prefetch = False

    def __init__(self, sentences: Any, cuts: np.ndarray, eos: int | None):
        self.sentences, self.cuts = sentences, cuts
        self.end = None if eos is None else torch.tensor([eos])
        self.sizes = cuts + 1 if eos is not None else np.asarray(sentences.sizes) - cuts

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, index: int) -> Tensor:
        sentence, cut = self.sentences[index], int(self.cuts[index])
        return sentence[cut:] if self.end is None else torch.cat([sentence[:cut], self.end.to(sentence)])


class PromptDataset(LanguagePairDataset):
    """Prompts as sources, and continuations as targets. A language model reads both in one sequence.

    Args:
        sentences: ``(T,)`` token ids each, with an EOS at the end.
        cuts: number of tokens of each prompt.
        dictionary: the dictionary of the sentences.
        others: further arguments of fairseq's ``LanguagePairDataset``.
    """

    def __init__(self, sentences: Any, cuts: np.ndarray, dictionary: Dictionary, **others: Any):
        prompts, rest = (Part(sentences, cuts, eos) for eos in (dictionary.eos(), None))
        super().__init__(
            prompts, prompts.sizes, dictionary, rest, rest.sizes, dictionary, left_pad_source=False, **others
        )

    def num_tokens(self, index: int) -> int:
        """Return the length of the sequence that a model reads."""
        return int(self.num_tokens_vec(np.array([index]))[0])

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        """Return the lengths of the sequences that a model reads."""
        lengths: np.ndarray = self.src_sizes[indices] + self.tgt_sizes[indices] - 1
        return lengths

    def filter_indices_by_size(self, indices: np.ndarray, max_sizes: Any) -> tuple[np.ndarray, list[int]]:
        """Leave out sentences that a model can't read, and prompts that it could not continue by one token.

        Args:
            indices: numbers of sentences.
            max_sizes: the longest sequence. If it is given for each side, the shorter one counts.
        """
        longest = min(max_sizes) if isinstance(max_sizes, Sequence) else max_sizes
        needed = np.maximum(self.num_tokens_vec(indices), self.src_sizes[indices] + 1)
        return indices[needed <= longest], indices[needed > longest].tolist()


class TypedPrompts(LanguagePairDataset):
    """Prompts without continuations.

    Args:
        prompts: ``(S,)`` token ids each, with an EOS at the end.
        lengths: their lengths.
        dictionary: the dictionary of the prompts.
        others: further arguments of fairseq's ``LanguagePairDataset``.
    """

    def __init__(self, prompts: Any, lengths: Any, dictionary: Dictionary, **others: Any):
        super().__init__(prompts, lengths, dictionary, left_pad_source=False, **others)

    def filter_indices_by_size(self, indices: np.ndarray, max_sizes: Any) -> tuple[np.ndarray, list[int]]:
        """Leave out prompts that a model could not continue by one token; see :class:`PromptDataset`."""
        longest = min(max_sizes) if isinstance(max_sizes, Sequence) else max_sizes
        fits = self.src_sizes[indices] < longest
        return indices[fits], indices[~fits].tolist()
