"""How probable does a model that translates back find each source, given its translation?

The cross-entropy of the source is a common filter of synthetic data: a translation that leaves something out,
or says something else, makes the source improbable (Junczys-Dowmunt 2018 filters by both directions).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fairseq_imitkd.data.bars import Bar
from fairseq_imitkd.data.files import atomic_files
from fairseq_imitkd.data.languages import LanguagePair
from fairseq_imitkd.engines.base import SearchSettings
from fairseq_imitkd.engines.fairseq import FairseqEngine
from fairseq_imitkd.errors import UsageError
from fairseq_imitkd.seqkd.folder import DECODED, read_batch
from fairseq_imitkd.seqkd.job import Job
from fairseq_imitkd.seqkd.translator import TranslatedBatch
from fairseq_imitkd.seqkd.work import Work
from fairseq_imitkd.teacher.loading import load_teacher
from fairseq_imitkd.teacher.source import TeacherSource
from fairseq_imitkd.teacher.teacher import Teacher


def check_reverse(job: Job, languages: LanguagePair) -> None:
    """Refuse a reverse teacher that can't be used before anything slow happens.

    Raises:
        UsageError: its checkpoint can't be read, or its dictionaries or languages are others.
    """
    if job.reverse_teacher is not None:
        _load(job, languages)


def _load(job: Job, languages: LanguagePair) -> Teacher:
    source = TeacherSource(
        job.reverse_teacher or "", dtype=job.teacher_dtype, allow_globals=job.teacher_allow_globals
    )
    try:
        return load_teacher(source, _reversed(languages))
    except UsageError as error:
        message = str(error).replace("--teacher-path", "--reverse-teacher")
        message = message.replace("the teacher", "the reverse teacher")
        fault, _, remedy = message.rpartition("; ")
        if "--teacher-data" in remedy:  # which names the folder of the teacher alone
            differ = "lies beside" in fault
            remedy = "keep those alone that it was trained with" if differ else "put its own ones beside it"
            message = f"{fault}; {remedy}"
        raise UsageError(message) from error


def _reversed(languages: LanguagePair) -> LanguagePair:
    return LanguagePair(
        languages.target, languages.source, languages.target_dictionary, languages.source_dictionary
    )


def score_back(work: Work, numbers: Sequence[int]) -> None:
    """Score the translations of batches, and save each batch's scores as soon as they are there.

    Args:
        work: the job; without a reverse teacher nothing is done.
        numbers: the batches; those that have scores are left as they are.

    Raises:
        UsageError: the reverse teacher can't be loaded.
    """
    todo = [number for number in numbers if not _path(work.job, number).is_file()]
    if work.job.reverse_teacher is None or not todo:
        return
    engine, limits = open_reverse(work)
    for number in Bar(todo, desc="score back", unit=" batches"):
        batch = read_batch(work.job.out, number)
        scores = score_batch(work, batch, engine, limits=limits)
        with atomic_files(_path(work.job, number)) as [file]:
            np.save(file, scores)


def open_reverse(work: Work) -> tuple[FairseqEngine, tuple[int, int]]:
    """Load the reverse teacher of a job.

    Returns:
        its engine, and the longest translation and source that it takes, in tokens.
    """
    teacher = _load(work.job, work.languages)
    teacher.place(work.job.device_of(0), torch.float32)
    limits = teacher.max_positions
    back = _reversed(work.languages)
    return FairseqEngine(teacher.writer, back, SearchSettings(), longest_target=limits[1]), limits


def score_batch(
    work: Work, batch: TranslatedBatch, engine: FairseqEngine, *, limits: tuple[int, int]
) -> np.ndarray:
    """Return the mean log-probability of a source's token given each hypothesis, ``(H,)`` float32, in nats.

    A hypothesis that the limit cut, or that has too many tokens for the reverse teacher, has NaN.
    """
    targets = batch.token_tensors()
    sentences = np.repeat(batch.ids, batch.counts).tolist()
    sources = [work.corpus.sources[sentence].long() for sentence in sentences]
    fits = [
        at
        for at, (source, target) in enumerate(zip(sources, targets, strict=True))
        if not batch.cut[at] and 1 < target.numel() <= limits[0] and source.numel() <= limits[1]
    ]
    scores = np.full(len(targets), np.nan, dtype=np.float32)
    fits.sort(key=lambda at: -targets[at].numel())
    for some in _parts(fits, sources, targets, job=work.job):
        lprobs = engine.score([targets[at] for at in some], [sources[at] for at in some])
        scores[some] = [float(each.double().mean()) for each in lprobs]
    return scores


def _parts(
    order: Sequence[int], sources: Sequence[Tensor], targets: Sequence[Tensor], *, job: Job
) -> Iterator[list[int]]:
    """Divide hypotheses into batches that are within the job's limits, padding included."""
    part: list[int] = []
    longest = 0
    for at in order:
        length = max(sources[at].numel(), targets[at].numel())
        most_tokens = job.max_tokens and (len(part) + 1) * max(longest, length) > job.max_tokens
        if part and (most_tokens or len(part) == job.batch_size):
            yield part
            part, longest = [], 0
        part.append(at)
        longest = max(longest, length)
    if part:
        yield part


def qualities(job: Job, batches: Sequence[TranslatedBatch]) -> list[np.ndarray] | None:
    """Return what ``--drop-worst`` compares: per batch, ``(H,)`` float32, more is better; None without it.

    Args:
        job: the job, whose batches all have their scores.
        batches: the translations of each batch, by number.
    """
    if not job.filters.drop_worst:
        return None
    if job.reverse_teacher is None:
        return [batch.scores for batch in batches]
    return [np.load(_path(job, number), allow_pickle=False) for number in range(len(batches))]


def _path(job: Job, number: int) -> Path:
    return job.out / DECODED / f"{number:07d}.reverse.npy"
