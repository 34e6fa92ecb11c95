"""Imports a model's folder as a fairseq checkpoint with its dictionaries and subwords."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import OmegaConf

import fairseq_imitkd
from fairseq_imitkd.checkpoints.tags import EOS, SETTING, TagNames
from fairseq_imitkd.data.dictionaries import fingerprints, load_dictionary
from fairseq_imitkd.data.files import sha256
from fairseq_imitkd.data.output_folder import NEW, OutputFolder
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.huggingface import check
from fairseq_imitkd.huggingface.config import ModelConfig, fairseq_settings, read_config
from fairseq_imitkd.huggingface.convert import Converted, convert
from fairseq_imitkd.huggingface.folder import ModelFolder
from fairseq_imitkd.huggingface.layout import Layout, languages_of, layout_of
from fairseq_imitkd.huggingface.subwords import write_description
from fairseq_imitkd.huggingface.tokens import Tokenizer, read_tokenizer
from fairseq_imitkd.huggingface.vocabulary import BOS, Vocabulary, rows_of, vocabulary
from fairseq_imitkd.huggingface.weights import read_weights, weight_files
from fairseq_imitkd.text.imported import DESCRIPTION, SIDES

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
    folder, out = ModelFolder(job.model), OutputFolder(job.out, NEW)
    config = read_config(folder.config(), folder.name)
    out.check_new()
    tokenizer = read_tokenizer(folder, config)
    pair = languages_of(config, tokenizer, (job.source_lang, job.target_lang))
    layout = layout_of(config, tokenizer, pair, described=folder.json(DESCRIPTION))
    sides = _vocabularies(config, tokenizer)
    rows = rows_of(*sides, start=layout.start, source_ends=layout.source_ends)
    converted = convert(read_weights(folder), config, rows=rows, name=folder.name)
    kind = tokenizer.kind if tokenizer else None
    verdict, notes = None, layout.notes
    with out.built() as work:
        tags = _tag_names(layout, sides)
        _write(work, converted, config=config, pair=pair, sides=sides, tags=tags)
        write_description(
            work, _description(folder, config, tokenizer, pair=pair, layout=layout, sides=sides)
        )
        for name, content in (tokenizer.files if tokenizer else {}).items():
            (work / name).write_bytes(
                content.encode("utf-8") if isinstance(content, str) else content.read_bytes()
            )
        if job.skip_check:
            notes += ("not compared with transformers (--skip-check)",)
        elif not check.is_possible():
            notes += ("not compared with transformers: pip install 'fairseq-imitkd[huggingface]'",)
        else:
            verdict = check.compare(work, folder, check.Origin(pair, rows, kind))
            verdict.refuse_difference(folder.name)
    tensors = {tensor.data_ptr(): tensor.numel() for tensor in converted.state.values()}
    return Imported(
        parameters=sum(tensors.values()),
        symbols=(len(sides[0].symbols), len(sides[1].symbols)),
        subwords=kind,
        verdict=verdict,
        notes=notes,
    )


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
    tags: TagNames,
) -> None:
    """Write the dictionaries and the checkpoint, as fairseq's trainer does."""
    dictionaries = {}
    for name, language, side in zip(SIDES, pair, sides, strict=True):
        path = folder / f"dict.{language}.txt"
        side.save(path)
        dictionaries[name] = load_dictionary(path)
        if tuple(dictionaries[name].symbols) != side.symbols:
            raise UsageError(f"dict.{language}.txt can't hold the model's symbols; report this as a fault")
    made = convert_namespace_to_omegaconf(fairseq_settings(config, pair=pair, shared=converted.shared))
    cfg: Any = OmegaConf.to_container(made, resolve=True, enum_to_str=True)
    if tags:  # fairseq ignores settings that its task does not have
        cfg["task"][SETTING] = tags.setting()
    torch.save(
        {
            "args": None,
            "cfg": cfg,
            "model": converted.state,
            "optimizer_history": [
                {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}
            ],
            "task_state": fingerprints(dictionaries),
            "extra_state": {"epoch": 1},
        },
        folder / CHECKPOINT,
    )


def _tag_names(layout: Layout, sides: tuple[Vocabulary, Vocabulary]) -> TagNames:
    """Return the tags around each sentence, as symbols of the dictionaries."""
    source, target = (
        tuple(side.symbols[side.index_of(number)] for number in numbers)
        for numbers, side in zip((layout.source_before, layout.target_before), sides, strict=True)
    )
    # If the source's tag follows EOS, the dictionary calls EOS <s>, and the tag EOS.
    end = (sides[0].symbols[BOS], EOS) if len(layout.source_ends) > 1 else (EOS,)
    return TagNames(source, end, (EOS, *target))


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

    tags = _tag_names(layout, sides)
    before = tags.source_before, tags.target_start[1:]
    return {
        "format": FORMAT,
        "family": config.kind,
        "weights": {path.name: sha256(path) for path in weight_files(folder)},
        "subwords": tokenizer.kind if tokenizer else None,
        "text": {
            name: {
                "language": pair[number],
                "before": list(before[number]),
                "after": list(tags.source_end[:-1]) if number == 0 else [],
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
