"""Text that is not in a model's subwords is warned of."""

from typing import Any

import torch

from fairseq_imitkd.text.unknown import remedy_of_text, warn_of_unknown
from tests.helpers.fairseq_models import letters


def test_the_share_is_named_with_the_remedy(caplog: Any) -> None:
    """One unknown symbol in a hundred is not worth a word; three in a hundred are."""
    unknown = letters().unk()
    rows = [torch.tensor([4] * 99 + [unknown]), torch.tensor([4] * 100)]
    warn_of_unknown(rows, letters(), what="--gen-subset 'test'", language="de")
    warn_of_unknown([], letters(), what="the input", language="de")
    assert not caplog.messages
    warn_of_unknown(
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
