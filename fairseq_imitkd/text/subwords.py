"""Raw text to the symbols that a model was trained on, and back: fairseq's own tokenisers and subwords."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq.data import encoders

from fairseq_imitkd.errors import UsageError

# Each kind of subwords, and the settings of fairseq's that name its files.
SUBWORDS = {
    "sentencepiece": ("sentencepiece_model",),
    "fastbpe": ("bpe_codes",),
    "subword_nmt": ("bpe_codes",),
    "gpt2": ("gpt2_encoder_json", "gpt2_vocab_bpe"),
}
TOKENIZERS = ("moses",)


@dataclass(frozen=True)
class TextSettings:
    """How text is made symbols.

    Args:
        bpe: one of :data:`SUBWORDS`; None takes words as they are.
        files: of its subwords, by the setting that names each.
        tokenizer: one of :data:`TOKENIZERS`, before the subwords; None takes text as it is.
    """

    bpe: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    tokenizer: str | None = None


class Text:
    """Between raw text and symbols with blanks between them.

    Args:
        settings: how.
        source, target: the languages of the two sides, which a tokeniser minds.

    Raises:
        UsageError: a package or file is not there, or is no such thing.
    """

    def __init__(self, settings: TextSettings, source: str = "en", target: str = "en"):
        self.bpe: Any = None
        self.tokenizer: Any = None
        if settings.bpe is not None:
            self.bpe = _built(f"--bpe {settings.bpe}", encoders.build_bpe, _bpe_settings(settings))
        if settings.tokenizer is not None:
            languages = {"source_lang": source, "target_lang": target}
            chosen = Namespace(
                tokenizer=settings.tokenizer, moses_no_dash_splits=False, moses_no_escape=False, **languages
            )
            self.tokenizer = _built(f"--tokenizer {settings.tokenizer}", encoders.build_tokenizer, chosen)

    def encode(self, line: str) -> str:
        """Symbols of a sentence of the source."""
        words = line if self.tokenizer is None else self.tokenizer.encode(line)
        return words if self.bpe is None else self.bpe.encode(words)

    def decode(self, symbols: str) -> str:
        """The text of a sentence of the target."""
        words = symbols if self.bpe is None else self.bpe.decode(symbols)
        return words if self.tokenizer is None else self.tokenizer.decode(words)


def _bpe_settings(settings: TextSettings) -> Namespace:
    if "bpe_codes" in settings.files:
        _check_merges(settings.files["bpe_codes"])
    return Namespace(bpe=settings.bpe, **{name: str(path) for name, path in settings.files.items()})


def _built(flag: str, build: Any, settings: Namespace) -> Any:
    try:
        return build(settings)
    except Exception as error:  # whatever a package raises on a file that is none of its own
        raise UsageError(
            f"{flag} can't be used: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error


def _check_merges(path: Path) -> None:
    """fastBPE does not survive a file that holds something else."""
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if len(line.split()) not in (2, 3) and not line.startswith("#version"):
                    raise UsageError(
                        f"--bpe-codes '{path}' must hold two subwords a line to be merged, but not in line {number}"
                    )
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--bpe-codes '{path}' can't be read: {error}") from error
