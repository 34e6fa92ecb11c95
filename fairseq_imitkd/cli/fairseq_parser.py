"""fairseq's command-line parser, whose errors it makes one line each."""

import inspect
import re
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from fairseq import options
from fairseq.models import MODEL_DATACLASS_REGISTRY, MODEL_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY, TASK_REGISTRY
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from fairseq_imitkd.errors import UsageError, in_one_line
from fairseq_imitkd.quick.parser_messages import of_extras, said, shortened

_PLAIN = re.compile(r"[\w\s./:;,@%+=~()\[\]{}\"<>*!?#&|-]*")  # texts that hydra takes as they are


@contextmanager
def one_line_parsers(command: str) -> Iterator[None]:
    """Make every parser of argparse end with one line and status 2, without its usage of 200 lines.

    fairseq makes several parsers, some of them where no caller can reach them.

    Args:
        command: name of the command, whose help the line names.
    """

    def error(parser: ArgumentParser, message: str) -> NoReturn:
        def owners(name: str) -> str:
            return _owners(name, command)

        is_of_words = re.match("the following arguments are required|unrecognized arguments", message)
        misspelt = misspelt_flag(parser, sys.argv[1:]) if is_of_words else None
        found = misspelt or said(parser, message, owners, typed=sys.argv[1:])
        line = f"{in_one_line(ValueError(found))}; see {command} --help"
        print(f"error: {line}", file=sys.stderr)
        end = SystemExit(2)
        end.add_note(line)  # for the processes that train with this one
        raise end

    stock = ArgumentParser.error
    ArgumentParser.error = error  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        ArgumentParser.error = stock  # type: ignore[method-assign]


def _owners(name: str, command: str, most: int = 3) -> str:
    """Return the choices or the commands that add a flag in words; empty if none is known."""
    field = name.removeprefix("--").replace("-", "_")
    found = [
        f"--{kind.replace('_', '-')} {choice}"
        for kind, choices in _registries().items()
        for choice, settings in choices.items()
        if field in getattr(settings, "__dataclass_fields__", ())
    ]
    trains = command.endswith("train")
    if name in _flags_of("generate" if trains else "train") or (found and not trains):
        return f"imitkd-{'generate' if trains else 'train'}; leave it out"
    return ", ".join(found[:most]) + (f" and {len(found) - most} others" if len(found) > most else "")


def _registries() -> dict[str, Any]:
    return {
        "task": TASK_DATACLASS_REGISTRY,
        "arch": MODEL_DATACLASS_REGISTRY,
        **{kind: part["dataclass_registry"] for kind, part in REGISTRIES.items()},
    }


def _flags_of(command: str) -> set[str]:
    """Return the flags that a command of fairseq has, whatever is chosen."""
    made = options.get_training_parser() if command == "train" else options.get_generation_parser()
    return set(made._option_string_actions)


def known_flags(command: str) -> set[str]:
    """Return the flags that ``train``, ``generate`` or ``interactive`` may have, those of choices too."""
    if command == "interactive":
        return set(options.get_interactive_generation_parser()._option_string_actions)
    return _flags_of(command) | (_choices_flags() if command == "train" else set())


def misspelt_flag(parser: ArgumentParser, typed: Sequence[str]) -> str | None:
    """Return what is wrong with the first flag that no choice of a training or translation would add.

    Args:
        parser: fairseq's parser, which may lack the flags of choices.
        typed: the command line.

    Returns:
        the message; None if every flag is known.
    """
    known = set(parser._option_string_actions) | _flags_of("train") | _flags_of("generate") | _choices_flags()
    for word in typed:
        name = word.split("=")[0]
        is_flag = word.startswith("--") or f"-{name}" in known  # -lr, but not the number -1
        if is_flag and name not in known and len(name) > 2:
            return of_extras(parser, [word], typed=typed, also=known)
    return None


def _choices_flags() -> set[str]:
    """Return the flags that tasks, architectures, criteria and the other choices add."""
    fields = {
        "--" + field.replace("_", "-")
        for choices in _registries().values()
        for settings in choices.values()
        for field in getattr(settings, "__dataclass_fields__", ())
    }
    # What is older than fairseq's dataclasses adds its flags to a parser.
    parser = ArgumentParser(add_help=False, conflict_handler="resolve")
    for kind in (*MODEL_REGISTRY.values(), *TASK_REGISTRY.values(), *_classes_of_choices()):
        with suppress(Exception):
            kind.add_args(parser)
    return fields | set(parser._option_string_actions)


def _classes_of_choices() -> Iterator[Any]:
    for part in REGISTRIES.values():
        yield from part["registry"].values()


def check_texts(args: Namespace) -> None:
    """Refuse texts that hydra, to which fairseq passes all values on, can't read or changes.

    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/dataclass/utils.py#L317-L319

    Args:
        args: the parsed command line.

    Raises:
        UsageError: naming the flag and its text.
    """
    for name, value in vars(args).items():
        if not isinstance(value, str) or _PLAIN.fullmatch(value):
            continue
        quoted = value.replace("'", r"\'")
        problem = None
        try:
            same = OverridesParser.create().parse_override(f"x='{quoted}'").value() == value
            OmegaConf.to_container(OmegaConf.create({"x": value}), resolve=True)
        except Exception as error:  # of antlr, hydra or omegaconf
            same, problem = False, error
        if not same:
            flag = "DATA" if name == "data" else "--" + name.replace("_", "-")
            raise UsageError(
                f"{flag} can't hold a backslash before a quote or at its end, or ${{…}} that is not defined, "
                f"but is {shortened(repr(value))}"
            ) from problem


def check_precision(words: Sequence[str]) -> None:
    """Refuse both kinds of half precision, which fairseq's parser takes for one of a TPU.

    Args:
        words: the command line.

    Raises:
        UsageError: naming both flags.
    """
    kinds = ("fp16", "bf16")
    given = [
        [word for word in words if word in (f"--{kind}", f"--memory-efficient-{kind}")] for kind in kinds
    ]
    if all(given):
        raise UsageError(f"{given[0][0]} and {given[1][0]} exclude each other; leave one out")


def parse_carefully(parser: ArgumentParser) -> None:
    """Let a parser report lists that do not parse as errors of their flags.

    fairseq reads them as Python's literals, whose syntax errors are not errors of argparse.
    """
    for action in parser._actions:
        kind = action.type
        if inspect.isfunction(kind) and kind.__name__ in ("<lambda>", "eval_bool"):
            action.type = _careful(kind)


def _careful(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def numbers(text: str) -> Any:
        try:
            return kind(text)
        except ArgumentTypeError:
            raise
        except Exception as error:
            raise ValueError(text) from error

    return numbers
