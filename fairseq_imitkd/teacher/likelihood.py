"""Checks that a teacher knows the data: how probable does it find the first references?

The symbols of a teacher whose dictionaries are another training's mean other words. Nothing in its file shows
this, but its likelihoods do.
"""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fairseq import utils
from fairseq.data import Dictionary
from torch import Tensor

from fairseq_imitkd.data.batch_type import Batch, teacher_input
from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.data.prompts import PromptDataset
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.models.logits import chunk_size
from fairseq_imitkd.models.tagged import check_without_tags, tags_of
from fairseq_imitkd.teacher.subset import log_mass
from fairseq_imitkd.teacher.teacher import Teacher

logger = logging.getLogger(__name__)

SENTENCES = 64  # references that the teacher is asked about
TOKENS, BATCHES = 4096, 2  # most tokens in a batch of them, padding included, and most batches
FRAMES = 8  # frames of speech that count as one token there
LEAST = 32  # references that show anything
COUNTED = 2000  # references whose symbols are counted
WORSE = 0.25  # nats a token by which a teacher may be worse than the frequencies
CLEARLY = 0.1  # share of the frequencies' nats by which a good teacher is better
SHARE = 0.25  # least share of a teacher's knowledge that comes from the source


@dataclass(frozen=True)
class Likelihood:
    """How well a teacher predicts references, in nats a token; less is better.

    Args:
        own: with the reference's own source.
        other: with another sentence's source; NaN if there is no other sentence.
        frequencies: by the frequencies of symbols alone, without a model.
        sentences: number of references.
    """

    own: float
    other: float
    frequencies: float
    sentences: int

    @property
    def problem(self) -> str:
        """What shows that the teacher does not know this data, in words; empty if nothing does.

        A weak teacher knows at least the frequencies. A teacher whose target dictionary is permuted predicts
        other words with confidence, so it is worse. A teacher whose source dictionary is permuted writes
        fluently whatever it reads: nearly all that it knows, it knows without the source.
        """
        if self.sentences < LEAST:
            return ""
        knowledge = self.frequencies - self.own
        if not knowledge >= -WORSE:  # NaN too
            return (
                f"does not know this data: {self.own:.2f} nats a token of references, symbol frequencies "
                f"{self.frequencies:.2f}"
            )
        if knowledge > WORSE and self.other - self.own < SHARE * knowledge:
            return (
                f"hardly uses the source: {self.own:.2f} nats a token of references, {self.other:.2f} with "
                "other sources"
            )
        return ""

    def __str__(self) -> str:
        others = "" if math.isnan(self.other) else f"{self.other:.2f} with other sources, "
        numbers = (
            f"{self.own:.2f} nats a token of the first {self.sentences:,} references (less is better), "
            f"{others}{self.frequencies:.2f} by symbol frequencies"
        )
        return f"{numbers}: {self._judgement}"

    @property
    def _judgement(self) -> str:
        if self.sentences < LEAST:
            return "too few to judge"
        if self.problem:
            return self.problem.partition(":")[0]
        is_clear = self.frequencies - self.own >= CLEARLY * self.frequencies
        return "knows this data" if is_clear else "weak: little better than symbol frequencies"


def check_likelihood(
    teacher: Teacher,
    dataset: Any,
    *,
    paths: Sequence[str],
    pad: int,
    symbols: int,
    writes: bool = True,
    selects: bool = False,
    allow_poor: bool = False,
) -> None:
    """Log how well each member of a teacher predicts the first references, and refuse one that does not.

    No random number is drawn, and the teacher and its cache stay as they are. All processes of a training get
    the same result.

    Args:
        teacher: the teacher, on its device.
        dataset: fairseq's data set of sentences with references.
        paths: the checkpoint of each member.
        pad: target value of positions that do not count.
        symbols: size of the target dictionary.
        writes: whether the teacher writes the references, so that ``prev_output_tokens`` belong to them.
        selects: whether members are chosen for each sentence (``--teacher-selection``), so that it is enough
            if one of them knows it.
        allow_poor: ``--teacher-allow-poor``: only warn.

    Raises:
        UsageError: a member does not know the data.
    """
    found = likelihoods(teacher, dataset, pad=pad, symbols=symbols, writes=writes, selects=selects)
    if teacher.outside is not None:
        move = utils.move_to_cuda if teacher.log_weights.is_cuda else lambda batch: batch
        batches = map(move, _first_batches(dataset, teacher.max_positions))
        log_mass(teacher, teacher.outside, batches, pad=pad, path=paths[0])
    for path, likelihood in zip([os.pathsep.join(paths)] if selects else paths, found, strict=False):
        logger.info("teacher %s: %s", path, likelihood)
        if not likelihood.problem:
            continue
        message = f"--teacher-path '{path}' {likelihood.problem}"
        if not allow_poor:
            raise UsageError(
                f"{message}; check languages, subwords and --teacher-data, train it longer, or add "
                "--teacher-allow-poor"
            )
        logger.warning("%s", message)


def likelihoods(
    teacher: Teacher, dataset: Any, *, pad: int, symbols: int, writes: bool = True, selects: bool = False
) -> list[Likelihood]:
    """Return how well each member predicts the first references; empty if there are none.

    With ``selects`` there is one result, that of each sentence's best member. The arguments are those of
    :func:`check_likelihood`.

    Raises:
        UsageError: the data hold the language tags that the teacher adds.
    """
    # A long continuation may say little about its prompt, and with another prompt it may be too long.
    moves = not isinstance(dataset, PromptDataset)
    parts: list[_Losses] = []
    targets: list[Tensor] = []
    for batch in _first_batches(dataset, teacher.max_positions):
        _refuse_tagged(teacher, batch, dataset)
        targets += [row[row.ne(pad)] for row in batch["target"]]
        parts.append(
            _losses(teacher, batch, pad=pad, symbols=symbols, writes=writes, selects=selects, moves=moves)
        )
    if not parts:
        return []
    frequencies = _frequency_loss(targets, _targets(dataset, COUNTED), symbols)
    own, change = (torch.cat([getattr(part, name) for part in parts]) for name in ("own", "change"))
    tokens, moved = (torch.cat([getattr(part, name) for part in parts]).sum() for name in ("tokens", "moved"))
    means = own.sum(dim=0) / tokens
    others = means + change.sum(dim=0) / moved  # 0 / 0 is NaN
    return [
        Likelihood(mean, other, frequencies, len(targets))
        for mean, other in zip(means.tolist(), others.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class _Losses:
    """The negative log-probabilities of a batch of ``B`` references by ``M`` members or by the best, float64.

    Args:
        own: ``(B, M)``, summed over a reference's tokens.
        tokens: ``(B,)``, their number.
        change: ``(D, M)``, how much more it is with another source, of the ``D`` references that get another.
        moved: ``(D,)``, their numbers of tokens.
    """

    own: Tensor
    tokens: Tensor
    change: Tensor
    moved: Tensor


def _losses(
    teacher: Teacher,
    batch: Batch,
    *,
    pad: int,
    symbols: int,
    writes: bool,
    selects: bool,
    moves: bool,
) -> _Losses:
    """Score the references of a batch, and with ``moves`` also with the source half a batch away."""
    sample = utils.move_to_cuda(batch) if teacher.log_weights.is_cuda else batch
    encoded = teacher.encode(sample, cacheable=False)
    half, sources = len(batch["target"]) // 2, teacher_input(batch)["src_tokens"].flatten(1)
    moved = {**sample, "target": sample["target"].roll(half, dims=0)}
    if writes:
        prefixes = sample["net_input"]["prev_output_tokens"].roll(half, dims=0)
        moved["net_input"] = {**sample["net_input"], "prev_output_tokens": prefixes}

    def loss(scored: Batch) -> tuple[Tensor, Tensor]:
        chunk = chunk_size(scored["target"].numel(), symbols, scored["target"].device)
        mean = teacher.agreement(scored, encoded, pad=pad, chunk=chunk).double().cpu()
        tokens = scored["target"].ne(pad).sum(dim=-1).double().cpu()
        losses = -mean * tokens.unsqueeze(-1)
        return losses.amin(dim=-1, keepdim=True) if selects else losses, tokens

    own, tokens = loss(sample)
    if not moves:
        return _Losses(own, tokens, own[:0], tokens[:0])
    other, moved_tokens = loss(moved)
    differs = sources.ne(sources.roll(half, dims=0)).any(dim=-1)  # several references may share a source
    return _Losses(own, tokens, (other - own.roll(half, dims=0))[differs], moved_tokens[differs])


def _first_batches(dataset: Any, limits: tuple[int, int]) -> Iterator[Batch]:
    """Yield the first sentences of a data set that a teacher can read, in one batch or two."""
    rows: list[Any] = []
    longest, sentences, batches = 0, 0, 0
    numbers: Any = range(len(dataset))
    if isinstance(dataset, PromptDataset):  # its sides share the positions
        numbers, _ = dataset.filter_indices_by_size(np.arange(len(dataset)), limits)
    for number in map(int, numbers):
        row = dataset[number]
        source = row["source"] if "source" in row else row["net_input.src_tokens"]
        if row.get("target") is None:
            return
        _check_symbols(number, source, getattr(dataset, "src_dict", None), side="source")
        _check_symbols(number, row["target"], getattr(dataset, "tgt_dict", None), side="target")
        lengths = len(source), row["target"].numel()
        if lengths[0] > limits[0] or lengths[1] > limits[1]:
            continue
        width = max(len(source) // (FRAMES if source.dim() > 1 else 1), lengths[1])
        if len(rows) > 1 and (len(rows) + 1) * max(longest, width) > TOKENS:
            yield dataset.collater(rows)
            rows, longest, batches = [], 0, batches + 1
            if batches == BATCHES:
                return
        rows.append(row)
        longest, sentences = max(longest, width), sentences + 1
        if sentences == SENTENCES:
            break
    if rows:
        yield dataset.collater(rows)


def _check_symbols(number: int, tokens: Tensor, dictionary: Dictionary | None, *, side: str) -> None:
    """Refuse a sentence that was binarised with a larger dictionary.

    Raises:
        UsageError: it holds a symbol that the dictionary lacks.
    """
    if dictionary is not None and tokens.numel() and int(tokens.max()) >= len(dictionary):
        raise UsageError(
            f"sentence {number} of DATA holds symbol {int(tokens.max())}, but its {side} dictionary has only "
            f"{len(dictionary):,}; binarise the data again (fairseq-preprocess --srcdict --tgtdict)"
        )


def _refuse_tagged(teacher: Teacher, batch: Batch, dataset: Any) -> None:
    """Refuse data with the language tags that a teacher adds itself."""
    tags = tags_of(teacher.models[0])
    if tags is not None:
        pair = LanguagePair("", "", dataset.src_dict, dataset.tgt_dict)
        sources = teacher_input(batch)["src_tokens"]
        check_without_tags(tags, pair, sources=sources, targets=batch["target"])


def _targets(dataset: Any, count: int) -> list[Tensor]:
    """Return the first references of a data set."""
    side = getattr(dataset, "tgt", None)
    numbers = range(min(count, len(dataset)))
    return [side[number] if side is not None else dataset[number]["target"] for number in numbers]


def _frequency_loss(targets: Sequence[Tensor], counted: Sequence[Tensor], symbols: int) -> float:
    """Return the mean negative log-probability of references by the frequencies of their symbols, in nats.

    The frequencies are counted with absolute discounting, so that symbols that were not counted have a
    probability, too (Ney, Essen and Kneser, 1994).

    Args:
        targets: the references, ``(T,)`` each.
        counted: the references whose symbols are counted.
        symbols: size of the dictionary.
    """
    counts = torch.bincount(torch.cat([row.flatten() for row in counted]).long(), minlength=symbols).double()
    discount = 0.75
    rest = discount * int(counts.count_nonzero()) / len(counts)
    probabilities = ((counts - discount).clamp(min=0.0) + rest) / counts.sum()
    return float(-probabilities[torch.cat(list(targets)).long()].log().mean())
