"""Checks of a data directory before fairseq reads it; fairseq reports missing files by a traceback."""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fairseq.data import data_utils, indexed_dataset
from fairseq.data.huffman import HuffmanMMapIndex

from fairseq_imitkd.data.dictionaries import load_dictionary
from fairseq_imitkd.data.files import kind_of, sha256
from fairseq_imitkd.errors import UsageError, in_one_line

ADVICE = "use a directory that fairseq-preprocess has made"
# For each kind of files, the values of --dataset-impl that read it.
_READERS = {"cached": ("cached", "lazy"), "mmap": ("mmap",), "huffman": ("huffman",)}
_MARKS = {  # the first bytes of an index
    "cached": indexed_dataset.IndexedDataset._HDR_MAGIC,
    "mmap": indexed_dataset.MMapIndexedDataset.Index._HDR_MAGIC,
    "huffman": HuffmanMMapIndex._HDR_MAGIC,
}


def check_data(data: str | None, source: str | None, target: str | None) -> tuple[str, str]:
    """Check that fairseq can read a translation task's dictionaries.

    Args:
        data: ``DATA``: a directory, or several joined by ``:``; the first one has the dictionaries.
        source, target: the languages, if they were given.

    Returns:
        both languages.

    Raises:
        UsageError: a directory is missing, its languages are unknown, the one that was given is another, or a
            dictionary is missing.
    """
    if not data:
        raise UsageError(f"DATA is not given; {ADVICE}")
    folders = folders_of(data)
    for folder in folders:
        check_folder(folder)
    # https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/tasks/translation.py#L300-L302
    languages = (source, target) if source and target else languages_of_files(folders[0])
    # fairseq ignores one language without the other, and would translate in the direction of the files.
    for flag, given, there in zip(
        ("--source-lang", "--target-lang"), (source, target), languages, strict=True
    ):
        if given is not None and given != there:
            raise UsageError(
                f"{flag} is {given}, but DATA '{data}' is of {'-'.join(languages)}: add the other language "
                "too, or leave it out"
            )
    check_dictionaries(folders[0], languages)
    for folder in folders[1:]:
        check_same_dictionaries(folders[0], folder, languages)
    return languages


def folders_of(data: str) -> list[str]:
    """Return the directories of ``DATA``, which are joined by ``:``."""
    return data.split(os.pathsep)


def check_folder(folder: str | Path) -> None:
    """Check that a data directory is a directory.

    Raises:
        UsageError: it is not, or it may not be looked at.
    """
    if kind_of(folder, "DATA") == "folder":
        return
    raise _no_directory(folder)


def splits_of(folder: str | Path) -> set[str]:
    """Return the names of the splits of a directory: those before the first dot of an index's name.

    Raises:
        UsageError: the directory can't be read.
    """
    try:
        return {name.split(".")[0] for name in os.listdir(folder) if name.endswith((".idx", ".bin"))}
    except OSError as error:
        raise _unreadable(folder, error) from error


def check_same_dictionaries(first: str | Path, other: str | Path, languages: tuple[str, str]) -> None:
    """Refuse a shard of data that was binarised with other dictionaries than the first one.

    fairseq reads the dictionaries of the first directory alone. A shard need not have any.

    Raises:
        UsageError: a dictionary of the shard is another one.
    """
    for name in (f"dict.{language}.txt" for language in languages):
        own, shard = Path(first) / name, Path(other) / name
        if kind_of(shard, "DATA") == "file" and sha256(shard) != sha256(own):
            raise UsageError(
                f"'{shard}' is not '{own}', which is used for all directories of DATA; binarise '{other}' "
                "with --srcdict and --tgtdict"
            )


def _refuse_outer(folder: str | Path) -> None:
    """Refuse the folder around a data directory, such as that of a run of imitkd-distill or imitkd-seqkd."""
    inner = Path(folder) / "data-bin"
    if inner.is_dir():
        raise UsageError(f"DATA '{folder}' is not a data directory: did you mean {inner}?")


def languages_of_files(folder: str | Path) -> tuple[str, str]:
    """Return the languages that the names of a directory's files show.

    Raises:
        UsageError: no name shows them, or the directory can't be read.
    """
    try:
        source, target = data_utils.infer_language_pair(str(folder))
    except OSError as error:
        raise _unreadable(folder, error) from error
    if source is None and os.path.isfile(Path(folder) / "dict.txt"):
        raise UsageError(
            f"DATA '{folder}' is that of a language model, without translations: use --task "
            "language_modeling_with_teacher, whose scores are those of --eval-metrics"
        )
    if source is None or target is None:
        _refuse_outer(folder)
        flags = ", or add --source-lang and --target-lang" if any(Path(folder).glob("dict.*.txt")) else ""
        raise UsageError(
            f"DATA '{folder}' has no file such as train.de-en.de.idx, which shows its languages; "
            f"{ADVICE}{flags}"
        )
    return source, target


def check_dictionaries(folder: str | Path, languages: tuple[str, str]) -> None:
    """Check that a directory has the dictionaries of two languages.

    Raises:
        UsageError: a dictionary is missing, or the directory can't be read.
    """
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error
    for language in languages:
        if f"dict.{language}.txt" not in names:
            _refuse_outer(folder)
            own = sorted(found[1] for name in names if (found := re.fullmatch(r"dict\.(.+)\.txt", name)))
            has = f", but those of {' and '.join(own)}" if 0 < len(own) <= 4 else ""
            raise UsageError(
                f"DATA '{folder}' has no dict.{language}.txt{has}; {ADVICE} with its --source-lang and "
                "--target-lang"
            )
        path = Path(folder) / f"dict.{language}.txt"
        if kind_of(path, "DATA") != "file":
            raise UsageError(f"'{path}' is not a file; {ADVICE}")


def _no_directory(folder: str | Path) -> UsageError:
    return UsageError(f"DATA '{folder}' is not a directory; {ADVICE}")


def _unreadable(folder: str | Path, error: OSError) -> UsageError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return _no_directory(folder)
    return UsageError(f"DATA '{folder}' can't be read ({error.strerror}); check its permissions")


@contextmanager
def dictionaries_read(data: str) -> Iterator[None]:
    """Turn any error while fairseq reads the dictionaries of ``DATA`` into one line.

    Raises:
        UsageError: such an error was raised; the message names the damaged dictionary if it can be found.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # fairseq raises Exception itself
        folder = Path(folders_of(data)[0])
        for path in sorted(folder.glob("dict.*.txt")):
            load_dictionary(path)
        raise UsageError(
            f"the dictionaries of DATA '{folder}' can't be read ({in_one_line(error)}); {ADVICE}"
        ) from error


def check_splits(
    data: str, languages: tuple[str, str], splits: Sequence[tuple[str, str]], *, dataset_impl: str | None
) -> None:
    """Check that splits are there.

    Args:
        data: ``DATA``, as for :func:`check_data`.
        languages: source and target language.
        splits: flags, and the split that each one names.
        dataset_impl: ``--dataset-impl``.

    Raises:
        UsageError: a split is missing.
    """
    source, target = languages
    pairs = (f"{source}-{target}", f"{target}-{source}")
    for flag, split in splits:
        # Only the training data is read from each directory.
        folders = folders_of(data) if flag == "--train-subset" else folders_of(data)[:1]
        for folder in map(Path, folders):
            check_halves(folder, split)
            prefixes = [str(folder / f"{split}.{pair}.{source}") for pair in pairs]
            if not any(split_exists(prefix, dataset_impl) for prefix in prefixes):
                raise missing_split(flag, split, folder, languages=languages)


def check_sentences(
    data: str | None, splits: Sequence[tuple[str, str]], *, dataset_impl: str | None = None
) -> Path:
    """Check that a language model's dictionary and splits are there.

    Args:
        data: ``DATA``: a directory, or several joined by ``:``; the first one has the dictionary.
        splits: flags, and the split that each one names.
        dataset_impl: ``--dataset-impl``.

    Returns:
        the dictionary.

    Raises:
        UsageError: a directory, the dictionary or a split is missing.
    """
    advice = f"{ADVICE} with --only-source"
    if not data:
        raise UsageError(f"DATA is not given; {advice}")
    folders = folders_of(data)
    for folder in folders:
        check_folder(folder)
    dictionary = Path(folders[0]) / "dict.txt"
    if kind_of(dictionary, "DATA") != "file":
        raise UsageError(f"DATA '{folders[0]}' has no dict.txt; {advice}")
    for flag, split in splits:
        for folder in folders if flag == "--train-subset" else folders[:1]:
            check_halves(folder, split)
            if not split_exists(os.path.join(folder, split), dataset_impl):
                raise _missing(flag, split, folder, names=splits_of(folder))
    return dictionary


def missing_split(flag: str, split: str, folder: Path, *, languages: tuple[str, str]) -> UsageError:
    """Return the error of a split that is not in a directory, with those that are.

    Args:
        flag: the flag that names it.
        split: its name.
        folder: the directory.
        languages: source and target language.
    """
    source, target = languages
    pairs = (f"{source}-{target}", f"{target}-{source}")
    names = {path.name.split(".")[0] for pair in pairs for path in folder.glob(f"*.{pair}.{source}*")}
    return _missing(flag, split, folder, names=names)


def _missing(flag: str, split: str, folder: str | Path, *, names: Collection[str]) -> UsageError:
    has = f"it has {', '.join(sorted(names))}" if names else "it has none"
    if "," in split and flag == "--gen-subset":
        return UsageError(f"{flag} takes one split, but is '{split}': run the command once for each; {has}")
    return UsageError(f"{flag} '{split}' is not in DATA '{folder}'; use a split that is there: {has}")


def check_halves(folder: str | Path, split: str) -> None:
    """Refuse a split that has lost a file: fairseq takes a side that lacks one of its two files for one
    that was never made.

    Args:
        folder: the directory.
        split: the split; its further parts count too if it is ``train``: ``train1``, …

    Raises:
        UsageError: an index is there without its data, or data without its index.
    """
    try:
        names = set(os.listdir(folder))
    except OSError as error:
        raise _unreadable(folder, error) from error
    own = re.compile(rf"{re.escape(split)}{'[0-9]*' if split == 'train' else ''}(\..*)?\.(idx|bin)")
    for name in sorted(filter(own.fullmatch, names)):
        other = name[:-3] + ("bin" if name.endswith("idx") else "idx")
        if other not in names:
            raise UsageError(
                f"'{Path(folder) / other}' is missing, but {name} is there; copy it, or binarise again"
            )


def split_exists(prefix: str, dataset_impl: str | None) -> bool:
    """Return whether a side of a split is there.

    Args:
        prefix: the path of its files, without their endings.
        dataset_impl: ``--dataset-impl``.

    Raises:
        UsageError: it is there as files of another kind.
    """
    there = bool(indexed_dataset.dataset_exists(prefix, dataset_impl))
    kind = _kind_of_index(f"{prefix}.idx")
    # Raw text may lie beside the files that were made of it.
    fits = there if dataset_impl == "raw" or kind is None else dataset_impl in _READERS[kind]
    if dataset_impl is None or fits:
        return there
    if kind is None and not os.path.isfile(prefix):
        return False
    path, kind = (prefix, "raw") if kind is None else (f"{prefix}.idx", kind)
    raise UsageError(
        f"--dataset-impl {dataset_impl} does not fit '{path}', which is of kind {kind}: "
        + ("use raw" if kind == "raw" else "leave it out")
    )


def _kind_of_index(path: str) -> str | None:
    """Return the kind of a data set's index by its first bytes; None if it is not there, or unknown."""
    marks = {mark[:8]: kind for kind, mark in _MARKS.items()}
    with suppress(OSError), open(path, "rb") as file:
        return marks.get(file.read(8))
    return None
