"""The sentences of a job, and the batches that they are translated in."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from fairseq.data import data_utils
from torch import Tensor

from fairseq_imitkd.data.corpus import Corpus, Languages, check_sentences, read_split, read_text
from fairseq_imitkd.data.source_only import has_sources
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.export.text_check import share_encoded_otherwise
from fairseq_imitkd.seqkd.filters import LANGUAGE
from fairseq_imitkd.seqkd.folder import DECODED
from fairseq_imitkd.seqkd.job import Job
from fairseq_imitkd.seqkd.translations import TranslationFile, collect
from fairseq_imitkd.text.language import are_numbers
from fairseq_imitkd.text.subwords import Text

CHECKED = 1000  # sentences of DATA that show its subwords


def read_corpus(job: Job, languages: Languages) -> Corpus:
    """Read the sentences to translate. Raw text is binarised the first time.

    Raises:
        UsageError: the corpus can't be read, or lacks the references that the job needs.
    """
    folder = job.out / DECODED
    folder.mkdir(exist_ok=True)
    if job.translations:
        needs_scores = job.filters.drop_worst > 0 and job.reverse_teacher is None
        corpus = collect(
            translation_files(job), job.student_texts(), languages, folder=folder, needs_scores=needs_scores
        )
    elif job.source_text is None:
        corpus = read_split(languages, job.split)
    else:
        corpus = read_text(job.source_text, Text(job.text), languages, folder=folder)
    if job.reference_flag and corpus.references is None:
        where = f"--gen-subset {job.split} of DATA '{job.data}' has no target side"
        where = "--translations have none; add them to the files" if job.translations else where
        raise UsageError(f"{job.reference_flag} needs references, but {where}")
    return corpus


def check_text(job: Job, languages: Languages) -> None:
    """Refuse symbols that do not become text, where text is compared, and subwords that are not theirs.

    Raises:
        UsageError: the targets are numbers, as GPT-2's subwords are, and nothing makes text of them; or
            ``--bpe gpt2`` is given and they are not.
    """
    dictionary, bpe = languages.target_dictionary, job.subwords[1].bpe
    is_of_numbers = are_numbers(dictionary.symbols[dictionary.nspecial :])
    flag = "--student-bpe gpt2" if job.translations else "--bpe gpt2"
    if job.filters.language is not None and bpe is None and is_of_numbers:
        raise UsageError(
            f"{LANGUAGE} {job.filters.language} needs text, but the symbols of dict.{languages.target}.txt "
            f"are numbers; add {flag} with its files"
        )
    if bpe == "gpt2" and not is_of_numbers:
        raise UsageError(
            f"{flag} makes text of numbers, but the symbols of dict.{languages.target}.txt are others; "
            "leave it out"
        )


def check_subwords(job: Job, languages: Languages) -> None:
    """Refuse subwords of ``--source-text`` that are not those of DATA, where a split of it shows them.

    ``train`` comes last, and may have other subwords: they are often sampled there (BPE dropout).

    Raises:
        UsageError: text becomes other symbols than in DATA.
    """
    pair = (languages.source, languages.target)
    splits = ("valid", "test", "train")
    split = next((split for split in splits if has_sources(languages.folder, split, pair)), None)
    if job.source_text is None or job.text.bpe is None or split is None:
        return
    sources = read_split(languages, split).sources
    first = [sources[number].long() for number in range(min(CHECKED, len(sources)))]
    share_encoded_otherwise(job.text, languages, first, split=split, is_sampled=split == "train")


def translation_files(job: Job) -> list[TranslationFile]:
    """Open the files of translations that others have made."""
    return [
        TranslationFile(path, scores)
        for path, scores in zip(job.translations, job.scores or [None] * len(job.translations), strict=True)
    ]


@dataclass(frozen=True)
class Work:
    """What a job has to translate. Every process derives the same from the job.

    Args:
        job: the job.
        languages: the languages and dictionaries of the data.
        corpus: the sentences.
        limits: most tokens of a source and of a target that the teacher can represent, EOS included.
    """

    job: Job
    languages: Languages
    corpus: Corpus
    limits: tuple[int, int]

    @cached_property
    def batches(self) -> list[np.ndarray]:
        """The sentence numbers of each batch."""
        return plan(self.corpus, self.job, self.limits[0])

    def first_batches(self, count: int) -> list[np.ndarray]:
        """Return batches of the first ``count`` sentences that can be translated."""
        if not self.batches:
            return []
        first = np.sort(np.concatenate(self.batches))[:count]
        return plan(self.corpus, self.job, self.limits[0], numbers=first)

    def tokens(self, batches: Sequence[np.ndarray]) -> int:
        """Return the number of source tokens in batches."""
        return int(sum(self.corpus.lengths[numbers].sum() for numbers in batches))

    def read(self, numbers: np.ndarray) -> tuple[list[int], list[Tensor], list[Tensor] | None]:
        """Read a batch of ``B`` sentences.

        Returns:
            ``B`` sentence numbers, ``B`` sources ``(S,)`` and, if the corpus has them, ``B`` references
            ``(T,)``.

        Raises:
            UsageError: a sentence was binarised with another dictionary.
        """
        ids = numbers.tolist()
        languages, references = self.languages, None
        sources = [self.corpus.sources[sentence].long() for sentence in ids]
        check_sentences(ids, sources, languages.source_dictionary, language=languages.source)
        if self.corpus.references is not None:
            references = [self.corpus.references[sentence].long() for sentence in ids]
            check_sentences(ids, references, languages.target_dictionary, language=languages.target)
        return ids, sources, references


def plan(corpus: Corpus, job: Job, longest: int, *, numbers: np.ndarray | None = None) -> list[np.ndarray]:
    """Make batches of sentence numbers, the longest sentences first: a batch that is too large fails at once.

    The batch of a sentence does not depend on what is already translated: rounding could change its words in
    another.

    Args:
        corpus: the sentences.
        job: the job, which limits the size of a batch.
        longest: most tokens of a source; longer sources are left out.
        numbers: the sentences to use; None is all.

    Raises:
        UsageError: a sentence is larger than a batch.
    """
    lengths = corpus.lengths
    numbers = np.arange(len(lengths)) if numbers is None else numbers
    order = numbers[np.argsort(-lengths[numbers], kind="stable")]
    order = order[(lengths[order] > 1) & (lengths[order] <= longest)].astype(np.int64)
    sizes = lengths[order].astype(np.int64)
    if not order.size:
        return []
    if 0 < job.max_tokens < sizes.max():
        raise UsageError(
            f"--max-tokens {job.max_tokens} is less than the longest source's {sizes.max()} tokens; "
            "raise it to that, or use 0"
        )
    return data_utils.batch_by_size(
        order,
        lambda index: int(lengths[index]),
        sizes,
        max_tokens=job.max_tokens or None,
        max_sentences=job.batch_size or None,
        required_batch_size_multiple=1,
    )
