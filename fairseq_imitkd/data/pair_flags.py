"""The flags of a task of several language pairs, read and checked before any data is read."""

import ast
import json
import os
from pathlib import Path
from typing import Any

from fairseq.data import Dictionary

from fairseq_imitkd.data.dictionaries import first_difference
from fairseq_imitkd.data.directory import (
    check_dictionaries,
    check_folder,
    check_halves,
    folders_of,
    split_exists,
)
from fairseq_imitkd.errors import UsageError

PAIR = ":"  # between the name of a validation set and one of its pairs


def pairs_of_flags(cfg: Any) -> list[str]:
    """Return the language pairs of ``--lang-pairs``, or the one that is decoded.

    Raises:
        UsageError: there is none, one is not a pair, or one is there twice.
    """
    given = cfg.lang_pairs
    if not given and cfg.source_lang and cfg.target_lang:
        return [f"{cfg.source_lang}-{cfg.target_lang}"]
    if given and os.path.isfile(given):
        try:
            given = Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"--lang-pairs '{given}' can't be read; use a text file such as de-en,en-de"
            ) from error
    pairs = [pair.strip() for pair in (given or "").split(",")]
    for pair in pairs:
        source, _, target = pair.partition("-")
        if not source or not target or "-" in target or source == target:
            raise UsageError(
                f"--lang-pairs must be language pairs such as de-en,en-de, but has '{pair[:40]}'"
            )
    if len(set(pairs)) < len(pairs):
        raise UsageError(f"--lang-pairs {','.join(pairs)[:100]} names a pair twice: leave it out once")
    return pairs


def weights_of_flags(cfg: Any) -> dict[str, float] | None:
    """Return the sampling weights of the pairs, as fairseq names them; None without any.

    Raises:
        UsageError: they can't be read, or are not of these pairs.
    """
    text, flag = cfg.sampling_weights, "--sampling-weights"
    if cfg.sampling_weights_from_file:
        flag = f"--sampling-weights-from-file '{cfg.sampling_weights_from_file}'"
        try:
            text = Path(cfg.sampling_weights_from_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{flag} can't be read; use a file with JSON") from error
    if text is None:
        return None
    keys = [f"main:{pair}" for pair in pairs_of_flags(cfg)]
    try:
        weights = ast.literal_eval(text)  # JSON, or Python's form as in fairseq's own command lines
        found = {key: float(weights[key]) for key in keys}
        if set(weights) != set(keys) or not all(0 < weight < float("inf") for weight in found.values()):
            raise ValueError("not these")
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        example = json.dumps(dict.fromkeys(keys[:2], 0.5))
        raise UsageError(f"{flag} must give each pair a weight above 0, such as {example[:80]}") from error
    return found


def check_pairs(cfg: Any) -> None:
    """Refuse pairs whose languages, dictionaries or tags are not there.

    Args:
        cfg: a ``LanguagePairsConfig``.

    Raises:
        UsageError: naming the flag or the file.
    """
    if not cfg.data:
        raise UsageError("DATA is not given; use a directory that fairseq-preprocess has made")
    one_pair = [cfg.source_lang, cfg.target_lang]
    if any(one_pair) and not all(one_pair):
        raise UsageError("--source-lang and --target-lang must both be given, to decode one pair, or neither")
    for flag in ("virtual_epoch_size", "virtual_data_size"):
        size = getattr(cfg, flag, None)
        if size is not None and size < 1:
            raise UsageError(f"--{flag.replace('_', '-')} must be 1 or more, but is {size}")
    if cfg.langs and cfg.lang_dict:
        raise UsageError("--langs and --lang-dict can't be used together: leave one of them out")
    if not cfg.sampling_temperature > 0:
        raise UsageError(f"--sampling-temperature must be above 0, but is {cfg.sampling_temperature}")
    for folder in folders_of(cfg.data):
        check_folder(folder)
    pairs = ["-".join(one_pair)] if all(one_pair) else pairs_of_flags(cfg)
    sources, targets = ([pair.split("-")[side] for pair in pairs] for side in (0, 1))
    languages = languages_of_flags(cfg)
    for language in (*sources, *targets):
        if language not in languages:
            flag = "--lang-dict" if cfg.lang_dict else "--langs" if cfg.langs else "--lang-pairs"
            raise UsageError(f"language {language} is not one of {flag}: {','.join(languages)[:80]}")
    _check_dictionaries(cfg, sources, targets)
    tells = cfg.decoder_langtok or str(cfg.encoder_langtok) == "tgt"
    if len(set(targets)) > 1 and not tells:
        raise UsageError(
            f"no tag tells the model which language of {','.join(sorted(set(targets)))[:60]} to write: add "
            "--encoder-langtok tgt or --decoder-langtok"
        )


def languages_of_flags(cfg: Any) -> list[str]:
    """Return the languages in the order of their tags.

    Raises:
        UsageError: the file of ``--lang-dict`` can't be read.
    """
    if cfg.langs:
        languages = [language.strip() for language in str(cfg.langs).split(",")]
        if len(set(languages)) < len(languages):
            raise UsageError(f"--langs {str(cfg.langs)[:100]} names a language twice: leave it out once")
        return languages
    if not cfg.lang_dict:
        return sorted({language for pair in pairs_of_flags(cfg) for language in pair.split("-")})
    try:
        lines = Path(cfg.lang_dict).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--lang-dict '{cfg.lang_dict}' can't be read; use a file with one language a line"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _check_dictionaries(cfg: Any, sources: list[str], targets: list[str]) -> None:
    """Refuse dictionaries that are missing, and sides with several."""
    folder = Path(folders_of(cfg.data)[0])
    for flag in ("fixed_dictionary", "source_dict", "target_dict"):
        path = getattr(cfg, flag)
        if path and not os.path.isfile(path):
            raise UsageError(f"--{flag.replace('_', '-')} '{path}' is not a file; use a dict.txt")
    if cfg.fixed_dictionary:
        return
    for given, languages in ((cfg.source_dict, sources), (cfg.target_dict, targets)):
        if given:
            continue
        first, *others = [folder / f"dict.{language}.txt" for language in dict.fromkeys(languages)]
        check_dictionaries(folder, (languages[0], languages[-1]))
        for other in others:
            check_dictionaries(folder, (other.name.split(".")[1],) * 2)
            found = first_difference(Dictionary.load(str(first)).symbols, Dictionary.load(str(other)).symbols)
            if found is not None:
                raise UsageError(
                    f"'{other}' is not '{first}', but all languages of a side must share one dictionary "
                    f"(index {found[0]}); binarise with fairseq-preprocess --srcdict --tgtdict"
                )


def check_pair_splits(cfg: Any, splits: list[tuple[str, str]], *, dataset_impl: str | None = None) -> None:
    """Refuse splits that are not there for each of their pairs.

    Args:
        cfg: a ``LanguagePairsConfig``.
        splits: flags, and the split that each names.
        dataset_impl: ``--dataset-impl``.

    Raises:
        UsageError: naming the split and the pair.
    """
    pairs = [f"{cfg.source_lang}-{cfg.target_lang}"] if cfg.source_lang else pairs_of_flags(cfg)
    for flag, name in splits:
        split, colon, only = name.partition(PAIR)
        if colon and only not in pairs:
            raise UsageError(f"{flag} '{name}' must end in a pair of --lang-pairs: {','.join(pairs)[:80]}")
        folders = folders_of(cfg.data) if flag == "--train-subset" else folders_of(cfg.data)[:1]
        for folder in folders:
            check_halves(folder, split)
        for pair in [only] if colon else pairs:
            source, target = pair.split("-")
            there = [
                os.path.join(folder, f"{split}.{files}.{source}")
                for folder in folders
                for files in (pair, f"{target}-{source}")
            ]
            if not any(split_exists(path, dataset_impl) for path in there):
                raise UsageError(
                    f"DATA '{cfg.data}' has no '{split}' of {pair}, a pair of --lang-pairs: binarise it with "
                    "fairseq-preprocess, or leave the pair out"
                )
