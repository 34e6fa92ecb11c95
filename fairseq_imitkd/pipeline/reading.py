"""Reads the sections of a recipe: wrong keys and values end in one line that names the key, the value and the
remedy.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fairseq_imitkd.errors import UsageError, as_usage_error, in_one_line
from fairseq_imitkd.quick.near import closest

FEW = 4  # choices that a message lists
LONGEST = 60  # characters of a value that a message shows
# Flags of the commands that have two names, by the shorter or older one.
ALIASES = {
    "-a": "--arch",
    "-h": "--help",
    "-s": "--source-lang",
    "-t": "--target-lang",
    "--max-sentences": "--batch-size",
    "--max-sentences-valid": "--batch-size-valid",
}


def text_of(path: Path) -> str:
    """Return the text of a YAML file.

    Raises:
        UsageError: the file can't be read, or is not text.
    """
    if path.suffix == ".html":
        raise UsageError(f"'{path}' is a page, not a recipe; name the folder of its run, or a YAML file")
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"recipe '{path}' can't be read: {error.strerror}; check the path and its permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"recipe '{path}' is not text; use a YAML file") from error


def content_of(text: str, path: Path) -> Mapping[Any, Any]:
    """Return the content of a YAML file.

    Args:
        text: its text.
        path: its path, for messages.

    Raises:
        UsageError: the text is not YAML, or has no keys.
    """
    try:
        content = parsed(text)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1} of " if error.problem_mark is not None else ""
        raise UsageError(f"{line}recipe '{path}' is not YAML: {error.problem}; mend it") from error
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(f"recipe '{path}' can't be read: {in_one_line(error)}; use a YAML file") from error
    if not isinstance(content, Mapping):
        is_what = "is empty" if content is None else "has no keys"
        raise UsageError(
            f"recipe '{path}' {is_what}; begin with languages, text and teacher (see docs/distil.md of the "
            "repository)"
        )
    return content


def load(path: Path) -> Mapping[Any, Any]:
    """Return the content of a YAML file.

    Raises:
        UsageError: the file can't be read, is not YAML, or has no keys.
    """
    return content_of(text_of(path), path)


def parsed(text: str) -> Any:
    """Return the content of a YAML text.

    Raises:
        YAMLError: it is not YAML, or a key is given twice.
    """
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice; YAML would take the last one."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        # A merged mapping (<<: *other) may have the same keys; its own come first.
        known: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in known:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {shown(key.value)} is given twice", problem_mark=key.start_mark
                    )
                known.add(key.value)
        return node


def shown(value: Any) -> str:
    """Return a value as a message shows it."""
    text = " ".join(f"'{value}'".split()) if isinstance(value, str) else " ".join(str(value).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def flag_in(word: str) -> tuple[str, str | None]:
    """Return the flag that a word names, by its first name, and the value in the same word, or None.

    A word that is not a flag is returned as it is.
    """
    if word[:2] in ALIASES and word[2:3] not in ("", "="):  # -alstm
        return ALIASES[word[:2]], word[2:]
    name, equals, value = word.partition("=")
    return ALIASES.get(name, name), value if equals else None


def last_value(flags: Sequence[str], flag: str) -> str:
    """Return the value of a flag's last occurrence, by whichever of its names; empty if there is none."""
    found = ""
    for place, word in enumerate(flags):
        name, value = flag_in(word)
        if name == flag and value is not None:
            found = value
        elif name == flag and place + 1 < len(flags):
            found = flags[place + 1]
    return found


class Section:
    """A mapping in the recipe.

    Args:
        name: its name, for messages; empty for the whole recipe.
        content: its content.
        keys: the keys that it may have.
        folder: folder that relative paths in the recipe start from.

    Raises:
        UsageError: the content is not a mapping, or has another key.
    """

    def __init__(self, name: str, content: Any, keys: Sequence[str], *, folder: Path):
        self.name, self.folder = name, folder
        if not isinstance(content, Mapping):
            few = ", ".join(keys[:FEW]) + (", …" if len(keys) > FEW else "")
            raise UsageError(f"{name or 'the recipe'} must have keys ({few}), but is {shown(content)}")
        for key in content:
            if key not in keys:
                of = f"of {name}" if name else "of a recipe"
                raise UsageError(f"{self._named(str(key))} is not a key {of}: {closest(str(key), keys)}")
        self.content = content

    def __contains__(self, key: str) -> bool:
        return self.content.get(key) is not None

    def get(self, key: str) -> Any:
        """Return a value as YAML has it.

        Raises:
            UsageError: the key is missing or empty.
        """
        if key not in self:
            raise UsageError(f"{self._named(key)} is not given; add it to the recipe")
        return self.content[key]

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text; without a default it must be given."""
        value = default if key not in self and default is not None else self.get(key)
        if not isinstance(value, str) or not value:
            raise self.wrong(key, "must be a text")
        return value

    def number(self, key: str, default: int | None = None, *, least: int = 1, most: int | None = None) -> int:
        """Return a whole number; without a default it must be given."""
        value = default if key not in self and default is not None else self.get(key)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not is_whole or value < least or (most is not None and value > most):
            limits = f"of {least} or more" if most is None else f"from {least} to {most:,}"
            raise self.wrong(key, f"must be a whole number {limits}")
        return int(value)

    def share(self, key: str) -> float:
        """Return a share above 0 and below 1; it must be given."""
        value = self.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
            raise self.wrong(key, "must be above 0 and below 1")
        return float(value)

    def choice(self, key: str, among: Sequence[str], default: str) -> str:
        """Return one of a few texts."""
        value = self.content[key] if key in self else default
        if value not in among:
            if len(among) > FEW:
                raise UsageError(f"{self._named(key)} is {shown(value)}: {closest(str(value), among)}")
            raise UsageError(f"{self._named(key)} must be one of {', '.join(among)}, but is {shown(value)}")
        return str(value)

    def yes_or_no(self, key: str, default: bool) -> bool:
        """Return a truth value."""
        value = default if key not in self else self.content[key]
        if not isinstance(value, bool):
            raise self.wrong(key, "must be true or false")
        return value

    def flags(self, key: str, default: str = "") -> tuple[str, ...]:
        """Return the flags of a command: a text as in a shell, or a list of words.

        In them, ``{folder}`` stands for the recipe's folder.
        """
        value = self.content[key] if key in self else default
        if isinstance(value, list) and all(isinstance(word, str | int | float) for word in value):
            return tuple(self._in_folder(str(word)) for word in value)
        if not isinstance(value, str):
            raise self.wrong(key, "must be flags, such as --dropout 0.1")
        with as_usage_error(f"{self._named(key)} can't be read as flags", "close the quotation marks"):
            return tuple(map(self._in_folder, shlex.split(value)))

    def _in_folder(self, word: str) -> str:
        return word.replace("{folder}", str(self.folder))

    def path(self, key: str) -> Path:
        """Return a path, absolute."""
        return self.path_of(key, self.text(key))

    def path_of(self, key: str, value: Any) -> Path:
        """Return the path that an entry of a key's value names."""
        if not isinstance(value, str) or not value:
            raise UsageError(f"{self._named(key)} must name files, but has {shown(value)}")
        return self.folder / Path(value).expanduser()

    def sequence(self, key: str, default: Sequence[Any], example: str) -> list[Any]:
        """Return a list that is not empty."""
        value = self.content[key] if key in self else list(default)
        if not isinstance(value, list) or not value:
            raise self.wrong(key, f"must be a list, such as [{example}]")
        return value

    def mapping(self, key: str) -> Mapping[Any, Any]:
        """Return a mapping with keys of the user's own."""
        value = self.get(key)
        if not isinstance(value, Mapping):
            raise self.wrong(key, "must have names as its keys")
        return value

    def section(self, key: str, keys: Sequence[str]) -> "Section":
        """Return a mapping inside this one."""
        return Section(self._named(key), self.get(key), keys, folder=self.folder)

    def wrong(self, key: str, must: str) -> UsageError:
        """Return the error of a wrong value."""
        return UsageError(f"{self._named(key)} {must}, but is {shown(self.content.get(key))}")

    def _named(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key
