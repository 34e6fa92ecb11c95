"""Imports a model's folder as a fairseq checkpoint with its dictionaries and subwords."""

import logging
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import fairseq_imitkd
from fairseq_imitkd.data.dictionaries import fingerprints, load_dictionary
from fairseq_imitkd.data.files import sha256
from fairseq_imitkd.data.output_folder import OutputFolder
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.huggingface import check
from fairseq_imitkd.huggingface.config import ModelConfig, fairseq_settings, read_config
from fairseq_imitkd.huggingface.convert import Converted, convert
from fairseq_imitkd.huggingface.folder import ModelFolder
from fairseq_imitkd.huggingface.subwords import SIDES, write_description
from fairseq_imitkd.huggingface.tags import tag_of
from fairseq_imitkd.huggingface.tokens import Tokenizer, read_tokenizer
from fairseq_imitkd.huggingface.vocabulary import BOS, Vocabulary, rows_of, vocabulary
from fairseq_imitkd.huggingface.weights import read_weights, weight_files

logger = logging.getLogger(__name__)

FORMAT = 1
CHECKPOINT = "model.pt"


@dataclass(frozen=True)
class ImportJob:
    """A model to import.

    Args:
        model: the model's folder.
        out: the folder to create.
        source_lang, target_lang: languages; None takes those of the configuration.
        skip_check: whether to leave out the comparison with ``transformers``.
    """

    model: Path
    out: Path
    source_lang: str | None = None
    target_lang: str | None = None
    skip_check: bool = False


@dataclass(frozen=True)
class Layout:
    """How the model's sentences are made, in its ids.

    Args:
        start: id of the decoder's first input.
        source_before: ids before each source.
        source_ends: ids after each source: EOS, or EOS and a tag.
        target_before: ids that each target begins with.
    """

    start: int
    source_before: tuple[int, ...]
    source_ends: tuple[int, ...]
    target_before: tuple[int, ...]


@dataclass(frozen=True)
class Imported:
    """What an import has made.

    Args:
        parameters: number of parameters; shared ones count once.
        symbols: numbers of symbols of source and target.
        subwords: kind of the subwords; None if there are none.
        verdict: result of the comparison with ``transformers``; None if it was not made.
        notes: what the user should know.
    """

    parameters: int
    symbols: tuple[int, int]
    subwords: str | None
    verdict: "check.Verdict | None"
    notes: tuple[str, ...]


def import_model(job: ImportJob) -> Imported:
    """Import a model. The folder appears whole or not at all.

    Raises:
        UsageError: the folder does not hold a model that can be imported, or the imported model computes
            something else than ``transformers``.
    """
    folder, out = ModelFolder(job.model), OutputFolder(job.out, "a new folder")
    config = read_config(folder.config(), folder.name)
    out.check_new()
    tokenizer = read_tokenizer(folder, config)
    pair = _languages(job, config, tokenizer)
    layout, notes = _layout(config, tokenizer, pair)
    sides = _vocabularies(config, tokenizer)
    rows = rows_of(*sides, start=layout.start, source_ends=layout.source_ends)
    converted = convert(read_weights(folder), config, rows=rows, name=folder.name)
    with out.built() as work:
        _write(work, converted, config=config, pair=pair, sides=sides)
        description = _description(folder, config, tokenizer, pair=pair, layout=layout, sides=sides)
        write_description(work, description)
        for name, content in (tokenizer.files if tokenizer else {}).items():
            data = content.encode("utf-8") if isinstance(content, str) else content.read_bytes()
            (work / name).write_bytes(data)
        verdict = None
        if job.skip_check:
            notes = (*notes, "not compared with transformers (--skip-check)")
        elif not check.is_possible():
            notes = (*notes, "not compared with transformers: pip install 'fairseq-imitkd[huggingface]'")
        else:
            verdict = check.compare(
                work, folder, check.Layouts(pair, rows, layout.source_ends, subwords=description["subwords"])
            )
            verdict.refuse_difference(folder.name)
    tensors = {tensor.data_ptr(): tensor.numel() for name, tensor in converted.state.items()}
    return Imported(
        parameters=sum(tensors.values()),
        symbols=(len(sides[0].symbols), len(sides[1].symbols)),
        subwords=description["subwords"],
        verdict=verdict,
        notes=notes,
    )


def _languages(job: ImportJob, config: ModelConfig, tokenizer: Tokenizer | None) -> tuple[str, str]:
    """Return the languages of the pair, which name the dictionaries."""
    given = (job.source_lang, job.target_lang)
    known = config.languages or (None, None)
    needs_tags = config.family.tags
    pair = []
    for language, found, side in zip(given, known, SIDES, strict=True):
        language = language or found or (None if needs_tags else side)
        if language is None:
            examples = _some_tags(tokenizer)
            raise UsageError(
                f"--{side}-lang is not given, and {config.family.title} needs it; name a language of the model"
                + (f", such as {examples}" if examples else "")
            )
        if not language or "/" in language or language.split() != [language] or "." in language:
            raise UsageError(f"--{side}-lang {language!r:.40} must be a word without '/' and '.'")
        pair.append(language)
    if pair[0] == pair[1]:
        raise UsageError(f"--source-lang and --target-lang must be two names, but both are {pair[0]!r:.40}")
    return pair[0], pair[1]


def _some_tags(tokenizer: Tokenizer | None) -> str:
    """Return some language tags of a model, for a message."""
    tokens = list(tokenizer.source.values()) if tokenizer else []
    found = [token for token in reversed(tokens) if _is_tag(token)]
    return ", ".join(sorted(found[:200])[:3])


def _is_tag(token: str) -> bool:
    if token.startswith("__") and token.endswith("__"):
        return len(token) > 4
    head, _, tail = token.partition("_")
    return head.isalpha() and head.isascii() and head.islower() and 2 <= len(head) <= 3 and tail.isalpha()


def _layout(
    config: ModelConfig, tokenizer: Tokenizer | None, pair: tuple[str, str]
) -> tuple[Layout, tuple[str, ...]]:
    """Return how sentences are made, and notes about what is not known."""
    family, notes = config.family, []
    start = config.start if config.start is not None else config.pad if family.starts == "pad" else config.eos
    before: tuple[int, ...] = ()
    target_before: tuple[int, ...] = ()
    ends: tuple[int, ...] = (config.eos,)
    tags = (
        [
            tag_of(language, tokens)
            for language, tokens in zip(pair, (tokenizer.source, tokenizer.target), strict=True)
        ]
        if tokenizer
        else [None, None]
    )
    if family.tags and tokenizer is None:
        notes.append("without tokenizer files, language tags are not known; your text must hold them as id:N")
    elif family.tags:
        for language, tag, side in zip(pair, tags, SIDES, strict=True):
            if tag is None:
                raise UsageError(
                    f"--{side}-lang {language!r:.40} has no tag in this model; use one of its languages, such as "
                    f"{_some_tags(tokenizer)}"
                )
        source, target = (tag for tag in tags if tag is not None)
        if config.kind == "mbart" and config.start != config.eos:
            ends, start = (config.eos, source), target
        else:
            before, target_before = (source,), (target,)
    elif config.kind == "marian" and tokenizer is not None:
        marked = next((n for n, token in tokenizer.source.items() if token == f">>{pair[1]}<<"), None)
        if marked is not None:
            before = (marked,)
        elif any(token.startswith(">>") and token.endswith("<<") for token in tokenizer.source.values()):
            notes.append(
                f"the model has tags of target languages, but none is >>{pair[1]}<<; see --target-lang"
            )
    elif config.kind == "bart" and config.bos is not None:
        before = target_before = (config.bos,)
    return Layout(start, before, ends, target_before), tuple(notes)


def _vocabularies(config: ModelConfig, tokenizer: Tokenizer | None) -> tuple[Vocabulary, Vocabulary]:
    """Return the symbols of both sides."""
    source, target = (
        vocabulary(
            config,
            size,
            tokens=(tokenizer.source if side == "source" else tokenizer.target) if tokenizer else {},
            unknown=tokenizer.unknown(side) if tokenizer else None,
        )
        for side, size in zip(SIDES, (config.encoder.vocabulary, config.decoder.vocabulary), strict=True)
    )
    return source, target


def _write(
    folder: Path,
    converted: Converted,
    *,
    config: ModelConfig,
    pair: tuple[str, str],
    sides: tuple[Vocabulary, Vocabulary],
) -> None:
    """Write the dictionaries and the checkpoint, as fairseq's trainer does."""
    for language, side in zip(pair, sides, strict=True):
        side.save(folder / f"dict.{language}.txt")
    dictionaries = {
        side: load_dictionary(folder / f"dict.{language}.txt")
        for side, language in zip(SIDES, pair, strict=True)
    }
    for side, own in zip(SIDES, sides, strict=True):
        if tuple(dictionaries[side].symbols) != own.symbols:
            raise UsageError(
                f"the {side} dictionary can't hold the model's symbols; this is a fault of imitkd-import"
            )
    settings: Namespace = fairseq_settings(config, pair=pair, shared=converted.shared)
    torch.save(
        {
            "args": settings,
            "cfg": None,
            "model": converted.state,
            "optimizer_history": [
                {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}
            ],
            "task_state": fingerprints(dictionaries),
            "extra_state": {"epoch": 1},
        },
        folder / CHECKPOINT,
    )


def _description(
    folder: ModelFolder,
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    *,
    pair: tuple[str, str],
    layout: Layout,
    sides: tuple[Vocabulary, Vocabulary],
) -> dict[str, Any]:
    """Return the content of ``huggingface.json``."""

    def symbols(numbers: tuple[int, ...], side: Vocabulary) -> list[str]:
        return [side.symbols[side.index_of(number)] for number in numbers]

    before = symbols(layout.source_before, sides[0]), symbols(layout.target_before, sides[1])
    after = [sides[0].symbols[BOS]] if len(layout.source_ends) > 1 else []
    return {
        "format": FORMAT,
        "family": config.kind,
        "weights": {path.name: sha256(path) for path in weight_files(folder)},
        "subwords": tokenizer.kind if tokenizer else None,
        "text": {
            name: {
                "language": pair[number],
                "before": before[number],
                "after": after if number == 0 else [],
                "renamed": _renamed(sides[number], tokenizer, name),
            }
            for number, name in enumerate(SIDES)
        },
        "fairseq_imitkd": fairseq_imitkd.__version__,
    }


def _renamed(side: Vocabulary, tokenizer: Tokenizer | None, name: str) -> Mapping[str, str]:
    """Return the dictionary's symbols that are not the tokenizer's, by the tokenizer's."""
    if tokenizer is None:
        return {}
    tokens = tokenizer.source if name == "source" else tokenizer.target
    return {
        tokens[number]: symbol
        for number, symbol in zip(side.ids[4:], side.symbols[4:], strict=True)
        if number in tokens and tokens[number] != symbol
    }
