"""Dictionaries that differ are told in one short line."""

import pytest

from fairseq_imitkd.data.dictionaries import check_dictionary, check_fingerprints, fingerprints
from fairseq_imitkd.errors import UsageError
from tests.helpers.fairseq_models import LETTERS, letters

LONGEST = 200  # characters of a line
PATH = f"/{'p' * 30}.txt"  # a path of 35 characters


def test_lines_are_short() -> None:
    """With a path of usual length, and with what is written before."""
    with pytest.raises(UsageError) as refused:
        check_dictionary(PATH, letters(LETTERS), letters(LETTERS[::-1]))
    assert str(refused.value) == (
        f"dictionary {PATH} differs from the student's at index 4: teacher 'a', student 'p'; binarise with "
        "it (--srcdict, --tgtdict), or use imitkd-seqkd --student-data"
    )
    assert len(str(refused.value)) < LONGEST - 10  # for longer symbols and indices
    with pytest.raises(ValueError, match="it was trained with another source dictionary") as other:
        check_fingerprints(fingerprints_of(LETTERS), {"source": letters(LETTERS[::-1])})
    assert len(f"error: checkpoint '{PATH}' can't be used: {other.value}") < LONGEST - 10


def fingerprints_of(symbols: str) -> dict[str, object]:
    """Return a checkpoint that remembers these letters."""
    return {"task_state": fingerprints({"source": letters(symbols)})}
