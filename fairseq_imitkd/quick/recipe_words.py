"""The words of ``imitkd-distill``: what is wrong with them together, without importing torch or fairseq."""

import os
from argparse import Namespace
from collections.abc import Collection
from pathlib import Path

from fairseq_imitkd.quick.model_folder import is_huggingface
from fairseq_imitkd.quick.near import closest

RECIPES = Path(__file__).parents[1] / "pipeline" / "recipes"  # those that come with the package
SPLITS = ("train", "valid", "test")
NEW = ("teacher", "sentencepiece", *SPLITS)  # flags in place of a recipe
OPTIONAL = ("teacher_data", "method", "arch", "updates", "threads")
# The keys of a recipe that say what these flags say.
KEYS = {
    **{split: f"text.{split}" for split in SPLITS},
    "teacher": "teacher",
    "teacher_data": "teacher.dictionaries",
    "sentencepiece": "sentencepiece",
    "method": "methods",
    "arch": "student.arch",
    "updates": "training: --max-update",
    "threads": "threads",
}
COMPRESSED = ("bz2", "gz", "xz", "zip", "zst")  # suffixes


def problem(args: Namespace, criteria: Collection[str] | None = None) -> str | None:
    """Return what is wrong with a command line's words, or None.

    Args:
        args: the words by name, as the command's parser gives them.
        criteria: the names of all methods; None if they are not known yet.
    """
    if args.flags:
        return (
            f"'{args.flags[0]}' is one word too many; put flags of Snakemake after --, and names with "
            "blanks in quotes"
        )
    several = (args.method or "").split(",")
    if args.method is not None and args.recipe is not None and unknown(Path(args.recipe)) is not None:
        if criteria is None:  # a second method looks like RECIPE to argparse
            return None
        several += [str(args.recipe)] if str(args.recipe) in criteria else []
    if len(several) > 1:
        return f"--method takes one method; several are in a recipe: methods: [{', '.join(several)}]"
    if args.recipe is None:
        return _of_flags(args)
    given = [name for name in (*NEW, *OPTIONAL) if getattr(args, name) is not None]
    if given:
        flag, own = f"--{given[0].replace('_', '-')}", packaged(Path(args.recipe))
        where = "there" if own is None else f"into a copy of {own}"
        return (
            f"{flag} changes nothing beside RECIPE '{args.recipe}'; write it {where} (key {KEYS[given[0]]})"
        )
    return unknown(Path(args.recipe))


def packaged(recipe: Path) -> Path | None:
    """Return the file of the packaged recipe that a word names; None if it is a path.

    A folder of a recipe's name, such as that of its run, does not count.
    """
    is_name = not os.path.isfile(recipe) and not recipe.suffix and len(recipe.parts) == 1
    path = RECIPES / f"{recipe.name}.yaml"
    return path if is_name and os.path.isfile(path) else None


def unknown(recipe: Path) -> str | None:
    """Return what is wrong with a word that names neither a recipe nor a path, or None."""
    if packaged(recipe) is not None or os.path.exists(recipe):
        return None
    if recipe.suffix or len(recipe.parts) != 1:
        return f"recipe '{recipe}' can't be read: No such file or directory; check the path"
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    return f"RECIPE '{recipe}' is neither a file nor a recipe of the package: {closest(recipe.name, names)}"


def _of_flags(args: Namespace) -> str | None:
    """Return what is wrong with flags in place of a recipe, or None."""
    if args.text is not None:
        return f"--text '{args.text}' needs a recipe of --list; name one, or leave it out"
    missing = [f"--{name}" for name in NEW if getattr(args, name) is None]
    if args.teacher is not None and is_huggingface(args.teacher):
        for name in ("sentencepiece", "teacher_data"):
            if getattr(args, name) is not None:
                return (
                    f"--{name.replace('_', '-')} changes nothing with --teacher '{args.teacher}', a model of "
                    "Hugging Face's format, which has its own; leave it out"
                )
        missing.remove("--sentencepiece")
    if missing and len(missing) == len(NEW) and not any(getattr(args, name) for name in OPTIONAL):
        return "RECIPE is not given; name a YAML file, or use --teacher, --sentencepiece and the text"
    if missing:
        verb, it = ("is", "it") if len(missing) == 1 else ("are", "them")
        return f"{' and '.join(missing)} {verb} not given; add {it}, or name a recipe"
    if args.out is None:
        return "--out is not given; name a folder for the student"
    return _of_suffixes(args)


def _of_suffixes(args: Namespace) -> str | None:
    """Return why the suffixes of files do not name two languages, or None."""
    train = " ".join(args.train)
    suffixes = languages(args.train)
    if not all(suffixes):
        return (
            f"--train '{train}' must be two files whose suffixes name the languages, such as train.de "
            "train.en; rename them, or write a recipe"
        )
    if suffixes[0] == suffixes[1]:
        stems = [Path(file).stem for file in args.train]
        remedy = "give the other language's"
        if suffixes[0] in COMPRESSED:
            remedy = "unpack them"
        elif len({Path(stem).suffix for stem in stems} - {""}) == 2:
            remedy = f"rename them to {' and '.join(stems)}"
        return (
            f"--train '{train}' must be a file of each language, but both have the suffix .{suffixes[0]}; "
            f"{remedy}"
        )
    for split in SPLITS:
        files = getattr(args, split)
        if languages(files) != suffixes:
            return (
                f"--{split} '{' '.join(files)}' must have the suffixes of --train, .{suffixes[0]} and "
                f".{suffixes[1]}, in that order; exchange or rename them"
            )
    return None


def languages(files: list[str]) -> list[str]:
    """Return the suffixes of files, without the dots."""
    return [Path(file).suffix.removeprefix(".") for file in files]
