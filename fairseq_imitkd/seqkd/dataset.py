"""The files of a data set that is made of translations: as text, and binarised."""

import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from fairseq.data import Dictionary
from torch import Tensor

from fairseq_imitkd.data.bars import Bar
from fairseq_imitkd.data.corpus import Corpus, Languages, dataset_builder, encoded, read_lines
from fairseq_imitkd.data.files import sha256
from fairseq_imitkd.seqkd.filters import Counts, Pair, Sides
from fairseq_imitkd.seqkd.translator import Decoders
from fairseq_imitkd.text.subwords import Text
from fairseq_imitkd.text.unknown import check_share, warn_of_share

# Some tools end a line at these characters too.
_SEPARATORS = re.compile("[\r\v\f\x1c-\x1e\x85\u2028\u2029]")


@dataclass(frozen=True)
class Written:
    """How symbols become text.

    Args:
        corpus: the sources.
        languages: languages and dictionaries of the symbols.
        remove_bpe: subword mark to remove from text, by fairseq's name; None keeps it.
        decode: join the subwords of a line of sources and of targets instead; None leaves it to
            ``remove_bpe``.
        from_text: whether the symbols of the targets were made of text, so that unknown ones show a mistake.
    """

    corpus: Corpus
    languages: Languages
    remove_bpe: str | None = None
    decode: Decoders = (None, None)
    from_text: bool = False

    def sides(self) -> Sides:
        """Open the text of both sides. Sources that were given as text are that text."""
        target = partial(self._line, self.languages.target_dictionary, self.decode[1])
        return Sides(self._sources(), target)

    def _line(self, dictionary: Dictionary, decode: Callable[[str], str] | None, tokens: Tensor) -> str:
        if decode is not None:
            return decode(dictionary.string(tokens))
        text: str = dictionary.string(tokens, self.remove_bpe)
        return text

    def _sources(self) -> Callable[[int], str]:
        if self.corpus.text is None:
            sources = self.corpus.sources
            as_text = partial(self._line, self.languages.source_dictionary, self.decode[0])
            return lambda sentence: as_text(sources[sentence].long())
        given, at, line = enumerate(read_lines(self.corpus.text)), -1, ""

        def read_on(sentence: int) -> str:
            nonlocal at, line
            while at < sentence:
                at, line = next(given)
            return line

        return read_on


@dataclass(frozen=True)
class Student:
    """A student with other symbols than the teacher's.

    Args:
        languages: its languages and dictionaries.
        source, target: split text into its subwords.
    """

    languages: Languages
    source: Text
    target: Text

    def symbols(self, source: str, target: str) -> tuple[Tensor, Tensor]:
        """Return the symbols ``(S,)`` and ``(T,)`` of a pair of sentences, int64, EOS included.

        A word that the teacher's dictionary lacks is the student's unknown symbol too.
        """
        return (
            _symbols(source, self.source, self.languages.source_dictionary),
            _symbols(target, self.target, self.languages.target_dictionary),
        )


def _symbols(line: str, text: Text, dictionary: Dictionary) -> Tensor:
    first, *others = (
        encoded(part.rstrip(), text, dictionary)[:-1] for part in line.split(dictionary.unk_string())
    )
    unknown, end = torch.tensor([dictionary.unk()]), torch.tensor([dictionary.eos()])
    return torch.cat([first, *(each for part in others for each in (unknown, part)), end])


def write(
    folder: Path,
    judged: Iterator[tuple[Pair, str | None]],
    written: Written,
    *,
    split: str,
    total: int,
    student: Student | None = None,
) -> None:
    """Write pairs as text into ``folder/text`` and as a data directory into ``folder/data-bin``.

    ``text`` holds ``SPLIT.SOURCE`` and ``SPLIT.TARGET``, line by line, and ``SPLIT.tsv`` with the columns
    sentence number from 0, origin, score, source and target. Characters that some tools take for the end of a
    line become blanks. ``SPLIT.dropped.tsv`` holds the pairs that were dropped: these columns, after them the
    quality, and the reason in the place of the score. ``data-bin`` holds the sentences of ``text`` binarised,
    the dictionaries, and the other splits of the data directory.

    Args:
        folder: where the two folders are made.
        judged: the pairs, and the reason to drop each one or None.
        written: how their symbols become text.
        split: name of the split.
        total: number of pairs at most, for the progress bar.
        student: binarises the text with other symbols; None writes the symbols of the pairs.
    """
    text, data = folder / "text", folder / "data-bin"
    text.mkdir(parents=True)
    data.mkdir()
    languages = written.languages if student is None else student.languages
    prefix = data / f"{split}.{languages.source}-{languages.target}"
    with ExitStack() as opened:
        texts = [
            opened.enter_context(open(text / f"{split}.{end}", "w", encoding="utf-8", newline="\n"))
            for end in (languages.source, languages.target, "tsv", "dropped.tsv")
        ]
        builders = [
            opened.enter_context(dataset_builder(Path(f"{prefix}.{language}"), len(dictionary)))
            for language, dictionary in (
                (languages.source, languages.source_dictionary),
                (languages.target, languages.target_dictionary),
            )
        ]
        unknown = _Unknown(languages)
        pairs = Bar(judged, total=total, desc="write", unit=" pairs")
        for symbols in _written(pairs, written, student, texts=texts):
            for builder, side in zip(builders, symbols, strict=True):
                builder.add_item(side)
            unknown.count(*symbols)
    if student is not None:
        unknown.report(warn_of_share)  # the translations have taken their time already
    elif written.from_text:
        unknown.report(check_share)
    _copy_rest(languages, data)


def _written(
    judged: Iterable[tuple[Pair, str | None]],
    written: Written,
    student: Student | None,
    *,
    texts: Sequence[TextIO],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Write the text of each pair, and yield the symbols of those that are kept.

    Args:
        judged, written, student: as for :func:`write`.
        texts: the files of sources, targets, both, and dropped pairs.
    """
    source_text, target_text, table, dropped = texts
    sides = written.sides()
    for pair, reason in judged:
        source = _SEPARATORS.sub(" ", sides.source(pair.sentence))
        target = _SEPARATORS.sub(" ", sides.target(pair.target))
        plain = source.replace("\t", " "), target
        if reason:
            quality = "" if math.isnan(pair.quality) else f"{pair.quality:.4f}"
            print(pair.sentence, pair.origin, reason, *plain, quality, sep="\t", file=dropped)
            continue
        print(source, file=source_text)
        print(target, file=target_text)
        score = "" if pair.score is None else f"{pair.score:.4f}"
        print(pair.sentence, pair.origin, score, *plain, sep="\t", file=table)
        if student is None:
            yield written.corpus.sources[pair.sentence].long(), pair.target
        else:
            yield student.symbols(source, target)


class _Unknown:
    """Counts the unknown symbols of a data set."""

    def __init__(self, languages: Languages):
        self.sides = {
            languages.source: languages.source_dictionary,
            languages.target: languages.target_dictionary,
        }
        self.tokens, self.unknown = [0, 0], [0, 0]

    def count(self, *pair: Tensor) -> None:
        """Count the symbols of a source and of its target."""
        for side, (tokens, dictionary) in enumerate(zip(pair, self.sides.values(), strict=True)):
            self.tokens[side] += tokens.numel()
            self.unknown[side] += int(tokens.eq(dictionary.unk()).sum())

    def report(self, judge: Callable[..., None]) -> None:
        """Warn of a side with many unknown symbols, or refuse it.

        Args:
            judge: :func:`~fairseq_imitkd.text.unknown.warn_of_share`, or
                :func:`~fairseq_imitkd.text.unknown.check_share`.

        Raises:
            UsageError: as the function does.
        """
        for language, tokens, unknown in zip(self.sides, self.tokens, self.unknown, strict=True):
            judge(
                unknown,
                tokens,
                "the data set",
                language=language,
                remedy="give --student-bpe and the file that the student's data was made with",
            )


def _copy_rest(languages: Languages, data: Path) -> None:
    """Copy the dictionaries and the validation and test splits of the data directory."""
    for language in (languages.source, languages.target):
        shutil.copy(languages.folder / f"dict.{language}.txt", data)
    for path in sorted(languages.folder.iterdir()):
        for pair in languages.pairs:
            found = re.fullmatch(rf"((?:valid|test)\d*)\.{re.escape(pair)}(\..+\.(?:bin|idx))", path.name)
            if found:
                # fairseq takes the languages from any file's name, so all files are named by one direction:
                # https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/data/data_utils.py#L28-L35
                copy = data / f"{found[1]}.{languages.pairs[0]}{found[2]}"
                if not copy.exists():
                    shutil.copy(path, copy)


def summary(counts: Counts, folder: Path) -> dict[str, Any]:
    """Return what the manifest says about a data set: counts, and each file's size in bytes and SHA-256."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "counts": asdict(counts),
        "files": {
            str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in files
        },
    }
