"""The messages of argparse in this package's form: the flag, its value, what it must be, near names."""

import difflib
import re
from argparse import ArgumentParser
from collections.abc import Callable, Collection, Sequence

_KINDS = {"int": "a whole number", "float": "a number", "numbers": "numbers joined by commas"}
_OWN = "imitkd_"  # in the names of this package's sizes of transformers
_MOST = 12  # choices that a line lists
_JOINED = {
    "--teacher-path": ":",
    "--path": ":",
    "--metrics": ",",
    "--eval-metrics": ",",
    "--batch-sizes": ",",
}
_MEANT = {
    "--epochs": "--max-epoch",
    "--gradient-accumulation-steps": "--update-freq",
    "--learning-rate": "--lr",
    "--max-steps": "--max-update",
    "--num-beams": "--beam",
    "--num-train-epochs": "--max-epoch",
    "--output-dir": "--save-dir",
    "--per-device-train-batch-size": "--batch-size",
    "--spm": "--sentencepiece",
    "--teacher": "--teacher-path",
    "--teacher-model": "--teacher-path",
    "--warmup": "--warmup-updates",
}  # what others call a flag, such as transformers' TrainingArguments
# Keys of a recipe that say what flags of other commands say. Most of these are a training's.
_DISTILL, _KEYS = (
    "imitkd-distill",
    {
        "--cpu": "the recipe's key device says it",
        "--fp16": "it is in the recipe's key training",
        "--seed": "the recipe's key seeds has them",
        "--source-lang": "the suffixes of --train name the languages, or the recipe's key languages",
        "--target-lang": "the suffixes of --train name the languages, or the recipe's key languages",
        "--max-update": "did you mean --updates? In a recipe it is in the key training",
        "--max-epoch": "did you mean --updates? In a recipe it is in the key training",
    },
)
# What people type for sequence-level distillation, which is not a criterion.
_SEQUENCE_LEVEL = {"seqkd", "seq_kd", "sequence_kd", "sequence_level_kd", "seqlevelkd", "seq_level_kd"}


def said(
    parser: ArgumentParser,
    message: str,
    owners: Callable[[str], str] | None = None,
    *,
    typed: Sequence[str] = (),
) -> str:
    """Return a message of argparse in this package's form.

    Args:
        parser: the parser that found the error.
        message: argparse's message.
        owners: of a parser whose flags depend on choices: returns the choices that would add a flag, in
            words; empty if none is known.
        typed: the command line.
    """
    found = re.fullmatch(r"argument (\S+): (.*)", message, flags=re.DOTALL)
    if found is None:
        return _of_all(parser, message, owners, typed=typed)
    # All names of the flag are there, such as --batch-size/--max-sentences.
    flag, problem = max(found[1].split("/"), key=lambda name: name.startswith("--")), found[2]
    if problem == "expected one argument":
        return f"{flag} needs a value"
    if several := re.fullmatch(r"expected (\d+) arguments", problem):
        return f"{flag} needs {several[1]} values, one after the other"
    wrong = re.fullmatch(r"invalid (\S+) value: (.*)", problem, flags=re.DOTALL)
    if wrong is not None and wrong[1] in _KINDS:
        if wrong[2] == "'???'":  # how fairseq marks a value that must be given
            return f"{flag} is not given; add it"
        return f"{flag} must be {_KINDS[wrong[1]]}, but is {shortened(wrong[2])}"
    wrong = re.match(r"invalid choice: (.*?) \(choose from", problem, flags=re.DOTALL)
    action = parser._option_string_actions.get(flag)
    if wrong is not None and action is not None and action.choices is not None:
        return _of_choices(flag, wrong[1].strip("'"), list(map(str, action.choices)))
    return f"{flag} {problem}" if problem.startswith("must ") else f"{flag}: {problem}"


def _of_choices(flag: str, value: str, choices: Sequence[str]) -> str:
    """Return what a flag of a few choices may be, or the names that are most like a wrong one."""
    if flag == "--criterion" and value.lower().replace("-", "_") in _SEQUENCE_LEVEL:
        return (
            f"--criterion '{value}' does not exist: imitkd-seqkd writes the teacher's translations as data, "
            "and --task translation --criterion cross_entropy trains on them"
        )
    close = difflib.get_close_matches(value.lower(), choices, 2, cutoff=0.7)
    if flag == "--arch":
        close = list(dict.fromkeys([*_own_architectures(value.lower(), choices), *close]))[:2]
    shown = shortened(f"'{value}'")
    if close:
        return f"{flag} {shown} does not exist: did you mean {' or '.join(close)}?"
    if len(choices) <= _MOST:
        return f"{flag} must be one of {', '.join(choices)}, but is {shown}"
    like = difflib.get_close_matches(value, choices, 5, cutoff=0.3) or choices[:5]
    return f"{flag} must be one of {len(choices)}, such as {', '.join(like)}, but is {shown}"


def _own_architectures(value: str, choices: Sequence[str]) -> list[str]:
    """Return this package's sizes of transformers that contain a value, or are like it without their mark."""
    own = {name.replace(_OWN, ""): name for name in choices if _OWN in name}
    parts = [name for name in own.values() if len(value) > 3 and value in name]
    return parts or [own[name] for name in difflib.get_close_matches(value, own, 2, cutoff=0.85)]


def _of_all(
    parser: ArgumentParser, message: str, owners: Callable[[str], str] | None, *, typed: Sequence[str]
) -> str:
    if message.startswith("the following arguments are required: "):
        [first, *others] = message.removeprefix("the following arguments are required: ").split(", ")
        first = first.split("/")[-1]
        what = "name a directory" if first in ("data", "DATA_BIN") else "add it"
        named = "DATA" if first == "data" else first
        return f"{named} is not given; {what}" + (f", and {', '.join(others)} too" if others else "")
    if not message.startswith("unrecognized arguments: "):
        return message
    return of_extras(parser, message.removeprefix("unrecognized arguments: ").split(), owners, typed=typed)


def of_extras(
    parser: ArgumentParser,
    extras: Sequence[str],
    owners: Callable[[str], str] | None = None,
    *,
    typed: Sequence[str] = (),
    also: Collection[str] = (),
) -> str:
    """Return what is wrong with words that a parser does not know: the first flag, or else the first word.

    Args:
        parser: the parser.
        extras: the words.
        owners: as for :func:`said`.
        typed: the whole command line.
        also: flags that choices would add, for near names.
    """
    flag = next((word for word in extras if re.match("--?[A-Za-z]", word)), None)
    if flag is None:
        return _of_extra_word(parser, extras[0], typed)
    name = flag.split("=")[0]
    options = parser._option_string_actions
    positional = [action for action in parser._actions if not action.option_strings]
    places = {str(word).lower() for action in positional for word in (action.dest, action.metavar)}
    dashed = "--" + name.lstrip("-").replace("_", "-")
    if dashed in options or (dashed in also and dashed != name):
        return f"{flag} is not a flag of this command: did you mean {dashed}?"
    if dashed == "--device":
        return f"{flag} is not a flag of this command: a GPU is used if there is one, unless --cpu is given"
    if name.lstrip("-") in places:
        return f"{flag} is not a flag of this command: that word is given without a flag"
    meant = [_MEANT[dashed]] if _MEANT.get(dashed) in (*options, *also) else None
    near = (meant or difflib.get_close_matches(dashed, names, 2, cutoff=0.75) for names in (options, also))
    close = next(filter(None, near), [])
    found = owners(dashed) if owners is not None else ""
    if found and not (close and found.startswith("imitkd-")):  # a near flag of this command is likelier
        return f"{flag} can't be used here: it is a flag of {found}"
    hint = "" if owners is None else ", or belongs to another task, criterion or architecture"
    if parser.prog == _DISTILL and _MEANT.get(dashed, dashed) in _KEYS:
        hint = f": {_KEYS[_MEANT.get(dashed, dashed)]}"
    elif close:
        hint = f": did you mean {' or '.join(close)}?"
    elif parser.prog == _DISTILL:
        hint = ": if it is one of a training, write it into the recipe's key training"
    return f"{flag} is not a flag of this command{hint}"


def unknown_words(parser: ArgumentParser, typed: Sequence[str]) -> list[str]:
    """Return the words of a command line that a parser does not know, whether or not others are missing.

    Args:
        parser: the parser.
        typed: the command line.
    """
    needed = [action for action in parser._actions if action.required]
    for action in needed:
        action.required = False
    try:
        return parser.parse_known_args(list(typed))[1]
    finally:
        for action in needed:
            action.required = True


def _of_extra_word(parser: ArgumentParser, word: str, typed: Sequence[str]) -> str:
    """Return what a word that belongs to no flag could be: a value of the flag before it, or of --data."""
    line = f"{shortened(repr(word))} is an extra word"
    place = typed.index(word) if word in typed else 0
    before = next((given for given in reversed(typed[:place]) if given.startswith("-")), "").split("=")[0]
    if (
        before == "--path"
        and "--input" in parser._option_string_actions
        and not word.endswith((".pt", ".ckpt", ".pth"))
    ):
        return f"{line}: did you mean --input {shortened(word)}?"
    if before in _JOINED:
        return f"{line}: join several values of {before} by '{_JOINED[before]}'"
    if before == "--model":
        return f"{line}: give --model once for each model"
    given = {each.split("=")[0] for each in typed}
    if "--data" in parser._option_string_actions and "--data" not in given:
        return f"{line}: did you mean --data {shortened(word)}?"
    return f"{line}: leave it out, or give its flag"


def shortened(value: str, longest: int = 80) -> str:
    """Return a quoted value, cut off if it is long."""
    return value if len(value) <= longest else f"{value[:longest]}…'"
