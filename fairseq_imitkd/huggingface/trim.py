"""Trims the vocabulary of a model to the symbols of a corpus, exactly.

Rows of the embeddings and of the output matrix are left out. So the log-probabilities of the other symbols
are those of the model, renormalised over what is left.
"""

import glob
import os
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairseq.data import Dictionary
from torch import Tensor

from fairseq_imitkd.checkpoints.build import configuration
from fairseq_imitkd.checkpoints.compact import read
from fairseq_imitkd.checkpoints.direction import trained_pair
from fairseq_imitkd.checkpoints.safe_load import reported
from fairseq_imitkd.checkpoints.symbol_tables import are_joined, check_tables, trimmed_weights
from fairseq_imitkd.checkpoints.tags import SETTING, language_tags
from fairseq_imitkd.checkpoints.translation import load_student
from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.data.dictionaries import FINGERPRINTS, fingerprints
from fairseq_imitkd.data.files import not_text
from fairseq_imitkd.data.output_folder import NEW, OutputFolder
from fairseq_imitkd.errors import UsageError, as_usage_error
from fairseq_imitkd.huggingface.folder import read_json
from fairseq_imitkd.huggingface.spm import without_pieces
from fairseq_imitkd.huggingface.subwords import write_description
from fairseq_imitkd.text.imported import DESCRIPTION, SUBWORD_FILES
from fairseq_imitkd.text.unknown import MOST_USABLE

LARGEST = 1e-5  # difference of log-probabilities in float32, divided by those that are above 1
_ADDED = re.compile(r"__.+__|\[.+\]|<mask>")  # symbols that fairseq's multilingual tasks add
# What to do about a corpus of unknown symbols, by the flag that names it.
REMEDIES = {"--text": "encode it with the model's subwords", "--trim-to": "use text of the model's languages"}
_LANGUAGES = ("--source-lang", "--target-lang")
_LINES, _LONGEST = 16, 60  # sentences on which both models are compared, and most of their symbols


@dataclass(frozen=True)
class TrimJob:
    """A vocabulary to trim.

    Args:
        checkpoint: the model.
        out: folder to create.
        text: prefixes of the corpus: ``PREFIX.LANG`` holds symbols with spaces between them.
        data: folder of the dictionaries; None takes that of the checkpoint.
        min_count: fewest occurrences of a symbol that stays.
        keep: further symbols that stay.
        source_lang, target_lang: languages; None takes those of the checkpoint.
        allow_globals: types that the checkpoint may hold beside fairseq's own.
        flag: the flag that names the corpus, a key of :data:`REMEDIES`.
    """

    checkpoint: Path
    out: Path
    text: Sequence[str]
    data: Path | None = None
    min_count: int = 1
    keep: Sequence[str] = ()
    source_lang: str | None = None
    target_lang: str | None = None
    allow_globals: str | None = None
    flag: str = "--text"


@dataclass(frozen=True)
class SideReport:
    """What became of a side.

    Args:
        language: its language.
        before, after: numbers of symbols.
        tokens: number of tokens of the corpus.
        unknown_before, unknown_after: how many of them the dictionary lacks.
    """

    language: str
    before: int
    after: int
    tokens: int
    unknown_before: int
    unknown_after: int


@dataclass(frozen=True)
class Trimmed:
    """What was made.

    Args:
        sides: source and target.
        parameters: numbers of parameters before and after.
        difference: greatest difference of log-probabilities from the renormalised ones of the model.
        checkpoint: the new file.
    """

    sides: tuple[SideReport, SideReport]
    parameters: tuple[int, int]
    difference: float
    checkpoint: Path


def trim(job: TrimJob, counts: Mapping[str, Counter[str]] | None = None) -> Trimmed:
    """Trim a model's vocabulary. The folder appears whole or not at all.

    Args:
        job: the vocabulary to trim.
        counts: how often a corpus has each symbol, of ``source`` and ``target``; None counts those of the
            job's text.

    Raises:
        UsageError: a file can't be read, the model has no tables of symbols, or the trimmed model computes
            something else.
    """
    out = OutputFolder(job.out, NEW)
    out.check_new()
    state = read(str(job.checkpoint), job.allow_globals)
    check_tables(state["model"], name=f"CHECKPOINT '{job.checkpoint}'")
    languages = _languages(job, state, has_text=counts is None)
    dictionaries = {"source": languages.source_dictionary, "target": languages.target_dictionary}
    pair = {"source": languages.source, "target": languages.target}
    if counts is None:
        counts = {side: count_symbols(job.flag, job.text, language) for side, language in pair.items()}
    _check_keep(job, dictionaries, pair)
    described = _description(languages.folder)
    wanted = {
        side: {symbol for symbol, count in counts[side].items() if count >= job.min_count}
        | {*job.keep, *_tags(job, state, dictionaries[side])}
        for side in pair
    }
    if are_joined(state["model"]):
        wanted = dict.fromkeys(pair, wanted["source"] | wanted["target"])
    kept = {side: kept_indices(dictionaries[side], wanted[side]) for side in pair}
    new = {side: trimmed_dictionary(dictionaries[side], kept[side]) for side in pair}
    sides = [_report(counts[side], dictionaries[side], new[side], language=pair[side]) for side in pair]
    _check_known(job, sides)
    with out.built() as folder:
        for side, language in pair.items():
            new[side].save(str(folder / f"dict.{language}.txt"))
        model = trimmed_weights(state["model"], kept, {side: len(dictionaries[side]) for side in pair})
        parameters = _parameters(state["model"]), _parameters(model)
        task_state = {**(state.get("task_state") or {}), FINGERPRINTS: fingerprints(new)[FINGERPRINTS]}
        content = {**_in_folder(state, job.out), "model": model, "task_state": task_state}
        torch.save(content, folder / job.checkpoint.name)
        if described is not None:
            write_description(folder, described)
            _copy_subwords(languages.folder, folder, new)
        difference, relative = _difference(job, languages, folder, kept=kept)
        if not relative <= LARGEST:
            raise UsageError(
                f"CHECKPOINT '{job.checkpoint}' can't be trimmed exactly: log-probabilities differ by "
                f"{difference:.2g}; use the whole model"
            )
    return Trimmed((sides[0], sides[1]), parameters, difference, job.out / job.checkpoint.name)


def _in_folder(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a checkpoint whose configuration names the folder of its new dictionaries."""
    state, data = dict(state), str(folder.resolve())
    if isinstance(state.get("args"), Namespace):
        state["args"] = Namespace(**{**vars(state["args"]), "data": data})
    if state.get("cfg") is not None and state["cfg"].get("task") is not None:
        task = state["cfg"]["task"]
        named = (
            Namespace(**{**vars(task), "data": data})
            if isinstance(task, Namespace)
            else {**task, "data": data}
        )
        state["cfg"] = {**state["cfg"], "task": named}
    return state


def kept_indices(dictionary: Dictionary, wanted: Iterable[str]) -> list[int]:
    """Return the indices of the symbols that stay, in their order.

    These are the special symbols, the wanted ones, and each single letter of them: then a subword that is
    gone can be split further.
    """
    symbols = {symbol for symbol in wanted if symbol in dictionary}
    symbols |= {letter for symbol in symbols for letter in symbol if letter in dictionary}
    return sorted({*range(dictionary.nspecial), *(dictionary.index(symbol) for symbol in symbols)})


def trimmed_dictionary(dictionary: Dictionary, kept: Sequence[int]) -> Dictionary:
    """Return a dictionary of the symbols that stay, with their counts."""
    new = Dictionary()
    for index in kept[dictionary.nspecial :]:
        new.add_symbol(dictionary.symbols[index], n=dictionary.count[index])
    return new


def _parameters(weights: Mapping[str, Tensor]) -> int:
    return sum({value.data_ptr(): value.numel() for value in weights.values()}.values())


def _languages(job: TrimJob, state: dict[str, Any], *, has_text: bool) -> Languages:
    """Return the languages and the dictionaries of the model.

    Args:
        job: the vocabulary to trim.
        state: content of its checkpoint.
        has_text: whether the job's text is read.

    Raises:
        UsageError: nothing tells the languages, or the dictionaries are not there.
    """
    folder = job.data or job.checkpoint.resolve().parent
    with reported(str(job.checkpoint), "CHECKPOINT"):
        trained = trained_pair(configuration(state), folder) or (None, None)
    pair = [given or own for given, own in zip((job.source_lang, job.target_lang), trained, strict=True)]
    if has_text:
        _check_text(job, pair)
    lacking = [flag for flag, known in zip(_LANGUAGES, pair, strict=True) if known is None]
    if lacking:
        verb, rest = ("are", "them; add both") if len(lacking) > 1 else ("is", "it; add it")
        raise UsageError(f"{' and '.join(lacking)} {verb} not given, and CHECKPOINT does not name {rest}")
    for name in [] if job.data else [f"dict.{language}.txt" for language in pair]:
        if not os.path.isfile(folder / name):
            raise UsageError(
                f"--data is not given, and the folder of CHECKPOINT '{job.checkpoint}' has no {name}; add "
                "the folder of its dictionaries"
            )
    return Languages.of(folder, *pair)


def _check_text(job: TrimJob, pair: Sequence[str | None]) -> None:
    """Refuse a corpus that is not there, of languages that may be unknown yet."""
    for prefix in job.text:
        for language in pair:
            name = f"{prefix}.{language or 'LANG'}"
            if not (os.path.isfile(name) if language else glob.glob(f"{glob.escape(prefix)}.*")):
                short = os.path.splitext(prefix)[0]
                meant = (
                    f"did you mean {short}?"
                    if os.path.isfile(prefix) and short != prefix
                    else "check the path"
                )
                raise UsageError(
                    f"{job.flag} '{prefix}' must be the name of a file without its language, but there is no "
                    f"'{name}'; {meant}"
                )


def count_symbols(
    flag: str, prefixes: Sequence[str], language: str, *, split: Callable[[str], list[str]] = str.split
) -> Counter[str]:
    """Count the symbols of a corpus in a language.

    Args:
        flag: the flag that names the corpus, for messages.
        prefixes: ``PREFIX.LANG`` are its files.
        language: the language.
        split: returns the symbols of a line without its end.

    Raises:
        UsageError: a file can't be read, or there are no symbols.
    """
    counts: Counter[str] = Counter()
    for prefix in prefixes:
        path = Path(f"{prefix}.{language}")
        try:
            with open(path, encoding="utf-8") as lines:
                for line in lines:
                    counts.update(split(line.rstrip("\r\n")))
        except UnicodeDecodeError as error:
            raise not_text(f"{flag} '{prefix}': '{path}'", path) from error
        except OSError as error:
            raise UsageError(
                f"{flag} '{prefix}': '{path}' can't be read ({error.strerror}); name the part before "
                f".{language}"
            ) from error
    if not counts:
        raise UsageError(f"{flag} {' '.join(prefixes)} has no symbols of {language}; use a corpus with text")
    return counts


def _description(folder: Path) -> dict[str, Any] | None:
    """Return what ``imitkd-import`` has written about a model; None for another model."""
    path = folder / DESCRIPTION
    return read_json(path) if path.is_file() else None


def _copy_subwords(old: Path, folder: Path, dictionaries: Mapping[str, Dictionary]) -> None:
    """Copy the files of the subwords. SentencePiece models lose the pieces that are gone."""
    for name in SUBWORD_FILES:
        path = old / name
        if not path.is_file():
            continue
        content = path.read_bytes()
        if path.suffix == ".spm":
            with as_usage_error(f"'{path}' is not a SentencePiece model", "import the model again"):
                content = without_pieces(content, set(dictionaries[path.stem].symbols))
        (folder / name).write_bytes(content)


def _tags(job: TrimJob, state: dict[str, Any], dictionary: Dictionary) -> list[str]:
    """Return the symbols of a dictionary that are tags: those of the import, or all that the task adds."""
    with reported(str(job.checkpoint), "CHECKPOINT"):
        task = configuration(state).task
        tags = language_tags(task)
    if getattr(task, SETTING, None) is not None:
        return [name for side in tags.sides for name in side if name in dictionary]
    return [symbol for symbol in dictionary.symbols if tags and _ADDED.fullmatch(symbol)]


def _report(counts: Counter[str], before: Dictionary, after: Dictionary, *, language: str) -> SideReport:
    unknown = [
        sum(count for symbol, count in counts.items() if dictionary.index(symbol) == dictionary.unk())
        for dictionary in (before, after)
    ]
    return SideReport(language, len(before), len(after), counts.total(), *unknown)


def _check_keep(job: TrimJob, dictionaries: Mapping[str, Dictionary], pair: Mapping[str, str]) -> None:
    """Refuse symbols to keep that neither dictionary has."""
    for symbol in job.keep:
        if not any(symbol in dictionary for dictionary in dictionaries.values()):
            names = " or ".join(f"dict.{language}.txt" for language in pair.values())
            raise UsageError(
                f"--keep '{symbol}' is not in {names}; leave it out, or use a symbol that is there"
            )


def _check_known(job: TrimJob, sides: Sequence[SideReport]) -> None:
    """Refuse a corpus whose symbols are mostly unknown before or after.

    Raises:
        UsageError: naming the flag that is the cause.
    """
    for side in sides:
        before, after = (count / side.tokens for count in (side.unknown_before, side.unknown_after))
        name = f"dict.{side.language}.txt"
        if before >= MOST_USABLE:  # a word of another script is a mark of its begin, and an unknown symbol
            raise UsageError(
                f"{job.flag} '{' '.join(job.text)}': {before:.0%} of its symbols are unknown to {name}; "
                f"{REMEDIES[job.flag]}"
            )
        if after > MOST_USABLE:
            raise UsageError(
                f"--min-count {job.min_count} leaves {after:.0%} of the symbols of {job.flag} unknown to "
                f"{name}; lower it"
            )


def _difference(
    job: TrimJob, languages: Languages, folder: Path, *, kept: Mapping[str, Sequence[int]]
) -> tuple[float, float]:
    """Return the greatest difference of log-probabilities from the model's renormalised ones, as it is and
    divided by the log-probability where that is above 1.

    Both models read the same random sentences of symbols that stay.
    """
    new = Languages.of(folder, languages.source, languages.target)
    model = load_student(str(job.checkpoint), languages, job.allow_globals).model
    trimmed = load_student(str(folder / job.checkpoint.name), new, job.allow_globals).model
    eos = new.source_dictionary.eos()
    longest = min(_LONGEST, *(limit - 1 for limit in trimmed.max_positions()))
    generator = torch.Generator().manual_seed(1)
    random = {
        side: torch.randint(eos + 1, len(kept[side]), (_LINES, longest), generator=generator) for side in kept
    }
    ends = torch.full((_LINES, 1), eos)
    source = torch.cat([random["source"], ends], dim=1)
    previous = torch.cat([ends, random["target"]], dim=1)
    lengths = torch.full((_LINES,), longest + 1)
    old = {side: torch.tensor(kept[side]) for side in kept}
    with torch.no_grad():
        expected = model(old["source"][source], lengths, old["target"][previous])[0].float()
        found = trimmed(source, lengths, previous)[0].float().log_softmax(-1)
        expected = expected[..., old["target"]].log_softmax(-1)
    differences = (found - expected).abs()
    return float(differences.max()), float((differences / expected.abs().clamp(min=1.0)).max())
