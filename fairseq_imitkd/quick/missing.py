"""The flags that fairseq's commands can't do without. Missing ones are reported without importing torch."""

import re
from collections.abc import Collection, Sequence

ARCH = "--arch is not given; add the student's architecture, such as --arch transformer_imitkd_2_2"
BATCH = "--max-tokens is not given; add the most tokens that a batch may hold, such as --max-tokens 4096"
OPTIMIZER = "--optimizer is not given; add one, such as --optimizer adam"
PATH = "--path is not given; name the student's checkpoint, or several joined by ':' (an ensemble)"
_NEEDED = {
    "train": (
        (("--arch", "-a"), ARCH),
        (("--max-tokens", "--batch-size", "--max-sentences"), BATCH),
        (("--optimizer",), OPTIMIZER),
    ),
    "generate": ((("--path",), PATH),),
    "interactive": ((("--path",), PATH),),
}


def missing(command: str, words: Sequence[str], known: Collection[str]) -> str | None:
    """Return what to say about the flags that are missing: of the first one what it is, of others the names.

    Args:
        command: ``train``, ``generate`` or ``interactive``.
        words: what follows it.
        known: all flags of the command, whatever is chosen.

    Returns:
        None if none is missing, or if the command line has another flag, which may be meant by it.
    """
    given = {word.partition("=")[0] for word in words if re.match("--?[A-Za-z]", word)}
    if not given <= set(known):
        return None
    lacking = [(flags[0], message) for flags, message in _NEEDED[command] if not given & {*flags}]
    if not lacking:
        return None
    others = [flag for flag, _ in lacking[1:]]
    return f"{lacking[0][1]}; {' and '.join(others)} too" if others else lacking[0][1]
