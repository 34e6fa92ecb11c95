"""An exported student: a folder with everything that translates raw text.

``imitkd.json`` describes the student and how it was checked. ``model/`` holds a CTranslate2 model or two ONNX
graphs, ``dict.*.txt`` are fairseq's dictionaries, and ``subwords/`` holds the files that turn text into
subwords.
"""

import contextlib
import difflib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.data.files import EXPORTED, checkpoint_in, sha256
from fairseq_imitkd.engines.base import Engine, SearchSettings
from fairseq_imitkd.engines.registry import CONVERTERS, open_engine
from fairseq_imitkd.errors import UsageError, in_one_line
from fairseq_imitkd.text.imported import DESCRIPTION
from fairseq_imitkd.text.imported import SUBWORD_FILES as IMPORTED_FILES
from fairseq_imitkd.text.marks import AUTO, NONE, is_known
from fairseq_imitkd.text.subwords import IMPORTED, SUBWORDS, TOKENIZERS, Text, TextSettings

FORMAT = 1
MANIFEST, MODEL, SUBWORD_FILES = EXPORTED, "model", "subwords"
MOST, MOST_BEAM = 10**6, 1000  # the greatest integer of the settings, and the greatest beam
EXPORTS = "exported"  # folder of the exported student in a run of imitkd-distill
# Characters of a word that merges split: their time grows with the square of its length.
LONGEST_MERGED = 500
INTEGERS = ("beam", "nbest", "samples", "max_len_b", "min_len", "no_repeat_ngram_size", "sampling_topk")


class Bundle:
    """An exported student that translates text.

    Args:
        manifest: content of the folder's ``imitkd.json``.
        languages: the language pair with its dictionaries.
        text: conversion of text to symbols and back.
        engine: what translates.
        longest_source: maximum number of source tokens, EOS included.
        longest_word: maximum number of characters between two spaces of a sentence; None allows any.
        remove_bpe: subword mark to remove from translations, by fairseq's name; None keeps it.
    """

    def __init__(
        self,
        manifest: dict[str, Any],
        languages: Languages,
        *,
        text: Text,
        engine: Engine,
        longest_source: int,
        longest_word: int | None = None,
        remove_bpe: str | None = None,
    ):
        self.longest_word, self.remove_bpe = longest_word, remove_bpe
        self.manifest, self.languages, self.text, self.engine = manifest, languages, text, engine
        self.longest_source = longest_source

    @classmethod
    def read(cls, folder: Path, device: str = "cpu", beam: int | None = None) -> "Bundle":
        """Load an exported student.

        Args:
            folder: folder that ``imitkd-export`` wrote.
            device: ``cpu`` or ``cuda``.
            beam: beam size; None is the one that the student was exported with.

        Raises:
            UsageError: the folder is not an exported student, is damaged, or can't be used on this device.
        """
        manifest, settings = validated(folder)
        languages = Languages.of(folder, settings.source, settings.target)
        engine = open_engine(
            settings.engine,
            folder / MODEL,
            languages,
            settings=settings.search if beam is None else replace(settings.search, beam=beam),
            longest=settings.longest,
            device=device,
        )
        return cls(
            manifest,
            languages,
            text=languages.text(settings.text),
            engine=engine,
            longest_source=settings.longest[0],
            longest_word=LONGEST_MERGED if settings.text.splits_long_words_slowly else None,
            remove_bpe=settings.remove_bpe,
        )

    def encode(self, text: str) -> Tensor:
        """Return the tokens of a sentence, ``(S,)`` int64 with an EOS.

        Words that look like fairseq's special symbols are unknown words: ``</s>`` does not end the sentence.
        """
        dictionary = self.languages.source_dictionary
        tokens = dictionary.encode_line(self.text.encode(text), add_if_not_exist=False).long()
        special = torch.tensor([dictionary.bos(), dictionary.pad(), dictionary.eos()])
        tokens[:-1][torch.isin(tokens[:-1], special)] = dictionary.unk()
        return tokens

    def decode(self, tokens: Tensor) -> str:
        """Return the text of a translation ``(T,)``."""
        return self.text.decode(self.languages.target_dictionary.string(tokens, self.remove_bpe))

    def translate(self, sources: Sequence[Tensor]) -> list[Tensor]:
        """Translate a batch.

        Args:
            sources: ``B`` tensors ``(S,)`` int64 with an EOS, in any order.

        Returns:
            ``B`` translations ``(T,)`` int64 with an EOS, in the order of the sources.
        """
        order = sorted(range(len(sources)), key=lambda number: -sources[number].numel())
        found = self.engine.translate(order, [sources[number] for number in order], 1)
        by_number = dict(zip(order, (best[0].tokens for best in found), strict=True))
        return [by_number[number] for number in range(len(sources))]


def _exported_near(folder: Path) -> list[Path]:
    """Return the exported students that a wrong name may stand for.

    It is the one inside the folder, or else at most three: those in the folder whose names are similar, and
    those of runs of imitkd-distill in the folder, the most similar names first. If the folder does not exist,
    the nearest one above it takes its place.
    """
    sure = [path for path in (folder / EXPORTS, folder.parent) if os.path.isfile(path / MANIFEST)]
    if sure:
        return sure[:1]
    place = next((path for path in (folder, *folder.parents) if os.path.exists(path)), folder)
    near: list[Path] = []
    with contextlib.suppress(OSError):  # the folder can't be searched
        for pattern, cutoff in (("*", 0.6), (f"*/{EXPORTS}", 0.0)):
            exported = [str(path) for path in sorted(place.glob(pattern)) if os.path.isfile(path / MANIFEST)]
            near += map(Path, difflib.get_close_matches(str(folder), exported, n=3, cutoff=cutoff))
    return near[:3]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of an exported student.

    Raises:
        UsageError: the folder is not an exported student, or its manifest can't be read.
    """
    path = folder / MANIFEST
    if not os.path.isfile(path):
        near = _exported_near(folder)
        checkpoint = folder if folder.suffix == ".pt" else checkpoint_in(folder)
        if checkpoint is not None and near[:1] != [folder / EXPORTS]:
            raise UsageError(
                f"DIR '{folder}' is not an exported student; make one first: imitkd-export '{checkpoint}' "
                "--data DATA --out NEW"
            )
        exists = os.path.lexists(folder)
        what = f"DIR '{folder}' {'is not an exported student' if exists else 'does not exist'}"
        if near:
            raise UsageError(f"{what}: did you mean {' or '.join(map(str, near))}?")
        what = f"{what}: it has no {MANIFEST}" if exists else what
        raise UsageError(f"{what}; use a folder that imitkd-export made")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} can't be read ({type(error).__name__}); export the student again"
        ) from error
    if not isinstance(manifest, dict):
        raise UsageError(f"{path} is damaged; export the student again")
    if manifest.get("format") != FORMAT:
        raise UsageError(
            f"{path} is of format {manifest.get('format')!r}, not {FORMAT}; use the release that wrote it"
        )
    return manifest


def validated(folder: Path) -> tuple[dict[str, Any], "Settings"]:
    """Read the manifest of an exported student, and check it and the folder's files.

    Returns:
        the manifest, and its settings.

    Raises:
        UsageError: the folder is not an exported student, or is damaged.
    """
    manifest = read_manifest(folder)
    try:
        settings = Settings.of_manifest(manifest, folder)
        check_files(folder, manifest["files"], settings.file_names())
    except UsageError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UsageError(
            f"{folder / MANIFEST} is damaged ({in_one_line(error, 200)}); export the student again"
        ) from error
    return manifest, settings


@dataclass(frozen=True)
class Settings:
    """The validated settings of a manifest.

    Args:
        engine: name of the engine that computes the model.
        source, target: the languages.
        longest: maximum numbers of tokens of a source and of a target.
        search: how to translate.
        text: how raw text becomes subwords.
        remove_bpe: subword mark to remove from translations, which folders of earlier releases lack.
    """

    engine: str
    source: str
    target: str
    longest: tuple[int, int]
    search: SearchSettings
    text: TextSettings
    remove_bpe: str | None

    @classmethod
    def of_manifest(cls, manifest: dict[str, Any], folder: Path) -> "Settings":
        """Validate a manifest.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, OverflowError: it is damaged.
        """
        engine = manifest["form"]
        if engine not in CONVERTERS:
            raise ValueError(f"its form is {engine!r:.50}")
        longest = (_integer(manifest["longest_source"], 2), _integer(manifest["longest_target"], 2))
        return cls(
            engine,
            source=_language(manifest["source_lang"]),
            target=_language(manifest["target_lang"]),
            longest=longest,
            search=_search_settings(manifest["decoding"], longest[1]),
            text=text_settings(folder, manifest["text"]),
            remove_bpe=_remove_bpe(manifest["text"].get("remove_bpe")),
        )

    def file_names(self) -> list[str]:
        """Return the paths in the folder of the files that a student has besides its model."""
        dictionaries = [f"dict.{language}.txt" for language in (self.source, self.target)]
        return dictionaries + [f"{SUBWORD_FILES}/{path.name}" for path in self.text.files.values()]


def is_language(value: Any) -> bool:
    """Return whether an exported student can have a language of this name, which its files' names hold."""
    return (
        isinstance(value, str)
        and re.fullmatch(r"[\w.-]{1,100}", value) is not None
        and ".." not in f".{value}."
    )


def _language(value: Any) -> str:
    if not is_language(value):
        raise ValueError(f"a language is {value!r:.50}")
    return str(value)


def _remove_bpe(value: Any) -> str | None:
    if not (value is None or (isinstance(value, str) and value not in (AUTO, NONE) and is_known(value))):
        raise ValueError(f"a subword mark is {value!r:.50}")
    return value


def _integer(value: Any, least: int) -> int:
    if not isinstance(value, int) or not least <= value <= MOST:
        raise ValueError(f"a number is {value!r:.50}")
    return value


def _search_settings(values: Any, longest_target: int) -> SearchSettings:
    """Return the search settings of a manifest after checking that the search is feasible."""
    for name in INTEGERS:
        _integer(values[name], 0)
    if values["beam"] > MOST_BEAM or values["min_len"] >= longest_target:
        raise ValueError("its search is not feasible")
    return SearchSettings(**values)


def text_settings(folder: Path, values: Any) -> TextSettings:
    """Return how text becomes subwords, from the manifest's ``text``. All files are taken from the folder.

    Raises:
        ValueError: the kind of subwords or the tokeniser is unknown.
    """
    bpe, tokenizer, files = values["bpe"], values["tokenizer"], values["files"]
    if bpe not in (None, IMPORTED, *SUBWORDS) or tokenizer not in (None, *TOKENIZERS):
        raise ValueError(f"its bpe is {bpe!r} and its tokenizer {tokenizer!r}")
    names = SUBWORDS.get(bpe, ())
    if bpe == IMPORTED:
        names = (DESCRIPTION, *(name for name in IMPORTED_FILES if name in files))
    paths = {name: folder / SUBWORD_FILES / Path(files[name]).name for name in names}
    return TextSettings(bpe, paths, tokenizer)


def check_files(folder: Path, hashes: dict[str, str], required: Sequence[str]) -> None:
    """Check that the files of an exported student are unchanged.

    Args:
        folder: the student's folder.
        hashes: SHA-256 of each file, by its path in the folder.
        required: paths that must be among them, besides the model's files.

    Raises:
        UsageError: a file is missing, was changed or was added to the model; the message names it.
        ValueError: the list of files is not that of an exported student.
    """
    strange = [
        name
        for name in hashes
        if not re.fullmatch(r"(?:(?:model|subwords)/)?[\w.-]{1,200}", name) or ".." in name
    ]
    missing = {*required} - hashes.keys()
    if strange or missing or not any(name.startswith(f"{MODEL}/") for name in hashes):
        raise ValueError("its list of files is not that of an exported student")
    for name in {*hashes, *(str(path.relative_to(folder)) for path in (folder / MODEL).glob("*"))}:
        path = folder / name
        if name not in hashes or not os.path.isfile(path) or sha256(path) != hashes[name]:
            raise UsageError(
                f"{path} is not the file that {MANIFEST} describes; copy the folder again, or export the "
                "student again"
            )
