"""The recipes that come with the package, by name."""

from pathlib import Path

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.pipeline.reading import closest, load

FOLDER = Path(__file__).with_name("recipes")


def names() -> list[str]:
    """Return the names of all recipes: the shortest one first, then those that need no data."""
    found = sorted(path.stem for path in FOLDER.glob("*.yaml"))

    def rank(name: str) -> tuple[bool, bool]:
        return name != "quickstart", "made_up" not in (load(path_of(name)).get("text") or {})

    return sorted(found, key=rank)


def path_of(name: str) -> Path:
    """Return the path of the file of a name."""
    return FOLDER / f"{name}.yaml"


def find(given: Path) -> Path | None:
    """Return the file of the packaged recipe that a word of the command line names.

    Returns:
        None if the word names a file or a folder; a folder of a recipe's name, such as that of its run, does
        not count.

    Raises:
        UsageError: it names nothing.
    """
    if given.is_file() or given.suffix or len(given.parts) != 1:
        return None
    if given.name not in names():
        if given.is_dir():
            return None
        raise UsageError(
            f"RECIPE '{given}' is neither a file nor a recipe of the package: {closest(given.name, names())}"
        )
    return path_of(given.name)


def listed() -> str:
    """Return a line for each recipe: its name, and what it is."""
    longest = max(map(len, names()))
    return "\n".join(f"{name:{longest}}  {load(path_of(name)).get('about', '')}" for name in names())
