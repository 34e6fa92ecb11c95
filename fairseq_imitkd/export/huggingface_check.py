"""Compares an exported folder with the student: ids of text, and greedy translations by ``transformers``."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairseq.models import BaseFairseqModel
from torch import Tensor

from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.engines.base import SearchSettings
from fairseq_imitkd.engines.fairseq import FairseqEngine
from fairseq_imitkd.errors import UsageError, as_usage_error
from fairseq_imitkd.export import checks
from fairseq_imitkd.export.huggingface_text import SourceText
from fairseq_imitkd.huggingface.check import load_original
from fairseq_imitkd.huggingface.folder import ModelFolder
from fairseq_imitkd.huggingface.vocabulary import EOS, PAD

MOST_OTHER_IDS = 0.05  # share of sentences that AutoTokenizer may split otherwise
_LONGEST = 200  # tokens of a compared translation, unless --min-len asks for more


@dataclass(frozen=True)
class Compared:
    """The result of a comparison.

    Args:
        sentences: number of sentences.
        same_ids: those of them that ``AutoTokenizer`` splits as the student's data.
        first_other: the first of the others.
        translated: those with the same ids that the student can read.
        identical: those of them whose translations are equal, token for token.
        difference: greatest difference of two log-probabilities of a target token.
    """

    sentences: int
    same_ids: int
    first_other: str | None
    translated: int
    identical: int
    difference: float


class TransformersEngine:
    """The exported folder as ``transformers`` loads it, with the interface of an engine for the comparison.

    Args:
        folder: the exported folder.
        settings: the longest translation; the search is greedy.
    """

    def __init__(self, folder: Path, settings: SearchSettings):
        self.settings = settings
        self.model = load_original(ModelFolder(folder))

    def translate(self, ids: Sequence[int], sources: Sequence[Tensor], nbest: int) -> list[list[Any]]:
        """See :class:`~fairseq_imitkd.engines.base.Engine`. An unfinished translation ends with an EOS."""
        batch = _padded(sources)
        with torch.no_grad():
            out = self.model.generate(
                input_ids=batch,
                attention_mask=batch.ne(PAD).long(),
                num_beams=1,
                do_sample=False,
                max_new_tokens=self.settings.max_len_b + 1,
                no_repeat_ngram_size=0,
            )
        return [[_Found(_to_eos(row[1:]))] for row in out]

    def score(self, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
        """See :class:`~fairseq_imitkd.engines.base.Engine`."""
        batch, expected = _padded(sources), _padded(targets)
        previous = torch.cat([expected.new_full((len(targets), 1), EOS), expected[:, :-1]], dim=1)
        with torch.no_grad():
            logits = self.model(
                input_ids=batch,
                attention_mask=batch.ne(PAD).long(),
                decoder_input_ids=previous,
                use_cache=False,
            ).logits
        lprobs = logits.float().log_softmax(-1).gather(-1, expected.unsqueeze(-1)).squeeze(-1)
        return [row[: target.numel()] for row, target in zip(lprobs, targets, strict=True)]

    def with_settings(self, settings: SearchSettings) -> "TransformersEngine":
        """See :class:`~fairseq_imitkd.engines.base.Engine`."""
        other = copy.copy(self)
        other.settings = settings
        return other


@dataclass(frozen=True)
class _Found:
    tokens: Tensor


def _their_ids(folder: Path, lines: Sequence[str]) -> list[list[int]]:
    """Return the ids of sentences by ``AutoTokenizer``."""
    from transformers import AutoTokenizer  # an optional dependency

    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    return [list(tokenizer(line).input_ids) for line in lines]


def _padded(lines: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(lines), batch_first=True, padding_value=PAD)


def _to_eos(tokens: Tensor) -> Tensor:
    """Return tokens up to the first EOS."""
    ends = tokens.eq(EOS).nonzero().flatten().tolist()
    return tokens[: ends[0] + 1] if ends else tokens


class _ForcedEngine(FairseqEngine):
    """fairseq's greedy search that begins each translation with a given symbol, if any."""

    first: int | None = None

    def translate(self, ids: Sequence[int], sources: Sequence[Tensor], nbest: int) -> list[list[Any]]:
        """See :class:`~fairseq_imitkd.engines.base.Engine`."""
        if self.first is None or self._generator is None:
            return super().translate(ids, sources, nbest)
        found = self._generator.generate(
            list(self.writer.models),
            {"net_input": self._net_input(sources)},
            prefix_tokens=torch.full((len(sources), 1), self.first),
        )
        return [[_Found(each["tokens"])] for [each] in found]


def longest_translation(model: BaseFairseqModel) -> int:
    """Return the most tokens of a translation in ``transformers``, without its first symbol and its EOS."""
    return min(model.max_positions()) - 2


def compare(
    folder: Path,
    model: BaseFairseqModel,
    languages: LanguagePair,
    *,
    text: SourceText,
    sources: Sequence[Tensor],
    min_len: int = 1,
) -> Compared:
    """Compare an exported folder with the student.

    Args:
        folder: the exported folder.
        model: the student.
        languages: the language pair with its dictionaries.
        text: the text of its sources.
        sources: ``N`` tensors ``(S,)`` int64 with an EOS. Their text is translated.
        min_len: fewest tokens of a translation; at most :func:`longest_translation`.

    Raises:
        UsageError: ``transformers`` can't load the folder, or it computes something else.
    """
    longest = min(max(_LONGEST, min_len), longest_translation(model))
    settings = SearchSettings(beam=1, max_len_a=0.0, max_len_b=longest, min_len=min_len)
    dictionary = languages.source_dictionary
    lines = [text.decode(dictionary.string(source)) for source in sources]
    own = [dictionary.encode_line(text.encode(line), add_if_not_exist=False).long() for line in lines]
    with as_usage_error("transformers can't load the exported student", "report this as a fault"):
        theirs = _their_ids(folder, [text.subwords.with_tags(line) for line in lines])
        exported = TransformersEngine(folder, settings)
    same = [number for number, ids in enumerate(own) if ids.tolist() == theirs[number]]
    others = [line for number, line in enumerate(lines) if number not in set(same)]
    if len(others) > MOST_OTHER_IDS * len(lines):
        raise UsageError(
            f"AutoTokenizer splits {len(others)} of {len(lines)} sentences otherwise than --data, such as "
            f"{others[0]!r:.60}; use the --bpe and --tokenizer, or the --subwords, that --data was made with"
        )
    kept = [own[number] for number in same if 1 < own[number].numel() <= min(model.max_positions())]
    fairseqs = _ForcedEngine.of_model(model, languages, settings)
    fairseqs.first = exported.model.generation_config.forced_bos_token_id
    expected = checks.translations(fairseqs, kept)
    found = checks.translations(exported, kept)
    difference = checks.lprob_difference(exported, fairseqs, sources=kept[:64], targets=expected[:64])
    agreement = checks.agreement(found, expected, fairseqs, sources=kept)
    checks.refuse_another_model(difference, agreement)
    return Compared(
        sentences=len(lines),
        same_ids=len(same),
        first_other=others[0] if others else None,
        translated=len(kept),
        identical=agreement.identical,
        difference=difference,
    )
