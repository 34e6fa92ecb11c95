"""Subwords are recognised by their dictionary, and a mark that removes nothing is refused."""

import logging

import pytest

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.text.marks import is_known, name_of, recognised, subword_mark
from tests.helpers.fairseq_models import letters

PIECES = [*(f"▁{letter}" for letter in "abcdefgh"), *"ijklmnop"]
MERGES = [*(f"{letter}@@" for letter in "abcdefgh"), *"ijklmnop"]
WORDS = [*"abcdefgh", "e@mail", "snake_case", "a|b"]


@pytest.mark.parametrize(
    ("symbols", "mark"),
    [(PIECES, "sentencepiece"), (MERGES, "@@ "), (WORDS, None), ([*WORDS * 9, "@@"], None), ([], None)],
    ids=["sentencepiece", "subword_nmt", "words", "one-symbol", "empty"],
)
def test_recognised(symbols: list[str], mark: str | None) -> None:
    """By the marks of many symbols, not by those of a rare word."""
    words = [f"{symbol}{number}" if symbol in WORDS else symbol for number, symbol in enumerate(symbols)]
    words += [f"w{number}" for number in range(200)] if "@@" in symbols else []
    assert recognised(letters(words)) == mark
    assert subword_mark(letters(words), None, "--remove-bpe") == mark
    assert subword_mark(letters(words), "auto", "--remove-bpe") == mark
    assert subword_mark(letters(words), "none", "--remove-bpe") is None


def test_nothing_is_said_of_subwords_that_are_recognised(caplog: pytest.LogCaptureFixture) -> None:
    """An error may follow, and it is one line."""
    caplog.set_level(logging.INFO)
    assert name_of(str(subword_mark(letters(PIECES), None, "--remove-bpe"))) == "SentencePiece (▁)"
    assert not caplog.text


def test_numbers_of_gpt2_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """BART's dictionaries hold numbers, which only files turn into text."""
    assert subword_mark(letters([str(number) for number in range(2000)]), None, "--remove-bpe") is None
    assert "looks like GPT-2's subwords, which --remove-bpe can't join" in caplog.text
    caplog.clear()
    assert subword_mark(letters([str(number) for number in range(200)]), None, "--remove-bpe") is None
    assert not caplog.text


@pytest.mark.parametrize(
    ("symbols", "value", "message"),
    [
        (PIECES, "@@ ", "--x '@@ ' finds nothing to remove, .* has @@: its subwords .* 'sentencepiece'"),
        (MERGES, "sentencepiece", "has ▁: its subwords are those of --x '@@ '; leave the flag out"),
        (list("abc"), "subword_nmt", "has @@: its symbols are whole words; leave the flag out"),
        (list("abc"), "letter", r"has \|: its symbols are whole words"),
    ],
)
def test_a_mark_that_removes_nothing_is_refused(symbols: list[str], value: str, message: str) -> None:
    """The scores of such a text would be those of pieces."""
    with pytest.raises(UsageError, match=message):
        subword_mark(letters(symbols), value, "--x")


def test_marks_of_other_kinds_are_removed_on_request() -> None:
    """They are characters of ordinary words too."""
    assert subword_mark(letters(WORDS), "wordpiece", "--x") == "wordpiece"
    assert subword_mark(letters(MERGES), "subword_nmt", "--x") == "@@ "


def test_known_values() -> None:
    """Those of fairseq, and two of ours."""
    assert all(map(is_known, (None, "auto", "none", "@@ ", "sentencepiece", "letter")))
    assert not is_known("##")
