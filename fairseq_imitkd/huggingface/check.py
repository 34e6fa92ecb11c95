"""Compares an imported model with ``transformers``: the logits of a padded batch, and ids of sentences."""

import importlib.util
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq_imitkd.checkpoints.translation import load_student
from fairseq_imitkd.data.corpus import Languages
from fairseq_imitkd.errors import UsageError, as_usage_error
from fairseq_imitkd.huggingface.config import TEXT_ONLY
from fairseq_imitkd.huggingface.folder import ModelFolder
from fairseq_imitkd.huggingface.subwords import Encoder, open_encoder
from fairseq_imitkd.huggingface.vocabulary import ABSENT, EOS, PAD, Rows
from fairseq_imitkd.huggingface.written_tokens import CLASSES

LARGEST = 1e-4  # difference of logits in float32, where they are at most 1; relative where they are larger
_LONGEST = 60  # tokens of a sentence
# Text of several scripts, with numbers, marks and rare characters.
SENTENCES = (
    "The quick brown fox doesn't jump over 12,345 lazy dogs.",
    "Am Ende des Jahres waren es (so die Behörde) rund 3.500 Fälle; mehr als je zuvor!",
    "L'été dernier, nous étions « presque » seuls sur la plage.",
    "Что делать, если ничего не работает?",
    "机器翻译很有用。",
    "السلام عليكم",
    "a  b   c (d) [e] {f} <g> & h/i\\j 'k' \"l\" m@n.o #p $5 100% x^2 ~y",
    "I ♥ Unicode: ½ ﬁ ① ™ … é 🙂",
    "Yes.",
)


@dataclass(frozen=True)
class Origin:
    """What the comparison knows of the original model.

    Args:
        pair: source and target language.
        rows: rows of the model's tables at fairseq's indices.
        subwords: kind of the subwords; None if there are none.
    """

    pair: tuple[str, str]
    rows: Rows
    subwords: str | None


@dataclass(frozen=True)
class Verdict:
    """The result of a comparison.

    Args:
        difference: greatest difference of two logits.
        largest: size of the greatest logit.
        logits: number of logits that were compared.
        ids: number of sentences whose ids are equal, and of all; None if ids were not compared.
        first: the first sentence whose ids differ.
    """

    difference: float
    largest: float
    logits: int
    ids: tuple[int, int] | None = None
    first: str | None = None

    def refuse_difference(self, name: str) -> None:
        """Refuse a model whose logits differ.

        Raises:
            UsageError: the difference is too large.
        """
        limit = LARGEST * max(1.0, self.largest)
        if not self.difference <= limit:
            raise UsageError(
                f"{name} was not imported: its logits differ from those of transformers by "
                f"{self.difference:.2g}, more than {limit:.2g}; {TEXT_ONLY}"
            )


def is_possible() -> bool:
    """Return whether ``transformers`` is installed."""
    return importlib.util.find_spec("transformers") is not None


def compare(imported: Path, folder: ModelFolder, origin: Origin) -> Verdict:
    """Compare an imported model with its origin.

    Args:
        imported: folder that the import has written.
        folder: the model's folder.
        origin: what the import knows.

    Raises:
        UsageError: one of the models can't be loaded.
    """
    languages = Languages.of(imported, *origin.pair)
    model = load_student(str(imported / "model.pt"), languages).model
    with as_usage_error(f"transformers can't load {folder.name}"):
        other = load_original(folder)
    longest = min(_LONGEST, *(limit - 2 for limit in model.max_positions()))
    if origin.subwords is None:
        encoded: list[list[list[int]]] = [[], []]
    else:
        encoded = [
            [_indices(encoder, line)[:longest] for line in SENTENCES]
            for encoder in (open_encoder(imported, side) for side in ("source", "target"))
        ]
    sources, targets = (
        [
            *lines,
            *_random_lines(len(rows), longest, absent=[n for n, row in enumerate(rows) if row == ABSENT]),
        ]
        for lines, rows in zip(encoded, (origin.rows.encoder, origin.rows.output), strict=True)
    )
    own, theirs, kept = both_logits(model, other, sources, targets=targets, rows=origin.rows)
    ids, first = _compare_ids(imported, folder, origin)
    return Verdict(
        float((own - theirs)[kept].abs().max()),
        float(theirs[kept].abs().max()),
        int(kept.sum()),
        ids=ids,
        first=first,
    )


def load_original(folder: ModelFolder) -> Any:
    """Return the model as ``transformers`` loads it, in float32. Its code is never run from the folder."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from transformers import AutoModelForSeq2SeqLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = AutoModelForSeq2SeqLM.from_pretrained(
        str(folder.path), dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    return model.eval()


def both_logits(
    model: Any, other: Any, sources: Sequence[Sequence[int]], *, targets: Sequence[Sequence[int]], rows: Rows
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits of fairseq's model and of the original for the same padded batch.

    Args:
        model: fairseq's model.
        other: the original.
        sources, targets: sentences in fairseq's indices, without EOS.
        rows: rows of the original's tables at fairseq's indices.

    Returns:
        both logits, ``(B, T, V)`` in fairseq's order of symbols, and the mask of the logits to compare: not
        those of padding, and of symbols that the original lacks.
    """
    source = _padded([[*line, EOS] for line in sources], at_left=True)
    previous = _padded([[EOS, *line] for line in targets])
    encoder, decoder, output = (torch.tensor(part) for part in (rows.encoder, rows.decoder, rows.output))
    there = output.ne(ABSENT)
    right = _padded([[*line, EOS] for line in sources])
    with torch.no_grad():
        own = model(source, source.ne(PAD).sum(1), previous)[0].float()
        theirs = other(
            input_ids=encoder[right],
            attention_mask=right.ne(PAD).long(),
            decoder_input_ids=decoder[previous],
            use_cache=False,
        ).logits.float()
    kept = previous.ne(PAD).unsqueeze(-1) & there
    return own, theirs[..., output.clamp(min=0)], kept


def _padded(lines: Sequence[Sequence[int]], at_left: bool = False) -> Tensor:
    width = max(map(len, lines))
    pads = [[PAD] * (width - len(line)) for line in lines]
    return torch.tensor(
        [[*pad, *line] if at_left else [*line, *pad] for line, pad in zip(lines, pads, strict=True)]
    )


def _indices(encoder: Encoder, line: str) -> list[int]:
    """Return fairseq's indices of a sentence, without EOS."""
    return [encoder.dictionary.index(symbol) for symbol in encoder.symbols(line)]


def _random_lines(size: int, longest: int, *, absent: Sequence[int]) -> list[list[int]]:
    """Return sentences of random indices, which meet symbols that no text has."""
    generator = random.Random(1)
    usable = [index for index in range(size) if index not in (PAD, EOS, *absent)]
    lengths = [1, longest, *(generator.randint(1, longest) for _ in range(4))]
    return [[generator.choice(usable) for _ in range(max(1, length))] for length in lengths]


def _compare_ids(
    imported: Path, folder: ModelFolder, origin: Origin
) -> tuple[tuple[int, int] | None, str | None]:
    """Compare the ids of source sentences with those of ``AutoTokenizer``."""
    if origin.subwords is None:
        return None, None
    with as_usage_error(f"transformers can't load the tokenizer of {folder.name}"):
        tokenizer = load_tokenizer(folder, origin.pair)
    encoder = open_encoder(imported, "source")
    wrong = [
        line
        for line in SENTENCES
        if [origin.rows.encoder[index] for index in (*_indices(encoder, line), EOS)]
        != original_ids(tokenizer, encoder, line)
    ]
    return (len(SENTENCES) - len(wrong), len(SENTENCES)), wrong[0] if wrong else None


def load_tokenizer(folder: ModelFolder, pair: tuple[str, str]) -> Any:
    """Return the tokenizer as ``transformers`` loads it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        str(folder.path), local_files_only=True, trust_remote_code=False
    )
    if hasattr(tokenizer, "set_src_lang_special_tokens"):
        # M2M-100's tokenizer makes the tag __de__ of de. A user may have given the tag.
        tokenizer.src_lang, tokenizer.tgt_lang = (language.strip("_") for language in pair)
    return tokenizer


def original_ids(tokenizer: Any, encoder: Encoder, line: str) -> list[int]:
    """Return the ids of a source sentence by ``transformers``, where text may have to hold the tags."""
    if type(tokenizer).__name__ in CLASSES.values():
        line = " ".join((*encoder.before, line)) + "".join(encoder.after)
    return list(tokenizer(line).input_ids)
