"""Sentences to translate: binarised sources, their references if there are any, and both dictionaries."""

import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from fairseq.data import ConcatDataset, Dictionary, data_utils, indexed_dataset
from torch import Tensor

from fairseq_imitkd.data.dictionaries import load_dictionary
from fairseq_imitkd.data.directory import (
    check_dictionaries,
    check_folder,
    check_halves,
    check_same_dictionaries,
    folders_of,
    languages_of_files,
    missing_split,
)
from fairseq_imitkd.data.files import kind_of, not_text, partial, sha256
from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.errors import UsageError, in_one_line
from fairseq_imitkd.text.subwords import Text
from fairseq_imitkd.text.unknown import check_share, remedy_of_text, warn_of_other_subwords

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Languages(LanguagePair):
    """The language pair of a data directory.

    Args:
        folder: the directory, which has the dictionaries.
        shards: further directories with sentences of ``train``.
    """

    folder: Path
    shards: tuple[Path, ...] = ()

    @classmethod
    def of(cls, folder: Path, source: str | None, target: str | None) -> "Languages":
        """Read the dictionaries of a directory.

        Args:
            folder: the directory, or several joined by ``:``; the first one has the dictionaries.
            source, target: the languages; one that is None is read from the names of the files.

        Raises:
            UsageError: the directory, its languages or its dictionaries can't be read.
        """
        folder, *shards = (folder,) if kind_of(folder, "DATA") else map(Path, folders_of(str(folder)))
        for each in (folder, *shards):
            check_folder(each)
        if source is None or target is None:
            source, target = _completed(source, target, languages_of_files(folder), folder=folder)
        if source == target:
            raise UsageError(f"--source-lang and --target-lang must be two languages, but both are {source}")
        check_dictionaries(folder, (source, target))
        dictionaries = [load_dictionary(folder / f"dict.{language}.txt") for language in (source, target)]
        for shard in shards:
            check_same_dictionaries(folder, shard, (source, target))
        return cls(source, target, dictionaries[0], dictionaries[1], folder, tuple(shards))

    @property
    def pairs(self) -> tuple[str, str]:
        """The names of the pair in file names: fairseq-preprocess may have been given either direction."""
        return f"{self.source}-{self.target}", f"{self.target}-{self.source}"

    def dictionary_hashes(self) -> dict[str, str]:
        """Return the SHA-256 of each language's dictionary."""
        return {
            language: sha256(self.folder / f"dict.{language}.txt") for language in (self.source, self.target)
        }


def _completed(
    source: str | None, target: str | None, found: tuple[str, str], *, folder: Path
) -> tuple[str, str]:
    """Return both languages: those that were given, and the other ones of the files."""
    given = source or target
    if given is None:
        return found
    if given not in found:
        flag = "--source-lang" if source else "--target-lang"
        raise UsageError(
            f"{flag} {given} is not in DATA '{folder}', whose files are of {found[0]}-{found[1]}; use one of "
            "these, or both --source-lang and --target-lang"
        )
    other = found[1] if given == found[0] else found[0]
    return source or other, target or other


@dataclass(frozen=True)
class Corpus:
    """Sentences to translate, by number.

    Args:
        sources: a fairseq data set of ``(S,)`` token ids with their EOS.
        references: a data set of as many references, or None.
        text: the file whose lines the sources were made of, or None.
    """

    sources: Any
    references: Any | None
    text: Path | None = None

    def __len__(self) -> int:
        return len(self.sources)

    @cached_property
    def lengths(self) -> np.ndarray:
        """``(N,)`` number of tokens of each source, EOS included."""
        return np.asarray(self.sources.sizes)

    def warn_of_other_subwords(self, languages: Languages, split: str) -> None:
        """Warn if many symbols of the sources are unknown, as those of text without subwords are.

        Args:
            languages: the dictionaries.
            split: the split that the sentences are of.
        """
        first = (self.sources[number] for number in range(len(self)))
        what, dictionary = f"--gen-subset '{split}'", languages.source_dictionary
        warn_of_other_subwords(first, dictionary, what=what, language=languages.source)


def read_split(languages: Languages, split: str) -> Corpus:
    """Read a split of a data directory.

    ``train`` is ``train``, ``train1``, … of every directory, one after another, as in fairseq's training; any
    other split is one part of the first directory.

    Raises:
        UsageError: the split is missing, empty or damaged, or its sides have different lengths.
    """
    sides = _sides(languages, split)
    if f".{languages.pairs[0]}." not in sides[0][0].name:
        logger.warning(
            "the files are of %s, but are read as %s: make sure that this is the teacher's direction",
            *languages.pairs[::-1],
        )
    parts = [_read_sides(*side, languages=languages, split=split) for side in sides]
    if len(parts) == 1:
        return Corpus(*parts[0])
    if len({references is None for _, references in parts}) > 1:
        raise UsageError(
            f"all parts of --gen-subset {split} must have a target side, or none; binarise them again"
        )
    sources, references = ([part[side] for part in parts] for side in (0, 1))
    return Corpus(ConcatDataset(sources), None if references[0] is None else ConcatDataset(references))


def _sides(languages: Languages, split: str) -> list[tuple[Path, Path | None]]:
    """Return the source and target of each part of a split, without the ends of the file names."""
    shards = languages.shards if split == "train" else ()
    return [
        part for folder in (languages.folder, *shards) for part in _sides_in(folder, languages, split=split)
    ]


def _sides_in(folder: Path, languages: Languages, *, split: str) -> list[tuple[Path, Path | None]]:
    """Return the same as :func:`_sides`, of one directory."""
    check_halves(folder, split)
    parts: list[tuple[Path, Path | None]] = []
    for number in itertools.count() if split == "train" else (0,):
        part = f"{split}{number}" if number else split
        for pair in languages.pairs:
            source, target = (
                folder / f"{part}.{pair}.{side}" for side in (languages.source, languages.target)
            )
            if os.path.isfile(f"{source}.idx"):
                parts.append((source, target if os.path.isfile(f"{target}.idx") else None))
                break
        else:
            break
    if not parts:
        both = (languages.source, languages.target)
        raise missing_split("--gen-subset", split, folder, languages=both)
    return parts


def _read_sides(
    source: Path, target: Path | None, *, languages: Languages, split: str
) -> tuple[Any, Any | None]:
    sources = read_side(source, languages.source_dictionary)
    references = read_side(target, languages.target_dictionary) if target else None
    if references is not None and len(references) != len(sources):
        raise UsageError(
            f"source and target of --gen-subset {split} must have as many sentences, but {source}.idx has "
            f"{len(sources)} and {target}.idx {len(references)}; binarise them again"
        )
    return sources, references


def split_hashes(languages: Languages, split: str) -> dict[str, str]:
    """Return the SHA-256 of each file of a split; those of further directories have a number
    before their name.

    Raises:
        UsageError: the split is missing.
    """
    hashes = {}
    folders = (languages.folder, *languages.shards)
    for side in (side for part in _sides(languages, split) for side in part if side):
        number = folders.index(side.parent)
        for path in (Path(f"{side}.idx"), Path(f"{side}.bin")):
            hashes[f"{number}/{path.name}" if number else path.name] = sha256(path)
    return hashes


def check_sentences(
    ids: Sequence[int], sentences: Sequence[Tensor], dictionary: Dictionary, *, language: str
) -> None:
    """Refuse sentences that were binarised with another dictionary or another tool.

    Args:
        ids: numbers of the sentences.
        sentences: ``(S,)`` tensors of token ids.
        dictionary: the dictionary that they must be of; each must end in its EOS.
        language: language of the dictionary.

    Raises:
        UsageError: a sentence is not; the message has its number.
    """
    for sentence, tokens in zip(ids, sentences, strict=True):
        if tokens.numel() and int(tokens.max()) >= len(dictionary):
            raise UsageError(
                f"sentence {sentence} of DATA holds symbol {int(tokens.max())}, but dict.{language}.txt has "
                f"only {len(dictionary)}; binarise the data with the teacher's dictionaries "
                "(fairseq-preprocess --srcdict --tgtdict)"
            )
        if not tokens.numel() or int(tokens[-1]) != dictionary.eos():
            raise UsageError(
                f"sentence {sentence} of DATA does not end in an EOS; binarise the data with "
                "fairseq-preprocess"
            )


def read_text(path: Path, text: Text, languages: Languages, *, folder: Path) -> Corpus:
    """Read raw text with one sentence per line. It is binarised the first time.

    Args:
        path: the file, in UTF-8.
        text: splits a line into subwords.
        languages: the languages and dictionaries; the source dictionary numbers the subwords.
        folder: where the binarised sources are kept.

    Raises:
        UsageError: the file can't be read, or most of its symbols are unknown.
    """
    dictionary, prefix = languages.source_dictionary, folder / "source"
    if not Path(f"{prefix}.idx").is_file():
        tokens, unknown = 0, 0
        if not path.stat().st_size:
            raise UsageError(f"--source-text '{path}' is empty; use a file with one sentence per line")
        with dataset_builder(prefix, len(dictionary)) as builder:
            for line in read_lines(path):
                ids = encoded(line, text, dictionary)
                builder.add_item(ids)
                tokens, unknown = tokens + ids.numel(), unknown + int(ids.eq(dictionary.unk()).sum())
            remedy = remedy_of_text(dictionary, is_encoded=text.settings.bpe is not None)
            check_share(unknown, tokens, "--source-text", language=languages.source, remedy=remedy)
    return Corpus(read_side(prefix, dictionary), None, path)


def encoded(line: str, text: Text, dictionary: Dictionary) -> Tensor:
    """Return the symbols of a line of text, ``(T,)`` int64, EOS included."""
    ids: Tensor = dictionary.encode_line(text.encode(line), add_if_not_exist=False, append_eos=True)
    return ids.long()


def read_lines(text: Path) -> Iterator[str]:
    """Yield the lines of a text file without their ends.

    Only a line feed ends a line: other separators may be part of a sentence.

    Raises:
        UsageError: the file can't be read.
    """
    number = 1
    try:
        with open(text, "rb") as file:
            for number, line in enumerate(file, 1):  # a text file decodes far ahead of the line
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise not_text(f"--source-text '{text}'", text, number) from error
    except OSError as error:
        raise UsageError(
            f"--source-text '{text}' can't be read: {error.strerror}; check the path and its permissions"
        ) from error


def read_side(prefix: Path, dictionary: Dictionary) -> Any:
    """Read a binarised side of a split.

    Args:
        prefix: the path without ``.idx`` and ``.bin``.
        dictionary: the dictionary that it was binarised with.

    Raises:
        UsageError: the files are missing, empty or damaged.
    """
    binary = Path(f"{prefix}.bin")
    if not os.path.isfile(binary):
        raise UsageError(f"{binary} is not there; copy it, or binarise again")
    if binary.stat().st_size == 0:
        raise UsageError(f"{binary} is empty; use a split that has sentences")
    try:
        dataset = data_utils.load_indexed_dataset(str(prefix), dictionary, None)
        if len(dataset):  # a file that ends early lacks the last sentence
            dataset[len(dataset) - 1]
    except UsageError:
        raise
    except Exception as error:  # fairseq raises many types
        raise UsageError(
            f"{prefix}.idx and .bin can't be read: {in_one_line(error)}; binarise them again"
        ) from error
    if not len(dataset):
        raise UsageError(f"{prefix}.idx holds no sentence; use a split that has some")
    return dataset


@contextmanager
def dataset_builder(prefix: Path, symbols: int) -> Iterator[Any]:
    """Yield fairseq's builder of a binarised side. The files get their names when they are complete.

    Args:
        prefix: the path without ``.idx`` and ``.bin``.
        symbols: size of the dictionary.
    """
    names = {end: Path(f"{prefix}.{end}") for end in ("bin", "idx")}
    partials = {end: partial(name) for end, name in names.items()}
    try:
        builder = indexed_dataset.make_builder(str(partials["bin"]), "mmap", vocab_size=symbols)
        yield builder
        builder.finalize(str(partials["idx"]))
        for end, name in names.items():
            partials[end].replace(name)
    finally:
        for part in partials.values():
            part.unlink(missing_ok=True)
