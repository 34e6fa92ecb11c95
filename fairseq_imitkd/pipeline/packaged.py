"""The recipes that come with the package, by name."""

from pathlib import Path

from fairseq_imitkd.pipeline.reading import load
from fairseq_imitkd.quick.recipe_words import RECIPES


def names() -> list[str]:
    """Return the names of all recipes: the shortest one first, then those that need no data."""
    found = sorted(path.stem for path in RECIPES.glob("*.yaml"))

    def rank(name: str) -> tuple[bool, bool]:
        return name != "quickstart", "made_up" not in (load(path_of(name)).get("text") or {})

    return sorted(found, key=rank)


def path_of(name: str) -> Path:
    """Return the path of the file of a name."""
    return RECIPES / f"{name}.yaml"


def listed() -> str:
    """Return a line for each recipe: its name, and what it is."""
    longest = max(map(len, names()))
    return "\n".join(f"{name:{longest}}  {load(path_of(name)).get('about', '')}" for name in names())
