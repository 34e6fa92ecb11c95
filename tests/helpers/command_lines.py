"""Random command lines over all flags of fairseq's commands with the plugin, and how they end.

The flags, their types and their choices come from the commands' own parsers, fairseq's flags included.
"""

import functools
import subprocess
from argparse import SUPPRESS, Action, ArgumentParser
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from fairseq import options

import fairseq_imitkd  # noqa: F401  (registers the tasks, methods and architectures)
from fairseq_imitkd.methods import METHODS
from tests.helpers.digit_corpus import ARCHITECTURES, ENVIRONMENT
from tests.helpers.warm_commands import folder

LONGEST = 600  # characters of the last line
SECONDS = 60  # no line below needs more than a few

CRITERIA = (*METHODS, "cross_entropy", "label_smoothed_cross_entropy")
# Typical values of each kind, and others: at a boundary, not a number, empty, of another type.
WHOLE = ("1", "2", "3", "7", "64", "100"), (
    "0", "-1", "-5", "1000000000000", "99999999999999999999", "1.5", "nan", "", "x",
)  # fmt: skip
REAL = ("0.1", "0", "0.5", "1", "1e-3"), ("-1", "2", "1e30", "-1e-9", "nan", "inf", "-inf", "", "x", "0,1")
LISTS = (
    ("1", "2,1", "[1]", "0.01"),
    ("0", "-1", "1,,2", "", "x", "nan", "(1", "{}", "1e400", "[]", "None", "[[1]]"),
)
TEXTS = (
    "x", "none", "missing/file.pt", "TEXT", "FOLDER", "TEXT/inside", "{}", '{"beam": 1}', "0", "valid",
    "valid,test",
    "(0.9, 0.98)", "bleu", "loss", "@@ ",
), (
    "", "{'beam': 1}", "[1]", "it's", "a b", "\\", "${x}", "é", "valid,", "(1, 2, 3)",
    "__import__('os').getcwd()",
    "x" * 300,
)  # fmt: skip
# Schedules of the learning rate, with what each needs.
SCHEDULERS = (
    *[("--lr-scheduler", "inverse_sqrt"), ("--lr-scheduler", "fixed")] * 3,
    *[("--lr-scheduler", name) for name in ("cosine", "reduce_lr_on_plateau", "step")],
    ("--lr-scheduler", "polynomial_decay", "--total-num-update", "10"),
    ("--lr-scheduler", "tri_stage", "--phase-ratio", "0.1,0.4,0.5"),
    ("--lr-scheduler", "triangular", "--max-lr", "1"),
)
# A drawn value here would only make a line slow or wait for another machine, or leave the test's folder.
SKIPPED = {"-h", "--help", "--distributed-init-method", "--num-workers", "--traceback"}


@dataclass(frozen=True)
class Line:
    """A command line: the command's name, and its arguments, with the names in capitals not yet filled in."""

    command: str
    arguments: tuple[str, ...]

    def filled(self, names: dict[str, Path]) -> list[str]:
        """Return the arguments with these names replaced."""
        return [
            str(names[first]) + argument[len(first) :]
            if (first := argument.split("/")[0]) in names
            else argument
            for argument in self.arguments
        ]


@dataclass(frozen=True)
class End:
    """How a command line ended.

    Args:
        status: its exit status; None if it did not end.
        output: what it printed on standard output and on standard error, one after the other.
        last: its last line.
    """

    status: int | None
    output: str
    last: str

    @property
    def fault(self) -> str | None:
        """What is wrong: neither a training nor one line; None if nothing is."""
        if self.status is None:
            return "it does not end"
        if "Traceback" in self.output:
            return "a traceback"
        if self.status == 0:
            return None
        if not self.last.startswith("error: "):
            return "the last line is not an error"
        return f"the line has {len(self.last)} characters" if len(self.last) > LONGEST else None

    @property
    def read_data(self) -> bool:
        """Whether a data set or an input was opened; the console says so, and with --log-format fairseq."""
        return any(said in self.output for said in (" sentences of ", " examples", "Type the input sentence"))


@functools.cache
def flags(command: str, chosen: tuple[str, ...]) -> list[Action]:
    """Return the flags of a command.

    Args:
        command: ``train``, ``generate`` or ``interactive``.
        chosen: the flags that choose what adds other flags, such as a criterion.
    """
    make = {
        "train": options.get_training_parser,
        "generate": options.get_generation_parser,
        "interactive": options.get_interactive_generation_parser,
    }[command]
    seen: list[ArgumentParser] = []
    parser = make("translation_with_teacher")
    options.parse_args_and_arch(parser, ["data", *chosen], modify_parser=seen.append)
    return [
        action
        for action in seen[-1]._actions
        if action.option_strings and not SKIPPED & set(action.option_strings)
    ]


def values(action: Action) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return typical values of a flag, and others."""
    if action.choices is not None:
        return tuple(map(str, action.choices))[:20], ("x", "")
    kinds: dict[Any, Any] = {int: WHOLE, float: REAL, str: TEXTS, None: WHOLE}
    typical, others = kinds.get(action.type, LISTS)
    known = action.default is not None and action.default != SUPPRESS
    return (*typical, str(action.default)) if known else typical, others


def random_line(draw: Random) -> Line:
    """Return a line that works, with up to four flags more."""
    command = draw.choice(["train"] * 5 + ["generate", "interactive"])
    chosen: tuple[str, ...] = ()
    if command == "train":
        optimizers = ("adadelta", "adafactor", "adagrad", "adamax", "nag", "sgd")
        chosen = (
            "--criterion", draw.choice(CRITERIA), "--optimizer", draw.choice([*["adam"] * 6, *optimizers]),
            *draw.choice(SCHEDULERS),
            *ARCHITECTURES[draw.choice(["transformer"] * 4 + ["lstm", "fconv"])],
        )  # fmt: skip
        base = (
            "DATA", "--save-dir", "saved", "--teacher-path", "TEACHER", "--cpu", "--lr", "0.01",
            "--max-tokens", "400",
            "--num-workers", "0", "--max-update", "2", "--max-epoch", "1", "--stop-time-hours", "0.001",
            "--no-epoch-checkpoints", "--log-format", "simple", *chosen,
        )  # fmt: skip
    else:
        base = ("DATA", "--path", "TEACHER", "--cpu", "--batch-size", "1", "--max-len-b", "5", "--beam", "1")
    more: list[str] = []
    for action in draw.choices(flags(command, chosen), k=draw.randint(0, 4)):
        more.append(draw.choice(action.option_strings))
        more += [] if action.nargs == 0 else [draw.choice(values(action)[draw.random() < 0.4])]
    return Line(f"imitkd-{command}", (*base, *more))


def run(line: Line, names: dict[str, Path], cwd: Path) -> End:
    """Run a command line to its end.

    Args:
        line: the line.
        names: what its names in capitals stand for.
        cwd: its working directory.
    """
    arguments = [str(folder() / line.command), *line.filled(names)]
    try:
        done = subprocess.run(
            arguments, input="1 2 3\n4 5\n", capture_output=True, text=True, errors="replace", cwd=cwd,
            env=ENVIRONMENT, timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        shown = [(part or b"").decode(errors="replace") for part in (error.stdout, error.stderr)]
        return End(None, "".join(shown), "")
    shown = done.stderr.strip().splitlines() or done.stdout.strip().splitlines() or [""]
    return End(done.returncode, done.stdout + done.stderr, shown[-1])
