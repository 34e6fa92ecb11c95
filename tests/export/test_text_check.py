"""Whether raw text becomes the subwords that a student was trained on."""

from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.export.text_check import share_encoded_otherwise, warn_if_encoded_otherwise
from fairseq_imitkd.text.subwords import TextSettings
from tests.helpers.fairseq_models import letters

LINES = ["abab cdcd", "abcd", "cdab ab", "ab cd"]


def pieces(folder: Path, text: str) -> tuple[TextSettings, list[str]]:
    """Train a subword model, and return its settings and symbols."""
    path = folder / f"{text[:4]}.model"
    (folder / "text").write_text(f"{text}\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(path.with_suffix("")),
        vocab_size=12,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    symbols = [model.id_to_piece(number) for number in range(3, len(model))]
    return TextSettings("sentencepiece", {"sentencepiece_model": path}), symbols


def test_another_subword_model_of_the_same_symbols(tmp_path: Path, caplog: Any) -> None:
    """No symbol becomes unknown, and no word another one: only the subwords tell."""
    (own, first), (other, second) = (
        pieces(tmp_path, text) for text in ("abab cdcd abab cdcd", "bcda dabc bcda dabc")
    )
    dictionary = letters(list(dict.fromkeys([*first, *second])))
    pair = LanguagePair("de", "en", dictionary, dictionary)
    model = sentencepiece.SentencePieceProcessor(model_file=str(own.files["sentencepiece_model"]))
    lines = [" ".join(model.encode(line, out_type=str)) for line in LINES]
    sources = [dictionary.encode_line(line, add_if_not_exist=False).long() for line in lines]
    assert share_encoded_otherwise(own, pair, sources, split="valid") == 0
    for settings in (own, TextSettings()):
        warn_if_encoded_otherwise(settings, pair, sources, split="valid")
    assert not [line for line in caplog.messages if "change their" in line]
    line = (
        "100.0% of the sentences of 'valid' change their subwords when decoded and encoded again; "
        "use the --bpe and file of the data, or a split without BPE dropout"
    )
    with pytest.raises(UsageError) as refused:
        share_encoded_otherwise(other, pair, sources, split="valid")
    assert str(refused.value) == line
    assert share_encoded_otherwise(other, pair, sources, split="train", is_sampled=True) == 1.0
    assert "(BPE dropout has this effect too)" in caplog.messages[-1]
    warn_if_encoded_otherwise(other, pair, sources, split="valid")
    assert caplog.messages[-1] == line
