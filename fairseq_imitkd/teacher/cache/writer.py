"""``imitkd-cache``: asks the teacher about every sentence of a split once and writes its answers to files."""

import logging
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from fairseq import utils
from fairseq.data import ConcatDataset, LanguagePairDataset, data_utils
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from torch import Tensor

from fairseq_imitkd import vocab_ops
from fairseq_imitkd.data.bars import Bar
from fairseq_imitkd.data.corpus import Languages, check_sentences, read_split
from fairseq_imitkd.data.files import sha256
from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.data.output_folder import OutputFolder
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.models.access import output_projection
from fairseq_imitkd.models.logits import ProjectedLogits, TokenLogits, chunk_size, full_precision
from fairseq_imitkd.teacher.cache.format import (
    FORMAT,
    MANIFEST,
    PROGRESS,
    REMEDY,
    Shapes,
    bytes_a_token,
    data_identity,
    open_array,
    places,
    token_arrays,
)
from fairseq_imitkd.teacher.cache.reader import CachedTeacher
from fairseq_imitkd.teacher.likelihood import check_likelihood
from fairseq_imitkd.teacher.loading import load_teacher
from fairseq_imitkd.teacher.source import TeacherSource, check_files, parse_weights
from fairseq_imitkd.teacher.teacher import Teacher

logger = logging.getLogger(__name__)

RESERVED_AT_ONCE = 1 << 20  # bytes
SAVE_SECONDS = 2.0  # between two writes of the progress file; a kill costs at most that much work

Projection = tuple[Tensor, Tensor | None]  # weight (V, D) and bias (V,) that make logits of hidden states


@dataclass(frozen=True)
class CacheRequest:
    """The flags of ``imitkd-cache``.

    Args:
        data: fairseq's data directory.
        teacher_path: checkpoints joined by ``:``, whose probabilities are averaged.
        out: the folder of the cache.
        keep: ``topk:K`` or ``hidden``.
        gen_subset: the split.
        dtype: precision of the numbers in the cache, ``fp16`` or ``fp32``.
        max_tokens: most tokens in a batch, padding included.
        device: device of the teacher.
        source_lang, target_lang: the languages; None reads them from the names of the data files.
        truncate_source: cut sources at ``max_source_positions``, as training on the cache will.
        max_source_positions: most tokens of a source that is cut.
        teacher_dtype, teacher_weights, teacher_data, teacher_allow_globals: as in training with a live
            teacher.
        teacher_allow_poor: as in training.
    """

    data: str
    teacher_path: str
    out: str
    keep: str
    gen_subset: str = "train"
    dtype: str = "fp16"
    max_tokens: int = 8000
    device: str = "cpu"
    source_lang: str | None = None
    target_lang: str | None = None
    truncate_source: bool = False
    max_source_positions: int = 1024
    teacher_dtype: str = "fp32"
    teacher_weights: str | None = None
    teacher_data: str | None = None
    teacher_allow_globals: str | None = None
    teacher_allow_poor: bool = False


def write_cache(request: CacheRequest) -> dict[str, Any]:
    """Write a cache, or resume an interrupted one; it is complete when ``cache.json`` is there.

    A killed run is resumed after the last batch that the progress file counts. The result is the same
    to the byte as that of an uninterrupted run.

    Returns:
        the manifest.

    Raises:
        UsageError: a file, flag or teacher can't be used, the folder is another's, or the disk is full.
    """
    topk = parse_keep(request.keep)
    check_files(request.teacher_path)
    languages = Languages.of(Path(request.data), request.source_lang, request.target_lang)
    task = _task(request, languages)
    symbols = len(task.target_dictionary)
    if topk >= symbols:
        raise UsageError(
            f"--keep topk:{topk} must be below the target dictionary's {symbols} symbols; "
            "lower it, or keep hidden"
        )
    identity = _identity(request, topk, task)
    folder = OutputFolder(Path(request.out), "a teacher cache", marks=(MANIFEST, PROGRESS), resumes=True)
    folder.check(identity)
    with folder.errors(), folder.lock():
        folder.check(identity)  # another run may have written to it in the meantime
        complete = folder.read(MANIFEST)
        if complete is not None:
            _remove_progress(folder)
            CachedTeacher(
                folder.path, complete, task.target_dictionary.pad()
            )  # checks that all files are there
            return complete
        return _Writer(request, identity, folder, task=task, languages=languages).write()


def parse_keep(text: str) -> int:
    """Parse ``--keep``: ``K`` of ``topk:K``, or 0 for ``hidden``.

    Raises:
        UsageError: the text is neither.
    """
    if text == "hidden":
        return 0
    count = re.fullmatch(r"topk:([1-9]\d{0,8})", text)
    if not count:
        raise UsageError(
            f"--keep must be hidden or topk:K with K of 1 or more, such as topk:8, but is '{text}'"
        )
    return int(count[1])


def _task(request: CacheRequest, languages: Languages) -> TranslationTask:
    """Return fairseq's translation task for the data, without its sentences, whose files are checked."""
    corpus = read_split(languages, request.gen_subset)
    if corpus.references is None:
        raise UsageError(
            f"--gen-subset {request.gen_subset} of DATA '{languages.folder}' has no target side; use another"
        )
    corpus.warn_of_other_subwords(languages, request.gen_subset)
    cfg = TranslationConfig(
        data=request.data,
        source_lang=languages.source,
        target_lang=languages.target,
        truncate_source=request.truncate_source,
        max_source_positions=request.max_source_positions,
        train_subset=request.gen_subset,
        dataset_impl=None,
        required_seq_len_multiple=1,
    )
    return TranslationTask.setup_task(cfg)


def _identity(request: CacheRequest, topk: int, task: TranslationTask) -> dict[str, Any]:
    """Return everything that decides the numbers in a cache, by content and not by the names of files."""
    return {
        "format": FORMAT,
        "kind": "topk" if topk else "hidden",
        "topk": topk,
        "dtype": request.dtype,
        "teacher_sha256": [sha256(path) for path in request.teacher_path.split(os.pathsep)],
        "teacher_weights": parse_weights(request.teacher_weights, request.teacher_path),
        "teacher_dtype": request.teacher_dtype,
        **data_identity(task, request.gen_subset),
        "max_tokens": request.max_tokens,
    }


def _sentences(task: TranslationTask, request: CacheRequest) -> tuple[LanguagePairDataset, list[int]]:
    """Read the sentences of all directories of ``DATA``, one after another, and their numbers."""
    parts = []
    for epoch in range(1, len(utils.split_paths(request.data)) + 1):  # an epoch reads one directory
        task.load_dataset(request.gen_subset, epoch=epoch)
        parts.append(task.dataset(request.gen_subset))
    shards = [len(part) for part in parts]
    if len(parts) == 1:
        return parts[0], shards
    source, target = (ConcatDataset([getattr(part, side) for part in parts]) for side in ("src", "tgt"))
    first = parts[0]
    joined = LanguagePairDataset(
        source,
        source.sizes,
        first.src_dict,
        target,
        target.sizes,
        first.tgt_dict,
        left_pad_source=first.left_pad_source,
        left_pad_target=first.left_pad_target,
        eos=first.eos,
    )
    return joined, shards


def _remove_progress(folder: OutputFolder) -> None:
    """Delete the progress file and the leftovers of interrupted writes."""
    (folder.path / PROGRESS).unlink(missing_ok=True)
    folder.remove_leftovers()


class _Writer:
    """Writes the files of one cache into a locked folder. The teacher and the sentences are loaded at once.

    Args:
        request: the flags.
        identity: what distinguishes the cache from others.
        folder: the folder.
        task: the translation task of the data.
        languages: the languages and dictionaries of the data.
    """

    def __init__(
        self,
        request: CacheRequest,
        identity: dict[str, Any],
        folder: OutputFolder,
        *,
        task: TranslationTask,
        languages: Languages,
    ):
        self.request, self.identity, self.folder, self.languages = request, identity, folder, languages
        self.topk: int = identity["topk"]
        self.symbols = len(task.target_dictionary)
        self.teacher = _teacher(request, task)
        self.projection = self._projection()
        self.dataset, self.shards = _sentences(task, request)
        self.plan = _plan(self.dataset, self.teacher.max_positions, request)
        check_likelihood(
            self.teacher,
            self.dataset,
            paths=request.teacher_path.split(os.pathsep),
            pad=task.target_dictionary.pad(),
            symbols=self.symbols,
            allow_poor=request.teacher_allow_poor,
        )
        self.tokens = int(self.plan.offsets[-1])
        self.width = self.projection[0].size(1) if self.projection is not None else 0

    def write(self) -> dict[str, Any]:
        """Write everything that is not yet there, and return the manifest."""
        shapes = token_arrays(
            self.topk, self.request.dtype, self.tokens, symbols=self.symbols, width=self.width
        )
        done = self._batches_done()
        if done is None:
            self._create(shapes, {"offsets": self.plan.offsets, **_numbers(self.projection)})
        self._fill(
            {name: open_array(self.folder.path, name, shape, mode="r+") for name, shape in shapes.items()},
            done or 0,
        )
        manifest = {
            **self.identity,
            "symbols": self.symbols,
            "width": self.width,
            "projection": [*_numbers(self.projection)],
            "sentences": len(self.dataset),
            **({"shards": self.shards} if len(self.shards) > 1 else {}),
            "absent": len(self.dataset) - sum(map(len, self.plan.batches)),
            "tokens": self.tokens,
            "bytes_a_token": bytes_a_token(shapes),
            "max_positions": list(self.teacher.max_positions),
        }
        self.folder.write_json(MANIFEST, manifest)
        _remove_progress(self.folder)
        return manifest

    def _projection(self) -> Projection | None:
        """Return the output projection that hidden states need; None if the cache keeps symbols."""
        if self.topk:
            return None
        models = self.teacher.models
        projection = output_projection(models[0].decoder) if len(models) == 1 else None
        if projection is None:
            raise UsageError(
                "--keep hidden needs one teacher whose logits are a matrix times its hidden states, but "
                f"--teacher-path '{self.request.teacher_path}' is not; use --keep topk:K"
            )
        return projection

    def _batches_done(self) -> int | None:
        """Return how many batches an interrupted run has written; None if the files are not yet there."""
        done = (self.folder.read(PROGRESS) or {}).get("batches")
        if done is not None and (type(done) is not int or not 0 <= done <= len(self.plan.batches)):
            path = self.folder.path / PROGRESS
            raise UsageError(f"'{path}' is damaged, its batches is {str(done)[:50]!r}: {REMEDY}")
        return done

    def _save_progress(self, batches: int | None) -> None:
        self.folder.write_json(PROGRESS, {**self.identity, "batches": batches})

    def _create(self, shapes: Shapes, complete: dict[str, np.ndarray]) -> None:
        """Create all files at their full size, or none of them.

        Args:
            shapes: arrays that are filled later.
            complete: arrays whose values are known.
        """
        paths = {name: self.folder.path / f"{name}.npy" for name in (*complete, *shapes)}
        try:
            self._save_progress(None)
            for name, array in complete.items():
                with open(paths[name], "wb") as file:
                    np.save(file, array)
                    file.flush()
                    os.fsync(file.fileno())
            for name, (shape, dtype) in shapes.items():
                np.lib.format.open_memmap(paths[name], mode="w+", dtype=dtype, shape=shape).flush()
                with open(paths[name], "r+b") as file:
                    _reserve(file)
                    file.flush()
                    os.fsync(file.fileno())
            self._save_progress(0)
        except OSError:
            for path in paths.values():
                path.unlink(missing_ok=True)
            _remove_progress(self.folder)
            raise

    def _fill(self, arrays: dict[str, np.ndarray], done: int) -> None:
        """Ask the teacher about all batches but the first ``done``, and save the progress now and then."""
        lengths = np.diff(self.plan.offsets)
        tokens = [int(lengths[batch].sum()) for batch in self.plan.batches]
        saved = time.monotonic()
        with Bar(
            total=sum(tokens),
            initial=sum(tokens[:done]),
            unit="token",
            unit_scale=True,
            desc=self.folder.path.name,
        ) as bar:
            for number in range(done, len(tokens)):
                self._fill_batch(arrays, self.plan.batches[number])
                bar.update(tokens[number])
                if time.monotonic() - saved >= SAVE_SECONDS or number + 1 == len(tokens):
                    for array in arrays.values():
                        array.flush()  # type: ignore[attr-defined]  # they are memory-mapped
                    self._save_progress(number + 1)
                    saved = time.monotonic()

    def _fill_batch(self, arrays: dict[str, np.ndarray], numbers: np.ndarray) -> None:
        """Write the teacher's answers to the sentences of one batch into the arrays."""
        rows = [self.dataset[number] for number in numbers]
        for side, dictionary, language in (
            ("source", self.languages.source_dictionary, self.languages.source),
            ("target", self.languages.target_dictionary, self.languages.target),
        ):
            sentences = [row[side] for row in rows]
            check_sentences(numbers.tolist(), sentences, dictionary, language=language)
        sample = self.dataset.collater(rows)
        counted, ids = sample["target"].ne(self.dataset.tgt_dict.pad()), sample["id"]
        if self.teacher.log_weights.is_cuda:
            sample = utils.move_to_cuda(sample)
        at = places(self.plan.offsets, ids, counted)
        for name, values in _answers(self.teacher, sample, counted, topk=self.topk).items():
            with np.errstate(over="ignore"):
                answers = values.cpu().numpy().astype(arrays[name].dtype)
            # A symbol may have no probability at all; every other number of a sound teacher is finite.
            broken = np.isnan(answers) if self.topk else ~np.isfinite(answers)
            if broken.any():
                sentence = int(ids[counted.nonzero(as_tuple=True)[0]][broken.nonzero()[0][0]])
                raise UsageError(
                    f"the teacher's answers to sentence {sentence} are not finite in {self.request.dtype}: "
                    "--teacher-path is damaged, or needs --dtype fp32 or --teacher-dtype fp32"
                )
            arrays[name][at] = answers


def _teacher(request: CacheRequest, task: TranslationTask) -> Teacher:
    source = TeacherSource(
        request.teacher_path,
        dtype=request.teacher_dtype,
        data=request.teacher_data,
        allow_globals=request.teacher_allow_globals,
        weights=parse_weights(request.teacher_weights, request.teacher_path),
    )
    teacher = load_teacher(source, LanguagePair.from_task(task))
    teacher.place(torch.device(request.device), torch.float32)
    return teacher


@dataclass(frozen=True)
class _Plan:
    """The batches, and where their tokens go.

    Args:
        batches: sentence numbers of each batch.
        offsets: ``(sentences + 1,)``, the first token of each sentence in the arrays.
    """

    batches: list[np.ndarray]
    offsets: np.ndarray


def _plan(dataset: LanguagePairDataset, max_positions: tuple[int, int], request: CacheRequest) -> _Plan:
    """Make batches of similar length, the longest first: a batch that does not fit in memory fails at once.

    The batches depend on the data and the flags only.
    """
    sources, targets = dataset.src_sizes, dataset.tgt_sizes
    # Sentences that are too long for the teacher are left out, as in training with a live teacher.
    fits = (sources <= max_positions[0]) & (targets <= max_positions[1])
    order = np.lexsort((sources, targets))[::-1].astype(np.int64)
    order = order[fits[order]]
    if order.size == 0:
        raise UsageError(
            f"--gen-subset {request.gen_subset} has no sentence that the teacher can take; use another"
        )
    longest = np.maximum(sources, targets)[order].astype(np.int64)
    if longest.max() > request.max_tokens:
        raise UsageError(
            f"--max-tokens {request.max_tokens} is less than the longest sentence's {longest.max()} tokens; "
            "raise it to that"
        )
    batches = data_utils.batch_by_size(order, None, num_tokens_vec=longest, max_tokens=request.max_tokens)
    offsets = np.concatenate([[0], np.where(fits, targets, 0).cumsum()]).astype(np.int64)
    return _Plan(list(batches), offsets)


def _numbers(projection: Projection | None) -> dict[str, np.ndarray]:
    """Return the arrays of an output projection by name."""
    named = zip(("weight", "bias"), projection or (), strict=False)
    return {name: part.float().cpu().numpy() for name, part in named if part is not None}


def _reserve(file: BinaryIO) -> None:
    """Allocate all of a sparse file on the disk.

    On a full disk, a write to a memory-mapped page that has no room yet kills the process without a message.
    """
    size = os.fstat(file.fileno()).st_size
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for start in range(0, size, RESERVED_AT_ONCE):  # macOS has no posix_fallocate
        file.seek(start)
        content = file.read(RESERVED_AT_ONCE)
        file.seek(start)
        file.write(content)


def _answers(teacher: Teacher, sample: dict[str, Any], counted: Tensor, *, topk: int) -> dict[str, Tensor]:
    """Return what the cache keeps of the teacher's scores for a batch.

    Args:
        teacher: the teacher.
        sample: the batch.
        counted: ``(B, T)`` bool, the ``n`` target tokens that are not padding.
        topk: ``K``, or 0 for hidden states.

    Returns:
        by name, ``n`` rows of each array.
    """
    positions = counted.flatten().nonzero().squeeze(-1).to(teacher.log_weights.device)
    scores = teacher.score(sample, materialise=False).at(positions)
    if topk == 0:
        assert isinstance(scores, ProjectedLogits)
        return {"features": scores.features.float()}
    symbols = scores.logits(slice(0, 1)).size(-1)
    chunk = chunk_size(positions.numel(), symbols, positions.device) or positions.numel()
    return most_probable(scores, positions.numel(), topk, chunk=chunk)


def most_probable(scores: TokenLogits, positions: int, topk: int, *, chunk: int) -> dict[str, Tensor]:
    """Return the most probable symbols at each position, and the probability that all others have together.

    Args:
        scores: the teacher's scores at ``n`` positions.
        positions: ``n``, 1 or more.
        topk: ``K``, below the number of symbols.
        chunk: positions whose logits are in memory at the same time.

    Returns:
        ``symbols`` ``(n, K)`` int64, the best first, of equals the first in the dictionary; ``lprobs``
        ``(n, K)``, their log-probabilities; ``tail`` ``(n,)``, the logarithm of the others' probability. In
        float32, or float64 for float64 scores.
    """
    parts = []
    for start in range(0, positions, chunk):
        logits = full_precision(scores.logits(slice(start, start + chunk)))
        whole = logits.logsumexp(dim=-1, keepdim=True)
        # A live teacher's symbols are chosen by logits too; log-probabilities round more of them to equals.
        best, symbols = _best_symbols(logits, topk)
        others = logits.scatter(-1, symbols, float("-inf")).logsumexp(dim=-1)
        parts.append((symbols, best - whole, others - whole.squeeze(-1)))
    return {
        name: torch.cat(part)
        for name, part in zip(("symbols", "lprobs", "tail"), zip(*parts, strict=True), strict=True)
    }


def _best_symbols(logits: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """Return the greatest logits ``(n, K)`` and their symbols.

    Of equal logits, the first in the dictionary comes first, so the first symbol is a live teacher's most
    probable one. ``Tensor.topk`` has any order.
    """
    symbols = logits.topk(topk, dim=-1).indices.sort(dim=-1).values
    best, places = logits.gather(-1, symbols).sort(dim=-1, descending=True, stable=True)
    symbols = symbols.gather(-1, places)
    # If more than K symbols are the best together, the very first may not be among the K.
    first = vocab_ops.most_probable(logits).unsqueeze(-1)
    shifted = torch.cat([first, symbols[:, :-1]], dim=-1)
    return best, torch.where(symbols[:, :1] == first, symbols, shifted)
