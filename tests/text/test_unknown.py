"""Text that is not in a model's subwords is warned of."""

from typing import Any

import pytest
import torch

from fairseq_imitkd.text.unknown import remedy_of_text, warn_of_other_subwords
from tests.helpers.fairseq_models import letters


def test_the_share_is_named_with_the_remedy(caplog: Any) -> None:
    """One unknown symbol in a hundred is not worth a word; three in a hundred are."""
    unknown = letters().unk()
    rows = [torch.tensor([4] * 99 + [unknown]), torch.tensor([4] * 100)]
    warn_of_other_subwords(rows, letters(), what="--gen-subset 'test'", language="de")
    warn_of_other_subwords([], letters(), what="the input", language="de")
    assert not caplog.messages
    warn_of_other_subwords(
        [*rows, torch.tensor([unknown] * 5)], letters(), what="--gen-subset 'test'", language="de"
    )
    assert caplog.messages == [
        "2.9% of the symbols of --gen-subset 'test' are unknown to dict.de.txt: encode the text with the "
        "model's subwords before fairseq-preprocess"
    ]


def test_the_remedy_is_of_the_dictionary() -> None:
    """A user who types text learns which flags encode it."""
    pieces = letters([*(f"▁{letter}" for letter in "abcdefgh"), *"ijklmnop"])
    assert "add --bpe sentencepiece --sentencepiece-model FILE" in remedy_of_text(pieces, is_encoded=False)
    assert "the file that the model's data was made with" in remedy_of_text(pieces, is_encoded=True)
    assert remedy_of_text(letters(), is_encoded=False) == "encode the text as the model's data was"


@pytest.mark.parametrize(
    ("symbols", "own", "other"),
    [
        (["▁th", "e", "▁the", "▁cat", "▁c", "at", "s"], "▁the ▁cat s", "▁th e ▁c at s"),
        (["th@@", "e", "the", "cat@@", "c@@", "at@@", "s"], "the cat@@ s", "th@@ e c@@ at@@ s"),
    ],
)
def test_text_that_another_model_has_split(symbols: list[str], own: str, other: str, caplog: Any) -> None:
    """Its symbols are all known, but the dictionary's own model would not write them beside each other."""
    dictionary = letters(symbols)

    def rows(line: str, count: int) -> list[torch.Tensor]:
        return [dictionary.encode_line(line, add_if_not_exist=False, append_eos=True).long()] * count

    warn_of_other_subwords(rows(own, 100), dictionary, what="--train-subset 'train'", language="de")
    warn_of_other_subwords(rows(other, 4), dictionary, what="the input", language="de")
    assert not caplog.messages
    warn_of_other_subwords(rows(other, 100), dictionary, what="--train-subset 'train'", language="de")
    assert caplog.messages == [
        "33.3% of the symbols of --train-subset 'train' form a symbol of dict.de.txt together with the next "
        "one, so another subword model may have split it (or BPE-dropout): encode the text with the model's "
        "subwords before fairseq-preprocess"
    ]


def test_unknown_symbols_are_between_others(caplog: Any) -> None:
    dictionary = letters(["▁th", "e", "▁the", "▁cat"])
    line = torch.tensor([dictionary.index("▁th"), dictionary.unk(), dictionary.index("e"), dictionary.eos()])
    warn_of_other_subwords([line] * 100, dictionary, what="it", language=None)
    assert [message.split(" of the symbols")[0] for message in caplog.messages] == ["25.0%"]
    assert "are unknown to" in caplog.messages[0]


def test_whole_words_and_numbers_are_not_parts(caplog: Any) -> None:
    """The numbers of GPT-2's subwords are not joined."""
    for symbols in (["a", "b", "ab"], ["1", "2", "12"]):
        dictionary = letters(symbols)
        line = dictionary.encode_line(" ".join(symbols), add_if_not_exist=False).long()
        warn_of_other_subwords([line] * 100, dictionary, what="it", language=None)
    assert not caplog.messages
