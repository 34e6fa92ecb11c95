"""Paths as a page that others may read shows them: as much as tells one from another, and nothing of whose machine it was."""

import re
from collections.abc import Sequence
from pathlib import Path

# Absolute ones of two parts and more, wherever they stand in a text, but not those of an address such as https://a.b/c.
_PATH = re.compile(r"""(?<![\w.~/-])(?:/[^\s'"`/:,;=<>|(){}\[\]]+){2,}""")


def shortened(text: object) -> str:
    """A text whose absolute paths have but their last two parts, and never the first two, such as home and somebody."""

    def ends(found: re.Match[str]) -> str:
        parts = found[0].split("/")[1:]
        return "/".join(["…", *(parts[2:] or parts[-1:])[-2:]])

    return _PATH.sub(ends, str(text))


def told_apart(paths: Sequence[Path]) -> list[str]:
    """For each path its last part, or as many of them as no other has."""
    every = [path.resolve().parts for path in paths]

    def name(parts: tuple[str, ...]) -> str:
        alike = (sum(other[-size:] == parts[-size:] for other in every) for size in range(1, len(parts) + 1))
        size = next((size for size, count in enumerate(alike, 1) if count == 1), len(parts))
        return str(Path(*parts[-size:]))

    return list(map(name, every))
