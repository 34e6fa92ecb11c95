"""Limits that keep the package readable: lengths of functions, numbers of parameters, modules in the root."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fairseq_imitkd

PACKAGE = Path(fairseq_imitkd.__file__).parent
LINES, PARAMETERS, POSITIONAL = 60, 8, 3

# fairseq, torch or Triton calls these, so their parameters are given.
FOREIGN = {
    "train_step",
    "valid_step",
    "get_batch_iterator",
    "build_generator",
    "forward",
    "backward",
    "forward_decoder",
    "optimizer_step",
    "__torch_dispatch__",
    "_with_torch",
    "_with_triton",
    "add_layer_norm_kernel",
    "nucleus_kernel",
}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def complaints(path: Path) -> Iterator[str]:
    for function in functions(path):
        name = f"{path.relative_to(PACKAGE)}:{function.lineno} {function.name}"
        lines = function.end_lineno - function.lineno + 1
        if lines > LINES:
            yield f"{name}: {lines} lines"
        if function.name in FOREIGN:
            continue
        positional = [given.arg for given in (*function.args.posonlyargs, *function.args.args)]
        positional = [given for given in positional if given not in ("self", "cls")]
        if len(positional) + len(function.args.kwonlyargs) > PARAMETERS:
            yield f"{name}: {len(positional) + len(function.args.kwonlyargs)} parameters"
        if len(positional) > POSITIONAL:
            yield f"{name}: {len(positional)} positional parameters; at most {POSITIONAL} are allowed"


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_functions_are_short_and_take_few_parameters(path: Path) -> None:
    assert not list(complaints(path))


def test_the_root_holds_few_modules() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 10
