"""A cache in the teacher's place: the same scores on the data's own targets, and no model in memory."""

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks.translation import TranslationTask
from torch import Tensor

from fairseq_imitkd.criterion import DistillationCriterion
from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.errors import RefusedUpdate, UsageError
from fairseq_imitkd.losses.divergences import DIVERGENCES, needs
from fairseq_imitkd.models.logits import ProjectedLogits, TokenLogits
from fairseq_imitkd.rollout import Ensemble
from fairseq_imitkd.teacher.cache.format import (
    MANIFEST,
    PROGRESS,
    REMEDY,
    as_tensor,
    check_manifest,
    data_identity,
    difference,
    open_array,
    open_offsets,
    places,
    read_json,
    token_arrays,
)

logger = logging.getLogger(__name__)

TOTAL = 0.02  # probabilities in half precision add up to 1 within this


@dataclass(frozen=True)
class TopKLogits:
    """The distributions at ``N`` positions of which the ``K`` most probable symbols are known, and the others' sum.

    Args:
        symbols: ``(N, K)`` int64, best first.
        lprobs: ``(N, K)``, their log-probabilities.
        tail: ``(N,)``, the logarithm of the probability that all other symbols have together.
        size: ``V``, above ``K``.
    """

    symbols: Tensor
    lprobs: Tensor
    tail: Tensor
    size: int

    def logits(self, positions: slice) -> Tensor:
        """See :class:`~fairseq_imitkd.models.logits.TokenLogits`: log-probabilities, the tail's spread evenly over its symbols."""
        symbols, lprobs = self.symbols[positions], self.lprobs[positions]
        each = self.tail[positions].unsqueeze(-1) - math.log(self.size - symbols.size(-1))
        # A mean of lesser ones is below the least that is known. Rounded it may not be, and would be taken for one of the best.
        each = torch.minimum(each, torch.nextafter(lprobs[:, -1:], torch.full_like(each, -math.inf)))
        return each.repeat(1, self.size).scatter_(-1, symbols, lprobs)

    def at(self, positions: Tensor) -> "TopKLogits":
        """See :class:`~fairseq_imitkd.models.logits.TokenLogits`."""
        return TopKLogits(self.symbols[positions], self.lprobs[positions], self.tail[positions], self.size)


class CachedTeacher:
    """What a :class:`~fairseq_imitkd.teacher.teacher.Teacher` would say to sentences that keep their reference.

    Args:
        folder: of a complete cache.
        manifest: its ``cache.json``.
        pad: of the target dictionary.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], pad: int):
        self.folder, self.pad = folder, pad
        check_manifest(manifest, folder / MANIFEST)
        self.symbols: int = manifest["symbols"]
        self._offsets = open_offsets(folder, manifest)
        shapes = token_arrays(
            manifest["topk"], manifest["dtype"], manifest["tokens"], self.symbols, manifest["width"]
        )
        self._arrays = {name: open_array(folder, name, *shape) for name, shape in shapes.items()}
        of_projection = {"weight": (self.symbols, manifest["width"]), "bias": (self.symbols,)}
        self._projection = [  # the matrix and, if there is one, the bias; of hidden states alone
            as_tensor(np.array(open_array(folder, name, of_projection[name], np.float32)))
            for name in manifest["projection"]
        ]
        source, target = manifest["max_positions"]
        self.max_positions: tuple[int, int] = (source, target)
        self._device: torch.device | None = None
        self._dtype: torch.dtype | None = None

    def place(self, device: torch.device, student_dtype: torch.dtype) -> None:
        """Answer where the student is; hidden states in its first precision, like a teacher of ``--teacher-dtype auto``."""
        if self._device != device:
            self._device, self._dtype = device, self._dtype or student_dtype
            self._projection = [part.to(device, self._dtype) for part in self._projection]

    @property
    def writer(self) -> Ensemble:
        """Nobody: where sentences are written, a cache is refused."""
        return Ensemble([], torch.empty(0))

    def encode(self, sample: Batch, comes_back: bool = True) -> list[Any]:
        """Nothing: :meth:`score` needs no encoder."""
        return []

    @torch.no_grad()
    def score(
        self,
        sample: Batch,
        encoded: Sequence[Any] | None = None,
        rows: Tensor | None = None,
        whole: bool = True,
        log_weights: Tensor | None = None,
        of_logits: bool = False,
    ) -> TokenLogits:
        """The kept scores at every prefix of a batch of ``B`` sentences and ``T`` target positions, found by its ``id``.

        Only ``sample`` is read: the others are what a live teacher is told.

        Raises:
            RefusedUpdate: a sentence is absent or has another length than in the cache.
        """
        ids, counted = sample["id"].cpu(), sample["target"].ne(self.pad).cpu()
        kept = self._offsets[ids.numpy() + 1] - self._offsets[ids.numpy()]
        lengths = counted.sum(dim=-1).numpy()
        if (kept != lengths).any():
            row = int((kept != lengths).nonzero()[0][0])
            raise RefusedUpdate(
                f"sentence {int(ids[row])} has {lengths[row]} target tokens, but {kept[row]} in --teacher-cache "
                f"'{self.folder}': train on the data that it was made of"
            )
        found = places(self._offsets, ids, counted)
        kept = {name: array[found] for name, array in self._arrays.items()}
        self._check(kept, np.repeat(ids.numpy(), lengths))
        values = {name: self._at_tokens(array, counted.flatten()) for name, array in kept.items()}
        if self._projection:
            return ProjectedLogits(values["features"].to(self._device, self._dtype), *self._projection)
        lprobs, tail = (values[name].to(self._device, torch.float32) for name in ("lprobs", "tail"))
        return TopKLogits(values["symbols"].to(self._device), lprobs, tail, self.symbols)

    def _check(self, kept: dict[str, np.ndarray], sentences: np.ndarray) -> None:
        """Refuse rows that can be no answers: never written, or damaged since."""
        if "features" in kept:
            bad = ~kept["features"].any(axis=-1)
        else:
            whole = np.exp(kept["lprobs"].astype(np.float32)).sum(axis=-1) + np.exp(
                kept["tail"].astype(np.float32)
            )
            bad = ~(np.abs(whole - 1.0) < TOTAL) | (kept["symbols"] >= self.symbols).any(axis=-1)
        if bad.any():
            raise RefusedUpdate(
                f"--teacher-cache '{self.folder}' is damaged: what it holds of sentence {sentences[bad.argmax()]} is no "
                f"answer of a teacher; {REMEDY}"
            )

    @staticmethod
    def _at_tokens(values: np.ndarray, counted: Tensor) -> Tensor:
        """Values of the counted among ``B * T`` positions, as a tensor over all of them with zeros at padding."""
        read = as_tensor(values)
        grid = read.new_zeros((counted.numel(), *read.shape[1:]))
        grid[counted] = read
        return grid


def refuse_teacher_flags(cfg: Any, defaults: FairseqDataclass) -> None:
    """A cache has its answers already: refuse every flag of the task that says which teacher, or how it is to answer.

    Raises:
        UsageError: naming the flag.
    """
    for item in fields(defaults):
        value = getattr(cfg, item.name)
        of_teacher = item.name.startswith("teacher_") and item.name != "teacher_cache"
        if of_teacher and str(value) != str(getattr(defaults, item.name)):
            flag = f"--{item.name.replace('_', '-')} {value}"
            raise UsageError(
                f"{flag} changes nothing with --teacher-cache, which holds the answers: leave one of them out"
            )


def open_cache(folder: str, task: TranslationTask, criterion: DistillationCriterion) -> CachedTeacher:
    """The cache of ``--teacher-cache``, made sure to be of this run's data and enough for its method.

    Args:
        folder: that ``imitkd-cache`` wrote.
        task: whose training data, dictionaries and settings it must be of.
        criterion: the method.

    Raises:
        UsageError: it is not complete, of something else, or holds too little.
    """
    flag, path = f"--teacher-cache '{folder}'", Path(folder)
    manifest = read_json(path / MANIFEST)
    if manifest is None:
        if os.path.exists(path / PROGRESS):
            raise UsageError(
                f"{flag} is not complete: run its imitkd-cache command again, which goes on where it was"
            )
        raise UsageError(f"{flag} holds no {MANIFEST}: give a folder that imitkd-cache wrote")
    upsample = getattr(task.cfg, "upsample_primary", -1)
    if upsample not in (-1, 1):
        raise UsageError(
            f"--upsample-primary {upsample} numbers sentences otherwise than {flag} does: leave it out"
        )
    unlike = difference(manifest, data_identity(task, str(task.cfg.train_subset)))
    if unlike is not None:
        raise UsageError(
            f"{flag} is of other data than this run's: {unlike}; run imitkd-cache on what you train on"
        )
    check_manifest(manifest, path / MANIFEST)
    _check_method(criterion, manifest["topk"], flag)
    logger.info(
        "teacher cache %s: %d tokens, %d sentences too long", folder, manifest["tokens"], manifest["absent"]
    )
    return CachedTeacher(path, manifest, task.target_dictionary.pad())


def _check_method(criterion: DistillationCriterion, topk: int, flag: str) -> None:
    """Refuse a method that asks more than a cache of ``topk`` symbols (0: hidden states, hence everything) can answer."""
    cfg = criterion.cfg
    if criterion.writes:
        asked, remedy = f"--student-share {cfg.student_share}", "add --student-share 0"
        if criterion.teacher_samples:
            asked, remedy = "--teacher-samples", "leave it out"
        raise UsageError(
            f"{asked} has new sentences written, of which {flag} knows nothing: {remedy} or use --teacher-path"
        )
    if topk == 0:
        return
    # A symbol's own probability is known only if it is among the best, and a logit never is.
    inputs, _ = needs(DIVERGENCES[cfg.divergence])
    of_targets = bool({"target", "is_hard"} & inputs) or (
        "mixture_weight" in inputs and str(cfg.js_weights) == "exact"
    )
    if criterion.of_logits or of_targets:
        setting = f"--divergence {cfg.divergence}" + (
            " --js-weights exact" if "mixture_weight" in inputs else ""
        )
        raise UsageError(
            f"{setting} needs more of the teacher than the {topk} most probable symbols that {flag} holds: make the cache with "
            "--keep hidden"
        )
    if cfg.divergence == "teacher-argmax":  # the best symbol alone
        return
    if not 1 <= cfg.teacher_topk <= topk:
        raise UsageError(
            f"--teacher-topk must be in 1..{topk}, of the {topk} most probable symbols that {flag} holds, but is "
            f"{cfg.teacher_topk}{' (the whole distribution)' if cfg.teacher_topk == 0 else ''}: change it, or make the cache "
            "with --keep hidden"
        )
    if cfg.teacher_temperature != 1.0 and str(cfg.teacher_tail) == "bucket":
        raise UsageError(
            f"--teacher-temperature {cfg.teacher_temperature} changes the tail's probability by what {flag} does not hold: use "
            "--teacher-tail dropped, or make the cache with --keep hidden"
        )
