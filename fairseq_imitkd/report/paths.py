"""Paths as a page for others shows them: enough to tell them apart, and nothing about the machine they are
on.
"""

import re
from collections.abc import Sequence
from pathlib import Path

# Absolute paths of two or more parts, but not the path of an address such as https://a.b/c: anywhere in
# words, whose blanks and marks end them; and in a value, where only another absolute path does.
_BEGIN = r"(?<![\w.~/-])"
_IN_WORDS = _BEGIN + r"""(?:/[^\s'"`/:,;=<>|(){}\[\]]+){2,}"""
_IN_A_VALUE = re.compile(_BEGIN + r"(?:/(?:(?![:,;\s]{1,3}/)[^/])+){2,}")
_TEXT = re.compile(rf"""(?<!\w)(?P<mark>['"])(?P<value>[^'"]*)(?P=mark)(?!\w)|{_IN_WORDS}""")


def shortened(text: object) -> str:
    """Return a text with its absolute paths cut to their last two parts.

    The first two parts, such as ``home`` and a user's name, are always removed. What stands between quotes is
    a value, whose paths may have blanks and marks in them.
    """

    def ends(found: re.Match[str]) -> str:
        mark = found["mark"]
        return f"{mark}{shortened_value(found['value'])}{mark}" if mark else _ends(found)

    return _TEXT.sub(ends, str(text))


def shortened_value(value: object) -> str:
    """Return a path, or a setting's value, with its absolute paths cut as :func:`shortened` does."""
    return _IN_A_VALUE.sub(_ends, str(value)) if isinstance(value, str | Path) else shortened(value)


def _ends(found: re.Match[str]) -> str:
    return "/".join(["…", *found[0].split("/")[3:][-2:]])


def disambiguate(paths: Sequence[Path]) -> list[str]:
    """Return each path's last part, or as many of its last parts as no other path has."""
    every = [path.resolve().parts for path in paths]

    def name(parts: tuple[str, ...]) -> str:
        alike = (sum(other[-size:] == parts[-size:] for other in every) for size in range(1, len(parts) + 1))
        size = next((size for size, count in enumerate(alike, 1) if count == 1), len(parts))
        return str(Path(*parts[-size:]))

    return list(map(name, every))
