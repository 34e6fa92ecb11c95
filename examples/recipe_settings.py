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


def main() -> None:
    file, run = sys.argv[1:]
    recipe = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    print("\n".join(settings(recipe, run)))


def settings(recipe: dict[str, Any], run: str) -> Iterator[str]:
    """Yield lines of bash that set the variables which common.sh explains, and ``own``."""
    source, target = recipe["languages"].split("-")
    yield f"SOURCE={source} TARGET={target}"
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
    evaluation = recipe["evaluate"]["flags"].replace("{folder}", run)
    yield array("EVALUATION", shlex.split(evaluation))
    methods = [{"criterion": each} if isinstance(each, str) else each for each in recipe["methods"]]
    yield array("ROWS", [each.get("name", each["criterion"]) for each in methods])
    yield from own(methods)


def own(methods: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the function that sets OWN to the flags of a row.

    A method on SeqKD's data that is not in the recipe has the flags of the same method on the references.
    """
    yield "own() {\n  OWN=()\n  case $1 in"
    for method in methods:
        flags = [shlex.quote(word) for word in words(method)]
        if "start" in method:
            flags += ["--finetune-from-model", f'"$(trained {method["start"]})"']
        yield f"    {method.get('name', method['criterion'])}) OWN=({' '.join(flags)}) ;;"
    yield '    seqkd_*) own "${1#seqkd_}" ;;\n  esac\n}'


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
