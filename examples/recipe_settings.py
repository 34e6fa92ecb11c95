"""Prints the settings of a recipe in bash: ``recipe_settings.py FILE RUN``.

common.sh evaluates the output, so the scripts of examples/NAME and ``imitkd-distill NAME`` train the same.
The recipe is read as YAML alone: to import the package would take seconds in every script.
"""

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

# What the scripts follow; the rest of a recipe is for imitkd-distill.
KEYS = {
    "about", "languages", "text", "sentencepiece", "teacher", "student", "training", "distillation", "seqkd",
    "translations", "methods", "evaluate", "export",
}  # fmt: skip
# What other rows than those of a recipe have in common with one of it.
LIKE = {"continued": "scratch", "seq_inter": "seqkd", "seqkd_pruned": "seqkd"}


def main() -> None:
    file, run = sys.argv[1:]
    recipe = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    listed = recipe.get("methods") or []
    methods = [{"criterion": each} if isinstance(each, str) else each for each in listed]
    # Rows that go on from another student are those of evidence.toml.
    methods = [method for method in methods if not name_of(method).startswith("then_")]
    for problem in problems(recipe, methods):
        sys.exit(f"{file}: {problem}; imitkd-distill {file} runs it")
    print("\n".join(settings(recipe, methods, run)))


def problems(recipe: dict[str, Any], methods: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield what the scripts would not train as imitkd-distill does."""
    if not methods:
        yield "the scripts need the key methods"
    for key in sorted(recipe.keys() - KEYS):
        yield f"the scripts do not follow the key {key}"
    for key in ("languages", "training", "seqkd"):
        if not isinstance(recipe.get(key), str):
            yield f"the scripts need the key {key} as a text"
    if len(str(recipe.get("languages")).split("-")) != 2:
        yield "the scripts need languages such as de-en"
    if "sentencepiece" in recipe and recipe["sentencepiece"].keys() != {"vocabulary"}:
        yield "the scripts train the subwords: sentencepiece must be {vocabulary: N}"
    if not isinstance(recipe.get("evaluate"), dict):
        yield "the scripts need evaluate with baseline and flags"
    for key in ("teacher", "student"):
        if not isinstance(recipe.get(key), dict):
            yield f"the scripts need {key} with arch and flags"
    for method in methods:
        criterion, data = method["criterion"], method.get("data", "text")
        rows = {("none", "text"): "scratch", ("seqkd", "text"): "seqkd", ("none", "seqkd"): "seqkd"}
        prefix = "seqkd_" if data == "seqkd" else ""
        row = rows.get((criterion, data), f"{prefix}{criterion}")
        name = name_of(method)
        if name != "seq_inter" and (name != row or data not in ("text", "seqkd") or "mono" in method):
            yield f"the scripts have no row {name} of criterion {criterion} on data {data}"


def settings(recipe: dict[str, Any], methods: Sequence[dict[str, Any]], run: str) -> Iterator[str]:
    """Yield lines of bash that set the variables which common.sh explains, and ``own``."""
    source, target = recipe["languages"].split("-")
    yield f"SOURCE={shlex.quote(source)} TARGET={shlex.quote(target)}"
    yield f"VOCABULARY={recipe.get('sentencepiece', {}).get('vocabulary', '')}"
    for variable, key in (("TEACHER_MODEL", "teacher"), ("STUDENT_MODEL", "student")):
        if "arch" in recipe[key]:
            yield array(variable, ["--arch", recipe[key]["arch"], *words(recipe[key])])
    for variable, key in (("TRAINING", "training"), ("DISTILLATION", "distillation")):
        yield array(variable, shlex.split(recipe.get(key, "")))
    seqkd = shlex.split(recipe["seqkd"])
    yield array("SUBWORDS", [word for flag in flags_of(seqkd) if flag[0] == "--remove-bpe" for word in flag])
    ours = ("--beam", "--remove-bpe")
    yield array("DECODING", [word for flag in flags_of(seqkd) if flag[0] not in ours for word in flag])
    yield array("EVALUATION", [word.replace("{folder}", run) for word in words(recipe["evaluate"])])
    yield array("ROWS", [name_of(each) for each in methods])
    yield from own(methods)


def own(methods: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the function that sets OWN to the flags of a row.

    A method on SeqKD's data that is not in the recipe has the flags of the same method on the references, but
    not its start.
    """
    yield "own() {\n  OWN=()\n  case $1 in"
    known = {name_of(method): method for method in methods}
    for name, method in known.items():
        flags = [shlex.quote(word) for word in words(method)]
        if "start" in method:
            flags += ["--finetune-from-model", f'"$(trained {method["start"]})"']
        yield f"    {name}) OWN=({' '.join(flags)}) ;;"
    for name, method in known.items():
        if f"seqkd_{name}" not in known and name not in ("scratch", *LIKE.values()) and "data" not in method:
            yield f"    seqkd_{name}) OWN=({' '.join(map(shlex.quote, words(method)))}) ;;"
    for name, like in LIKE.items():
        if name not in known:
            yield f"    {name}) own {like} ;;"
    yield "  esac\n}"


def name_of(method: dict[str, Any]) -> str:
    return str(method.get("name", method["criterion"]))


def words(section: dict[str, Any]) -> list[str]:
    """Return the flags of a model or a method."""
    return shlex.split(section.get("flags", ""))


def flags_of(line: Sequence[str]) -> Iterator[list[str]]:
    """Yield each flag with its values."""
    found: list[str] = []
    for word in line:
        if word.startswith("--") and found:
            yield found
            found = []
        found.append(word)
    if found:
        yield found


def array(name: str, values: Sequence[str]) -> str:
    return f"{name}=({' '.join(map(shlex.quote, values))})"


if __name__ == "__main__":
    main()
