"""Asks the teacher about every sentence of a split, once, in an order and in batches that depend on nothing but the data."""

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from fairseq import utils
from fairseq.data import LanguagePairDataset, data_utils
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from torch import Tensor
from tqdm import tqdm

from fairseq_imitkd.checkpoints.safe_load import check_files, parse_weights
from fairseq_imitkd.data.corpus import Languages, check_sentences, of_split
from fairseq_imitkd.data.files import alone, is_left_over, sha256, write_json
from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.losses.chunked import chunk_size
from fairseq_imitkd.models.access import output_projection
from fairseq_imitkd.models.logits import ProjectedLogits, TokenLogits, full_precision
from fairseq_imitkd.teacher.cache.format import (
    FORMAT,
    MANIFEST,
    PROGRESS,
    REMEDY,
    Shapes,
    bytes_a_token,
    data_identity,
    difference,
    open_array,
    places,
    read_json,
    token_arrays,
)
from fairseq_imitkd.teacher.cache.reader import CachedTeacher
from fairseq_imitkd.teacher.loading import load_teacher
from fairseq_imitkd.teacher.teacher import Teacher

logger = logging.getLogger(__name__)

RESERVED_AT_ONCE = 1 << 20  # bytes
SAVE_SECONDS = 2.0  # between two notes of what is done; a kill costs at most that much work


@dataclass(frozen=True)
class CacheRequest:
    """What a cache is to be of.

    Args:
        data: fairseq's data folder.
        teacher_path: checkpoints joined by ``:``, whose probabilities are averaged.
        out: the cache's folder.
        keep: ``topk:K`` or ``hidden``.
        gen_subset: the split.
        dtype: of the numbers in the cache, ``fp16`` or ``fp32``.
        max_tokens: of a batch, padding included.
        device: where the teacher runs.
        source_lang, target_lang: None reads them from the data's file names.
        truncate_source: cut sources at ``max_source_positions``, as training on the cache will.
        teacher_dtype, teacher_weights, teacher_data, teacher_allow_globals: as of training with a live teacher.
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


@dataclass(frozen=True)
class _Plan:
    """Which sentences are asked about together, arrays of their numbers, and where each one's tokens go."""

    batches: list[np.ndarray]
    offsets: np.ndarray


def write_cache(request: CacheRequest) -> dict[str, Any]:
    """Write a cache, or go on with one that was begun. It is complete when ``cache.json`` is there.

    A run that was killed is taken up after the last batch that was noted as done; the files end up the same to the byte.

    Returns:
        the manifest.

    Raises:
        UsageError: a file, a flag or the teacher does not fit, the folder holds something else, or the disk is full.
    """
    topk, folder = parse_keep(request.keep), Path(request.out)
    check_files(request.teacher_path)
    languages = Languages.of(
        Path(request.data.split(os.pathsep)[0]), request.source_lang, request.target_lang
    )
    task = _task(request, languages)
    symbols = len(task.target_dictionary)
    if topk >= symbols:
        raise UsageError(
            f"--keep topk:{topk} must be below the target dictionary's {symbols} symbols: lower it, or keep hidden"
        )
    settings = {
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
    _found(folder, settings)
    with _one_line(folder):
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with alone(folder):
                return _written(request, task, languages, settings, topk)
        finally:
            if is_new:
                with suppress(OSError):  # it has something in it now
                    folder.rmdir()


def _written(
    request: CacheRequest, task: TranslationTask, languages: Languages, settings: dict[str, Any], topk: int
) -> dict[str, Any]:
    """The manifest of a cache in a folder that no other run is writing."""
    folder, symbols = Path(request.out), len(task.target_dictionary)
    complete, done = _found(folder, settings)
    if complete is not None:
        _clean(folder)
        CachedTeacher(folder, complete, task.target_dictionary.pad())  # all is there
        return complete

    teacher = _teacher(request, task)
    projection = (
        output_projection(teacher.models[0].decoder) if topk == 0 and len(teacher.models) == 1 else None
    )
    if topk == 0 and projection is None:
        raise UsageError(
            "--keep hidden needs one teacher whose logits are a matrix times its hidden states, but "
            f"--teacher-path '{request.teacher_path}' is none: use --keep topk:K"
        )
    task.load_dataset(request.gen_subset)
    dataset = task.dataset(request.gen_subset)
    plan = _planned(dataset, teacher.max_positions, request)
    if done is not None and (type(done) is not int or not 0 <= done <= len(plan.batches)):
        raise UsageError(f"'{folder / PROGRESS}' is damaged, its batches is {str(done)[:50]!r}: {REMEDY}")
    width = projection[0].size(1) if projection is not None else 0
    shapes = token_arrays(topk, request.dtype, int(plan.offsets[-1]), symbols, width)
    if done is None:
        _create(folder, settings, shapes, {"offsets": plan.offsets, **_numbers(projection)})
    arrays = {name: open_array(folder, name, *shape, mode="r+") for name, shape in shapes.items()}
    _fill(arrays, teacher, dataset, plan, done or 0, folder, settings, languages)
    manifest = {
        **settings,
        "symbols": symbols,
        "width": width,
        "projection": [*_numbers(projection)],
        "sentences": len(dataset),
        "absent": len(dataset) - sum(map(len, plan.batches)),
        "tokens": int(plan.offsets[-1]),
        "bytes_a_token": bytes_a_token(shapes),
        "max_positions": list(teacher.max_positions),
    }
    write_json(folder / MANIFEST, manifest)
    _clean(folder)
    return manifest


def parse_keep(text: str) -> int:
    """``--keep``: how many of the most probable symbols, or 0 for hidden states.

    Raises:
        UsageError: it is neither.
    """
    if text == "hidden":
        return 0
    count = re.fullmatch(r"topk:([1-9]\d{0,8})", text)
    if not count:
        raise UsageError(
            f"--keep must be hidden or topk:K with K of 1 or more, such as topk:8, but is '{text}'"
        )
    return int(count[1])


def most_probable(scores: TokenLogits, positions: int, topk: int, chunk: int) -> dict[str, Tensor]:
    """What a cache keeps of a distribution: its best symbols, and what all others have together.

    Args:
        scores: of ``n`` positions.
        positions: ``n``, 1 or more.
        topk: ``K``, below the number of symbols.
        chunk: positions whose logits are in memory at once.

    Returns:
        ``symbols`` ``(n, K)`` int64, best first; ``lprobs`` ``(n, K)``, their log-probabilities; ``tail`` ``(n,)``, the
        logarithm of the others' probability. In float32, or float64 of float64.
    """
    parts = []
    for start in range(0, positions, chunk):
        logits = full_precision(scores.logits(slice(start, start + chunk)))
        whole = logits.logsumexp(dim=-1, keepdim=True)
        best, symbols = logits.topk(
            topk, dim=-1
        )  # of logits, as a live teacher's are chosen: less is rounded to equals
        others = logits.scatter(-1, symbols, float("-inf")).logsumexp(dim=-1)
        parts.append((symbols, best - whole, others - whole.squeeze(-1)))
    return {
        name: torch.cat(part)
        for name, part in zip(("symbols", "lprobs", "tail"), zip(*parts, strict=True), strict=True)
    }


def _task(request: CacheRequest, languages: Languages) -> TranslationTask:
    """fairseq's translation of that data, without its sentences, which are seen to be whole."""
    corpus = of_split(languages, request.gen_subset)
    if corpus.references is None:
        raise UsageError(
            f"--gen-subset {request.gen_subset} of DATA_BIN '{languages.folder}' has no target side: choose another"
        )
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


def _teacher(request: CacheRequest, task: TranslationTask) -> Teacher:
    side = LanguagePair.of_task(task)
    weights = parse_weights(request.teacher_weights, request.teacher_path)
    teacher = load_teacher(
        request.teacher_path,
        side,
        request.teacher_dtype,
        request.teacher_data,
        request.teacher_allow_globals,
        weights=weights,
    )
    teacher.place(torch.device(request.device), torch.float32)
    return teacher


def _found(folder: Path, settings: dict[str, Any]) -> tuple[dict[str, Any] | None, Any]:
    """What is in the folder already: a complete cache's manifest, or how many batches are done; Nones if nothing is.

    Raises:
        UsageError: it is something else, which is left as it is.
    """
    complete = read_json(folder / MANIFEST)
    begun = complete or read_json(folder / PROGRESS)
    if begun is None:
        with _one_line(folder):
            is_other = os.path.exists(folder) and (
                not folder.is_dir() or not all(map(is_left_over, folder.iterdir()))
            )
        if is_other:
            raise UsageError(
                f"--out '{folder}' is there and no teacher cache: name a folder that is new or empty"
            )
        return None, None
    unlike = difference(begun, settings)
    if unlike is not None:
        raise UsageError(
            f"--out '{folder}' is a cache of other settings: {unlike}; name another folder, or delete this one"
        )
    return complete, begun.get("batches")


def _planned(dataset: LanguagePairDataset, max_positions: tuple[int, int], request: CacheRequest) -> _Plan:
    """Batches of like length, the longest first: what does not fit in memory shows at once."""
    sources, targets = dataset.src_sizes, dataset.tgt_sizes
    fits = (sources <= max_positions[0]) & (
        targets <= max_positions[1]
    )  # as fairseq leaves out what is too long to train on
    order = np.lexsort((sources, targets))[::-1].astype(np.int64)
    order = order[fits[order]]
    if order.size == 0:
        raise UsageError(
            f"--gen-subset {request.gen_subset} has no sentence that the teacher can take: choose another"
        )
    longest = np.maximum(sources, targets)[order].astype(np.int64)
    if longest.max() > request.max_tokens:
        raise UsageError(
            f"--max-tokens {request.max_tokens} is less than the longest sentence's {longest.max()} tokens: raise it to that"
        )
    batches = data_utils.batch_by_size(order, None, num_tokens_vec=longest, max_tokens=request.max_tokens)
    offsets = np.concatenate([[0], np.where(fits, targets, 0).cumsum()]).astype(np.int64)
    return _Plan(list(batches), offsets)


def _numbers(projection: tuple[Tensor, Tensor | None] | None) -> dict[str, np.ndarray]:
    """An output projection's arrays by name."""
    named = zip(("weight", "bias"), projection or (), strict=False)
    return {name: part.float().cpu().numpy() for name, part in named if part is not None}


def _create(folder: Path, settings: dict[str, Any], shapes: Shapes, whole: dict[str, np.ndarray]) -> None:
    """The cache's files at their full size, and the note that no batch is done. All of them, or none."""
    progress = folder / PROGRESS
    paths = {name: folder / f"{name}.npy" for name in (*whole, *shapes)}
    try:
        write_json(progress, {**settings, "batches": None})
        for name, array in whole.items():
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
        write_json(progress, {**settings, "batches": 0})
    except OSError:
        for path in paths.values():
            path.unlink(missing_ok=True)
        _clean(folder)
        raise


def _reserve(file: BinaryIO) -> None:
    """Take all of a sparse file's room on the disk: to write to a mapped page that has none kills a process without a word."""
    size = os.fstat(file.fileno()).st_size
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for start in range(0, size, RESERVED_AT_ONCE):  # macOS
        file.seek(start)
        content = file.read(RESERVED_AT_ONCE)
        file.seek(start)
        file.write(content)


def _clean(folder: Path) -> None:
    """Away with the notes of what is done, and with one that was being written when an earlier command was killed."""
    for name in (PROGRESS, *(path.name for path in folder.glob("*.partial"))):
        (folder / name).unlink(missing_ok=True)


def _fill(
    arrays: dict[str, np.ndarray],
    teacher: Teacher,
    dataset: LanguagePairDataset,
    plan: _Plan,
    done: int,
    folder: Path,
    settings: dict[str, Any],
    languages: Languages,
) -> None:
    """Ask about all batches but the first ``done``, and note now and then how many are on the disk."""
    lengths, pad = np.diff(plan.offsets), dataset.tgt_dict.pad()
    tokens = [int(lengths[batch].sum()) for batch in plan.batches]
    saved = time.monotonic()
    with tqdm(
        total=sum(tokens), initial=sum(tokens[:done]), unit="token", unit_scale=True, desc=folder.name
    ) as bar:
        for number in range(done, len(tokens)):
            rows, ids_of_batch = (
                [dataset[index] for index in plan.batches[number]],
                plan.batches[number].tolist(),
            )
            for side, dictionary, language in (
                ("source", languages.source_dictionary, languages.source),
                ("target", languages.target_dictionary, languages.target),
            ):
                check_sentences(ids_of_batch, [row[side] for row in rows], dictionary, language)
            sample = dataset.collater(rows)
            counted, ids = sample["target"].ne(pad), sample["id"]
            if teacher.log_weights.is_cuda:
                sample = utils.move_to_cuda(sample)
            answers = _answers(teacher, sample, counted, settings["topk"])
            of_sentence = ids[counted.nonzero(as_tuple=True)[0]]
            for name, values in answers.items():
                with np.errstate(over="ignore"):
                    numbers = values.cpu().numpy().astype(arrays[name].dtype)
                # A symbol may have no probability at all; nothing else of a sound teacher is infinite.
                broken = np.isnan(numbers) if settings["topk"] else ~np.isfinite(numbers)
                if broken.any():
                    sentence = int(of_sentence[broken.nonzero()[0][0]])
                    raise UsageError(
                        f"the teacher's answers to sentence {sentence} are no finite numbers in {settings['dtype']}: "
                        "--teacher-path is damaged, or needs --dtype fp32 or --teacher-dtype fp32"
                    )
                arrays[name][places(plan.offsets, ids, counted)] = numbers
            bar.update(tokens[number])
            if time.monotonic() - saved >= SAVE_SECONDS or number + 1 == len(tokens):
                for array in arrays.values():
                    array.flush()  # type: ignore[attr-defined]  # they are memory-mapped
                write_json(folder / PROGRESS, {**settings, "batches": number + 1})
                saved = time.monotonic()


def _answers(teacher: Teacher, sample: dict[str, Any], counted: Tensor, topk: int) -> dict[str, Tensor]:
    """What the cache keeps of the teacher's scores at a batch's tokens, ``counted`` ``(B, T)``: ``n`` rows of each array."""
    positions = counted.flatten().nonzero().squeeze(-1).to(teacher.log_weights.device)
    scores = teacher.score(sample, whole=False).at(positions)
    if topk == 0:
        assert isinstance(scores, ProjectedLogits)
        return {"features": scores.features.float()}
    symbols = scores.logits(slice(0, 1)).size(-1)
    chunk = chunk_size(positions.numel(), symbols, positions.device) or positions.numel()
    return most_probable(scores, positions.numel(), topk, chunk)


@contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    """A disk that is full, or may not be written to, ends the command in one line; the notes say what is done."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"--out '{folder}' can't be written ({error.strerror or error}): make room or name another folder; the same "
            "command goes on with what is done"
        ) from error
