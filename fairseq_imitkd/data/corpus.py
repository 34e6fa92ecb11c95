"""What is to be translated: binarised sources, their references where there are any, and both dictionaries."""

import itertools
import logging
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from fairseq.data import ConcatDataset, Dictionary, data_utils, indexed_dataset
from torch import Tensor

from fairseq_imitkd.data.files import partial, sha256
from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.text.subwords import Text

logger = logging.getLogger(__name__)
_HEADER = struct.Struct(
    "<9sQBQ"
)  # of fairseq's mapped index: a mark, the version, the type of tokens, how many sentences


@dataclass(frozen=True)
class Languages(LanguagePair):
    """The language pair of a fairseq data directory.

    Args:
        folder: the directory.
    """

    folder: Path

    @classmethod
    def of(cls, folder: Path, source: str | None, target: str | None) -> "Languages":
        """Read the dictionaries of a directory.

        Raises:
            UsageError: it is none of fairseq's.
        """
        if not os.path.isdir(folder):
            raise UsageError(f"DATA '{folder}' is no directory: name one that fairseq-preprocess has made")
        if source is None or target is None:
            try:
                found = data_utils.infer_language_pair(str(folder))
            except OSError as error:
                raise UsageError(f"DATA '{folder}' can't be read: {error.strerror}") from error
            given = source or target
            if None in found or (given is not None and given not in found):
                raise UsageError(
                    f"the languages of DATA '{folder}' can't be told from its files: give --source-lang and --target-lang"
                )
            if given is None:
                source, target = found
            else:
                other = found[1] if given == found[0] else found[0]
                source, target = source or other, target or other
        if source == target:
            raise UsageError(f"--source-lang and --target-lang must be two languages, but both are {source}")
        read: list[Dictionary] = []
        for language in (source, target):
            path = folder / f"dict.{language}.txt"
            if not os.path.isfile(path):
                raise UsageError(
                    f"DATA '{folder}' has no dict.{language}.txt: name a directory that fairseq-preprocess has made"
                )
            try:
                read.append(Dictionary.load(str(path)))
            except Exception as error:  # fairseq raises Exception itself
                raise UsageError(f"{path} is no dictionary of fairseq's: {_in_one_line(error)}") from error
        return cls(source, target, read[0], read[1], folder)

    @property
    def pairs(self) -> tuple[str, str]:
        """How files name the two: fairseq-preprocess may have been told either direction."""
        return f"{self.source}-{self.target}", f"{self.target}-{self.source}"

    def dictionary_hashes(self) -> dict[str, str]:
        """What both dictionaries hold."""
        return {
            language: sha256(self.folder / f"dict.{language}.txt") for language in (self.source, self.target)
        }


@dataclass(frozen=True)
class Corpus:
    """Sentences to translate, by number.

    Args:
        sources: of fairseq's data sets, ``(S,)`` token ids with their EOS.
        references: as many, or None.
        text: the file whose lines the sources are, if they were made of one.
    """

    sources: Any
    references: Any | None
    text: Path | None = None

    def __len__(self) -> int:
        return len(self.sources)

    @cached_property
    def lengths(self) -> np.ndarray:
        """``(N,)`` tokens of each source, its EOS included."""
        return np.asarray(self.sources.sizes)


def of_split(languages: Languages, split: str) -> Corpus:
    """A split of the data directory; ``train`` is ``train``, ``train1``, … one after another, as fairseq trains on them.

    Other splits are only themselves, as fairseq has it.

    Raises:
        UsageError: it is not there, empty, damaged, or its sides have different lengths.
    """
    parts = []
    sides = _sides(languages, split)
    if f".{languages.pairs[0]}." not in sides[0][0].name:
        logger.warning(
            "the files are of %s, but are read as %s: make sure that this is the teacher's direction",
            *languages.pairs[::-1],
        )
    for source, target in sides:
        sources = read(source, languages.source_dictionary)
        references = read(target, languages.target_dictionary) if target else None
        if references is not None and len(references) != len(sources):
            raise UsageError(
                f"source and target of --gen-subset {split} must have as many sentences, but {source}.idx has {len(sources)} "
                f"and {target}.idx {len(references)}: binarise them again"
            )
        parts.append((sources, references))
    if len(parts) == 1:
        return Corpus(*parts[0])
    if len({references is None for _, references in parts}) > 1:
        raise UsageError(
            f"all parts of --gen-subset {split} must have a target side, or none: binarise them again"
        )
    sources, references = ([part[side] for part in parts] for side in (0, 1))
    return Corpus(ConcatDataset(sources), None if references[0] is None else ConcatDataset(references))


def check_sentences(
    ids: Sequence[int], sentences: Sequence[Tensor], dictionary: Dictionary, language: str
) -> None:
    """Refuse sentences that another dictionary, or another tool, has made.

    Args:
        ids: their numbers.
        sentences: ``(S,)`` each.
        dictionary: whose symbols they must be, an EOS at the end.
        language: whose dictionary that is.

    Raises:
        UsageError: naming the sentence.
    """
    for sentence, tokens in zip(ids, sentences, strict=True):
        if tokens.numel() and int(tokens.max()) >= len(dictionary):
            raise UsageError(
                f"sentence {sentence} of DATA holds symbol {int(tokens.max())}, but dict.{language}.txt has only "
                f"{len(dictionary)}: binarise the data with the teacher's dictionaries (fairseq-preprocess --srcdict --tgtdict)"
            )
        if not tokens.numel() or int(tokens[-1]) != dictionary.eos():
            raise UsageError(
                f"sentence {sentence} of DATA does not end in an EOS: binarise the data with fairseq-preprocess"
            )


def split_hashes(languages: Languages, split: str) -> dict[str, str]:
    """What the files of a split hold.

    Raises:
        UsageError: it is not there.
    """
    sides = [side for part in _sides(languages, split) for side in part if side]
    return {path.name: sha256(path) for side in sides for path in (Path(f"{side}.idx"), Path(f"{side}.bin"))}


def _sides(languages: Languages, split: str) -> list[tuple[Path, Path | None]]:
    """Where the source and the target of each part of a split are, without their endings."""
    parts: list[tuple[Path, Path | None]] = []
    for number in itertools.count() if split == "train" else (0,):
        part = f"{split}{number}" if number else split
        for pair in languages.pairs:
            source, target = (
                languages.folder / f"{part}.{pair}.{side}" for side in (languages.source, languages.target)
            )
            if os.path.isfile(f"{source}.idx"):
                parts.append((source, target if os.path.isfile(f"{target}.idx") else None))
                break
        else:
            break
    if not parts:
        wanted = f"{split}.{languages.pairs[0]}.{languages.source}.idx"
        raise UsageError(f"--gen-subset '{split}' is not in DATA '{languages.folder}': there is no {wanted}")
    return parts


def of_text(path: Path, text: Text, languages: Languages, folder: Path) -> Corpus:
    """Raw text, a sentence a line, made tokens once and kept in ``folder``.

    Args:
        path: the file, in UTF-8.
        text: what makes symbols of a line.
        languages: whose source dictionary numbers them.
        folder: where the binarised sources go.

    Raises:
        UsageError: the file can't be read.
    """
    dictionary, prefix = languages.source_dictionary, folder / "source"
    if not Path(f"{prefix}.idx").is_file():
        tokens, unknown = 0, 0
        if not path.stat().st_size:
            raise UsageError(f"--source-text '{path}' is empty: give a file with a sentence a line")
        with whole_dataset(prefix, len(dictionary)) as builder:
            for line in lines(path):
                ids = dictionary.encode_line(text.encode(line), add_if_not_exist=False, append_eos=True)
                builder.add_item(ids)
                tokens, unknown = tokens + ids.numel(), unknown + int(ids.eq(dictionary.unk()).sum())
        if unknown > 0.01 * tokens:
            logger.warning(
                "%.1f%% of the tokens of --source-text are unknown to dict.%s.txt: are --bpe and its model the teacher's?",
                100.0 * unknown / tokens, languages.source,
            )  # fmt: skip
    return Corpus(read(prefix, dictionary), None, path)


def lines(text: Path) -> Iterator[str]:
    """A text's lines, without what ends them. Nothing but a line feed does: other separators may stand in a sentence.

    Raises:
        UsageError: it can't be read.
    """
    number = 1
    try:
        with open(text, "rb") as file:
            for number, line in enumerate(file, 1):  # a text file would decode far ahead of the line
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--source-text '{text}': line {number} is not UTF-8: convert the file (iconv)"
        ) from error
    except OSError as error:
        raise UsageError(f"--source-text '{text}' can't be read: {error.strerror}") from error


def read(prefix: Path, dictionary: Dictionary) -> Any:
    """A binarised side.

    Raises:
        UsageError: it is damaged.
    """
    binary, index = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
    if not os.path.isfile(binary):
        raise UsageError(f"{binary} is not there: copy it, or binarise again")
    if binary.stat().st_size == 0:
        raise UsageError(f"{binary} is empty: give a split that has sentences")
    try:
        if indexed_dataset.infer_dataset_impl(str(prefix)) == "mmap":
            _check_index(index)
        dataset = data_utils.load_indexed_dataset(str(prefix), dictionary, None)
        if len(dataset):  # the last sentence is there only if all are
            dataset[len(dataset) - 1]
    except UsageError:
        raise
    except Exception as error:  # whatever fairseq raises on a strange file
        raise UsageError(
            f"{prefix}.idx and .bin can't be read: {_in_one_line(error)}; binarise them again"
        ) from error
    if not len(dataset):
        raise UsageError(f"{prefix}.idx holds no sentence: give a split that has some")
    return dataset


def _check_index(path: Path) -> None:
    """fairseq's own objects of a damaged one complain of themselves, with a traceback, when they go."""
    with open(path, "rb") as file:
        start = file.read(_HEADER.size)
    _, version, kind, count = _HEADER.unpack(start.ljust(_HEADER.size, b"\0"))
    entry = (
        np.dtype(np.int32).itemsize + np.dtype(np.int64).itemsize
    )  # a sentence's length, and where it begins
    if path.stat().st_size < _HEADER.size + count * entry:
        raise UsageError(f"{path} ends early: copy it again, or binarise again")
    if version != 1 or kind not in indexed_dataset._code_to_dtype:
        raise UsageError(f"{path} is damaged: copy it again, or binarise again")


@contextmanager
def whole_dataset(prefix: Path, symbols: int) -> Iterator[Any]:
    """A builder of fairseq's for a side; its files have their names only once they are whole."""
    names = {end: Path(f"{prefix}.{end}") for end in ("bin", "idx")}
    partials = {end: partial(name) for end, name in names.items()}
    builder = indexed_dataset.make_builder(str(partials["bin"]), "mmap", vocab_size=symbols)
    yield builder
    builder.finalize(str(partials["idx"]))
    for end, name in names.items():
        partials[end].replace(name)


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
