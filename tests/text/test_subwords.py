"""Raw text to symbols and back, as fairseq's tools convert it."""

import json
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode

from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.text import pieces
from fairseq_imitkd.text.subwords import SUBWORDS, Text, TextSettings

LINE = "The lighthouse keeper, on his day off: 10 ships."


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of each kind of subwords that needs no other package."""
    folder = tmp_path_factory.mktemp("files")
    text = folder / "text"
    text.write_text(f"{LINE}\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "pieces"), vocab_size=40, model_type="bpe", minloglevel=2
    )
    symbols = [*bytes_to_unicode().values(), "he"]
    (folder / "encoder.json").write_text(
        json.dumps({symbol: number for number, symbol in enumerate(symbols)})
    )
    (folder / "vocab.bpe").write_text("#version: 0.2\nh e\n")
    (folder / "codes").write_text("#version: 0.2\nh e\nh e</w>\n")
    return folder


def settings(name: str, files: Path) -> TextSettings:
    given = {
        "sentencepiece": {"sentencepiece_model": files / "pieces.model"},
        "subword_nmt": {"bpe_codes": files / "codes"},
        "gpt2": {"gpt2_encoder_json": files / "encoder.json", "gpt2_vocab_bpe": files / "vocab.bpe"},
    }[name]
    assert tuple(given) == SUBWORDS[name]
    return TextSettings(name, given)


@pytest.mark.parametrize("name", ["sentencepiece", "gpt2"])
def test_text_survives_a_round_trip(name: str, files: Path) -> None:
    """Symbols with spaces between them, and the same text again."""
    text = Text(settings(name, files))
    symbols = text.encode(LINE).split(" ")
    assert len(symbols) > len(LINE.split())
    assert text.decode(" ".join(symbols)) == LINE


def test_gpt2_numbers_with_unknown_words(files: Path) -> None:
    """fairseq's decoder of GPT-2's numbers takes no other symbol."""
    gpt2 = Text(settings("gpt2", files))
    first, second, *rest = gpt2.encode("Ä he").split()
    assert gpt2.decode(" ".join(["x", first, second, *rest, "y", "<unk>"])) == "xÄ hey<unk>"
    assert gpt2.decode(" ".join([first, "x", second])) == "\ufffdx\ufffd", "parts of a character"


@pytest.mark.parametrize("name", ["subword_nmt", "gpt2"])
def test_few_words_are_remembered(name: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server meets new words for ever; the symbols are those that the package writes without bounds."""
    plain, text = Text(settings(name, files)), Text(settings(name, files))
    monkeypatch.setattr(pieces, "MOST_WORDS", 3)
    remembered = text.bpe.bpe.cache
    line = " ".join(["the", "hen", "the", "her", "ship", "then", "he" * 60, "the"])
    plain.bpe.bpe.cache = {}
    for _ in range(2):
        assert text.encode(line) == plain.encode(line)
        assert 1 <= len(remembered) <= 3
    assert len(plain.bpe.bpe.cache) > 5
    assert all(len(word) < 10 for word in remembered)


def test_symbols_are_the_packages_own(files: Path) -> None:
    """The symbols of the training data."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(files / "pieces.model"))
    assert Text(settings("sentencepiece", files)).encode(LINE) == " ".join(model.encode(LINE, out_type=str))
    assert Text(settings("gpt2", files)).encode("hehe") == "256 256"


def test_words_stay_words() -> None:
    """Without subwords or a tokeniser."""
    text = Text(TextSettings())
    assert text.decode(text.encode("a b@@ c")) == "a b@@ c"


def test_a_tokenizer_comes_before_the_subwords(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In decoding it comes after them. It uses the source language to encode, the target's to decode."""
    asked = []

    class Tokenizer:
        def __init__(self, cfg: Namespace):
            asked.append((cfg.tokenizer, cfg.source_lang, cfg.target_lang))

        def encode(self, line: str) -> str:
            return line.replace(",", " ,").replace(".", " .")

        def decode(self, line: str) -> str:
            return line.replace(" ,", ",").replace(" .", ".")

    monkeypatch.setattr("fairseq.data.encoders.build_tokenizer", Tokenizer)
    text = Text(replace(settings("sentencepiece", files), tokenizer="moses"), "de", "en")
    assert asked == [("moses", "de", "en")]
    plain = Text(settings("sentencepiece", files))
    assert text.encode("ships, off.") == plain.encode("ships , off .")
    assert text.decode(text.encode(LINE)) == LINE


def test_what_can_not_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of another kind, a missing package: one line that names the flag."""
    (tmp_path / "junk").write_text("junk\n")
    for name, message in (
        (
            "sentencepiece",
            r"--sentencepiece-model '.*junk' is not a model of SentencePiece; use the \.model file",
        ),
        ("gpt2", r"--bpe gpt2 can't be used: [^\n]+$"),
    ):
        wrong = TextSettings(name, dict.fromkeys(SUBWORDS[name], tmp_path / "junk"))
        with pytest.raises(UsageError, match=f"^{message}"):
            Text(wrong)
    (tmp_path / "codes").write_text("a b\nmore than two words\n")
    with pytest.raises(UsageError, match="must hold two subwords to merge in each line, but line 2 does not"):
        Text(TextSettings("fastbpe", {"bpe_codes": tmp_path / "codes"}))
    (tmp_path / "codes").write_text("a b 3\n")
    with pytest.raises(UsageError, match="line 1 does not"):
        Text(TextSettings("subword_nmt", {"bpe_codes": tmp_path / "codes"}))
    (tmp_path / "codes").write_text("a b\n\u00a0 a\n", encoding="utf-8")  # a no-break space is a symbol
    assert Text(TextSettings("subword_nmt", {"bpe_codes": tmp_path / "codes"})).encode("ab") == "ab"
    (tmp_path / "codes").write_text("")
    with pytest.raises(UsageError, match=r"--bpe-codes '.*codes' is empty"):
        Text(TextSettings("subword_nmt", {"bpe_codes": tmp_path / "codes"}))
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    with pytest.raises(UsageError, match=r"--tokenizer moses can't be used: .*pip install sacremoses"):
        Text(TextSettings(tokenizer="moses"))
