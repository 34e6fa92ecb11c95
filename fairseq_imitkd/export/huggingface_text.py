"""How a student's source text becomes symbols and comes back, for an export in Hugging Face's format."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.errors import UsageError, as_usage_error
from fairseq_imitkd.huggingface.written_tokens import MERGES, Subwords
from fairseq_imitkd.text.imported import DESCRIPTION, SIDES, SUBWORD_FILES, encoder_of, read_description
from fairseq_imitkd.text.subwords import IMPORTED, TextSettings

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


def source_text(settings: TextSettings, languages: LanguagePair, *, has_tags: bool) -> SourceText:
    """Return the text that ``--bpe`` and ``--tokenizer``, or ``--subwords``, describe.

    Args:
        settings: how text becomes symbols.
        languages: the language pair with its dictionaries.
        has_tags: whether the sentences have an imported model's tags. Those of its students have none.

    Raises:
        UsageError: no tokenizer of ``transformers`` splits text in this way, or a file can't be read.
    """
    if settings.bpe == IMPORTED:
        return _of_import(settings, languages, has_tags=has_tags)
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
    text = languages.text(settings)
    return SourceText(Subwords(kind, found), text.encode, text.decode_source)


def _of_import(settings: TextSettings, languages: LanguagePair, *, has_tags: bool) -> SourceText:
    encoder = encoder_of(settings.files, SIDES[0], languages.source_dictionary, tags=has_tags)
    content = read_description(settings.files)
    with as_usage_error(f"'{settings.files[DESCRIPTION]}' can't be used", "import the model again"):
        parts = [content["text"][side] for side in SIDES]
        renamed = dict(parts[0]["renamed"]), dict(parts[1]["renamed"])
        target_before = tuple(str(symbol) for symbol in parts[1]["before"])
    files = {name: path for name, path in settings.files.items() if name in SUBWORD_FILES}
    subwords = Subwords(str(content["subwords"]), files, renamed=renamed)
    if has_tags:
        subwords = replace(subwords, before=encoder.before, after=encoder.after, target_before=target_before)
    return SourceText(subwords, encoder.encode, encoder.decode)
