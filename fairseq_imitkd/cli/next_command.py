"""The command that follows a training, with the paths of this one."""

import os
import re
import shlex
from argparse import Namespace
from glob import escape, glob
from pathlib import Path

from fairseq.data import data_utils

from fairseq_imitkd.data.directory import folders_of
from fairseq_imitkd.training.configuration.data import TASKS


def is_first_process(args: Namespace) -> bool:
    """Whether this process speaks for all that train together."""
    return int(os.environ.get("RANK", args.distributed_rank or 0)) == 0


def _plain(name: str) -> str:
    """Return a folder's name as a name of a model, which has letters, digits and a few signs."""
    return re.sub(r"[^\w.+-]", "_", name, flags=re.ASCII) or "model"


def next_command(args: Namespace) -> str | None:
    """Return the command that evaluates what a training has made; None if it can't be evaluated.

    Args:
        args: the command line of the training.
    """
    folder = Path(args.save_dir)
    paths = [folder / f"checkpoint_{name}{args.checkpoint_suffix}.pt" for name in ("best", "last")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None or args.task not in TASKS or "://" in args.data:
        return None
    data = folders_of(args.data)[0]
    teacher = getattr(args, "teacher_path", None)
    # What is trained without a teacher may become one.
    name = "student" if teacher or getattr(args, "teacher_cache", None) else _plain(folder.resolve().name)
    models = [f"--model={name}={path}"]
    if teacher and os.path.isfile(teacher):  # several, or one of another kind, are not evaluated
        models = [f"--model=teacher={teacher}", *models, "--teacher=teacher"]
    test = glob(f"{escape(os.path.join(data, 'test'))}.*")
    split = [] if test else ["--gen-subset", args.valid_subset.split(",")[0]]
    given = (args.source_lang, args.target_lang)
    pair = []
    if given != tuple(data_utils.infer_language_pair(data)):  # imitkd-evaluate sees them too
        pair = [
            word for flag, value in zip(("-s", "-t"), given, strict=True) if value for word in (flag, value)
        ]
    words = ["imitkd-evaluate", *models, "--data", data, *pair, *split, "--out", str(folder / "evaluation")]
    return shlex.join(words)
