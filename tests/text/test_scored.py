"""The text that scores read: unknown words, padding, subwords and tokenisation."""

import pytest
import torch
from torch import Tensor

from fairseq_imitkd.text.rewards import REWARDS
from fairseq_imitkd.text.scored import ScoredText, readable
from fairseq_imitkd.text.subwords import Text, TextSettings
from tests.helpers.fairseq_models import letters

BOS, PAD, EOS, UNK = range(4)


def row(*tokens: int) -> Tensor:
    return torch.tensor([*tokens, EOS, PAD, PAD])


@pytest.mark.parametrize(
    ("mark", "symbols", "line"),
    [
        (None, ("a", "b"), "a {} b"),
        ("@@ ", ("a@@", "b"), "a{} b"),
        ("subword_nmt", ("a@@", "b"), "a{} b"),
        ("sentencepiece", ("▁a", "▁b"), "a{} b"),
        ("sentencepiece", ("▁", "b"), "{}b"),
        ("wordpiece", ("_a", "_b"), "a{} b"),
        ("letter", ("a", "|"), "a{}"),
        ("_EOW", ("a_EOW", "b"), "a {}b"),
    ],
)
def test_unknown_words_on_both_sides(mark: str | None, symbols: tuple[str, str], line: str) -> None:
    """One word or a part of one, another on each side. Special symbols inside a sentence are not words."""
    text = ScoredText(letters(symbols), mark)
    sentences = [row(BOS, 4, PAD, UNK, 5)]
    assert text.hypotheses(sentences) == [line.format("ZJZJZ")]
    assert text.references(sentences) == [line.format("QXQXQ")]
    assert text.sources(sentences) == [line.format("<unk>")]
    assert readable(line.format("ZJZJZ")) == readable(line.format("QXQXQ")) == line.format("<unk>")
    assert text.unknown(sentences * 3) == 3


def test_tokenisation_is_undone_around_unknown_words() -> None:
    """By Moses, as of any other word."""
    moses = Text(TextSettings(tokenizer="moses"), "de", "en")
    text = ScoredText(letters(["Yes", ",", "it", "&apos;s", "."]), decode=moses.decode)
    assert text.references([row(4, 5, 6, 7, UNK, 8)]) == ["Yes, it's QXQXQ."]


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("mark", [None, "@@ "])
def test_a_sentence_of_unknown_words_scores_nothing(name: str, mark: str | None) -> None:
    """No metric finds a match of unknown words with unknown words, or with anything of the other side."""
    text = ScoredText(letters(["a@@", "b"]), mark)
    [written], [wanted] = text.hypotheses([row(UNK, UNK)]), text.references([row(UNK, UNK)])
    assert REWARDS[name](written, wanted) == 0.0
    assert REWARDS[name](written, "a b") == REWARDS[name]("a b", wanted) == 0.0
