"""What may have been meant by a word."""

import difflib
from collections.abc import Sequence


def closest(word: str, known: Sequence[str]) -> str:
    """Return what may have been meant by a word, or all that is known, for the end of a message."""
    near = difflib.get_close_matches(word.lower(), known, 1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
