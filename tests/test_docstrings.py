"""Every public function, class and module of the package has a docstring."""

import ast
from pathlib import Path

import pytest

import fairseq_imitkd

PACKAGE = Path(fairseq_imitkd.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
# Defined and documented by fairseq or Python.
OVERRIDES = {"build_model", "__init__", "__post_init__"}


def undocumented(node: ast.AST, prefix: str = "") -> list[str]:
    """Yield public definitions without a docstring, including those in public classes."""
    found = []
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if child.name.startswith("_") or child.name in OVERRIDES:
            continue
        if ast.get_docstring(child) is None:
            found.append(prefix + child.name)
        if isinstance(child, ast.ClassDef):
            found += undocumented(child, f"{prefix}{child.name}.")
    return found


@pytest.mark.parametrize("module", MODULES, ids=[str(module.relative_to(PACKAGE)) for module in MODULES])
def test_public_definitions_have_docstrings(module: Path) -> None:
    """The failure lists those that lack one."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    missing = undocumented(tree)
    if ast.get_docstring(tree) is None and tree.body:
        missing.append("the module itself")
    assert missing == []


def test_the_check_sees_a_missing_docstring() -> None:
    """It sees functions, classes and methods."""
    tree = ast.parse("def f(): pass\nclass A:\n  def g(self): pass\n  def _h(self): pass\ndef _i(): pass")
    assert undocumented(tree) == ["f", "A", "A.g"]
