"""Lines of errors are short, whatever they name: a terminal shows them in two lines."""

import ast
from collections.abc import Iterator
from pathlib import Path

import fairseq_imitkd

PACKAGE = Path(fairseq_imitkd.__file__).parent
LONGEST = 200  # characters
VALUE = 8  # characters of a value in a line; paths may be of any length
ERRORS = {"UsageError", "RefusedUpdate", "ValueError"}


def length(node: ast.expr) -> int:
    """The characters of a text, with its values."""
    if isinstance(node, ast.Constant):
        return len(str(node.value))
    if isinstance(node, ast.JoinedStr):
        return sum(map(length, node.values))
    if isinstance(node, ast.BinOp):
        return length(node.left) + length(node.right)
    if isinstance(node, ast.IfExp):
        return max(length(node.body), length(node.orelse))
    return length(node.value) if isinstance(node, ast.FormattedValue) else VALUE


def texts(path: Path) -> Iterator[tuple[int, int]]:
    """The line number and the length of each text of an error in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) in ERRORS and node.args:
            yield node.lineno, length(node.args[0])


def test_errors_have_short_texts() -> None:
    """docs/mistakes.md has whole lines."""
    found = {
        f"{path.relative_to(PACKAGE)}:{number}": size
        for path in PACKAGE.rglob("*.py")
        for number, size in texts(path)
    }
    assert len(found) > 200
    assert {place: size for place, size in found.items() if size > LONGEST} == {}
