"""How a student's source text becomes symbols and comes back, for an export in Hugging Face's format."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.errors import UsageError, as_usage_error
from fairseq_imitkd.huggingface.folder import read_json
from fairseq_imitkd.huggingface.subwords import DESCRIPTION, SUBWORD_FILES, open_encoder
from fairseq_imitkd.huggingface.written_tokens import MERGES, Subwords
from fairseq_imitkd.text.subwords import Text, TextSettings

Line = Callable[[str], str]


@dataclass(frozen=True)
class SourceText:
    """The text of a student's sources.

    Args:
        subwords: how it becomes symbols, for a tokenizer.
        encode: turns a sentence into symbols with spaces between them, tags included.
        decode: turns symbols into a sentence.
    """

    subwords: Subwords
    encode: Line
    decode: Line


def text_of_flags(settings: TextSettings, languages: LanguagePair) -> SourceText:
    """Return the text that ``--bpe`` and ``--tokenizer`` describe.

    Raises:
        UsageError: no tokenizer of ``transformers`` splits text in this way, or a file can't be read.
    """
    encoder = Text(settings, languages.source, languages.target)
    # Detokenisers depend on the language that they write, so the source is decoded as a target.
    decoder = Text(settings, languages.target, languages.source)
    files = settings.files
    if settings.bpe == "sentencepiece":
        kind = "sentencepiece"
        found = dict.fromkeys(("source.spm", "target.spm"), files["sentencepiece_model"])
    elif settings.bpe == "gpt2":
        kind = "gpt2"
        found = {"encoder.json": files["gpt2_encoder_json"], "vocab.bpe": files["gpt2_vocab_bpe"]}
    elif settings.bpe is not None:
        kind, found = ("moses" if settings.tokenizer else "merges"), {MERGES: files["bpe_codes"]}
    else:
        kind, found = "words", {}
    if settings.tokenizer is not None and kind != "moses":
        raise UsageError(
            f"--tokenizer {settings.tokenizer} needs --bpe subword_nmt or fastbpe with --format huggingface; "
            "leave --format out"
        )
    return SourceText(Subwords(kind, found), encoder.encode, decoder.decode)


def text_of_folder(folder: Path, languages: LanguagePair, *, has_tags: bool = True) -> SourceText:
    """Return the text of an imported model, by the folder of ``imitkd-import`` or ``imitkd-trim``.

    Args:
        folder: the folder.
        languages: the language pair with its dictionaries.
        has_tags: whether the sentences have the imported model's tags. Those of its students have none.

    Raises:
        UsageError: it is another folder, or it has other dictionaries.
    """
    encoder = open_encoder(folder, "source", tags=has_tags)
    if encoder.dictionary.symbols != languages.source_dictionary.symbols:
        raise UsageError(
            f"--subwords '{folder}' has another source dictionary than --data; use the folder whose "
            "dictionaries the data was made with"
        )
    path = folder / DESCRIPTION
    content = read_json(path)
    with as_usage_error(f"'{path}' can't be used", "import the model again"):
        parts = [content["text"][side] for side in ("source", "target")]
        renamed = dict(parts[0]["renamed"]), dict(parts[1]["renamed"])
        target_before = tuple(str(symbol) for symbol in parts[1]["before"])
    files = {name: folder / name for name in SUBWORD_FILES if (folder / name).is_file()}
    subwords = Subwords(str(content["subwords"]), files, renamed=renamed)
    if has_tags:
        subwords = replace(subwords, before=encoder.before, after=encoder.after, target_before=target_before)
    around = {*subwords.before, *subwords.after}
    back = _decoder(subwords, languages)

    def decode(symbols: str) -> str:
        return back(" ".join(symbol for symbol in symbols.split() if symbol not in around))

    return SourceText(subwords, encoder.encode, decode)


def _decoder(subwords: Subwords, languages: LanguagePair) -> Line:
    """Return what turns source symbols without tags into text."""
    files = subwords.files
    if subwords.kind == "tokenizers":
        from tokenizers import Tokenizer  # not needed by other models

        decoder = Tokenizer.from_file(str(files["tokenizer.json"])).decoder
        return lambda symbols: str(decoder.decode(symbols.split())).strip()
    settings = {
        "sentencepiece": lambda: TextSettings("sentencepiece", {"sentencepiece_model": files["source.spm"]}),
        "gpt2": lambda: TextSettings(
            "gpt2", {"gpt2_encoder_json": files["encoder.json"], "gpt2_vocab_bpe": files["vocab.bpe"]}
        ),
        "moses": lambda: TextSettings("subword_nmt", {"bpe_codes": files[MERGES]}, "moses"),
    }[subwords.kind]()
    return Text(settings, languages.target, languages.source).decode
