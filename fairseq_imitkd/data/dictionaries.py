"""Reading and comparing fairseq's dictionaries, and the fingerprints of them that checkpoints store."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairseq.data import Dictionary

from fairseq_imitkd.errors import UsageError, in_one_line

FINGERPRINTS = "dictionaries"  # key in a checkpoint's "task_state"
_MASK = "<mask>"


def load_dictionary(path: Path) -> Dictionary:
    """Load a dictionary.

    Raises:
        UsageError: the file is not a dictionary of fairseq.
    """
    try:
        return Dictionary.load(str(path))
    except Exception as error:  # fairseq raises Exception itself
        raise UsageError(
            f"'{path}' is not a dictionary of fairseq ({in_one_line(error)}); use one that "
            "fairseq-preprocess has made"
        ) from error


def check_dictionary(name: str, theirs: Dictionary, own: Dictionary) -> None:
    """Compare two dictionaries symbol by symbol: training with shifted symbols would be nonsense.

    Args:
        name: what the message calls the teacher's dictionary.
        theirs: the teacher's dictionary.
        own: the student's dictionary.

    Raises:
        UsageError: the dictionaries differ.
    """
    difference = first_difference(theirs.symbols, own.symbols)
    if difference is not None:
        index, theirs_symbol, own_symbol = difference
        raise UsageError(
            f"dictionary {name} differs from the student's at index {index}: teacher '{theirs_symbol}', "
            f"student '{own_symbol}'; binarise with it (--srcdict, --tgtdict), or use imitkd-seqkd "
            "--student-data"
        )


def first_difference(
    teacher_symbols: Sequence[str], student_symbols: Sequence[str]
) -> tuple[int, str, str] | None:
    """Return the first difference of two dictionaries.

    Returns:
        index, teacher's symbol and student's symbol, or None if all are equal. A dictionary that ends early
        has the symbol ``(nothing)`` there.
    """
    nothing = "(nothing)"
    for index in range(max(len(teacher_symbols), len(student_symbols))):
        theirs = teacher_symbols[index] if index < len(teacher_symbols) else nothing
        own = student_symbols[index] if index < len(student_symbols) else nothing
        if theirs != own:
            return index, theirs, own
    return None


def symbols_sha256(symbols: Sequence[str]) -> str:
    """Return the SHA-256 of a dictionary's symbols in their order; their counts don't matter."""
    return hashlib.sha256("\n".join(symbols).encode()).hexdigest()


def fingerprint(dictionary: Dictionary) -> dict[str, Any]:
    """Return what a checkpoint stores about a dictionary: the number of its symbols, and their SHA-256.

    fairseq's pre-training adds ``<mask>`` at the end, and its fine-tuning drops it again. So it does not
    count there:
    https://github.com/facebookresearch/fairseq/blob/3d262bb25690e4eb2e7d3c1309b1e9c406ca4b99/fairseq/models/bart/model.py#L230-L237
    """
    symbols = list(dictionary.symbols)
    while symbols and symbols[-1] == _MASK:
        symbols.pop()
    return {"symbols": len(symbols), "sha256": symbols_sha256(symbols)}


def dictionaries_of(task: Any) -> dict[str, Dictionary]:
    """Return the dictionaries of a fairseq task by name; those that it lacks are left out."""
    found = {name: getattr(task, f"{name}_dictionary", None) for name in ("source", "target", "label")}
    return {name: dictionary for name, dictionary in found.items() if isinstance(dictionary, Dictionary)}


def fingerprints(dictionaries: Mapping[str, Dictionary]) -> dict[str, Any]:
    """Return the task state that identifies these dictionaries in a checkpoint."""
    return {FINGERPRINTS: {name: fingerprint(dictionary) for name, dictionary in dictionaries.items()}}


def check_fingerprints(state: Mapping[str, Any], dictionaries: Mapping[str, Dictionary]) -> None:
    """Refuse a checkpoint that was trained with other dictionaries.

    A checkpoint of fairseq alone has no fingerprints and passes. Symbols that follow those of the training
    are allowed, because fairseq's fine-tuning adds language tags there; the shapes of the weights decide on
    them.

    Args:
        state: content of the checkpoint.
        dictionaries: the dictionaries that its model is to be used with, by name (``source``, ``target``).

    Raises:
        ValueError: a dictionary differs, or the fingerprints are damaged.
    """
    saved = state.get("task_state")
    stored = saved.get(FINGERPRINTS) if isinstance(saved, Mapping) else None
    if stored is None:
        return
    for name, dictionary in dictionaries.items():
        count, digest = _parts(stored, name)
        own = symbols_sha256(dictionary.symbols[:count])
        if digest not in (None, own):
            raise ValueError(
                f"it was trained with another {name} dictionary ({count:,} symbols, here "
                f"{len(dictionary):,}); binarise with its own (--srcdict, --tgtdict)"
            )


def _parts(stored: Any, name: str) -> tuple[int, str | None]:
    """Return the number of symbols and the SHA-256 of a stored fingerprint; None if there is none."""
    if isinstance(stored, Mapping) and name not in stored:
        return 0, None
    theirs = stored[name] if isinstance(stored, Mapping) else stored
    parts = (theirs.get("symbols"), theirs.get("sha256")) if isinstance(theirs, Mapping) else (None, None)
    if type(parts[0]) is not int or parts[0] < 0 or not isinstance(parts[1], str):
        raise ValueError(f"the fingerprint of its {name} dictionary is damaged; use another copy")
    return parts[0], parts[1]
