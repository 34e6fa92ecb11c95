"""Writes the dictionaries of a model whose task adds language tags to those of its data."""

from dataclasses import dataclass
from pathlib import Path

from fairseq.data import Dictionary

from fairseq_imitkd.checkpoints.build import configuration, refuse_expressions
from fairseq_imitkd.checkpoints.kinds import check_kind
from fairseq_imitkd.checkpoints.safe_load import read_checkpoint, reported
from fairseq_imitkd.checkpoints.tags import language_tags, languages_of
from fairseq_imitkd.checkpoints.translation import translation_task
from fairseq_imitkd.data.dictionaries import load_dictionary
from fairseq_imitkd.data.output_folder import NEW, OutputFolder
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.teacher.loading import dictionary_folder
from fairseq_imitkd.teacher.source import check_files

_NAME = "CHECKPOINT"  # what messages call the model's file


@dataclass(frozen=True)
class WrittenDictionary:
    """A dictionary that was written.

    Args:
        path: its file.
        symbols: number of its symbols.
        added: symbols that the data's dictionary lacks.
    """

    path: Path
    symbols: int
    added: tuple[str, ...]


def write_dictionaries(
    checkpoint: str,
    out: Path,
    *,
    data: str | None = None,
    pair: tuple[str | None, str | None] = (None, None),
    allow_globals: str | None = None,
) -> tuple[list[WrittenDictionary], str]:
    """Write the dictionaries that a checkpoint's model has.

    The symbols of the data's dictionaries keep their indices, so data that were binarised with these stay
    valid.

    Args:
        checkpoint: the model's checkpoint.
        out: folder to create.
        data: folder of the dictionaries that the model was trained with; None looks for them.
        pair: source and target language; None takes those of the checkpoint.
        allow_globals: types that the checkpoint may hold beside fairseq's own.

    Returns:
        the dictionaries of source and target; and in words where the model's tags stand, empty without tags.

    Raises:
        UsageError: the checkpoint or the dictionaries can't be read, or the languages are not known.
    """
    check_files(checkpoint, _NAME, "model")
    folder = OutputFolder(out, NEW)
    folder.check_new()
    state = read_checkpoint(checkpoint, allow_globals, (_NAME, "--allow-globals"))
    with reported(checkpoint, _NAME):
        cfg = configuration(state)
        refuse_expressions(cfg)
        languages = languages_of(cfg.task, pair)
        for flag, language in zip(("--source-lang", "--target-lang"), languages, strict=True):
            if language is None:
                raise UsageError(f"{flag} is not given, and {_NAME} '{checkpoint}' does not name it; give it")
        source, target = str(languages[0]), str(languages[1])
        check_kind(cfg, (source, target))
        names = [f"dict.{language}.txt" for language in (source, target)]
        found = dictionary_folder(checkpoint, cfg, names, data=data, flag=_NAME)
        tags = str(language_tags(cfg.task, (source, target)))
        task = translation_task(cfg, found, pair=(source, target))
    made: list[tuple[str, Dictionary]] = [
        (names[0], task.source_dictionary),
        (names[1], task.target_dictionary),
    ]
    written = []
    with folder.built() as work:
        for name, dictionary in made:
            dictionary.save(str(work / name))
            before = load_dictionary(found / name)
            added = tuple(dictionary.symbols[len(before) :])
            written.append(WrittenDictionary(out / name, len(dictionary), added))
    return written, tags
