"""Paths as a page for others shows them: enough to tell them apart, and nothing about the machine they are
on.
"""

import re
from collections.abc import Sequence
from pathlib import Path

# Absolute paths of two or more parts, anywhere in a text, but not the path of an address such as
# https://a.b/c.
_PATH = re.compile(r"""(?<![\w.~/-])(?:/[^\s'"`/:,;=<>|(){}\[\]]+){2,}""")


def shortened(text: object) -> str:
    """Return a text with its absolute paths cut to their last two parts.

    The first two parts, such as ``home`` and a user's name, are always removed.
    """

    def ends(found: re.Match[str]) -> str:
        parts = found[0].split("/")[1:]
        return "/".join(["…", *(parts[2:] or parts[-1:])[-2:]])

    return _PATH.sub(ends, str(text))


def disambiguate(paths: Sequence[Path]) -> list[str]:
    """Return each path's last part, or as many of its last parts as no other path has."""
    every = [path.resolve().parts for path in paths]

    def name(parts: tuple[str, ...]) -> str:
        alike = (sum(other[-size:] == parts[-size:] for other in every) for size in range(1, len(parts) + 1))
        size = next((size for size, count in enumerate(alike, 1) if count == 1), len(parts))
        return str(Path(*parts[-size:]))

    return list(map(name, every))
