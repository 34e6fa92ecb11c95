"""Answers that need neither torch nor fairseq: ``--help``, ``--version``, and what ``imitkd`` alone prints.

Importing torch and fairseq takes seconds. So the package looks here first when it is imported (see
``__init__.py``), and the help texts are files, which a test keeps equal to the parsers.
"""

import contextlib
import difflib
import io
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from fairseq_imitkd.version import __version__

HELP = Path(__file__).parents[1] / "cli" / "help"  # one text for each command
WORDS = HELP.with_name("words.json")  # the words that each command takes; of fairseq's, the flags
RECIPES = HELP.with_name("recipes.txt")  # what imitkd-distill --list prints
SUMMARIES = {
    "distill": "make a small model of a teacher and text: all steps, by one recipe",
    "train": "train a student with a teacher (fairseq-train with the plugin)",
    "generate": "translate a test set (fairseq-generate with the plugin)",
    "interactive": "translate standard input (fairseq-interactive with the plugin)",
    "import": "make a teacher of a Hugging Face model",
    "encode": "split text into the subwords of an imported model",
    "trim": "trim a model's vocabulary to the symbols of a corpus",
    "dictionary": "write a multilingual teacher's dictionaries with its language tags",
    "seqkd": "let the teacher translate the training data: sequence-level distillation",
    "cache": "save the teacher's answers on a data set, for trainings without the teacher",
    "prune": "count, prune or compact the weights of a checkpoint",
    "evaluate": "compare quality, speed and size of models on a test set",
    "report": "draw trainings and evaluations on one page",
    "export": "convert a student for CTranslate2 or ONNX, in int8 or float16",
    "serve": "translate over HTTP with an exported student",
}
FAIRSEQS = ("train", "generate", "interactive")  # commands of fairseq
EXAMPLE = "imitkd-train DATA --teacher-path teacher.pt --criterion imitkd --arch transformer --optimizer adam"
COMPLETION, SHELLS = "--print-completion", ("bash", "zsh", "tcsh")


@dataclass(frozen=True)
class Answer:
    """What a command prints before it ends.

    Args:
        text: the text, with its last newline.
        status: its exit status; other than 0 the text goes to standard error.
    """

    text: str
    status: int = 0

    def give(self) -> None:
        """Print the text, and end with the status."""
        print(self.text, end="", file=sys.stderr if self.status else sys.stdout)
        sys.exit(self.status)


def answer(arguments: Sequence[str]) -> Answer | None:
    """Return the answer to a command line, or None if a command must be run.

    Args:
        arguments: ``sys.argv``, of ``imitkd COMMAND …`` or of ``imitkd-COMMAND …``.
    """
    if not is_command(arguments):
        return None
    slipped = _slipped(arguments[1:])
    if slipped is not None:
        return _refusal(slipped)
    command, words = split(arguments)
    if command is None:
        return _without_command(words)
    if command == "help":
        return answer([arguments[0], *words[:1], "--help"])
    if command not in SUMMARIES:
        if Path(command).is_dir():
            return _refusal(
                f"'{command}' is a folder; name a command before it, such as imitkd-train {command}"
            )
        close = difflib.get_close_matches(command.lower(), SUMMARIES, 1, cutoff=0.6)
        hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(SUMMARIES)}"
        return _refusal(f"'{command}' is not a command of imitkd: {hint}")
    if words in (["--version"], ["-V"]):
        return _version()
    if words in (["-h"], ["--help"]) or (words == ["help"] and not Path("help").exists()):
        return Answer((HELP / f"{command}.txt").read_text(encoding="utf-8"))
    if command in FAIRSEQS:
        return _of_fairseq(command, words)
    if command == "distill" and words in ([], ["--list"]):
        return Answer(RECIPES.read_text(encoding="utf-8")) if words else Answer(_distill_usage(), 2)
    if command == "distill" and "--" in words:  # flags of Snakemake follow
        words = words[: words.index("--")]
    if words[:1] == ["--check"]:  # the flags of a training follow
        return None
    return _wrong_words(command, words)


def _slipped(words: Sequence[str]) -> str | None:
    r"""Return what is wrong with a word that a backslash before a blank has made: the shell takes ``\ `` for
    a blank of the word that follows. None if there is no such word.
    """
    for word in words:
        if word and not word.strip():
            return "an argument is blank: delete it, and the blank after a backslash if there is one"
        if re.match(r"\s+-{1,2}[A-Za-z]", word):
            name = word.strip()[:60]
            return f"a blank before {name}: delete the backslash that is before this blank"
    return None


def _of_fairseq(command: str, words: Sequence[str]) -> Answer | None:
    """Return the refusal of a command line of fairseq that lacks a flag; None if fairseq must parse it."""
    from fairseq_imitkd.quick.missing import missing

    if not words:
        if command == "train":
            return Answer(_usage(), 2)
        return Answer(f"error: DATA is not given; name a directory; see imitkd-{command} --help\n", 2)
    if {"-h", "--help", "--help-all"} & set(words):
        return None
    line = missing(command, words, json.loads(WORDS.read_text(encoding="utf-8"))[command].split())
    return None if line is None else Answer(f"error: {line}\n", 1)


def _wrong_words(command: str, words: Sequence[str]) -> Answer | None:
    """Return the refusal of a command line that lacks words or has others; None if its parser may take it."""
    from fairseq_imitkd.quick.one_line_parser import parser_of
    from fairseq_imitkd.quick.recipe_words import problem

    parser = parser_of(f"imitkd-{command}", json.loads(WORDS.read_text(encoding="utf-8"))[command])
    errors = io.StringIO()
    is_help = bool({"-h", "--help"} & set(words))
    try:
        with contextlib.redirect_stderr(errors):
            args = parser.parse_args([word for word in words if word not in ("-h", "--help")])
    except SystemExit:
        return None if is_help else Answer(errors.getvalue(), 2)
    if command != "distill" or is_help or args.list:
        return None
    line = problem(args)
    return None if line is None else Answer(f"error: {line}\n", 1)


def is_command(arguments: Sequence[str]) -> bool:
    """Whether a command line, ``sys.argv``, runs ``imitkd`` or ``imitkd-COMMAND``."""
    return bool(arguments) and PurePath(arguments[0]).name.partition("-")[0] == "imitkd"


def split(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the name of the command that a command line runs, None without one, and what follows it.

    Args:
        arguments: ``sys.argv``, of ``imitkd COMMAND …`` or of ``imitkd-COMMAND …``.
    """
    program, words = PurePath(arguments[0]).name, list(arguments[1:])
    if program.startswith("imitkd-"):
        return program.removeprefix("imitkd-"), words
    if words and not words[0].startswith("-"):
        return words[0], words[1:]
    return None, words


def _without_command(words: Sequence[str]) -> Answer | None:
    if not words or words[0] in ("-h", "--help"):
        return Answer(_overview())
    if words[0] in ("--version", "-V"):
        return _version()
    if words[0] != COMPLETION:
        flag = words[0].partition("=")[0]
        owners = [f"imitkd-{command}" for command in _owners(flag)]
        close = difflib.get_close_matches(words[0], ("--version", "--help", COMPLETION), 1, cutoff=0.7)
        if close and not owners:
            return _refusal(f"{words[0]} is not a flag of imitkd: did you mean {close[0]}?")
        if not owners:
            return _refusal(f"{flag} is neither a flag of imitkd nor of its commands")
        of = owners if len(owners) < 3 else [owners[0], owners[1], "others"]
        return _refusal(f"{flag} is not a flag of imitkd, but of {' and '.join(of)}")
    if len(words) == 2 and words[1] in SHELLS:
        return None
    given = f"is '{' '.join(words[1:])}'" if len(words) > 1 else "is not given"
    return _refusal(
        f"the shell of {COMPLETION} must be {', '.join(SHELLS[:-1])} or {SHELLS[-1]}, but {given}"
    )


def _owners(flag: str) -> list[str]:
    """Return the commands that have a flag."""
    known = json.loads(WORDS.read_text(encoding="utf-8"))
    # fairseq's flags are one text
    all_flags = {
        command: words.split()
        if isinstance(words, str)
        else [name for each in words for name in each["names"]]
        for command, words in known.items()
    }
    return [command for command, flags in all_flags.items() if flag in flags]


def _version() -> Answer:
    return Answer(f"fairseq-imitkd {__version__}\n")


def _refusal(message: str) -> Answer:
    return Answer(f"error: {message}; see imitkd --help\n", 2)


def _overview() -> str:
    width = max(map(len, SUMMARIES))
    commands = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in SUMMARIES.items())
    return (
        "usage: imitkd COMMAND …\n\n"
        "Knowledge distillation for fairseq's sequence-to-sequence models.\n\n"
        f"commands:\n{commands}\n\n"
        "  imitkd COMMAND --help              the flags of a command\n"
        "  imitkd-COMMAND                     the same as imitkd COMMAND; documents and messages use it\n"
        f"  imitkd {COMPLETION} SHELL    completion for bash, zsh or tcsh\n"
        "  imitkd --version                   the version\n\n"
        f"example:\n  {EXAMPLE} …\n"
    )


def _distill_usage() -> str:
    return (
        "usage: imitkd-distill RECIPE                  (a YAML file, or a name of imitkd-distill --list)\n"
        "       imitkd-distill --teacher FILE --sentencepiece FILE --train SOURCE TARGET\n"
        "                      --valid SOURCE TARGET --test SOURCE TARGET --out DIR\n\n"
        "example, which needs no data:\n  imitkd-distill quickstart\n\n"
        "imitkd-distill --help lists the flags.\n"
    )


def _usage() -> str:
    return (
        "usage: imitkd-train DATA --teacher-path TEACHER --criterion METHOD --arch ARCH …\n\n"
        f"example:\n  {EXAMPLE} \\\n"
        "    --lr 7e-4 --lr-scheduler inverse_sqrt --warmup-updates 4000 --max-tokens 4096 \\\n"
        "    --max-update 100000 --save-dir student\n\n"
        "imitkd-train --help lists the flags of teachers and methods.\n"
    )
