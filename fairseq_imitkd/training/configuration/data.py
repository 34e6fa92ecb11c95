"""The data directories of translations and of language models: their splits, languages and dictionaries."""

import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fairseq_imitkd.data.directory import check_data, check_sentences, check_splits, folders_of, splits_of
from fairseq_imitkd.data.pair_flags import PAIR, check_pair_splits, check_pairs, pairs_of_flags
from fairseq_imitkd.data.speech import check_manifests
from fairseq_imitkd.errors import UsageError

IGNORE = "ignore_unused_valid_subsets"
TASKS = ("translation", "translation_with_teacher")  # translations, whose directories are known here
SPEECH = "speech_to_text_with_teacher"  # its directories have manifests
LANGUAGE_MODELS = "language_modeling_with_teacher"  # its directories have one side
PAIRS = "translation_multi_simple_epoch_with_teacher"  # its directories have several language pairs


def check(settings: Mapping[str, Any], command: str) -> Path | None:
    """Refuse directories, splits and dictionaries that are not there.

    Args:
        settings: the settings.
        command: the command, as in :func:`~fairseq_imitkd.training.configuration.check_configuration`.

    Returns:
        the dictionary of what is written; None if the task or the directory is not known here.

    Raises:
        UsageError: naming the flag or the directory.
    """
    data = settings.get("data") or ""
    if settings.get("task") == LANGUAGE_MODELS and "://" not in data:
        return check_sentences(
            data, list(_splits(settings, command)), dataset_impl=settings.get("dataset_impl")
        )
    if settings.get("task") == SPEECH:
        return check_manifests(data, settings["config_yaml"], _splits(settings, command))
    if settings.get("task") == PAIRS:
        return _check_pairs(settings, command)
    if settings.get("task") not in TASKS or "://" in data:
        return None
    languages = check_data(data, settings.get("source_lang"), settings.get("target_lang"))
    check_splits(data, languages, list(_splits(settings, command)), dataset_impl=settings.get("dataset_impl"))
    if command == "train":
        check_validation_sets(settings)
    return Path(folders_of(data)[0]) / f"dict.{languages[1]}.txt"


def _check_pairs(settings: Mapping[str, Any], command: str) -> Path:
    """Refuse directories, splits and dictionaries of language pairs that are not there."""
    flags = Namespace(**settings)
    if command == "train" and settings.get("source_lang"):
        raise UsageError(
            f"--source-lang {settings['source_lang']} names a pair to decode: name those to train by "
            "--lang-pairs, and leave it and --target-lang out"
        )
    check_pairs(flags)
    splits = list(_splits(settings, command))
    check_pair_splits(flags, splits, dataset_impl=settings.get("dataset_impl"))
    if command == "train":
        check_validation_sets(settings)
    elif settings.get("target_lang") is None:
        raise UsageError("--source-lang and --target-lang must name the pair to decode, such as de and en")
    target = settings.get("target_lang") or pairs_of_flags(flags)[0].split("-")[1]
    given = settings.get("fixed_dictionary") or settings.get("target_dict")
    return Path(given or Path(folders_of(settings["data"])[0]) / f"dict.{target}.txt")


def name_languages(settings: Any) -> None:
    """Set the languages of a translation that its directory shows.

    fairseq saves only those that flags name. Without them, nothing tells a checkpoint's direction when its
    data is gone.

    Args:
        settings: an object with the settings as its attributes.
    """
    if getattr(settings, "task", None) in TASKS and "://" not in (settings.data or ""):
        settings.source_lang, settings.target_lang = check_data(
            settings.data, settings.source_lang, settings.target_lang
        )


def _splits(settings: Mapping[str, Any], command: str) -> Iterator[tuple[str, str]]:
    """Yield the flags that name splits, and the splits that the command reads."""
    if command == "generate":
        yield "--gen-subset", settings["gen_subset"]
    if command != "train":
        return
    yield "--train-subset", settings["train_subset"]
    if settings.get("disable_validation"):
        return
    if settings.get("combine_valid_subsets"):
        if settings["valid_subset"] != "valid":
            raise UsageError(
                "--valid-subset must be valid with --combine-valid-subsets, but is "
                f"'{settings['valid_subset']}'"
            )
        yield "--combine-valid-subsets", "valid"
        return
    names = settings["valid_subset"].split(",")
    for split in names:
        yield "--valid-subset", split
    if len(set(names)) < len(names):
        raise UsageError(
            f"--valid-subset '{settings['valid_subset']}' names a split twice: leave one of them out"
        )


def check_validation_sets(settings: Mapping[str, Any]) -> None:
    """Refuse validation sets beside those that are named, as fairseq does.

    fairseq compares the names of files with those of splits, so it refuses them even if they are named:
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/data/data_utils.py#L918-L924

    Args:
        settings: the settings of a training.

    Raises:
        UsageError: naming the sets.
    """
    if any(settings.get(name) for name in ("disable_validation", "combine_valid_subsets", IGNORE)):
        return
    data = settings["data"]
    named = [name.split(PAIR)[0] for name in settings["valid_subset"].split(",")]
    there = {
        split for folder in folders_of(data) for split in splits_of(folder) if re.match("valid*[0-9]", split)
    }
    unused = sorted(there - set(named))
    if unused:
        raise UsageError(
            f"DATA '{data}' has the validation sets {', '.join(unused)} too: add --valid-subset "
            f"{','.join([*named, *unused])}, --combine-valid-subsets or --ignore-unused-valid-subsets"
        )
