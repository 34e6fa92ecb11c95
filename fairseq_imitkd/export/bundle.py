"""An exported student: a folder with all that makes translations of raw text.

``imitkd.json`` says what it is and how it was checked; ``model/`` is CTranslate2's, or two ONNX graphs; ``dict.*.txt`` are
fairseq's dictionaries; ``subwords/`` is what makes subwords of text.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.data.files import sha256
from fairseq_imitkd.engines.base import Decoding
from fairseq_imitkd.engines.exported import FORMS, Engine, open_engine
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.text.subwords import SUBWORDS, TOKENIZERS, Text, TextSettings

FORMAT = 1
MANIFEST, MODEL, SUBWORD_FILES = "imitkd.json", "model", "subwords"


class Bundle:
    """Translates text.

    Args:
        manifest: what the folder says of itself.
        languages: the dictionaries.
        text: to symbols and back.
        engine: what translates.
        longest: the most tokens of a source and of a target.
    """

    def __init__(
        self,
        manifest: dict[str, Any],
        languages: Languages,
        text: Text,
        engine: Engine,
        longest: tuple[int, int],
    ):
        self.manifest, self.languages, self.text, self.engine = manifest, languages, text, engine
        self.longest_source = longest[0]

    @classmethod
    def read(cls, folder: Path, device: str = "cpu", beam: int | None = None) -> "Bundle":
        """An exported student, ready to translate.

        Args:
            folder: as ``imitkd-export`` writes it.
            device: ``cpu`` or ``cuda``.
            beam: another beam size than it was exported with.

        Raises:
            UsageError: the folder is none, is damaged, or can't be computed there.
        """
        manifest = read_manifest(folder)
        try:
            source, target = (_name(manifest[side]) for side in ("source_lang", "target_lang"))
            longest = (_count(manifest["longest_source"], 2), _count(manifest["longest_target"], 2))
            decoding = _decoding(manifest["decoding"], longest[1])
            settings = text_settings(folder, manifest["text"])
            form = manifest["form"]
            if form not in FORMS:
                raise ValueError(f"its form is {form!r}")
            names = [f"dict.{language}.txt" for language in (source, target)]
            names += [f"{SUBWORD_FILES}/{path.name}" for path in settings.files.values()]
            check_files(folder, manifest["files"], names)
        except UsageError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            detail = " ".join(str(error).split())[:200]
            raise UsageError(
                f"{folder / MANIFEST} is damaged ({detail}): export the student again"
            ) from error
        languages = Languages.of(folder, source, target)
        decoding = replace(decoding, beam=decoding.beam if beam is None else beam)
        engine = open_engine(form, folder / MODEL, languages, decoding, longest, device)
        return cls(manifest, languages, Text(settings, source, target), engine, longest)

    def encode(self, text: str) -> Tensor:
        """The symbols of a sentence, ``(S,)`` int64 with an EOS."""
        dictionary = self.languages.source_dictionary
        return dictionary.encode_line(self.text.encode(text), add_if_not_exist=False, append_eos=True).long()

    def decode(self, tokens: Tensor) -> str:
        """The text of a translation ``(T,)``."""
        return self.text.decode(self.languages.target_dictionary.string(tokens))

    def translate(self, sources: Sequence[Tensor]) -> list[Tensor]:
        """The translation ``(T,)`` of each sentence ``(S,)`` of a batch, both with an EOS, in the order given."""
        order = sorted(range(len(sources)), key=lambda number: -sources[number].numel())
        found = self.engine.translate(order, [sources[number] for number in order], 1)
        by_number = dict(zip(order, (best[0].tokens for best in found), strict=True))
        return [by_number[number] for number in range(len(sources))]


def read_manifest(folder: Path) -> dict[str, Any]:
    """What an exported student says of itself.

    Raises:
        UsageError: the folder is none.
    """
    path = folder / MANIFEST
    if not os.path.isfile(path):
        raise UsageError(
            f"DIR '{folder}' is no exported student: there is no {MANIFEST}; give one that imitkd-export made"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} can't be read ({type(error).__name__}): export the student again"
        ) from error
    if not isinstance(manifest, dict):
        raise UsageError(f"{path} is damaged: export the student again")
    if manifest.get("format") != FORMAT:
        raise UsageError(
            f"{path} is of format {manifest.get('format')!r}, not {FORMAT}: use the release that wrote it"
        )
    return manifest


def check_files(folder: Path, said: dict[str, str], needed: Sequence[str]) -> None:
    """Whether an exported student's files are what they were.

    Args:
        folder: of the student.
        said: their SHA-256, by name.
        needed: names of files beside those of the model.

    Raises:
        UsageError: naming the file that is not.
        ValueError: a name is none of a file in the folder, or one is missing among them.
    """
    strange = [
        name
        for name in said
        if not re.fullmatch(r"(?:(?:model|subwords)/)?[\w.-]{1,200}", name) or ".." in name
    ]
    missing = {*needed} - said.keys()
    if strange or missing or not any(name.startswith(f"{MODEL}/") for name in said):
        raise ValueError("its list of files is not one of an exported student")
    for name in {*said, *(str(path.relative_to(folder)) for path in (folder / MODEL).glob("*"))}:
        path = folder / name
        if name not in said or not os.path.isfile(path) or sha256(path) != said[name]:
            raise UsageError(
                f"{path} is not what {MANIFEST} says any more: copy the folder again, or export the student again"
            )


def _name(said: Any) -> str:
    """A language's."""
    if not isinstance(said, str) or not re.fullmatch(r"[\w.-]{1,100}", said):
        raise ValueError(f"a language is {said!r:.50}")
    return said


def _count(said: Any, least: int) -> int:
    if not isinstance(said, int) or not least <= said <= 10**6:
        raise ValueError(f"a number is {said!r:.50}")
    return said


def _decoding(said: Any, longest: int) -> Decoding:
    """Numbers where numbers belong, and none that no search can have."""
    for name in ("beam", "nbest", "samples", "max_len_b", "min_len", "no_repeat_ngram_size", "sampling_topk"):
        _count(said[name], 0)
    if said["beam"] > 1000 or said["min_len"] >= longest:
        raise ValueError("its search can't be done")
    return Decoding(**said)


def text_settings(folder: Path, said: Any) -> TextSettings:
    """How an exported student's text is made symbols.

    Raises:
        ValueError: the manifest says nothing that is known.
    """
    bpe, tokenizer, files = said["bpe"], said["tokenizer"], said["files"]
    if not (bpe is None or bpe in SUBWORDS) or not (tokenizer is None or tokenizer in TOKENIZERS):
        raise ValueError(f"its text is of {bpe!r} and {tokenizer!r}")
    names = SUBWORDS[bpe] if bpe else ()
    return TextSettings(
        bpe, {name: folder / SUBWORD_FILES / Path(files[name]).name for name in names}, tokenizer
    )
