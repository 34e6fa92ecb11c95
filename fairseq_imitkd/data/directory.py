"""fairseq's data directories, looked at before it reads them: of what is missing it says so in a traceback."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fairseq.data import data_utils, indexed_dataset

from fairseq_imitkd.data.files import kind_of
from fairseq_imitkd.errors import UsageError


def check_data(data: str | None, source: str | None, target: str | None) -> tuple[str, str]:
    """Whether fairseq can read a translation task's dictionaries.

    Args:
        data: DATA: a directory, or several joined by ``:``, of which the first has the dictionaries.
        source, target: languages, if they were given.

    Returns:
        both languages.

    Raises:
        UsageError: there is no such directory, its languages can't be told, or a dictionary is not in it.
    """
    if not data:
        raise UsageError("DATA is not given: name a directory that fairseq-preprocess has made")
    folders = data.split(os.pathsep)
    for folder in folders:
        if kind_of(folder, "DATA") != "folder":
            raise UsageError(f"DATA '{folder}' is no directory: name one that fairseq-preprocess has made")
    try:
        if not (source and target):  # fairseq then takes neither as given
            source, target = data_utils.infer_language_pair(folders[0])
        names = os.listdir(folders[0])
    except OSError as error:
        raise UsageError(
            f"DATA '{folders[0]}' can't be read ({error.strerror}): check its permissions"
        ) from error
    if not (source and target):
        raise UsageError(
            f"DATA '{folders[0]}' has no file such as train.de-en.de.idx, by which to tell its languages: name a directory "
            "that fairseq-preprocess has made, or give --source-lang and --target-lang"
        )
    for language in (source, target):
        if f"dict.{language}.txt" not in names:
            raise UsageError(
                f"DATA '{folders[0]}' has no dict.{language}.txt: name a directory that fairseq-preprocess has made, with its "
                "--source-lang and --target-lang"
            )
    return source, target


@contextmanager
def dictionaries_read(data: str) -> Iterator[None]:
    """Whatever goes wrong while fairseq reads dictionaries becomes one line that names their directory."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # fairseq raises Exception itself
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(
            f"a dictionary of DATA '{data.split(os.pathsep)[0]}' can't be read ({detail}): give one of fairseq-preprocess's"
        ) from error


def check_splits(
    data: str, source: str, target: str, splits: Sequence[tuple[str, str]], how: str | None
) -> None:
    """Whether sentences are there.

    Args:
        data: DATA, as of :func:`check_data`.
        source, target: its languages.
        splits: flags, and the split that each names.
        how: ``--dataset-impl``.

    Raises:
        UsageError: a split is not there.
    """
    folder = Path(data.split(os.pathsep)[0])
    pairs = (f"{source}-{target}", f"{target}-{source}")
    for flag, split in splits:
        if not any(
            indexed_dataset.dataset_exists(str(folder / f"{split}.{pair}.{source}"), how) for pair in pairs
        ):
            found = sorted(
                {path.name.split(".")[0] for pair in pairs for path in folder.glob(f"*.{pair}.{source}*")}
            )
            has = f"it has {', '.join(found)}" if found else "it has none"
            raise UsageError(f"{flag} '{split}' is not in DATA '{folder}': name a split that is there; {has}")
