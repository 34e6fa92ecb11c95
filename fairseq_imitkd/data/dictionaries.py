"""Reading and comparing fairseq's dictionaries."""

from collections.abc import Sequence
from pathlib import Path

from fairseq.data import Dictionary

from fairseq_imitkd.errors import UsageError, in_one_line


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
            f"the teacher's dictionary {name} differs from the student's at index {index}: teacher "
            f"'{theirs_symbol}', student '{own_symbol}'; binarise the student's data with the teacher's "
            "dictionaries (fairseq-preprocess --srcdict --tgtdict)"
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
