"""What a training leaves that was stopped or refused: where it goes on, and no empty folder."""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.training.configuration.paths import LAST
from fairseq_imitkd.training.run_files import CONFIG, LOG, METRICS


def where_it_goes_on() -> str:
    """Return what follows the word ``stopped``: whether the same command has a checkpoint to go on from."""
    args = _flags()
    path = os.path.join(args.save_dir, LAST.replace(".pt", f"{args.checkpoint_suffix}.pt"))
    if os.path.isfile(path):
        return f"; the same command continues from {path}"
    return "; there is no checkpoint yet, so the same command starts from the beginning"


@contextmanager
def no_trace_of_a_refusal() -> Iterator[None]:
    """Return a context that removes the folder of ``--save-dir`` if it makes it and ends in a ``UsageError``.

    The folder stays if it holds more than the files that a training begins with.
    """
    made = _missing(Path(_flags().save_dir))
    try:
        yield
    except UsageError:
        if made and int(os.environ.get("RANK", 0)) == 0:
            with suppress(OSError):
                _remove(made)
        raise


def _flags() -> Namespace:
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--save-dir", nargs="?", default="checkpoints")
    parser.add_argument("--checkpoint-suffix", nargs="?", default="")
    args, _ = parser.parse_known_args(sys.argv[1:])
    return args


def _missing(folder: Path) -> list[Path]:
    """Return a folder and those above it that do not exist, the innermost first."""
    return [path for path in (folder, *folder.parents) if not os.path.lexists(path)]


def _remove(folders: list[Path]) -> None:
    """Remove folders if the first one holds no more than the files that a training begins with."""
    begun = {folders[0] / name for name in (CONFIG, LOG, METRICS)}
    files = set(folders[0].iterdir())
    metrics = folders[0] / METRICS
    lines = metrics.read_text(encoding="utf-8").count("\n") if metrics in files else 0
    if files <= begun and lines <= 1:  # the first line says that an epoch begins
        for file in files:
            file.unlink()
        for folder in folders:
            folder.rmdir()
