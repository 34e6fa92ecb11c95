"""Translations that others have made: read from files, pooled by sentence, and chosen from as an engine's.

A file has one source in each line, with its translations::

    The cat sits.   Die Katze sitzt.   Eine Katze sitzt.                        (TSV, with tabs)
    {"source": "The cat sits.", "translations": ["Die Katze sitzt."], "scores": [-0.3]}    (JSONL)

A TSV file may begin with a line that names its columns: ``source``, ``translation``, ``score`` (of the
translation before it) and ``reference``. Several files are pooled: a source that occurs for the n-th time in
a file is the sentence of its n-th occurrence in the others.
"""

import hashlib
import json
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from fairseq.data import Dictionary
from torch import Tensor

from fairseq_imitkd.data.corpus import Corpus, Languages, dataset_builder, encoded, read_side
from fairseq_imitkd.data.files import atomic_files, not_text
from fairseq_imitkd.engines.base import Hypothesis, SearchSettings
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.text.scored import one_line
from fairseq_imitkd.text.subwords import Text

FLAG = "--translations"
KINDS = (".tsv", ".jsonl")
COLUMNS = ("source", "translation", "score", "reference")
_PLACES = "places.npy"  # written last: the other files are complete then


@dataclass(frozen=True)
class Translated:
    """A line of a file.

    Args:
        source: the source.
        translations: its translations; empty text where a model answered nothing.
        scores: a score of each, more is better; None if they have none.
        reference: its reference, if there is one.
    """

    source: str
    translations: tuple[str, ...]
    scores: tuple[float, ...] | None = None
    reference: str | None = None


class TranslationFile:
    """A file of translations.

    Args:
        path: the file.
        scores: a file with as many lines; each holds a score for each translation, with tabs or blanks
            between them, in place of the scores of ``path``. None keeps those.

    Raises:
        UsageError: the file can't be read, or it is not of a kind that is known.
    """

    def __init__(self, path: Path, scores: Path | None = None):
        self.path, self.scores = path, scores
        if path.suffix not in KINDS:
            raise UsageError(
                f"{FLAG} '{path}' must end in {' or '.join(KINDS)}, which tells its kind; rename it"
            )
        self._file = _opened(path, FLAG)
        self._scores = None if scores is None else _opened(scores, "--scores")
        self._columns: list[str] | None = None
        first = self._file.readline()
        self._begin = 0
        if path.suffix == ".tsv" and self._is_header(first):
            self._begin = self._file.tell()

    def _is_header(self, first: bytes) -> bool:
        columns = self._text(first, 1).split("\t")
        if "source" not in columns or not set(columns) <= set(COLUMNS):
            return False
        before = ["", *columns]
        wrong = columns.count("source") != 1 or "translation" not in columns or columns.count("reference") > 1
        scored = [
            name
            for name, last in zip(columns, before, strict=False)
            if name == "score" and last != "translation"
        ]
        if wrong or scored or columns.count("score") not in (0, columns.count("translation")):
            raise UsageError(
                f"{FLAG} '{self.path}': the columns must be source, translation (once or more, a score after "
                f"each one or none) and reference, but are {' '.join(columns)}"
            )
        self._columns = columns
        return True

    def __iter__(self) -> Iterator[tuple[tuple[int, int], Translated]]:
        """Yield where each line begins, in this file and in that of the scores, and the line.

        Raises:
            UsageError: a line is not as it must be; the message has its number.
        """
        self._file.seek(self._begin)
        if self._scores is not None:
            self._scores.seek(0)
        number = 1 if self._begin == 0 else 2
        while True:
            place = self._file.tell(), 0 if self._scores is None else self._scores.tell()
            found = self._next(number)
            if found is None:
                break
            yield place, found
            number += 1
        if self._scores is not None and self._scores.readline().strip():
            raise UsageError(
                f"--scores '{self.scores}' has more lines than {FLAG} '{self.path}'; it must have as many"
            )

    def at(self, place: Sequence[int]) -> Translated:
        """Return the line that begins at a place that ``__iter__`` has yielded."""
        self._file.seek(place[0])
        if self._scores is not None:
            self._scores.seek(place[1])
        found = self._next(1 if place[0] == 0 else 2)
        assert found is not None
        return found

    def _next(self, number: int) -> Translated | None:
        line = self._file.readline()
        if not line:
            return None
        text = self._text(line, number)
        try:
            found = self._of_json(text) if self.path.suffix == ".jsonl" else self._of_tsv(text)
        except (ValueError, RecursionError, OverflowError) as error:  # a whole number of 309 digits
            raise UsageError(
                f"{FLAG} '{self.path}': line {number} must hold a source and its translations: "
                f"{' '.join(str(error).split())[:80]}"
            ) from error
        return found if self._scores is None else self._scored(found, number)

    def _text(self, line: bytes, number: int) -> str:
        try:
            return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise not_text(f"{FLAG} '{self.path}'", self.path, number) from error

    def _of_json(self, line: str) -> Translated:
        try:
            content = json.loads(line)
        except ValueError as error:
            raise ValueError(f"it is not JSON (column {getattr(error, 'colno', 1)})") from error
        if not isinstance(content, dict) or not isinstance(content.get("source"), str):
            raise ValueError('it is not an object with a text as its "source"')
        translations = content.get("translations", content.get("translation"))
        translations = [translations] if isinstance(translations, str) else translations
        if not isinstance(translations, list) or not all(isinstance(text, str) for text in translations):
            raise ValueError('its "translations" are not a list of texts')
        scores = content.get("scores", content.get("score"))
        scores = [scores] if isinstance(scores, int | float) else scores
        reference = content.get("reference")
        if reference is not None and not isinstance(reference, str):
            raise ValueError('its "reference" is not a text')
        return _checked(content["source"], translations, scores, reference=reference)

    def _of_tsv(self, line: str) -> Translated:
        fields = line.split("\t")
        columns = self._columns or ["source", *["translation"] * (len(fields) - 1)]
        if len(fields) != len(columns):
            raise ValueError(f"it has {len(fields)} columns, and the first line {len(columns)}")
        by_name = {
            name: [text for column, text in zip(columns, fields, strict=True) if column == name]
            for name in COLUMNS
        }
        if not by_name["translation"]:
            raise ValueError("it has no tab")
        reference = by_name["reference"][0] if by_name["reference"] else None
        scores = [float(text) for text in by_name["score"]] or None
        return _checked(by_name["source"][0], by_name["translation"], scores, reference=reference)

    def _scored(self, found: Translated, number: int) -> Translated:
        assert self._scores is not None
        line = self._scores.readline()
        try:
            return _checked(
                found.source,
                found.translations,
                [float(word) for word in line.split()],
                reference=found.reference,
            )
        except ValueError as error:
            raise UsageError(
                f"--scores '{self.scores}': line {number} of {FLAG} '{self.path}' has "
                f"{len(found.translations)} translations, but its scores are "
                f"'{line[:40].decode(errors='replace').strip()}'"
            ) from error


def _opened(path: Path, flag: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UsageError(f"{flag} '{path}' can't be read: {error.strerror}; check its permissions") from error


def _checked(source: str, translations: Sequence[str], scores: Any, *, reference: str | None) -> Translated:
    """Return a line whose parts fit together.

    Raises:
        ValueError: they do not.
    """
    if scores is not None and (
        not isinstance(scores, list)
        or len(scores) != len(translations)
        or not all(type(score) in (int, float) and math.isfinite(score) for score in scores)
    ):
        raise ValueError("its scores are not one number for each translation")
    return Translated(
        one_line(source),
        tuple(map(one_line, translations)),
        None if scores is None else tuple(map(float, scores)),
        None if reference is None else one_line(reference),
    )


def collect(
    files: Sequence[TranslationFile],
    texts: tuple[Text, Text],
    languages: Languages,
    *,
    folder: Path,
    needs_scores: bool,
) -> Corpus:
    """Read the sentences of all files. They are binarised the first time.

    Args:
        files: the files.
        texts: split a line of the source and of the target into subwords.
        languages: the languages and dictionaries of the data set to make.
        folder: where the binarised sentences are kept, and where the lines of each sentence begin.
        needs_scores: whether every translation must have a score.

    Returns:
        the sentences in the order in which they first occur, with references if the files have them.

    Raises:
        UsageError: a file can't be read or is empty, or only some sentences have what all must have.
    """
    sides = {
        "source": _Side(texts[0], languages.source_dictionary),
        "reference": _Side(texts[1], languages.target_dictionary),
    }
    if not (folder / _PLACES).is_file():
        _collect(files, sides, folder=folder, needs_scores=needs_scores)
    has_references = (folder / "reference.idx").is_file()
    references = read_side(folder / "reference", languages.target_dictionary) if has_references else None
    sources = read_side(folder / "source", languages.source_dictionary)
    return Corpus(sources, references, folder / "source.txt")


@dataclass(frozen=True)
class _Side:
    """How a side's text becomes symbols.

    Args:
        text: splits a line into subwords.
        dictionary: numbers them.
    """

    text: Text
    dictionary: Dictionary

    def symbols(self, line: str) -> Tensor:
        """Return the symbols of a line, ``(T,)`` int64, EOS included."""
        return encoded(line, self.text, self.dictionary)


def _collect(
    files: Sequence[TranslationFile], sides: dict[str, _Side], *, folder: Path, needs_scores: bool
) -> None:
    numbers: dict[tuple[bytes, int], int] = {}  # a source, and how often it came before -> its sentence
    places = array("q")
    row: tuple[int, ...] = ()
    with ExitStack() as opened:
        [lines] = opened.enter_context(atomic_files(folder / "source.txt"))
        builders: dict[str, Any] = {}
        for which, file in enumerate(files):
            occurrences: Counter[bytes] = Counter()
            for place, found in file:
                if needs_scores and found.scores is None and any(map(str.strip, found.translations)):
                    raise UsageError(
                        f"--drop-worst needs a score for each translation, but {FLAG} '{file.path}' lacks "
                        "some; add --scores or --reverse-teacher"
                    )
                if len(files) == 1:
                    number, is_new = len(places) // max(1, len(row)), True
                else:
                    source = hashlib.blake2b(found.source.encode(), digest_size=16).digest()
                    key = source, occurrences[source]
                    occurrences[source] += 1
                    is_new = key not in numbers
                    number = numbers.setdefault(key, len(numbers))
                if not builders:
                    for name in ("source",) if found.reference is None else ("source", "reference"):
                        builder = dataset_builder(folder / name, len(sides[name].dictionary))
                        builders[name] = opened.enter_context(builder)
                if is_new:
                    _add(found, builders, sides, file=file)
                    lines.write(found.source.encode() + b"\n")
                row = (number, which, *place)
                places.extend(row)
        if not places:
            raise UsageError(f"{FLAG} '{files[0].path}' is empty; use a file with one source in each line")
    order = np.frombuffer(places, dtype=np.int64).reshape(-1, len(row))
    with atomic_files(folder / _PLACES) as [output]:
        np.save(output, order[np.argsort(order[:, 0], kind="stable")])


def _add(
    found: Translated, builders: dict[str, Any], sides: dict[str, _Side], *, file: TranslationFile
) -> None:
    """Add a new sentence to the binarised sides."""
    if (found.reference is None) == ("reference" in builders):
        raise UsageError(
            f"{FLAG} '{file.path}': all sentences must have a reference, or none; complete them, or "
            "leave the references out"
        )
    for name, builder in builders.items():
        line = found.source if name == "source" else found.reference
        builder.add_item(sides[name].symbols(line or ""))


class GivenTranslations:
    """Offers the translations of files as an engine offers its own.

    Args:
        files: the files.
        text: splits a line into subwords.
        dictionary: target dictionary.
        settings: which translations are kept; ``nbest`` limits how many are chosen from.
        folder: the folder of :func:`collect`.
    """

    def __init__(
        self,
        files: Sequence[TranslationFile],
        text: Text,
        dictionary: Dictionary,
        *,
        settings: SearchSettings,
        folder: Path,
    ):
        self.files, self.settings, self._side = files, settings, _Side(text, dictionary)
        self._places = np.load(folder / _PLACES, mmap_mode="r", allow_pickle=False)

    def translate(self, ids: Sequence[int], sources: Sequence[Tensor], nbest: int) -> list[list[Hypothesis]]:
        """Return the translations of each sentence, best first; without scores, in the order of the files.

        See :class:`~fairseq_imitkd.engines.base.Engine`. A sentence has scores if all of its translations
        have one, else each is NaN. ``select="first"`` returns no translation twice. Empty ones are left out;
        a sentence without any other has a single empty one, which is counted as such.
        """
        return [self._of(sentence)[:nbest] for sentence in ids]

    def _of(self, sentence: int) -> list[Hypothesis]:
        first, last = np.searchsorted(self._places[:, 0], [sentence, sentence + 1])
        texts: list[str] = []
        scores: list[float] = []
        for _, which, *place in self._places[first:last].tolist():
            found = self.files[which].at(place)
            every = found.scores or [math.nan] * len(found.translations)
            some = [pair for pair in zip(found.translations, every, strict=True) if pair[0].strip()]
            texts += [text for text, _ in some]
            scores += [score for _, score in some]
        if not texts:
            texts, scores = [""], [math.nan]
        if any(map(math.isnan, scores)):
            scores = [math.nan] * len(scores)
        else:
            order = sorted(range(len(texts)), key=lambda at: -scores[at])
            texts, scores = [texts[at] for at in order], [scores[at] for at in order]
        if self.settings.select == "first":
            different = sorted({text: at for at, text in reversed(list(enumerate(texts)))}.values())
            texts, scores = [texts[at] for at in different], [scores[at] for at in different]
        return [
            Hypothesis(self._side.symbols(text), score, cut=False)
            for text, score in zip(texts, scores, strict=True)
        ]
