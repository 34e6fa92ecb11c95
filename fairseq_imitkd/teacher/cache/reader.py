"""A cache of the teacher's answers, used in the teacher's place: no teacher is in memory."""

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

from fairseq_imitkd.data.batch_type import Batch
from fairseq_imitkd.errors import RefusedUpdate, UsageError
from fairseq_imitkd.method.method import Method
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

STEP = 8  # float32 numbers between two symbols; fewer could become one number by --teacher-temperature
TOLERANCE = 0.02  # how far half-precision probabilities may sum to something else than 1


@dataclass(frozen=True)
class TopKLogits:
    """Distributions at ``N`` positions. Only the ``K`` most probable symbols of each are stored.

    Args:
        symbols: ``(N, K)`` int64, the most probable symbols, best first.
        lprobs: ``(N, K)``, their log-probabilities.
        tail: ``(N,)``, the logarithm of the total probability of all other symbols.
        size: number of symbols ``V``, more than ``K``.
    """

    symbols: Tensor
    lprobs: Tensor
    tail: Tensor
    size: int

    def logits(self, positions: slice) -> Tensor:
        """See :class:`~fairseq_imitkd.models.logits.TokenLogits`: log-probabilities, with the tail spread
        evenly.

        The symbols are in the stored order, and those of the tail come after them. Without the order,
        log-probabilities that half precision rounds to one value would be a tie.
        """
        symbols, lprobs = self.symbols[positions], self.lprobs[positions]
        each = self.tail[positions].unsqueeze(-1) - math.log(self.size - symbols.size(-1))
        ordered = falling(torch.cat([lprobs, each], dim=-1))
        return ordered[:, -1:].repeat(1, self.size).scatter_(-1, symbols, ordered[:, :-1])

    def at(self, positions: Tensor) -> "TopKLogits":
        """See :class:`~fairseq_imitkd.models.logits.TokenLogits`."""
        return TopKLogits(self.symbols[positions], self.lprobs[positions], self.tail[positions], self.size)


def falling(values: Tensor) -> Tensor:
    """Lower values so that each row falls, by :data:`STEP` representable numbers at each place or more.

    Args:
        values: ``(N, K)`` float32. Rows that fall are returned unchanged, and so are values of ``-inf``.
    """
    bits, largest = values.view(torch.int32), torch.iinfo(torch.int32).max
    order = torch.where(bits < 0, bits ^ largest, bits)  # whole numbers in the order of the values
    steps = STEP * torch.arange(values.size(-1), dtype=torch.int32, device=values.device)
    order = (order + steps).cummin(dim=-1).values - steps
    lowered = torch.where(order < 0, order ^ largest, order).view(torch.float32)
    return torch.where(values.isinf(), values, lowered)


class CachedTeacher:
    """A :class:`~fairseq_imitkd.teacher.teacher.Teacher` that reads its answers from a cache.

    It has answers only for sentences that keep their reference.

    Args:
        folder: a complete cache.
        manifest: its ``cache.json``.
        pad: index of the padding symbol in the target dictionary.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], pad: int):
        self.folder, self.pad = folder, pad
        check_manifest(manifest, folder / MANIFEST)
        self.symbols: int = manifest["symbols"]
        self._offsets = open_offsets(folder, manifest)
        shapes = token_arrays(
            manifest["topk"],
            manifest["dtype"],
            manifest["tokens"],
            symbols=self.symbols,
            width=manifest["width"],
        )
        self._arrays = {name: open_array(folder, name, shape) for name, shape in shapes.items()}
        shape_of = {"weight": (self.symbols, manifest["width"]), "bias": (self.symbols,)}
        # The output matrix and, if there is one, its bias; a cache of hidden states has them.
        self._projection = [
            as_tensor(np.array(open_array(folder, name, (shape_of[name], np.float32))))
            for name in manifest["projection"]
        ]
        self._shards: list[int] = manifest.get("shards") or [manifest["sentences"]]
        self._first = 0  # number of the first sentence of the directory that this epoch reads
        source, target = manifest["max_positions"]
        self.max_positions: tuple[int, int] = (source, target)
        self._device: torch.device | None = None
        self._dtype: torch.dtype | None = None

    def place(self, device: torch.device, student_dtype: torch.dtype) -> None:
        """Return the answers on the student's device from now on.

        The first call also fixes the precision of hidden states, as with ``--teacher-dtype auto``.
        """
        if self._device != device:
            self._device, self._dtype = device, self._dtype or student_dtype
            self._projection = [part.to(device, self._dtype) for part in self._projection]

    def begin_epoch(self, epoch: int) -> None:
        """Answer about the directory of ``DATA`` that an epoch (1 = first) reads; fairseq takes turns."""
        self._first = sum(self._shards[: (epoch - 1) % len(self._shards)])

    @property
    def writer(self) -> Ensemble:
        """An empty ensemble: methods that write sentences refuse a cache."""
        return Ensemble([], torch.empty(0))

    def encode(self, sample: Batch, *, cacheable: bool = True) -> list[Any]:
        """Return an empty list, because :meth:`score` needs no encoder output."""
        return []

    @torch.no_grad()
    def score(
        self,
        sample: Batch,
        encoded: Sequence[Any] | None = None,
        *,
        rows: Tensor | None = None,
        materialise: bool = True,
        log_weights: Tensor | None = None,
        average_logits: bool = False,
    ) -> TokenLogits:
        """Return the stored answers at every prefix of a batch, found by the batch's ``id``.

        Args:
            sample: a batch of ``B`` sentences and ``T`` target positions.
            encoded, rows, materialise, log_weights, average_logits: not used; a live teacher reads them.

        Raises:
            RefusedUpdate: a sentence is absent, or has another length than in the cache.
        """
        ids, counted = sample["id"].cpu() + self._first, sample["target"].ne(self.pad).cpu()
        stored = self._offsets[ids.numpy() + 1] - self._offsets[ids.numpy()]
        lengths = counted.sum(dim=-1).numpy()
        if (stored != lengths).any():
            row = int((stored != lengths).nonzero()[0][0])
            raise RefusedUpdate(
                f"sentence {int(ids[row])} has {lengths[row]} target tokens, but {stored[row]} in "
                f"--teacher-cache '{self.folder}': train on the data that the cache was made from"
            )
        found = places(self._offsets, ids, counted)
        rows_found = {name: array[found] for name, array in self._arrays.items()}
        self._check(rows_found, np.repeat(ids.numpy(), lengths))
        values = {name: self._at_tokens(array, counted.flatten()) for name, array in rows_found.items()}
        if self._projection:
            return ProjectedLogits(values["features"].to(self._device, self._dtype), *self._projection)
        lprobs, tail = (values[name].to(self._device, torch.float32) for name in ("lprobs", "tail"))
        return TopKLogits(values["symbols"].to(self._device), lprobs, tail, self.symbols)

    def _check(self, found: dict[str, np.ndarray], sentences: np.ndarray) -> None:
        """Refuse rows that were never written, or that are damaged."""
        if "features" in found:
            bad = ~found["features"].any(axis=-1)
        else:
            total = np.exp(found["lprobs"].astype(np.float32)).sum(axis=-1)
            total += np.exp(found["tail"].astype(np.float32))
            rises = (found["lprobs"][:, 1:] > found["lprobs"][:, :-1]).any(axis=-1)
            strange = (found["symbols"] >= self.symbols).any(axis=-1)
            bad = ~(np.abs(total - 1.0) < TOLERANCE) | strange | rises
        if bad.any():
            raise RefusedUpdate(
                f"--teacher-cache '{self.folder}' is damaged: its values for sentence "
                f"{sentences[bad.argmax()]} are not a teacher's answer; {REMEDY}"
            )

    @staticmethod
    def _at_tokens(values: np.ndarray, counted: Tensor) -> Tensor:
        """Return values of counted positions as a tensor over all ``B * T`` positions, 0 at padding."""
        read = as_tensor(values)
        grid = read.new_zeros((counted.numel(), *read.shape[1:]))
        grid[counted] = read
        return grid


def refuse_teacher_flags(cfg: Any, defaults: FairseqDataclass) -> None:
    """Refuse the flags that describe a live teacher, because a cache already holds its answers.

    Raises:
        UsageError: naming the flag.
    """
    for item in fields(defaults):
        value = getattr(cfg, item.name)
        describes_teacher = item.name.startswith("teacher_") and item.name != "teacher_cache"
        if describes_teacher and str(value) != str(getattr(defaults, item.name)):
            flag = f"--{item.name.replace('_', '-')} {value}"
            raise UsageError(
                f"{flag} changes nothing with --teacher-cache, which holds the answers: leave one of them out"
            )


def open_cache(folder: str, task: TranslationTask, method: Method) -> CachedTeacher:
    """Open the cache of ``--teacher-cache``. Check that it was made from this run's data and holds enough for
    its method.

    Args:
        folder: a folder that ``imitkd-cache`` wrote.
        task: the task; its training data, dictionaries and settings must be the cache's.
        method: the method.

    Raises:
        UsageError: the cache is not complete, was made from other data, or holds too little for the method.
    """
    flag, path = f"--teacher-cache '{folder}'", Path(folder)
    manifest = read_json(path / MANIFEST)
    if manifest is None:
        if os.path.exists(path / PROGRESS):
            raise UsageError(f"{flag} is not complete: run its imitkd-cache command again, which resumes it")
        raise UsageError(f"{flag} holds no {MANIFEST}: give a folder that imitkd-cache wrote")
    upsample = getattr(task.cfg, "upsample_primary", -1)
    if upsample not in (-1, 1):
        raise UsageError(
            f"--upsample-primary {upsample} gives sentences other ids than in {flag}: leave it out"
        )
    unlike = difference(manifest, data_identity(task, str(task.cfg.train_subset)))
    if unlike is not None:
        raise UsageError(
            f"{flag} was made from other data than this run's: {unlike}; run imitkd-cache on the data that "
            "you train on"
        )
    check_manifest(manifest, path / MANIFEST)
    _check_method(method, manifest["topk"], flag)
    logger.info(
        "teacher cache %s: %d tokens, %d sentences too long", folder, manifest["tokens"], manifest["absent"]
    )
    return CachedTeacher(path, manifest, task.target_dictionary.pad())


def _check_method(method: Method, topk: int, flag: str) -> None:
    """Refuse a method that needs more than a cache holds.

    Args:
        method: the method.
        topk: number of most probable symbols in the cache; 0 for hidden states, which give all logits.
        flag: ``--teacher-cache`` with its value, for messages.
    """
    cfg = method.cfg
    if method.matches_hidden:
        raise UsageError(
            f"--hidden-match {cfg.hidden_match} needs outputs of the teacher's encoder, which are not in "
            f"{flag}: use --teacher-path"
        )
    if method.writes:
        cause, remedy = f"--student-share {cfg.student_share}", "add --student-share 0"
        if method.teacher_samples:
            cause, remedy = "--teacher-samples", "leave it out"
        raise UsageError(
            f"{cause} writes new sentences, for which {flag} has no answers: {remedy} or use --teacher-path"
        )
    if topk == 0:
        return
    # A symbol's own probability is known only if it is among the best, and a logit never is.
    if method.compares_logits or method.reads_token_probabilities:
        exact = " --js-weights exact" if "mixture_weight" in method.divergence_inputs else ""
        raise UsageError(
            f"--divergence {cfg.divergence}{exact} needs more of the teacher than the {topk} most probable "
            f"symbols that {flag} holds: make the cache with --keep hidden"
        )
    if cfg.divergence == "teacher-argmax":  # the best symbol is enough
        return
    if not 1 <= cfg.teacher_topk <= topk:
        raise UsageError(
            f"--teacher-topk must be in 1..{topk}, because {flag} holds the {topk} most probable symbols, "
            f"but is {cfg.teacher_topk}{' (the whole distribution)' if cfg.teacher_topk == 0 else ''}: "
            "change it, or make the cache with --keep hidden"
        )
    if cfg.teacher_temperature != 1.0 and str(cfg.teacher_tail) == "bucket":
        raise UsageError(
            f"--teacher-temperature {cfg.teacher_temperature} changes the tail's probability, which {flag} "
            "does not hold at other temperatures: use --teacher-tail dropped, or make the cache with --keep "
            "hidden"
        )
