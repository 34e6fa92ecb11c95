"""The settings that fairseq prints when it starts, as Python writes them down."""

import ast
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

# What tells most about a run, in the order in which it is shown; others follow where runs differ in them.
FIRST = (
    "criterion", "arch", "task", "teacher_path", "student_share", "divergence", "rollout_policy", "gold_weight",
    "label_smoothing", "lr", "lr_scheduler", "warmup_updates", "max_update", "max_tokens", "batch_size", "update_freq",
    "dropout", "seed",
)  # fmt: skip
# Where a run is kept says nothing about it.
PLACES = ("save_dir", "tensorboard_logdir", "log_file", "user_dir", "_name")
# Strings, which stay as they are, one without an end too, whose other quotes would each be tried as a beginning; and what an
# ``Enum`` of fairseq is printed as, such as global and forward-kl, which no string has around it.
_BARE = re.compile(
    r"""'(?:\\.?|[^'\\])*+(?:'|\Z)|"(?:\\.?|[^"\\])*+(?:"|\Z)"""
    r"""|(?<=[ =\[])(?!(?:None|True|False)\b)[A-Za-z_][\w.+-]*(?=[,})\]])"""
)


def parse(text: str) -> dict[str, Any]:
    """Settings by name.

    A name that several sections have, with different values, has its section before it, as in ``model.lr``.

    Args:
        text: of a log; nothing in it is run.

    Returns:
        nothing where the text is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, of odd escapes in a damaged text
            tree = _value(ast.parse(_BARE.sub(_quoted, text), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return {}
    if not isinstance(tree, dict):
        return {}
    found: dict[str, dict[str, Any]] = {}
    for section, name, value in _flat(tree):
        found.setdefault(name, {})[section] = value
    flat: dict[str, Any] = {}
    for name, by_section in found.items():
        # The architecture's section repeats all of the command line in fairseq's older form.
        sections = {key: value for key, value in by_section.items() if key != "model"} or by_section
        values = list(sections.values())
        if all(value == values[0] for value in values):
            flat[name] = values[0]
        else:
            flat.update(
                {f"{section}.{name}" if section else name: value for section, value in sections.items()}
            )
    return flat


def _quoted(found: re.Match[str]) -> str:
    return found[0] if found[0][0] in "'\"" else repr(found[0])


def _flat(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Section, name and value of every setting."""
    for section, content in tree.items():
        if not isinstance(content, dict):
            yield "", section, content
            continue
        for name, value in content.items():
            if name != "_name":
                yield section, name, value
            elif value is not None:  # that of a criterion, task, model or optimiser
                yield "", "arch" if section == "model" else section, value


def _value(node: ast.expr) -> Any:
    """As :func:`ast.literal_eval`, and argparse's ``Namespace(name=value, …)``."""
    match node:
        case ast.Constant():
            return node.value
        case ast.List() | ast.Tuple():
            return [_value(each) for each in node.elts]
        case ast.Dict():
            return {
                str(_value(key)): _value(value)
                for key, value in zip(node.keys, node.values, strict=True)
                if key
            }
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.Call(func=ast.Name(id="Namespace"), args=[]):
            return {str(each.arg): _value(each.value) for each in node.keywords}
    raise ValueError("not settings")


def shown(name: str, value: Any) -> str:
    """A value in a table: of a path only its last part, which is what two machines may have in common."""
    if isinstance(value, str):
        paths = value.split(":") if name == "teacher_path" else [value]
        return ":".join(PurePosixPath(each).name or each if "/" in each else each for each in paths)
    if isinstance(value, list):
        return ", ".join(shown(name, each) for each in value)
    return "" if value is None else "yes" if value is True else "no" if value is False else f"{value}"


def compared(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The settings worth a look side by side: the most telling ones, and those in which runs differ.

    Args:
        runs: the settings of each.

    Returns:
        the name of each setting, and its value in each run; empty where a run has none.
    """
    names = dict.fromkeys([*FIRST, *(name for run in runs for name in run)])
    rows = []
    for name in names:
        if name.rsplit(".", 1)[-1] in PLACES or all(run.get(name) in (None, "") for run in runs):
            continue
        values = [shown(name, run.get(name)) for run in runs]
        if name in FIRST or (len(set(values)) > 1 and sum(name in run for run in runs) == len(runs)):
            rows.append((name, values))
    return rows
